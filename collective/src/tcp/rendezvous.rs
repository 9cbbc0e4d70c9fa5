//! How ranks find each other: all dial rank 0, which tells them where the others listen. Rank `r` dials all below it and is dialled by
//! all above.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::control::{self, Control, ROSTER, Said};
use super::handshake::{Channel, Hello, Role, receive, send, shake};
use super::secret::Secret;
use crate::{Error, Identity, Options};

/// Longest handshake; strangers get no more of our time.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most handshakes under way beyond those of ranks.
const STRANGERS: usize = 64;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(3);

const REFUSED: &str = "all ranks must reach rank 0 and each other: check the address, the network and firewalls";

/// Both connections to a rank.
pub(super) struct Link {
    pub(super) identity: Identity,
    pub(super) data: TcpStream,
    pub(super) control: TcpStream,
}

#[derive(Default)]
struct Half {
    hello: Option<(Hello, IpAddr)>,
    data: Option<TcpStream>,
    control: Option<TcpStream>,
}

impl Half {
    fn whole(&self) -> bool {
        self.data.is_some() && self.control.is_some()
    }
}

/// Accepts connections and does their handshakes, each on a thread of its own, so that one that says nothing holds nobody up.
struct Doorman {
    listener: TcpListener,
    arrived: mpsc::Receiver<Result<(Hello, TcpStream), String>>,
    tell: mpsc::Sender<Result<(Hello, TcpStream), String>>,
    busy: Arc<AtomicUsize>,
    most: usize,
    strangers: usize,
    last: String,
}

impl Doorman {
    fn new(listener: TcpListener, world: usize) -> Result<Self, Error> {
        listener
            .set_nonblocking(true)
            .map_err(Error::io("cannot listen", REFUSED))?;
        let (tell, arrived) = mpsc::channel();
        Ok(Self {
            listener,
            arrived,
            tell,
            busy: Arc::new(AtomicUsize::new(0)),
            most: STRANGERS + 2 * world,
            strangers: 0,
            last: String::new(),
        })
    }

    /// The next rank, if one has come.
    fn next(&mut self, hello: &Hello, secret: &Secret) -> Option<(Hello, TcpStream)> {
        while self.busy.load(Ordering::Acquire) < self.most
            && let Ok((mut stream, from)) = self.listener.accept()
        {
            let (hello, secret, tell, busy) =
                (hello.clone(), secret.clone(), self.tell.clone(), Arc::clone(&self.busy));
            busy.fetch_add(1, Ordering::AcqRel);
            std::thread::spawn(move || {
                let met = shake(&mut stream, Role::Listens, &secret, &hello, Instant::now() + HANDSHAKE);
                let _ = tell.send(
                    met.map(|theirs| (theirs, stream))
                        .map_err(|why| format!("{from}: {why}")),
                );
                busy.fetch_sub(1, Ordering::AcqRel);
            });
        }
        match self.arrived.try_recv().ok()? {
            Ok(rank) => Some(rank),
            Err(why) => {
                self.strangers += 1;
                self.last = why;
                None
            }
        }
    }

    fn remark(&self) -> String {
        match self.strangers {
            0 => String::new(),
            count => format!(
                "; {count} connections were no ranks of this job, the last one from {}",
                self.last
            ),
        }
    }
}

/// All links of this rank, in rank order; nothing in its own place.
pub(super) fn join(
    rank0: SocketAddr,
    listener: Option<TcpListener>,
    secret: &Secret,
    options: &Options,
) -> Result<Vec<Option<Link>>, Error> {
    let begun = Instant::now();
    let mut halves: Vec<Half> = (0..options.identity.world_size).map(|_| Half::default()).collect();
    let met = meet(rank0, listener, secret, options, begun, &mut halves);
    if let Err(error) = met {
        // Whoever is connected hears why; the others find nobody.
        let bytes = control::abort(&error.reason());
        for stream in halves.iter_mut().filter_map(|half| half.control.as_mut()) {
            let _ = stream.set_nonblocking(false);
            let _ = send(stream, &bytes, Instant::now() + Duration::from_secs(1));
        }
        return Err(error);
    }
    Ok(halves
        .into_iter()
        .map(|half| {
            Some(Link {
                identity: half.hello?.0.identity,
                data: half.data?,
                control: half.control?,
            })
        })
        .collect())
}

