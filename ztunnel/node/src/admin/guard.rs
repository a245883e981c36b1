//! Who may ask: whoever can reach loopback, but no page of a browser that runs there.
//!
//! A page may send requests to loopback: with a form, with a script (`Origin` says so, and so does `Sec-Fetch-Site`), or
//! after its own name was made to mean 127.0.0.1 (`Host` is still that name).

use std::net::IpAddr;

use http::header::{HOST, HeaderName, ORIGIN};
use http::uri::Authority;

use super::http::Request;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is refused.
pub(super) fn refusal(request: &Request) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Some("more than one Host");
    }
    // Every browser sends one.
    let host = match host.map(|host| host.to_str().map(str::parse::<Authority>)) {
        None => None,
        Some(Ok(Ok(host))) => Some(host),
        Some(_) => return Some("the Host cannot be understood"),
    };
    let named = [host.as_ref(), request.uri().authority()];
    if !named.into_iter().flatten().all(is_loopback) {
        return Some("the Host is neither localhost nor a loopback address");
    }
    let own = |origin: &http::HeaderValue| {
        let origin = origin.to_str().ok()?.strip_prefix("http://")?;
        (origin.parse::<Authority>().ok().as_ref() == host.as_ref()).then_some(())
    };
    let mut origins = request.headers().get_all(ORIGIN).iter();
    if !origins.all(|origin| host.is_some() && own(origin).is_some()) {
        return Some("the request is from a page of another origin");
    }
    // A link that somebody follows to the first page is fine.
    let fetched_by_other =
        |site: &http::HeaderValue| !matches!(site.as_bytes(), b"same-origin" | b"none");
    let mut sites = request.headers().get_all(SEC_FETCH_SITE).iter();
    if request.uri().path() != "/" && sites.any(fetched_by_other) {
        return Some("the request is from a page of another origin");
    }
    None
}

fn is_loopback(host: &Authority) -> bool {
    if host.as_str().contains('@') {
        return false;
    }
    let host = host.host();
    let bare = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let ip = bare.unwrap_or(host).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, headers: &[(&'static str, &str)], allowed: bool) {
        let mut request = http::Request::post(uri).body(()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let refused = refusal(&request);
        assert_eq!(refused.is_none(), allowed, "{uri} {headers:?}: {refused:?}");
    }

    #[test]
    fn only_hosts_that_are_loopback() {
        for host in [
            "localhost",
            "LocalHost:15000",
            "127.0.0.1:15000",
            "127.1.2.3",
            "[::1]:15000",
            "[::ffff:127.0.0.1]",
        ] {
            check("/logging", &[("host", host)], true);
        }
        for host in [
            "",
            "evil.example",
            "evil.example:15000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost:15000:1",
            "a b",
        ] {
            check("/logging", &[("host", host)], false);
        }
        check("/logging", &[], true);
        check(
            "/logging",
            &[("host", "localhost"), ("host", "evil.example")],
            false,
        );
        check(
            "http://evil.example/logging",
            &[("host", "localhost")],
            false,
        );
        check("http://evil.example/logging", &[], false);
        check("http://localhost/logging", &[("host", "localhost")], true);
    }

    #[test]
    fn no_page_but_our_own() {
        let host = ("host", "localhost:15000");
        let check = |path, name, value, allowed| check(path, &[host, (name, value)], allowed);
        check("/logging", "origin", "http://localhost:15000", true);
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost",
            "http://localhost:3000",
            "https://localhost:15000",
            "http://127.0.0.1:15000",
        ] {
            check("/logging", "origin", origin, false);
            check("/", "origin", origin, false);
        }
        for (site, allowed) in [
            ("none", true),
            ("same-origin", true),
            ("same-site", false),
            ("cross-site", false),
            ("", false),
        ] {
            check("/config_dump", "sec-fetch-site", site, allowed);
            check("/", "sec-fetch-site", site, true);
        }
    }

    #[test]
    fn an_origin_without_a_host_is_not_ours() {
        check("/logging", &[("origin", "http://localhost")], false);
    }
}
