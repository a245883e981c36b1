//! Resolves the names that the control plane gives instead of addresses: as the node itself would, outside of every pod.
//!
//! Invariants: each question is asked once at a time, whoever waits for it, by a task on the control runtime. Every
//! question ends within [`LIMIT`]. Bounded: questions at a time, answers that are remembered, addresses of an answer.
//! Which of the addresses may be used is not decided here.
//!
//! The configuration is followed as it changes. One that cannot be read changes nothing; without any, no name is
//! resolved, and all other traffic goes on.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::service::IpFamilies;

use crate::task::{FileWatch, Pace, Shutdown, TaskGroup, read_bounded};

/// How long a connection waits for a name: two tries at one name server, as resolv.conf(5) has it.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the addresses of one family wait for those of the other.
const OTHER_FAMILY: Duration = Duration::from_secs(1);
/// Questions at a time. There are as many as names in the configuration of the mesh that are used at the same time.
const MAX_QUESTIONS: usize = 1024;
/// Answers that are remembered.
const CACHE: u64 = 4096;
/// Addresses of one family that are taken note of.
const MAX_ADDRESSES: usize = 64;
/// A name that does not exist may be made any moment, whatever its zone says.
const LONGEST_NO: Duration = Duration::from_secs(30);
/// No `resolv.conf` is anywhere near.
const MAX_FILE: u64 = 64 * 1024;
/// The library reads it by itself, along with the configuration.
const HOSTS: &str = "/etc/hosts";

/// How to resolve names.
#[derive(Clone, Debug)]
pub struct ResolverConfig {
    /// The file that says how.
    pub resolv_conf: PathBuf,
    /// Whether IPv6 addresses are of use on this node.
    pub ipv6: bool,
}

/// Why a name has no addresses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("{hostname} cannot be resolved: {why}")]
    Failed { hostname: Arc<str>, why: Arc<str> },
    #[error("no name server has answered for {hostname} within {LIMIT:?}")]
    Timeout { hostname: Arc<str> },
    #[error("{MAX_QUESTIONS} names are being resolved already, and {hostname} is none of them")]
    TooMany { hostname: Arc<str> },
    #[error("resolving {hostname} was cut: the daemon stops")]
    Cut { hostname: Arc<str> },
}

impl ResolveError {
    /// The reason a connection ends with.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Failed { .. } | Self::Timeout { .. } => Reason::NameUnresolved,
            Self::TooMany { .. } => Reason::Overloaded,
            Self::Cut { .. } => Reason::Drained,
        }
    }
}

/// The resolver of the node. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    current: ArcSwap<Configured>,
    ipv6: bool,
    asked: Mutex<HashMap<Question, watch::Receiver<Option<Answer>>>>,
    runtime: Handle,
    tasks: TaskGroup,
}

/// What the configuration makes possible.
type Configured = Result<TokioResolver, Arc<str>>;

type Answer = Result<Arc<[IpAddr]>, ResolveError>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    hostname: Arc<str>,
    v4: bool,
    v6: bool,
}

#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it says nothing of use")]
    Content(#[source] NetError),
}

impl Resolver {
    /// Reads the configuration, and again whenever it changes, until `shutdown`. Runs on the current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn start(config: ResolverConfig, pace: Pace, tasks: TaskGroup, shutdown: Shutdown) -> Self {
        let ResolverConfig { resolv_conf, ipv6 } = config;
        // Before they are read: what changes in between is seen later.
        let files = [resolv_conf.clone(), PathBuf::from(HOSTS)];
        let watch = FileWatch::new(files, pace);
        let configured = configure(&resolv_conf).map_err(|err| {
            let why = describe(&resolv_conf, &err);
            warn!(reason = %why, "no name can be resolved until this is mended");
            why
        });
        let this = Self(Arc::new(Inner {
            current: ArcSwap::from_pointee(configured),
            ipv6,
            asked: Mutex::default(),
            runtime: Handle::current(),
            tasks: tasks.clone(),
        }));
        tasks.spawn(this.clone().follow(resolv_conf, watch, shutdown));
        this
    }

    /// How many names are being resolved, and how many may be at a time.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        (self.0.asked().len(), MAX_QUESTIONS)
    }

    async fn follow(self, resolv_conf: PathBuf, mut watch: FileWatch, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.started() => return,
                () = watch.changed() => {}
            }
            self.reload(&resolv_conf);
        }
    }

    fn reload(&self, resolv_conf: &Path) {
        match configure(resolv_conf) {
            Ok(resolver) => {
                info!(path = %resolv_conf.display(), "resolver configuration loaded");
                self.0.current.store(Arc::new(Ok(resolver)));
            }
            Err(err) => {
                let reason = describe(resolv_conf, &err);
                warn!(%reason, "resolver configuration not reloaded");
                if self.0.current.load().is_err() {
                    self.0.current.store(Arc::new(Err(reason)));
                }
            }
        }
    }

    /// The addresses of a name, or those of some families; none is an answer, too.
    ///
    /// # Errors
    /// When no name server has any, or says so, in time.
    pub async fn resolve(&self, hostname: &Arc<str>, families: IpFamilies) -> Answer {
        // The control plane may well say an address where a name belongs.
        if let Ok(ip) = hostname.parse() {
            return Ok([ip].into());
        }
        let question = Question {
            hostname: Arc::clone(hostname),
            v4: families != IpFamilies::V6Only,
            v6: families != IpFamilies::V4Only && self.0.ipv6,
        };
        let mut answer = self.ask(question)?;
        let answer = match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        let hostname = Arc::clone(hostname);
        answer.unwrap_or(Err(ResolveError::Cut { hostname }))
    }

    /// What will be the answer to `question`; begins to ask if nobody does.
    fn ask(&self, question: Question) -> Result<watch::Receiver<Option<Answer>>, ResolveError> {
        let mut asked = self.0.asked();
        if let Some(answer) = asked.get(&question) {
            return Ok(answer.clone());
        }
        if asked.len() >= MAX_QUESTIONS {
            let hostname = question.hostname;
            return Err(ResolveError::TooMany { hostname });
        }
        let (tell, answer) = watch::channel(None);
        asked.insert(question.clone(), answer.clone());
        drop(asked);
        let asking = Asking {
            inner: Arc::clone(&self.0),
            question,
        };
        let current = self.0.current.load_full();
        let task = async move {
            let answer = look_up(&current, &asking.question).await;
            // First of all: whoever asks from now on asks again.
            drop(asking);
            tell.send_replace(Some(answer));
        };
        self.0.tasks.spawn_on(task, &self.0.runtime);
        Ok(answer)
    }
}

