use std::collections::HashMap;

use prost::Message;
use ztunnel_mesh::policy::{Match, Policy};
use ztunnel_mesh::service::{LoadBalancingMode, Scope, Service, Visibility};
use ztunnel_mesh::workload::{TunnelProtocol, Workload, WorkloadType};
use ztunnel_proto::istio::security as sec;

use super::*;

fn workload(w: wire::Workload) -> Result<Arc<Workload>, String> {
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(w)),
    };
    match Converter::default().address(&address.encode_to_vec()) {
        Ok(Converted {
            upsert: Upsert::Workload(workload),
            ..
        }) => Ok(workload),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn service(s: wire::Service) -> Result<(Arc<Service>, Vec<String>), String> {
    let address = wire::Address {
        r#type: Some(wire::address::Type::Service(s)),
    };
    match Converter::default().address(&address.encode_to_vec()) {
        Ok(Converted {
            upsert: Upsert::Service(service),
            warnings,
        }) => Ok((service, warnings)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn policy(p: &Authorization) -> Result<(Arc<Policy>, Vec<String>), String> {
    match Converter::default().authorization(&p.encode_to_vec()) {
        Ok(Converted {
            upsert: Upsert::Policy(policy),
            warnings,
        }) => Ok((policy, warnings)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

/// The resource must be rejected for a reason that names the field.
fn check_rejected<T>(result: Result<T, String>, field: &str) {
    let Err(reason) = result else {
        panic!("accepted in spite of {field}");
    };
    assert!(reason.contains(field), "{reason:?} does not name {field}");
}

fn no_destination() -> wire::GatewayAddress {
    wire::GatewayAddress::default()
}

fn gateway(address: &[u8]) -> wire::GatewayAddress {
    let address = wire::NetworkAddress {
        address: address.into(),
        ..Default::default()
    };
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address)),
        hbone_mtls_port: 15008,
    }
}

#[test]
fn an_empty_workload_gets_the_defaults() {
    let w = workload(wire::Workload::default()).unwrap();
    assert_eq!(*w, Workload::new(""));
    assert_eq!(
        w.identity().to_string(),
        "spiffe://cluster.local/ns//sa/default"
    );
}

#[test]
fn fields_of_a_workload_arrive() {
    let ports = wire::PortList {
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 99,
        }],
    };
    let services = ["b/two", "a/one"].map(|key| (key.to_owned(), ports.clone()));
    let w = workload(wire::Workload {
        uid: "c//Pod/ns/p".into(),
        name: "p".into(),
        namespace: "ns".into(),
        addresses: vec![vec![10, 1, 0, 1], vec![0; 16]],
        tunnel_protocol: 1,
        trust_domain: "td".into(),
        service_account: "sa".into(),
        status: 1,
        capacity: Some(0),
        services: HashMap::from(services),
        authorization_policies: vec!["root/p".into(), "odd".into()],
        workload_type: 77,
        waypoint: Some(gateway(&[10, 9, 9, 9])),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(w.identity().to_string(), "spiffe://td/ns/ns/sa/sa");
    assert_eq!(w.tunnel, TunnelProtocol::Hbone);
    assert_eq!(w.app.workload_type, WorkloadType::Deployment);
    assert_eq!(w.capacity, 0);
    assert_eq!(w.addresses.len(), 2);
    let keys: Vec<_> = w
        .memberships
        .iter()
        .map(|m| m.service.to_string())
        .collect();
    assert_eq!(keys, ["a/one", "b/two"]);
    assert_eq!(w.memberships[0].target_port(80), Some(8080));
    // One that can never arrive keeps the workload closed.
    let policies: Vec<_> = w.policies.iter().map(ToString::to_string).collect();
    assert_eq!(policies, ["root/p", "odd/"]);
    assert_eq!(
        w.waypoint.as_ref().unwrap().to_string(),
        "10.9.9.9 port 15008"
    );
}

#[test]
fn mapped_addresses_become_ipv4() {
    let mapped = [&[0; 10][..], &[255, 255, 10, 1, 0, 1]].concat();
    let w = workload(wire::Workload {
        addresses: vec![mapped],
        ..Default::default()
    });
    assert_eq!(w.unwrap().addresses[0].to_string(), "10.1.0.1");
}

#[test]
fn workloads_with_impossible_fields_are_rejected() {
    type Break = fn(&mut wire::Workload);
    let cases: [(&str, Break); 11] = [
        ("addresses", |w| w.addresses = vec![vec![1, 2, 3]]),
        ("addresses", |w| w.addresses = vec![vec![]]),
        ("LEGACY_ISTIO_MTLS", |w| w.tunnel_protocol = 2),
        ("tunnel_protocol", |w| w.tunnel_protocol = 3),
        ("network_mode", |w| w.network_mode = 2),
        ("status", |w| w.status = -1),
        ("waypoint", |w| w.waypoint = Some(no_destination())),
        ("waypoint", |w| w.waypoint = Some(gateway(&[1; 5]))),
        ("network_gateway", |w| {
            w.network_gateway = Some(no_destination());
        }),
        ("application_tunnel.protocol", |w| {
            w.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: 2,
                port: 0,
            });
        }),
        ("services", |w| {
            w.services
                .insert("nothing".into(), wire::PortList::default());
        }),
    ];
    for (field, break_it) in cases {
        let mut w = wire::Workload::default();
        break_it(&mut w);
        check_rejected(workload(w), field);
    }
}

#[test]
fn addresses_of_a_service_are_exact_or_ranges() {
    let vip = |address: &[u8], length| wire::NetworkAddress {
        network: "n".into(),
        address: address.into(),
        length,
    };
    let vips = |addresses| {
        let s = wire::Service {
            addresses,
            ..Default::default()
        };
        service(s).map(|(s, _)| s)
    };
    let s = vips(vec![
        vip(&[10, 0, 0, 1], None),
        vip(&[10, 0, 0, 2], Some(32)),
        vip(&[10, 0, 0, 3], Some(0)),
        vip(&[1; 16], Some(128)),
    ])
    .unwrap();
    let exact: Vec<_> = s.vips.iter().map(|vip| vip.exact().is_some()).collect();
    assert_eq!(exact, [true, true, false, true]);

    check_rejected(vips(vec![vip(&[1; 4], Some(33))]), "prefix length 33");
    check_rejected(vips(vec![vip(&[1; 16], Some(129))]), "prefix length 129");
    check_rejected(vips(vec![vip(&[1; 16], Some(256))]), "prefix length 256");
    check_rejected(vips(vec![vip(&[1; 3], None)]), "addresses");
}

#[test]
fn services_with_impossible_fields_are_rejected() {
    fn lb(s: &mut wire::Service) -> &mut wire::LoadBalancing {
        s.load_balancing.get_or_insert_default()
    }
    type Break = fn(&mut wire::Service);
    let cases: [(&str, Break); 8] = [
        ("ip_families", |s| s.ip_families = 4),
        ("load_balancing.mode", |s| lb(s).mode = 4),
        ("load_balancing.health_policy", |s| lb(s).health_policy = 2),
        ("load_balancing.routing_preference", |s| {
            lb(s).routing_preference = vec![1, 7];
        }),
        ("load_balancing.routing_preference", |s| {
            lb(s).routing_preference = vec![0];
        }),
        ("waypoint", |s| s.waypoint = Some(no_destination())),
        ("weighted_waypoints.destination", |s| {
            s.weighted_waypoints = vec![wire::WeightedWaypoint::default()];
        }),
        ("weighted_waypoints.destination", |s| {
            s.weighted_waypoints = vec![wire::WeightedWaypoint {
                destination: Some(no_destination()),
                weight: 1,
            }];
        }),
    ];
    for (field, break_it) in cases {
        let mut s = wire::Service::default();
        break_it(&mut s);
        check_rejected(service(s), field);
    }
}

#[test]
fn what_a_service_can_do_without_is_tolerated() {
    let (s, warnings) = service(wire::Service {
        visibility: 9,
        subject_alt_names: vec![
            "spiffe://td/ns/a/sa/b".into(),
            "spiffe://td/other/form".into(),
            "db.example".into(),
        ],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![6, 1, 6, 1],
            mode: 2,
            health_policy: 1,
        }),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(s.visibility, Visibility::Public);
    assert_eq!(s.subject_alt_names.len(), 1);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(s.load_balancing.mode, LoadBalancingMode::Failover);
    assert_eq!(
        *s.load_balancing.preferences,
        [Scope::Network, Scope::Region]
    );
}

#[test]
fn a_service_that_is_named_twice_counts_once_and_the_last_time() {
    // A map on the wire is a list of entries, and nothing keeps one from coming twice.
    let once = |target_port| wire::Workload {
        services: HashMap::from([(
            "a/s".to_owned(),
            wire::PortList {
                ports: vec![wire::Port {
                    service_port: 80,
                    target_port,
                    app_protocol: 0,
                }],
            },
        )]),
        ..Default::default()
    };
    // Messages merge by concatenation, inside of the enclosing one too.
    let twice = [once(1), once(2)].map(|w| w.encode_to_vec()).concat();
    let mut address = vec![0x0a];
    prost::encoding::encode_varint(twice.len() as u64, &mut address);
    address.extend(twice);
    let converted = Converter::default().address(&address).unwrap();
    let Upsert::Workload(w) = converted.upsert else {
        panic!("{converted:?}");
    };
    assert_eq!(w.memberships.len(), 1);
    assert_eq!(w.memberships[0].target_port(80), Some(2));
}

#[test]
fn of_more_ports_than_there_are_the_first_of_each_counts() {
    let ports = (0..70_000_u32).map(|number| wire::Port {
        service_port: number,
        target_port: number + 1,
        app_protocol: 0,
    });
    let (s, _) = service(wire::Service {
        ports: ports.collect(),
        ..Default::default()
    })
    .unwrap();
    // 65,616 is 80 again, in the 16 bits of a port.
    assert_eq!(s.target_port(80), Some(81));
    assert_eq!(s.target_port(65_535), None, "0 is none");
}

#[test]
fn content_that_is_too_large_or_too_deep_is_rejected() {
    let large = wire::Workload {
        name: "x".repeat(MAX_CONTENT),
        ..Default::default()
    };
    check_rejected(workload(large), "bytes, more than 1048576");
    let matches = |count| Authorization {
        rules: vec![sec::Rule {
            clauses: vec![sec::Clause {
                matches: vec![sec::Match::default(); count],
            }],
        }],
        ..Default::default()
    };
    assert!(policy(&matches(1000)).is_ok());
    check_rejected(policy(&matches(600_000)), "more than 1048576");
    // Groups are the one thing that can be nested without end: field 100, begin, again and again.
    let deep = [0xa3, 0x06].repeat(100_000);
    let mut converter = Converter::default();
    assert!(matches!(
        converter.address(&deep),
        Err(ConvertError::Decode(_))
    ));
}

#[test]
fn fields_and_messages_of_a_later_time_are_skipped() {
    let mut content = wire::Address {
        r#type: Some(wire::address::Type::Workload(wire::Workload {
            uid: "a".into(),
            ..Default::default()
        })),
    }
    .encode_to_vec();
    // Field 100: a varint, eight bytes, a string.
    content.extend([0xa0, 0x06, 0x01]);
    content.extend([0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]);
    content.extend([0xa2, 0x06, 0x02, b'h', b'i']);
    assert!(Converter::default().address(&content).is_ok());
}

