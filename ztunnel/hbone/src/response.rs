//! The answer to a CONNECT.

use http::StatusCode;

use crate::baggage::{self, Baggage};
use crate::http2::{Field, Fields};

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
    pub fn classify(head: &Fields) -> Self {
        let status = head.first(":status").unwrap_or_default();
        match StatusCode::from_bytes(status) {
            Ok(StatusCode::OK) => Self::Open,
            Ok(status) => Self::Refused(status),
            // Below 100: no status at all.
            Err(_) => Self::Refused(StatusCode::BAD_GATEWAY),
        }
    }

    /// Gives `send` the head of the answer that opens a stream, with what this side tells about its workload, if it does.
    pub fn open<T>(baggage: Option<&Baggage<'_>>, send: impl FnOnce(&[Field<'_>]) -> T) -> T {
        const OK: Field<'_> = Field::usual(":status", b"200");
        let Some(baggage) = baggage else {
            return send(&[OK]);
        };
        let mut text = String::with_capacity(256);
        baggage.write(&mut text);
        send(&[OK, Field::usual(baggage::HEADER, text.as_bytes())])
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

    /// Gives `send` the head of the answer; it ends the stream.
    pub fn answer<T>(self, send: impl FnOnce(&[Field<'_>]) -> T) -> T {
        let status = self.status();
        send(&[Field::usual(":status", status.as_str().as_bytes())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[Field<'_>]) -> Fields {
        let text = |bytes| str::from_utf8(bytes).unwrap();
        let fields = fields.iter().map(|field| (field.name, text(field.value)));
        fields.collect()
    }

    #[test]
    fn only_200_opens() {
        for (status, open) in [
            ("200", true),
            ("204", false),
            ("401", false),
            ("099", false),
        ] {
            let head = [(":status", status)].into_iter().collect();
            assert_eq!(Answer::classify(&head) == Answer::Open, open, "{status}");
        }
    }

    #[test]
    fn open_says_who_answers() {
        let shop = Baggage {
            namespace: "shop",
            ..Baggage::default()
        };
        let told = Answer::open(Some(&shop), head);
        assert_eq!(Answer::classify(&told), Answer::Open);
        assert_eq!(told.first("baggage"), Some(&b"k8s.namespace.name=shop"[..]));
        let silent = Answer::open(None, head);
        assert_eq!(Answer::classify(&silent), Answer::Open);
        assert_eq!(silent.iter().count(), 1);
    }

    #[test]
    fn statuses_are_those_of_the_contract() {
        for (refusal, status) in [
            (Refusal::BadRequest, "400"),
            (Refusal::Denied, "401"),
            (Refusal::Unavailable, "503"),
        ] {
            let head = refusal.answer(head);
            assert_eq!(head.first(":status"), Some(status.as_bytes()));
        }
    }
}
