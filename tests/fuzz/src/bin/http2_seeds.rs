//! Writes the inputs that fuzzing of `http2` begins with: conversations in which both ends behave.

use std::path::Path;
use std::{fs, io};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END: u8 = 1;
const ACK: u8 = 1;
const WHOLE: u8 = 4;
const PADDED: u8 = 8;

/// `:method: CONNECT`, `:authority: a:1` (kept in the table), and the same again.
const CONNECT: &[u8] = b"\x02\x07CONNECT\x41\x03a:1";
const AGAIN: &[u8] = b"\x02\x07CONNECT\xbe";
const OK: &[u8] = b"\x88";

fn main() -> io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/http2");
    fs::create_dir_all(&seeds)?;
    let write = |name: &str, first: u8, steps: &[Vec<u8>]| {
        fs::write(seeds.join(name), [&[first][..], &steps.concat()].concat())
    };
    write(
        "server",
        1,
        &[
            frame(HEADERS, WHOLE, 1, CONNECT),
            frame(HEADERS, WHOLE | END, 3, AGAIN),
            ours(16, 0, &[]),
            frame(DATA, 0, 1, b"hello"),
            frame(DATA, PADDED, 1, b"\x02hello\0\0"),
            ours(20, 0, &[]),
            ours(21, 0, &[0, 10]),
            ours(17, 0, &[0x30, 0]),
            ours(14, 0, &[]),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 4, 0]),
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 4, 0]),
            long_data(END, 1, 10_000),
            ours(19, 0, &[]),
            ours(13, 0, &[0, 50]),
            frame(RESET, 0, 3, &[0, 0, 0, 8]),
            ours(22, 1, &[]),
            ours(22, 0, &[]),
        ],
    )?;
    write(
        "client",
        0,
        &[
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 100]),
            frame(HEADERS, WHOLE, 1, OK),
            ours(23, 0, &[]),
            ours(18, 0, &[0, 99]),
            ours(24, 0, &[1, 0]),
            ours(14, 0, &[]),
            frame(SETTINGS, ACK, 0, &[]),
            frame(DATA, END, 1, b"hello"),
            ours(20, 0, &[]),
            ours(20, 0, &[]),
            ours(25, 0, &[255, 255]),
            frame(PING, 0, 0, b"whatever"),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            ours(28, 0, &[]),
        ],
    )?;
    write(
        "goes",
        1,
        &[
            frame(HEADERS, 0, 1, &CONNECT[..5]),
            frame(CONTINUATION, WHOLE, 1, &CONNECT[5..]),
            ours(27, 0, &[]),
            ours(14, 0, &[]),
            frame(PING, ACK, 0, b"goaway\0\0"),
            frame(HEADERS, WHOLE, 3, AGAIN),
            frame(DATA, END, 3, b"late"),
            ours(16, 0, &[]),
            ours(19, 0, &[]),
            frame(HEADERS, WHOLE | END, 1, b"\x00\x01a\x01b"),
        ],
    )?;
    let preface = [&[11, 24][..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"].concat();
    let settings = [&[12, 9][..], b"\0\0\0\x04\0\0\0\0\0"].concat();
    write("begins", 3, &[preface, settings, ours(26, 0, &[])])
}

fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, flags, stream, content.len() as u8], content].concat()
}

fn long_data(flags: u8, stream: u8, len: u16) -> Vec<u8> {
    [&[10, flags, stream][..], &len.to_be_bytes()].concat()
}

/// A step of this side, in one of its streams.
fn ours(step: u8, which: u8, arguments: &[u8]) -> Vec<u8> {
    [&[which << 5 | step], arguments].concat()
}
