//! Heads of requests and responses: fields, and what is wrong with those that nobody may send (RFC 9113 section 8).

use crate::hpack::Indexing;

/// What RFC 9113 section 6.5.2 counts for each field besides its text.
const OVERHEAD: usize = 32;

/// One field of a head to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub(crate) name: &'static str,
    pub(crate) value: &'a [u8],
    pub(crate) indexing: Indexing,
}

impl<'a> Field<'a> {
    /// One that comes again and again on a connection.
    #[must_use]
    pub const fn usual(name: &'static str, value: &'a [u8]) -> Self {
        Self {
            name,
            value,
            indexing: Indexing::Index,
        }
    }

    /// One whose value is another one each time.
    #[must_use]
    pub const fn unique(name: &'static str, value: &'a [u8]) -> Self {
        Self {
            name,
            value,
            indexing: Indexing::Once,
        }
    }
}

/// The fields of a head that came, in their order.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    text: Vec<u8>,
    /// Where each name ends, and where its value does.
    ends: Vec<(u32, u32)>,
}

impl Fields {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut begin = 0;
        self.ends.iter().filter_map(move |&(name, value)| {
            let (name, value) = (name as usize, value as usize);
            let field = (self.text.get(begin..name)?, self.text.get(name..value)?);
            begin = value;
            Some(field)
        })
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let of_name = move |&(one, _): &(&[u8], &[u8])| one == name.as_bytes();
        self.iter().filter(of_name).map(|(_, value)| value)
    }

    /// The first value of a name.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.iter();
        fields.find_map(|(one, value)| (one == name.as_bytes()).then_some(value))
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        // One allocation each for the heads that are usual.
        if self.ends.is_empty() {
            self.text.reserve(512);
            self.ends.reserve(8);
        }
        self.text.extend_from_slice(name);
        let end = self.text.len() as u32;
        self.text.extend_from_slice(value);
        self.ends.push((end, self.text.len() as u32));
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Fields {
    fn from_iter<T: IntoIterator<Item = (&'a str, &'a str)>>(fields: T) -> Self {
        let mut collected = Self::default();
        for (name, value) in fields {
            collected.push(name.as_bytes(), value.as_bytes());
        }
        collected
    }
}

/// What a head is, and so which pseudo-header fields it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Request,
    Response,
    Trailers,
}

/// Why a head is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHead {
    /// Section 8.1.1: a stream error.
    Malformed,
    TooLarge,
}

/// Takes a head field by field.
pub(crate) struct Reader {
    role: Role,
    fields: Fields,
    /// What may still come.
    left: usize,
    /// Which pseudo-header fields there were: a bit each.
    pseudo: u8,
    regular: bool,
    bad: Option<BadHead>,
}

const REQUEST: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];
const METHOD: u8 = 1;
const SCHEME: u8 = 1 << 1;
const PATH: u8 = 1 << 3;
const RESPONSE: [&[u8]; 1] = [b":status"];
const STATUS: u8 = 1;

impl Reader {
    /// `max` is the largest header list.
    pub(crate) fn new(role: Role, max: u32) -> Self {
        Self {
            role,
            fields: Fields::default(),
            left: max as usize,
            pseudo: 0,
            regular: false,
            bad: None,
        }
    }

    pub(crate) fn field(&mut self, name: &[u8], value: &[u8]) {
        if self.bad.is_some() {
            return;
        }
        let size = name.len() + value.len() + OVERHEAD;
        match self.left.checked_sub(size) {
            Some(left) => self.left = left,
            None => return self.fail(BadHead::TooLarge),
        }
        let is_good = match name.first() {
            Some(b':') => self.is_due(name) && !value.is_empty(),
            _ => {
                self.regular = true;
                is_name(name) && !is_of_the_connection(name, value)
            }
        };
        if !is_good || !is_value(value) {
            return self.fail(BadHead::Malformed);
        }
        self.fields.push(name, value);
    }

    /// The whole head.
    pub(crate) fn end(self) -> Result<Fields, BadHead> {
        if let Some(bad) = self.bad {
            return Err(bad);
        }
        let has = |bits| self.pseudo & bits == bits;
        let is_complete = match self.role {
            // What else a CONNECT must not have is for whoever answers it to say.
            Role::Request => {
                has(METHOD)
                    && (has(SCHEME | PATH) || self.fields.first(":method") == Some(b"CONNECT"))
            }
            Role::Response => {
                let status = self.fields.first(":status");
                has(STATUS) && status.is_some_and(is_status)
            }
            Role::Trailers => true,
        };
        match is_complete {
            true => Ok(self.fields),
            false => Err(BadHead::Malformed),
        }
    }

    fn fail(&mut self, bad: BadHead) {
        self.bad = Some(bad);
        self.fields = Fields::default();
    }

