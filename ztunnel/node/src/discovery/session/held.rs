//! The names and versions of what we hold of one type, to be reported at the start of a stream.
//!
//! There may be a hundred thousand: names are shared with the mesh, and versions, which are hashes in hexadecimal,
//! are kept as numbers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::super::table::Table;
use crate::task::breath;

/// Resource name to version.
#[derive(Debug, Default)]
pub(super) struct Held(Table<Arc<str>, Version>);

#[derive(Debug)]
enum Version {
    /// Hexadecimal without leading zeros.
    Hash(u64),
    /// Hexadecimal in sixteen digits, some of them leading zeros.
    PaddedHash(u64),
    Other(Box<str>),
}

impl Held {
    pub(super) fn insert(&mut self, name: Arc<str>, version: &str) {
        self.0.insert(name, Version::new(version));
    }

    /// Says whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name)
    }

    /// All names, each after a breath if it is time for one.
    pub(super) fn names(&self) -> HashSet<Arc<str>> {
        let mut names = HashSet::with_capacity(self.0.len());
        for (name, _) in self.0.iter() {
            names.insert(Arc::clone(name));
            breath::step();
        }
        names
    }

    /// As the wire wants it.
    pub(super) fn versions(&self) -> HashMap<String, String> {
        let mut versions = HashMap::with_capacity(self.0.len());
        for (name, version) in self.0.iter() {
            versions.insert(name.to_string(), version.text());
            breath::step();
        }
        versions
    }
}

impl Version {
    fn new(text: &str) -> Self {
        let number = u64::from_str_radix(text, 16).unwrap_or_default();
        // What does not come back as it was is something else.
        [Self::Hash(number), Self::PaddedHash(number)]
            .into_iter()
            .find(|version| version.text() == text)
            .unwrap_or_else(|| Self::Other(text.into()))
    }

    fn text(&self) -> String {
        match self {
            Self::Hash(number) => format!("{number:x}"),
            Self::PaddedHash(number) => format!("{number:016x}"),
            Self::Other(text) => text.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_back_as_they_were() {
        let mut held = Held::default();
        for version in [
            "",
            "0",
            "00",
            "5",
            "+5",
            "0123456789abcdef",
            "123456789abcdef",
            "0123456789ABCDEF",
            "ffffffffffffffff",
            "fffffffffffffffff",
            "2026-01-01/7",
        ] {
            held.insert("name".into(), version);
            assert_eq!(held.versions()["name"], version);
        }
        assert!(matches!(
            Version::new("0123456789abcdef"),
            Version::PaddedHash(_)
        ));
        assert!(matches!(Version::new("f123456789abcdef"), Version::Hash(_)));
        held.remove("name");
        assert_eq!(held.names().len(), 0);
    }
}
