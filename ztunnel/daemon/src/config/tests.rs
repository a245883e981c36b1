use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use ztunnel_node::control_plane::{RootSource, TokenSource};
use ztunnel_node::inbound::InboundSettings;

use super::Config;
use super::settings::{MESH_FILE, reference};
use super::source::{ConfigError, Files};
use super::value::{self, Threads};
use ztunnel_node::telemetry::LogFormat;
use ztunnel_sys::socket::Keepalive;

const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const SECOND: Duration = Duration::from_secs(1);

struct FakeFiles(BTreeMap<PathBuf, String>);

impl Files for FakeFiles {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.0
            .get(path)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_file(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }
}

/// A pod of four CPUs as the chart makes it, with changes: `NAME=value`, `-NAME` to unset, `@path=content` for a
/// file, `-@path` for none.
fn read(changes: &[&str]) -> Result<Config, ConfigError> {
    let mut env = BTreeMap::from([("NODE_NAME".to_owned(), "node-1".to_owned())]);
    let mut files: BTreeMap<PathBuf, String> = [ROOT, TOKEN]
        .map(|path| (path.into(), String::new()))
        .into();
    for change in changes {
        if let Some(path) = change.strip_prefix("-@") {
            files.remove(Path::new(path));
        } else if let Some(name) = change.strip_prefix('-') {
            env.remove(name);
        } else {
            let (name, value) = change.split_once('=').expect("NAME=value");
            match name.strip_prefix('@') {
                Some(path) => drop(files.insert(path.into(), value.to_owned())),
                None => drop(env.insert(name.to_owned(), value.to_owned())),
            }
        }
    }
    let cpus = NonZeroUsize::new(4).expect("not zero");
    Config::from_sources(&env, &FakeFiles(files), cpus)
}

fn good(changes: &[&str]) -> Config {
    read(changes).unwrap_or_else(|err| panic!("{changes:?}: {err}"))
}

/// The one complaint about these changes.
fn complaint(changes: &[&str]) -> String {
    let err = match read(changes) {
        Err(err) => err,
        Ok(_) => panic!("{changes:?} was accepted"),
    };
    assert_eq!(err.wrong.len(), 1, "{changes:?}: {err}");
    err.wrong[0].to_string()
}

fn root_file(roots: &RootSource) -> Option<&Path> {
    match roots {
        RootSource::File(path) => Some(path),
        RootSource::Pem(_) | RootSource::System => None,
    }
}

#[test]
fn a_node_name_is_enough() {
    let config = good(&[]);
    assert_eq!(config.xds.address, "https://localhost:15012/");
    assert_eq!(config.ca.address, "https://localhost:15012/");
    assert_eq!(root_file(&config.xds.roots), Some(Path::new(ROOT)));
    assert!(matches!(&config.ca.token, Some(TokenSource::File(path)) if path == Path::new(TOKEN)));
    assert_eq!(config.ca.cluster_id, "Kubernetes");
    assert_eq!(config.secret_ttl, 86_400 * SECOND);
    assert_eq!(config.tunnel.stream_window, 4 << 20);
    assert_eq!(config.tunnel.connection_window, 16 << 20);
    assert_eq!(config.tunnel.memory.limit(), 256 << 20);
    assert_eq!(config.tunnel.frame_size, 1 << 20);
    assert_eq!(config.tunnel.max_streams, 100);
    assert_eq!(config.tunnel.idle_release, 300 * SECOND);
    let keepalive = Keepalive {
        time: 180 * SECOND,
        interval: 180 * SECOND,
        retries: 9,
    };
    assert_eq!(config.liveness.keepalive, Some(keepalive));
    assert_eq!(config.liveness.user_timeout, None);
    assert!(!config.xds.tls.tls12);
    assert!(!config.tls.only_post_quantum);
    assert_eq!(config.drain_deadline, 5 * SECOND);
    assert_eq!(config.worker_threads.get(), 2);
    assert_eq!(
        (&*config.log.filter, config.log.format),
        ("info", LogFormat::Plain)
    );
    assert_eq!(config.node.network, "");
    assert_eq!(config.paths.bpf_dir, Path::new("/sys/fs/bpf/ztunnel"));
}

