//! The configuration of the daemon: read once, checked whole, and passed on in small structs.
//!
//! Sources, later ones winning: the mesh file, `PROXY_CONFIG`, and the environment variables of [`settings`].
//! Reading is a function of an environment, a file system and a number of CPUs, so that tests bring their own.
//! Only [`Config::read`] touches those of the process, and nothing else in the program reads the environment.
//!
//! Invariants: whatever cannot be understood, and whatever is understood and cannot be honored yet, stops the
//! start. All wrong settings are reported at once. Tokens and headers are never shown.

mod dump;
mod endpoint;
mod inbound;
mod node;
mod process;
mod proxy_config;
mod settings;
mod source;
mod tunnel;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ztunnel_node::admin::{ADMIN_PORT, STATS_PORT};
use ztunnel_node::control_plane::Endpoint;
use ztunnel_node::discovery::Subscription;
use ztunnel_node::inbound::InboundSettings;
use ztunnel_node::tls;
use ztunnel_node::tunnel::TunnelSettings;
use ztunnel_sys::socket::Liveness;

use endpoint::Credentials;
use node::Node;
use process::LocalPaths;
pub(crate) use process::Log;
pub(crate) use settings::reference;
use source::{ConfigError, Disk, Files, Reader};

/// All that the daemon was told. Every value in it is usable as it is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The xDS server.
    pub(crate) xds: Endpoint,
    pub(crate) subscription: Subscription,
    /// The certificate authority.
    pub(crate) ca: Endpoint,
    /// The lifetime to ask for in a certificate request.
    pub(crate) secret_ttl: Duration,
    /// Who and where this daemon is.
    pub(crate) node: Node,
    pub(crate) tls: tls::Options,
    /// A file of revocation lists.
    pub(crate) crl_path: Option<PathBuf>,
    pub(crate) tunnel: TunnelSettings,
    pub(crate) inbound: InboundSettings,
    /// TCP keepalive and user timeout, each where it is turned on.
    pub(crate) liveness: Liveness,
    /// Whether IPv6 addresses of names are of use.
    pub(crate) ipv6: bool,
    /// Threads that carry traffic.
    pub(crate) worker_threads: NonZeroUsize,
    /// How long connections may go on after the daemon was told to stop.
    pub(crate) drain_deadline: Duration,
    pub(crate) log: Log,
    /// How many pairs have traffic metrics of their own.
    pub(crate) pair_limit: usize,
    pub(crate) admin_port: u16,
    pub(crate) stats_port: u16,
    pub(crate) paths: LocalPaths,
}

impl Config {
    /// Reads the environment and the files of this process.
    pub(crate) fn read() -> Result<Self, ConfigError> {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self::from_sources(&environment(), &Disk, cpus)
    }

    /// Reads whatever it is given.
    pub(crate) fn from_sources(
        env: &BTreeMap<String, String>,
        files: &dyn Files,
        cpus: NonZeroUsize,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(env, files);
        let config = Self::assemble(&mut reader, cpus);
        reader.finish(config)
    }

    /// `None` only where `reader` has recorded why. Every part is read before the first missing one ends it.
    fn assemble(reader: &mut Reader<'_>, cpus: NonZeroUsize) -> Option<Self> {
        refuse_what_is_not_there_yet(reader);
        let proxy = proxy_config::read(reader).unwrap_or_default();
        let node = node::read(reader, &proxy.proxy_metadata);
        let tls = tunnel::tls(reader);
        let crl_path = tunnel::crl_path(reader);
        let credentials = Credentials::read(reader, tls);
        let xds = endpoint::xds(
            reader,
            proxy.discovery_address.as_deref(),
            credentials.as_ref(),
        );
        let subscription = reader.value(&settings::XDS_ON_DEMAND, |text| {
            Ok(match value::boolean(text)? {
                true => Subscription::OnDemand,
                false => Subscription::Everything,
            })
        });
        let ca = endpoint::ca(reader, credentials.as_ref());
        let secret_ttl = reader.value(&settings::SECRET_TTL, |text| {
            value::duration_in(text, Duration::from_secs(1), value::LONGEST)
        });
        let tunnel = tunnel::read(reader);
        let tcp = tunnel::tcp(reader);
        let inbound = inbound::read(reader);
        let ipv6 = reader.value(&settings::IPV6_ENABLED, value::boolean);
        let worker_threads = process::worker_threads(reader, proxy.concurrency, cpus);
        let drain_deadline = process::drain_deadline(reader);
        let log = process::log(reader);
        let pair_limit = process::pair_limit(reader);
        let paths = process::paths(reader);
        Some(Self {
            xds: xds?,
            subscription: subscription?,
            ca: ca?,
            secret_ttl: secret_ttl?,
            node: node?,
            tls: tls?,
            crl_path: crl_path?,
            tunnel: tunnel?,
            inbound: inbound?,
            liveness: tcp?,
            ipv6: ipv6?,
            worker_threads: worker_threads?,
            drain_deadline: drain_deadline?,
            log: log?,
            pair_limit: pair_limit?,
            admin_port: proxy.admin_port.unwrap_or(ADMIN_PORT),
            stats_port: proxy.stats_port.unwrap_or(STATS_PORT),
            paths: paths?,
        })
    }
}

/// Where the daemon of this environment listens: all that its clients need to know.
pub(crate) fn api_socket() -> Result<PathBuf, ConfigError> {
    let env = environment();
    let mut reader = Reader::new(&env, &Disk);
    let socket = process::api_socket(&mut reader);
    reader.finish(socket)
}

/// Text that is no UTF-8 gets a replacement character, which [`Reader`] refuses by the setting's name.
fn environment() -> BTreeMap<String, String> {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

/// Settings that would change what is safe or where traffic goes, and that nothing here can follow yet. Passing
/// over them in silence would leave an operator with a belief that is wrong.
fn refuse_what_is_not_there_yet(reader: &mut Reader<'_>) {
    use settings::*;
    reader.only(&PROXY_MODE, &["shared"]);
    reader.only(&ENABLE_PROXY, &["true"]);
    reader.only(&UNSTABLE_ENABLE_SOCKS5, &["false"]);
    reader.only(&FAKE_CA, &["false"]);
    reader.only(&LOCAL_XDS, &[""]);
    reader.only(&LOCAL_XDS_PATH, &[""]);
}
