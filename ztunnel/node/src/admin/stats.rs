//! What Prometheus scrapes.

use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

use super::{Body, Request, Response};
use crate::telemetry::Metrics;

/// Where metrics are asked for unless the configuration says otherwise.
pub const STATS_PORT: u16 = 15020;

const PATHS: [&str; 2] = ["/metrics", "/stats/prometheus"];
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Answers scrapes of `metrics`.
pub fn stats(metrics: Arc<Metrics>) -> impl Fn(&Request) -> Response + Send + Sync + 'static {
    move |request| {
        if !PATHS.contains(&request.uri().path()) {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        let mut response = Response::new(Body::Pieces(Box::new(metrics.expose())));
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::MOST_PAIRS;

    #[test]
    fn scrapes_are_answered_on_the_paths_of_the_contract() {
        let answer = stats(Metrics::new("1.32.0", MOST_PAIRS));
        let ask = |path: &str| answer(&http::Request::get(path).body(()).unwrap());
        for path in PATHS {
            let response = ask(path);
            assert_eq!(response.headers()[CONTENT_TYPE], TEXT);
            let text = response.into_body().text();
            assert!(
                text.contains("istio_build{component=\"ztunnel\",tag=\"1.32.0\"} 1\n"),
                "{text}"
            );
            assert!(text.contains("process_open_fds "), "{text}");
        }
        assert_eq!(ask("/").status(), StatusCode::NOT_FOUND);
    }
}
