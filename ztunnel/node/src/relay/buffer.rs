//! Buffers for what is read from TCP: one per thread, taken only when there is something to read, and given back when
//! the thread rests.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;
use ztunnel_sys::socket;

use crate::task::note_use;

/// The most that is read at once. With the 9 bytes of a frame's head it fills four TLS records exactly.
pub(super) const LARGEST_READ: usize = 4 * 16_384 - 9;

/// Up to here a copy is cheaper than having a few bytes keep a whole buffer alive.
const COPIED: usize = 4096;

/// A buffer with less room than this is replaced before the next read.
const WORTH_READING_INTO: usize = 16 * 1024;

thread_local! {
    static BUFFER: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// Reads what is there, at most `limit` bytes. Empty is the end of the stream.
pub(super) fn poll_read(
    from: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    limit: usize,
) -> Poll<io::Result<Bytes>> {
    let mut buffer = BUFFER
        .take()
        .filter(|buffer| buffer.capacity() >= WORTH_READING_INTO)
        .unwrap_or_else(|| BytesMut::with_capacity(LARGEST_READ));
    let read = poll_read_buf(from, cx, &mut (&mut buffer).limit(limit));
    let bytes = read.map_ok(|read| match read {
        0 => Bytes::new(),
        1..=COPIED => {
            let bytes = Bytes::copy_from_slice(&buffer);
            buffer.clear();
            bytes
        }
        _ => buffer.split().freeze(),
    });
    BUFFER.set(Some(buffer));
    note_use();
    bytes
}

/// The most that is read of an app that was not waited for.
pub(crate) const MOST_NOW: usize = 8 * 1024;

/// Reads what an app has said by now, without waiting for more or being told that there is something. Nothing may also
/// be its end, or that it broke: who reads next finds out.
pub(crate) fn read_now(app: &TcpStream) -> Bytes {
    let mut bytes = [0; MOST_NOW];
    let read = socket::receive_now(app.as_fd(), &mut bytes).unwrap_or(0);
    Bytes::copy_from_slice(&bytes[..read])
}

/// Lets go of what this thread keeps.
pub(crate) fn give_back() {
    BUFFER.set(None);
}
