//! The `traceparent` header: ties the log lines of both sides of a tunnel stream together.

use std::fmt::Write as _;

pub(crate) const HEADER: &str = "traceparent";

/// `00-<32 hex>-<16 hex>-<2 hex>`.
const LENGTH: usize = 55;

/// Names one proxied connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent([u8; LENGTH]);

impl Traceparent {
    /// From random bits of the caller's.
    #[must_use]
    pub fn new(trace: u128, span: u64) -> Self {
        let mut text = String::with_capacity(LENGTH);
        // Writing to a string does not fail, and the widths make it 55 characters; were it otherwise, zeros are valid.
        let written = write!(text, "00-{trace:032x}-{span:016x}-00");
        let mut bytes = [b'0'; LENGTH];
        if written.is_ok() && text.len() == LENGTH {
            bytes.copy_from_slice(text.as_bytes());
        }
        Self(bytes)
    }

    /// A peer's; nothing when it is not one.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let bytes: [u8; LENGTH] = value.try_into().ok()?;
        let well_formed = bytes.iter().enumerate().all(|(i, b)| match i {
            2 | 35 | 52 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
        well_formed.then_some(Self(bytes))
    }

    /// As the value of a header.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The part that both sides log.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        std::str::from_utf8(&self.0[3..35]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_form_of_the_standard() {
        let trace = Traceparent::new(0xabc, 0xd);
        let text = "00-00000000000000000000000000000abc-000000000000000d-00";
        assert_eq!(trace.as_bytes(), text.as_bytes());
        assert_eq!(Traceparent::parse(trace.as_bytes()), Some(trace));
        assert_eq!(trace.trace_id(), "00000000000000000000000000000abc");
    }

    #[test]
    fn other_forms_are_not_taken_over() {
        for text in [
            "",
            "00-0000000000000000000000000000abc-000000000000000d-00",
            "00_00000000000000000000000000000abc-000000000000000d-00",
            "00-0000000000000000000000000000zabc-000000000000000d-0",
            "00-00000000000000000000000000000xyz-000000000000000d-00",
        ] {
            assert_eq!(Traceparent::parse(text.as_bytes()), None, "{text}");
        }
    }
}
