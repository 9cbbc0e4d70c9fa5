use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::identity::Unusable;
use super::{Error, Security, Tls, Token, authority};

/// Name of the folder below a job's folder that holds its certificates and token.
pub const FOLDER: &str = "tls";

const CA: &str = "ca.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
const TOKEN: &str = "token";

/// Longest file that is read; a chain of certificates has some thousand bytes.
const LARGEST: u64 = 1 << 20;

/// Between two looks for files that another task makes.
const PAUSE: Duration = Duration::from_millis(50);

const MADE_ANEW: &str = "remove the folder; the next start of the job makes a new one";
const GIVEN: &str =
    "correct the path under `coati: security:` in the cluster file, or leave it out for files that coati makes";

/// Certificates that the user gives, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OwnCertificate {
    /// Of the authority that all tasks' certificates are of.
    pub ca: PathBuf,
    /// This task's, with what lies between it and the authority's.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where a task's credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// `<model_dir>/tls`: what the job's master or launcher makes, for all that is not given.
    pub folder: PathBuf,
    /// `coati.security.tls`
    pub tls: bool,
    /// `coati.security.ca`, `.cert` and `.key`
    pub own: Option<OwnCertificate>,
    /// `coati.security.token_file`
    pub token_file: Option<PathBuf>,
}

impl Sources {
    /// What coati makes below a job's folder, with TLS.
    pub fn of_job(model_dir: &Path) -> Self {
        Self::of_folder(model_dir.join(FOLDER))
    }

    /// What coati made in this folder, with TLS.
    pub fn of_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            tls: true,
            own: None,
            token_file: None,
        }
    }

    /// Whether something of the folder is used: not everything is given.
    pub fn needs_folder(&self) -> bool {
        self.token_file.is_none() || (self.tls && self.own.is_none())
    }

    /// Makes what is not given and not there. What is there stays: tasks of the job may have read it.
    pub fn make(&self) -> Result<(), Error> {
        if self.needs_folder() && !self.folder.exists() {
            make_folder(&self.folder)
        } else {
            Ok(())
        }
    }

    /// Reads them; waits up to `limit` for those that another task makes.
    pub fn load(&self, limit: Duration) -> Result<Security, Error> {
        if self.needs_folder() {
            self.await_folder(limit)?;
        }
        let token = match &self.token_file {
            Some(path) => token(path, GIVEN)?,
            None => token(&self.folder.join(TOKEN), MADE_ANEW)?,
        };
        let tls = match &self.own {
            _ if !self.tls => None,
            Some(own) => Some(tls(own, GIVEN)?),
            None => Some(tls(
                &OwnCertificate {
                    ca: self.folder.join(CA),
                    cert: self.folder.join(CERT),
                    key: self.folder.join(KEY),
                },
                MADE_ANEW,
            )?),
        };
        Ok(Security::new(token, tls))
    }

    /// The folder appears with everything in it, so its being there is enough.
    fn await_folder(&self, limit: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            match fs::metadata(&self.folder) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(Error::Read {
                        what: "the folder of the job's certificates and token",
                        path: self.folder.clone(),
                        source,
                        hint: "let the user of this process read --model_dir, or give `coati: security:` with paths in the cluster file",
                    });
                }
            }
            let waited = begun.elapsed();
            if waited >= limit {
                return Err(Error::Missing {
                    folder: self.folder.clone(),
                    waited,
                });
            }
            std::thread::sleep(PAUSE.min(limit.saturating_sub(waited)));
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    let parent = folder.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(write(parent))?;
    let unique = Token::generate().text();
    let partial = parent.join(format!(".{FOLDER}-{}", &unique[..12]));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&partial)
        .map_err(write(&partial))?;
    let filled = fill(&partial).and_then(|()| match fs::rename(&partial, folder) {
        Ok(()) => Ok(()),
        // Another process was quicker: its files are as good, and may have been read.
        Err(_) if folder.exists() => Ok(()),
        Err(source) => Err(write(folder)(source)),
    });
    if partial.exists() {
        let _ = fs::remove_dir_all(&partial);
    }
    filled
}

