//! A certificate authority for tests: real certificates for any identity, with any flaw.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevocationReason,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use zeroize::Zeroizing;

use super::{Context, Credential, PrivateKey};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// What a leaf certificate says.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) names: Vec<SanType>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) valid: Range<SystemTime>,
    pub(crate) serial: Option<SerialNumber>,
}

impl Leaf {
    /// A good one for the URIs.
    pub(crate) fn uris(uris: &[&str]) -> Self {
        let now = SystemTime::now();
        Self {
            names: uris
                .iter()
                .map(|&uri| SanType::URI(uri.try_into().unwrap()))
                .collect(),
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            valid: now - HOUR..now + HOUR,
            serial: None,
        }
    }

    fn params(self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self.names;
        params.extended_key_usages = self.usages;
        params.serial_number = self.serial;
        params.not_before = self.valid.start.into();
        params.not_after = self.valid.end.into();
        params
    }
}

/// A root, or an intermediate below one.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    intermediates: Vec<String>,
    pub(crate) root: String,
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        let (params, key) = (ca_params(name), key());
        let root = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            root,
            intermediates: Vec::new(),
        }
    }

    /// A CA that this one vouches for.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (ca_params(name), key());
        let own = params.signed_by(&key, &self.issuer).unwrap().pem();
        let mut intermediates = vec![own];
        intermediates.extend(self.intermediates.iter().cloned());
        Self {
            issuer: Issuer::new(params, key),
            intermediates,
            root: self.root.clone(),
        }
    }

    /// The chain as istiod would answer it, and the key.
    pub(crate) fn issue(&self, leaf: Leaf) -> (PrivateKey, Vec<String>) {
        let key = key();
        let leaf = leaf.params().signed_by(&key, &self.issuer).unwrap().pem();
        (
            PrivateKey::from_pkcs8(Zeroizing::new(key.serialize_der())),
            self.chain(leaf),
        )
    }

    /// Answers a request, as istiod does: what is in it does not count, but for the key.
    pub(crate) fn sign(&self, csr: &str, leaf: Leaf) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params = leaf.params();
        self.chain(request.signed_by(&self.issuer).unwrap().pem())
    }

    /// A certificate for a host, and its key, both in PEM.
    pub(crate) fn host(&self, names: &[&str]) -> (String, String) {
        let mut leaf = Leaf::uris(&[]);
        leaf.names = names
            .iter()
            .map(|&name| match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.try_into().unwrap()),
            })
            .collect();
        let key = key();
        let leaf = leaf.params().signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    pub(crate) fn credential(&self, uri: &str) -> Credential {
        self.credential_in(&Context::default(), uri)
    }

    /// A credential of a node that has others, too.
    pub(crate) fn credential_in(&self, context: &Context, uri: &str) -> Credential {
        let (key, chain) = self.issue(Leaf::uris(&[uri]));
        Credential::from_chain(&uri.parse().unwrap(), &key, &chain, context).unwrap()
    }

    /// The same with a serial number of one's choice.
    pub(crate) fn numbered(&self, context: &Context, uri: &str, number: u64) -> Credential {
        let mut leaf = Leaf::uris(&[uri]);
        leaf.serial = Some(number.into());
        let (key, chain) = self.issue(leaf);
        Credential::from_chain(&uri.parse().unwrap(), &key, &chain, context).unwrap()
    }

    /// The root as handshakes use it.
    pub(crate) fn anchor(&self) -> TrustAnchor<'static> {
        let der = CertificateDer::from_pem_slice(self.root.as_bytes()).unwrap();
        webpki::anchor_from_trusted_cert(&der).unwrap().to_owned()
    }

    /// A list of this CA, in DER, that takes the certificates with these serial numbers back.
    pub(crate) fn revoke(&self, serials: &[SerialNumber]) -> Vec<u8> {
        let now = SystemTime::now();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: (now - HOUR).into(),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - 2 * HOUR).into(),
            // Overdue: a list counts all the same.
            next_update: (now - HOUR).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    fn chain(&self, leaf: String) -> Vec<String> {
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.root.clone());
        chain
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, name);
    // To be revoked by name.
    params.serial_number = Some(SerialNumber::from_slice(name.as_bytes()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
