use std::collections::BTreeMap;

use rcgen::SerialNumber;
use ztunnel_mesh::name::{PolicyName, ServiceName};
use ztunnel_mesh::policy::{
    Action, Attribute, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};
use ztunnel_mesh::service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Vip, Visibility,
    WeightedWaypoint,
};
use ztunnel_mesh::workload::{
    Addresses, App, ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination,
    Health, Locality, Membership, NetworkMode, Place, PortPair, TunnelProtocol, WorkloadType,
};
use ztunnel_mesh::{Delta, Upsert};

use super::*;
use crate::admin::http::Body;
use crate::tls::test_ca::{Leaf, TestCa};
use crate::tls::{Context, Credential, Options};

fn rest() -> Rest {
    Rest {
        certificates: Vec::new(),
        pods: Vec::new(),
        config: json!({}),
        version: json!({}),
    }
}

/// The whole dump, which is pretty, and sorted at every level: so is what is made of the value here.
fn dump(mesh: Mesh, rest: Rest) -> Value {
    let made = pieces(Arc::new(mesh), rest);
    let text = Body::Pieces(Box::new(made)).text();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err}: {text}"));
    let sorted = serde_json::to_string_pretty(&value).unwrap();
    if text != sorted {
        let differs = text.lines().zip(sorted.lines()).find(|(a, b)| a != b);
        panic!("{differs:?}\n{text}");
    }
    value
}

fn mesh(upserts: impl IntoIterator<Item = Upsert>) -> Mesh {
    Mesh::default().apply(Delta {
        upserts: upserts.into_iter().collect(),
        removals: Vec::new(),
    })
}

fn workload(uid: &str, change: impl FnOnce(&mut Workload)) -> Upsert {
    let mut workload = Workload::new(uid);
    change(&mut workload);
    Upsert::Workload(Arc::new(workload))
}

fn service(key: &str, change: impl FnOnce(&mut Service)) -> Upsert {
    let mut service = Service::new(ServiceName::parse(key).unwrap());
    change(&mut service);
    Upsert::Service(Arc::new(service))
}

fn at(destination: GatewayDestination) -> GatewayAddress {
    GatewayAddress {
        destination,
        hbone_port: 15008,
    }
}

fn by_name(key: &str) -> GatewayAddress {
    at(GatewayDestination::Hostname(
        ServiceName::parse(key).unwrap(),
    ))
}

fn by_address(network: &str, ip: &str) -> GatewayAddress {
    at(GatewayDestination::Address {
        network: network.into(),
        ip: ip.parse().unwrap(),
    })
}

fn member(service: &str, ports: &[(u16, u16)]) -> Arc<Membership> {
    Arc::new(Membership {
        service: ServiceName::parse(service).unwrap(),
        ports: pairs(ports),
    })
}

fn pairs(ports: &[(u16, u16)]) -> Box<[PortPair]> {
    let pair = |&(service, target): &(u16, u16)| PortPair { service, target };
    ports.iter().map(pair).collect()
}

#[test]
fn an_empty_mesh_has_every_table() {
    let expected = json!({
        "certificates": [],
        "config": {},
        "policies": [],
        "services": [],
        "stagedServices": {},
        "staticConfig": {"policies": [], "services": [], "workloads": []},
        "version": {},
        "workloadState": {},
        "workloads": [],
    });
    assert_eq!(dump(Mesh::default(), rest()), expected);
}

