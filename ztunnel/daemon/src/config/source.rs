//! Where settings come from, and the list of those that are wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::Path;

use super::settings::{Fallback, Setting};

/// The files that a configuration may name.
pub(crate) trait Files {
    fn read(&self, path: &Path) -> io::Result<String>;
    fn is_file(&self, path: &Path) -> bool;
}

/// The file system of this process.
pub(crate) struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }
}

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrongSetting {
    /// The variable, or the file and key.
    pub(crate) name: String,
    /// What it was, unless it is a secret or was not set.
    pub(crate) value: Option<String>,
    pub(crate) problem: String,
    pub(crate) accepted: String,
}

impl fmt::Display for WrongSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(value) = &self.value {
            write!(f, "={value:?}")?;
        }
        write!(f, ": {}; accepted: {}", self.problem, self.accepted)
    }
}

/// Why the daemon does not start: every setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConfigError {
    pub(crate) wrong: Vec<WrongSetting>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        for wrong in &self.wrong {
            write!(f, "\n  {wrong}")?;
        }
        Ok(())
    }
}

/// Reads settings and collects what is wrong with them, so that one start shows all of it.
///
/// A method that returns `None` has recorded why.
pub(super) struct Reader<'a> {
    env: &'a BTreeMap<String, String>,
    files: &'a dyn Files,
    wrong: Vec<WrongSetting>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, String>, files: &'a dyn Files) -> Self {
        Self {
            env,
            files,
            wrong: Vec::new(),
        }
    }

    pub(super) fn finish<T>(self, config: Option<T>) -> Result<T, ConfigError> {
        match config {
            Some(config) if self.wrong.is_empty() => Ok(config),
            _ => Err(ConfigError { wrong: self.wrong }),
        }
    }

    pub(super) fn files(&self) -> &'a dyn Files {
        self.files
    }

    pub(super) fn is_set(&self, setting: &Setting) -> bool {
        self.env.contains_key(setting.name)
    }

    /// The value that was set, or the default; the default passes the same parser.
    pub(super) fn value<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match (self.env.get(setting.name), setting.default) {
            (Some(text), _) => self.parse(setting, text, parse),
            (None, Fallback::Value(text)) => self.parse(setting, text, |text| {
                parse(text).map_err(|problem| format!("{problem} (this is the default)"))
            }),
            (None, Fallback::Unset | Fallback::Derived(_)) => {
                self.missing(setting, "not set");
                None
            }
        }
    }

    /// As [`Reader::value`], for a setting that may be absent. An empty text is as good as none.
    pub(super) fn optional<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match self.env.get(setting.name).filter(|text| !text.is_empty()) {
            Some(text) => self.parse(setting, text, parse).map(Some),
            None => Some(None),
        }
    }

    fn parse<T>(
        &mut self,
        setting: &Setting,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = if text.contains(char::REPLACEMENT_CHARACTER) {
            Err("not valid UTF-8".to_owned())
        } else {
            parse(text)
        };
        parsed
            .map_err(|problem| self.record(setting, setting.name.to_owned(), text, problem))
            .ok()
    }

    /// Refuses every value but those listed; unset is always fine.
    pub(super) fn only(&mut self, setting: &Setting, allowed: &[&str]) {
        self.optional(setting, |text| {
            let known = allowed.contains(&text);
            known
                .then_some(())
                .ok_or_else(|| "cannot be honored".to_owned())
        });
    }

    /// All variables whose names begin with the name of `family`, without that prefix.
    pub(super) fn family(&self, family: &Setting) -> Vec<(&'a str, &'a str)> {
        let with_prefix = self
            .env
            .range::<str, _>((Bound::Included(family.name), Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(family.name));
        with_prefix
            .map(|(name, value)| (&name[family.name.len()..], value.as_str()))
            .collect()
    }

    /// Records a wrong member of a family.
    pub(super) fn wrong_member(
        &mut self,
        family: &Setting,
        key: &str,
        value: &str,
        problem: String,
    ) {
        self.record(family, format!("{}{key}", family.name), value, problem);
    }

    /// Records that a setting has to be there and is not.
    pub(super) fn missing(&mut self, setting: &Setting, problem: &str) {
        self.wrong.push(WrongSetting {
            name: setting.name.to_owned(),
            value: None,
            problem: problem.to_owned(),
            accepted: setting.accepted.to_owned(),
        });
    }

    /// Records something wrong in a document, which is too long to show.
    pub(super) fn wrong_document(&mut self, name: String, problem: String, accepted: &str) {
        self.wrong.push(WrongSetting {
            name,
            value: None,
            problem,
            accepted: accepted.to_owned(),
        });
    }

    fn record(&mut self, setting: &Setting, name: String, value: &str, problem: String) {
        const SHOWN: usize = 80;
        let value = match value.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value.to_owned(),
        };
        self.wrong.push(WrongSetting {
            name,
            value: (!setting.secret()).then_some(value),
            problem,
            accepted: setting.accepted.to_owned(),
        });
    }
}
