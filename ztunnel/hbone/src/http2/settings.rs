//! SETTINGS: RFC 9113 section 6.5.

use super::error::Violation;
use super::{frame, window};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// Our own, from the range for experiments (<https://www.iana.org/assignments/http2-parameters>): a server that has it takes
/// data that comes with a CONNECT, before its answer. Who does not know it passes it over.
const EARLY_DATA: u16 = 0xfed0;

/// What a side says about itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How much may be sent in one stream before the app takes it.
    pub stream_window: u32,
    /// The same in all streams together. Not a setting of the protocol, but told right after them.
    pub window: u32,
    /// The largest frame that may be sent to this side.
    pub max_frame: u32,
    /// The largest header list.
    pub max_header_list: u32,
    /// A server: how many streams it lets there be. A client: how many it opens until the server says.
    pub max_streams: u32,
    /// How much of one stream may wait to be sent.
    pub send_buffer: u32,
    /// A server: whether data may come with a CONNECT, before its answer. It holds that until then, and has done nothing with
    /// it if the answer is no.
    pub early_data: bool,
}

impl Settings {
    /// Brings what the protocol does not allow into its ranges.
    pub(crate) fn fit(mut self) -> Self {
        self.stream_window = self.stream_window.min(window::LARGEST);
        self.window = self.window.clamp(window::INITIAL, window::LARGEST);
        let (least, most) = (frame::SMALLEST_MAX_FRAME, frame::LARGEST_MAX_FRAME);
        self.max_frame = self.max_frame.clamp(least, most);
        self
    }

    /// As the first frame of a side.
    pub(crate) fn put(&self, out: &mut Vec<u8>, is_client: bool) {
        let streams = match is_client {
            true => (ENABLE_PUSH, 0),
            false => (MAX_CONCURRENT_STREAMS, self.max_streams),
        };
        let all = [
            streams,
            (INITIAL_WINDOW_SIZE, self.stream_window),
            (MAX_FRAME_SIZE, self.max_frame),
            (MAX_HEADER_LIST_SIZE, self.max_header_list),
            (EARLY_DATA, 1),
        ];
        let told = if self.early_data && !is_client { 5 } else { 4 };
        put(out, &all[..told]);
    }
}

/// A smaller or larger window for each stream.
pub(crate) fn put_stream_window(out: &mut Vec<u8>, window: u32) {
    put(out, &[(INITIAL_WINDOW_SIZE, window)]);
}

fn put(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut content = [0; 6 * 6];
    let mut len = 0;
    for ((name, value), room) in settings.iter().zip(content.chunks_exact_mut(6)) {
        room[..2].copy_from_slice(&name.to_be_bytes());
        room[2..].copy_from_slice(&value.to_be_bytes());
        len += 6;
    }
    frame::put(out, frame::Kind::Settings, 0, 0, &content[..len]);
}

/// What the peer has said so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// It has said something.
    pub(crate) told: bool,
    pub(crate) stream_window: u32,
    pub(crate) max_frame: u32,
    pub(crate) max_streams: u32,
    pub(crate) header_table: u32,
    pub(crate) early_data: bool,
    /// The smallest that it was in the last frame: RFC 7541 section 4.2.
    pub(crate) smallest_table: u32,
}

impl Peer {
    pub(crate) fn new(max_streams: u32) -> Self {
        Self {
            told: false,
            stream_window: window::INITIAL,
            max_frame: frame::SMALLEST_MAX_FRAME,
            max_streams,
            header_table: 4096,
            early_data: false,
            smallest_table: 4096,
        }
    }

    /// Takes note of the content of a frame.
    pub(crate) fn hear(&mut self, content: &[u8]) -> Result<(), Violation> {
        let (settings, []) = content.as_chunks::<6>() else {
            return Err(Violation::size("SETTINGS of an odd length"));
        };
        self.told = true;
        self.smallest_table = self.header_table;
        for &[a, b, value @ ..] in settings {
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                HEADER_TABLE_SIZE => {
                    self.header_table = value;
                    self.smallest_table = self.smallest_table.min(value);
                }
                ENABLE_PUSH if value > 1 => {
                    return Err(Violation::protocol("ENABLE_PUSH is neither 0 nor 1"));
                }
                MAX_CONCURRENT_STREAMS => self.max_streams = value,
                INITIAL_WINDOW_SIZE if value > window::LARGEST => {
                    return Err(Violation::flow_control("INITIAL_WINDOW_SIZE is too large"));
                }
                INITIAL_WINDOW_SIZE => self.stream_window = value,
                MAX_FRAME_SIZE => match value {
                    frame::SMALLEST_MAX_FRAME..=frame::LARGEST_MAX_FRAME => self.max_frame = value,
                    _ => return Err(Violation::protocol("MAX_FRAME_SIZE is out of its range")),
                },
                EARLY_DATA => self.early_data = value == 1,
                // How large a header list may be is only advice, and ours are small.
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    fn heard(settings: &[(u16, u32)]) -> Result<Peer, Violation> {
        let mut frame = Vec::new();
        put(&mut frame, settings);
        let mut peer = Peer::new(7);
        peer.hear(&frame[frame::HEAD..])?;
        Ok(peer)
    }

    #[test]
    fn the_last_word_counts_and_what_is_not_known_does_not() {
        let peer = heard(&[(4, 1), (0xfe, 9), (4, 2), (5, 16_384), (3, 0), (1, 0)]).unwrap();
        assert_eq!((peer.stream_window, peer.max_frame), (2, 16_384));
        assert_eq!((peer.max_streams, peer.header_table), (0, 0));
        assert_eq!(heard(&[]).unwrap().max_streams, 7);
    }

    #[test]
    fn only_a_server_that_takes_early_data_says_so() {
        let settings = |early_data| Settings {
            stream_window: 1,
            window: 1,
            max_frame: frame::SMALLEST_MAX_FRAME,
            max_header_list: 1,
            max_streams: 1,
            send_buffer: 1,
            early_data,
        };
        for (early_data, is_client, expected) in [
            (true, false, true),
            (false, false, false),
            (true, true, false),
        ] {
            let mut frame = Vec::new();
            settings(early_data).put(&mut frame, is_client);
            let mut peer = Peer::new(1);
            peer.hear(&frame[frame::HEAD..]).unwrap();
            assert_eq!(peer.early_data, expected);
        }
    }

    #[test]
    fn what_is_out_of_range_is_an_error_with_its_code() {
        for (setting, code) in [
            ((2, 2), ErrorCode::PROTOCOL_ERROR),
            ((4, 1 << 31), ErrorCode::FLOW_CONTROL_ERROR),
            ((5, 16_383), ErrorCode::PROTOCOL_ERROR),
            ((5, 1 << 24), ErrorCode::PROTOCOL_ERROR),
        ] {
            assert_eq!(heard(&[setting]).unwrap_err().code, code, "{setting:?}");
        }
        let odd = Peer::new(1).hear(&[0; 7]);
        assert_eq!(odd.unwrap_err().code, ErrorCode::FRAME_SIZE_ERROR);
    }
}
