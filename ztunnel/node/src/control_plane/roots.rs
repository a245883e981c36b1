//! What the control plane's certificate must chain to.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tracing::warn;

use super::ControlPlaneError;
use crate::task::read_bounded;

/// Far above any bundle; a wrong path must not fill memory.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Where the roots are.
#[derive(Clone)]
pub enum RootSource {
    /// A PEM file.
    File(PathBuf),
    /// The PEM text itself.
    Pem(String),
    /// The operating system's trust store.
    System,
}

/// Roots as they were at one time.
#[derive(Clone, PartialEq, Eq)]
pub struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    origin: String,
}

impl RootSource {
    /// Reads them.
    ///
    /// # Errors
    /// When the file cannot be read, or when there is no certificate in it.
    pub fn read(&self) -> Result<Roots, ControlPlaneError> {
        let origin = match self {
            Self::File(path) => path.display().to_string(),
            Self::Pem(_) => "the inline root setting".to_owned(),
            Self::System => "the system's trust store".to_owned(),
        };
        let certificates = match self {
            Self::File(path) => parse(&read_file(path)?, &origin)?,
            Self::Pem(pem) => parse(pem.as_bytes(), &origin)?,
            Self::System => system(),
        };
        if certificates.is_empty() {
            return Err(ControlPlaneError::NoRoots { origin });
        }
        Ok(Roots {
            certificates,
            origin,
        })
    }
}

impl fmt::Debug for RootSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Pem(_) => f.write_str("Pem(..)"),
            Self::System => f.write_str("System"),
        }
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({} from {})", self.certificates.len(), self.origin)
    }
}

impl Roots {
    pub(super) fn store(&self) -> Result<RootCertStore, ControlPlaneError> {
        let mut store = RootCertStore::empty();
        let (used, ignored) = store.add_parsable_certificates(
            self.certificates
                .iter()
                .map(AsRef::as_ref)
                .map(CertificateDer::from),
        );
        if used == 0 {
            return Err(ControlPlaneError::BadRoots {
                origin: self.origin.clone(),
                reason: "none of its certificates can be a trust anchor".to_owned(),
            });
        }
        if ignored > 0 {
            warn!(origin = %self.origin, used, ignored, "some control plane roots are unusable");
        }
        Ok(store)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ControlPlaneError> {
    read_bounded(path, MAX_FILE).map_err(|source| ControlPlaneError::ReadRoots {
        path: path.to_owned(),
        source,
    })
}

fn parse(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, ControlPlaneError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|err| ControlPlaneError::BadRoots {
            origin: origin.to_owned(),
            reason: err.to_string(),
        })
}

fn system() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!(%error, "part of the system's trust store cannot be read");
    }
    found.certs
}
