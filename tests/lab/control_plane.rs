//! The control plane, as a node proxy meets it: over TLS, with a token, on the real wire.

use std::time::Duration;

use lab::{Authority, CaMode, Lab, Validity};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use ztunnel_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ztunnel_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as Detail,
};
use ztunnel_proto::istio::v1::auth::IstioCertificateRequest;
use ztunnel_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use ztunnel_proto::istio::workload::{Address, TunnelProtocol, address};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use crate::SHOP;

const CLIENT: &str = "Kubernetes//Pod/shop/client";
const WEB: &str = "Kubernetes//Pod/shop/web";

/// Runs a client of the control plane on a node.
fn on_node<T: Send>(lab: &Lab, job: impl AsyncFnOnce(Channel) -> T + Send) -> T {
    let root = std::fs::read(lab.control_plane().root_file()).unwrap();
    let uri = format!("https://{}", lab.control_plane().address());
    let inside = lab.node("node1").namespace().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(root))
                .domain_name("istiod.istio-system.svc");
            let endpoint = Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap();
            let job = job(endpoint.connect().await.unwrap());
            tokio::time::timeout(Duration::from_secs(20), job)
                .await
                .unwrap()
        })
    });
    inside.unwrap()
}

/// A request with the token of node1, unless told otherwise.
fn with_token<T>(lab: &Lab, token: Option<&str>, message: T) -> Request<T> {
    let own = std::fs::read_to_string(lab.control_plane().token_file("node1")).unwrap();
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", token.unwrap_or(&own));
    request
        .metadata_mut()
        .insert("authorization", bearer.parse().unwrap());
    request
        .metadata_mut()
        .insert("clusterid", "Kubernetes".parse().unwrap());
    request
}