#[test]
fn a_workload_with_nothing_and_one_with_everything() {
    let full = workload("Kubernetes//Pod/shop/cart-0", |w| {
        w.name = "cart-0".into();
        w.namespace = "shop".into();
        w.trust_domain = "td".into();
        w.service_account = "cart".into();
        w.network = "north".into();
        w.addresses = ["10.1.0.7", "fd00::7"]
            .iter()
            .map(|ip| ip.parse().unwrap())
            .collect();
        w.hostname = "cart.example".into();
        w.network_mode = NetworkMode::HostNetwork;
        w.tunnel = TunnelProtocol::Hbone;
        w.native_tunnel = true;
        w.application_tunnel = Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(15088),
        });
        w.waypoint = Some(Arc::new(by_name("shop/waypoint.shop.svc.cluster.local")));
        w.network_gateway = Some(Arc::new(by_address("north", "10.9.0.1")));
        w.health = Health::Unhealthy;
        w.capacity = 7;
        w.place = Arc::new(Place {
            node: "node1".into(),
            cluster_id: "east".into(),
            locality: Locality {
                region: "r".into(),
                zone: "".into(),
                subzone: "".into(),
            },
        });
        w.policies = [PolicyName::new("shop", "allow-web")].into();
        w.memberships = [member("shop/cart.shop.svc.cluster.local", &[(80, 8080)])].into();
        w.app = Arc::new(App {
            workload_type: WorkloadType::CronJob,
            workload_name: "cart".into(),
            canonical_name: "cart".into(),
            canonical_revision: "v1".into(),
        });
    });
    let bare = workload("a", |w| {
        w.application_tunnel = Some(ApplicationTunnel {
            protocol: ApplicationProtocol::None,
            port: None,
        });
        w.waypoint = Some(Arc::new(by_address("", "10.0.0.1")));
    });
    let shown = dump(mesh([bare, full]), rest());
    let expected = json!([
        {
            "applicationTunnel": {"port": 15088, "protocol": "PROXY"},
            "authorizationPolicies": ["shop/allow-web"],
            "canonicalName": "cart",
            "canonicalRevision": "v1",
            "capacity": 7,
            "clusterId": "east",
            "hostname": "cart.example",
            "locality": {"region": "r", "subzone": "", "zone": ""},
            "name": "cart-0",
            "namespace": "shop",
            "nativeTunnel": true,
            "network": "north",
            "networkGateway": {"destination": "north/10.9.0.1", "hboneMtlsPort": 15008},
            "networkMode": "HostNetwork",
            "node": "node1",
            "protocol": "HBONE",
            "serviceAccount": "cart",
            "services": ["shop/cart.shop.svc.cluster.local"],
            "status": "Unhealthy",
            "trustDomain": "td",
            "uid": "Kubernetes//Pod/shop/cart-0",
            "waypoint": {
                "destination": "shop/waypoint.shop.svc.cluster.local",
                "hboneMtlsPort": 15008,
            },
            "workloadIps": ["10.1.0.7", "fd00::7"],
            "workloadName": "cart",
            "workloadType": "cronjob",
        },
        {
            "applicationTunnel": {"port": null, "protocol": "NONE"},
            "capacity": 1,
            "clusterId": "Kubernetes",
            "name": "",
            "namespace": "",
            "networkMode": "Standard",
            "protocol": "TCP",
            "serviceAccount": "default",
            "status": "Healthy",
            "trustDomain": "cluster.local",
            "uid": "a",
            "waypoint": {"destination": "/10.0.0.1", "hboneMtlsPort": 15008},
            "workloadIps": [],
            "workloadType": "deployment",
        },
    ]);
    assert_eq!(shown["workloads"], expected);
    // Its service has not come, and it is unhealthy: that may not count then.
    let staged = json!({
        "shop/cart.shop.svc.cluster.local": {
            "Kubernetes//Pod/shop/cart-0": {
                "port": {"80": 8080},
                "status": "Unhealthy",
                "workloadUid": "Kubernetes//Pod/shop/cart-0",
            },
        },
    });
    assert_eq!(shown["stagedServices"], staged);
}

