//! Envoy is the client: it carries connections of its own to a pod of ours.

use std::net::{IpAddr, Ipv4Addr};

use lab::envoy::common_tls;
use lab::tester::{Check, Outcome, Service};
use lab::{Envoy, Lab};

use super::{SMALL_WINDOWS, everything, good, one_worker, program, reset, stat};
use crate::access::{self, eventually};

/// A gateway that speaks HBONE itself, and a pod that is captured.
pub(super) const MESH: &str = "
workloads:
  - {name: gate, namespace: infra, node: node1, service_account: gate, addresses: [10.244.1.20]}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10]}
";
const GATE: &str = "spiffe://cluster.local/ns/infra/sa/gate";
/// Where the app of a gateway finds it.
pub(super) const INTO: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TRACE: &str = "0123456789abcdef0123456789abcdef";

/// Envoy in the gateway with these settings of HTTP/2: each service of the pod is on the same port of loopback.
pub(super) fn envoy(lab: &Lab, http2: &str) -> Envoy {
    let (gate, far) = (lab.pod("infra/gate"), lab.pod("shop/far"));
    let ports = Service::ALL.map(Service::port);
    let listeners = ports.map(|port| LISTENER.replace("$PORT", &port.to_string()));
    let config = CONFIG
        .replace("$LISTENERS", &listeners.concat())
        .replace("$HEADERS", &headers())
        .replace("$TLS", &common_tls("h2", far.identity()))
        .replace("$HTTP2", http2)
        .replace("$FAR", &far.v4().unwrap().to_string());
    let config = Envoy::ADMIN.to_owned() + &config;
    program(lab, "infra/gate")
        .start(&gate, &config, &ports)
        .unwrap()
}

/// What Envoy adds to each request: one that our log shows, and ones that differ from one connection to the next and are
/// long, so that its table of headers is full soon and always changes.
fn headers() -> String {
    let mut headers =
        format!("{{header: {{key: traceparent, value: '00-{TRACE}-00f067aa0ba902b7-01'}}}}");
    for number in 0..8 {
        let filler = "always the same ".repeat(number * 4);
        headers += &format!(
            ", {{header: {{key: x-filler-{number}, value: '%DOWNSTREAM_REMOTE_ADDRESS% {filler}%CONNECTION_ID%'}}}}"
        );
    }
    headers
}

const LISTENER: &str = "
  - name: from-$PORT
    address: {socket_address: {address: 127.0.0.1, port_value: $PORT}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: gate
          cluster: pod
          tunneling_config: {hostname: '$FAR:$PORT', headers_to_add: [$HEADERS]}";

const CONFIG: &str = "
static_resources:
  listeners:$LISTENERS
  clusters:
  - name: pod
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {allow_connect: true, $HTTP2}}
    load_assignment:
      cluster_name: pod
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: $FAR, port_value: 15008}}}}]}]
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: $TLS
";

fn assert_all_passes(http2: &str, at_once: u32) {
    let lab = one_worker(MESH, "shop/far");
    let envoy = envoy(&lab, http2);
    let _server = lab.pod("shop/far").serve().unwrap();
    let gate = lab.pod("infra/gate");
    let link = gate.tap(&["through-envoy"]).unwrap();
    everything(&gate, INTO, at_once);
    for service in [Service::Source, Service::EarlyFin] {
        // The server ends first.
        good(&gate, INTO, &Check::of(service));
    }
    // Envoy is told of a reset, and makes an end of it.
    let report = gate.check(INTO, &Check::of(Service::Reset)).unwrap();
    assert_eq!(report.outcome, Outcome::Ended, "{report:?}");
    assert_eq!(stat(&envoy, "cluster.pod.http2.rx_reset"), 1);
    reset(&gate, INTO);
    let node = lab.node("node2");
    let of_peer = [("reason", "RESET"), ("bytes_recv", "17")];
    access::line(node, &of_peer);
    // Many after each other, so that every kind of header has come in every form.
    for _ in 0..3 {
        good(&gate, INTO, &Check::parallel(at_once));
    }
    let report = good(&gate, INTO, &Check::of(Service::Peer));
    assert_eq!(report.seen_as.unwrap().ip(), gate.v4().unwrap());
    good(&gate, INTO, &Check::echo("through-envoy"));
    eventually("Envoy has no stream", || {
        stat(&envoy, "cluster.pod.upstream_rq_active") == 0
    });
    assert_eq!(stat(&envoy, "cluster.pod.upstream_cx_protocol_error"), 0);
    let seen = link.stop().unwrap();
    assert_eq!(seen.marker("through-envoy"), 0, "{seen:?}");

    // What came is what was sent, to the last.
    let all = stat(&envoy, "cluster.pod.upstream_rq_total");
    let lines = || access::lines(node, &[("direction", "inbound")]);
    eventually("every connection is logged", || lines().len() as u64 == all);
    for line in lines() {
        assert_eq!(line.field("src.identity"), GATE, "{line:?}");
        assert_eq!(line.field("trace"), TRACE, "{line:?}");
    }
}

#[test]
fn an_envoy_gateway_carries_everything_to_a_pod() {
    assert_all_passes("", 150);
}

#[test]
fn an_envoy_gateway_with_small_windows_carries_everything_to_a_pod() {
    assert_all_passes(SMALL_WINDOWS, 60);
}