/// A discovery stream.
struct Subscriber {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Subscriber {
    async fn connect(lab: &Lab, channel: Channel, token: Option<&str>) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let stream = ReceiverStream::new(outgoing);
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(with_token(lab, token, stream))
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    async fn subscribe(&mut self, type_url: &str, known: &[(&str, &str)]) {
        let text = |value: &str| Value {
            kind: Some(Kind::StringValue(value.to_owned())),
        };
        let metadata = [("NAMESPACE", "istio-system"), ("NODE_NAME", "node1")];
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            node: Some(Node {
                id: "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
                metadata: Some(Struct {
                    fields: metadata
                        .map(|(key, value)| (key.to_owned(), text(value)))
                        .into(),
                }),
                ..Node::default()
            }),
            initial_resource_versions: known
                .iter()
                .map(|&(name, version)| (name.to_owned(), version.to_owned()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.responses.message().await.unwrap().unwrap()
    }

    async fn answer(&mut self, to: &DeltaDiscoveryResponse, rejected: Option<&str>) {
        let answer = DeltaDiscoveryRequest {
            type_url: to.type_url.clone(),
            response_nonce: to.nonce.clone(),
            error_detail: rejected.map(|why| Detail {
                message: why.to_owned(),
                ..Detail::default()
            }),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.unwrap();
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

/// The workload or service of a resource.
fn decode(response: &DeltaDiscoveryResponse, name: &str) -> address::Type {
    let resource = response
        .resources
        .iter()
        .find(|resource| resource.name == name)
        .unwrap();
    let any = resource.resource.as_ref().unwrap();
    Address::decode(any.value.as_slice())
        .unwrap()
        .r#type
        .unwrap()
}

#[test]
fn a_subscriber_gets_everything_then_changes_then_removals() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    on_node(&lab, async |channel| {
        let plane = lab.control_plane();
        let mut client = Subscriber::connect(&lab, channel, None).await.unwrap();
        client.subscribe(ADDRESS_TYPE, &[]).await;
        client.subscribe(AUTHORIZATION_TYPE, &[]).await;
        let all = client.next().await;
        let near = "Kubernetes//Pod/shop/near";
        assert_eq!(
            names(&all),
            [CLIENT, near, WEB, "shop/web.shop.svc.cluster.local"]
        );
        let address::Type::Workload(web) = decode(&all, WEB) else {
            panic!("no workload")
        };
        assert_eq!(web.tunnel_protocol(), TunnelProtocol::None);
        assert_eq!(web.addresses[0], [10, 244, 2, 10]);
        let ports = &web.services["shop/web.shop.svc.cluster.local"].ports;
        assert_eq!((ports[0].service_port, ports[0].target_port), (80, 8080));
        client.answer(&all, None).await;
        wait_for(|| plane.answers().len() == 1).await;
        let policies = client.next().await;
        assert_eq!(
            (policies.type_url.as_str(), names(&policies).len()),
            (AUTHORIZATION_TYPE, 0)
        );
        client.answer(&policies, Some("as a test")).await;
        wait_for(|| plane.answers().len() == 2).await;

        plane
            .update(|mesh| {
                mesh.workload_mut("shop/web").unwrap().protocol = Some(lab::Protocol::Hbone)
            })
            .unwrap();
        let changed = client.next().await;
        assert_eq!(
            (names(&changed), changed.removed_resources.len()),
            (vec![WEB], 0)
        );
        let address::Type::Workload(web) = decode(&changed, WEB) else {
            panic!("no workload")
        };
        assert_eq!(web.tunnel_protocol(), TunnelProtocol::Hbone);
        assert!(
            plane
                .settled(&["node1"], Duration::from_millis(50))
                .is_err()
        );
        client.answer(&changed, None).await;
        wait_for(|| plane.answers().len() == 3).await;

        lab.remove_pod("shop/near").unwrap();
        let removed = client.next().await;
        assert_eq!(
            (names(&removed).len(), removed.removed_resources.as_slice()),
            (0, [near.to_owned()].as_slice())
        );
        client.answer(&removed, None).await;
        wait_for(|| plane.answers().len() == 4).await;
        wait_for(|| plane.settled(&["node1"], Duration::ZERO).is_ok()).await;
        let rejected: Vec<_> = plane
            .answers()
            .into_iter()
            .filter_map(|answer| answer.rejected)
            .collect();
        assert_eq!(
            (plane.answers().len(), rejected),
            (4, vec!["as a test".to_owned()])
        );
    });
}

#[test]
fn a_subscriber_that_comes_back_gets_what_it_missed() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let versions = on_node(&lab, async |channel| {
        let mut client = Subscriber::connect(&lab, channel, None).await.unwrap();
        client.subscribe(ADDRESS_TYPE, &[]).await;
        let all = client.next().await;
        all.resources
            .into_iter()
            .map(|r| (r.name, r.version))
            .collect::<Vec<_>>()
    });
    lab.control_plane().pause();
    lab.control_plane()
        .update(|mesh| {
            mesh.services.clear();
            mesh.workload_mut("shop/web").unwrap().status = lab::Health::Unhealthy;
        })
        .unwrap();
    lab.control_plane().resume().unwrap();
    on_node(&lab, async |channel| {
        let mut client = Subscriber::connect(&lab, channel, None).await.unwrap();
        let known: Vec<_> = versions
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        client.subscribe(ADDRESS_TYPE, &known).await;
        let missed = client.next().await;
        // The client's own record of the web pod's membership went too, so only the web pod changed.
        assert_eq!(names(&missed), [WEB]);
        assert_eq!(
            missed.removed_resources,
            ["shop/web.shop.svc.cluster.local"]
        );
    });
}

#[test]
fn edits_of_the_file_take_effect_and_bad_ones_change_nothing() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    on_node(&lab, async |channel| {
        let plane = lab.control_plane();
        let file = plane.mesh_file();
        let mut client = Subscriber::connect(&lab, channel, None).await.unwrap();
        client.subscribe(ADDRESS_TYPE, &[]).await;
        let all = client.next().await;
        client.answer(&all, None).await;
        let good = std::fs::read_to_string(&file).unwrap();

        std::fs::write(&file, "workloads: [{name: broken}]").unwrap();
        wait_for(|| {
            std::fs::read_to_string(plane.log_file()).is_ok_and(|log| {
                log.contains("kept the last good state")
                    && log.contains("mesh.yaml")
                    && log.contains("missing field")
            })
        })
        .await;
        assert_eq!(plane.mesh().workloads.len(), 3);

        std::fs::write(
            &file,
            good.replace("service_account: client", "service_account: other"),
        )
        .unwrap();
        let changed = client.next().await;
        assert_eq!(names(&changed), [CLIENT]);
        let address::Type::Workload(client) = decode(&changed, CLIENT) else {
            panic!("no workload")
        };
        assert_eq!(client.service_account, "other");
    });
}

async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen");
}

#[test]
fn who_has_no_right_to_discovery_is_refused() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    on_node(&lab, async |channel| {
        let wrong = Subscriber::connect(&lab, channel.clone(), Some("wrong")).await;
        assert_eq!(
            wrong.err().map(|status| status.code()),
            Some(Code::Unauthenticated)
        );
        let old = std::fs::read_to_string(lab.control_plane().token_file("node1")).unwrap();
        lab.control_plane().rotate_token("node1").unwrap();
        let stale = Subscriber::connect(&lab, channel.clone(), Some(&old)).await;
        assert_eq!(
            stale.err().map(|status| status.code()),
            Some(Code::Unauthenticated)
        );
        assert!(Subscriber::connect(&lab, channel, None).await.is_ok());
    });
}

/// Asks for a certificate as a node proxy does.
async fn ask(
    lab: &Lab,
    channel: &Channel,
    token: Option<&str>,
    identity: &str,
) -> Result<Vec<String>, Status> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let wanted = Value {
        kind: Some(Kind::StringValue(identity.to_owned())),
    };
    let message = IstioCertificateRequest {
        csr,
        validity_duration: 3600,
        metadata: Some(Struct {
            fields: [("ImpersonatedIdentity".to_owned(), wanted)].into(),
        }),
    };
    let request = with_token(lab, token, message);
    let response = IstioCertificateServiceClient::new(channel.clone())
        .create_certificate(request)
        .await?;
    Ok(response.into_inner().cert_chain)
}

