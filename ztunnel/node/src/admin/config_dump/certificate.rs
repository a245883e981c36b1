//! How the certificates of an identity look in a dump. Keys are not in what this is made from.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};
use ztunnel_mesh::name::Identity;

use crate::tls::Credential;

/// What is known of the certificate of an identity.
#[derive(Clone, Debug)]
pub struct CertificateSet {
    pub identity: Identity,
    pub state: CertificateState,
}

#[derive(Clone, Debug)]
pub enum CertificateState {
    /// The CA has not answered yet.
    Initializing,
    /// There is one that peers accept.
    Available(Arc<Credential>),
    /// There is none, and why.
    Unavailable(String),
}

/// The fields in the order of their names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownSet {
    cert_chain: Vec<ShownCertificate>,
    identity: String,
    root_certs: Vec<ShownCertificate>,
    state: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownCertificate {
    expiration_time: String,
    /// Its PEM text, in base64 once more.
    pem: String,
    /// In decimal.
    serial_number: String,
    valid_from: String,
}

impl From<&CertificateSet> for ShownSet {
    fn from(set: &CertificateSet) -> Self {
        let (chain, roots, state) = match &set.state {
            CertificateState::Initializing => (&[][..], &[][..], "Initializing".to_owned()),
            CertificateState::Available(credential) => (
                credential.chain(),
                credential.roots(),
                "Available".to_owned(),
            ),
            CertificateState::Unavailable(why) => (&[][..], &[][..], format!("Unavailable: {why}")),
        };
        Self {
            cert_chain: chain.iter().filter_map(shown).collect(),
            identity: set.identity.to_string(),
            root_certs: roots.iter().filter_map(shown).collect(),
            state,
        }
    }
}

/// Nothing for one that cannot be read, which nobody uses either.
fn shown(der: &CertificateDer<'_>) -> Option<ShownCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some(ShownCertificate {
        expiration_time: rfc3339(validity.not_after),
        pem: STANDARD.encode(pem(der)),
        serial_number: certificate.tbs_certificate.serial.to_string(),
        valid_from: rfc3339(validity.not_before),
    })
}

fn pem(der: &[u8]) -> String {
    const LINE: usize = 64;
    let base64 = STANDARD.encode(der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = &*base64;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

fn rfc3339(time: ASN1Time) -> String {
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}
