//! The answer to a CONNECT.

use http::{Response, StatusCode};

use crate::baggage::{self, Baggage};

/// What a peer answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The app on the other side accepted: bytes may flow.
    Open,
    Refused(StatusCode),
}

impl Answer {
    /// Only 200 opens a stream.
    #[must_use]
    pub fn classify<B>(response: &Response<B>) -> Self {
        match response.status() {
            StatusCode::OK => Self::Open,
            status => Self::Refused(status),
        }
    }

    /// The answer that opens a stream, with what this side tells about its workload, if it does.
    #[must_use]
    pub fn open(baggage: Option<&Baggage<'_>>) -> Response<()> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response
                .headers_mut()
                .insert(baggage::HEADER, baggage.header());
        }
        response
    }
}

/// Why a stream is not opened, as far as the wire distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a CONNECT, or one for somebody else.
    BadRequest,
    /// Policy denies it. 401, not 403.
    Denied,
    /// Everything that might work later or elsewhere.
    Unavailable,
}

impl Refusal {
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The answer; it ends the stream.
    #[must_use]
    pub fn response(self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status();
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_opens() {
        for (status, open) in [(200, true), (204, false), (401, false), (503, false)] {
            let response = Response::builder().status(status).body(()).unwrap();
            assert_eq!(
                Answer::classify(&response) == Answer::Open,
                open,
                "{status}"
            );
        }
    }

    #[test]
    fn open_says_who_answers() {
        let response = Answer::open(Some(&Baggage {
            namespace: "shop",
            ..Baggage::default()
        }));
        assert_eq!(Answer::classify(&response), Answer::Open);
        assert_eq!(response.headers()["baggage"], "k8s.namespace.name=shop");
        let silent = Answer::open(None);
        assert_eq!(Answer::classify(&silent), Answer::Open);
        assert!(silent.headers().is_empty());
    }

    #[test]
    fn statuses_are_those_of_the_contract() {
        for (refusal, status) in [
            (Refusal::BadRequest, 400),
            (Refusal::Denied, 401),
            (Refusal::Unavailable, 503),
        ] {
            assert_eq!(refusal.response().status(), status);
        }
    }
}