#[test]
fn certificates_are_signed_for_what_runs_on_the_node_and_nothing_else() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let plane = lab.control_plane();
    on_node(&lab, async |channel| {
        let own = "spiffe://cluster.local/ns/shop/sa/client";
        let chain = ask(&lab, &channel, None, own).await.unwrap();
        assert_eq!(chain.len(), 3);
        assert_eq!(chain[2], plane.authority().root_pem());
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let leaf = pem.parse_x509().unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical && leaf.subject().iter().next().is_none());
        assert_eq!(names.value.general_names.len(), 1);
        assert!(format!("{:?}", names.value.general_names[0]).contains(own));
        let validity = leaf.validity();
        assert_eq!(
            validity.not_after.timestamp() - validity.not_before.timestamp(),
            3720
        );
        assert_eq!(plane.issued_for(own), 1);

        let refused = async |token: Option<&str>, identity: &str| {
            ask(&lab, &channel, token, identity)
                .await
                .err()
                .map(|status| status.code())
        };
        let elsewhere = "spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(
            refused(Some("wrong"), own).await,
            Some(Code::Unauthenticated)
        );
        assert_eq!(refused(None, elsewhere).await, Some(Code::Unauthenticated));
        assert_eq!(
            refused(None, "spiffe://cluster.local/shop/client").await,
            Some(Code::Unauthenticated)
        );
        let reasons: Vec<_> = plane
            .refused()
            .into_iter()
            .map(|refused| refused.reason)
            .collect();
        assert_eq!(reasons.len(), 3);
        assert_eq!(reasons[1], "no pod of shop/web on node1");
        plane.set_ca_mode(CaMode::Unavailable);
        assert_eq!(refused(None, own).await, Some(Code::Unavailable));
    });
}

#[test]
fn the_authority_can_be_replaced_and_certificates_shortened() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let plane = lab.control_plane();
    on_node(&lab, async |channel| {
        let own = "spiffe://cluster.local/ns/shop/sa/client";
        let before = ask(&lab, &channel, None, own).await.unwrap();
        plane.set_authority(Authority::new("next").unwrap(), true);
        let short = Duration::from_secs(10);
        plane.limit_certificates(Validity {
            back_dated: Duration::ZERO,
            lifetime: short,
        });
        let after = ask(&lab, &channel, None, own).await.unwrap();
        let both = format!("{}{}", before[2], plane.authority().root_pem());
        assert_eq!(after[2], both);
        let issued = plane.issued().pop().unwrap();
        assert!(issued.not_after <= std::time::SystemTime::now() + short);
    });
}
