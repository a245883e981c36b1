//! Frames as they stand on the wire: RFC 9113 sections 4 and 6.

/// What a client says first: section 3.4.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's head.
pub(crate) const HEAD: usize = 9;

/// The largest frame that every peer takes.
pub(crate) const SMALLEST_MAX_FRAME: u32 = 16_384;

/// The largest frame there can be.
pub(crate) const LARGEST_MAX_FRAME: u32 = (1 << 24) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// To be passed over: section 4.1.
    Unknown,
}

const KINDS: [Kind; 10] = [
    Kind::Data,
    Kind::Headers,
    Kind::Priority,
    Kind::Reset,
    Kind::Settings,
    Kind::PushPromise,
    Kind::Ping,
    Kind::GoAway,
    Kind::WindowUpdate,
    Kind::Continuation,
];

/// Bits of [`Head::flags`]. Which of them mean something depends on the kind.
pub(crate) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: u32,
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        Self {
            len: u32::from_be_bytes([0, a, b, c]),
            kind: KINDS
                .get(usize::from(kind))
                .copied()
                .unwrap_or(Kind::Unknown),
            flags,
            stream: u31(stream),
        }
    }

    pub(crate) fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = self.len.to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind as u8, self.flags, d, e, f, g]
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A number whose first bit is reserved.
pub(crate) fn u31(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & (u32::MAX >> 1)
}

/// Appends a whole frame whose content is short.
pub(crate) fn put(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, content: &[u8]) {
    let head = Head {
        len: u32::try_from(content.len()).unwrap_or(LARGEST_MAX_FRAME),
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.bytes());
    out.extend_from_slice(content);
}

/// Takes the padding off the content of a frame that may have it: section 6.1. Nothing when there is more padding than
/// content.
pub(crate) fn unpadded(head: Head, content: &[u8]) -> Option<&[u8]> {
    if !head.has(flag::PADDED) {
        return Some(content);
    }
    let (padding, rest) = content.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*padding))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_what_it_was() {
        for (kind, number) in KINDS.into_iter().zip(0..) {
            let head = Head {
                len: 0x01_02_03,
                kind,
                flags: 0x25,
                stream: 0x0405_0607,
            };
            assert_eq!(head.bytes(), [1, 2, 3, number, 0x25, 4, 5, 6, 7]);
            assert_eq!(Head::parse(head.bytes()), head);
        }
    }

    #[test]
    fn what_is_not_known_or_reserved_is_passed_over() {
        let head = Head::parse([0, 0, 0, 0xbe, 0, 0x80, 0, 0, 1]);
        assert_eq!((head.kind, head.stream), (Kind::Unknown, 1));
    }

    #[test]
    fn padding_is_no_content() {
        let padded = |flags, content| {
            let head = Head {
                len: 0,
                kind: Kind::Headers,
                flags,
                stream: 1,
            };
            unpadded(head, content)
        };
        assert_eq!(padded(0, &[2, 7]), Some(&[2, 7][..]));
        assert_eq!(padded(flag::PADDED, &[2, 7, 0, 0]), Some(&[7][..]));
        assert_eq!(padded(flag::PADDED, &[2, 0, 0]), Some(&[][..]));
        assert_eq!(padded(flag::PADDED, &[2, 0]), None);
        assert_eq!(padded(flag::PADDED, &[]), None);
    }
}
