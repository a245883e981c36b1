//! Protection of TLS records once rustls has agreed on the keys (RFC 8446, section 5; for TLS 1.2 RFC 5246, section 6.2.3, and
//! RFC 5288). Keys are rustls', ciphers are AWS-LC's; here are the frames around the ciphertext and the count of records.
//!
//! Invariants: a nonce is the number of its record and is never used twice, since a key that has been used up seals nothing
//! more. A record that does not open is the end of the stream.

use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, Error, ProtocolVersion};

/// What a record holds at most.
pub(super) const MAX_PLAINTEXT: usize = 16 * 1024;
pub(super) const HEADER: usize = 5;
/// A record on the wire: at most 2^14 + 256 bytes after its header in TLS 1.3, 2^14 + 2048 in TLS 1.2, of which AES-GCM uses 24.
pub(super) const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + 256;
/// Records that one key seals before it has to be replaced. RFC 8446, section 5.5, has AES-GCM's limit at 2^24.5 of full size.
const WORN: u64 = 1 << 23;
const USED_UP: u64 = 1 << 24;

const TAG: usize = 16;
const EXPLICIT_NONCE: usize = 8;

/// What a record is about (RFC 8446, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentType(pub(super) u8);

impl ContentType {
    pub(super) const ALERT: Self = Self(21);
    pub(super) const HANDSHAKE: Self = Self(22);
    pub(super) const APPLICATION_DATA: Self = Self(23);
}

/// How records look on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Tls12,
    Tls13,
}

impl Layout {
    /// Between the header and the ciphertext.
    fn before(self) -> usize {
        match self {
            Self::Tls12 => EXPLICIT_NONCE,
            Self::Tls13 => 0,
        }
    }

    /// After the ciphertext of the content.
    fn after(self) -> usize {
        match self {
            Self::Tls12 => TAG,
            // The content type is encrypted, too.
            Self::Tls13 => 1 + TAG,
        }
    }
}

/// The key of one direction.
struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Number of the next record.
    seq: u64,
}

impl Key {
    fn new((seq, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            // None that we offer.
            _ => return Err(Error::General("keys of an unknown cipher".into())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| Error::General("a key of the wrong length".into()))?;
        let iv = iv.as_ref().try_into();
        Ok(Self {
            aead: LessSafeKey::new(key),
            iv: iv.map_err(|_| Error::General("an iv of the wrong length".into()))?,
            seq,
        })
    }

    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, seq) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.seq.to_be_bytes())
        {
            *byte ^= seq;
        }
        nonce
    }
}

/// What TLS 1.2 authenticates besides the content.
fn tls12_aad(seq: u64, content: ContentType, len: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&seq.to_be_bytes());
    aad[8] = content.0;
    aad[9..11].copy_from_slice(&[3, 3]);
    aad[11..].copy_from_slice(&(len as u16).to_be_bytes());
    aad
}

/// Makes records.
pub(super) struct Sealer {
    layout: Layout,
    key: Key,
}

impl Sealer {
    pub(super) fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        Ok(Self {
            layout: layout(version)?,
            key: Key::new(secrets)?,
        })
    }

    /// From now on with these.
    pub(super) fn replace(
        &mut self,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<(), Error> {
        self.key = Key::new(secrets)?;
        Ok(())
    }

    /// Whether it is time for another key. TLS 1.2 has no way to get one.
    pub(super) fn is_worn(&self) -> bool {
        self.layout == Layout::Tls13 && self.key.seq >= WORN
    }

    /// Where the content of a record begins.
    pub(super) fn before(&self) -> usize {
        HEADER + self.layout.before()
    }

    /// What a record needs around its content.
    pub(super) fn overhead(&self) -> usize {
        self.before() + self.layout.after()
    }

    /// Seals a record whose content is in its place already.
    pub(super) fn seal_in_place(
        &mut self,
        content: ContentType,
        record: &mut [u8],
    ) -> Result<(), Error> {
        let (head, rest) = record.split_at_mut(self.before());
        let (inside, tail) = rest.split_at_mut(rest.len() - self.layout.after());
        let nonce = self.begin(content, head, inside.len())?;
        let (aead, unique) = (&self.key.aead, Nonce::assume_unique_for_key(nonce));
        match self.layout {
            Layout::Tls13 => {
                aead.seal_in_place_scatter(unique, Aad::from(&*head), inside, &[content.0], tail)
            }
            Layout::Tls12 => {
                let aad = Aad::from(tls12_aad(self.key.seq, content, inside.len()));
                aead.seal_in_place_scatter(unique, aad, inside, &[], tail)
            }
        }
        .map_err(|_| Error::EncryptError)?;
        self.key.seq += 1;
        Ok(())
    }

    /// Makes a record of `plain`, which is not copied before.
    pub(super) fn seal(
        &mut self,
        content: ContentType,
        plain: &[u8],
        record: &mut [u8],
    ) -> Result<(), Error> {
        let (head, rest) = record.split_at_mut(self.before());
        let (inside, tail) = rest.split_at_mut(plain.len());
        let nonce = self.begin(content, head, plain.len())?;
        let (aead, unique) = (&self.key.aead, Nonce::assume_unique_for_key(nonce));
        match self.layout {
            Layout::Tls13 => {
                let aad = Aad::from(&*head);
                aead.seal_out_of_place_scatter(unique, aad, plain, inside, &[content.0], tail)
            }
            Layout::Tls12 => {
                let aad = Aad::from(tls12_aad(self.key.seq, content, plain.len()));
                aead.seal_out_of_place_scatter(unique, aad, plain, inside, &[], tail)
            }
        }
        .map_err(|_| Error::EncryptError)?;
        self.key.seq += 1;
        Ok(())
    }

    fn begin(
        &self,
        content: ContentType,
        head: &mut [u8],
        len: usize,
    ) -> Result<[u8; NONCE_LEN], Error> {
        if self.key.seq >= USED_UP {
            return Err(Error::EncryptError);
        }
        let nonce = self.key.nonce();
        head[0] = match self.layout {
            Layout::Tls13 => ContentType::APPLICATION_DATA.0,
            Layout::Tls12 => content.0,
        };
        head[1..3].copy_from_slice(&[3, 3]);
        let after_header = len + self.overhead() - HEADER;
        head[3..HEADER].copy_from_slice(&(after_header as u16).to_be_bytes());
        head[HEADER..].copy_from_slice(&nonce[NONCE_LEN - self.layout.before()..]);
        Ok(nonce)
    }
}

