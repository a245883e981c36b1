//! Network sysctls. They follow the network namespace of the calling thread.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Reads a sysctl such as `net.ipv4.tcp_fwmark_accept`; `None` when this namespace does not have it.
///
/// # Errors
/// When it exists and cannot be read.
pub fn read(name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path(name)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(named(&err, "read", name)),
    }
}

/// Sets a sysctl.
///
/// # Errors
/// When it does not exist or `/proc/sys` is read-only here.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value).map_err(|err| named(&err, "set", name))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/{}", name.replace('.', "/")))
}

fn named(err: &io::Error, what: &str, name: &str) -> io::Error {
    io::Error::new(err.kind(), format!("{what} sysctl {name}: {err}"))
}