fn meet(
    rank0: SocketAddr,
    listener: Option<TcpListener>,
    secret: &Secret,
    options: &Options,
    begun: Instant,
    halves: &mut [Half],
) -> Result<(), Error> {
    let identity = &options.identity;
    let (rank, world) = (identity.member.rank, identity.world_size);
    let until = begun + options.rendezvous_timeout;
    let mut hello = Hello {
        identity: identity.clone(),
        channel: Channel::Data,
        port: 0,
    };
    if rank == 0 {
        let listener = match listener {
            Some(listener) => listener,
            None => TcpListener::bind(rank0).map_err(Error::io(
                format!("cannot listen on {rank0}"),
                "another process has the port, or the address is not of this host",
            ))?,
        };
        let mut doorman = Doorman::new(listener, world)?;
        admit(&mut doorman, &hello, secret, options, begun, halves)?;
        let roster = roster(halves);
        for half in halves.iter_mut().skip(1) {
            if let Some(control) = &mut half.control {
                send(control, &roster, until).map_err(Error::io("cannot send the list of ranks", REFUSED))?;
            }
        }
        return Ok(());
    }
    // Where rank 0 is seen from, others see this one; on loopback nobody else shall.
    let any = match rank0.ip() {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = TcpListener::bind((any, 0)).map_err(Error::io(format!("cannot listen on {any}"), REFUSED))?;
    hello.port = listener
        .local_addr()
        .map_err(Error::io("cannot listen", REFUSED))?
        .port();
    let mut doorman = Doorman::new(listener, world)?;
    dial(rank0, 0, &hello, secret, options, begun, &mut halves[0])?;
    let places = read_roster(halves, options, begun)?;
    for (other, &place) in places.iter().enumerate().take(rank).skip(1) {
        dial(place, other, &hello, secret, options, begun, &mut halves[other])?;
    }
    admit(&mut doorman, &hello, secret, options, begun, halves)
}

/// Both connections to rank `other`, which may not yet listen.
fn dial(
    place: SocketAddr,
    other: usize,
    hello: &Hello,
    secret: &Secret,
    options: &Options,
    begun: Instant,
    half: &mut Half,
) -> Result<(), Error> {
    for channel in [Channel::Data, Channel::Control] {
        let mut stream = loop {
            let left = options.rendezvous_timeout.saturating_sub(begun.elapsed()).max(LOOK);
            match TcpStream::connect_timeout(&place, left) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() >= options.rendezvous_timeout => {
                    let here = vec![options.identity.member.clone()];
                    let remark = format!("; nobody answers for rank {other} on {place}: {error}");
                    return Err(Error::never_came(
                        options.identity.world_size,
                        here,
                        begun.elapsed(),
                        remark,
                    ));
                }
                Err(_) if options.watch.stopped() => return Err(Error::Stopped),
                Err(_) => sleep(LOOK),
            }
        };
        let own = Hello {
            channel,
            ..hello.clone()
        };
        let met = shake(&mut stream, Role::Dials, secret, &own, Instant::now() + HANDSHAKE);
        let theirs =
            met.map_err(|why| Error::Refused(format!("what listens on {place}, where rank {other} should be: {why}")))?;
        theirs.identity.agree(&options.identity)?;
        if theirs.identity.member.rank != other {
            return Err(Error::Refused(format!(
                "{} listens on {place}, where rank {other} should be",
                theirs.identity.member
            )));
        }
        keep(half, Hello { channel, ..theirs }, place.ip(), stream)?;
    }
    Ok(())
}

fn keep(half: &mut Half, hello: Hello, from: IpAddr, stream: TcpStream) -> Result<(), Error> {
    let member = &hello.identity.member;
    if let Some((known, _)) = &half.hello
        && known.identity != hello.identity
    {
        let text = format!(
            "rank {} was started twice: {} and {member}",
            member.rank, known.identity.member
        );
        return Err(Error::Refused(text));
    }
    let place = match hello.channel {
        Channel::Data => &mut half.data,
        Channel::Control => &mut half.control,
    };
    if place.replace(stream).is_some() {
        return Err(Error::Refused(format!("{member} came twice")));
    }
    half.hello = Some((hello, from));
    Ok(())
}