#[test]
fn the_environment_of_the_chart_is_understood() {
    let config = good(&[
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "CA_ADDRESS=istiod-rev.mesh.svc:15012",
        "XDS_ADDRESS=https://[fd00::1]:15010",
        "LOG_FORMAT=json",
        "RUST_LOG=info,access=debug,ztunnel::proxy=off",
        "RUST_BACKTRACE=1",
        "ISTIO_META_CLUSTER_ID=east",
        "CLUSTER_ID=ignored",
        "INPOD_ENABLED=true",
        "TERMINATION_GRACE_PERIOD_SECONDS=30",
        "POD_NAME=ztunnel-x",
        "POD_NAMESPACE=istio-system",
        "INSTANCE_IP=10.1.0.7",
        "SERVICE_ACCOUNT=ztunnel",
        "ZTUNNEL_CPU_LIMIT=16",
        "ISTIO_META_ENABLE_HBONE=true",
        "ISTIO_METAJSON_LABELS={\"app\":\"ztunnel\"}",
        "NETWORK=net-1",
        "XDS_HEADER_X-Tenant=blue",
    ]);
    assert_eq!(config.ca.address, "https://istiod-rev.mesh.svc:15012/");
    assert_eq!(config.xds.address, "https://[fd00::1]:15010/");
    assert_eq!(
        config.xds.headers,
        [("x-tenant".to_owned(), "blue".to_owned())]
    );
    assert!(config.ca.headers.is_empty());
    assert_eq!(config.ca.cluster_id, "east");
    assert_eq!(config.drain_deadline, 25 * SECOND);
    assert_eq!(config.worker_threads.get(), 4);
    assert_eq!(config.log.format, LogFormat::Json);
    let description = &config.node.description;
    assert_eq!(description.pod_name, "ztunnel-x");
    assert_eq!(description.namespace, "istio-system");
    assert_eq!(description.node_name, "node-1");
    assert_eq!(description.instance_ips, [IpAddr::from([10, 1, 0, 7])]);
    assert_eq!(
        serde_json::to_value(&description.metadata).expect("plain values"),
        json!({ "CLUSTER_ID": "east", "ENABLE_HBONE": "true", "LABELS": { "app": "ztunnel" } })
    );
}

#[test]
fn later_sources_win_field_by_field() {
    let mesh = format!(
        "@{MESH_FILE}=trustDomain: x\ndefaultConfig:\n  discoveryAddress: from-file:1\n  concurrency: 3\n  \
         statsPort: 15020\n  proxyMetadata:\n    ISTIO_META_A: file\n    B: file\n    C: file\n    NAME: renamed\n"
    );
    let config = good(&[&mesh]);
    assert_eq!(config.xds.address, "https://from-file:1/");
    assert_eq!(config.worker_threads.get(), 3);

    let env =
        "PROXY_CONFIG={\"concurrency\": 0, \"proxyMetadata\": {\"B\": \"env\", \"C\": \"env\"}}";
    let config = good(&[
        &mesh,
        env,
        "ISTIO_META_C=variable",
        "XDS_ADDRESS=variable:2",
    ]);
    assert_eq!(config.xds.address, "https://variable:2/");
    assert_eq!(config.worker_threads.get(), 4);
    let metadata = |key: &str| config.node.description.metadata[key].as_str();
    assert_eq!(metadata("A"), Some("file"));
    assert_eq!(metadata("B"), Some("env"));
    assert_eq!(metadata("C"), Some("variable"));
    assert_eq!(metadata("NAME"), Some("renamed"));

    good(&["PROXY_CONFIG=discoveryAddress: without-metadata:1"]);
    let unquoted = good(&["PROXY_CONFIG=proxyMetadata: {ENABLE_HBONE: true, N: 7}"]);
    assert_eq!(
        unquoted.node.description.metadata["ENABLE_HBONE"],
        json!("true")
    );
    good(&["PROXY_CONFIG="]);
    good(&[&format!("@{MESH_FILE}=")]);
}