#[test]
fn a_service_with_nothing_and_one_with_everything() {
    const CART: &str = "shop/cart.shop.svc.cluster.local";
    let full = |policy| {
        service(CART, |s| {
            s.name = "cart".into();
            let vip = |network: &str, net: &str| Vip::new(network.into(), net.parse().unwrap());
            s.vips = [
                vip("", "10.96.0.10/32"),
                vip("north", "fd00::10/128"),
                vip("north", "10.97.0.0/16"),
            ]
            .into();
            s.ports = pairs(&[(80, 8080), (443, 0)]);
            s.subject_alt_names = ["spiffe://td/ns/shop/sa/cart".parse().unwrap()].into();
            s.waypoint = Some(by_name("shop/waypoint"));
            s.weighted_waypoints = [WeightedWaypoint {
                destination: by_address("", "10.0.0.1"),
                weight: 10,
            }]
            .into();
            s.load_balancing = LoadBalancing {
                mode: LoadBalancingMode::Failover,
                preferences: [
                    Scope::Region,
                    Scope::Zone,
                    Scope::Subzone,
                    Scope::Node,
                    Scope::Cluster,
                    Scope::Network,
                ]
                .into(),
                health_policy: policy,
            };
            s.ip_families = IpFamilies::Dual;
            s.canonical = true;
            s.visibility = Visibility::Namespace;
        })
    };
    let well = || {
        workload("well", |w| {
            w.memberships = [member(CART, &[(80, 81)])].into()
        })
    };
    let ill = || {
        workload("ill", |w| {
            w.memberships = [member(CART, &[])].into();
            w.health = Health::Unhealthy;
        })
    };
    let other = service("shop/a.example", |_| {});
    let shown = dump(
        mesh([full(HealthPolicy::AllowAll), well(), ill(), other]),
        rest(),
    );
    let bare = json!({
        "canonical": false,
        "endpoints": {},
        "hostname": "a.example",
        "name": "a.example",
        "namespace": "shop",
        "ports": {},
        "subjectAltNames": [],
        "vips": [],
        "visibility": "Public",
    });
    let expected = json!({
        "canonical": true,
        "cidrVips": [{"cidr": "10.97.0.0/16", "network": "north"}],
        "endpoints": {
            "ill": {"port": {}, "status": "Unhealthy", "workloadUid": "ill"},
            "well": {"port": {"80": 81}, "status": "Healthy", "workloadUid": "well"},
        },
        "hostname": "cart.shop.svc.cluster.local",
        "ipFamilies": "Dual",
        "loadBalancer": {
            "healthPolicy": "AllowAll",
            "mode": "Failover",
            "routingPreferences": ["Region", "Zone", "Subzone", "Node", "Cluster", "Network"],
        },
        "name": "cart",
        "namespace": "shop",
        "ports": {"443": 0, "80": 8080},
        "subjectAltNames": ["spiffe://td/ns/shop/sa/cart"],
        "vips": ["/10.96.0.10", "north/fd00::10"],
        "visibility": "Namespace",
        "waypoint": {"destination": "shop/waypoint", "hboneMtlsPort": 15008},
        "weightedWaypoints": [
            {"destination": {"destination": "/10.0.0.1", "hboneMtlsPort": 15008}, "weight": 10},
        ],
    });
    assert_eq!(shown["services"], json!([bare, expected]));
    assert_eq!(shown["stagedServices"], json!({}));

    let shown = dump(
        mesh([full(HealthPolicy::OnlyHealthy), well(), ill()]),
        rest(),
    );
    let endpoints = shown["services"][0]["endpoints"].as_object().unwrap();
    assert_eq!(endpoints.keys().collect::<Vec<_>>(), ["well"]);
}

#[test]
fn a_policy_with_every_kind_of_match() {
    let both = |is: StringMatch, is_not: StringMatch| Attribute {
        is: [is].into(),
        is_not: [is_not].into(),
    };
    let account = |name: &str| ServiceAccountMatch {
        namespace: "shop".into(),
        service_account: name.into(),
    };
    let net = |text: &str| text.parse().unwrap();
    let matches = Match {
        namespaces: both(
            StringMatch::Exact("a".into()),
            StringMatch::Prefix("b".into()),
        ),
        principals: both(StringMatch::Suffix("c".into()), StringMatch::Presence),
        service_accounts: Attribute {
            is: [account("web")].into(),
            is_not: [account("bot")].into(),
        },
        source_ips: Attribute {
            is: [net("10.0.0.0/8")].into(),
            is_not: [net("10.0.0.1/32")].into(),
        },
        destination_ips: Attribute {
            is: [net("fd00::/8")].into(),
            is_not: [net("fd00::1/128")].into(),
        },
        destination_ports: Attribute {
            is: [80].into(),
            is_not: [81, 82].into(),
        },
    };
    let policy = |name, scope, action, rules| {
        Upsert::Policy(Arc::new(Policy {
            key: PolicyName::new("shop", name),
            scope,
            action,
            dry_run: scope == PolicyScope::Global,
            rules,
        }))
    };
    let full: Box<[Rule]> = [
        Rule {
            clauses: [Clause {
                matches: [matches, Match::default()].into(),
            }]
            .into(),
        },
        Rule::default(),
    ]
    .into();
    let shown = dump(
        mesh([
            policy("b", PolicyScope::WorkloadSelector, Action::Deny, full),
            policy("c", PolicyScope::Namespace, Action::Allow, [].into()),
            policy("a", PolicyScope::Global, Action::Allow, [].into()),
        ]),
        rest(),
    );
    let expected = json!([
        {
            "action": "Allow", "dryRun": true, "name": "a", "namespace": "shop",
            "rules": [], "scope": "Global",
        },
        {
            "action": "Deny", "dryRun": false, "name": "b", "namespace": "shop",
            "rules": [
                [[
                    {
                        "destinationIps": ["fd00::/8"],
                        "destinationPorts": [80],
                        "namespaces": [{"Exact": "a"}],
                        "notDestinationIps": ["fd00::1/128"],
                        "notDestinationPorts": [81, 82],
                        "notNamespaces": [{"Prefix": "b"}],
                        "notPrincipals": [{"Presence": []}],
                        "notServiceAccounts": [{"namespace": "shop", "serviceAccount": "bot"}],
                        "notSourceIps": ["10.0.0.1/32"],
                        "principals": [{"Suffix": "c"}],
                        "serviceAccounts": [{"namespace": "shop", "serviceAccount": "web"}],
                        "sourceIps": ["10.0.0.0/8"],
                    },
                    {},
                ]],
                [],
            ],
            "scope": "WorkloadSelector",
        },
        {
            "action": "Allow", "dryRun": false, "name": "c", "namespace": "shop",
            "rules": [], "scope": "Namespace",
        },
    ]);
    assert_eq!(shown["policies"], expected);
}

