//! Who a rank is, and whether two ranks belong together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Error;

/// Most ranks of a communicator.
pub(crate) const MOST_RANKS: usize = 256;

/// Longest host name and version that are kept, in bytes.
const MOST_TEXT: usize = 63;

/// A rank, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub rank: usize,
    /// Its host's name; empty while nobody came.
    pub host: String,
    /// Its process on that host; 0 while nobody came.
    pub pid: u32,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            write!(f, "rank {}", self.rank)
        } else {
            write!(f, "rank {} ({}, pid {})", self.rank, self.host, self.pid)
        }
    }
}

/// What ranks must agree upon, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub member: Member,
    /// How many ranks there shall be.
    pub world_size: usize,
    /// The program's version.
    pub version: String,
    /// Of everything that must be the same on all ranks: SHA-256 of the configuration, as the caller defines it.
    pub digest: [u8; 32],
}

impl Identity {
    /// Of this process. Texts are cut to 63 bytes.
    pub fn here(rank: usize, world_size: usize, version: &str, digest: [u8; 32]) -> Self {
        Self {
            member: Member {
                rank,
                host: cut(&host_name()),
                pid: std::process::id(),
            },
            world_size,
            version: cut(version),
            digest,
        }
    }

    /// Whether `other` belongs to the same job.
    ///
    /// # Errors
    /// What differs, with both ranks named.
    pub fn agree(&self, other: &Self) -> Result<(), Error> {
        let (us, them) = (&self.member, &other.member);
        let short = |digest: &[u8; 32]| digest[..6].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let differ = |what: &str, ours: String, theirs: String| {
            Err(Error::Refused(format!(
                "{them} has {what} {theirs}, but {us} has {ours}"
            )))
        };
        if self.version != other.version {
            return differ("version", self.version.clone(), other.version.clone());
        }
        if self.world_size != other.world_size {
            return differ("world size", self.world_size.to_string(), other.world_size.to_string());
        }
        if self.digest != other.digest {
            return differ("configuration digest", short(&self.digest), short(&other.digest));
        }
        if us.rank == them.rank {
            return Err(Error::Refused(format!(
                "rank {} was started twice: {us} and {them}",
                us.rank
            )));
        }
        if them.rank >= self.world_size {
            return Err(Error::Refused(format!(
                "{them} is beyond the last of {} ranks, as {us} knows",
                self.world_size
            )));
        }
        Ok(())
    }

    /// Bytes of [`Self::encode`]: fixed, so that programs of other versions can read it.
    pub(crate) const BYTES: usize = 4 + 4 + 4 + 32 + 2 * (MOST_TEXT + 1);

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        for number in [self.member.rank as u32, self.member.pid, self.world_size as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.digest);
        for text in [&self.member.host, &self.version] {
            let text = cut(text);
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
            bytes.resize(bytes.len() + MOST_TEXT - text.len(), 0);
        }
        let mut all = [0; Self::BYTES];
        all.copy_from_slice(&bytes);
        all
    }

    /// Nothing where it is not one.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let text = |at: usize| {
            let length = usize::from(bytes[at]);
            let text = bytes[at + 1..=at + MOST_TEXT].get(..length)?;
            let text = std::str::from_utf8(text).ok()?;
            // It goes to terminals and logs.
            text.chars().all(|c| !c.is_control()).then(|| text.to_owned())
        };
        Some(Self {
            member: Member {
                rank: number(0)? as usize,
                pid: number(4)?,
                host: text(44)?,
            },
            world_size: number(8)? as usize,
            digest: bytes[12..44].try_into().ok()?,
            version: text(44 + MOST_TEXT + 1)?,
        })
    }
}

/// How a rank comes to the others and how long it waits for them.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who this is.
    pub identity: Identity,
    /// Longest wait for all ranks to come.
    pub rendezvous_timeout: Duration,
    /// Longest wait for the other ranks within an operation: longer than the slowest rank takes from one operation to the next.
    pub timeout: Duration,
    /// What one looks after while one waits.
    pub watch: Watch,
    /// Whether ranks that meet over TCP and find themselves on one host exchange elements through Unix sockets.
    pub local_sockets: bool,
}

/// What one looks after while one waits for others.
#[derive(Clone, Debug)]
pub struct Watch {
    /// A rank whose process shows no sign of life for so long hangs, or was stopped, whatever it is at. Every rank gives such signs, by a
    /// thread of its own, also while it computes, evaluates or writes.
    pub silence: Duration,
    /// Raised from elsewhere: a rank that waits for others to come gives up.
    pub stop: Option<Arc<AtomicBool>>,
    /// Hears whom one waits for, once that has taken ten seconds, and every ten seconds.
    pub say: Option<fn(&str)>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            stop: None,
            say: None,
        }
    }
}

