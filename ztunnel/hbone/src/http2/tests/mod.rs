//! The connection as its peer sees it: what it answers to which frames, and what becomes of two that talk to each other.

mod floods;
mod flow_control;
mod frames;
mod going_away;
mod heads;
mod interop;
mod link;
mod peer;
mod preface_and_settings;
mod random;
mod streams;
mod world;

use super::*;

/// Small, so that limits are near.
fn settings() -> Settings {
    Settings {
        stream_window: 65_535,
        window: 65_535,
        max_frame: 16_384,
        max_header_list: 16_384,
        max_streams: 3,
        send_buffer: 65_535,
        early_data: false,
    }
}
