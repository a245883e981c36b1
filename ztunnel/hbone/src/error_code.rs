//! What the end of a TCP connection looks like in HTTP/2, and back.
//!
//! A FIN is END_STREAM and needs no code. A reset is CONNECT_ERROR, which RFC 9113 has for just this. Peers also
//! end streams with NO_ERROR or CANCEL, which is a normal end of data for whoever reads.

use std::fmt;

/// An error code of RFC 9113 section 7, known or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

/// What a received RST_STREAM means for a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Reading: end of data. Writing: nobody listens any more.
    End,
    /// The connection behind it was reset.
    Reset,
}

impl ErrorCode {
    pub const NO_ERROR: Self = Self(0x0);
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    pub const INTERNAL_ERROR: Self = Self(0x2);
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    pub const STREAM_CLOSED: Self = Self(0x5);
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    pub const REFUSED_STREAM: Self = Self(0x7);
    pub const CANCEL: Self = Self(0x8);
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The TCP connection behind a CONNECT was reset or otherwise ended before its time.
    pub const CONNECT_ERROR: Self = Self(0xa);
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);

    /// What to make of it when it arrives.
    #[must_use]
    pub const fn received(self) -> Received {
        match self {
            Self::NO_ERROR | Self::CANCEL => Received::End,
            _ => Received::Reset,
        }
    }

    fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(usize::try_from(self.0).ok()?).copied()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_no_error_and_cancel_are_normal_ends() {
        for code in 0..20 {
            let end = matches!(code, 0 | 8);
            assert_eq!(ErrorCode(code).received() == Received::End, end, "{code}");
        }
    }

    #[test]
    fn codes_have_the_names_of_the_rfc() {
        for (code, name) in [
            (ErrorCode::NO_ERROR, "NO_ERROR"),
            (ErrorCode::STREAM_CLOSED, "STREAM_CLOSED"),
            (ErrorCode::REFUSED_STREAM, "REFUSED_STREAM"),
            (ErrorCode::CANCEL, "CANCEL"),
            (ErrorCode::CONNECT_ERROR, "CONNECT_ERROR"),
            (ErrorCode(0xd), "HTTP_1_1_REQUIRED"),
            (ErrorCode(0xe), "0xe"),
        ] {
            assert_eq!(code.to_string(), name);
        }
    }
}
