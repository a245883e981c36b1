//! One TLS session after its handshake: the keys of both directions, and what TLS itself still has to say.
//!
//! Besides data there are alerts, which end the session, changes of keys (KeyUpdate), and tickets, of which we have no use.
//! Invariants: whatever else a peer sends is an error. What a peer can make us say without sending data is bounded.

use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, PeerMisbehaved,
    ProtocolVersion,
};

use super::record::{ContentType, Opener, Sealer, unexpected};

/// Longest message after the handshake: a ticket may have a client's certificates in it.
const MAX_MESSAGE: usize = 64 * 1024;
/// Records without data that may come one after the other.
const MAX_WITHOUT_DATA: u32 = 32;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Where new keys come from.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn version(&self) -> ProtocolVersion {
        match self {
            Self::Client(keys) => keys.protocol_version(),
            Self::Server(keys) => keys.protocol_version(),
        }
    }

    fn next_sealing(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
    }

    fn next_opening(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
    }
}

/// What came in a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Where in the record the data is.
    Data(Range<usize>),
    /// Nothing for the application.
    Nothing,
    /// The peer has said that it will send no more.
    End,
}

pub(super) struct Session {
    keys: Keys,
    sealer: Sealer,
    opener: Opener,
    /// The peer has asked us to change our key, and we have not yet.
    owes_update: bool,
    /// The beginning of a message of the peer whose rest has not come.
    message: Vec<u8>,
    without_data: u32,
}

impl Session {
    pub(super) fn new(keys: Keys, secrets: ExtractedSecrets) -> Result<Self, Error> {
        let version = keys.version();
        Ok(Self {
            sealer: Sealer::new(version, secrets.tx)?,
            opener: Opener::new(version, secrets.rx)?,
            keys,
            owes_update: false,
            message: Vec::new(),
            without_data: 0,
        })
    }

    /// What seals the next records, unless [`Self::update`] has something to say before.
    pub(super) fn sealer(&mut self) -> &mut Sealer {
        &mut self.sealer
    }

    /// Whether our key has to be changed before anything else is sealed.
    pub(super) fn wants_update(&self) -> bool {
        self.owes_update || self.sealer.is_worn()
    }

    /// Changes our key, and says so. Gives how long that record is.
    pub(super) fn update(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        /// For the peer there is no need to change its own.
        const NOT_REQUESTED: u8 = 0;
        let said = self.say(
            ContentType::HANDSHAKE,
            &[KEY_UPDATE, 0, 0, 1, NOT_REQUESTED],
            room,
        )?;
        self.sealer.replace(self.keys.next_sealing()?)?;
        self.owes_update = false;
        Ok(said)
    }

    /// Says that we will send no more. Gives how long that record is.
    pub(super) fn close(&mut self, room: &mut [u8]) -> Result<usize, Error> {
        let code = u8::from(AlertDescription::CloseNotify);
        self.say(ContentType::ALERT, &[WARNING, code], room)
    }

    /// Says why the session ends. Gives how long that record is.
    pub(super) fn abort(&mut self, error: &Error, room: &mut [u8]) -> Result<usize, Error> {
        let code = match error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::EncryptError | Error::General(_) => AlertDescription::InternalError,
            _ => AlertDescription::UnexpectedMessage,
        };
        self.say(ContentType::ALERT, &[FATAL, u8::from(code)], room)
    }

    fn say(
        &mut self,
        content: ContentType,
        message: &[u8],
        room: &mut [u8],
    ) -> Result<usize, Error> {
        let len = message.len() + self.sealer.overhead();
        let record = room.get_mut(..len).ok_or(Error::EncryptError)?;
        self.sealer.seal(content, message, record)?;
        Ok(len)
    }

    /// Opens a whole record in place.
    pub(super) fn receive(&mut self, record: &mut [u8]) -> Result<Received, Error> {
        let (content, inside) = self.opener.open(record)?;
        let is_data = content == ContentType::APPLICATION_DATA;
        if is_data && !inside.is_empty() {
            self.without_data = 0;
        } else {
            self.without_data += 1;
            if self.without_data > MAX_WITHOUT_DATA {
                return Err(PeerMisbehaved::TooManyEmptyFragments.into());
            }
        }
        match content {
            _ if is_data && self.message.is_empty() => Ok(Received::Data(inside)),
            ContentType::HANDSHAKE => self.message(&record[inside]),
            ContentType::ALERT => alert(&record[inside]),
            other => Err(unexpected(other)),
        }
    }

    fn message(&mut self, bytes: &[u8]) -> Result<Received, Error> {
        if self.keys.version() != ProtocolVersion::TLSv1_3 {
            return Err(PeerMisbehaved::TooManyRenegotiationRequests.into());
        }
        self.message.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.message);
        let mut rest = &all[..];
        while let &[kind, high, middle, low, ref body @ ..] = rest {
            let len = u32::from_be_bytes([0, high, middle, low]) as usize;
            if len > MAX_MESSAGE {
                return Err(unexpected(ContentType::HANDSHAKE));
            }
            let Some((body, after)) = body.split_at_checked(len) else {
                break;
            };
            rest = after;
            match (kind, body) {
                (NEW_SESSION_TICKET, _) if matches!(self.keys, Keys::Client(_)) => {}
                // What follows would be sealed with the next key.
                (KEY_UPDATE, &[asks @ (0 | 1)]) if after.is_empty() => {
                    self.opener.replace(self.keys.next_opening()?)?;
                    self.owes_update |= asks == 1;
                }
                _ => return Err(unexpected(ContentType::HANDSHAKE)),
            }
        }
        self.message = rest.to_vec();
        Ok(Received::Nothing)
    }
}

fn alert(body: &[u8]) -> Result<Received, Error> {
    let &[_, code] = body else {
        return Err(unexpected(ContentType::ALERT));
    };
    match AlertDescription::from(code) {
        AlertDescription::CloseNotify => Ok(Received::End),
        // The peer is about to close (RFC 8446, section 6.1).
        AlertDescription::UserCanceled => Ok(Received::Nothing),
        code => Err(Error::AlertReceived(code)),
    }
}

#[cfg(test)]
impl Session {
    /// Whether the next message does not go on with one that has begun.
    pub(super) fn begins_a_message(&self) -> bool {
        self.message.is_empty()
    }

    /// As after many records in both directions.
    pub(super) fn wear(&mut self) {
        self.sealer.wear();
        self.opener.wear();
    }
}
