//! Envoy is the waypoint of a pod: it ends the tunnel, and reaches the app itself.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::thread;

use lab::envoy::common_tls;
use lab::hbone::PORT;
use lab::tester::{Check, Outcome, Service};
use lab::{Envoy, Gateway, Lab};

use super::{
    SMALL_WINDOWS, SOON, everything, exchanges, good, hold, one_worker, program, reset, stat,
};
use crate::access::{self, eventually};

/// An app in a pod that is captured, one in a pod that is not, and the waypoint of that.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10]}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10]}
  - {name: waypoint, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20], protocol: HBONE}
";
const WAYPOINT: &str = "spiffe://cluster.local/ns/infra/sa/waypoint";
/// Envoy is told to refuse it.
const FORBIDDEN: u16 = 7900;

/// A client, and an address that it reaches through Envoy.
pub(super) struct Behind {
    pub(super) lab: Lab,
    pub(super) far: IpAddr,
}

impl Behind {
    pub(super) fn waypoint() -> Self {
        let lab = one_worker(MESH, "shop/client");
        let address = lab.pod("infra/waypoint").v4().unwrap();
        let change = |mesh: &mut lab::MeshFile| {
            mesh.workload_mut("shop/far").unwrap().waypoint = Some(Gateway {
                address: Some(address),
                hostname: None,
                port: PORT,
            });
        };
        lab.control_plane().update(change).unwrap();
        lab.settle().unwrap();
        let far = lab.pod("shop/far").v4().unwrap();
        Self { lab, far }
    }

    /// Starts Envoy with these settings of HTTP/2 and of connections.
    pub(super) fn envoy(&self, http2: &str, connections: &str) -> Envoy {
        let pod = self.lab.pod("infra/waypoint");
        let client = self.lab.pod("shop/client");
        let tls = common_tls("h2", client.identity());
        let config = CONFIG
            .replace("$TLS", &tls)
            .replace("$HTTP2", http2)
            .replace("$CONNECTIONS", connections)
            .replace("$FORBIDDEN", &format!("{}:{FORBIDDEN}", self.far));
        program(&self.lab, "infra/waypoint")
            .option("--drain-strategy", "immediate")
            .start(&pod, &(Envoy::ADMIN.to_owned() + &config), &[PORT])
            .unwrap()
    }
}

