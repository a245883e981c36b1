//! Who this node proxy is, as it tells the control plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use ztunnel_proto::envoy::service::discovery::v3::Node;

/// Sent with the first request of each type on a stream.
#[derive(Clone, Debug, Default)]
pub struct NodeDescription {
    pub pod_name: String,
    pub namespace: String,
    /// The Kubernetes node: its workloads are ours.
    pub node_name: String,
    /// The proxy's own addresses; the control plane wants one, so none stands for 1.1.1.1.
    pub instance_ips: Vec<IpAddr>,
    /// Further metadata. Wins over what follows from the fields above.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

impl NodeDescription {
    /// The wire form.
    #[must_use]
    pub fn to_proto(&self) -> Node {
        let Self {
            pod_name,
            namespace,
            node_name,
            instance_ips,
            metadata,
        } = self;
        let unknown = [IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1))];
        let ips: &[IpAddr] = if instance_ips.is_empty() {
            &unknown
        } else {
            instance_ips
        };
        let all_ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        let base = [
            ("NAME", pod_name.clone()),
            ("NAMESPACE", namespace.clone()),
            ("INSTANCE_IPS", all_ips.join(",")),
            ("NODE_NAME", node_name.clone()),
        ];
        let base = base.map(|(key, value)| (key.to_owned(), Kind::StringValue(value).into()));
        let further = metadata
            .iter()
            .map(|(key, value)| (key.clone(), to_value(value)));
        Node {
            // Four parts. The domain is `cluster.local` whatever the cluster's is.
            id: format!(
                "ztunnel~{}~{pod_name}.{namespace}~{namespace}.svc.cluster.local",
                ips[0]
            ),
            metadata: Some(Struct {
                fields: base.into_iter().chain(further).collect(),
            }),
            ..Node::default()
        }
    }
}

fn to_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        // The wire has doubles only.
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(to_value).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(key, value)| (key.clone(), to_value(value)))
                .collect(),
        }),
    };
    kind.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(node: &Node, key: &str) -> String {
        match &node.metadata.as_ref().unwrap().fields[key].kind {
            Some(Kind::StringValue(s)) => s.clone(),
            other => panic!("{key} is {other:?}"),
        }
    }

    #[test]
    fn id_has_four_parts_and_metadata_the_base_keys() {
        let mut description = NodeDescription {
            pod_name: "ztunnel-x".into(),
            namespace: "istio-system".into(),
            node_name: "n1".into(),
            ..NodeDescription::default()
        };
        let node = description.to_proto();
        assert_eq!(
            node.id,
            "ztunnel~1.1.1.1~ztunnel-x.istio-system~istio-system.svc.cluster.local"
        );
        assert_eq!(string(&node, "NAME"), "ztunnel-x");
        assert_eq!(string(&node, "NAMESPACE"), "istio-system");
        assert_eq!(string(&node, "INSTANCE_IPS"), "1.1.1.1");
        assert_eq!(string(&node, "NODE_NAME"), "n1");

        description.instance_ips = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let overrides = serde_json::json!({"NAME": "other", "LABELS": {"a": [1, true, null]}});
        description.metadata = serde_json::from_value(overrides).unwrap();
        let node = description.to_proto();
        assert!(node.id.starts_with("ztunnel~10.0.0.1~"));
        assert_eq!(string(&node, "INSTANCE_IPS"), "10.0.0.1,fd00::1");
        assert_eq!(string(&node, "NAME"), "other");
        let labels = &node.metadata.unwrap().fields["LABELS"];
        assert!(matches!(&labels.kind, Some(Kind::StructValue(s)) if s.fields.contains_key("a")));
    }
}
