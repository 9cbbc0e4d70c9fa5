use std::fmt;
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The name in certificates that `coati` makes. It cannot be a host's (RFC 2606).
pub const JOB_NAME: &str = "task.coati.invalid";

/// Whoever connects and says nothing is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A certificate, its key, and the authority that others' certificates must be of.
#[derive(Clone)]
pub struct Tls {
    ca: Certificate,
    identity: Identity,
    /// The certificate names the job and not hosts: so do the others'.
    of_the_job: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("of_the_job", &self.of_the_job)
            .finish_non_exhaustive()
    }
}

/// Which of the three is of no use, and why.
pub(super) enum Unusable {
    Ca(String),
    Cert(String),
    Key(String),
}

impl Tls {
    /// From PEM: authority, certificate (chain), key.
    pub(super) fn new(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, Unusable> {
        let certificates = |pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, String> {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            match found {
                Ok(found) if found.is_empty() => Err("holds no certificate (`-----BEGIN CERTIFICATE-----`)".to_owned()),
                Ok(found) => Ok(found),
                Err(error) => Err(format!("not PEM: {error}")),
            }
        };
        certificates(ca).map_err(Unusable::Ca)?;
        let own = certificates(cert).map_err(Unusable::Cert)?;
        PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| Unusable::Key(format!("holds no private key in PEM: {error}")))?;
        let of_the_job = own.first().is_some_and(|own| names_the_job(own));
        let tls = Self {
            ca: Certificate::from_pem(ca),
            identity: Identity::from_pem(cert, key),
            of_the_job,
        };
        // What only the library can judge, such as a key that is another certificate's: before anybody is dialled.
        tonic::transport::Server::builder()
            .tls_config(tls.server())
            .map_err(|error| Unusable::Key(deepest(&error)))?;
        Ok(tls)
    }

    /// For dialling a host.
    pub(crate) fn client(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new()
            .ca_certificate(self.ca.clone())
            .identity(self.identity.clone());
        if self.of_the_job {
            config.domain_name(JOB_NAME)
        } else {
            // The host's own name, which is part of its address.
            config
        }
    }

    /// For serving: callers must show a certificate too.
    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .client_ca_root(self.ca.clone())
            .identity(self.identity.clone())
            .timeout(HANDSHAKE)
    }
}

fn names_the_job(certificate: &[u8]) -> bool {
    certificate
        .windows(JOB_NAME.len())
        .any(|window| window == JOB_NAME.as_bytes())
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}