/// As Istio configures a waypoint, but that the app is connected to as the tunnel says.
const CONFIG: &str = "
static_resources:
  listeners:
  - name: hbone
    address: {socket_address: {address: 0.0.0.0, port_value: 15008}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: $TLS
      filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          stream_idle_timeout: 0s
          drain_timeout: 0.1s
          common_http_protocol_options: {$CONNECTIONS}
          http2_protocol_options: {allow_connect: true, $HTTP2}
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config:
            virtual_hosts:
            - name: forbidden
              domains: ['$FORBIDDEN']
              routes:
              - match: {connect_matcher: {}}
                direct_response: {status: 403, body: {inline_string: 'not for you'}}
            - name: apps
              domains: ['*']
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: apps, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
          http_filters:
          - name: router
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: apps
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    original_dst_lb_config: {use_http_header: true, http_header_name: ':authority'}
    connect_timeout: 5s
";

/// Everything through Envoy with these settings of HTTP/2; gives how many tunnels that took.
fn assert_all_passes(http2: &str, at_once: u32) -> u64 {
    let behind = Behind::waypoint();
    let lab = &behind.lab;
    let envoy = behind.envoy(http2, "");
    let _server = lab.pod("shop/far").serve().unwrap();
    let client = lab.pod("shop/client");
    let link = client.tap(&["through-envoy"]).unwrap();
    everything(&client, behind.far, at_once);
    good(&client, behind.far, &Check::of(Service::Reset));
    assert_server_ends_first(&behind);
    let resets = stat(&envoy, "http2.rx_reset");
    let src = reset(&client, behind.far).to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    assert_eq!(line.field("reason"), "RESET", "{line:?}");
    eventually("Envoy is told of the reset", || {
        stat(&envoy, "http2.rx_reset") == resets + 1
    });
    let report = good(&client, behind.far, &Check::echo("through-envoy"));
    let src = report.local.unwrap().to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    assert_eq!(line.field("reason"), "COMPLETE", "{line:?}");
    assert_eq!(line.field("dst.identity"), WAYPOINT, "{line:?}");
    let seen = link.stop().unwrap();
    assert_eq!(seen.marker("through-envoy"), 0, "{seen:?}");
    // No stream is left, and Envoy has nothing to complain about.
    eventually("Envoy has no stream", || {
        stat(&envoy, "http.hbone.downstream_rq_active") == 0
    });
    assert_eq!(stat(&envoy, "http.hbone.downstream_cx_protocol_error"), 0);
    seen.opened_to(PORT)
}

/// The app has said all it will, and the client has not ended yet. Envoy then throws away what is more than the windows have
/// room for, of any client (envoyproxy/envoy#28329): so it is less.
fn assert_server_ends_first(behind: &Behind) {
    let text = "what there is to say\n".repeat(1000);
    let (client, far) = (behind.lab.pod("shop/client"), behind.lab.pod("shop/far"));
    let at = SocketAddr::new(behind.far, 7800);
    let listener = far.listen(at).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        });
        let mut stream = client.connect(at, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said == text, "{} of {}", said.len(), text.len());
        let src = stream.local_addr().unwrap().to_string();
        drop(stream);
        let line = access::line(behind.lab.node("node1"), &[("src.addr", &src)]);
        assert_eq!(line.field("reason"), "COMPLETE", "{line:?}");
    });
}

#[test]
fn everything_passes_an_envoy_waypoint_in_few_tunnels() {
    let tunnels = assert_all_passes("", 150);
    assert!((1..=2).contains(&tunnels), "{tunnels}");
}

#[test]
fn everything_passes_an_envoy_waypoint_with_small_windows() {
    let tunnels = assert_all_passes(SMALL_WINDOWS, 60);
    assert_eq!(tunnels, 1);
}

#[test]
fn an_envoy_waypoint_gets_no_more_streams_than_it_takes() {
    let behind = Behind::waypoint();
    let lab = &behind.lab;
    let envoy = behind.envoy("max_concurrent_streams: 10", "");
    let _server = lab.pod("shop/far").serve().unwrap();
    let client = lab.pod("shop/client");
    let link = client.tap(&[]).unwrap();
    let mut open: Vec<_> = (0..25).map(|_| hold(&client, behind.far)).collect();
    for held in &mut open {
        assert_eq!(exchanges(held), Outcome::Good);
    }
    for held in open {
        assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    }
    let seen = link.stop().unwrap();
    assert_eq!(seen.opened_to(PORT), 3, "{seen:?}");
    assert_eq!(stat(&envoy, "http2.rx_reset"), 0);
    assert_eq!(stat(&envoy, "http2.tx_reset"), 0);
}

#[test]
fn what_an_envoy_waypoint_refuses_is_a_reset_and_says_why() {
    let behind = Behind::waypoint();
    let lab = &behind.lab;
    let _envoy = behind.envoy("", "");
    let client = lab.pod("shop/client");
    // Nobody listens behind it; it may not be reached.
    for (port, reason, status) in [
        (Service::Echo.port(), "PEER_REFUSED", "503"),
        (FORBIDDEN, "PEER_DENIED", "403"),
    ] {
        let to = SocketAddr::new(behind.far, port);
        let report = client.check_at(to, &Check::echo("x")).unwrap();
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
        let src = report.local.unwrap().to_string();
        let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
        assert_eq!(line.field("reason"), reason, "{line:?}");
        assert!(line.contains(status), "{line:?}");
    }
}
