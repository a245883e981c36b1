//! The tables that an index points into (RFC 7541 2.3): the static one, and the dynamic one of one direction.
//!
//! Invariants: the entries of a dynamic table, each with 32 bytes added to it (4.1), are never larger than its
//! maximum, and neither is the buffer that holds their bytes. Nothing is allocated before the first insertion.

use std::collections::VecDeque;

/// The size of a dynamic table before anybody says otherwise (`SETTINGS_HEADER_TABLE_SIZE`, RFC 9113 6.5.2).
pub(super) const INITIAL_SIZE: usize = 4096;
/// What an entry counts in addition to its bytes.
const OVERHEAD: usize = 32;
/// The smallest buffer, so that the first few entries do not each move it.
const SMALLEST_BUFFER: usize = 256;

/// The newest entry comes last, but has the lowest index.
#[derive(Debug)]
pub(super) struct Table {
    /// The entries one after the other, oldest first. What was evicted stays at the front until the room is needed:
    /// moving the rest for each would cost more than all else here.
    bytes: Vec<u8>,
    spans: VecDeque<Span>,
    size: usize,
    max: usize,
}

/// Where an entry is in `bytes`: its name, and right behind it its value.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    name: u32,
    value: u32,
}

/// What an encoder can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Field(usize),
    Name(usize),
}

impl Table {
    pub(super) const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            spans: VecDeque::new(),
            size: 0,
            max: INITIAL_SIZE,
        }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Name and value of an index of either table. The first index is 1.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let place = self.spans.len().checked_sub(index - STATIC.len() + 1)?;
        Some(self.entry(*self.spans.get(place)?))
    }

    /// The index of a field in the dynamic table, or of its name if that is all there is and `or_name` asks for it.
    pub(super) fn find(&self, name: &[u8], value: &[u8], or_name: bool) -> Option<Found> {
        let mut same_name = None;
        // By lengths first: they are next to each other. Then by what differs most.
        for (age, span) in self.spans.iter().rev().enumerate() {
            if span.name as usize != name.len() {
                continue;
            }
            let index = STATIC.len() + 1 + age;
            let (its_name, its_value) = self.entry(*span);
            if its_value == value && its_name == name {
                return Some(Found::Field(index));
            }
            if or_name && same_name.is_none() && its_name == name {
                same_name = Some(Found::Name(index));
            }
        }
        same_name
    }

    /// Whether an insertion would leave the entry in the table.
    pub(super) fn fits(&self, name: &[u8], value: &[u8]) -> bool {
        name.len() + value.len() + OVERHEAD <= self.max
    }

    /// Makes an entry the newest one, and evicts the oldest ones for it. One that is larger than the table empties it,
    /// which is not an error (RFC 7541 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        if !self.fits(name, value) {
            self.shrink_to(0);
            return;
        }
        let length = name.len() + value.len();
        self.shrink_to(self.max - length - OVERHEAD);
        self.make_room(length);
        self.spans.push_back(Span {
            start: self.bytes.len() as u32,
            name: name.len() as u32,
            value: value.len() as u32,
        });
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += length + OVERHEAD;
    }

    /// Changes how large the table may be, and evicts what is too much.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.shrink_to(max);
        if max == 0 {
            self.bytes = Vec::new();
            self.spans = VecDeque::new();
        }
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size
            && let Some(span) = self.spans.pop_front()
        {
            self.size -= (span.name + span.value) as usize + OVERHEAD;
        }
        if self.spans.is_empty() {
            self.bytes.clear();
        }
    }

    /// Moves the entries to the front of the buffer when it is used up. What counts for an entry in addition is room
    /// for others here, so this does not happen at each insertion.
    fn make_room(&mut self, length: usize) {
        let dead = self.spans.front().map_or(0, |span| span.start);
        if self.bytes.len() + length > self.max {
            self.bytes.drain(..dead as usize);
            for span in &mut self.spans {
                span.start -= dead;
            }
        }
        let needed = self.bytes.len() + length;
        let capacity = self.bytes.capacity();
        if needed > capacity {
            // As a `Vec` grows, but not beyond what the table can take.
            let larger = (2 * capacity).max(SMALLEST_BUFFER).min(self.max);
            self.bytes
                .reserve_exact(larger.max(needed) - self.bytes.len());
        }
    }

    fn entry(&self, span: Span) -> (&[u8], &[u8]) {
        let start = span.start as usize;
        self.bytes[start..start + (span.name + span.value) as usize].split_at(span.name as usize)
    }
}

/// The index of a field in the static table, or of its name if that is all there is.
pub(super) fn find_static(name: &[u8], value: &[u8]) -> Option<Found> {
    let first = static_name(name)?;
    // Only these come with values.
    let count = match first {
        2 | 4 | 6 => 2,
        8 => 7,
        16 => 1,
        _ => 0,
    };
    let same = |index: &usize| STATIC[index - 1].1.as_bytes() == value;
    let field = (first..first + count).find(same).map(Found::Field);
    Some(field.unwrap_or(Found::Name(first)))
}

/// The first index of a name in the static table.
fn static_name(name: &[u8]) -> Option<usize> {
    Some(match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => return None,
    })
}

/// RFC 7541 appendix A; the first one has the index 1.
static STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    impl Table {
        pub(in super::super) fn size(&self) -> usize {
            self.size
        }

        /// As RFC 7541 prints it: newest first.
        pub(in super::super) fn entries(&self) -> Vec<(&[u8], &[u8])> {
            let spans = self.spans.iter().rev();
            spans.map(|span| self.entry(*span)).collect()
        }

        pub(in super::super) fn allocated(&self) -> (usize, usize) {
            (self.bytes.capacity(), self.spans.capacity())
        }
    }

    #[test]
    fn every_static_field_is_found() {
        for (place, (name, value)) in STATIC.iter().enumerate() {
            let first = STATIC.iter().position(|entry| entry.0 == *name);
            let first = first.map(|place| place + 1);
            assert_eq!(static_name(name.as_bytes()), first);
            let found = find_static(name.as_bytes(), value.as_bytes());
            if value.is_empty() {
                assert_eq!(found, first.map(Found::Name));
            } else {
                assert_eq!(found, Some(Found::Field(place + 1)));
            }
            let other = find_static(name.as_bytes(), b"other");
            assert_eq!(other, first.map(Found::Name));
        }
        assert_eq!(find_static(b"baggage", b""), None);
    }

    #[test]
    fn nothing_is_allocated_until_used_and_no_more_than_its_size() {
        let mut table = Table::new();
        assert_eq!(table.allocated(), (0, 0));
        for length in (0..3000).chain(0..3000) {
            table.insert(b"name", &vec![b'x'; length % 300]);
            assert!(table.bytes.capacity() <= INITIAL_SIZE);
        }
        table.insert(b"", &[b'x'; INITIAL_SIZE - OVERHEAD]);
        assert_eq!(table.size(), INITIAL_SIZE);
        assert_eq!(table.bytes.capacity(), INITIAL_SIZE);
        table.set_max(0);
        assert_eq!(table.allocated(), (0, 0));
    }
}
