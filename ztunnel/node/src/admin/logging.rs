//! `/logging`: what is logged, and what is from now on.

use http::{Method, StatusCode};

use super::http::{Request, Response};
use super::plain;
use crate::telemetry::{BadLevels, LogLevels};

const USAGE: &str = "\
usage: POST /logging                            what is logged now
       POST /logging?level=LEVEL                change the level of everything that has none of its own
       POST /logging?level=TARGET=LEVEL[,...]   change the levels of parts of the program; TARGET:LEVEL is the same
       POST /logging?reset                      back to what the start asked for
       POST /logging?reset&level=...            back to that, and this on top
LEVEL is off, error, warn, info, debug or trace. TARGET is a module, such as ztunnel_node::discovery, or access, the
lines of connections.
";

pub(super) fn answer(request: &Request, levels: &LogLevels) -> Response {
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, USAGE);
    }
    let query = request.uri().query().unwrap_or_default();
    let (mut reset, mut level) = (false, String::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "reset" => reset = true,
            "level" => level = with_equals(&value),
            _ => {}
        }
    }
    match change(levels, reset, &level) {
        Ok(()) => plain(
            StatusCode::OK,
            format!("current log level is {}\n", levels.now()),
        ),
        Err(err) => plain(
            StatusCode::BAD_REQUEST,
            format!("Invalid level provided: {err}\n\n{USAGE}"),
        ),
    }
}

fn change(levels: &LogLevels, reset: bool, level: &str) -> Result<(), BadLevels> {
    match (reset, level) {
        (false, "") => Ok(()),
        (true, "") => levels.reset(),
        (false, level) => levels.add(level),
        (true, level) => levels.reset_to(level),
    }
}

/// `target:level` as `target=level`: both are what people write. A target has colons of its own, in pairs.
fn with_equals(directives: &str) -> String {
    let directive = |text: &str| match text.rsplit_once(':') {
        Some((target, level)) if !text.contains('=') && !target.ends_with(':') => {
            format!("{target}={level}")
        }
        _ => text.to_owned(),
    };
    let all: Vec<_> = directives.split(',').map(directive).collect();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(levels: &LogLevels, query: &str) -> (u16, String) {
        let uri = format!("/logging{query}");
        let request = http::Request::post(uri).body(()).unwrap();
        let response = answer(&request, levels);
        (response.status().as_u16(), response.into_body().text())
    }

    #[test]
    fn levels_are_shown_changed_and_reset() {
        let (_filter, levels) = LogLevels::new("info,access=debug").unwrap();
        for (query, now) in [
            ("", "access=debug,info"),
            ("?level=", "access=debug,info"),
            ("?other=1", "access=debug,info"),
            ("?level=warn", "access=debug,warn"),
            ("?level=dns=trace,debug", "access=debug,dns=trace,debug"),
            ("?level=access%3Derror%2Coff", "access=error,dns=trace,off"),
            ("?level=dns:warn", "access=error,dns=warn,off"),
            ("?reset", "access=debug,info"),
            ("?level=a::b:debug", "a::b=debug,access=debug,info"),
            ("?level=debug&reset", "access=debug,debug"),
            ("?reset=false&level=", "access=debug,info"),
        ] {
            let (status, body) = post(&levels, query);
            let mut shown: Vec<_> = body
                .strip_prefix("current log level is ")
                .and_then(|body| body.strip_suffix('\n'))
                .unwrap_or_else(|| panic!("{query}: {status} {body}"))
                .split(',')
                .collect();
            let mut expected: Vec<_> = now.split(',').collect();
            assert_eq!(shown.last(), expected.last(), "the default is the last one");
            shown.sort_unstable();
            expected.sort_unstable();
            assert_eq!((status, shown), (200, expected), "{query}");
        }
    }

    #[test]
    fn what_is_no_level_changes_nothing() {
        let (_filter, levels) = LogLevels::new("info").unwrap();
        post(&levels, "?level=debug");
        for query in [
            "?level=loud",
            "?level=a=loud",
            "?level=a:loud",
            "?level=a::b",
            "?level=,",
            "?level=a=b=debug",
            "?level=debug,loud",
            "?reset&level=loud",
            "?level=%00",
            "?level=%ff",
        ] {
            let (status, body) = post(&levels, query);
            assert_eq!(status, 400, "{query}: {body}");
            assert!(body.starts_with("Invalid level provided: "), "{body}");
            assert_eq!(levels.now(), "debug", "{query}");
        }
    }

    #[test]
    fn the_filter_does_not_grow_for_ever() {
        let (_filter, levels) = LogLevels::new("info").unwrap();
        for number in 0..1000 {
            post(&levels, &format!("?level=target{number}=info"));
        }
        assert!(levels.now().len() <= 4096, "{}", levels.now().len());
        let (status, body) = post(&levels, "?level=another_target=info");
        assert_eq!(status, 400);
        assert!(body.contains("reset it first"), "{body}");
        assert_eq!(post(&levels, "?reset").0, 200);
        assert_eq!(levels.now(), "info");
    }

    #[test]
    fn other_methods_get_the_usage() {
        let (_filter, levels) = LogLevels::new("info").unwrap();
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let mut request = http::Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = "/logging?level=debug".parse().unwrap();
            let response = answer(&request, &levels);
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(response.into_body().text(), USAGE);
        }
        assert_eq!(levels.now(), "info");
    }
}
