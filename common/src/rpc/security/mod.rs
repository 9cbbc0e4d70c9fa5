//! Who may talk to whom: mutual TLS between the tasks of a job, and a token that every call carries.
//!
//! A process is one task of one job, so its credentials belong to the process, as its address does: `main` installs them
//! once ([`Security::install`]), and everything that is dialled or served afterwards uses them. What needs others (tests,
//! tools that visit a job) gives them by hand: [`connect_as`](super::connect_as), [`server`](super::server).
//!
//! - **Certificates.** `coati` makes a certificate authority and one certificate for all tasks of a job, and forgets the
//!   authority's key: nobody can make a further one. The certificate names the job's tasks ([`JOB_NAME`]) and no host, so
//!   that a task may move; certificates that the user gives must name the hosts, as any other does.
//! - **Token.** 256 random bits of the job, compared in constant time before a request's body is read. It holds where TLS
//!   is off as well: a task of another job, a leftover or a port scanner is refused by name and changes nothing.

mod access;
mod authority;
mod breach;
mod error;
mod files;
mod identity;
mod token;

use std::sync::{OnceLock, PoisonError, RwLock};

pub use access::{Attach, Check};
pub use breach::Breach;
pub use error::Error;
pub use files::{FOLDER, OwnCertificate, Sources};
pub(crate) use identity::HANDSHAKE;
pub use identity::{JOB_NAME, Tls};
pub use token::Token;

/// The credentials of a task: what it shows to others, and what it asks of them. Cloning is cheap. Never shows its secrets.
#[derive(Clone, Debug, Default)]
pub struct Security {
    token: Option<Token>,
    tls: Option<Tls>,
}

fn installed() -> &'static RwLock<Security> {
    static INSTALLED: OnceLock<RwLock<Security>> = OnceLock::new();
    INSTALLED.get_or_init(RwLock::default)
}

impl Security {
    /// Everybody may call, everything is readable on the way: for what never leaves one process, such as tests.
    pub fn none() -> Self {
        Self::default()
    }

    /// A token, and certificates unless TLS is off.
    pub fn new(token: Token, tls: Option<Tls>) -> Self {
        Self {
            token: Some(token),
            tls,
        }
    }

    /// Makes these the credentials of this process. Connections and servers that exist keep theirs.
    pub fn install(self) {
        *installed().write().unwrap_or_else(PoisonError::into_inner) = self;
    }

    /// The credentials of this process: [`Security::none`] until some are installed.
    pub fn of_this_process() -> Self {
        installed().read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same without TLS.
    #[must_use]
    pub fn without_tls(self) -> Self {
        Self { tls: None, ..self }
    }

    /// The same without a token.
    #[must_use]
    pub fn without_token(self) -> Self {
        Self { token: None, ..self }
    }

    /// The job's secret, if it has one.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// The certificates, unless TLS is off.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Puts the token on each request.
    pub fn attach(&self) -> Attach {
        Attach::new(self.token.as_ref())
    }

    /// Asks each request for the token.
    pub fn check(&self) -> Check {
        Check::new(self.token.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let token = Token::generate();
        let text = token.text();
        let security = Security::new(token, None);
        let shown = format!("{security:?} {:?} {:?}", security.attach(), security.check());
        assert!(!shown.contains(&text) && !shown.contains(&text[..8]), "{shown}");
    }
}
