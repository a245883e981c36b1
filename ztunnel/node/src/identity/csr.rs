//! A fresh key and the request to certify it.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use zeroize::Zeroizing;
use ztunnel_mesh::name::Identity;

use crate::tls::PrivateKey;

/// A certificate request in PEM, and the key it is for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) csr: String,
    pub(super) key: PrivateKey,
}

impl Request {
    /// Makes a request with an empty subject and one critical URI name. A common name would make istiod issue
    /// certificates with a DNS meaning.
    pub(super) fn new(identity: &Identity) -> Result<Self, rcgen::Error> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let csr = params.serialize_request(&*key)?.pem()?;
        Ok(Self {
            csr,
            key: PrivateKey::from_pkcs8(Zeroizing::new(key.serialize_der())),
        })
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::cri_attributes::ParsedCriAttribute;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::FromDer as _;

    use super::*;

    #[test]
    fn request_has_no_subject_and_one_critical_uri() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let request = Request::new(&identity).unwrap();

        let (_, pem) = x509_parser::pem::parse_x509_pem(request.csr.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (rest, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        assert!(rest.is_empty());
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(
            csr.signature_algorithm.algorithm.to_id_string(),
            "1.2.840.10045.4.3.2" // ecdsa-with-SHA256
        );
        let curve = info.subject_pki.algorithm.parameters.as_ref().unwrap();
        assert_eq!(
            curve.as_oid().unwrap().to_id_string(),
            "1.2.840.10045.3.1.7" // P-256
        );

        let [attribute] = info.attributes() else {
            panic!("one attribute, not {:?}", info.attributes());
        };
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            panic!("an extension request, not {attribute:?}");
        };
        let [extension] = requested.extensions.as_slice() else {
            panic!("one extension, not {requested:?}");
        };
        assert!(extension.critical);
        let ParsedExtension::SubjectAlternativeName(name) = extension.parsed_extension() else {
            panic!("a subject alternative name, not {extension:?}");
        };
        assert_eq!(
            name.general_names,
            [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]
        );
    }

    #[test]
    fn every_request_has_its_own_key() {
        let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let key = || {
            let request = Request::new(&identity).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(request.csr.as_bytes()).unwrap();
            let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
            csr.certification_request_info.subject_pki.raw.to_vec()
        };
        assert_ne!(key(), key());
    }

    #[test]
    fn key_does_not_print() {
        let request = Request::new(&"spiffe://td/ns/a/sa/b".parse().unwrap()).unwrap();
        assert!(format!("{request:?}").ends_with("key: PrivateKey(..) }"));
    }

    #[test]
    fn identity_outside_ascii_is_an_error() {
        let identity: Identity = "spiffe://td/ns/å/sa/b".parse().unwrap();
        assert!(Request::new(&identity).is_err());
    }
}
