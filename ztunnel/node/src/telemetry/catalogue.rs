//! Every family of metrics there is: one table for making them and for `deploy/metrics.md`. A family that is not here
//! cannot be made.

use std::fmt::Write as _;

/// What Prometheus calls a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One family.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// What is counted, or measured in.
    pub unit: &'static str,
    /// Ends with a full stop.
    pub help: &'static str,
}

use Kind::{Counter, Gauge, Histogram};

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        }
    }
}

const SOURCE_AND_NAME: &[&str] = &[
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "hostname",
];

/// In the order of the contract.
const TRAFFIC: &[&str] = &[
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

macro_rules! families {
    ($($group:literal $about:literal {
        $($id:ident = $kind:ident $name:literal $labels:expr, $unit:literal, $help:literal;)*
    })*) => {
        $($(
            pub const $id: &Family = &Family {
                name: $name, kind: $kind, labels: $labels, unit: $unit, help: $help,
            };
        )*)*
        const GROUPS: &[(&str, &str, &[&Family])] = &[$(($group, $about, &[$($id),*])),*];
    };
}

families! {
"Traffic" "Names, labels and the values of labels are those of Istio's node proxy. One series for each pair that talks; what is not known is \
`unknown`. A pair that had no connection for 15 minutes goes; past `METRICS_PAIR_LIMIT` pairs new ones share a series \
whose labels say `overflow`." {
    TCP_OPENED = Counter "istio_tcp_connections_opened_total" TRAFFIC, "connections",
        "Connections whose ends are known.";
    TCP_CLOSED = Counter "istio_tcp_connections_closed_total" TRAFFIC, "connections",
        "Connections that have ended, by how.";
    TCP_RECEIVED = Counter "istio_tcp_received_bytes_total" TRAFFIC, "bytes",
        "Bytes from who connected to who was connected to.";
    TCP_SENT = Counter "istio_tcp_sent_bytes_total" TRAFFIC, "bytes",
        "Bytes back to who connected.";
    TCP_FAILED = Counter "istio_tcp_connections_failed_total" TRAFFIC, "connections",
        "Connections that have ended otherwise than in order.";
    SOCKETS_OPEN = Gauge "istio_tcp_sockets_open" &["reporter"], "sockets",
        "Connections that were accepted and are open.";
}
"Control plane, pods and revocation" "Names and labels are those of Istio's node proxy." {
    BUILD = Gauge "istio_build" &["component", "tag"], "1",
        "The version of this component.";
    XDS_TERMINATIONS = Counter "istio_xds_connection_terminations_total" &["reason"], "streams",
        "Streams from the control plane that have ended, by why.";
    XDS_MESSAGES = Counter "istio_xds_message_total" &["url"], "responses",
        "Responses of the control plane.";
    XDS_BYTES = Counter "istio_xds_message_bytes_total" &["url"], "bytes",
        "Bytes of resources in responses of the control plane.";
    ON_DEMAND_DNS = Counter "istio_on_demand_dns_total" SOURCE_AND_NAME, "connections",
        "Connections that needed the addresses of a name, from the cache or not; past 1,000 series the rest is in one whose labels say `overflow`.";
    CRL_REJECTIONS = Counter "istio_crl_policy_rejections_total" &["reporter"], "tunnels",
        "Tunnels that were not made, or cut, since a certificate of the peer is revoked.";
    CRL_UNTRACKED = Counter "istio_crl_untracked_connections_total" &["reporter"], "tunnels",
        "Tunnels that were refused, since no more can be watched for certificates that are revoked later.";
    PODS_ACTIVE = Gauge "workload_manager_active_proxy_count" &[], "pods",
        "Pods that are served.";
    PODS_PENDING = Gauge "workload_manager_pending_proxy_count" &[], "pods",
        "Pods that should be served and are not: their connections are refused.";
    PODS_STARTED = Counter "workload_manager_proxies_started_total" &[], "pods",
        "Pods that came to be served.";
    PODS_STOPPED = Counter "workload_manager_proxies_stopped_total" &[], "pods",
        "Pods that are served no more.";
}
"Pods" "Ours." {
    PODS = Gauge "ztunnel_pods" &["state"], "pods",
        "Enrolled pods, by what was measured in the kernel in the last 30 s: `captured`; `defective`, with something of the capture missing, so that connections may fail or go past the mesh; `leaving`, with the last connections ending; `unmeasured`, for a moment after they were enrolled.";
}
"Connections" "Ours. `reason` is a code of [`reasons.md`](reasons.md)." {
    CONNECTIONS = Counter "ztunnel_connections_total" &["reporter", "reason"], "connections",
        "Connections that have ended, by reason; also those that were refused before their ends were known.";
    CONNECTION_BYTES = Counter "ztunnel_connection_bytes_total" &["reporter", "reason"], "bytes",
        "Bytes of connections that have ended, both ways, by reason.";
    CONNECT_SECONDS = Histogram "ztunnel_connect_duration_seconds" &["path"], "seconds",
        "From accept until a connection can carry bytes: what the proxy adds to a connect. `path` is `outbound`, `inbound_hbone` or `inbound_plaintext`.";
}
"Tunnels" "Ours. `reason` is a code of [`reasons.md`](reasons.md)." {
    POOL_TUNNELS = Gauge "ztunnel_tunnels_open" &[], "tunnels",
        "Tunnels of pods here to peers.";
    POOL_STREAMS = Gauge "ztunnel_tunnel_streams_open" &[], "streams",
        "Places of connections in those tunnels.";
    POOL_CHECKOUTS = Counter "ztunnel_tunnel_checkouts_total" &["how"], "connections",
        "Connections that needed a tunnel: they `found` one, `opened` one, or `waited` for one that was being made.";
    POOL_DIAL_SECONDS = Histogram "ztunnel_tunnel_dial_duration_seconds" &[], "seconds",
        "From the connect until a tunnel takes streams: TCP, TLS and HTTP/2. Its count is that of tunnels made.";
    POOL_DIALS_FAILED = Counter "ztunnel_tunnel_dials_failed_total" &["reason"], "tunnels",
        "Tunnels that could not be made, by reason.";
    POOL_RETIRED = Counter "ztunnel_tunnels_retired_total" &["why"], "tunnels",
        "Tunnels that take no more connections, by why: `full`, `idle` for long, `evicted` for others, `stopping` with the pod or the daemon, `closed` by the peer, `silent`, `broken`, `revoked`.";
    TUNNELS_SERVED = Gauge "ztunnel_tunnels_served" &[], "tunnels",
        "Tunnels of peers to pods here.";
    TUNNELS_ACCEPTING = Gauge "ztunnel_tunnel_handshakes_running" &[], "handshakes",
        "Connections to 15008 that are becoming tunnels; at most 1,024 for each pod and worker, then the slowest are refused.";
    TUNNEL_ACCEPT_SECONDS = Histogram "ztunnel_tunnel_accept_duration_seconds" &[], "seconds",
        "From accept until a tunnel of a peer takes streams: the TLS handshake, mostly.";
    TUNNELS_REFUSED = Counter "ztunnel_tunnels_refused_total" &["reason"], "connections",
        "Connections to 15008 that did not become a tunnel, by reason.";
    TUNNEL_MEMORY = Gauge "ztunnel_tunnel_memory_bytes" &["what"], "bytes",
        "What peers may make tunnels hold until apps take it: as `reserved` now, and the `limit` (`TUNNEL_MEMORY_LIMIT`).";
}
"The daemon" "Ours." {
    CERTIFICATE_SECONDS_LEFT = Gauge "ztunnel_certificate_seconds_left" &["identity"], "seconds",
        "Until peers stop accepting the certificate of an identity; negative when they have.";
    CA_SECONDS = Histogram "ztunnel_certificate_request_duration_seconds" &[], "seconds",
        "From asking the CA for a certificate to its answer.";
    CA_FAILED = Counter "ztunnel_certificate_requests_failed_total" &["reason"], "requests",
        "Requests to the CA that brought no certificate, by the reason that connections fail with if there is none.";
    READY = Gauge "ztunnel_ready" &[], "1",
        "1 when readiness probes are answered with yes.";
    CONTROL_PLANE_CONNECTED = Gauge "ztunnel_control_plane_connected" &[], "1",
        "1 while there is a stream from the control plane.";
    CONTROL_PLANE_REJECTED = Gauge "ztunnel_control_plane_rejected_resources" &[], "resources",
        "Resources that are not in force as the control plane wants them, at most 1,000.";
    QUEUE_LENGTH = Gauge "ztunnel_queue_length" &["queue"], "entries",
        "What waits now: `log` for being written, `lookups` for the control plane to be asked, `certificates` for the CA, `names` for a name server, `worker-N` for that thread (commands about pods, not traffic).";
    QUEUE_LIMIT = Gauge "ztunnel_queue_limit" &["queue"], "entries",
        "How long a queue may become. When it is full, log lines are dropped (and counted), names are not resolved, and whoever comes to one of the others waits. `certificates` has no limit of its own: each identity is there once at most.";
    LOG_DROPPED = Counter "ztunnel_log_dropped_total" &[], "lines",
        "Log lines that nobody took in time.";
    LOG_SAMPLED_OUT = Counter "ztunnel_log_sampled_out_total" &[], "connections",
        "Connections that ended well and have no line in the log, since only a share of them has (`ACCESS_LOG_SAMPLE_PERCENT`).";
    METRICS_OVERFLOWED = Counter "ztunnel_metrics_overflowed_total" &[], "connections",
        "Connections counted in the overflow series, since too many pairs talk.";
    METRICS_PAIRS = Gauge "ztunnel_metrics_pairs" &["what"], "pairs",
        "Pairs that have traffic series of their own: `known` now, and the `limit` (`METRICS_PAIR_LIMIT`).";
}
"Workers" "Names and labels are those of Istio's node proxy. Absent are those about tasks and queues of the runtime: here they do not say what they say there." {
    WORKERS = Gauge "tokio_num_workers" &[], "threads",
        "Threads that carry traffic.";
    WORKER_BUSY = Counter "tokio_worker_total_busy_duration_seconds_total" &["worker"], "seconds",
        "How long a worker was busy: when that is all the time, it is what connections wait for.";
    WORKER_PARKED = Counter "tokio_worker_park_count_total" &["worker"], "1",
        "How often a worker had nothing to do.";
}
"The process" "As every exporter has them." {
    PROCESS_CPU_SECONDS = Counter "process_cpu_seconds_total" &[], "seconds",
        "CPU time, in user and kernel.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" &[], "descriptors",
        "The limit of open file descriptors.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" &[], "descriptors",
        "Open file descriptors.";
    PROCESS_RESIDENT_BYTES = Gauge "process_resident_memory_bytes" &[], "bytes",
        "Resident memory.";
    PROCESS_START_SECONDS = Gauge "process_start_time_seconds" &[], "seconds since 1970",
        "When the process was started.";
    PROCESS_THREADS = Gauge "process_threads" &[], "threads",
        "Threads.";
    PROCESS_VIRTUAL_BYTES = Gauge "process_virtual_memory_bytes" &[], "bytes",
        "Virtual memory.";
}
}

/// All of them, in groups.
pub fn families() -> impl Iterator<Item = &'static Family> {
    GROUPS
        .iter()
        .flat_map(|(_, _, families)| *families)
        .copied()
}

