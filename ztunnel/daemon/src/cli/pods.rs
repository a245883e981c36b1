//! `ztunnel pods`: the enrolled pods.

use std::net::IpAddr;

use ztunnel_node::enroll::{PodState, PodStatus};

use super::table::{Column, Table};

pub(super) fn table(pods: &[PodStatus]) -> String {
    let mut table = Table::new(&[
        Column::Left("POD"),
        Column::Left("SERVICE ACCOUNT"),
        Column::Left("ADDRESSES"),
        Column::Left("STATE"),
    ]);
    for pod in pods {
        let state = match pod.state {
            PodState::Captured => "captured".to_owned(),
            PodState::Leaving => "leaving".to_owned(),
            PodState::Defective => {
                format!("DEFECTIVE: {}", pod.problem.as_deref().unwrap_or("unknown"))
            }
        };
        let addresses = pod.addresses.iter().filter(|ip| !is_link_local(ip));
        let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
        table.row([
            format!("{}/{}", pod.namespace, pod.name),
            pod.service_account.clone(),
            addresses.join(","),
            state,
        ]);
    }
    table.text()
}

fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
