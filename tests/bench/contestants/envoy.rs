//! A pair of sidecars: Envoy in both pods, configured and captured as Istio does it.
//!
//! Outbound connections are redirected to port 15001, where the service's address chooses the cluster; inbound ones
//! to 15006, where mutual TLS ends. Two worker threads, as Istio's default. What Istio adds in extensions of its own
//! (its statistics, policies, access log) is not in this Envoy, so a real sidecar costs more than this one.

use std::net::IpAddr;
use std::path::Path;

use lab::envoy::common_tls;
use lab::{Authority, Envoy, EnvoyProgram, Lab, Pod, Program, Result, Validity};

use super::{APP_PORT, Contestant, SERVICE_PORT, Who};

const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// The group that Envoy runs as: what it sends is not redirected again. Istio's has the same number.
const GROUP: &str = "1337";
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, Debug)]
pub(super) enum Codec {
    Tcp,
    Http,
}

pub(super) fn start(lab: &Lab, who: Who, codec: Codec, program: &Path) -> Result<Contestant> {
    let mut contestant = Contestant::with_server(lab, who, APP_PORT)?;
    let client = contestant.client.clone();
    let server = lab.pod(&client.key().replace("/client", "/server"));
    let authority = Authority::new(who.name())?;
    let to_server = Side {
        codec,
        peer: server.identity().to_owned(),
        pod: &client,
    };
    let to_app = Side {
        codec,
        peer: client.identity().to_owned(),
        pod: &server,
    };
    let outbound = to_server.outbound(contestant.to.ip(), server.v4()?);
    for (side, config, port, chain) in [
        (to_server, outbound, OUTBOUND, "output"),
        (to_app.clone(), to_app.inbound(), INBOUND, "prerouting"),
    ] {
        let envoy = side.start(&authority, program, &config, port)?;
        side.redirect(chain, port)?;
        contestant.proxies.push(envoy.pid());
        contestant._envoys.push(envoy);
    }
    Ok(contestant)
}

/// One of the pair.
#[derive(Clone)]
struct Side<'a> {
    codec: Codec,
    /// Identity of the other one.
    peer: String,
    pod: &'a Pod,
}

impl Side<'_> {
    fn start(&self, authority: &Authority, envoy: &Path, config: &str, port: u16) -> Result<Envoy> {
        let credential = authority.issue(self.pod.identity(), Validity::of(DAY))?;
        EnvoyProgram::at(envoy)
            .group(GROUP)
            .credential(&credential, authority.root_pem())
            .start(self.pod, config, &[port])
    }

    /// As `istio-iptables` does it, in the words of nftables. Packets that come in have no owner.
    fn redirect(&self, hook: &str, port: u16) -> Result<()> {
        let (priority, but_own) = match hook {
            "output" => ("-100", format!("meta skgid {GROUP} return;")),
            _ => ("dstnat", String::new()),
        };
        let rules = format!(
            "table ip sidecar {{ chain capture {{
                type nat hook {hook} priority {priority}; policy accept;
                {but_own}
                ip daddr 127.0.0.0/8 return;
                meta l4proto tcp redirect to :{port}
            }};
            }}\n"
        );
        Program::new(["nft", "-f", "-"])
            .stdin(rules)
            .run(self.pod.namespace())?
            .success()
            .map(drop)
    }

    fn outbound(&self, service: IpAddr, server: IpAddr) -> String {
        let listener = format!(
            "    filter_chains:
    - filter_chain_match: {{prefix_ranges: [{{address_prefix: {service}, prefix_len: 32}}], destination_port: {SERVICE_PORT}}}
      filters:
{}",
            self.filters("outbound")
        );
        let tls = format!(
            "    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: outbound_.{SERVICE_PORT}_._.server
        common_tls_context: {}",
            self.tls()
        );
        config(OUTBOUND, ORIGINAL_DST, &listener, server, &tls)
    }

    fn inbound(&self) -> String {
        let listener = format!(
            "    filter_chains:
    - filter_chain_match: {{transport_protocol: tls, destination_port: {APP_PORT}}}
      transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: {}
      filters:
{}",
            self.tls(),
            self.filters("inbound")
        );
        let filters = format!("{ORIGINAL_DST}{TLS_INSPECTOR}");
        config(
            INBOUND,
            &filters,
            &listener,
            IpAddr::from([127, 0, 0, 1]),
            "",
        )
    }

    fn filters(&self, name: &str) -> String {
        match self.codec {
            Codec::Tcp => format!(
                "      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          cluster: peer"
            ),
            Codec::Http => format!(
                "      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          route_config:
            name: {name}
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: [{{match: {{prefix: /}}, route: {{cluster: peer, timeout: 0s}}}}]
          http_filters:
          - name: router
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
            ),
        }
    }

    fn tls(&self) -> String {
        let alpn = match self.codec {
            Codec::Tcp => "istio",
            Codec::Http => "http/1.1",
        };
        common_tls(alpn, &self.peer)
    }
}

const ORIGINAL_DST: &str = "
    - name: original_dst
      typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}";
const TLS_INSPECTOR: &str = "
    - name: tls_inspector
      typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}";

/// One listener and one cluster, without the limits on connections that Envoy has by default and Istio lifts.
fn config(port: u16, filters: &str, listener: &str, to: IpAddr, tls: &str) -> String {
    format!(
        "static_resources:
  listeners:
  - name: sidecar
    address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
    listener_filters:{filters}
{listener}
  clusters:
  - name: peer
    type: STATIC
    connect_timeout: 10s
    circuit_breakers:
      thresholds: [{{max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295}}]
    load_assignment:
      cluster_name: peer
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {to}, port_value: {APP_PORT}}}}}}}}}]}}]
{tls}
"
    )
}
