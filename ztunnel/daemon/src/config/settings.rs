//! Every setting there is: one table for reading, for error messages and for `deploy/settings.md`.

use std::fmt::Write as _;

/// One environment variable, or a family of them when the name ends in `_`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) default: Fallback,
    pub(super) accepted: &'static str,
    meaning: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fallback {
    /// A text that the parser of the setting reads.
    Value(&'static str),
    /// Without it there is nothing, or the start fails.
    Unset,
    /// Where else it comes from.
    Derived(&'static str),
}

use Fallback::{Derived, Unset, Value};

impl Setting {
    /// Whether its value must not be shown.
    pub(super) fn secret(&self) -> bool {
        [AUTH_TOKEN.name, XDS_HEADER_.name, CA_HEADER_.name].contains(&self.name)
    }
}

/// The mesh file, relative to the working directory (`/` in the image).
pub(super) const MESH_FILE: &str = "./etc/istio/config/mesh";
pub(super) const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

macro_rules! settings {
    ($($group:literal { $($name:ident = $default:expr, $accepted:literal, $meaning:literal;)* })*) => {
        $($(
            pub(super) const $name: Setting = Setting {
                name: stringify!($name), default: $default, accepted: $accepted, meaning: $meaning,
            };
        )*)*
        const GROUPS: &[(&str, &[Setting])] = &[$(($group, &[$($name),*])),*];
    };
}

settings! {
"Control plane and identity" {
    XDS_ADDRESS = Derived("ProxyConfig `discoveryAddress`, else istiod in `istio-system`, or on localhost outside Kubernetes"),
        "host:port, or https://host:port", "the xDS server; empty is refused: without one nothing says which addresses belong to the mesh, and a proxy that passes everything on in the clear protects nobody";
    XDS_ON_DEMAND = Value("false"),
        "true or false", "ask for addresses when they are first used, instead of holding the whole mesh; there is no DNS capture yet that it could not go with";
    CA_ADDRESS = Derived("istiod in `istio-system`, or on localhost outside Kubernetes"),
        "host:port, or https://host:port", "the service that signs certificates";
    KUBERNETES_SERVICE_HOST = Unset,
        "anything", "its presence chooses between the two defaults above";
    XDS_ROOT_CA = Value("./var/run/secrets/istio/root-cert.pem"),
        "the path of a PEM file, SYSTEM, or certificates in PEM", "what the xDS server's certificate must chain to";
    CA_ROOT_CA = Value("./var/run/secrets/istio/root-cert.pem"),
        "the path of a PEM file, SYSTEM, or certificates in PEM", "what the CA server's certificate must chain to";
    ALT_XDS_HOSTNAME = Unset,
        "a DNS name", "another name that the xDS server's certificate may have";
    ALT_CA_HOSTNAME = Unset,
        "a DNS name", "another name that the CA server's certificate may have";
    AUTH_TOKEN = Derived("`./var/run/secrets/tokens/istio-token` if that file exists, else no authentication"),
        "the path of a file, or the token itself", "the bearer token for both; a file is read again for each request";
    XDS_HEADER_ = Unset,
        "visible ASCII characters, under a valid header name", "one more header for the xDS server";
    CA_HEADER_ = Unset,
        "visible ASCII characters, under a valid header name", "one more header for the CA server";
    SECRET_TTL = Value("24h"),
        "a duration of at least 1s, such as 90m or 24h", "the certificate lifetime to ask for";
    TLS12_ENABLED = Value("false"),
        "true or false", "allow TLS 1.2 as well, between nodes and to the control plane; not together with pqc";
    COMPLIANCE_POLICY = Unset,
        "pqc, or empty", "pqc: only the key exchange X25519MLKEM768, between nodes and to the control plane";
    CRL_PATH = Unset,
        "the path of a file that is there or will be: PEM with any number of revocation lists, or one in DER",
        "certificates of peers to refuse, and to cut off; followed as it changes, and what cannot be read changes nothing";
}
"Who and where" {
    NODE_NAME = Unset,
        "the name of the node, as the control plane knows it", "which workloads are here; has to be set";
    ISTIO_META_CLUSTER_ID = Unset,
        "a cluster id", "the cluster; wins over `CLUSTER_ID`";
    CLUSTER_ID = Value("Kubernetes"),
        "a cluster id", "the cluster";
    NETWORK = Unset,
        "a network name, or empty", "the network of this node";
    POD_NAME = Unset,
        "a name of letters, digits, - and .", "the pod of the daemon";
    POD_NAMESPACE = Unset,
        "a name of letters, digits, - and .", "the namespace of the daemon";
    SERVICE_ACCOUNT = Unset,
        "a name of letters, digits, - and .", "the service account of the daemon; with the two above the daemon listens on port 15008 itself, for clients in the mesh that read its port 15020";
    INSTANCE_IP = Value("1.1.1.1"),
        "an IP address, or several separated by commas", "the addresses of the daemon";
    ISTIO_META_ = Unset,
        "any text", "node metadata for the control plane, under the rest of the name";
    ISTIO_METAJSON_ = Unset,
        "JSON", "node metadata with structure";
    PROXY_CONFIG = Unset,
        "a ProxyConfig in YAML or JSON", "wins over the mesh file, field by field";
}
"Tunnels and connections" {
    HTTP2_STREAM_WINDOW_SIZE = Value("4194304"),
        "bytes, 1 to 2147483647", "the receive window of one stream; smaller while slow apps leave much untaken";
    HTTP2_CONNECTION_WINDOW_SIZE = Value("16777216"),
        "bytes, 65535 to 2147483647", "the receive window of one busy tunnel, not counting what slow apps leave untaken; that is at most three times as much";
    TUNNEL_MEMORY_LIMIT = Derived("a quarter of the memory limit of the daemon's cgroup; without one an eighth of the machine's memory"),
        "bytes, or a quantity such as 256Mi; at least 1Mi", "what all tunnels together may hold for apps that have not taken it yet; 1 MiB per tunnel is always there";
    HTTP2_FRAME_SIZE = Value("1048576"),
        "bytes, 16384 to 16777215", "the largest frame to accept";
    POOL_MAX_STREAMS_PER_CONNECTION = Value("100"),
        "streams, 1 to 65535", "how many connections share a tunnel before another one is opened";
    POOL_UNUSED_RELEASE_TIMEOUT = Value("5m"),
        "a duration, such as 30s or 5m", "how long a tunnel without streams is kept";
    IPV6_ENABLED = Value("true"),
        "true or false", "use IPv6 addresses of destinations that the mesh knows by name; listening follows the address families of each pod in any case";
}
"Connections to apps" {
    ENABLE_ORIG_SRC = Unset,
        "true or false", "whether apps see the address of their clients; unset: where that is possible, true: or the connection fails, false: apps see the pod's own";
    LOCALHOST_APP_TUNNEL = Value("true"),
        "true or false", "connect to apps that take a PROXY header (waypoints on this node) on loopback, not on the pod's address";
    ENABLE_RESPONSE_BAGGAGE = Value("true"),
        "true or false", "tell clients about the workload that they have reached";
}
"Process" {
    ZTUNNEL_WORKER_THREADS = Derived("ProxyConfig `concurrency`, else the CPU limit, else a quarter of the CPUs and at least 2"),
        "a number up to 4096 (0: all CPUs), or 1% to 100% of the CPUs", "threads that carry traffic";
    ZTUNNEL_RESOURCE_CPU_LIMIT = Unset,
        "a CPU quantity, such as 2 or 1500m", "an explicit CPU limit";
    ZTUNNEL_RESOURCE_CPU_REQUEST = Unset,
        "a CPU quantity, such as 2 or 1500m", "raises the automatic number of threads";
    ZTUNNEL_CPU_LIMIT = Derived("the CPUs of the machine"),
        "a CPU quantity, such as 2 or 1500m", "the CPUs there are";
    CONNECTION_TERMINATION_DEADLINE = Derived("from `TERMINATION_GRACE_PERIOD_SECONDS`, else 5s"),
        "a duration, such as 5s", "how long connections may go on after the stop signal";
    TERMINATION_GRACE_PERIOD_SECONDS = Unset,
        "seconds", "the grace period of the pod: the deadline is 5s less above 10s, else 1s less, at least 1s";
    RUST_LOG = Value("info"),
        "level or target=level, separated by commas; levels: off, error, warn, info, debug, trace", "what is logged";
    LOG_FORMAT = Value("plain"),
        "plain or json", "how it is logged";
    ACCESS_LOG_SAMPLE_PERCENT = Value("100"),
        "a percentage, such as 5 or 0.1, with up to three decimals", "how many of the connections that ended well have a line in the log; those that failed all have; metrics count every one";
    METRICS_PAIR_LIMIT = Value("5000"),
        "pairs, 1 to 1000000", "how many pairs of workloads that talk have traffic metrics of their own, at some 4 KiB each; more share one series, `overflow`";
    ZTUNNEL_API_SOCKET = Value("/var/run/ztunnel/api.sock"),
        "an absolute path of at most 107 bytes", "where enrollment is asked for";
    ZTUNNEL_STATE_DIR = Value("/var/run/ztunnel/pods"),
        "an absolute path", "what a restarted daemon knows the enrolled pods by";
    ZTUNNEL_BPF_DIR = Value("/sys/fs/bpf/ztunnel"),
        "an absolute path in a bpf file system", "where capture is pinned, so that it outlives the daemon";
}
"TCP connections" {
    KEEPALIVE_ENABLED = Value("true"),
        "true or false", "TCP keepalive, except towards apps: both ends are in the same pod";
    KEEPALIVE_TIME = Value("180s"),
        "a duration from 1s to 32767s", "idle time before the first keepalive probe";
    KEEPALIVE_INTERVAL = Value("180s"),
        "a duration from 1s to 32767s", "time between keepalive probes";
    KEEPALIVE_RETRIES = Value("9"),
        "probes, 1 to 127", "unanswered keepalive probes that end a connection";
    USER_TIMEOUT_ENABLED = Value("false"),
        "true or false", "TCP_USER_TIMEOUT of time + retries × interval";
}
"Known, with one value that can be honored" {
    PROXY_MODE = Value("shared"),
        "shared (dedicated does not exist here)", "one daemon for the pods of a node";
    ENABLE_PROXY = Value("true"),
        "true (a daemon that does not carry traffic does not exist here)", "carry traffic";
    UNSTABLE_ENABLE_SOCKS5 = Value("false"),
        "false (there is no SOCKS5 listener)", "listen for SOCKS5";
    FAKE_CA = Value("false"),
        "false (certificates come from a CA always)", "sign certificates with a built-in CA";
    LOCAL_XDS = Unset,
        "empty (workloads come from the xDS server only)", "static workloads in YAML";
    LOCAL_XDS_PATH = Unset,
        "empty (workloads come from the xDS server only)", "a file of static workloads";
}
}

/// Settings of other implementations that are passed over, because nothing of theirs exists here that could go wrong.
const IGNORED: &[(&str, &str)] = &[
    (
        "PACKET_MARK",
        "capture knows the daemon by its cgroup, not by a mark",
    ),
    ("INPOD_ENABLED", "pods always have their listeners inside"),
    (
        "INPOD_PORT_REUSE",
        "a new daemon takes over by replacing sockets in a map",
    ),
    ("INPOD_UDS", "pods come through the API socket"),
    ("PROXY_WORKLOAD_INFO", "belongs to PROXY_MODE=dedicated"),
    (
        "TRUST_DOMAIN",
        "the daemon's own comes from the control plane, like that of every workload",
    ),
    ("CLUSTER_DOMAIN", "there is no DNS proxy yet"),
    (
        "AUTHZ_POLICY_INFO_LOGGING",
        "every refused connection is logged",
    ),
    ("PREFERED_SERVICE_NAMESPACE", "there is no DNS proxy yet"),
];

/// `deploy/settings.md`.
pub(crate) fn reference() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Generated by `ztunnel settings`; a test fails when this file is stale. Environment variables, read once at the\n\
         start. A wrong value stops the start, and all wrong values are named at once. Durations take units (`500ms`,\n\
         `90s`, `1m30s`, `24h`); a bare number means seconds. A name ending in `*` is a family of variables.\n",
    );
    for (group, settings) in GROUPS {
        let _ = write!(
            text,
            "\n## {group}\n\n| Variable | Default | Accepted | Meaning |\n|---|---|---|---|\n"
        );
        for setting in *settings {
            let star = if setting.name.ends_with('_') { "*" } else { "" };
            let default = match setting.default {
                Value(value) => format!("`{value}`"),
                Unset => "–".to_owned(),
                Derived(words) => words.to_owned(),
            };
            let Setting {
                name,
                accepted,
                meaning,
                ..
            } = setting;
            let _ = writeln!(
                text,
                "| `{name}{star}` | {default} | {accepted} | {meaning} |"
            );
        }
    }
    let _ = write!(
        text,
        "\n## Files\n\n\
         `{MESH_FILE}` (relative to the working directory; optional) is a MeshConfig in YAML, of which the key\n\
         `defaultConfig` is read. It and `PROXY_CONFIG` are ProxyConfigs, of which `discoveryAddress`, `concurrency`,\n\
         `proxyAdminPort`, `statsPort` and `proxyMetadata` are read; the variables above win.\n\n\
         ## Passed over\n\n| Variable | Why |\n|---|---|\n"
    );
    for (name, why) in IGNORED {
        let _ = writeln!(text, "| `{name}` | {why} |");
    }
    text
}
