//! Who this node proxy is, as it tells the control plane.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use ztunnel_proto::envoy::service::discovery::v3::Node;

/// Sent with the first request of each type on a stream.
#[derive(Clone, Debug, Default)]
pub struct NodeDescription {
    /// Four parts, joined by `~`.
    pub id: String,
    pub metadata: BTreeMap<String, serde_json::Value>,
}

impl NodeDescription {
    /// The wire form.
    #[must_use]
    pub fn to_proto(&self) -> Node {
        let fields = self
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), to_value(value)));
        Node {
            id: self.id.clone(),
            metadata: Some(Struct {
                fields: fields.collect(),
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

    #[test]
    fn metadata_keeps_its_structure() {
        let metadata = serde_json::json!({"NAME": "web", "LABELS": {"a": [1, true, null]}});
        let metadata = serde_json::from_value(metadata).unwrap();
        let node = NodeDescription {
            id: "ztunnel~x".into(),
            metadata,
        }
        .to_proto();
        assert_eq!(node.id, "ztunnel~x");
        let fields = node.metadata.unwrap().fields;
        assert_eq!(fields["NAME"].kind, Some(Kind::StringValue("web".into())));
        let Some(Kind::StructValue(labels)) = &fields["LABELS"].kind else {
            panic!("{fields:?}")
        };
        let Some(Kind::ListValue(list)) = &labels.fields["a"].kind else {
            panic!("{labels:?}")
        };
        assert_eq!(list.values[0].kind, Some(Kind::NumberValue(1.0)));
    }
}
