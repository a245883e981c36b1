//! Who this daemon is to the control plane.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::settings;
use super::source::Reader;
use super::value;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// The node of Kubernetes. Workloads of this node are ours.
    pub(crate) name: String,
    pub(crate) network: String,
    pub(crate) cluster_domain: String,
    pub(crate) trust_domain: String,
    pub(crate) service_account: Option<String>,
    /// The node id in discovery.
    pub(crate) xds_id: String,
    /// The node metadata in discovery.
    pub(crate) xds_metadata: BTreeMap<String, Value>,
}

pub(super) fn read(
    reader: &mut Reader<'_>,
    proxy_metadata: &BTreeMap<String, String>,
) -> Option<Node> {
    let name = reader.value(&settings::NODE_NAME, value::name);
    let network = reader.optional(&settings::NETWORK, value::name);
    let pod = reader.optional(&settings::POD_NAME, value::name);
    let namespace = reader.optional(&settings::POD_NAMESPACE, value::name);
    let service_account = reader.optional(&settings::SERVICE_ACCOUNT, value::name);
    let trust_domain = reader.value(&settings::TRUST_DOMAIN, value::name);
    let cluster_domain = reader.value(&settings::CLUSTER_DOMAIN, value::name);
    let ips = reader.value(&settings::INSTANCE_IP, addresses);
    let metajson = metajson(reader);

    let (name, pod, namespace, ips) = (
        name?,
        pod?.unwrap_or_default(),
        namespace?.unwrap_or_default(),
        ips?,
    );
    let mut metadata = BTreeMap::new();
    let mut insert = |key: &str, value: Value| {
        metadata.insert(key.to_owned(), value);
    };
    insert("NAME", Value::String(pod.clone()));
    insert("NAMESPACE", Value::String(namespace.clone()));
    insert("INSTANCE_IPS", Value::String(list(&ips)));
    insert("NODE_NAME", Value::String(name.clone()));
    for (key, text) in proxy_metadata {
        let key = key.strip_prefix(settings::ISTIO_META_.name).unwrap_or(key);
        insert(key, Value::String(text.clone()));
    }
    for (key, text) in reader.family(&settings::ISTIO_META_) {
        insert(key, Value::String(text.to_owned()));
    }
    for (key, value) in metajson? {
        insert(key, value);
    }
    Some(Node {
        // The literal `cluster.local` is part of the form, whatever the cluster's domain is.
        xds_id: format!(
            "ztunnel~{}~{pod}.{namespace}~{namespace}.svc.cluster.local",
            ips.first()?
        ),
        xds_metadata: metadata,
        name,
        network: network?.unwrap_or_default(),
        cluster_domain: cluster_domain?,
        trust_domain: trust_domain?,
        service_account: service_account?,
    })
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let parse = |part: &str| {
        let part = part.trim();
        part.parse()
            .map_err(|_| format!("{part:?} is no IP address"))
    };
    text.split(',').map(parse).collect()
}

fn list(ips: &[IpAddr]) -> String {
    let ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
    ips.join(",")
}

fn metajson<'a>(reader: &mut Reader<'a>) -> Option<Vec<(&'a str, Value)>> {
    let mut values = Vec::new();
    let members = reader.family(&settings::ISTIO_METAJSON_);
    let count = members.len();
    for (key, text) in members {
        match serde_json::from_str(text) {
            Ok(value) => values.push((key, value)),
            Err(err) => reader.wrong_member(&settings::ISTIO_METAJSON_, key, text, err.to_string()),
        }
    }
    (values.len() == count).then_some(values)
}
