//! How connections are made and kept: TLS, HTTP/2, TCP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ztunnel_node::task::Budget;
use ztunnel_node::tls;
use ztunnel_node::tunnel::TunnelSettings;
use ztunnel_sys::memory;
use ztunnel_sys::socket::{Keepalive, Liveness};

use super::settings;
use super::source::{Files, Reader};
use super::value;

pub(super) fn tls(reader: &mut Reader<'_>) -> Option<tls::Options> {
    let only_post_quantum = reader.optional(&settings::COMPLIANCE_POLICY, |text| match text {
        "pqc" => Ok(true),
        _ => Err("unknown policy".to_owned()),
    });
    let only_post_quantum = only_post_quantum.map(Option::unwrap_or_default);
    let tls12 = reader.value(&settings::TLS12_ENABLED, |text| {
        let enabled = value::boolean(text)?;
        if enabled && only_post_quantum == Some(true) {
            // Every such connection would fail, or break the policy.
            return Err(
                "TLS 1.2 has no key exchange that COMPLIANCE_POLICY=pqc allows; unset one of them"
                    .to_owned(),
            );
        }
        Ok(enabled)
    });
    Some(tls::Options {
        only_post_quantum: only_post_quantum?,
        tls12: tls12?,
    })
}

/// Where revocation lists are, if any are to be checked. A file that is not there yet is fine.
pub(super) fn crl_path(reader: &mut Reader<'_>) -> Option<Option<PathBuf>> {
    reader.optional(&settings::CRL_PATH, |text| Ok(PathBuf::from(text)))
}

pub(super) fn read(reader: &mut Reader<'_>) -> Option<TunnelSettings> {
    // RFC 9113: windows end at 2^31-1, a tunnel's begins at 65535 and cannot shrink, frames are 2^14 to 2^24-1.
    const WINDOW: u32 = (1 << 31) - 1;
    let stream_window = reader.value(&settings::HTTP2_STREAM_WINDOW_SIZE, |text| {
        value::number(text, 1..=WINDOW)
    });
    let connection_window = reader.value(&settings::HTTP2_CONNECTION_WINDOW_SIZE, |text| {
        value::number(text, 65_535..=WINDOW)
    });
    let memory = reader.optional(&settings::TUNNEL_MEMORY_LIMIT, |text| {
        let limit = value::bytes(text)?;
        match limit < 1 << 20 {
            true => Err("less than 1Mi".to_owned()),
            false => Ok(limit),
        }
    });
    let frame_size = reader.value(&settings::HTTP2_FRAME_SIZE, |text| {
        value::number(text, 1 << 14..=(1 << 24) - 1)
    });
    let max_streams = reader.value(&settings::POOL_MAX_STREAMS_PER_CONNECTION, |text| {
        value::number(text, 1..=u16::MAX)
    });
    let idle_release = reader.value(&settings::POOL_UNUSED_RELEASE_TIMEOUT, value::duration);
    let files = reader.files();
    let memory = memory?.unwrap_or_else(|| memory_limit(files));
    Some(TunnelSettings {
        stream_window: stream_window?,
        connection_window: connection_window?,
        memory: Budget::new(memory),
        frame_size: frame_size?,
        max_streams: max_streams?.into(),
        idle_release: idle_release?,
        ..TunnelSettings::default()
    })
}

/// The part of the memory there is that tunnels may use.
fn memory_limit(files: &dyn Files) -> u64 {
    let read = |path: &Path| files.read(path).ok();
    let total = memory::total(read);
    // The first version of cgroups has no limit by a number that no machine reaches.
    let limit = memory::limit(read).filter(|limit| *limit < total.unwrap_or(u64::MAX));
    match (limit, total) {
        (Some(limit), _) => limit / 4,
        (None, Some(total)) => total / 8,
        (None, None) => 256 << 20,
    }
}

/// Keepalive and the user timeout, each if it is turned on.
pub(super) fn tcp(reader: &mut Reader<'_>) -> Option<Liveness> {
    // The kernel's bounds: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT.
    let seconds =
        |text: &str| value::duration_in(text, Duration::from_secs(1), Duration::from_secs(32_767));
    let enabled = reader.value(&settings::KEEPALIVE_ENABLED, value::boolean);
    let time = reader.value(&settings::KEEPALIVE_TIME, seconds);
    let interval = reader.value(&settings::KEEPALIVE_INTERVAL, seconds);
    let retries = reader.value(&settings::KEEPALIVE_RETRIES, |text| {
        value::number(text, 1..=127_u32)
    });
    let user_timeout = reader.value(&settings::USER_TIMEOUT_ENABLED, value::boolean);
    let keepalive = Keepalive {
        time: time?,
        interval: interval?,
        retries: retries?,
    };
    let timeout = keepalive.time + keepalive.interval * keepalive.retries;
    Some(Liveness {
        keepalive: enabled?.then_some(keepalive),
        user_timeout: user_timeout?.then_some(timeout),
    })
}
