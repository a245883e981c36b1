//! What is remembered about an enrolled pod while no daemon runs: one small file per pod.
//!
//! It is written before anything is changed in the pod and removed after everything is undone, so whatever a
//! daemon left behind when it died can be found and repaired or removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ztunnel_mesh::name::{PodName, PodUid};

/// Longest uid that is accepted. Kubernetes uids have 36 characters, static pods' 32.
const MAX_UID: usize = 128;

/// How far a pod is. A daemon that dies in between leaves it to the next one to undo or to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Enrolling,
    Captured,
    Leaving,
}

/// One pod's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uid: String,
    pub(super) phase: Phase,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service_account: String,
    pub(super) netns: PathBuf,
    /// The namespace's cookie: whether the path still leads to the same one.
    pub(super) cookie: u64,
    /// The sysctls that were changed, with the values they had.
    pub(super) sysctls: BTreeMap<String, String>,
}

impl Record {
    pub(super) fn uid(&self) -> PodUid {
        PodUid(self.uid.as_str().into())
    }

    pub(super) fn pod(&self) -> PodName {
        PodName {
            namespace: Arc::from(self.namespace.as_str()),
            name: Arc::from(self.name.as_str()),
            service_account: Arc::from(self.service_account.as_str()),
        }
    }
}

/// Whether `uid` can be a file name. It comes from outside.
pub(super) fn is_valid_uid(uid: &str) -> bool {
    (1..=MAX_UID).contains(&uid.len())
        && !uid.starts_with('.')
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A file that should be a record, and what is wrong with it.
pub(super) type Unreadable = (PathBuf, io::Error);

/// The directory of records.
#[derive(Clone, Debug)]
pub(super) struct Records(PathBuf);

impl Records {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self(directory.to_owned()))
    }

    fn path(&self, uid: &PodUid) -> PathBuf {
        self.0.join(format!("{uid}.json"))
    }

    /// Writes or replaces a record as a whole.
    pub(super) fn put(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.uid());
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&new, &path)
    }

    /// Removes a record; none is fine too.
    pub(super) fn remove(&self, uid: &PodUid) -> io::Result<()> {
        match fs::remove_file(self.path(uid)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }

    /// Whether there is neither a record nor a file that should be one.
    pub(super) fn are_none(&self) -> bool {
        self.all()
            .is_ok_and(|(records, unreadable)| records.is_empty() && unreadable.is_empty())
    }

    /// All records, and the files that should be records and cannot be read.
    pub(super) fn all(&self) -> io::Result<(Vec<Record>, Vec<Unreadable>)> {
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {}
                // A daemon died while it wrote it; the record itself is whole, or was not there yet.
                Some("new") => {
                    drop(fs::remove_file(&path));
                    continue;
                }
                _ => continue,
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(err) => unreadable.push((path, err)),
            }
        }
        Ok((records, unreadable))
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    if is_valid_uid(&record.uid) {
        Ok(record)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Whether there still is a file at `path` that should be a record and cannot be read.
pub(super) fn is_unreadable(path: &Path) -> bool {
    read(path).is_err_and(|err| err.kind() != io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_that_could_leave_the_directory_are_invalid() {
        for uid in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0b",
            &"x".repeat(129),
            ".hidden",
        ] {
            assert!(!is_valid_uid(uid), "{uid:?}");
        }
        assert!(is_valid_uid("8a1b1c1d-0000-4000-8000-000000000000"));
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_others() {
        let directory =
            std::env::temp_dir().join(format!("ztunnel-records-{}", std::process::id()));
        let records = Records::open(&directory).unwrap();
        let record = Record {
            uid: "one".into(),
            phase: Phase::Captured,
            namespace: "shop".into(),
            name: "web".into(),
            service_account: "web".into(),
            netns: "/proc/1/ns/net".into(),
            cookie: 7,
            sysctls: BTreeMap::from([("net.ipv4.fwmark_reflect".into(), "0".into())]),
        };
        records.put(&record).unwrap();
        fs::write(directory.join("two.json"), "{").unwrap();
        fs::write(directory.join("three.new"), "{").unwrap();
        let (found, unreadable) = records.all().unwrap();
        assert_eq!(found, std::slice::from_ref(&record));
        assert_eq!(unreadable.len(), 1);
        let damaged = directory.join("two.json");
        assert!(is_unreadable(&damaged));
        records
            .put(&Record {
                uid: "two".into(),
                ..record
            })
            .unwrap();
        assert!(!is_unreadable(&damaged));
        assert!(!is_unreadable(&directory.join("none.json")));
        assert!(!directory.join("three.new").exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
