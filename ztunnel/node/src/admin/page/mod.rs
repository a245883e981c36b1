//! The page for people at `/`, and `/overview`, the document that it shows.
//!
//! Invariants: one document, and nothing of it comes from elsewhere: it works on a node without a network, through a
//! port that is forwarded, and below any path. A browser runs no script and no style but these, whose hashes are in
//! the policy that goes with them. What the page is shown is text, never markup.

use std::future::Future;
use std::pin::Pin;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};

use super::http::Response;

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// What `HTML` has where the others belong.
const STYLE_HERE: &str = "/* page.css */";
const SCRIPT_HERE: &str = "/* page.js */";

/// Who knows what the page shows.
pub trait PageSource: Send + Sync + 'static {
    /// The node at this moment, as JSON.
    fn overview(&self) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>>;
}

/// Answers for both.
pub struct Page {
    document: Bytes,
    policy: HeaderValue,
    source: Box<dyn PageSource>,
}

impl Page {
    /// # Panics
    /// Never: the policy is ASCII.
    #[must_use]
    pub fn new(source: impl PageSource) -> Self {
        let document = HTML
            .replacen(STYLE_HERE, STYLE, 1)
            .replacen(SCRIPT_HERE, SCRIPT, 1);
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        Self {
            document: document.into(),
            policy: policy.try_into().expect("ASCII only"),
            source: Box::new(source),
        }
    }

    pub(super) fn answer(&self) -> Response {
        let mut response = fresh(self.document.clone(), "text/html; charset=utf-8");
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }

    pub(super) async fn overview(&self) -> Response {
        fresh(self.source.overview().await, "application/json")
    }
}

/// What no browser keeps, or takes for something else.
fn fresh(body: Bytes, content_type: &'static str) -> Response {
    let mut response = Response::new(body.into());
    let mut set = |name: HeaderName, value| {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    };
    set(CONTENT_TYPE, content_type);
    set(CACHE_CONTROL, "no-store");
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

/// As a content security policy names what is inside the document.
fn hash(text: &str) -> String {
    let hash = STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!("'sha256-{hash}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl PageSource for Nothing {
        fn overview(&self) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
            Box::pin(async { Bytes::from_static(b"{}") })
        }
    }

    fn document() -> String {
        Page::new(Nothing).answer().into_body().text()
    }

    #[test]
    fn the_document_is_small_and_whole() {
        let document = document();
        assert!(document.len() < 40 * 1024, "{}", document.len());
        for missing in [STYLE_HERE, SCRIPT_HERE] {
            assert!(!document.contains(missing), "{missing}");
        }
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=\"",
            "onclick",
            "src=",
            "url(",
            "@import",
            "https://",
        ] {
            assert!(!document.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn the_policy_has_the_hashes_of_what_is_between_the_tags() {
        let page = Page::new(Nothing);
        let policy = page.policy.to_str().unwrap().to_owned();
        assert!(!policy.contains("unsafe"), "{policy}");
        let document = document();
        for (tag, directive) in [("style", "style-src"), ("script", "script-src")] {
            let (_, inside) = document.split_once(&format!("<{tag}>")).unwrap();
            let (inside, rest) = inside.split_once(&format!("</{tag}>")).unwrap();
            assert!(!rest.contains(&format!("<{tag}")), "there is one {tag}");
            let expected = format!("{directive} {};", hash(inside));
            assert!(policy.contains(&expected), "{expected} is not in {policy}");
        }
    }

    #[test]
    fn every_path_of_the_contract_is_linked_and_relative() {
        let document = document();
        for path in [
            "overview",
            "config_dump",
            "logging",
            "quitquitquit",
            "debug/pprof/profile",
            "debug/pprof/heap",
        ] {
            assert!(document.contains(&format!("href=\"{path}\"")), "{path}");
        }
        assert!(!document.contains("href=\"/"), "below any path");
    }
}