#[test]
fn certificates_are_shown_without_their_keys() {
    const WEB: &str = "spiffe://td/ns/shop/sa/web";
    let identity = |name: &str| format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap();
    let mut leaf = Leaf::uris(&[WEB]);
    // More than a machine word.
    leaf.serial = Some(SerialNumber::from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]));
    let from = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(951_786_061);
    leaf.valid = from..from + std::time::Duration::from_secs(4_000_000_000);
    let ca = TestCa::new("root").intermediate("between");
    let (key, chain) = ca.issue(leaf);
    let context = Context::new(Options::default());
    let credential = Credential::from_chain(&identity("web"), &key, &chain, &context).unwrap();
    let set = |name: &str, state| CertificateSet {
        identity: identity(name),
        state,
    };
    let certificates = vec![
        set("web", CertificateState::Available(Arc::new(credential))),
        set("new", CertificateState::Initializing),
        set(
            "bad",
            CertificateState::Unavailable("the CA says no".into()),
        ),
    ];
    let rest = Rest {
        certificates,
        ..rest()
    };
    let shown = dump(Mesh::default(), rest);
    let shown = shown["certificates"].as_array().unwrap();
    let empty = |name: &str, state: &str| {
        json!({
            "certChain": [], "identity": format!("spiffe://td/ns/shop/sa/{name}"),
            "rootCerts": [], "state": state,
        })
    };
    assert_eq!(shown[0], empty("bad", "Unavailable: the CA says no"));
    assert_eq!(shown[1], empty("new", "Initializing"));
    let web = &shown[2];
    assert_eq!(web["state"], "Available");
    assert_eq!(web["identity"], WEB);
    let own = &web["certChain"][0];
    assert_eq!(own["serialNumber"], "18446744073709551616");
    assert_eq!(own["validFrom"], "2000-02-29T01:01:01Z");
    assert_eq!(own["expirationTime"], "2126-12-01T08:07:41Z");
    let pem = |shown: &Value| {
        use base64::Engine as _;
        let text = shown["pem"].as_str().unwrap();
        let text = base64::engine::general_purpose::STANDARD.decode(text);
        String::from_utf8(text.unwrap()).unwrap().replace('\r', "")
    };
    let plain = |pem: &str| pem.replace('\r', "");
    let sent: Vec<_> = chain.iter().map(|pem| plain(pem)).collect();
    let chain: Vec<_> = web["certChain"]
        .as_array()
        .unwrap()
        .iter()
        .map(pem)
        .collect();
    assert_eq!(chain, sent[..2]);
    let roots: Vec<_> = web["rootCerts"]
        .as_array()
        .unwrap()
        .iter()
        .map(pem)
        .collect();
    assert_eq!(roots, sent[2..]);

    let text = Value::from(shown.clone()).to_string();
    let fields: BTreeMap<_, _> = web.as_object().unwrap().iter().collect();
    assert_eq!(fields.len(), 4, "{text}");
    assert!(!chain.concat().contains("PRIVATE"));
    assert!(!text.to_lowercase().contains("key\""), "{text}");
}

#[test]
fn pods_settings_and_version_are_what_the_daemon_says() {
    let pod = |uid: &str, up| PodEntry {
        uid: uid.into(),
        name: "cart-0".into(),
        namespace: "shop".into(),
        service_account: "cart".into(),
        up,
        connections: None,
    };
    let rest = Rest {
        certificates: Vec::new(),
        pods: vec![pod("b\n\"", false), pod("a", true)],
        config: json!({"b": {"c": 1, "a": [1, {"x": null}]}, "a": "\n"}),
        version: json!({"version": "1"}),
    };
    let shown = dump(Mesh::default(), rest);
    let info = json!({"name": "cart-0", "namespace": "shop", "serviceAccount": "cart"});
    let expected = json!({
        "a": {"info": info, "state": "Up"},
        "b\n\"": {"info": info, "state": "Pending"},
    });
    assert_eq!(shown["workloadState"], expected);
    assert_eq!(shown["config"]["b"]["a"][1], json!({"x": null}));
    assert_eq!(shown["version"], json!({"version": "1"}));
}

