//! `/debug/pprof`: where the CPU goes, and who holds the memory, in the format of `go tool pprof`.
//!
//! Invariants: one CPU profile at a time, and no longer than [`MOST_SECONDS`]. What takes long is done on a thread of its own,
//! not on one that others wait for. Names of functions are all that is told: no data.

mod heap;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{Method, StatusCode};
use pprof::ProfilerGuardBuilder;
use pprof::protos::Message as _;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use ztunnel_sys::heap as sampler;

use super::http::{Request, Response};
use super::plain;

const SECONDS: RangeInclusive<u64> = 1..=MOST_SECONDS;
pub(super) const MOST_SECONDS: u64 = 300;
const USUAL_SECONDS: u64 = 10;
/// Samples per second.
const FREQUENCIES: RangeInclusive<u64> = 1..=1000;
const USUAL_FREQUENCY: u64 = 100;

/// A sample that is taken in one of these could wait for a lock that the interrupted thread has.
const NOT_IN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

const BUSY: &str = "another profile is being taken; try again when it is there\n";
const HEAP_USAGE: &str = "\
usage: GET  /debug/pprof/heap/profiling                 whether allocations are sampled
       POST /debug/pprof/heap/profiling?activate=true   sample them from now on; false to stop
";

/// One profile at a time.
pub struct Profiles(Semaphore);

impl Default for Profiles {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl Profiles {
    /// Answers what is below `/debug/pprof/`.
    pub(super) async fn answer(&self, request: &Request, what: &str) -> Response {
        let answer = match what {
            "profile" => self.cpu(request).await,
            "heap" => heap().await,
            "heap/profiling" => heap_profiling(request),
            _ => Err((StatusCode::NOT_FOUND, String::new())),
        };
        answer.unwrap_or_else(|(status, why)| plain(status, why))
    }

    async fn cpu(&self, request: &Request) -> Answer {
        let seconds = number(request, "seconds", USUAL_SECONDS, SECONDS)?;
        let frequency = number(request, "frequency", USUAL_FREQUENCY, FREQUENCIES)?;
        let _only = self.0.try_acquire().map_err(|_| failed(BUSY))?;
        let frequency = i32::try_from(frequency).map_err(|err| failed(err.to_string()))?;
        let sampling = ProfilerGuardBuilder::default()
            .frequency(frequency)
            .blocklist(&NOT_IN)
            .build()
            .map_err(|err| failed(format!("samples cannot be taken: {err}\n")))?;
        sleep(Duration::from_secs(seconds)).await;
        translated("samples", move || {
            let report = sampling.report().build()?;
            report.pprof().map(|profile| profile.encode_to_vec())
        })
        .await
    }
}

/// Addresses become names, which are looked for in the debug information of the whole program: 170 MiB that would stay
/// mapped for the next time.
async fn translated<E: Display + Send + 'static>(
    what: &str,
    translate: impl FnOnce() -> Result<Vec<u8>, E> + Send + 'static,
) -> Answer {
    let translating = spawn_blocking(|| {
        let profile = translate();
        backtrace::clear_symbol_cache();
        profile
    });
    let why = match translating.await {
        Ok(Ok(profile)) => return Ok(Response::new(profile.into())),
        Ok(Err(err)) => err.to_string(),
        Err(err) => err.to_string(),
    };
    Err(failed(format!("the {what} cannot be told: {why}\n")))
}

/// An answer, or why there is none.
type Answer = Result<Response, (StatusCode, String)>;

fn failed(why: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, why.into())
}

fn refused(why: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, why.into())
}

async fn heap() -> Answer {
    if !sampler::can_sample() {
        return Err(failed(
            "this build has no heap profiler: its allocator cannot tell\n",
        ));
    }
    if !sampler::is_sampling() {
        return Err(failed(
            "allocations are not sampled; POST /debug/pprof/heap/profiling?activate=true, wait for what you look for, and \
             ask again\n",
        ));
    }
    translated("heap", || {
        let samples = sampler::samples().map_err(|err| err.to_string())?;
        heap::profile(&samples).map_err(|err| err.to_string())
    })
    .await
}

fn heap_profiling(request: &Request) -> Answer {
    let activate = match parameter(request, "activate").as_deref() {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => {
            let why = format!("activate={other:?} is neither true nor false\n\n{HEAP_USAGE}");
            return Err(refused(why));
        }
    };
    if activate.is_some() && request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, HEAP_USAGE.into()));
    }
    if let Some(activate) = activate {
        let done = sampler::sample(activate);
        done.map_err(|err| failed(format!("the heap profiler cannot be switched: {err}\n")))?;
    }
    let active = sampler::is_sampling();
    let text = format!("heap profiling active: {active}\n");
    Ok(plain(StatusCode::OK, text))
}

fn parameter(request: &Request, name: &str) -> Option<String> {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

/// A number within bounds.
fn number(
    request: &Request,
    name: &str,
    usual: u64,
    bounds: RangeInclusive<u64>,
) -> Result<u64, (StatusCode, String)> {
    let Some(text) = parameter(request, name) else {
        return Ok(usual);
    };
    text.parse()
        .ok()
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| {
            let (from, to) = bounds.into_inner();
            refused(format!(
                "{name}={text:?} is no number from {from} to {to}\n"
            ))
        })
}
