//! Reading from sockets with a time limit: the kernel ends such a read for any signal, even one that nobody handles.

use std::io::{self, ErrorKind, Read};

/// Reads once, and once more after a signal.
pub(crate) fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
