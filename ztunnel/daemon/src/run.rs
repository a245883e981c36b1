//! `ztunnel run`: reads the configuration, wires the rooms together, and ends in order.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};
use ztunnel_node::admin::{
    Admin, AdminError, ConfigDump, HttpListener, Page, Profiles, READINESS_PORT, Readiness, stats,
};
use ztunnel_node::capture::{NodeCapture, NodeClaim};
use ztunnel_node::connections::Watch;
use ztunnel_node::discovery::{self, DiscoveryConfig, Link};
use ztunnel_node::enroll::{self, Answerers, ApiListener, Enroller};
use ztunnel_node::explain::Explainer;
use ztunnel_node::identity::{CaConfig, Identities};
use ztunnel_node::inspect::Inspector;
use ztunnel_node::outbound::{Resolver, ResolverConfig};
use ztunnel_node::overview::Overviews;
use ztunnel_node::own_pod::OwnNode;
use ztunnel_node::pod::{DaemonPod, NodeContext, Workers};
use ztunnel_node::prove::Prover;
use ztunnel_node::state::mesh_channel;
use ztunnel_node::task::{Pace, Shutdown, TaskGroup};
use ztunnel_node::telemetry::{Lately, Log, LogLevels, Metrics, Telemetry, chain, start_log};
use ztunnel_node::tls::{self, CrlFile};
use ztunnel_sys::cgroup::{self, OwnCgroup};
use ztunnel_sys::heap;

use crate::admin::Daemon;
use crate::cli::fail;
use crate::config::Config;
use crate::scraped::{Queues, Scraped};

