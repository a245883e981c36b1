//! The way to the control plane: one authenticated gRPC channel, the same for discovery and for certificates.
//!
//! Invariants: TLS always, with the configured roots and nothing else. Roots are read when a channel is made, and
//! again when their file changes under a channel that is kept ([`SharedChannel`]); the token is read for each call. A
//! stream that is open stays open when roots change: they are asked who the control plane is, and it has answered. What is missing is an error that
//! names it: a path is never taken for a literal. Neither tokens nor header values reach a log.

mod channel;
mod connector;
mod roots;
mod token;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use rustls_pki_types::ServerName;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{self, Channel};

use crate::tls;

pub use channel::SharedChannel;
pub use roots::{RootSource, Roots};
pub use token::{Secret, TokenSource};

/// The largest message accepted from the control plane: its first answer is one message with everything.
pub const MAX_RESPONSE: usize = 200 * 1024 * 1024;

/// Name resolution, TCP and TLS together. TCP alone has five seconds.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Not below 15 s: the control plane hangs up on clients that ping more often.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// How much of a control plane's error text is kept.
const MAX_EXPLANATION: usize = 512;

/// Where a control plane is, how to know that it is the right one, and what to show it.
#[derive(Clone)]
pub struct Endpoint {
    /// `https://host:port`.
    pub address: Uri,
    /// What its certificate must chain to.
    pub roots: RootSource,
    /// A name its certificate may have instead of the host in `address`.
    pub alt_hostname: Option<String>,
    /// What to authenticate with.
    pub token: Option<TokenSource>,
    /// Sent together with the token.
    pub cluster_id: String,
    /// Sent with every call.
    pub headers: Vec<(String, String)>,
    /// The cryptography on offer.
    pub tls: tls::Options,
}

/// Why the control plane cannot be called. Nothing was sent yet.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// Neither plaintext nor a path: the address is a URL of scheme https with a host.
    #[error("control plane address {address} is no https://host:port")]
    Address { address: Uri },
    /// The host or the alternative name.
    #[error("{name:?} is no DNS name or IP address that a certificate could carry")]
    HostName { name: String },
    /// The file with roots.
    #[error("read control plane roots from {}", path.display())]
    ReadRoots {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Something was read, but it has no certificate in it.
    #[error(
        "{origin} contains no PEM certificate; the control plane cannot be verified without roots"
    )]
    NoRoots { origin: String },
    /// A block that says it is a certificate.
    #[error("{origin} contains a certificate that cannot be read: {reason}")]
    BadRoots { origin: String, reason: String },
    /// rustls does not take the settings.
    #[error("set up TLS for the control plane")]
    Tls(#[source] rustls::Error),
    /// The file with the token.
    #[error("read control plane token from {}", path.display())]
    ReadToken {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A token of no characters authenticates nobody.
    #[error("the control plane token in {origin} is empty")]
    EmptyToken { origin: String },
    /// A header must be ASCII.
    #[error("the control plane token in {origin} has characters that no header can carry")]
    BadToken { origin: String },
    /// The cluster id travels as a header.
    #[error("cluster id {cluster_id:?} has characters that no header can carry")]
    BadClusterId { cluster_id: String },
    /// An extra header.
    #[error(
        "extra header {name:?} has a name or value that gRPC metadata cannot carry (visible ASCII only)"
    )]
    BadHeader { name: String },
}

impl Endpoint {
    /// Finds what is wrong with the settings that cannot change while the daemon runs.
    ///
    /// # Errors
    /// The first setting that can never work.
    pub fn check(&self) -> Result<(), ControlPlaneError> {
        self.server_name()?;
        self.alt_name()?;
        self.extra_headers(&mut MetadataMap::new())?;
        self.cluster().map(drop)
    }

    /// Makes a channel that connects when it is used, and again after a failure. Reads the roots. The channel's
    /// tasks run on the current runtime and end when its last clone is dropped.
    ///
    /// # Errors
    /// When settings or roots are unusable.
    pub fn channel(&self) -> Result<Channel, ControlPlaneError> {
        self.channel_with(&self.roots.read()?)
    }