/// Opens records.
pub(super) struct Opener {
    layout: Layout,
    key: Key,
}

impl Opener {
    pub(super) fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        Ok(Self {
            layout: layout(version)?,
            key: Key::new(secrets)?,
        })
    }

    /// From now on with these.
    pub(super) fn replace(
        &mut self,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<(), Error> {
        self.key = Key::new(secrets)?;
        Ok(())
    }

    /// Length of the record that `received` begins with, as soon as that is known.
    pub(super) fn record_len(received: &[u8]) -> Result<Option<usize>, Error> {
        let Some(&[_, _, _, high, low]) = received.get(..HEADER) else {
            return Ok(None);
        };
        let len = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_RECORD {
            return Err(Error::PeerSentOversizedRecord);
        }
        Ok(Some(len))
    }

    /// Opens a whole record in place: what it is about, and where in it the content is.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, Range<usize>), Error> {
        let (head, body) = record
            .split_at_mut_checked(HEADER)
            .ok_or(Error::DecryptError)?;
        let outer = ContentType(head[0]);
        let begin = self.layout.before();
        let failed = |_| Error::DecryptError;
        let (content, len) = match self.layout {
            Layout::Tls13 => {
                if outer != ContentType::APPLICATION_DATA {
                    return Err(unexpected(outer));
                }
                let nonce = Nonce::assume_unique_for_key(self.key.nonce());
                let aad = Aad::from(&*head);
                let opened = self.key.aead.open_in_place(nonce, aad, body);
                let inner = opened.map_err(failed)?;
                // After the content comes its type, then as many zeros as the peer likes.
                let len = inner.iter().rposition(|&byte| byte != 0);
                let len = len.ok_or_else(|| unexpected(outer))?;
                (ContentType(inner[len]), len)
            }
            Layout::Tls12 => {
                let (explicit, sealed) = body
                    .split_at_mut_checked(begin)
                    .ok_or(Error::DecryptError)?;
                let len = sealed.len().checked_sub(TAG).ok_or(Error::DecryptError)?;
                let mut nonce = self.key.iv;
                nonce[NONCE_LEN - EXPLICIT_NONCE..].copy_from_slice(explicit);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let aad = Aad::from(tls12_aad(self.key.seq, outer, len));
                let opened = self.key.aead.open_in_place(nonce, aad, sealed);
                opened.map_err(failed)?;
                (outer, len)
            }
        };
        if len > MAX_PLAINTEXT {
            return Err(Error::PeerSentOversizedRecord);
        }
        self.key.seq += 1;
        Ok((content, HEADER + begin..HEADER + begin + len))
    }
}

fn layout(version: ProtocolVersion) -> Result<Layout, Error> {
    match version {
        ProtocolVersion::TLSv1_3 => Ok(Layout::Tls13),
        ProtocolVersion::TLSv1_2 => Ok(Layout::Tls12),
        _ => Err(Error::General("records of an unknown version".into())),
    }
}

/// A record that has no place here.
pub(super) fn unexpected(content: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![rustls::ContentType::ApplicationData],
        got_type: content.0.into(),
    }
}

#[cfg(test)]
impl Sealer {
    /// As after many records.
    pub(super) fn wear(&mut self) {
        self.key.seq = WORN - 2;
    }
}

#[cfg(test)]
impl Opener {
    /// As after as many records of the peer.
    pub(super) fn wear(&mut self) {
        self.key.seq = WORN - 2;
    }
}
