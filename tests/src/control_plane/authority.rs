//! A certificate authority: a root, an intermediate below it, and leaves with one SPIFFE id.
//!
//! The control plane signs with one; tests make further ones to play strangers.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::{Doing, LabError, Result};

/// How long root and intermediate are good for.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A root and an intermediate, and their keys.
pub struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// From when to when a certificate is good.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// How far back it is dated, against clocks that disagree.
    pub back_dated: Duration,
    /// How long it is good for from now on.
    pub lifetime: Duration,
}

impl Validity {
    /// As Istio dates: two minutes back.
    #[must_use]
    pub fn of(lifetime: Duration) -> Self {
        Self {
            back_dated: Duration::from_secs(120),
            lifetime,
        }
    }
}

/// A certificate somebody can present, with its key.
#[derive(Debug)]
pub struct Credential {
    /// The leaf and the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// A leaf just signed.
pub(crate) struct Leaf {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) not_after: SystemTime,
    pub(crate) serial: Vec<u8>,
}

impl Authority {
    /// Makes one that nobody trusts yet.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let make = || {
            let root = CertifiedIssuer::self_signed(
                ca_params(&format!("{name} root")),
                KeyPair::generate()?,
            )?;
            let intermediate = CertifiedIssuer::signed_by(
                ca_params(&format!("{name} intermediate")),
                KeyPair::generate()?,
                &root,
            )?;
            Ok(Self { root, intermediate })
        };
        make().map_err(|err: rcgen::Error| {
            LabError::because(format!("make the authority {name}"), err)
        })
    }

    /// The root, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// Makes a key and a certificate for a SPIFFE id, whoever asks.
    ///
    /// # Errors
    /// When the id cannot be in a certificate.
    pub fn issue(&self, spiffe_id: &str, validity: Validity) -> Result<Credential> {
        let key = KeyPair::generate().doing(|| "make a key")?;
        let leaf = self.sign(spiffe_id, &key, validity)?;
        Ok(Credential {
            chain: vec![leaf.der, self.intermediate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    /// Makes a key and a certificate for a server that is known by host names and addresses. Both PEM, the
    /// intermediate included.
    pub(crate) fn issue_server(&self, names: &[&str]) -> Result<(String, String)> {
        let issue = || {
            let key = KeyPair::generate()?;
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names)?;
            leaf_usages(&mut params);
            date(&mut params, Validity::of(CA_LIFETIME));
            let leaf = params.signed_by(&key, &self.intermediate)?;
            Ok((leaf.pem() + &self.intermediate.pem(), key.serialize_pem()))
        };
        issue().map_err(|err: rcgen::Error| LabError::because("issue a server certificate", err))
    }

    /// Signs a leaf for somebody else's key.
    pub(crate) fn sign(
        &self,
        spiffe_id: &str,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<Leaf> {
        let sign = || -> std::result::Result<_, rcgen::Error> {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
            leaf_usages(&mut params);
            date(&mut params, validity);
            let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes);
            Ok((params.signed_by(key, &self.intermediate)?, serial))
        };
        let (certificate, serial) =
            sign().doing(|| format!("sign a certificate for {spiffe_id}"))?;
        Ok(Leaf {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            not_after: SystemTime::now() + validity.lifetime,
            serial: serial.unwrap_or_default(),
        })
    }

    /// The list, PEM, that takes leaves with these serial numbers back.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn revoke(&self, serials: &[Vec<u8>]) -> Result<String> {
        let now = SystemTime::now();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + CA_LIFETIME).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let sign = || params.signed_by(&self.intermediate)?.pem();
        sign().doing(|| "sign a revocation list")
    }

    /// The intermediate, PEM.
    pub(crate) fn intermediate_pem(&self) -> String {
        self.intermediate.pem()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "lab");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    date(&mut params, Validity::of(CA_LIFETIME));
    params
}

fn leaf_usages(params: &mut CertificateParams) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    // Sixteen random bytes, positive. rcgen would derive the number from the key, and two certificates for one
    // key would share it.
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

fn date(params: &mut CertificateParams, validity: Validity) {
    let now = SystemTime::now();
    params.not_before = (now - validity.back_dated).into();
    params.not_after = (now + validity.lifetime).into();
}
