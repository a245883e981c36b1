//! Certificates that their CA has taken back before their time: the revocation lists, and what they say of a chain.
//!
//! Invariants: only a list that the issuer of a certificate has signed says anything about that certificate. Of a
//! certificate without such a list nothing is known, and that is no reason to refuse it. A list that is overdue still
//! counts: nobody should be able to bring a revoked certificate back by holding up the next list.

use std::sync::atomic::{AtomicBool, Ordering};

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::{self, PemObject as _};
use tracing::warn;
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, Error, ExpirationPolicy, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// Far more issuers than a mesh has.
const MAX_LISTS: usize = 256;
/// How every DER structure of this kind begins: a SEQUENCE.
const SEQUENCE: u8 = 0x30;

/// Why something is no set of revocation lists.
#[derive(Debug, thiserror::Error)]
pub enum RevocationListError {
    /// The PEM around the lists.
    #[error("not readable as PEM")]
    Pem(#[source] pem::Error),
    /// There is something, but no list.
    #[error("neither a revocation list in DER nor any block `X509 CRL` in PEM")]
    NoList,
    /// A guard against other files.
    #[error("more than {MAX_LISTS} revocation lists")]
    TooMany,
    /// A list that cannot be applied: all certificates it names would pass.
    #[error("revocation list {number} cannot be read")]
    BadList {
        number: usize,
        #[source]
        source: Error,
    },
}

/// The lists of one file as it was at one time.
#[derive(Debug, Default)]
pub struct RevocationLists {
    lists: Vec<CertRevocationList<'static>>,
    revoked: usize,
    /// Somebody was told that one of them cannot be applied.
    told: AtomicBool,
}

impl RevocationLists {
    /// Reads PEM with any number of lists, other blocks in between passed over, or one list in DER. Nothing at all is
    /// no list.
    ///
    /// # Errors
    /// When one of them cannot be read: then none counts.
    pub fn parse(file: &[u8]) -> Result<Self, RevocationListError> {
        let mut this = Self::default();
        if file.trim_ascii().is_empty() {
            return Ok(this);
        }
        if file.first() == Some(&SEQUENCE) {
            this.add(file)?;
            return Ok(this);
        }
        for der in CertificateRevocationListDer::pem_slice_iter(file) {
            this.add(&der.map_err(RevocationListError::Pem)?)?;
        }
        if this.lists.is_empty() {
            return Err(RevocationListError::NoList);
        }
        Ok(this)
    }

    fn add(&mut self, der: &[u8]) -> Result<(), RevocationListError> {
        if self.lists.len() == MAX_LISTS {
            return Err(RevocationListError::TooMany);
        }
        let number = self.lists.len();
        let bad = |source| RevocationListError::BadList { number, source };
        let list = BorrowedCertRevocationList::from_der(der).map_err(bad)?;
        self.revoked += (&list).into_iter().count();
        self.lists.push(list.to_owned().map_err(bad)?.into());
        Ok(())
    }

    /// How many lists there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// How many certificates they name.
    #[must_use]
    pub const fn revoked(&self) -> usize {
        self.revoked
    }

    /// Verifies a chain with `verify`, which builds the path, under these lists.
    pub(super) fn judge(
        &self,
        verify: impl Fn(Option<RevocationOptions<'_>>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let all: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let verified = verify(options(&all));
        let Err(error) = &verified else {
            return verified;
        };
        if self.lists.is_empty() || !may_be_about_a_list(error) {
            return verified;
        }
        // A CA that was given a new key and kept its name: the library takes the first list of that name for the list
        // of both, and its signature fits one of them only. Asked one by one, each speaks for its own.
        verify(None)?;
        if !self.told.swap(true, Ordering::Relaxed) {
            warn!(%error, "a revocation list says nothing about certificates of an issuer with the same name");
        }
        for list in &self.lists {
            match verify(options(&[list])) {
                Err(error) if may_be_about_a_list(&error) => {}
                judged => judged?,
            }
        }
        Ok(())
    }
}

fn options<'a>(lists: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(lists).ok()?;
    Some(
        builder
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build(),
    )
}

/// Whether it may be the list that is wrong for this chain, and not the chain. Of several failed ways to a root the
/// library gives the error that it ranks highest, and a revocation ranks above all of these: none of them hides one.
const fn may_be_about_a_list(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCrlSignatureForPublicKey
            // Of another root with the same name.
            | Error::InvalidSignatureForPublicKey
            | Error::UnsupportedCrlSignatureAlgorithmContext(_)
            | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
            | Error::IssuerNotCrlSigner
    )
}
