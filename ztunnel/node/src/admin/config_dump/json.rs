//! JSON that is made while it is sent: one object of sections, each with any number of members, indented by two spaces.

use std::io;

use bytes::Bytes;
use serde::Serialize;

/// How much is made at once, and as much as the last member takes.
const PIECE: usize = 32 * 1024;
/// Of a member in its section.
const INDENT: &str = "    ";

/// Members of a section, one by one.
pub(super) type Members = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// A field of the whole object.
pub(super) enum Section {
    Array(&'static str, Members),
    /// Its members bring their names.
    Object(&'static str, Members),
    Value(&'static str, serde_json::Value),
}

/// The whole, piece by piece.
pub(super) struct Pieces<S> {
    sections: S,
    /// Of the section that is being made, and what ends it.
    open: Option<(Members, &'static str)>,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    FirstMember,
    Further,
    End,
}

impl<S: Iterator<Item = Section>> Pieces<S> {
    /// The sections have to be in the order of their names.
    pub(super) fn new(sections: S) -> Self {
        Self {
            sections,
            open: None,
            at: At::Start,
        }
    }

    /// Adds what comes next; false when that was all.
    fn more(&mut self, text: &mut Vec<u8>) -> bool {
        if let Some((members, end)) = &mut self.open {
            match members.next() {
                Some(member) => {
                    let between: &[u8] = match self.at {
                        At::FirstMember => b"\n",
                        _ => b",\n",
                    };
                    text.extend_from_slice(between);
                    text.extend_from_slice(INDENT.as_bytes());
                    text.extend_from_slice(&member);
                    self.at = At::Further;
                }
                None => {
                    if self.at == At::Further {
                        text.extend_from_slice(b"\n  ");
                    }
                    text.extend_from_slice(end.as_bytes());
                    self.open = None;
                    self.at = At::Further;
                }
            }
            return true;
        }
        let between: &[u8] = match self.at {
            At::Start => b"{\n  ",
            _ => b",\n  ",
        };
        let Some(section) = self.sections.next() else {
            text.extend_from_slice(b"\n}");
            self.at = At::End;
            return false;
        };
        text.extend_from_slice(between);
        let (name, begin) = match &section {
            Section::Array(name, _) => (name, "["),
            Section::Object(name, _) => (name, "{"),
            Section::Value(name, _) => (name, ""),
        };
        text.extend_from_slice(format!("\"{name}\": {begin}").as_bytes());
        self.at = At::FirstMember;
        match section {
            Section::Array(_, members) => self.open = Some((members, "]")),
            Section::Object(_, members) => self.open = Some((members, "}")),
            Section::Value(_, value) => {
                write(text, "  ", &value);
                self.at = At::Further;
            }
        }
        true
    }
}

impl<S: Iterator<Item = Section>> Iterator for Pieces<S> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.at == At::End {
            return None;
        }
        let mut text = Vec::with_capacity(PIECE + PIECE / 4);
        while self.more(&mut text) && text.len() < PIECE {}
        Some(text.into())
    }
}

/// A member of an array.
pub(super) fn element(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    write(&mut text, INDENT, value);
    text
}

/// A member of an object.
pub(super) fn field(name: &str, value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    write(&mut text, INDENT, &name);
    text.extend_from_slice(b": ");
    write(&mut text, INDENT, value);
    text
}

fn write(text: &mut Vec<u8>, indent: &str, value: &impl Serialize) {
    let before = text.len();
    let lines = Indented { text, indent };
    // What is shown has only names for keys, so this cannot fail.
    if serde_json::to_writer_pretty(lines, value).is_err() {
        text.truncate(before);
        text.extend_from_slice(b"null");
    }
}

/// Moves lines to the right. No line ends inside of a string: JSON writes that as `\n`.
struct Indented<'a> {
    text: &'a mut Vec<u8>,
    indent: &'a str,
}

impl io::Write for Indented<'_> {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        for (number, line) in more.split(|&byte| byte == b'\n').enumerate() {
            if number > 0 {
                self.text.push(b'\n');
                self.text.extend_from_slice(self.indent.as_bytes());
            }
            self.text.extend_from_slice(line);
        }
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
