//! The xDS server and the CA: where they are, how to know them, what to show them.

use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::Uri;
use ztunnel_node::control_plane::{Endpoint, RootSource, Secret, TokenSource};
use ztunnel_node::tls;

use super::settings::{self, DEFAULT_TOKEN, Setting};
use super::source::{Files, Reader};
use super::value;

/// What both endpoints are shown, and the TLS to them.
pub(super) struct Credentials {
    /// None: no authentication, and no cluster id is sent either.
    token: Option<TokenSource>,
    cluster_id: String,
    tls: tls::Options,
}

impl Credentials {
    pub(super) fn read(reader: &mut Reader<'_>, tls: Option<tls::Options>) -> Option<Self> {
        let token = token(reader);
        let cluster_id = cluster_id(reader);
        Some(Self {
            token: token?,
            cluster_id: cluster_id?,
            tls: tls?,
        })
    }
}

pub(super) fn xds(
    reader: &mut Reader<'_>,
    discovery_address: Option<&str>,
    credentials: Option<&Credentials>,
) -> Option<Endpoint> {
    let address = if reader.is_set(&settings::XDS_ADDRESS) {
        reader.value(&settings::XDS_ADDRESS, |text| {
            if text.is_empty() {
                return Err(
                    "empty turns discovery off, and nothing else could say where traffic may go"
                        .to_owned(),
                );
            }
            uri(text)
        })
    } else if let Some(text) = discovery_address {
        uri(text)
            .map_err(|problem| {
                reader.wrong_document(
                    format!("discoveryAddress={text:?} of the ProxyConfig"),
                    problem,
                    settings::XDS_ADDRESS.accepted,
                );
            })
            .ok()
    } else {
        Some(istiod(reader))
    };
    let names = Names {
        root: &settings::XDS_ROOT_CA,
        alt_hostname: &settings::ALT_XDS_HOSTNAME,
        headers: &settings::XDS_HEADER_,
    };
    names.endpoint(reader, address, credentials)
}

pub(super) fn ca(reader: &mut Reader<'_>, credentials: Option<&Credentials>) -> Option<Endpoint> {
    let address = if reader.is_set(&settings::CA_ADDRESS) {
        reader.value(&settings::CA_ADDRESS, |text| {
            if text.is_empty() {
                return Err("empty, and without a CA no pod has an identity".to_owned());
            }
            uri(text)
        })
    } else {
        Some(istiod(reader))
    };
    let names = Names {
        root: &settings::CA_ROOT_CA,
        alt_hostname: &settings::ALT_CA_HOSTNAME,
        headers: &settings::CA_HEADER_,
    };
    names.endpoint(reader, address, credentials)
}

fn istiod(reader: &Reader<'_>) -> Uri {
    if reader.is_set(&settings::KUBERNETES_SERVICE_HOST) {
        Uri::from_static("https://istiod.istio-system.svc:15012")
    } else {
        Uri::from_static("https://localhost:15012")
    }
}

fn uri(text: &str) -> Result<Uri, String> {
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: Uri = full
        .parse()
        .map_err(|err| format!("not an address ({err})"))?;
    if uri.scheme_str() != Some("https") {
        return Err("the control plane is spoken to over https only".to_owned());
    }
    // A port that is no number from 1 to 65535 ends up as part of the authority's text only.
    let after_host = uri
        .authority()
        .and_then(|authority| authority.as_str().rsplit(']').next());
    let port_is_wrong = after_host.is_some_and(|text| text.contains(':'))
        && uri.port_u16().is_none_or(|port| port == 0);
    if uri.host().is_none_or(str::is_empty) || port_is_wrong {
        return Err("not a host and a port".to_owned());
    }
    if uri.path() != "/" || uri.query().is_some() || full.contains('@') {
        return Err("more than a host and a port".to_owned());
    }
    Ok(uri)
}

/// The settings in which the two endpoints differ.
struct Names {
    root: &'static Setting,
    alt_hostname: &'static Setting,
    headers: &'static Setting,
}

impl Names {
    fn endpoint(
        &self,
        reader: &mut Reader<'_>,
        address: Option<Uri>,
        credentials: Option<&Credentials>,
    ) -> Option<Endpoint> {
        let files = reader.files();
        let roots = reader.value(self.root, |text| root_source(text, files));
        let alt_hostname = reader.optional(self.alt_hostname, value::name);
        let headers = headers(reader, self.headers);
        let credentials = credentials?;
        Some(Endpoint {
            address: address?,
            roots: roots?,
            alt_hostname: alt_hostname?,
            token: credentials.token.clone(),
            cluster_id: credentials.cluster_id.clone(),
            headers: headers?,
            tls: credentials.tls,
        })
    }
}

/// An id in `proxyMetadata` is for the control plane only.
fn cluster_id(reader: &mut Reader<'_>) -> Option<String> {
    // It is sent as a header.
    let header_text = |text: &str| {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(text.to_owned());
        }
        Err("not an id of visible ASCII characters".to_owned())
    };
    match reader.optional(&settings::ISTIO_META_CLUSTER_ID, header_text)? {
        Some(id) => Some(id),
        None => reader.value(&settings::CLUSTER_ID, header_text),
    }
}

/// A value that is neither a file nor certificates would fail at every handshake, far from its cause.
fn root_source(text: &str, files: &dyn Files) -> Result<RootSource, String> {
    if text == "SYSTEM" {
        return Ok(RootSource::System);
    }
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(RootSource::Pem(text.to_owned()));
    }
    existing(text, files).map(RootSource::File)
}

fn existing(text: &str, files: &dyn Files) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if files.is_file(&path) {
        return Ok(path);
    }
    Err("no such file".to_owned())
}

fn token(reader: &mut Reader<'_>) -> Option<Option<TokenSource>> {
    let files = reader.files();
    if !reader.is_set(&settings::AUTH_TOKEN) {
        let default = Path::new(DEFAULT_TOKEN);
        let file = files.is_file(default);
        return Some(file.then(|| TokenSource::File(default.to_owned())));
    }
    let token = reader.value(&settings::AUTH_TOKEN, |text| {
        if text.is_empty() {
            return Err("empty; leave it unset for the default".to_owned());
        }
        if files.is_file(Path::new(text)) {
            return Ok(TokenSource::File(PathBuf::from(text)));
        }
        if ["/", "./", "../"]
            .iter()
            .any(|start| text.starts_with(start))
        {
            return Err("looks like a path, and there is no such file".to_owned());
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("neither a file nor a token".to_owned());
        }
        Ok(TokenSource::Literal(Secret::new(text.to_owned())))
    });
    token.map(Some)
}

fn headers(reader: &mut Reader<'_>, family: &Setting) -> Option<Vec<(String, String)>> {
    let mut headers = Vec::new();
    let members = reader.family(family);
    let count = members.len();
    for (name, text) in members {
        let lower = name.to_ascii_lowercase();
        let problem = if MetadataKey::<Ascii>::from_bytes(lower.as_bytes()).is_err() {
            "not a name of a header"
        } else if ["authorization", "clusterid"].contains(&lower.as_str()) {
            "this header is ours: AUTH_TOKEN and CLUSTER_ID set it"
        } else if MetadataValue::<Ascii>::try_from(text).is_err() || !text.is_ascii() {
            "not a value of a header"
        } else {
            headers.push((lower, text.to_owned()));
            continue;
        };
        reader.wrong_member(family, name, text, problem.to_owned());
    }
    (headers.len() == count).then_some(headers)
}