#[test]
fn connections_of_a_pod_are_shown_once_each() {
    let at = |text: &str| text.parse().unwrap();
    let inbound = |client, hostname: Option<&str>, identified| ConnectionEntry::Inbound {
        client: at(client),
        hostname: hostname.map(str::to_owned),
        app: at("10.1.0.9:8080"),
        identified,
    };
    let outbound = |app, next_hop, tunnels| ConnectionEntry::Outbound {
        app: at(app),
        dialed: at("10.96.0.10:80"),
        next_hop: at(next_hop),
        tunnels,
    };
    let connections = vec![
        // Two streams of a tunnel, and one that asked for something else.
        inbound("10.1.0.7:40868", Some("cart.shop"), true),
        inbound("10.1.0.7:40868", None, true),
        inbound("10.1.0.7:40868", Some("cart.shop"), true),
        inbound("[fd00::8]:1", None, false),
        outbound("10.1.0.9:3", "10.9.0.1:15008", 2),
        outbound("10.1.0.9:2", "10.1.0.7:15008", 1),
        outbound("10.1.0.9:1", "10.1.0.8:8080", 0),
    ];
    let pod = PodEntry {
        uid: "a".into(),
        name: "cart-0".into(),
        namespace: "shop".into(),
        service_account: "cart".into(),
        up: true,
        connections: Some(connections),
    };
    let shown = dump(
        Mesh::default(),
        Rest {
            pods: vec![pod],
            ..rest()
        },
    );
    let row = |src: &str, original: Value, actual: &str, protocol: &str| json!({"actualDst": actual, "originalDst": original, "protocol": protocol, "src": src});
    let (app, dialed) = ("10.1.0.9:8080", json!("10.96.0.10:80"));
    let expected = json!({
        "inbound": [
            row("10.1.0.7:40868", Value::Null, app, "HBONE"),
            row("10.1.0.7:40868", json!("cart.shop"), app, "HBONE"),
            row("[fd00::8]:1", Value::Null, app, "TCP"),
        ],
        "outbound": [
            row("10.1.0.9:1", dialed.clone(), "10.1.0.8:8080", "TCP"),
            row("10.1.0.9:2", dialed.clone(), "10.1.0.7:15008", "HBONE"),
            row("10.1.0.9:3", dialed, "10.9.0.1:15008", "DOUBLEHBONE"),
        ],
    });
    assert_eq!(shown["workloadState"]["a"]["connections"], expected);
}

#[test]
fn a_large_mesh_is_sent_in_pieces_and_in_order() {
    const COUNT: usize = 5000;
    let upserts = (0..COUNT).map(|number| {
        workload(&format!("uid-{}", number * 7919 % COUNT), |w| {
            w.addresses = Addresses::One([10, 0, (number >> 8) as u8, number as u8].into());
        })
    });
    let mesh = Arc::new(mesh(upserts));
    let mut text = Vec::new();
    let mut count = 0;
    for piece in pieces(Arc::clone(&mesh), rest()) {
        assert!(piece.len() < 64 * 1024, "{}", piece.len());
        text.extend_from_slice(&piece);
        count += 1;
    }
    assert!(count > 10, "{count}");
    let shown: Value = serde_json::from_slice(&text).unwrap();
    let uids = shown["workloads"].as_array().unwrap().iter();
    let uids: Vec<_> = uids
        .map(|w| w["uid"].as_str().unwrap().to_owned())
        .collect();
    let mut sorted = uids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(uids.len(), COUNT);
    assert_eq!(uids, sorted);
    assert_eq!(text.last(), Some(&b'}'));
}

struct Nothing;

impl Sources for Nothing {
    fn certificates(&self) -> Vec<CertificateSet> {
        Vec::new()
    }

    fn pods(&self) -> Pin<Box<dyn Future<Output = Vec<PodEntry>> + Send + '_>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn config(&self) -> Value {
        json!({})
    }

    fn version(&self) -> Value {
        json!({})
    }
}

#[tokio::test]
async fn only_so_many_dumps_are_made_at_a_time() {
    let (mut writer, reader) = crate::state::mesh_channel();
    let dump = ConfigDump::new(reader, Nothing);
    let mut running = Vec::new();
    for _ in 0..MAX_DUMPS {
        let response = dump.answer().await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        running.push(response);
    }
    let refused = dump.answer().await.status();
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    // One shows the mesh as it was when it was asked for.
    writer.publish(mesh([workload("later", |_| {})]));
    let body = running.pop().unwrap().into_body().text();
    assert!(!body.contains("later"), "{body}");
    let body = dump.answer().await.into_body().text();
    assert!(body.contains("later"), "{body}");
}
