//! DATA, which is handed on as it comes: RFC 9113 section 6.1.

use super::connection::Connection;
use super::error::Violation;
use super::frame::{Head, flag};
use super::receive::{NEXT, State, split};
use super::streams::StreamKey;
use crate::ErrorCode;

/// Frames without data in a row. Nobody needs as many.
const EMPTY_FRAMES: u32 = 1000;

impl Connection {
    pub(super) fn begin_data(&mut self, head: Head) -> Result<(), Violation> {
        if head.has(flag::PADDED) && head.len == 0 {
            return Err(Violation::size("padding without its length"));
        }
        let end = head.has(flag::END_STREAM);
        if !head.has(flag::PADDED) {
            self.count_empty(head.len == 0, end)?;
        }
        if !self.incoming.receive(head.len) {
            return Err(Violation::flow_control(
                "more data than the connection's window allows",
            ));
        }
        let key = self.admit(head)?;
        if key.is_none() {
            self.discard(head.len);
        }
        if head.len == 0 {
            self.end_of_data(key, end);
            return Ok(());
        }
        self.receiving.state = State::Data {
            key,
            left: head.len,
            padding: 0,
            comes_padding: head.has(flag::PADDED),
            end,
        };
        Ok(())
    }

    /// Counts frames that say nothing.
    fn count_empty(&mut self, is_empty: bool, end: bool) -> Result<(), Violation> {
        match is_empty {
            true if !end => self.receiving.empty_frames += 1,
            true => {}
            false => self.receiving.empty_frames = 0,
        }
        if self.receiving.empty_frames > EMPTY_FRAMES {
            return Err(Violation::excess("many DATA frames without data"));
        }
        Ok(())
    }

    /// The stream that data is for, if it is for one.
    fn admit(&mut self, head: Head) -> Result<Option<StreamKey>, Violation> {
        let Some(key) = self.streams.find(head.stream) else {
            if self.is_idle(head.stream) {
                return Err(Violation::protocol("DATA for a stream that was not opened"));
            }
            self.is_closed(head.stream);
            return Ok(None);
        };
        let Some(stream) = self.streams.get_mut(key) else {
            return Ok(None);
        };
        let wrong = if stream.broken.is_some() {
            self.is_closed(head.stream);
            return Ok(None);
        } else if stream.received_end {
            ErrorCode::STREAM_CLOSED
        } else if !stream.heard {
            ErrorCode::PROTOCOL_ERROR
        } else if !stream.incoming.receive(head.len) {
            ErrorCode::FLOW_CONTROL_ERROR
        } else {
            return Ok(Some(key));
        };
        self.fail_stream(key, wrong);
        Ok(None)
    }

    pub(super) fn take_data<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        let State::Data {
            key,
            mut left,
            mut padding,
            mut comes_padding,
            end,
        } = self.receiving.state
        else {
            return Ok(bytes);
        };
        let mut rest = bytes;
        if comes_padding && let Some((length, after)) = bytes.split_first() {
            rest = after;
            comes_padding = false;
            left -= 1;
            padding = u32::from(*length);
            if padding > left {
                return Err(Violation::protocol("more padding than frame"));
            }
            self.count_empty(padding == left, end)?;
            if let Some(key) = key {
                self.release(key, *length as usize + 1);
            }
        }
        let (piece, after) = split(rest, left - padding);
        let still = left - padding - piece.len() as u32;
        if !piece.is_empty()
            && let Some(stream) = key.and_then(|key| self.streams.get_mut(key))
            && stream.broken.is_none()
            && stream.owned
        {
            stream.arrived.push(piece, still as usize);
            stream.wake_receiver();
        }
        left -= piece.len() as u32;
        rest = after;
        if still == 0 {
            let (skipped, after) = split(rest, left);
            left -= skipped.len() as u32;
            padding = left;
            rest = after;
        }
        if left == 0 && !comes_padding {
            self.receiving.state = NEXT;
            self.end_of_data(key, end);
        } else {
            self.receiving.state = State::Data {
                key,
                left,
                padding,
                comes_padding,
                end,
            };
        }
        Ok(rest)
    }

    fn end_of_data(&mut self, key: Option<StreamKey>, end: bool) {
        if let (Some(key), true) = (key, end) {
            self.end_receiving(key);
        }
    }

    /// The peer sends no more in a stream.
    pub(super) fn end_receiving(&mut self, key: StreamKey) {
        self.change(key, |stream| {
            stream.received_end = true;
            stream.wake_receiver();
        });
        self.forget(key);
    }
}
