//! The transport: bytes that were written and not read.

use std::io::IoSlice;

/// The longest read.
const RECORD: usize = 16 * 1024;

/// One direction.
#[derive(Default)]
pub(crate) struct Wire {
    bytes: Vec<u8>,
    read: usize,
}

impl Wire {
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let before = self.bytes.len();
        for slice in slices {
            self.bytes.extend_from_slice(slice);
        }
        self.bytes.len() - before
    }

    pub(crate) fn read(&mut self, most: usize, take: impl FnOnce(&[u8])) -> usize {
        let unread = &self.bytes[self.read..];
        let taken = unread.len().min(most).min(RECORD);
        take(&unread[..taken]);
        self.read += taken;
        if self.read == self.bytes.len() {
            self.bytes.clear();
            self.read = 0;
        }
        taken
    }
}