/// The node's own resolver configuration. In a container the kubelet puts there what `dnsPolicy` says.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long tasks that have been told to end may take.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("give the daemon a cgroup of its own")]
    Cgroup(#[from] cgroup::CgroupError),
    #[error("set up capture")]
    Capture(#[from] ztunnel_node::capture::CaptureError),
    #[error("start the workers")]
    Workers(#[source] std::io::Error),
    #[error("take over enrolled pods")]
    Enroll(#[from] enroll::EnrollError),
    #[error("serve the local API")]
    Api(#[from] enroll::ApiError),
    #[error("serve HTTP")]
    Admin(#[from] AdminError),
    #[error("{what}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
}

pub(crate) fn main() -> ExitCode {
    let config = match Config::read() {
        Ok(config) => config,
        Err(err) => return fail(&err),
    };
    let (log, levels) = match start_log(&config.log.filter, config.log.format) {
        Ok(started) => started,
        Err(err) => return fail(&err),
    };
    // One or two control threads: the traffic is the workers'.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        // They wait most of the time, and what a thread keeps of freed memory is of use to nobody else.
        .on_thread_park(heap::give_back_thread_cache)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(config, log.clone(), levels)),
        Err(source) => Err(StartError::System {
            what: "start the control threads",
            source,
        }),
    };
    drop(cgroup::leave_own());
    log.flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => fail(&chain(&err)),
    }
}

async fn run(config: Config, log: Log, levels: LogLevels) -> Result<(), StartError> {
    raise_descriptor_limit();
    // First of all, before anything is touched that a running daemon depends on.
    let claim = NodeClaim::take(&config.paths.bpf_dir)?;
    let api = ApiListener::bind(&config.paths.api_socket)?;
    let probes = HttpListener::bind("readiness probes", READINESS_PORT)?;
    let daemon_pod = config.node.own_pod.clone();
    let daemon_pod = daemon_pod.map(|pod| DaemonPod::open(pod, config.liveness, config.stats_port));
    let daemon_pod = daemon_pod
        .transpose()
        .map_err(|source| StartError::System {
            what: "listen on port 15008 for those who read metrics",
            source,
        })?;
    let scrapes = HttpListener::bind("metrics", config.stats_port)?;
    let operators = HttpListener::bind_loopback("operators", config.admin_port)?;
    let shown_config = config.dump();
    let own: OwnCgroup = cgroup::enter_own()?;
    let mut ends = Ends::new()?;
    let (shutdown, tasks) = (Shutdown::default(), TaskGroup::default());
    let started = tokio::time::Instant::now();

    // From here on probes are answered, at first with what is pending.
    let readiness = Readiness::default();
    let starting = readiness.pending("proxy");
    let first_state = readiness.pending("state manager");
    let probed = readiness.clone();
    let answer = move |request: &_| probed.answer(request);
    probes.serve(answer, shutdown.clone(), &tasks);
    tasks.spawn(readiness.clone().tell(shutdown.clone()));

    let metrics = Metrics::new(&config.node.istio_version, config.pair_limit);
    let telemetry = Telemetry {
        told: config.log.told,
        ..Telemetry::new(metrics, log)
    };
    let scraped = Scraped::new(&telemetry);
    scraped.tunnel_memory(config.tunnel.memory.clone());
    scraped.readiness(readiness.clone());
    let lately = Lately::new(Arc::clone(&telemetry.metrics));
    tasks.spawn(lately.clone().follow(shutdown.clone()));
    // Until the very end: the last scrape is not lost.
    let (last, scraping) = (Shutdown::default(), TaskGroup::default());
    scrapes.serve(
        stats(Arc::clone(&telemetry.metrics)),
        last.clone(),
        &scraping,
    );

    let tls = tls_context(&config, &tasks, &shutdown);
    let (mesh, reader) = mesh_channel();
    let link = Link::default();
    scraped.control_plane(link.clone());
    let discovery = DiscoveryConfig {
        endpoint: config.xds,
        node: config.node.description,
        subscription: config.subscription,
        metrics: telemetry.metrics.xds.clone(),
        link: link.clone(),
    };
    tasks.spawn(discovery::run(
        discovery,
        mesh,
        first_state,
        shutdown.clone(),
    ));

    let ca = CaConfig {
        endpoint: config.ca,
        secret_ttl: config.secret_ttl,
        tls,
        metrics: telemetry.metrics.ca.clone(),
    };
    let identities = Identities::new(ca, tasks.clone(), shutdown.clone());
    scraped.certificates(identities.clone());

    let names = ResolverConfig {
        resolv_conf: RESOLV_CONF.into(),
        ipv6: config.ipv6,
    };
    let resolver = Resolver::start(names, Pace::default(), tasks.clone(), shutdown.clone());

    let watch = Watch::default();
    let context = NodeContext {
        node: OwnNode {
            name: config.node.name.into(),
            network: config.node.network.into(),
            mesh: reader,
            identities,
            telemetry,
            watch: watch.clone(),
        },
        resolver,
        tunnel: Arc::new(config.tunnel),
        inbound: config.inbound,
    };
    let workers =
        Workers::start(config.worker_threads.get(), &context).map_err(StartError::Workers)?;
    scraped.workers(workers.clone());
    scraped.queues(Queues {
        log: context.node.telemetry.log.clone(),
        mesh: context.node.mesh.clone(),
        identities: context.node.identities.clone(),
        resolver: context.resolver.clone(),
        workers: workers.clone(),
    });
    if let Some(pod) = daemon_pod {
        workers.start_daemon_pod(pod).await;
    }
    let node = NodeCapture::start(&claim, &own)?;
    let enroller = Enroller::start(
        node,
        &config.paths.state_dir,
        workers.clone(),
        config.drain_deadline,
        config.liveness,
        tasks.clone(),
        &readiness,
    )
    .await?;
    tasks.spawn(enroller.clone().measure(shutdown.clone()));
    let (stop, mut stopped) = mpsc::channel(1);
    let explainer = Explainer {
        node: Arc::clone(&context.node.name),
        network: Arc::clone(&context.node.network),
        mesh: context.node.mesh.clone(),
    };
    let istio_version = config.node.istio_version;
    let inspector = Inspector {
        node: Arc::clone(&context.node.name),
        network: Arc::clone(&context.node.network),
        istio_version: istio_version.as_str().into(),
        started,
        mesh: context.node.mesh.clone(),
        link,
        identities: context.node.identities.clone(),
        workers,
        lately,
        readiness,
    };
    let version = env!("CARGO_PKG_VERSION");
    let overviews = Overviews::new(
        inspector.clone(),
        enroller.clone(),
        context.node.telemetry.clone(),
        version,
    );
    let answerers = Answerers {
        enroller: enroller.clone(),
        prover: Prover::new(explainer.clone(), watch, own.id),
        explainer,
        inspector: inspector.clone(),
        stop,
        version,
    };
    api.serve(answerers, shutdown.clone(), &tasks);
    let (quit, mut quitting) = mpsc::channel(1);
    let daemon = Daemon {
        identities: context.node.identities.clone(),
        enroller: enroller.clone(),
        inspector,
        config: shown_config,
        istio_version,
    };
    let admin = Admin {
        dump: ConfigDump::new(context.node.mesh.clone(), daemon),
        page: Page::new(overviews),
        levels,
        quit,
        profiles: Profiles::default(),
    };
    admin.serve(operators, shutdown.clone(), &tasks);
    drop(starting);
    info!(node = %context.node.name, workers = config.worker_threads, "daemon started");
    // From here on this thread only waits.
    heap::give_back_thread_cache();

    tokio::select! {
        signal = ends.wait() => info!(signal, "daemon is stopping; enrolled pods stay captured"),
        _ = quitting.recv() => {
            info!(signal = "quitquitquit", "daemon is stopping; enrolled pods stay captured");
        }
        _ = stopped.recv() => info!("daemon is stopping; nothing stays captured"),
    }
    shutdown.start();
    enroller.stop(config.drain_deadline).await;
    tasks.drain(LAST_TASKS).await;
    last.start();
    scraping.drain(LAST_TASKS).await;
    Ok(())
}

/// What all certificates are used with. The revocation lists, if there are any, are in force before the first
/// connection.
fn tls_context(config: &Config, tasks: &TaskGroup, shutdown: &Shutdown) -> tls::Context {
    let Some(path) = &config.crl_path else {
        return tls::Context::new(config.tls);
    };
    let context = tls::Context::with_revocation(config.tls);
    let file = CrlFile::open(path, Pace::default(), context.clone());
    tasks.spawn(file.follow(shutdown.clone()));
    context
}

/// The signals that end the daemon.
struct Ends {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> Result<Self, StartError> {
        let listen = |kind| {
            signal(kind).map_err(|source| StartError::System {
                what: "listen for signals",
                source,
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Every connection is two or three descriptors; the soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(err) = raised {
        warn!(error = %err, "the limit of open files stays as it is");
    }
}
