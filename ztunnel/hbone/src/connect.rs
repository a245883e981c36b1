//! The head of a CONNECT: plain RFC 9113 CONNECT with `:method` and `:authority`, plus what the client tells about
//! itself.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::StatusCode;

use crate::authority::{Authority, BadAuthority};
use crate::baggage::{self, Baggage};
use crate::http2::{Field, Fields};
use crate::text::visible;
use crate::trace::{self, Traceparent};

const METHOD: &str = ":method";
const AUTHORITY: &str = ":authority";
const FORWARDED: &str = "forwarded";
const FORWARDED_NETWORK: &str = "x-forwarded-network";
/// Longest host of a `forwarded` header that is taken note of.
const LONGEST_HOST: usize = 253;
/// Of a method that is told about.
const LONGEST_METHOD: usize = 32;

/// What a client says to open one stream.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    pub authority: Authority,
    /// The client's workload.
    pub baggage: Baggage<'a>,
    /// The app that connected.
    pub from: SocketAddr,
    /// Hostname of the service it asked for, when known.
    pub service: Option<&'a str>,
    /// The client's network, for a tunnel through a network gateway.
    pub network: Option<&'a str>,
    pub trace: Traceparent,
}

/// What cannot stand in a header, and so is not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} cannot stand in a header")]
pub struct NotAHeader {
    what: &'static str,
    value: Box<str>,
}

impl Connect<'_> {
    /// Gives `send` the head of the request.
    ///
    /// # Errors
    /// When the name of the service or the network cannot stand in a header.
    pub fn head<T>(&self, send: impl FnOnce(&[Field<'_>]) -> T) -> Result<T, NotAHeader> {
        for (what, value) in [("service", self.service), ("network", self.network)] {
            if let Some(value) = value.filter(|value| visible(value.as_bytes()).is_none()) {
                let value = value.into();
                return Err(NotAHeader { what, value });
            }
        }
        // One text with room for the whole: what grows as it is written is moved several times. Writing does not fail.
        let mut text = String::with_capacity(512);
        let _ = write!(text, "{}", self.authority);
        let authority = text.len();
        let _ = write!(text, "for=\"{}\"", self.from);
        if let Some(service) = self.service {
            text.push_str(";host=");
            text.push_str(service);
        }
        let forwarded = text.len();
        self.baggage.write(&mut text);
        let (authority, rest) = text.as_bytes().split_at(authority);
        let (forwarded, baggage) = rest.split_at(forwarded - authority.len());
        let head = [
            Field::usual(METHOD, b"CONNECT"),
            Field::unique(AUTHORITY, authority),
            Field::usual(baggage::HEADER, baggage),
            Field::unique(FORWARDED, forwarded),
            Field::unique(trace::HEADER, self.trace.as_bytes()),
            Field::usual(
                FORWARDED_NETWORK,
                self.network.unwrap_or_default().as_bytes(),
            ),
        ];
        let fields = if self.network.is_some() { 6 } else { 5 };
        Ok(send(&head[..fields]))
    }
}

/// What a client asked for, parsed.
#[derive(Clone, Debug)]
pub struct Asked {
    pub authority: Authority,
    /// The service the client meant, as it says: for telemetry only.
    pub service: Option<Box<str>>,
    /// The client's name for this connection.
    pub trace: Option<Traceparent>,
    head: Fields,
}

/// A request that opens no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConnect {
    #[error("method {0} where only CONNECT is served")]
    Method(Box<str>),
    #[error("CONNECT with a scheme or a path")]
    Extended,
    #[error("CONNECT without an authority")]
    NoAuthority,
    #[error(transparent)]
    Authority(#[from] BadAuthority),
}

impl BadConnect {
    /// What to answer.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }
}

impl Asked {
    /// Reads the head of a request.
    ///
    /// # Errors
    /// When it is not a CONNECT to something.
    pub fn parse(head: Fields) -> Result<Self, BadConnect> {
        let method = head.first(METHOD).unwrap_or_default();
        if method != b"CONNECT" {
            let method = method.get(..LONGEST_METHOD).unwrap_or(method);
            let method = method.escape_ascii().to_string();
            return Err(BadConnect::Method(method.into()));
        }
        if head.first(":scheme").is_some() || head.first(":path").is_some() {
            return Err(BadConnect::Extended);
        }
        let authority = head.first(AUTHORITY).ok_or(BadConnect::NoAuthority)?;
        Ok(Self {
            authority: String::from_utf8_lossy(authority).parse()?,
            service: head.first(FORWARDED).and_then(forwarded_host),
            trace: head.first(trace::HEADER).and_then(Traceparent::parse),
            head,
        })
    }

    /// What the client says about its workload: for telemetry only.
    #[must_use]
    pub fn baggage(&self) -> Baggage<'_> {
        Baggage::parse(self.head.all(baggage::HEADER))
    }
}

