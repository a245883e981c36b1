//! The lab's own tests, without a daemon. They need root, `iproute2`, `setpriv`, `curl` and `nginx`.

#[cfg(test)]
mod applications;
#[cfg(test)]
mod cleanup;
#[cfg(test)]
mod control_plane;
#[cfg(test)]
mod hbone;
#[cfg(test)]
mod network;
#[cfg(test)]
mod programs;

/// Two pods on different nodes, one more on the first, and a service.
const SHOP: &str = "
workloads:
  - name: client
    namespace: shop
    node: node1
    service_account: client
    addresses: [10.244.1.10, 'fd00:244:1::10']
  - name: web
    namespace: shop
    node: node2
    service_account: web
    addresses: [10.244.2.10, 'fd00:244:2::10']
  - name: near
    namespace: shop
    node: node1
    addresses: [10.244.1.11, 'fd00:244:1::11']
services:
  - name: web
    namespace: shop
    addresses: [10.96.0.10, 'fd00:96::10']
    ports: {80: 8080}
    workloads: [web]
";
