//! Takes apart what the CA answers: our certificate, its intermediates, the roots everybody is measured by.

use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use tracing::warn;
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use ztunnel_mesh::name::{BadIdentity, Identity};

/// Every certificate we present is sent in every handshake.
const MAX_PRESENTED: usize = 8;
/// Roots of several trust domains and of rotations, with room to spare.
const MAX_ROOTS: usize = 256;

/// Why the CA's answer is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The last element is the roots, so one alone is not enough.
    #[error(
        "the certificate chain has {elements} elements; a leaf and, last, the roots are needed"
    )]
    TooShort { elements: usize },
    /// It would not fit into a reasonable handshake.
    #[error("the certificate chain has {elements} elements; at most {} are taken", MAX_PRESENTED + 1)]
    TooLong { elements: usize },
    /// The root bundle.
    #[error("the root bundle has more than {MAX_ROOTS} certificates")]
    TooManyRoots,
    /// An element that is no PEM certificate.
    #[error("element {element} of the certificate chain is no PEM certificate")]
    Pem { element: usize, source: pem::Error },
    /// The bundle has certificates, but no usable one; or none at all.
    #[error("the last element of the certificate chain has no usable root certificate")]
    NoRoots,
    /// The leaf is PEM around something else.
    #[error("the leaf certificate cannot be read: {reason}")]
    Leaf { reason: String },
    /// The leaf names nobody.
    #[error("the leaf certificate for {expected} has no URI name")]
    NoIdentity { expected: Identity },
    /// The leaf's name has another form.
    #[error("the leaf certificate for {expected} carries a name that is no identity")]
    BadIdentity {
        expected: Identity,
        source: BadIdentity,
    },
    /// The leaf is somebody else's.
    #[error("the leaf certificate is for {found} instead of {expected}")]
    OtherIdentity { expected: Identity, found: Identity },
    /// Clocks disagree, or the CA answers with old certificates.
    #[error(
        "the leaf certificate is already expired; compare the clocks of this node and of the CA"
    )]
    Expired,
    /// The key was not the one in the request.
    #[error("the leaf certificate does not belong to the requested key")]
    Key(#[source] rustls::Error),
    /// rustls does not take it.
    #[error("set up TLS with the issued certificate")]
    Tls(#[source] rustls::Error),
}

/// The answer's parts.
#[derive(Debug)]
pub(super) struct Chain {
    /// The leaf and its intermediates.
    pub(super) presented: Vec<CertificateDer<'static>>,
    /// What the anchors are of.
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Chain {
    /// Reads an answer for `expected`.
    pub(super) fn parse(expected: &Identity, elements: &[String]) -> Result<Self, ChainError> {
        let [presented @ .., bundle] = elements else {
            return Err(ChainError::TooShort { elements: 0 });
        };
        if presented.is_empty() {
            return Err(ChainError::TooShort { elements: 1 });
        }
        if presented.len() > MAX_PRESENTED {
            return Err(ChainError::TooLong {
                elements: elements.len(),
            });
        }
        let presented = presented
            .iter()
            .enumerate()
            .map(|(element, pem)| {
                CertificateDer::from_pem_slice(pem.as_bytes())
                    .map_err(|source| ChainError::Pem { element, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (roots, anchors) = anchors(bundle, elements.len() - 1)?;
        check_identity(&presented[0], expected)?;
        let (not_before, not_after) = validity(&presented[0])?;
        Ok(Self {
            presented,
            roots,
            anchors,
            not_before,
            not_after,
        })
    }
}

type Roots = (Vec<CertificateDer<'static>>, Vec<TrustAnchor<'static>>);

fn anchors(bundle: &str, element: usize) -> Result<Roots, ChainError> {
    let (mut roots, mut anchors) = (Vec::new(), Vec::new());
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let root = root.map_err(|source| ChainError::Pem { element, source })?;
        if anchors.len() == MAX_ROOTS {
            return Err(ChainError::TooManyRoots);
        }
        // One bad root must not take away the others.
        match webpki::anchor_from_trusted_cert(&root) {
            Ok(anchor) => {
                anchors.push(anchor.to_owned());
                roots.push(root);
            }
            Err(error) => warn!(%error, "a root certificate from the CA is unusable"),
        }
    }
    if anchors.is_empty() {
        return Err(ChainError::NoRoots);
    }
    Ok((roots, anchors))
}

fn check_identity(leaf: &CertificateDer<'_>, expected: &Identity) -> Result<(), ChainError> {
    let leaf = EndEntityCert::try_from(leaf).map_err(|err| ChainError::Leaf {
        reason: err.to_string(),
    })?;
    let expected = || expected.clone();
    let uri = leaf
        .valid_uri_names()
        .next()
        .ok_or_else(|| ChainError::NoIdentity {
            expected: expected(),
        })?;
    let found: Identity = uri.parse().map_err(|source| ChainError::BadIdentity {
        expected: expected(),
        source,
    })?;
    if found != expected() {
        return Err(ChainError::OtherIdentity {
            expected: expected(),
            found,
        });
    }
    Ok(())
}

/// From when to when a certificate is good.
pub(super) fn validity(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), ChainError> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|err| ChainError::Leaf {
        reason: err.to_string(),
    })?;
    let at = |seconds: i64| {
        u64::try_from(seconds)
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or_else(|| ChainError::Leaf {
                reason: "its validity is out of range".to_owned(),
            })
    };
    let validity = leaf.validity();
    Ok((
        at(validity.not_before.timestamp())?,
        at(validity.not_after.timestamp())?,
    ))
}
