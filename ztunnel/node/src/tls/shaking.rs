//! Moves the messages of a handshake between rustls and a connection, and makes a stream of both when it is over.
//!
//! Invariants: bounded by [`MAX_BYTES`]; whoever calls sets the deadline. A peer that is refused is told why.

use std::io;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{CommonState, Error, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::handshake::{Established, negotiated};
use super::session::{Keys, Session};
use super::stream::TlsStream;

/// What may have come and not been understood yet: the largest message there is, a chain of certificates.
const MAX_BYTES: usize = 64 * 1024;
/// Messages that follow an error: an alert, and what was due before.
const LAST_WORDS: usize = 8;

/// One half of a handshake, as rustls sees it.
pub(super) trait Half {
    type Side;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;
    fn state(&self) -> &CommonState;
    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), Error>;
}

impl Half for UnbufferedClientConnection {
    type Side = ClientConnectionData;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Client(keys)))
    }
}

impl Half for UnbufferedServerConnection {
    type Side = ServerConnectionData;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Server(keys)))
    }
}

/// A handshake that goes on.
pub(super) struct Shaking<C, IO> {
    connection: C,
    pub(super) io: IO,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// What the peer has sent right after its last message.
    data: Vec<u8>,
}

enum Next {
    Step,
    Send,
    Receive,
    Fail(Error),
}

impl<C: Half, IO: AsyncRead + AsyncWrite + Unpin> Shaking<C, IO> {
    pub(super) fn new(connection: C, io: IO) -> Self {
        Self {
            connection,
            io,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Both halves, to the end.
    pub(super) async fn run(&mut self) -> io::Result<()> {
        loop {
            let (discard, next) = self.step();
            self.incoming.drain(..discard);
            match next {
                Some(Next::Step) => {}
                Some(Next::Send) => self.send().await?,
                Some(Next::Receive) => self.receive().await?,
                Some(Next::Fail(error)) => {
                    self.last_words();
                    // The peer may be gone already.
                    let _ = self.send().await;
                    return Err(invalid(error));
                }
                None => return Ok(()),
            }
        }
    }

    fn step(&mut self) -> (usize, Option<Next>) {
        let UnbufferedStatus { discard, state } = self.connection.step(&mut self.incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(message)) => {
                encode(message, &mut self.outgoing).map_or_else(Next::Fail, |()| Next::Step)
            }
            Ok(ConnectionState::TransmitTlsData(outgoing)) => {
                outgoing.done();
                Next::Send
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Receive,
            Ok(ConnectionState::ReadTraffic(mut data)) => loop {
                match data.next_record() {
                    Some(Ok(record)) => self.data.extend_from_slice(record.payload),
                    Some(Err(error)) => break Next::Fail(error),
                    None => break Next::Step,
                }
            },
            Ok(ConnectionState::WriteTraffic(_)) => return (discard, self.finished()),
            Ok(_) => Next::Fail(Error::General(
                "the peer closed during the handshake".into(),
            )),
            Err(error) => Next::Fail(error),
        };
        (discard, Some(next))
    }

    /// A server may write before it has heard the client's last message.
    fn finished(&self) -> Option<Next> {
        self.connection
            .state()
            .is_handshaking()
            .then_some(Next::Receive)
    }

    async fn send(&mut self) -> io::Result<()> {
        self.io.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        self.io.flush().await
    }

    async fn receive(&mut self) -> io::Result<()> {
        if self.incoming.len() >= MAX_BYTES {
            return Err(invalid(Error::PeerSentOversizedRecord));
        }
        match self.io.read_buf(&mut self.incoming).await? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "tls handshake eof",
            )),
            _ => Ok(()),
        }
    }

    /// Lets rustls say why it fails.
    fn last_words(&mut self) {
        for _ in 0..LAST_WORDS {
            let UnbufferedStatus { discard, state } = self.connection.step(&mut self.incoming);
            match state {
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    if encode(message, &mut self.outgoing).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::TransmitTlsData(outgoing)) => outgoing.done(),
                _ => return,
            }
            self.incoming.drain(..discard);
        }
    }

    /// The stream that the handshake was for.
    pub(super) fn establish(self) -> io::Result<Established<IO>> {
        let state = self.connection.state();
        let negotiated = negotiated(state);
        let peer = state.peer_certificates().map(<[_]>::to_vec);
        let kind = state.handshake_kind();
        let (secrets, keys) = self.connection.into_keys().map_err(invalid)?;
        let session = Session::new(keys, secrets).map_err(invalid)?;
        Ok(Established {
            stream: TlsStream::new(self.io, session, self.data, self.incoming),
            negotiated,
            peer: peer.unwrap_or_default(),
            kind,
        })
    }
}

fn encode<Side>(mut message: EncodeTlsData<'_, Side>, to: &mut Vec<u8>) -> Result<(), Error> {
    let begin = to.len();
    let needed = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            required_size
        }
        Ok(_) | Err(EncodeError::AlreadyEncoded) => return Ok(()),
    };
    to.resize(begin + needed, 0);
    match message.encode(&mut to[begin..]) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::General(error.to_string())),
    }
}

/// An error of TLS as one of the connection.
pub(super) fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
