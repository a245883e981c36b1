//! The authority of a CONNECT: what to connect to.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Longest name in the DNS.
const LONGEST_HOST: usize = 253;
/// How much of a bad authority an error repeats.
const QUOTED: usize = 80;

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    Ip(SocketAddr),
    /// The hostname of a service and a port of that service.
    Host {
        host: Box<str>,
        port: u16,
    },
}

/// An authority that names no host and port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authority {0:?} is neither ip:port, [ipv6]:port nor hostname:port")]
pub struct BadAuthority(String);

impl FromStr for Authority {
    type Err = BadAuthority;

    fn from_str(authority: &str) -> Result<Self, BadAuthority> {
        let bad = || BadAuthority(authority.chars().take(QUOTED).collect());
        if let Ok(addr) = authority.parse::<SocketAddr>() {
            // Rebuilt, so that a scope id or flow label of the peer's choice is not ours.
            return match addr.port() {
                0 => Err(bad()),
                port => Ok(Self::Ip(SocketAddr::new(addr.ip(), port))),
            };
        }
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0);
        let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
        let named = !host.is_empty() && host.len() <= LONGEST_HOST && host.bytes().all(letters);
        match port {
            Some(port) if named => Ok(Self::Host {
                host: host.into(),
                port,
            }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_required() {
        let long = format!("{}:80", "a".repeat(254));
        for (text, expected) in [
            ("10.0.0.1:80", Some("ip 10.0.0.1:80")),
            ("[fd00::1]:80", Some("ip [fd00::1]:80")),
            ("[fd00::1%7]:80", Some("ip [fd00::1]:80")),
            ("db.shop.svc:5432", Some("host db.shop.svc 5432")),
            ("10.0.0.1:0", None),
            ("10.0.0.1", None),
            ("fd00::1:80", None),
            ("[fd00::1]", None),
            ("db.shop.svc", None),
            ("db.shop.svc:", None),
            ("db.shop.svc:0", None),
            ("db.shop.svc:+80", None),
            ("db.shop.svc:65536", None),
            (":80", None),
            ("user@db:80", None),
            ("db/shop:80", None),
            ("", None),
            (&long, None),
        ] {
            let parsed = text.parse().ok().map(|authority| match authority {
                Authority::Ip(addr) => format!("ip {addr}"),
                Authority::Host { host, port } => format!("host {host} {port}"),
            });
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn text_survives_a_round_trip() {
        for text in ["10.0.0.1:80", "[fd00::1]:80", "db.shop.svc:5432"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_error_repeats_only_the_beginning() {
        let err = "x".repeat(100_000).parse::<Authority>().unwrap_err();
        assert!(err.to_string().len() < 200);
    }
}