#[test]
fn a_wrong_value_is_named_with_what_is_accepted() {
    for (change, expected) in [
        ("XDS_ON_DEMAND=yes", "neither true nor false"),
        ("SECRET_TTL=soon", "SECRET_TTL=\"soon\": not a duration"),
        ("SECRET_TTL=0", "not between 1s and"),
        ("SECRET_TTL=9999999999d", "too long"),
        (
            "CA_ADDRESS=",
            "CA_ADDRESS=\"\": empty, and without a CA no pod has an identity",
        ),
        (
            "XDS_ADDRESS=",
            "XDS_ADDRESS=\"\": empty turns discovery off",
        ),
        ("XDS_ADDRESS=http://istiod:15010", "over https only"),
        (
            "XDS_ADDRESS=istiod:15012/path",
            "more than a host and a port",
        ),
        ("XDS_ADDRESS=istiod:99999", "not a"),
        ("XDS_ADDRESS=a b", "not an address"),
        ("XDS_ADDRESS=:15012", "not a"),
        (
            "PROXY_CONFIG=discoveryAddress: http://a",
            "discoveryAddress=\"http://a\" of the ProxyConfig",
        ),
        (
            "CA_ROOT_CA=/no/such.pem",
            "CA_ROOT_CA=\"/no/such.pem\": no such file; accepted: the path of a PEM",
        ),
        ("AUTH_TOKEN=./no/such", "AUTH_TOKEN: looks like a path"),
        ("AUTH_TOKEN=", "AUTH_TOKEN: empty"),
        ("AUTH_TOKEN=a b", "AUTH_TOKEN: neither a file nor a token"),
        ("ALT_CA_HOSTNAME=a/b", "not a name"),
        ("CA_HEADER_a b=x", "CA_HEADER_a b: not a name of a header"),
        (
            "CA_HEADER_x-bin=x",
            "CA_HEADER_x-bin: not a name of a header",
        ),
        ("XDS_HEADER_X=é", "XDS_HEADER_X: not a value of a header"),
        ("XDS_HEADER_AUTHORIZATION=x", "is ours"),
        ("ISTIO_META_CLUSTER_ID=a b", "not an id"),
        (
            "INSTANCE_IP=10.0.0.1,x",
            "INSTANCE_IP=\"10.0.0.1,x\": \"x\" is no IP address",
        ),
        ("POD_NAME=a~b", "POD_NAME=\"a~b\": not a name"),
        ("-NODE_NAME", "NODE_NAME: not set"),
        ("NODE_NAME=", "NODE_NAME=\"\": empty"),
        (
            "ISTIO_METAJSON_LABELS={",
            "ISTIO_METAJSON_LABELS=\"{\": EOF",
        ),
        (
            "KEEPALIVE_ENABLED=yes",
            "KEEPALIVE_ENABLED=\"yes\": neither true nor false; accepted: true or false",
        ),
        ("TLS12_ENABLED=1", "neither true nor false"),
        (
            "COMPLIANCE_POLICY=fips-140-2",
            "unknown policy; accepted: pqc",
        ),
        ("HTTP2_STREAM_WINDOW_SIZE=0", "not between 1 and 2147483647"),
        ("HTTP2_CONNECTION_WINDOW_SIZE=4096", "not between 65535 and"),
        ("TUNNEL_MEMORY_LIMIT=512Ki", "less than 1Mi"),
        ("TUNNEL_MEMORY_LIMIT=-1", "not a number of bytes"),
        ("TUNNEL_MEMORY_LIMIT=99999999Ti", "in range"),
        (
            "HTTP2_FRAME_SIZE=16777216",
            "not between 16384 and 16777215",
        ),
        (
            "POOL_MAX_STREAMS_PER_CONNECTION=-1",
            "not a whole number in range",
        ),
        ("KEEPALIVE_TIME=500ms", "not between 1s and 32767s"),
        ("KEEPALIVE_RETRIES=128", "not between 1 and 127"),
        ("ZTUNNEL_WORKER_THREADS=0%", "not between 1 and 100"),
        ("ZTUNNEL_WORKER_THREADS=many", "not a whole number"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT=2Gi", "not a"),
        ("RUST_LOG=inof", "\"inof\" is no level"),
        ("RUST_LOG=ztunnel=", "\"\" is no level"),
        ("LOG_FORMAT=JSON", "unknown format; accepted: plain or json"),
        ("ZTUNNEL_API_SOCKET=api.sock", "not an absolute path"),
        ("PROXY_CONFIG=concurrency: many", "PROXY_CONFIG="),
        ("SECRET_TTL=24h\u{fffd}", "not valid UTF-8"),
    ] {
        let complaint = complaint(&[change]);
        assert!(complaint.contains(expected), "{change}: {complaint}");
        assert!(complaint.contains("; accepted: "), "{change}: {complaint}");
    }
    let file = complaint(&[&format!("@{MESH_FILE}=defaultConfig: [")]);
    assert!(
        file.starts_with(&format!("the file {MESH_FILE}: ")),
        "{file}"
    );
    let long = complaint(&[&format!("CA_ROOT_CA=/{}", "x".repeat(4096))]);
    assert!(long.len() < 300, "{long}");
}

#[test]
fn apps_see_whom_the_settings_say() {
    use ztunnel_node::task::SourceAddress;
    let default = good(&[]).inbound;
    assert_eq!(default, InboundSettings::default());
    assert_eq!(default.source, SourceAddress::ClientIfPossible);
    assert!(default.localhost_app_tunnel && default.response_baggage);
    for (change, source) in [
        ("ENABLE_ORIG_SRC=true", SourceAddress::Client),
        ("ENABLE_ORIG_SRC=false", SourceAddress::Pod),
    ] {
        assert_eq!(good(&[change]).inbound.source, source);
    }
    assert!(
        !good(&["LOCALHOST_APP_TUNNEL=false"])
            .inbound
            .localhost_app_tunnel
    );
    assert!(
        !good(&["ENABLE_RESPONSE_BAGGAGE=false"])
            .inbound
            .response_baggage
    );
    for wrong in [
        "ENABLE_ORIG_SRC=yes",
        "LOCALHOST_APP_TUNNEL=1",
        "ENABLE_RESPONSE_BAGGAGE=on",
    ] {
        assert!(
            complaint(&[wrong]).contains("neither true nor false"),
            "{wrong}"
        );
    }
}

#[test]
fn the_daemon_has_a_pod_of_its_own_when_all_of_its_name_is_known() {
    let all = [
        "POD_NAME=ztunnel-x",
        "POD_NAMESPACE=mesh",
        "SERVICE_ACCOUNT=zt",
    ];
    let pod = good(&all).node.own_pod.unwrap();
    assert_eq!(
        (pod.to_string().as_str(), &*pod.service_account),
        ("mesh/ztunnel-x", "zt")
    );
    for missing in 0..all.len() {
        let some: Vec<_> = (0..all.len())
            .filter(|at| *at != missing)
            .map(|at| all[at])
            .collect();
        assert_eq!(good(&some).node.own_pod, None, "{some:?}");
    }
    assert!(complaint(&["SERVICE_ACCOUNT=a/b"]).contains("SERVICE_ACCOUNT"));
}

#[test]
fn what_cannot_be_honored_stops_the_start() {
    for change in [
        "PROXY_MODE=dedicated",
        "ENABLE_PROXY=false",
        "UNSTABLE_ENABLE_SOCKS5=true",
        "FAKE_CA=true",
        "LOCAL_XDS=workloads: []",
        "LOCAL_XDS_PATH=/x",
    ] {
        let complaint = complaint(&[change]);
        assert!(complaint.contains("cannot be honored"), "{complaint}");
    }
    good(&["PROXY_MODE=shared"]);
    good(&["PACKET_MARK=1337", "INPOD_UDS=/x", "SOMETHING_ELSE=x"]);
}

#[test]
fn all_that_is_wrong_is_reported_at_once_and_no_secret_is_shown() {
    let root = format!("-@{ROOT}");
    let changes = [
        "-NODE_NAME",
        &root,
        "SECRET_TTL=x",
        "AUTH_TOKEN=hush hush",
        "XDS_HEADER_KEY=hush\nhush",
        "LOG_FORMAT=xml",
        "PROXY_MODE=dedicated",
    ];
    let err = read(&changes).expect_err("most of it is wrong");
    let names: Vec<&str> = err.wrong.iter().map(|wrong| &*wrong.name).collect();
    assert_eq!(
        names,
        [
            "PROXY_MODE",
            "NODE_NAME",
            "AUTH_TOKEN",
            "XDS_ROOT_CA",
            "XDS_HEADER_KEY",
            "CA_ROOT_CA",
            "SECRET_TTL",
            "LOG_FORMAT"
        ]
    );
    let text = err.to_string();
    assert!(!text.contains("hush"), "{text}");
    assert!(
        text.contains("no such file (this is the default)"),
        "{text}"
    );

    let config = good(&["AUTH_TOKEN=hush", "CA_HEADER_KEY=hush"]);
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn roots_and_tokens_are_files_or_literals() {
    let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let config = good(&[
        "@/roots.pem=x",
        "XDS_ROOT_CA=/roots.pem",
        &format!("CA_ROOT_CA={pem}"),
        "AUTH_TOKEN=ey.J.x",
    ]);
    assert_eq!(root_file(&config.xds.roots), Some(Path::new("/roots.pem")));
    assert!(matches!(&config.ca.roots, RootSource::Pem(text) if text == pem));
    assert!(matches!(&config.ca.token, Some(TokenSource::Literal(_))));
    assert!(matches!(
        good(&["CA_ROOT_CA=SYSTEM"]).ca.roots,
        RootSource::System
    ));
    assert!(good(&[&format!("-@{TOKEN}")]).ca.token.is_none());
    let strict = good(&["COMPLIANCE_POLICY=pqc"]);
    for tls in [strict.tls, strict.xds.tls, strict.ca.tls] {
        assert!(tls.only_post_quantum && !tls.tls12);
    }
    let lenient = good(&["TLS12_ENABLED=true"]);
    for tls in [lenient.tls, lenient.xds.tls, lenient.ca.tls] {
        assert!(tls.tls12 && !tls.only_post_quantum);
    }
    let both = complaint(&["COMPLIANCE_POLICY=pqc", "TLS12_ENABLED=true"]);
    assert!(
        both.contains("no key exchange that COMPLIANCE_POLICY=pqc allows"),
        "{both}"
    );
    let lists = good(&["CRL_PATH=/not/there/yet.pem"]);
    assert_eq!(
        lists.crl_path.as_deref(),
        Some(Path::new("/not/there/yet.pem"))
    );
    assert_eq!(good(&["CRL_PATH="]).crl_path, None);
}

#[test]
fn addresses_are_asked_for_on_demand_or_held_all() {
    use ztunnel_node::discovery::Subscription::{Everything, OnDemand};
    assert_eq!(good(&[]).subscription, Everything);
    assert_eq!(good(&["XDS_ON_DEMAND=false"]).subscription, Everything);
    assert_eq!(good(&["XDS_ON_DEMAND=true"]).subscription, OnDemand);
}

#[test]
fn durations_have_units() {
    for (text, expected) in [
        ("90", 90 * SECOND),
        ("90s", 90 * SECOND),
        ("1m30s", 90 * SECOND),
        ("1m 30s", 90 * SECOND),
        ("500ms", SECOND / 2),
        ("24h", 86_400 * SECOND),
        ("7d", 7 * 86_400 * SECOND),
        ("0", Duration::ZERO),
    ] {
        assert_eq!(value::duration(text), Ok(expected), "{text}");
    }
    for text in [
        "",
        " ",
        "s",
        "1.5h",
        "-1s",
        "1x",
        "1s1",
        "99999999999999999999s",
    ] {
        assert!(value::duration(text).is_err(), "{text}");
    }
}

#[test]
fn the_drain_deadline_leaves_time_to_exit() {
    for (grace, expected) in [("30", 25), ("11", 6), ("10", 9), ("1", 1), ("0", 1)] {
        let config = good(&[&format!("TERMINATION_GRACE_PERIOD_SECONDS={grace}")]);
        assert_eq!(config.drain_deadline, expected * SECOND, "{grace}");
    }
    let both = [
        "TERMINATION_GRACE_PERIOD_SECONDS=30",
        "CONNECTION_TERMINATION_DEADLINE=2s",
    ];
    assert_eq!(good(&both).drain_deadline, 2 * SECOND);
}

#[test]
fn the_memory_of_tunnels_follows_what_there_is() {
    const MACHINE: &str = "@/proc/meminfo=MemTotal:        8388608 kB\n";
    const MOUNTS: &str =
        "@/proc/self/mountinfo=30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const CGROUP: &str = "@/proc/self/cgroup=0::/one\n";
    for (changes, expected) in [
        (&["TUNNEL_MEMORY_LIMIT=100Mi"][..], 100 << 20),
        (&["TUNNEL_MEMORY_LIMIT=2000000"], 2_000_000),
        (&["TUNNEL_MEMORY_LIMIT=2G", MACHINE], 2_000_000_000),
        (&[MACHINE], 1 << 30),
        (
            &[
                MACHINE,
                MOUNTS,
                CGROUP,
                "@/sys/fs/cgroup/one/memory.max=536870912\n",
            ],
            128 << 20,
        ),
        (
            &[
                MACHINE,
                MOUNTS,
                CGROUP,
                "@/sys/fs/cgroup/one/memory.max=9223372036854771712\n",
            ],
            1 << 30,
        ),
    ] {
        let limit = good(changes).tunnel.memory.limit();
        assert_eq!(limit, expected, "{changes:?}");
    }
}

#[test]
fn worker_threads_follow_the_cpus() {
    for (changes, expected) in [
        (&[][..], 2),
        (&["ZTUNNEL_CPU_LIMIT=64"], 16),
        (
            &["ZTUNNEL_CPU_LIMIT=64", "ZTUNNEL_RESOURCE_CPU_REQUEST=20"],
            20,
        ),
        (&["ZTUNNEL_RESOURCE_CPU_LIMIT=1"], 1),
        (
            &[
                "ZTUNNEL_RESOURCE_CPU_LIMIT=2500m",
                "ZTUNNEL_RESOURCE_CPU_REQUEST=200m",
            ],
            3,
        ),
        (&["ZTUNNEL_WORKER_THREADS=0"], 4),
        (
            &["ZTUNNEL_WORKER_THREADS=7", "ZTUNNEL_RESOURCE_CPU_LIMIT=1"],
            7,
        ),
        (&["ZTUNNEL_WORKER_THREADS=1%"], 1),
        (&["ZTUNNEL_WORKER_THREADS=51%"], 3),
        (&["ZTUNNEL_WORKER_THREADS=50%", "ZTUNNEL_CPU_LIMIT=64"], 32),
    ] {
        assert_eq!(good(changes).worker_threads.get(), expected, "{changes:?}");
    }
    assert_eq!(value::threads("100%"), Ok(Threads::Percent(100)));
}

#[test]
fn keepalive_and_user_timeout_are_turned_on_and_off() {
    let config = good(&[
        "KEEPALIVE_ENABLED=false",
        "USER_TIMEOUT_ENABLED=true",
        "KEEPALIVE_TIME=10s",
        "KEEPALIVE_INTERVAL=5s",
        "KEEPALIVE_RETRIES=2",
    ]);
    assert_eq!(config.liveness.keepalive, None);
    assert_eq!(config.liveness.user_timeout, Some(20 * SECOND));
}

#[test]
fn the_reference_of_reasons_is_fresh() {
    let written = include_str!("../../../../deploy/reasons.md");
    assert_eq!(
        written,
        ztunnel_node::explain::reason::reference(),
        "stale: run `cargo run -p ztunnel -- reasons > deploy/reasons.md`"
    );
}

#[test]
fn the_reference_of_metrics_is_fresh() {
    let written = include_str!("../../../../deploy/metrics.md");
    assert_eq!(
        written,
        ztunnel_node::telemetry::catalogue::reference(),
        "stale: run `cargo run -p ztunnel -- metrics > deploy/metrics.md`"
    );
}

#[test]
fn the_share_of_connections_in_the_log_is_a_percentage() {
    use ztunnel_node::telemetry::Share;
    assert_eq!(good(&[]).log.told, Share::ALL);
    let some = good(&["ACCESS_LOG_SAMPLE_PERCENT=0.5"]);
    assert_eq!(Ok(some.log.told), "0.5".parse());
    let wrong = complaint(&["ACCESS_LOG_SAMPLE_PERCENT=101"]);
    assert!(wrong.contains("ACCESS_LOG_SAMPLE_PERCENT"), "{wrong}");
}

#[test]
fn pairs_with_metrics_of_their_own_are_bounded_as_told() {
    use ztunnel_node::telemetry::MOST_PAIRS;
    assert_eq!(good(&[]).pair_limit, MOST_PAIRS);
    assert_eq!(good(&["METRICS_PAIR_LIMIT=7"]).pair_limit, 7);
    assert!(complaint(&["METRICS_PAIR_LIMIT=0"]).contains("METRICS_PAIR_LIMIT"));
}

#[test]
fn the_reference_of_settings_is_fresh() {
    let written = include_str!("../../../../deploy/settings.md");
    assert_eq!(
        written,
        reference(),
        "stale: run `cargo run -p ztunnel -- settings > deploy/settings.md`"
    );
}

#[test]
fn the_dump_shows_settings_under_their_names_and_no_secret() {
    let config = good(&[
        "@/token=the-token-in-a-file",
        "AUTH_TOKEN=literal-token",
        "XDS_HEADER_X_KEY=open-sesame",
        "CA_HEADER_X_KEY=open-sesame",
        "ENABLE_ORIG_SRC=false",
        "NETWORK=north",
        "ISTIO_META_A=b",
        "CONNECTION_TERMINATION_DEADLINE=1500ms",
        "PROXY_CONFIG={proxyAdminPort: 15099, statsPort: 15021}",
    ]);
    assert_eq!(config.admin_port, 15099);
    let dump = config.dump();
    let text = dump.to_string();
    for secret in ["literal-token", "the-token-in-a-file", "open-sesame"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    assert_eq!(dump["adminAddr"], json!({"Localhost": [true, 15099]}));
    assert_eq!(dump["xdsHeaders"], json!([["x_key", "<not shown>"]]));
    assert_eq!(dump["requireOriginalSource"], json!(false));
    assert_eq!(dump["network"], "north");
    assert_eq!(dump["proxyMetadata"]["A"], "b");
    assert_eq!(dump["proxyMode"], "Shared");
    assert_eq!(
        dump["selfTerminationDeadline"],
        json!({"nanos": 500_000_000, "secs": 1})
    );
    assert_eq!(good(&[]).admin_port, 15000);
}
