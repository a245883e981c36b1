//! Follows the TLS records of one direction of a TCP connection, in segments as they pass.
//!
//! Keeps nothing but counts. A connection that was there before is followed from the first segment that begins with a
//! record, which is how they are written.

use serde::{Deserialize, Serialize};

/// Bytes of the header of a record.
const HEADER: usize = 5;
/// The longest record: RFC 8446 5.2, RFC 5246 6.2.3.
const LONGEST: usize = 16 * 1024 + 2048;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// change_cipher_spec, alert, handshake, application_data.
const TYPES: std::ops::RangeInclusive<u8> = 20..=APPLICATION_DATA;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    pub handshake: u64,
    pub application_data: u64,
    pub alert: u64,
    /// Bytes that should begin a record and do not.
    pub not_tls_bytes: u64,
    /// Bytes of records that had begun before anybody looked.
    pub unfollowed_bytes: u64,
}

impl Records {
    pub(super) fn add(&mut self, other: Self) {
        self.handshake += other.handshake;
        self.application_data += other.application_data;
        self.alert += other.alert;
        self.not_tls_bytes += other.not_tls_bytes;
        self.unfollowed_bytes += other.unfollowed_bytes;
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The number of the next byte, once it is known where a record begins.
    next: Option<u32>,
    /// Whether the whole connection was seen.
    from_start: bool,
    header: [u8; HEADER],
    /// Of the header.
    have: usize,
    /// Of the body of the record.
    left: usize,
    pub(super) seen: Records,
}

impl Stream {
    /// A segment with this sequence number; `opens` if it has the SYN flag.
    pub(super) fn segment(&mut self, sequence: u32, opens: bool, payload: &[u8]) {
        if opens {
            let seen = self.seen;
            *self = Self {
                next: Some(sequence.wrapping_add(1)),
                from_start: true,
                seen,
                ..Self::default()
            };
            return;
        }
        if payload.is_empty() {
            return;
        }
        let Some(next) = self.next else {
            return self.find(sequence, payload);
        };
        // Sequence numbers wrap: what is less than half of them behind was there before.
        let ahead = sequence.wrapping_sub(next).cast_signed();
        if ahead > 0 {
            // Something was not seen, or comes later.
            self.lose();
            return self.find(sequence, payload);
        }
        let again = usize::try_from(ahead.unsigned_abs()).unwrap_or(usize::MAX);
        let Some(new) = payload.get(again..).filter(|new| !new.is_empty()) else {
            return;
        };
        self.next = Some(next.wrapping_add(length(new)));
        self.read(new);
    }

    /// Where a record seems to begin.
    fn find(&mut self, sequence: u32, payload: &[u8]) {
        let begins = payload.first_chunk().is_some_and(is_header);
        if !begins {
            self.seen.unfollowed_bytes += u64::from(length(payload));
            return;
        }
        self.next = Some(sequence.wrapping_add(length(payload)));
        self.read(payload);
    }

    fn lose(&mut self) {
        (self.next, self.from_start, self.have, self.left) = (None, false, 0, 0);
    }

    fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let body = self.left.min(bytes.len());
                self.left -= body;
                bytes = &bytes[body..];
                continue;
            }
            let more = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + more].copy_from_slice(&bytes[..more]);
            self.have += more;
            if self.have < HEADER {
                return;
            }
            if !is_header(&self.header) {
                let rest = u64::from(length(bytes));
                match self.from_start {
                    true => self.seen.not_tls_bytes += rest,
                    // It was taken for the beginning of a record by mistake.
                    false => self.seen.unfollowed_bytes += rest,
                }
                return self.lose();
            }
            bytes = &bytes[more..];
            let [kind, _, _, high, low] = self.header;
            match kind {
                HANDSHAKE => self.seen.handshake += 1,
                APPLICATION_DATA => self.seen.application_data += 1,
                ALERT => self.seen.alert += 1,
                _ => {}
            }
            self.have = 0;
            self.left = usize::from(u16::from_be_bytes([high, low]));
        }
    }
}

fn is_header(&[kind, major, minor, high, low]: &[u8; HEADER]) -> bool {
    let length = usize::from(u16::from_be_bytes([high, low]));
    TYPES.contains(&kind)
        && major == 3
        && (1..=3).contains(&minor)
        && (1..=LONGEST).contains(&length)
}

/// Segments are far shorter.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let mut bytes = vec![kind, 3, 3, high, low];
        bytes.resize(HEADER + usize::from(length), 0xaa);
        bytes
    }

    /// Two handshake records and three with data.
    fn conversation() -> Vec<u8> {
        let kinds = [(22, 300), (22, 40), (23, 17), (23, 16_000), (23, 1)];
        kinds
            .iter()
            .flat_map(|&(kind, length)| record(kind, length))
            .collect()
    }

    #[test]
    fn records_are_counted_however_they_are_cut_into_segments() {
        let bytes = conversation();
        for size in [1, 3, 5, 7, 1448, 65_536] {
            // Sequence numbers wrap on the way.
            let mut sequence = u32::MAX - 100;
            let mut stream = Stream::default();
            stream.segment(sequence, true, &[]);
            sequence = sequence.wrapping_add(1);
            for part in bytes.chunks(size) {
                stream.segment(sequence, false, part);
                // Sent once more, in part.
                stream.segment(sequence, false, &part[..part.len() / 2]);
                sequence = sequence.wrapping_add(length(part));
            }
            let expected = Records {
                handshake: 2,
                application_data: 3,
                ..Records::default()
            };
            assert_eq!(stream.seen, expected, "{size}");
        }
    }

    #[test]
    fn plaintext_is_no_tls_and_what_follows_it_neither() {
        let mut stream = Stream::default();
        stream.segment(7, true, &[]);
        stream.segment(8, false, b"GET / HTTP/1.1\r\n");
        assert_eq!(stream.seen.not_tls_bytes, 16);
        // TLS behind a record of it is none either.
        let mut stream = Stream::default();
        stream.segment(7, true, &[]);
        let mut bytes = record(23, 9);
        bytes.extend(b"in the clear");
        stream.segment(8, false, &bytes);
        assert_eq!(
            (stream.seen.application_data, stream.seen.not_tls_bytes),
            (1, 12)
        );
    }

    #[test]
    fn a_connection_that_was_there_is_followed_from_the_next_record() {
        let mut stream = Stream::default();
        stream.segment(1000, false, b"the rest of a record");
        assert_eq!(stream.seen.unfollowed_bytes, 20);
        let next = record(23, 100);
        stream.segment(1020, false, &next);
        stream.segment(1020 + length(&next), false, &next);
        assert_eq!(stream.seen.application_data, 2);
        // After a gap as well.
        stream.segment(5000, false, b"somewhere");
        stream.segment(5009, false, &next);
        let expected = Records {
            application_data: 3,
            unfollowed_bytes: 29,
            ..Records::default()
        };
        assert_eq!(stream.seen, expected);
    }
}