/// `deploy/metrics.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated by `ztunnel metrics`; a test fails when this file is stale. Scraped from port 15020, `/metrics` or\n\
         `/stats/prometheus`. A family without a series is not exposed.\n",
    );
    for (group, about, families) in GROUPS {
        let _ = write!(
            text,
            "\n## {group}\n\n{about}\n\n| Name | Type | Labels | Unit | Meaning |\n|---|---|---|---|---|\n"
        );
        for Family {
            name,
            kind,
            labels,
            unit,
            help,
        } in *families
        {
            let labels = if *labels == TRAFFIC {
                "traffic".to_owned()
            } else if labels.is_empty() {
                "–".to_owned()
            } else {
                quoted(labels)
            };
            let kind = kind.as_str();
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {unit} | {help} |");
        }
    }
    let traffic = quoted(TRAFFIC);
    let _ = write!(
        text,
        "\n## The labels called traffic\n\n{traffic}.\n\n\
         `reporter` is `source` where an app of this node connected, `destination` where one was connected to.\n\
         `connection_security_policy` is `mutual_tls` for what came or went through a tunnel. `response_flags` are `-` for\n\
         a connection that ended well, else what [`reasons.md`](reasons.md) has in its last column.\n"
    );
    text
}

fn quoted(labels: &[&str]) -> String {
    let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
    labels.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_family_is_described_and_its_name_follows_the_rules() {
        let mut names = BTreeSet::new();
        for family in families() {
            let Family {
                name, kind, help, ..
            } = family;
            assert!(names.insert(name), "{name} is there twice");
            assert!(help.ends_with('.') && !help.contains('|'), "{name}: {help}");
            assert!(!family.unit.is_empty(), "{name}");
            if name.starts_with("ztunnel_") {
                // https://prometheus.io/docs/practices/naming/
                assert_eq!(name.ends_with("_total"), *kind == Counter, "{name}");
                let base = name.strip_suffix("_total").unwrap_or(name);
                assert_eq!(base.ends_with("_bytes"), family.unit == "bytes", "{name}");
            }
        }
    }
}