fn fill(folder: &Path) -> Result<(), Error> {
    let made = authority::make()?;
    let token = Token::generate().text() + "\n";
    for (name, mode, text) in [
        (CA, 0o644, &made.ca),
        (CERT, 0o644, &made.cert),
        (KEY, 0o600, &made.key),
        (TOKEN, 0o600, &token),
    ] {
        let path = folder.join(name);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

fn token(path: &Path, hint: &'static str) -> Result<Token, Error> {
    let what = "job token";
    let bytes = read(what, path, hint)?;
    warn_if_open(what, path);
    Token::parse(bytes.trim_ascii()).ok_or_else(|| Error::Content {
        what,
        path: path.to_owned(),
        message: format!(
            "not a token, which is 64 hexadecimal digits; found {} bytes of something else",
            bytes.len()
        ),
        hint: if hint == GIVEN {
            "`openssl rand -hex 32` makes one"
        } else {
            hint
        },
    })
}

fn tls(files: &OwnCertificate, hint: &'static str) -> Result<Tls, Error> {
    let (ca, cert, key) = ("certificate authority", "certificate", "private key");
    let bytes = [
        read(ca, &files.ca, hint)?,
        read(cert, &files.cert, hint)?,
        read(key, &files.key, hint)?,
    ];
    warn_if_open(key, &files.key);
    Tls::new(&bytes[0], &bytes[1], &bytes[2]).map_err(|unusable| {
        let (what, path, message) = match unusable {
            Unusable::Ca(message) => (ca, &files.ca, message),
            Unusable::Cert(message) => (cert, &files.cert, message),
            Unusable::Key(message) => (key, &files.key, message),
        };
        Error::Content {
            what,
            path: path.clone(),
            message,
            hint,
        }
    })
}

fn read(what: &'static str, path: &Path, hint: &'static str) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        what,
        path: path.to_owned(),
        source,
        hint,
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(failed(io::Error::other(format!("more than {LARGEST} bytes"))));
    }
    Ok(bytes)
}

/// Only said: where a scheduler mounts secrets, their modes are its own.
fn warn_if_open(what: &str, path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!("{what} {} can be read by others; chmod 600 is better", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_jobs_secrets_are_its_owners_alone_and_stay() {
        let job = tempfile::tempdir().unwrap();
        let sources = Sources::of_job(&job.path().join("new"));
        sources.make().unwrap();
        let folder = &sources.folder;
        assert_eq!((mode(folder), mode(&folder.join(KEY))), (0o700, 0o600));
        assert_eq!(mode(&folder.join(TOKEN)), 0o600);
        let before = fs::read(folder.join(TOKEN)).unwrap();
        assert_eq!(before.len(), 65);
        // The authority's key is nowhere, and nothing half-made is left.
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [CA, CERT, KEY, TOKEN]);
        assert_eq!(fs::read_dir(job.path().join("new")).unwrap().count(), 1);
        sources.make().unwrap();
        assert_eq!(fs::read(folder.join(TOKEN)).unwrap(), before);
        let security = sources.load(Duration::ZERO).unwrap();
        assert!(security.tls().is_some());
        let plain = Sources { tls: false, ..sources };
        assert!(plain.load(Duration::ZERO).unwrap().tls().is_none());
    }

    #[test]
    fn tasks_that_start_together_agree() {
        let job = tempfile::tempdir().unwrap();
        let sources = Sources::of_job(job.path());
        let tokens: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let starting = || {
                sources.make().unwrap();
                fs::read(sources.folder.join(TOKEN)).unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(starting)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]));
        assert_eq!(fs::read_dir(job.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_missing_or_damaged_is_named_with_what_to_do() {
        let job = tempfile::tempdir().unwrap();
        let sources = Sources::of_job(job.path());
        let text = |sources: &Sources| sources.load(Duration::ZERO).unwrap_err().to_string();
        let missing = text(&sources);
        assert!(
            missing.contains("/tls") && missing.contains("hint: ") && missing.contains("token_file"),
            "{missing}"
        );
        sources.make().unwrap();
        let folder = sources.folder.clone();
        for (file, content) in [
            (TOKEN, "short"),
            (CERT, "not PEM"),
            (CA, "-----BEGIN CERTIFICATE-----\nAAAA\n"),
            (KEY, ""),
        ] {
            let path = folder.join(file);
            let good = fs::read(&path).unwrap();
            fs::write(&path, content).unwrap();
            let damaged = text(&sources);
            assert!(
                damaged.contains(&path.display().to_string()) && damaged.contains("hint: remove the folder"),
                "{damaged}"
            );
            fs::remove_file(&path).unwrap();
            assert!(text(&sources).contains(&path.display().to_string()));
            fs::write(&path, good).unwrap();
        }
        sources.load(Duration::ZERO).unwrap();

        // Another certificate's key.
        let other = tempfile::tempdir().unwrap();
        Sources::of_job(other.path()).make().unwrap();
        let own = OwnCertificate {
            ca: folder.join(CA),
            cert: folder.join(CERT),
            key: other.path().join(FOLDER).join(KEY),
        };
        let mismatch = text(&Sources {
            own: Some(own.clone()),
            ..sources.clone()
        });
        assert!(
            mismatch.contains(&own.key.display().to_string()) && mismatch.contains("coati: security:"),
            "{mismatch}"
        );
        let endless = Sources {
            token_file: Some("/dev/zero".into()),
            ..sources
        };
        assert!(text(&endless).contains("/dev/zero"));
    }
}
