//! How ranks find the file and each other.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::alive;
use super::region::{Layout, MAGIC, Region};
use crate::{Error, Member, Options};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(3);

/// Removes what this process put there.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Somebody else's by now, or gone: both are fine.
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn join(path: &Path, options: &Options, slice: usize) -> Result<(Region, Vec<Member>), Error> {
    if !Layout::fits(slice) {
        return Err(Error::Setting {
            what: format!("slices of {slice} elements; they have 16 to {}, in sixteens", 1 << 22),
            hint: "65536 is a good size",
        });
    }
    let begun = Instant::now();
    let region = if options.identity.member.rank == 0 {
        create(path, options, slice, begun)?
    } else {
        let region = open(path, options, begun)?;
        await_all(&region, options, begun)?;
        region
    };
    let members = here(&region);
    Ok((region, members))
}

fn here(region: &Region) -> Vec<Member> {
    let member = |rank| region.identity(rank).map(|identity| identity.member);
    (0..region.layout.world).filter_map(member).collect()
}

fn create(path: &Path, options: &Options, slice: usize, begun: Instant) -> Result<Region, Error> {
    let identity = &options.identity;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let made = PathBuf::from(name);
    let shown = made.display().to_string();
    let failed = |what: &str| {
        Error::io(
            format!("cannot {what} {shown}"),
            "choose a folder on this host that you may write to, such as /dev/shm",
        )
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&made);
    let file = file.map_err(failed("make"))?;
    let removed = Removed(made.clone());
    // Before anybody can see it, so that a file without this lock is one whose job is over.
    if !alive::take(&file, 0).map_err(failed("lock"))? {
        return Err(Error::Refused(format!("somebody else has locked {shown}")));
    }
    let layout = Layout {
        world: identity.world_size,
        slice,
    };
    let region = Region::create(file, layout, identity, &shown)?;
    region.set_identity(identity);
    std::fs::rename(&made, path).map_err(failed("rename"))?;
    drop(removed);
    let removed = Removed(path.to_owned());
    let come = await_everybody(&region, options, begun);
    if let Err(error) = &come {
        region.abort(0, &error.reason());
    }
    drop(removed);
    come.map(|()| region)
}

/// Rank 0's part: until all are there.
fn await_everybody(region: &Region, options: &Options, begun: Instant) -> Result<(), Error> {
    loop {
        refused(region)?;
        let mut all = true;
        for rank in 1..region.layout.world {
            match region.identity(rank) {
                None => all = false,
                Some(theirs) if theirs.member.rank != rank => return Err(Error::Garbage { from: theirs.member }),
                Some(theirs) => {
                    options.identity.agree(&theirs)?;
                    if !alive::holds(&region.file, rank) {
                        return Err(Error::Lost {
                            member: theirs.member,
                            how: "its process ended before all had come".to_owned(),
                            standings: Vec::new(),
                        });
                    }
                }
            }
        }
        if all {
            region.head().ready.advance(1);
            return Ok(());
        }
        in_time(region.layout.world, here(region), options, begun)?;
        sleep(LOOK);
    }
}

fn open(path: &Path, options: &Options, begun: Instant) -> Result<Region, Error> {
    let (identity, shown) = (&options.identity, path.display().to_string());
    loop {
        if let Some(file) = live(path)? {
            let region = mapped(file, path, options)?;
            let creator = region
                .creator()
                .ok_or_else(|| Error::Refused(format!("{shown} has no readable header")))?;
            let fits = creator.agree(identity).and_then(|()| {
                let rank = identity.member.rank;
                let taken = !alive::take(&region.file, rank).map_err(Error::io(
                    format!("cannot lock {shown}"),
                    "choose a folder on a file system with locks",
                ))?;
                if taken {
                    let other = region
                        .identity(rank)
                        .map_or("another process".to_owned(), |other| other.member.to_string());
                    return Err(Error::Refused(format!(
                        "rank {rank} was started twice: {other} and {}",
                        identity.member
                    )));
                }
                Ok(())
            });
            if let Err(error) = fits {
                region.abort(identity.member.rank, &error.reason());
                return Err(error);
            }
            region.set_identity(identity);
            return Ok(region);
        }
        in_time(identity.world_size, vec![identity.member.clone()], options, begun)?;
        sleep(LOOK);
    }
}

/// The file, if there is one whose rank 0 lives.
fn live(path: &Path) -> Result<Option<File>, Error> {
    let shown = path.display().to_string();
    let failed = || {
        Error::io(
            format!("cannot open {shown}"),
            "all ranks of a host run as one user and name the same file",
        )
    };
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed())?,
    };
    let about = file.metadata().map_err(failed())?;
    // SAFETY: asks for a number.
    let us = unsafe { libc::geteuid() };
    if about.uid() != us || !about.is_file() {
        return Err(Error::Refused(format!(
            "{shown} is not a file of user {us} (it belongs to user {})",
            about.uid()
        )));
    }
    Ok(alive::holds(&file, 0).then_some(file))
}

fn mapped(file: File, path: &Path, options: &Options) -> Result<Region, Error> {
    let shown = path.display().to_string();
    let failed = || {
        Error::io(
            format!("cannot read {shown}"),
            "name a file that does not exist, the same on all ranks",
        )
    };
    let mut bytes = [0; 24];
    file.read_exact_at(&mut bytes, 0).map_err(failed())?;
    let mut words = [0; 3];
    for (word, at) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        word.clone_from(&at.try_into().map_or(0, u64::from_le_bytes));
    }
    let length = file.metadata().map_err(failed())?.len();
    let layout = Region::peek(words, length).ok_or_else(|| {
        let found = String::from_utf8_lossy(&words[0].to_le_bytes()).escape_debug().to_string();
        Error::Refused(format!(
            "{} cannot read {shown}: it begins with \"{found}\" and has {length} bytes; this version's begins with \"{}\"",
            options.identity.member,
            String::from_utf8_lossy(&MAGIC.to_le_bytes()),
        ))
    })?;
    Region::map(file, layout, &shown)
}

/// The others' part: until rank 0 says that all are there.
fn await_all(region: &Region, options: &Options, begun: Instant) -> Result<(), Error> {
    let ready = &region.head().ready;
    loop {
        if ready.value.load(Ordering::Acquire) != 0 {
            return Ok(());
        }
        refused(region)?;
        if !alive::holds(&region.file, 0) {
            return Err(Error::Lost {
                member: region
                    .creator()
                    .map_or(options.identity.member.clone(), |creator| creator.member),
                how: "its process ended before all had come".to_owned(),
                standings: Vec::new(),
            });
        }
        in_time(region.layout.world, here(region), options, begun)?;
        ready.sleep(1);
    }
}

fn refused(region: &Region) -> Result<(), Error> {
    let Some((by, reason)) = region.aborted() else {
        return Ok(());
    };
    let by = if by < region.layout.world {
        region.identity(by)
    } else {
        None
    };
    Err(Error::Aborted {
        by: by.map_or_else(|| "a rank".to_owned(), |by| by.member.to_string()),
        reason,
    })
}

fn in_time(world: usize, here: Vec<Member>, options: &Options, begun: Instant) -> Result<(), Error> {
    if options.watch.stopped() {
        return Err(Error::Stopped);
    }
    let waited = begun.elapsed();
    if waited < options.rendezvous_timeout {
        return Ok(());
    }
    Err(Error::never_came(world, here, waited, String::new()))
}