/// Between two words about a wait.
const SAY_EVERY: Duration = Duration::from_secs(10);

impl Watch {
    /// Between two signs of life.
    pub(crate) fn pulse(&self) -> Duration {
        (self.silence / 8).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Acquire))
    }
}

/// One wait: what was said of it, and whether this process was itself away meanwhile.
pub(crate) struct Vigil {
    pub(crate) begun: Instant,
    said: Instant,
    looked: Instant,
}

impl Vigil {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            said: now,
            looked: now,
        }
    }

    /// Called at each look, at least four times within a silence. Whether this process slept through so much of it that nobody's silence
    /// counts: it was stopped itself.
    pub(crate) fn was_away(&mut self, watch: &Watch) -> bool {
        let now = Instant::now();
        let gap = now - self.looked;
        self.looked = now;
        let away = gap > (watch.silence / 2).max(Duration::from_millis(200));
        if away {
            self.begun += gap;
        }
        away
    }

    /// Says `whom` one waits for, where it is time.
    pub(crate) fn say(&mut self, watch: &Watch, whom: impl FnOnce() -> String) {
        if let Some(say) = watch.say
            && self.said.elapsed() >= SAY_EVERY
        {
            self.said = Instant::now();
            say(&format!(
                "waiting for {} since {:.0} s",
                whom(),
                self.begun.elapsed().as_secs_f64()
            ));
        }
    }
}

impl Options {
    /// With two minutes for the rendezvous and five for an operation.
    ///
    /// # Errors
    /// A rank beyond the world, and worlds of none or more than 256 ranks.
    pub fn new(identity: Identity) -> Result<Self, Error> {
        let options = Self {
            identity,
            rendezvous_timeout: Duration::from_secs(120),
            timeout: Duration::from_secs(300),
            watch: Watch::default(),
            local_sockets: true,
        };
        options.check()?;
        Ok(options)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let (rank, world) = (self.identity.member.rank, self.identity.world_size);
        if !(1..=MOST_RANKS).contains(&world) {
            return Err(Error::Setting {
                what: format!("world size is {world}; it must be 1 to {MOST_RANKS}"),
                hint: "let ranks of one host be one replica of a larger job",
            });
        }
        if rank >= world {
            return Err(Error::Setting {
                what: format!("rank is {rank}, world size {world}; ranks are 0 to {}", world - 1),
                hint: "ranks are counted from 0",
            });
        }
        Ok(())
    }
}

fn cut(text: &str) -> String {
    let mut kept: String = text.chars().filter(|c| !c.is_control()).collect();
    while kept.len() > MOST_TEXT {
        kept.pop();
    }
    kept
}

fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is as long as it says; the last byte stays zero.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    if failed || end == 0 {
        return "unknown host".to_owned();
    }
    String::from_utf8_lossy(&name[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(rank: usize) -> Identity {
        Identity::here(rank, 3, "0.1.0", [7; 32])
    }

    #[test]
    fn survives_the_wire() {
        let mut long = identity(2);
        assert_eq!(Identity::decode(&long.encode()), Some(long.clone()));
        long.version = "é".repeat(60);
        let read = Identity::decode(&long.encode()).unwrap();
        assert_eq!(read.version, "é".repeat(31), "cut between letters");
        let mut bytes = long.encode();
        bytes[44] = 64;
        assert_eq!(Identity::decode(&bytes), None, "a text longer than its place");
        let mut bytes = identity(1).encode();
        bytes[45] = 27;
        assert_eq!(Identity::decode(&bytes), None, "no control characters");
    }

    #[test]
    fn every_difference_is_named_with_both_ranks() {
        let ours = identity(0);
        ours.agree(&identity(1)).unwrap();
        let differ = |change: &dyn Fn(&mut Identity), words: &str| {
            let mut other = identity(1);
            change(&mut other);
            let text = ours.agree(&other).unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
            assert!(text.contains("hint: ") && text.contains("rank 0 ("), "{text}");
        };
        differ(&|other| other.version = "0.2.0".to_owned(), "version 0.2.0, but");
        differ(&|other| other.world_size = 2, "world size 2, but");
        differ(&|other| other.digest[0] = 8, "configuration digest 080707070707, but");
        differ(&|other| other.member.rank = 0, "rank 0 was started twice");
        differ(&|other| other.member.rank = 3, "beyond the last of 3 ranks");
    }

    #[test]
    fn impossible_worlds_are_refused() {
        for (rank, world) in [(0, 0), (3, 3), (0, 257)] {
            assert!(
                Options::new(Identity::here(rank, world, "1", [0; 32])).is_err(),
                "{rank} of {world}"
            );
        }
    }
}