/// The `host=` of the first element of a `forwarded` header.
fn forwarded_host(value: &[u8]) -> Option<Box<str>> {
    let first = visible(value)?.split(',').next()?;
    let host = first.split(';').find_map(|pair| {
        let (key, host) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case("host").then_some(host)
    })?;
    let host = host.trim().trim_matches('"');
    (!host.is_empty() && host.len() <= LONGEST_HOST).then(|| host.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(connect: &Connect<'_>) -> Result<Fields, NotAHeader> {
        fn read(fields: &[Field<'_>]) -> Vec<(&'static str, String)> {
            let text = |value| str::from_utf8(value).unwrap().to_owned();
            let fields = fields.iter();
            fields
                .map(|field| (field.name, text(field.value)))
                .collect()
        }
        let fields = connect.head(read)?;
        let fields = fields.iter().map(|(name, value)| (*name, value.as_str()));
        Ok(fields.collect())
    }

    fn connect<'a>(authority: &str, from: &str, service: Option<&'a str>) -> Connect<'a> {
        Connect {
            authority: authority.parse().unwrap(),
            baggage: Baggage {
                namespace: "shop",
                ..Baggage::default()
            },
            from: from.parse().unwrap(),
            service,
            network: None,
            trace: Traceparent::new(1, 2),
        }
    }

    fn first<'a>(head: &'a Fields, name: &str) -> Option<&'a str> {
        head.first(name).map(|value| str::from_utf8(value).unwrap())
    }

    #[test]
    fn request_is_a_plain_connect_with_the_headers_of_the_contract() {
        for (authority, from, service, forwarded) in [
            ("10.0.0.2:80", "10.0.0.1:555", None, "for=\"10.0.0.1:555\""),
            (
                "[fd00::2]:80",
                "[fd00::1]:555",
                Some("db.shop.svc"),
                "for=\"[fd00::1]:555\";host=db.shop.svc",
            ),
        ] {
            let head = head(&connect(authority, from, service)).unwrap();
            assert_eq!(first(&head, METHOD), Some("CONNECT"));
            assert_eq!(first(&head, AUTHORITY), Some(authority));
            assert_eq!(first(&head, FORWARDED), Some(forwarded));
            let baggage = first(&head, baggage::HEADER);
            assert_eq!(baggage, Some("k8s.namespace.name=shop"));
            assert_eq!(first(&head, trace::HEADER).unwrap().len(), 55);
            assert_eq!(head.iter().count(), 5);
        }
    }

    #[test]
    fn the_network_of_the_client_is_told_through_a_gateway_only() {
        let mut connect = connect("db.shop.svc:80", "10.0.0.1:1", Some("db.shop.svc"));
        connect.network = Some("west");
        let told = head(&connect).unwrap();
        assert_eq!(first(&told, "x-forwarded-network"), Some("west"));
        assert_eq!(first(&told, AUTHORITY), Some("db.shop.svc:80"));
        connect.network = None;
        let told = head(&connect).unwrap();
        assert_eq!(first(&told, "x-forwarded-network"), None);
    }

    #[test]
    fn what_was_sent_is_what_was_asked() {
        let sent = head(&connect("10.0.0.2:80", "10.0.0.1:5", Some("db.svc")));
        let asked = Asked::parse(sent.unwrap()).unwrap();
        assert_eq!(asked.authority.to_string(), "10.0.0.2:80");
        assert_eq!(asked.service.as_deref(), Some("db.svc"));
        assert_eq!(asked.trace, Some(Traceparent::new(1, 2)));
        assert_eq!(asked.baggage().namespace, "shop");
    }

    #[test]
    fn a_service_name_that_is_no_header_is_an_error() {
        let err = head(&connect("10.0.0.2:80", "10.0.0.1:1", Some("a\nb"))).unwrap_err();
        let expected = "service \"a\\nb\" cannot stand in a header";
        assert_eq!(err.to_string(), expected);
    }

    #[test]
    fn everything_else_is_refused_with_400() {
        let connect = (METHOD, "CONNECT");
        for (head, expected) in [
            (
                &[(METHOD, "GET"), (AUTHORITY, "10.0.0.1:80")][..],
                "method GET where only CONNECT is served",
            ),
            (
                &[connect, (":scheme", "http"), (AUTHORITY, "a:1")],
                "CONNECT with a scheme or a path",
            ),
            (
                &[connect, (":path", "/x")],
                "CONNECT with a scheme or a path",
            ),
            (&[connect], "CONNECT without an authority"),
            (
                &[connect, (AUTHORITY, "10.0.0.1")],
                "authority \"10.0.0.1\" is neither ip:port, [ipv6]:port nor hostname:port",
            ),
            (
                &[connect, (AUTHORITY, "user@db:80")],
                "authority \"user@db:80\" is neither ip:port, [ipv6]:port nor hostname:port",
            ),
        ] {
            let err = Asked::parse(head.iter().copied().collect()).unwrap_err();
            assert_eq!(err.to_string(), expected);
            assert_eq!(err.status(), 400);
        }
    }

    #[test]
    fn only_the_host_of_forwarded_is_read() {
        for (header, expected) in [
            ("for=\"1.2.3.4:5\";host=db.svc", Some("db.svc")),
            ("host=\"db.svc\"", Some("db.svc")),
            ("for=a;Host = db.svc ", Some("db.svc")),
            ("for=a, host=db.svc", None),
            ("for=a", None),
            ("host=", None),
            ("", None),
        ] {
            let host = forwarded_host(header.as_bytes());
            assert_eq!(host.as_deref(), expected, "{header:?}");
        }
    }
}
