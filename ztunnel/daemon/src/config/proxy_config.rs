//! The mesh file and `PROXY_CONFIG`: the keys that have a meaning here; others are passed over.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::settings::{MESH_FILE, PROXY_CONFIG};
use super::source::Reader;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<String>,
    pub(super) concurrency: Option<u16>,
    #[serde(rename = "proxyAdminPort")]
    pub(super) admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

/// Both documents in one, `PROXY_CONFIG` winning.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<ProxyConfig> {
    let file = mesh_file(reader);
    let env = reader.optional(&PROXY_CONFIG, |text| {
        serde_saphyr::from_str::<Option<ProxyConfig>>(text).map_err(|err| err.to_string())
    });
    let (mut merged, over) = (file?, env?.flatten().unwrap_or_default());
    merged.discovery_address = over.discovery_address.or(merged.discovery_address);
    merged.concurrency = over.concurrency.or(merged.concurrency);
    merged.admin_port = over.admin_port.or(merged.admin_port);
    merged.stats_port = over.stats_port.or(merged.stats_port);
    merged.proxy_metadata.extend(over.proxy_metadata);
    Some(merged)
}

fn mesh_file(reader: &mut Reader<'_>) -> Option<ProxyConfig> {
    let problem = match reader.files().read(Path::new(MESH_FILE)) {
        Ok(text) => match serde_saphyr::from_str::<Option<MeshConfig>>(&text) {
            Ok(mesh) => {
                return Some(
                    mesh.and_then(|mesh| mesh.default_config)
                        .unwrap_or_default(),
                );
            }
            Err(err) => err.to_string(),
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Some(ProxyConfig::default()),
        Err(err) => err.to_string(),
    };
    reader.wrong_document(
        format!("the file {MESH_FILE}"),
        problem,
        "a MeshConfig in YAML, or no such file",
    );
    None
}
