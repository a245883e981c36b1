//! The mesh that most cases use.

use lab::Lab;

/// Two pods on node1, two on node2, and a service in front of one of each; IPv4 and IPv6.
pub(crate) const MESH: &str = "
# Port 80 is for nginx, the others are those of the tester.
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: near, namespace: shop, node: node1, service_account: near, addresses: [10.244.1.11, 'fd00:1::11']}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10, 'fd00:2::10']}
  - {name: other, namespace: bank, node: node2, service_account: other, addresses: [10.244.2.11, 'fd00:2::11']}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {80: 8080, 7001: 7001, 7002: 7002, 7003: 7003, 7004: 7004, 7005: 7005, 7006: 7006, 7007: 7007, 7008: 7008, 7009: 7009}, workloads: [far]}
  - {name: near, namespace: shop, addresses: [10.96.0.11, 'fd00:96::11'], ports: {80: 8080, 7001: 7001, 7002: 7002, 7003: 7003, 7004: 7004, 7005: 7005, 7006: 7006, 7007: 7007, 7008: 7008, 7009: 7009}, workloads: [near]}
  - {name: client, namespace: shop, addresses: [10.96.0.12, 'fd00:96::12'], ports: {80: 8080, 7001: 7001, 7002: 7002, 7003: 7003, 7004: 7004, 7005: 7005, 7006: 7006, 7007: 7007, 7008: 7008, 7009: 7009}, workloads: [client]}
";

/// A lab of [`MESH`] with a daemon on each node and every pod enrolled.
pub(crate) fn enrolled() -> lab::Result<Lab> {
    let lab = Lab::from_yaml(MESH)?;
    lab.start_daemons()?;
    lab.enroll_all()?;
    Ok(lab)
}