    /// Whether a pseudo-header field may stand here: before the others, once, and only those there are.
    fn is_due(&mut self, name: &[u8]) -> bool {
        let known: &[&[u8]] = match self.role {
            Role::Request => &REQUEST,
            Role::Response => &RESPONSE,
            Role::Trailers => &[],
        };
        let Some(place) = known.iter().position(|one| *one == name) else {
            return false;
        };
        let bit = 1 << place;
        let is_due = !self.regular && self.pseudo & bit == 0;
        self.pseudo |= bit;
        is_due
    }
}

/// Section 8.2.1.
fn is_name(name: &[u8]) -> bool {
    let is_good = |byte: &u8| matches!(byte, 0x21..=0x7e) && !byte.is_ascii_uppercase();
    !name.is_empty() && name.iter().all(|byte| is_good(byte) && *byte != b':')
}

/// Section 8.2.1.
fn is_value(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_good = |byte: &u8| !matches!(byte, 0 | b'\r' | b'\n');
    value.iter().all(is_good) && !is_space(value.first()) && !is_space(value.last())
}

/// Section 8.2.2.
fn is_of_the_connection(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            true
        }
        b"te" => value != b"trailers",
        _ => false,
    }
}

fn is_status(status: &[u8]) -> bool {
    status.len() == 3 && status.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(role: Role, fields: &[(&str, &str)]) -> Result<Fields, BadHead> {
        let mut reader = Reader::new(role, 200);
        for (name, value) in fields {
            reader.field(name.as_bytes(), value.as_bytes());
        }
        reader.end()
    }

    const CONNECT: (&str, &str) = (":method", "CONNECT");

    #[test]
    fn a_good_head_is_read_as_it_stands() {
        let fields = [
            CONNECT,
            (":authority", "a:1"),
            ("b", "1"),
            ("c", ""),
            ("b", "2"),
        ];
        let read = read(Role::Request, &fields).unwrap();
        let (all, expected): (Vec<_>, Vec<_>) = (read.iter().collect(), fields.to_vec());
        let expected: Vec<_> = (expected.iter())
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        assert_eq!(all, expected);
        assert_eq!(read.first("b"), Some(&b"1"[..]));
        assert_eq!(read.all("b").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(read.first("d"), None);
    }

    #[test]
    fn malformed_heads_are_told_from_good_ones() {
        let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        for (role, fields, is_good) in [
            (Role::Request, &[CONNECT][..], true),
            (Role::Request, &get[..], true),
            (Role::Request, &get[..2], false),
            (Role::Request, &[get[0], get[1], (":path", "")], false),
            (Role::Request, &[(":authority", "a:1")], false),
            (Role::Request, &[CONNECT, CONNECT], false),
            (Role::Request, &[("a", "b"), CONNECT], false),
            (Role::Request, &[CONNECT, (":protocol", "x")], false),
            (Role::Request, &[CONNECT, (":status", "200")], false),
            (Role::Request, &[CONNECT, ("A", "b")], false),
            (Role::Request, &[CONNECT, ("a b", "b")], false),
            (Role::Request, &[CONNECT, ("a:b", "b")], false),
            (Role::Request, &[CONNECT, ("", "b")], false),
            (Role::Request, &[CONNECT, ("a", "b\n")], false),
            (Role::Request, &[CONNECT, ("a", " b")], false),
            (Role::Request, &[CONNECT, ("a", "b\t")], false),
            (Role::Request, &[CONNECT, ("a", "b\0c")], false),
            (Role::Request, &[CONNECT, ("a", "\u{e4} b")], true),
            (Role::Request, &[CONNECT, ("connection", "close")], false),
            (Role::Request, &[CONNECT, ("upgrade", "x")], false),
            (Role::Request, &[CONNECT, ("te", "gzip")], false),
            (Role::Request, &[CONNECT, ("te", "trailers")], true),
            (Role::Response, &[(":status", "200")], true),
            (Role::Response, &[(":status", "2000")], false),
            (Role::Response, &[(":status", "2x0")], false),
            (Role::Response, &[("a", "b")], false),
            (Role::Response, &[(":method", "GET")], false),
            (Role::Trailers, &[("a", "b")], true),
            (Role::Trailers, &[(":status", "200")], false),
        ] {
            let expected = if is_good {
                None
            } else {
                Some(BadHead::Malformed)
            };
            assert_eq!(read(role, fields).err(), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_head_that_is_too_large_is_not_kept() {
        let long = "x".repeat(200 - 32 - 8 - 6 - 32);
        let fits = read(Role::Request, &[CONNECT, ("", "")]);
        assert_eq!(fits.err(), Some(BadHead::Malformed));
        let head = [(":method", "GET"), ("a", long.as_str())];
        assert_eq!(read(Role::Trailers, &head[1..]).err(), None);
        let more = [("a", long.as_str()), ("b", long.as_str())];
        assert_eq!(read(Role::Trailers, &more).err(), Some(BadHead::TooLarge));
    }
}