/// Waits for all ranks above the own one.
fn admit(
    doorman: &mut Doorman,
    hello: &Hello,
    secret: &Secret,
    options: &Options,
    begun: Instant,
    halves: &mut [Half],
) -> Result<(), Error> {
    let rank = options.identity.member.rank;
    while !halves.iter().skip(rank + 1).all(Half::whole) {
        while let Some((theirs, stream)) = doorman.next(hello, secret) {
            options.identity.agree(&theirs.identity)?;
            let from = stream
                .peer_addr()
                .map_or(Ipv4Addr::UNSPECIFIED.into(), |from| from.ip());
            let other = theirs.identity.member.rank;
            if other < rank {
                return Err(Error::Refused(format!(
                    "{} dialled {}, which should dial it",
                    theirs.identity.member, options.identity.member
                )));
            }
            keep(&mut halves[other], theirs, from, stream)?;
        }
        for half in halves.iter_mut() {
            overheard(half)?;
        }
        if options.watch.stopped() {
            return Err(Error::Stopped);
        }
        if begun.elapsed() >= options.rendezvous_timeout {
            let mut here = vec![options.identity.member.clone()];
            here.extend(
                halves
                    .iter()
                    .filter(|half| half.whole())
                    .filter_map(|half| Some(half.hello.as_ref()?.0.identity.member.clone())),
            );
            here.sort_by_key(|member| member.rank);
            return Err(Error::never_came(halves.len(), here, begun.elapsed(), doorman.remark()));
        }
        sleep(LOOK);
    }
    Ok(())
}

/// Whether one that came has gone or given up meanwhile.
fn overheard(half: &mut Half) -> Result<(), Error> {
    let (Some((hello, _)), Some(stream)) = (&half.hello, &half.control) else {
        return Ok(());
    };
    let failed = || Error::io("cannot use a connection", REFUSED);
    stream.set_nonblocking(true).map_err(failed())?;
    let mut control = Control::new(stream.try_clone().map_err(failed())?);
    loop {
        match control.hear() {
            None => return Ok(()),
            // It has met everybody already.
            Some(Said::Pulse) => {}
            Some(said) => return Err(gone(hello, said)),
        }
    }
}

fn gone(hello: &Hello, said: Said) -> Error {
    match said {
        Said::Abort(reason) => Error::Aborted {
            by: hello.identity.member.to_string(),
            reason,
        },
        Said::Noise => Error::Garbage {
            from: hello.identity.member.clone(),
        },
        Said::Leave | Said::Pulse | Said::End => Error::Lost {
            member: hello.identity.member.clone(),
            how: "it hung up before all had come".to_owned(),
            standings: Vec::new(),
        },
    }
}

/// Bytes of an address in the list: IPv6 or mapped IPv4, and the port.
const PLACE: usize = 18;

fn roster(halves: &[Half]) -> Vec<u8> {
    let mut bytes = vec![ROSTER];
    for half in halves {
        let (ip, port) = half
            .hello
            .as_ref()
            .map_or((Ipv4Addr::UNSPECIFIED.into(), 0), |(hello, ip)| (*ip, hello.port));
        let ip = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.extend_from_slice(&ip.octets());
        bytes.extend_from_slice(&port.to_le_bytes());
    }
    bytes
}

/// From rank 0, once it has met all.
fn read_roster(halves: &mut [Half], options: &Options, begun: Instant) -> Result<Vec<SocketAddr>, Error> {
    let world = halves.len();
    let Half {
        hello: Some((hello, _)),
        control: Some(control),
        ..
    } = &mut halves[0]
    else {
        return Err(Error::Refused("rank 0 was not met".to_owned()));
    };
    let hello = &*hello;
    // Rank 0 says who is missing when its time is over; a little later ours is.
    let until = begun + options.rendezvous_timeout + Duration::from_secs(2);
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof || error.kind() == std::io::ErrorKind::ConnectionReset {
            return gone(hello, Said::End);
        }
        let here = vec![hello.identity.member.clone(), options.identity.member.clone()];
        Error::never_came(
            world,
            here,
            begun.elapsed(),
            "; others may be here, rank 0 knows".to_owned(),
        )
    };
    let mut kind = [0];
    receive(control, &mut kind, until).map_err(failed)?;
    if kind[0] != ROSTER {
        let mut heard = Control::with(control.try_clone().map_err(failed)?, kind[0]);
        loop {
            match heard.hear() {
                Some(said) => return Err(gone(hello, said)),
                None if Instant::now() >= until => return Err(gone(hello, Said::End)),
                None => {}
            }
        }
    }
    let mut bytes = vec![0; world * PLACE];
    receive(control, &mut bytes, until).map_err(failed)?;
    let place = |bytes: &[u8]| {
        let ip: [u8; 16] = bytes[..16].try_into().unwrap_or([0; 16]);
        SocketAddr::new(
            Ipv6Addr::from(ip).to_canonical(),
            u16::from_le_bytes([bytes[16], bytes[17]]),
        )
    };
    Ok(bytes.chunks_exact(PLACE).map(place).collect())
}
