use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::identity::JOB_NAME;
use super::{Error, Token};

/// What a job's folder is filled with, as PEM.
pub(super) struct Made {
    pub(super) ca: String,
    pub(super) cert: String,
    pub(super) key: String,
}

/// A certificate authority and one certificate by it, valid for clients and servers, for as long as the folder exists: hosts'
/// clocks differ, and nobody but this job trusts it. The authority's key is forgotten here.
pub(super) fn make() -> Result<Made, Error> {
    made().map_err(|error| Error::Make(error.to_string()))
}

fn made() -> Result<Made, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    // Jobs' authorities have different names, so that a wrong one is an unknown issuer and not a wrong signature.
    let unique = Token::generate().text();
    ca.distinguished_name
        .push(DnType::CommonName, format!("Coati job {}", &unique[..16]));
    let ca_cert = ca.self_signed(&ca_key)?;

    let key = KeyPair::generate()?;
    let mut task = CertificateParams::new(vec![JOB_NAME.to_owned()])?;
    task.distinguished_name.push(DnType::CommonName, "task of a Coati job");
    task.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = task.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok(Made {
        ca: ca_cert.pem(),
        cert: cert.pem(),
        key: key.serialize_pem(),
    })
}
