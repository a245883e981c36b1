//! The bearer token, and other strings that nobody may see.

use std::fmt;
use std::path::PathBuf;

use tonic::metadata::AsciiMetadataValue;
use zeroize::Zeroizing;

use super::{ControlPlaneError, ascii};
use crate::task::read_bounded;

/// Far above any service account token.
const MAX_FILE: u64 = 64 * 1024;

/// A string that does not print and does not stay in memory when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps it.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(Zeroizing::new(secret))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where the token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// A file, read for every call: the kubelet renews it.
    File(PathBuf),
    /// The token itself.
    Literal(Secret),
}

impl TokenSource {
    /// Where to look when it is not the right one.
    pub(super) fn origin(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Literal(_) => "the settings".to_owned(),
        }
    }

    /// The value of the `authorization` header.
    pub(super) fn bearer(&self) -> Result<AsciiMetadataValue, ControlPlaneError> {
        let origin = || self.origin();
        let bad = || ControlPlaneError::BadToken { origin: origin() };
        let read;
        let token = match self {
            Self::File(path) => {
                read = Zeroizing::new(read_bounded(path, MAX_FILE).map_err(|source| {
                    ControlPlaneError::ReadToken {
                        path: path.clone(),
                        source,
                    }
                })?);
                str::from_utf8(&read).map_err(|_| bad())?
            }
            Self::Literal(secret) => secret.0.as_str(),
        };
        // Editors and `echo` leave a newline.
        let token = token.trim();
        if token.is_empty() {
            return Err(ControlPlaneError::EmptyToken { origin: origin() });
        }
        let header = Zeroizing::new(format!("Bearer {token}"));
        let mut value = ascii(&header).ok_or_else(bad)?;
        value.set_sensitive(true);
        Ok(value)
    }
}