    /// As `channel`, with roots that were read before.
    ///
    /// # Errors
    /// When settings or roots are unusable.
    pub fn channel_with(&self, roots: &Roots) -> Result<Channel, ControlPlaneError> {
        let name = self.server_name()?;
        let connector = connector::Connector::new(
            self.address.clone(),
            name,
            self.alt_name()?,
            roots,
            self.tls,
        )?;
        // tonic, if built with TLS of its own, insists on doing it for addresses of scheme https. So it dials a
        // name that only our connector understands, and tells the server the real one.
        Ok(transport::Endpoint::from_static("http://control-plane")
            .origin(self.address.clone())
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_DEADLINE)
            .connect_with_connector_lazy(connector))
    }

    /// What goes with a call. Reads the token.
    ///
    /// # Errors
    /// When the token cannot be read or a header cannot be sent.
    pub fn metadata(&self) -> Result<MetadataMap, ControlPlaneError> {
        let mut metadata = MetadataMap::new();
        self.extra_headers(&mut metadata)?;
        let Some(token) = &self.token else {
            return Ok(metadata);
        };
        metadata.insert("authorization", token.bearer()?);
        metadata.insert("clusterid", self.cluster()?);
        Ok(metadata)
    }

    /// What to look at when the control plane does not take us for whom we say we are.
    #[must_use]
    pub fn credentials(&self) -> String {
        let cluster_id = &self.cluster_id;
        match &self.token {
            Some(token) => format!("the token in {}, cluster id {cluster_id:?}", token.origin()),
            None => "no token is set".to_owned(),
        }
    }

    fn extra_headers(&self, metadata: &mut MetadataMap) -> Result<(), ControlPlaneError> {
        for (name, value) in &self.headers {
            let bad = || ControlPlaneError::BadHeader { name: name.clone() };
            // Environment variables come in upper case, header names travel in lower case.
            let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|_| bad())?;
            let mut value = ascii(value).ok_or_else(bad)?;
            value.set_sensitive(true);
            metadata.insert(key, value);
        }
        Ok(())
    }

    fn cluster(&self) -> Result<AsciiMetadataValue, ControlPlaneError> {
        ascii(&self.cluster_id).ok_or_else(|| ControlPlaneError::BadClusterId {
            cluster_id: self.cluster_id.clone(),
        })
    }

    fn server_name(&self) -> Result<ServerName<'static>, ControlPlaneError> {
        match self.address.host() {
            Some(host) if self.address.scheme() == Some(&Scheme::HTTPS) => name(host),
            _ => Err(ControlPlaneError::Address {
                address: self.address.clone(),
            }),
        }
    }

    fn alt_name(&self) -> Result<Option<ServerName<'static>>, ControlPlaneError> {
        self.alt_hostname.as_deref().map(name).transpose()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            roots,
            alt_hostname,
            token,
            cluster_id,
            headers,
            tls,
        } = self;
        let names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Endpoint")
            .field("address", address)
            .field("roots", roots)
            .field("alt_hostname", alt_hostname)
            .field("token", token)
            .field("cluster_id", cluster_id)
            .field("headers", &names)
            .field("tls", tls)
            .finish()
    }
}

/// Says what a failed call failed of, with all causes, in a length that a log line bears.
#[must_use]
pub fn explain(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    if let Some((end, _)) = text.char_indices().nth(MAX_EXPLANATION) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The conversion alone lets bytes pass that gRPC forbids.
fn ascii(value: &str) -> Option<AsciiMetadataValue> {
    let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    AsciiMetadataValue::try_from(value)
        .ok()
        .filter(|_| printable)
}

fn name(host: &str) -> Result<ServerName<'static>, ControlPlaneError> {
    // A URI brackets IPv6 addresses.
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    ServerName::try_from(bare.to_owned()).map_err(|_| ControlPlaneError::HostName {
        name: host.to_owned(),
    })
}

#[cfg(test)]
pub(crate) mod test_server;
#[cfg(test)]
mod tests;