#[test]
fn content_that_is_no_message_is_rejected() {
    let mut converter = Converter::default();
    assert!(matches!(
        converter.address(&[0xff, 0xff]),
        Err(ConvertError::Decode(_))
    ));
    assert!(matches!(
        converter.address(&[]),
        Err(ConvertError::Unset("type"))
    ));
    assert!(matches!(
        converter.authorization(&[0xff]),
        Err(ConvertError::Decode(_))
    ));
}

fn one_match(action: sec::Action, m: sec::Match) -> (Match, Vec<String>) {
    let (policy, warnings) = policy(&Authorization {
        action: action.into(),
        rules: vec![sec::Rule {
            clauses: vec![sec::Clause { matches: vec![m] }],
        }],
        ..Default::default()
    })
    .unwrap();
    (policy.rules[0].clauses[0].matches[0].clone(), warnings)
}

#[test]
fn policies_of_unknown_scope_or_action_are_rejected() {
    let p = Authorization {
        scope: 3,
        ..Default::default()
    };
    check_rejected(policy(&p), "scope");
    let p = Authorization {
        action: 2,
        ..Default::default()
    };
    check_rejected(policy(&p), "action");
}

#[test]
fn values_of_a_match_arrive() {
    use sec::string_match::MatchType;
    let string = |m| sec::StringMatch {
        match_type: Some(m),
    };
    let (m, warnings) = one_match(
        sec::Action::Allow,
        sec::Match {
            namespaces: vec![string(MatchType::Exact("a".into()))],
            not_principals: vec![string(MatchType::Presence(()))],
            source_ips: vec![sec::Address {
                address: vec![10, 1, 2, 3],
                length: 8,
            }],
            destination_ports: vec![80, 65_616],
            not_service_accounts: vec![sec::ServiceAccountMatch {
                namespace: "a".into(),
                service_account: "b".into(),
            }],
            ..Default::default()
        },
    );
    assert!(warnings.is_empty());
    assert_eq!((m.namespaces.is.len(), m.principals.is_not.len()), (1, 1));
    assert!(m.source_ips.is[0].contains(&"10.9.9.9".parse::<IpAddr>().unwrap()));
    assert_eq!(*m.destination_ports.is, [80, 80]);
    assert_eq!(m.service_accounts.is_not.len(), 1);
}

