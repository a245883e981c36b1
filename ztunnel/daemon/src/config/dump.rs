//! The configuration as `/config_dump` shows it: the names are Istio's. No token, and of headers only their names.
//!
//! Absent: what has no meaning for this daemon, such as ports that capture does without.

use std::time::Duration;

use serde_json::{Map, Value, json};
use ztunnel_node::admin::READINESS_PORT;
use ztunnel_node::control_plane::{Endpoint, RootSource};
use ztunnel_node::discovery::Subscription;
use ztunnel_node::task::SourceAddress;

use super::Config;

const HIDDEN: &str = "<not shown>";
const PROXY_PORTS: [u16; 3] = [15001, 15006, 15008];

impl Config {
    /// Everything that is no secret.
    pub(crate) fn dump(&self) -> Value {
        let Self {
            xds,
            subscription,
            ca,
            secret_ttl,
            node,
            tls: _,
            crl_path,
            tunnel,
            inbound,
            liveness,
            ipv6,
            worker_threads,
            drain_deadline,
            log: _,
            pair_limit: _,
            admin_port,
            stats_port,
            paths: _,
        } = self;
        let everywhere = |port| json!({"SocketAddr": format!("[::]:{port}")});
        let keepalive = liveness.keepalive;
        let metadata: Map<String, Value> = node.description.metadata.clone().into_iter().collect();
        let shown = [
            ("adminAddr", json!({"Localhost": [ipv6, admin_port]})),
            ("altCaHostname", json!(ca.alt_hostname)),
            ("altXdsHostname", json!(xds.alt_hostname)),
            ("caAddress", json!(ca.address.to_string())),
            ("caHeaders", json!(headers(ca))),
            ("caRootCert", json!(roots(&ca.roots))),
            ("clusterId", json!(xds.cluster_id)),
            ("connectionWindowSize", json!(tunnel.connection_window)),
            ("crlPath", json!(crl_path)),
            ("dnsProxy", json!(false)),
            ("enableEnhancedBaggage", json!(inbound.response_baggage)),
            ("fakeCa", json!(false)),
            ("frameSize", json!(tunnel.frame_size)),
            ("illegalPorts", json!(PROXY_PORTS)),
            ("inboundAddr", json!("[::]:15008")),
            ("ipv6Enabled", json!(ipv6)),
            ("localNode", json!(node.name)),
            ("localhostAppTunnel", json!(inbound.localhost_app_tunnel)),
            ("network", json!(node.network)),
            ("numWorkerThreads", json!(worker_threads)),
            ("packetMark", json!(null)),
            ("poolMaxStreamsPerConn", json!(tunnel.max_streams)),
            (
                "poolUnusedReleaseTimeout",
                json!(duration(tunnel.idle_release)),
            ),
            ("preferedServiceNamespace", json!(null)),
            ("proxy", json!(true)),
            ("proxyMetadata", json!(metadata)),
            ("proxyMode", json!("Shared")),
            ("proxyWorkloadInformation", json!(null)),
            ("readinessAddr", json!(everywhere(READINESS_PORT))),
            (
                "requireOriginalSource",
                json!(match inbound.source {
                    SourceAddress::Client => Some(true),
                    SourceAddress::Pod => Some(false),
                    SourceAddress::ClientIfPossible => None,
                }),
            ),
            ("secretTtl", json!(duration(*secret_ttl))),
            ("selfTerminationDeadline", json!(duration(*drain_deadline))),
            (
                "socketConfig",
                json!({
                    "keepaliveEnabled": keepalive.is_some(),
                    "keepaliveInterval": keepalive.map(|keepalive| duration(keepalive.interval)),
                    "keepaliveRetries": keepalive.map(|keepalive| keepalive.retries),
                    "keepaliveTime": keepalive.map(|keepalive| duration(keepalive.time)),
                    "userTimeoutEnabled": liveness.user_timeout.is_some(),
                }),
            ),
            ("socks5Addr", json!(null)),
            ("statsAddr", json!(everywhere(*stats_port))),
            ("windowSize", json!(tunnel.stream_window)),
            ("xdsAddress", json!(xds.address.to_string())),
            ("xdsHeaders", json!(headers(xds))),
            (
                "xdsOnDemand",
                json!(matches!(subscription, Subscription::OnDemand)),
            ),
            ("xdsRootCert", json!(roots(&xds.roots))),
            (
                "ztunnelWorkload",
                json!(node.own_pod.as_ref().map(|pod| json!({
                    "name": *pod.name,
                    "namespace": *pod.namespace,
                    "serviceAccount": *pod.service_account,
                }))),
            ),
        ];
        shown
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<Map<_, _>>()
            .into()
    }
}

fn duration(duration: Duration) -> Value {
    json!({"nanos": duration.subsec_nanos(), "secs": duration.as_secs()})
}

fn headers(endpoint: &Endpoint) -> Vec<[&str; 2]> {
    let names = endpoint.headers.iter().map(|(name, _)| name.as_str());
    names.map(|name| [name, HIDDEN]).collect()
}

fn roots(roots: &RootSource) -> Value {
    match roots {
        RootSource::File(path) => json!({"File": path}),
        RootSource::Pem(_) => json!("Static"),
        RootSource::System => json!("Default"),
    }
}
