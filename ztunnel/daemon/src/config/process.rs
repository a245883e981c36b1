//! The process itself: threads, its end, its log, its places on this machine.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ztunnel_node::telemetry::{BadShare, LogFormat, Share, chain, directives};

use super::settings;
use super::source::Reader;
use super::value::{self, Threads};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// Directives that `EnvFilter` takes.
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
    /// Of the connections that ended well, those that have a line.
    pub(crate) told: Share,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalPaths {
    pub(crate) api_socket: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) bpf_dir: PathBuf,
}

pub(super) fn worker_threads(
    reader: &mut Reader<'_>,
    concurrency: Option<u16>,
    machine: NonZeroUsize,
) -> Option<NonZeroUsize> {
    let asked = reader.optional(&settings::ZTUNNEL_WORKER_THREADS, value::threads);
    let limit = reader.optional(&settings::ZTUNNEL_RESOURCE_CPU_LIMIT, value::cpus);
    let request = reader.optional(&settings::ZTUNNEL_RESOURCE_CPU_REQUEST, value::cpus);
    let node = reader.optional(&settings::ZTUNNEL_CPU_LIMIT, value::cpus);
    let (limit, request) = (limit?, request?);
    let cpus = limit.or(node?).unwrap_or(machine);
    let from_file = concurrency
        .map(|count| NonZeroUsize::new(count.into()).map_or(Threads::All, Threads::Count));
    Some(match asked?.or(from_file) {
        Some(Threads::All) => cpus,
        Some(Threads::Count(count)) => count,
        Some(Threads::Percent(percent)) => share(cpus, percent),
        None => {
            const FEWEST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
            let automatic = limit.unwrap_or_else(|| share(cpus, 25).max(FEWEST));
            request.map_or(automatic, |request| automatic.max(request))
        }
    })
}

fn share(cpus: NonZeroUsize, percent: u8) -> NonZeroUsize {
    let share = cpus.get().saturating_mul(percent.into()).div_ceil(100);
    NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN)
}

pub(super) fn drain_deadline(reader: &mut Reader<'_>) -> Option<Duration> {
    const SECOND: Duration = Duration::from_secs(1);
    let deadline = reader.optional(&settings::CONNECTION_TERMINATION_DEADLINE, value::duration);
    let grace = reader.optional(&settings::TERMINATION_GRACE_PERIOD_SECONDS, value::duration);
    Some(match (deadline?, grace?) {
        (Some(deadline), _) => deadline,
        (None, Some(grace)) if grace > 10 * SECOND => grace - 5 * SECOND,
        (None, Some(grace)) => grace.saturating_sub(SECOND).max(SECOND),
        (None, None) => 5 * SECOND,
    })
}

pub(super) fn log(reader: &mut Reader<'_>) -> Option<Log> {
    let filter = reader.value(&settings::RUST_LOG, |text| {
        directives(text)
            .map(|_| text.to_owned())
            .map_err(|err| chain(&err))
    });
    let format = reader.value(&settings::LOG_FORMAT, |text| match text {
        "plain" => Ok(LogFormat::Plain),
        "json" => Ok(LogFormat::Json),
        _ => Err("unknown format".to_owned()),
    });
    let told = reader.value(&settings::ACCESS_LOG_SAMPLE_PERCENT, |text| {
        text.parse().map_err(|err: BadShare| err.to_string())
    });
    Some(Log {
        filter: filter?,
        format: format?,
        told: told?,
    })
}

pub(super) fn pair_limit(reader: &mut Reader<'_>) -> Option<usize> {
    reader.value(&settings::METRICS_PAIR_LIMIT, |text| {
        value::number(text, 1..=1_000_000)
    })
}

pub(super) fn paths(reader: &mut Reader<'_>) -> Option<LocalPaths> {
    let api_socket = api_socket(reader);
    let state_dir = reader.value(&settings::ZTUNNEL_STATE_DIR, value::absolute_path);
    let bpf_dir = reader.value(&settings::ZTUNNEL_BPF_DIR, value::absolute_path);
    Some(LocalPaths {
        api_socket: api_socket?,
        state_dir: state_dir?,
        bpf_dir: bpf_dir?,
    })
}

pub(super) fn api_socket(reader: &mut Reader<'_>) -> Option<PathBuf> {
    reader.value(&settings::ZTUNNEL_API_SOCKET, |text| {
        // `sun_path` is 108 bytes with its zero.
        if text.len() > 107 {
            return Err("too long for the path of a socket".to_owned());
        }
        value::absolute_path(text)
    })
}