#[test]
fn values_that_are_not_understood_deny_more_never_less() {
    use sec::Action::{Allow, Deny};
    let good = || sec::Address {
        address: vec![10, 0, 0, 0],
        length: 8,
    };
    let bad = || sec::Address {
        address: vec![10, 0, 0],
        length: 8,
    };
    let is = |source_ips| sec::Match {
        source_ips,
        destination_ports: vec![80],
        ..Default::default()
    };
    let is_not = |not_source_ips| sec::Match {
        not_source_ips,
        destination_ports: vec![80],
        ..Default::default()
    };

    // What was understood stays allowed, and nothing else becomes allowed.
    let (m, warnings) = one_match(Allow, is(vec![good(), bad()]));
    assert_eq!((m.source_ips.is.len(), warnings.len()), (1, 1));
    assert!(one_match(Allow, is(vec![bad()])).0.is_empty());
    assert!(one_match(Allow, is_not(vec![good(), bad()])).0.is_empty());
    // What was not understood no longer restricts what is denied.
    let (m, _) = one_match(Deny, is(vec![good(), bad()]));
    assert!(m.source_ips.is.is_empty() && !m.destination_ports.is.is_empty());
    assert_eq!(
        one_match(Deny, is_not(vec![good(), bad()]))
            .0
            .source_ips
            .is_not
            .len(),
        1
    );
    // Down to a match that must match everything.
    let (m, _) = one_match(
        Deny,
        sec::Match {
            principals: vec![sec::StringMatch::default()],
            ..Default::default()
        },
    );
    for ip in ["10.0.0.1", "fd00::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        assert!(m.source_ips.is.iter().any(|net| net.contains(&ip)));
    }
    // A match that was empty from the start is no lost one.
    assert!(one_match(Deny, sec::Match::default()).0.is_empty());
}

#[test]
fn common_strings_are_in_memory_once_and_forgotten_with_their_last_user() {
    let mut converter = Converter::default();
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(wire::Workload {
            namespace: "shop".into(),
            ..Default::default()
        })),
    };
    let mut convert = || match converter.address(&address.encode_to_vec()).unwrap().upsert {
        Upsert::Workload(workload) => workload,
        other => panic!("{other:?}"),
    };
    let (a, b) = (convert(), convert());
    assert!(Arc::ptr_eq(&a.namespace, &b.namespace));
    drop((a, b));
    converter.tidy();
    assert!(converter.names.is_empty());
}
