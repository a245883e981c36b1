//! The head of a CONNECT: plain RFC 9113 CONNECT with `:method` and `:authority`, plus what the client tells about
//! itself.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::header::HeaderName;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};

use crate::authority::{Authority, BadAuthority};
use crate::baggage::{self, Baggage};
use crate::trace::{self, Traceparent};

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
/// Of IPv6, with brackets, scope and port.
const LONGEST_ADDRESS: usize = 64;
/// Longest host of a `forwarded` header that is taken note of.
const LONGEST_HOST: usize = 253;

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

impl Connect<'_> {
    /// As a request of HTTP/2.
    ///
    /// # Errors
    /// When the name of the service or the network cannot stand in a header.
    pub fn request(&self) -> Result<Request<()>, http::Error> {
        // Room for the whole text at once: what grows as it is written is moved several times.
        let mut authority = String::with_capacity(LONGEST_ADDRESS);
        let _ = write!(authority, "{}", self.authority);
        let service = self.service.map_or(0, str::len);
        let mut forwarded = String::with_capacity(LONGEST_ADDRESS + 16 + service);
        let _ = write!(forwarded, "for=\"{}\"", self.from);
        if let Some(service) = self.service {
            forwarded.push_str(";host=");
            forwarded.push_str(service);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::builder().authority(authority).build()?;
        let headers = request.headers_mut();
        headers.reserve(4);
        headers.insert(baggage::HEADER, self.baggage.header());
        headers.insert(FORWARDED, HeaderValue::try_from(forwarded)?);
        headers.insert(trace::HEADER, self.trace.header());
        if let Some(network) = self.network {
            headers.insert(FORWARDED_NETWORK, HeaderValue::from_str(network)?);
        }
        Ok(request)
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
    headers: HeaderMap,
}

/// A request that opens no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConnect {
    #[error("method {0} where only CONNECT is served")]
    Method(Method),
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
    pub fn parse(request: Request<()>) -> Result<Self, BadConnect> {
        let (head, ()) = request.into_parts();
        if head.method != Method::CONNECT {
            return Err(BadConnect::Method(head.method));
        }
        let (scheme, path): (Option<&Scheme>, Option<&PathAndQuery>) =
            (head.uri.scheme(), head.uri.path_and_query());
        if scheme.is_some() || path.is_some_and(|path| path.as_str() != "") {
            return Err(BadConnect::Extended);
        }
        let authority = head.uri.authority().ok_or(BadConnect::NoAuthority)?;
        Ok(Self {
            authority: authority.as_str().parse()?,
            service: head.headers.get(FORWARDED).and_then(forwarded_host),
            trace: head.headers.get(trace::HEADER).and_then(Traceparent::parse),
            headers: head.headers,
        })
    }

    /// What the client says about its workload: for telemetry only.
    #[must_use]
    pub fn baggage(&self) -> Baggage<'_> {
        Baggage::parse(self.headers.get_all(baggage::HEADER))
    }
}

/// The `host=` of the first element of a `forwarded` header.
fn forwarded_host(value: &HeaderValue) -> Option<Box<str>> {
    let first = value.to_str().ok()?.split(',').next()?;
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

    fn connect(authority: &str, from: &str, service: Option<&str>) -> Request<()> {
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
        .request()
        .unwrap()
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
            let request = connect(authority, from, service);
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.uri().to_string(), authority);
            assert_eq!(request.uri().scheme(), None);
            assert_eq!(request.headers()[FORWARDED], forwarded);
            assert_eq!(
                request.headers()[baggage::HEADER],
                "k8s.namespace.name=shop"
            );
            assert_eq!(request.headers()[trace::HEADER].len(), 55);
            assert_eq!(request.headers().len(), 3);
        }
    }

    #[test]
    fn the_network_of_the_client_is_told_through_a_gateway_only() {
        let mut connect = Connect {
            authority: "db.shop.svc:80".parse().unwrap(),
            baggage: Baggage::default(),
            from: "10.0.0.1:1".parse().unwrap(),
            service: Some("db.shop.svc"),
            network: Some("west"),
            trace: Traceparent::new(1, 2),
        };
        let request = connect.request().unwrap();
        assert_eq!(request.headers()["x-forwarded-network"], "west");
        assert_eq!(request.uri().to_string(), "db.shop.svc:80");
        connect.network = None;
        let request = connect.request().unwrap();
        assert!(!request.headers().contains_key("x-forwarded-network"));
    }

    #[test]
    fn what_was_sent_is_what_was_asked() {
        let asked = Asked::parse(connect("10.0.0.2:80", "10.0.0.1:5", Some("db.svc"))).unwrap();
        assert_eq!(asked.authority.to_string(), "10.0.0.2:80");
        assert_eq!(asked.service.as_deref(), Some("db.svc"));
        assert_eq!(asked.trace, Some(Traceparent::new(1, 2)));
        assert_eq!(asked.baggage().namespace, "shop");
    }

    #[test]
    fn a_service_name_that_is_no_header_is_an_error() {
        let connect = Connect {
            authority: "10.0.0.2:80".parse().unwrap(),
            baggage: Baggage::default(),
            from: "10.0.0.1:1".parse().unwrap(),
            service: Some("a\nb"),
            network: None,
            trace: Traceparent::new(1, 2),
        };
        assert!(connect.request().is_err());
    }

    #[test]
    fn everything_else_is_refused_with_400() {
        let request = |method: Method, uri: &str| {
            Request::builder().method(method).uri(uri).body(()).unwrap()
        };
        for (request, expected) in [
            (
                request(Method::GET, "10.0.0.1:80"),
                "method GET where only CONNECT is served",
            ),
            (
                request(Method::CONNECT, "http://10.0.0.1:80/x"),
                "CONNECT with a scheme or a path",
            ),
            (
                request(Method::CONNECT, "/x"),
                "CONNECT with a scheme or a path",
            ),
            (
                request(Method::CONNECT, "10.0.0.1"),
                "authority \"10.0.0.1\" is neither ip:port, [ipv6]:port nor hostname:port",
            ),
            (
                request(Method::CONNECT, "user@db:80"),
                "authority \"user@db:80\" is neither ip:port, [ipv6]:port nor hostname:port",
            ),
        ] {
            let err = Asked::parse(request).unwrap_err();
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
            let header = HeaderValue::from_str(header).unwrap();
            assert_eq!(forwarded_host(&header).as_deref(), expected, "{header:?}");
        }
    }
}
