//! Sizes, limits and deadlines of tunnels.

use std::time::Duration;

use ztunnel_hbone::http2::Settings;

use crate::task::Budget;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// How tunnels behave. The defaults are those that peers expect; all but the sizes are invisible to them.
#[derive(Clone, Debug)]
pub struct TunnelSettings {
    /// How much a peer may send on one stream before the app takes it.
    pub stream_window: u32,
    /// The same for all streams of a busy tunnel together, not counting what apps are slow to take. That may be three
    /// times as much, and with it the window of each stream gets smaller: see `flow`.
    pub connection_window: u32,
    /// What all tunnels with these settings may be sent together before apps take it. Each has 1 MiB of it in any case.
    pub memory: Budget,
    /// Largest frame a peer may send. What comes of one is handed on at once; ours carry up to 64 KiB.
    pub frame_size: u32,
    /// How much of one stream may wait to be written to the tunnel's socket. It only has to bridge the moments
    /// between two writes: distance is bridged by the socket's own buffer.
    pub send_buffer: usize,
    /// Streams in one outgoing tunnel, before another one is made.
    pub max_streams: usize,
    /// Streams that one incoming tunnel is allowed.
    pub served_streams: u32,
    /// Tunnels of one pool to one peer that take new streams. There is more than one only when those that are there have
    /// no room for a new stream's bytes.
    pub tunnels_per_peer: usize,
    /// Outgoing tunnels of one pool, and peers that are remembered as dead.
    pub max_tunnels: usize,
    /// How long an outgoing tunnel without streams is kept.
    pub idle_release: Duration,
    /// Limit of a TCP connect: to a peer, to an app, to a destination outside the mesh.
    pub connect_timeout: Duration,
    /// Limit of a TLS handshake, and again of the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Limit of the wait for the answer to a CONNECT. The peer itself may take `connect_timeout` to reach its app.
    pub answer_timeout: Duration,
    /// Rest between a PONG and the next PING.
    pub ping_interval: Duration,
    /// How long a PONG may take.
    pub ping_timeout: Duration,
    /// A CONNECT that is not answered for so long is a reason for a PING at once: a slow app or a dead peer?
    pub ask_after: Duration,
    /// A tunnel whose PONG takes longer gets no new streams, and no CONNECT waits for it any more. Its open streams go on.
    pub doubt_after: Duration,
    /// How long a connection waits for a peer that was just found dead, while somebody tries to reach it.
    pub patience: Duration,
    /// Limit of a TCP connect to such a peer. Short, since a SYN lost early on is sent again later and later.
    pub retry_timeout: Duration,
    /// How long a peer that was found dead is taken for dead, if nobody wants to reach it.
    pub dead_for: Duration,
}

impl Default for TunnelSettings {
    fn default() -> Self {
        Self {
            stream_window: 4 * MIB,
            connection_window: 16 * MIB,
            memory: Budget::new(256 * u64::from(MIB)),
            frame_size: MIB,
            send_buffer: 400 * KIB as usize,
            max_streams: 100,
            served_streams: 200,
            tunnels_per_peer: 4,
            max_tunnels: 4096,
            idle_release: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(20),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            ask_after: Duration::from_millis(500),
            doubt_after: Duration::from_millis(2500),
            patience: Duration::from_secs(1),
            retry_timeout: Duration::from_secs(3),
            dead_for: Duration::from_secs(30),
        }
    }
}

/// Largest header list of an answer, and of a request.
const ANSWER_HEADERS: u32 = 16 * KIB;
const REQUEST_HEADERS: u32 = 64 * KIB;

/// What a tunnel begins with. It has as much again in reserve.
const FIRST_WINDOW: u32 = 512 * KIB;

impl TunnelSettings {
    pub(super) fn client(&self) -> Settings {
        self.http2(self.max_streams, ANSWER_HEADERS)
    }

    pub(super) fn server(&self) -> Settings {
        self.http2(self.served_streams as usize, REQUEST_HEADERS)
    }

    fn http2(&self, streams: usize, headers: u32) -> Settings {
        let fit = |size| u32::try_from(size).unwrap_or(u32::MAX);
        Settings {
            stream_window: self.stream_window(),
            window: self.first_window(),
            max_frame: self.frame_size,
            max_header_list: headers,
            max_streams: fit(streams),
            send_buffer: fit(self.send_buffer),
            early_data: true,
        }
    }

    // RFC 9113 allows only these ranges.

    pub(super) fn stream_window(&self) -> u32 {
        self.stream_window.min(i32::MAX as u32)
    }

    pub(super) fn connection_window(&self) -> u32 {
        self.connection_window.clamp(65_535, i32::MAX as u32)
    }

    /// The tunnel's window at the beginning.
    pub(super) fn first_window(&self) -> u32 {
        self.connection_window().min(FIRST_WINDOW)
    }
}
