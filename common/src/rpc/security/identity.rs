use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The name in certificates that `coati` makes. It cannot be a host's (RFC 2606).
pub const JOB_NAME: &str = "task.coati.invalid";

/// Whoever connects and says nothing is let go.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// A certificate, its key, and the authority that others' certificates must be of.
#[derive(Clone)]
pub struct Tls {
    ca: Certificate,
    identity: Identity,
    /// The certificate names the job and not hosts: so do the others'.
    of_the_job: bool,
    /// The same, for what is no call.
    lane_client: Arc<ClientConfig>,
    lane_server: Arc<ServerConfig>,
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
        let authorities = certificates(ca).map_err(Unusable::Ca)?;
        let own = certificates(cert).map_err(Unusable::Cert)?;
        let own_key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| Unusable::Key(format!("holds no private key in PEM: {error}")))?;
        let of_the_job = own.first().is_some_and(|own| names_the_job(own));
        let (lane_client, lane_server) = lanes(authorities, own, own_key)?;
        let tls = Self {
            ca: Certificate::from_pem(ca),
            identity: Identity::from_pem(cert, key),
            of_the_job,
            lane_client,
            lane_server,
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

    /// As [`Tls::client`], for lanes.
    pub(crate) fn lane_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.lane_client)
    }

    /// As [`Tls::server`], for lanes.
    pub(crate) fn lane_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.lane_server)
    }

    /// What the certificate of who listens at `address` (`host:port`) must name.
    pub(crate) fn name_of(&self, address: &str) -> io::Result<ServerName<'static>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = if self.of_the_job { JOB_NAME } else { host };
        ServerName::try_from(name.to_owned()).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{name}` cannot stand in a certificate: {error}"),
            )
        })
    }

    /// For serving: callers must show a certificate too.
    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .client_ca_root(self.ca.clone())
            .identity(self.identity.clone())
            .timeout(HANDSHAKE)
    }
}

/// As the library of calls sets up its own.
fn lanes(
    authorities: Vec<CertificateDer<'static>>,
    own: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), Unusable> {
    let unusable = |error: rustls::Error| Unusable::Key(error.to_string());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(own.clone(), key.clone_key())
        .map_err(unusable)?;
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| Unusable::Ca(error.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(callers)
        .with_single_cert(own, key)
        .map_err(unusable)?;
    // They would lie unread on a lane that is idle, and nobody comes back with one.
    server.send_tls13_tickets = 0;
    Ok((Arc::new(client), Arc::new(server)))
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