impl Inner {
    fn asked(&self) -> MutexGuard<'_, HashMap<Question, watch::Receiver<Option<Answer>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that is being asked: that it is, is forgotten with this.
struct Asking {
    inner: Arc<Inner>,
    question: Question,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.inner.asked().remove(&self.question);
    }
}

fn configure(resolv_conf: &Path) -> Result<TokioResolver, ConfigError> {
    let content = read_bounded(resolv_conf, MAX_FILE).map_err(ConfigError::Read)?;
    let (config, mut options) = parse_resolv_conf(content).map_err(ConfigError::Content)?;
    options.cache_size = CACHE;
    options.negative_max_ttl = Some(LONGEST_NO);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(ConfigError::Content)
}

fn describe(resolv_conf: &Path, err: &ConfigError) -> Arc<str> {
    let why = crate::telemetry::chain(err);
    format!("{}: {why}", resolv_conf.display()).into()
}

async fn look_up(configured: &Configured, question: &Question) -> Answer {
    let hostname = &question.hostname;
    let failed = |why: Arc<str>| ResolveError::Failed {
        hostname: Arc::clone(hostname),
        why,
    };
    let resolver = configured.as_ref().map_err(|why| failed(why.clone()))?;
    let found = timeout(LIMIT, both(resolver, question))
        .await
        .map_err(|_| ResolveError::Timeout {
            hostname: Arc::clone(hostname),
        })?;
    found.map(Arc::from).map_err(|err| failed(why(&err).into()))
}

/// The addresses of all families that are asked for. One that is slow does not keep the other from being used.
async fn both(resolver: &TokioResolver, question: &Question) -> Result<Vec<IpAddr>, NetError> {
    let one = async |family| {
        let found = resolver.lookup(&*question.hostname, family).await?;
        let records = found.answers().iter();
        let addresses = records.filter_map(|record| record.data.ip_addr());
        Ok::<Vec<IpAddr>, NetError>(addresses.take(MAX_ADDRESSES).collect())
    };
    match (question.v4, question.v6) {
        (false, false) => return Ok(Vec::new()),
        (true, false) => return one(RecordType::A).await,
        (false, true) => return one(RecordType::AAAA).await,
        (true, true) => {}
    }
    let (mut v4, mut v6) = (pin!(one(RecordType::A)), pin!(one(RecordType::AAAA)));
    let (first, other) = tokio::select! {
        first = &mut v4 => (first, v6),
        first = &mut v6 => (first, v4),
    };
    match first {
        Ok(mut found) if !found.is_empty() => {
            if let Ok(Ok(more)) = timeout(OTHER_FAMILY, other).await {
                found.extend(more);
            }
            Ok(found)
        }
        first => match other.await {
            Ok(found) if !found.is_empty() => Ok(found),
            other => first.and(other),
        },
    }
}

/// What a name server said, for people.
fn why(err: &NetError) -> String {
    match err {
        NetError::Dns(DnsError::NoRecordsFound(no)) => {
            format!(
                "no such address is known, says the name server ({})",
                no.response_code
            )
        }
        NetError::Timeout => "no name server answers".to_owned(),
        err => err.to_string(),
    }
}

#[cfg(test)]
mod tests;
