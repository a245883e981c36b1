//! Who this daemon is to the control plane.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;
use ztunnel_node::discovery::NodeDescription;
use ztunnel_node::pod::PodName;

use super::settings;
use super::source::Reader;
use super::value;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The node of Kubernetes. Workloads of this node are ours.
    pub(crate) name: String,
    pub(crate) network: String,
    /// The daemon's own pod, when all of its name is known.
    pub(crate) own_pod: Option<PodName>,
    /// The release that this daemon is part of, as far as anybody said.
    pub(crate) istio_version: String,
    /// The same for discovery.
    pub(crate) description: NodeDescription,
}

pub(super) fn read(
    reader: &mut Reader<'_>,
    proxy_metadata: &BTreeMap<String, String>,
) -> Option<Node> {
    let name = reader.value(&settings::NODE_NAME, value::name);
    let network = reader.optional(&settings::NETWORK, value::name);
    let pod = reader.optional(&settings::POD_NAME, value::name);
    let namespace = reader.optional(&settings::POD_NAMESPACE, value::name);
    let account = reader.optional(&settings::SERVICE_ACCOUNT, value::name);
    let ips = reader.value(&settings::INSTANCE_IP, addresses);
    let metajson = metajson(reader);

    let mut metadata = BTreeMap::new();
    for (key, text) in proxy_metadata {
        let key = key.strip_prefix(settings::ISTIO_META_.name).unwrap_or(key);
        metadata.insert(key.to_owned(), Value::String(text.clone()));
    }
    for (key, text) in reader.family(&settings::ISTIO_META_) {
        metadata.insert(key.to_owned(), Value::String(text.to_owned()));
    }
    for (key, value) in metajson? {
        metadata.insert(key.to_owned(), value);
    }
    let istio_version = metadata.get("ISTIO_VERSION").and_then(Value::as_str);
    let istio_version = istio_version.unwrap_or("unknown").to_owned();
    let (name, pod, namespace) = (name?, pod?, namespace?);
    let own_pod = match (&pod, &namespace, account?) {
        (Some(pod), Some(namespace), Some(account)) => Some(PodName {
            namespace: namespace.as_str().into(),
            name: pod.as_str().into(),
            service_account: account.into(),
        }),
        _ => None,
    };
    Some(Node {
        own_pod,
        istio_version,
        description: NodeDescription {
            pod_name: pod.unwrap_or_default(),
            namespace: namespace.unwrap_or_default(),
            node_name: name.clone(),
            instance_ips: ips?,
            metadata,
        },
        name,
        network: network?.unwrap_or_default(),
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
