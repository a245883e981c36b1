use std::fs;
use std::path::Path;

use tonic::Code;
use ztunnel_proto::istio::v1::auth::IstioCertificateRequest;
use ztunnel_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::test_server::Setup;
use super::*;
use crate::task::{Pace, Shutdown};
use crate::tls::test_ca::TestCa;

mod half_open;

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        roots: RootSource::Pem(String::new()),
        alt_hostname: None,
        token: None,
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
        tls: tls::Options::default(),
    }
}

/// Makes one call and gives what came back.
async fn call(endpoint: &Endpoint) -> Result<(), tonic::Status> {
    let mut request = tonic::Request::new(IstioCertificateRequest::default());
    *request.metadata_mut() = endpoint.metadata().unwrap();
    IstioCertificateServiceClient::new(endpoint.channel().unwrap())
        .create_certificate(request)
        .await
        .map(drop)
}

async fn refusal(endpoint: &Endpoint) -> String {
    let status = call(endpoint).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    explain(&status)
}

/// A directory that goes away.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[tokio::test]
async fn call_carries_token_cluster_and_extra_headers() {
    let ca = TestCa::new("control plane");
    let server = Setup::new(&ca).start().await;
    let mut endpoint = server.endpoint.clone();
    endpoint.token = Some(TokenSource::Literal(Secret::new("sesame".to_owned())));
    endpoint.headers = vec![("X-Team".to_owned(), "mesh".to_owned())];
    call(&endpoint).await.unwrap();

    let calls = server.calls.lock().unwrap();
    let metadata = &calls[0].metadata;
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer sesame");
    assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
    assert_eq!(metadata.get("x-team").unwrap(), "mesh");
}

#[tokio::test]
async fn cluster_goes_with_a_token_only() {
    let ca = TestCa::new("control plane");
    let server = Setup::new(&ca).start().await;
    call(&server.endpoint).await.unwrap();
    let calls = server.calls.lock().unwrap();
    assert!(calls[0].metadata.get("authorization").is_none());
    assert!(calls[0].metadata.get("clusterid").is_none());
}

#[tokio::test]
async fn unknown_ca_is_refused() {
    let server = Setup::new(&TestCa::new("control plane")).start().await;
    let mut endpoint = server.endpoint.clone();
    endpoint.roots = RootSource::Pem(TestCa::new("other").root);
    let refusal = refusal(&endpoint).await;
    assert!(refusal.contains("UnknownIssuer"), "{refusal}");
    assert!(
        refusal.contains(&format!("tls handshake with {}", endpoint.address)),
        "{refusal}"
    );
    assert!(server.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn server_goes_by_the_host_or_the_alternative_name() {
    let ca = TestCa::new("control plane");
    let server = |name: &'static [&'static str]| {
        let mut setup = Setup::new(&ca);
        setup.names = name;
        setup.start()
    };
    let by_name = |endpoint: &Endpoint, alt: Option<&str>| {
        let mut endpoint = endpoint.clone();
        let port = endpoint.address.port_u16().unwrap();
        endpoint.address = format!("https://localhost:{port}").parse().unwrap();
        endpoint.alt_hostname = alt.map(str::to_owned);
        endpoint
    };

    let own = server(&["localhost"]).await;
    call(&by_name(&own.endpoint, None)).await.unwrap();
    call(&by_name(&own.endpoint, Some("istiod.istio-system.svc")))
        .await
        .unwrap();

    let other = server(&["istiod.istio-system.svc"]).await;
    call(&by_name(&other.endpoint, Some("istiod.istio-system.svc")))
        .await
        .unwrap();
    // What is asked for stays the host.
    assert_eq!(
        *other.asked_for.lock().unwrap(),
        [Some("localhost".to_owned())]
    );
    for alt in [None, Some("istiod-canary.istio-system.svc")] {
        let refusal = refusal(&by_name(&other.endpoint, alt)).await;
        assert!(
            refusal.contains("certificate not valid for name"),
            "{refusal}"
        );
    }
}

#[tokio::test]
async fn tls_1_2_is_opt_in() {
    let ca = TestCa::new("control plane");
    let old = [&rustls::version::TLS12];
    let mut setup = Setup::new(&ca);
    setup.versions = &old;
    let server = setup.start().await;
    let mut endpoint = server.endpoint.clone();
    let refusal = refusal(&endpoint).await;
    assert!(refusal.contains("ProtocolVersion"), "{refusal}");
    endpoint.tls.tls12 = true;
    call(&endpoint).await.unwrap();
}

#[tokio::test]
async fn post_quantum_only_holds_for_the_control_plane() {
    use rustls::crypto::SupportedKxGroup;
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};

    let ca = TestCa::new("control plane");
    let server = |kx_groups: &[&'static dyn SupportedKxGroup]| {
        let mut setup = Setup::new(&ca);
        setup.provider = std::sync::Arc::new(rustls::crypto::CryptoProvider {
            kx_groups: kx_groups.to_vec(),
            ..default_provider()
        });
        setup.start()
    };
    let classic = server(&[kx_group::X25519, kx_group::SECP256R1]).await;
    let mut endpoint = classic.endpoint.clone();
    call(&endpoint).await.unwrap();
    endpoint.tls.only_post_quantum = true;
    let refused = refusal(&endpoint).await;
    assert!(refused.contains("HandshakeFailure"), "{refused}");
    let hybrid = server(&[kx_group::X25519MLKEM768]).await;
    endpoint.address = hybrid.endpoint.address.clone();
    call(&endpoint).await.unwrap();
}

#[tokio::test]
async fn unreachable_control_plane_is_named() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = format!("https://{}/", listener.local_addr().unwrap());
    drop(listener);
    let mut endpoint = endpoint(&address);
    endpoint.roots = RootSource::Pem(TestCa::new("any").root);
    let refusal = refusal(&endpoint).await;
    assert!(
        refusal.contains(&format!("connect to {address}")),
        "{refusal}"
    );
    assert!(refusal.contains("refused"), "{refusal}");
}

#[test]
fn token_file_is_read_for_every_call() {
    let dir = Dir::new("ztunnel-token");
    let path = dir.file("token", "first\n");
    let mut endpoint = endpoint("https://istiod:15012");
    endpoint.token = Some(TokenSource::File(path.clone()));
    let bearer = |endpoint: &Endpoint| {
        let metadata = endpoint.metadata().map_err(|err| err.to_string())?;
        Ok::<_, String>(metadata.get("authorization").unwrap().clone())
    };
    assert_eq!(bearer(&endpoint).unwrap(), "Bearer first");
    fs::write(&path, "second").unwrap();
    assert_eq!(bearer(&endpoint).unwrap(), "Bearer second");

    let shown = path.display();
    fs::write(&path, " \n").unwrap();
    assert_eq!(
        bearer(&endpoint).unwrap_err(),
        format!("the control plane token in {shown} is empty")
    );
    fs::write(&path, "two\nlines").unwrap();
    assert_eq!(
        bearer(&endpoint).unwrap_err(),
        format!("the control plane token in {shown} has characters that no header can carry")
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(
        bearer(&endpoint).unwrap_err(),
        format!("read control plane token from {shown}")
    );
}

#[test]
fn secrets_do_not_print() {
    let mut endpoint = endpoint("https://istiod:15012");
    endpoint.token = Some(TokenSource::Literal(Secret::new("sesame".to_owned())));
    endpoint.headers = vec![("x-key".to_owned(), "sesame".to_owned())];
    let printed = format!("{endpoint:?} {:?}", endpoint.metadata().unwrap());
    assert!(!printed.contains("sesame"), "{printed}");
}

#[test]
fn roots_that_are_rejected() {
    let check = |roots: RootSource, expected: &str| {
        assert_eq!(roots.read().unwrap_err().to_string(), expected);
    };
    let nowhere = Path::new("/nonexistent/root-cert.pem");
    check(
        RootSource::File(nowhere.to_owned()),
        "read control plane roots from /nonexistent/root-cert.pem",
    );
    check(
        RootSource::Pem("./var/run/secrets/istio/root-cert.pem".to_owned()),
        "the inline root setting contains no PEM certificate; the control plane cannot be verified without roots",
    );
    let dir = Dir::new("ztunnel-roots");
    let empty = dir.file("root-cert.pem", "");
    check(
        RootSource::File(empty.clone()),
        &format!(
            "{} contains no PEM certificate; the control plane cannot be verified without roots",
            empty.display()
        ),
    );
    let torn = TestCa::new("one").root.replace("-----END", "");
    assert!(matches!(
        RootSource::Pem(torn).read(),
        Err(ControlPlaneError::BadRoots { .. })
    ));
}

#[tokio::test]
async fn roots_of_rubbish_make_no_channel() {
    let mut endpoint = endpoint("https://istiod:15012");
    endpoint.roots = RootSource::Pem(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
    );
    assert!(matches!(
        endpoint.channel(),
        Err(ControlPlaneError::BadRoots { .. })
    ));
}

#[test]
fn roots_in_a_file_and_inline_are_the_same() {
    let pem = TestCa::new("one").root + &TestCa::new("two").root;
    let dir = Dir::new("ztunnel-same-roots");
    let path = dir.file("root-cert.pem", &pem);
    let read = |roots: RootSource| roots.read().unwrap().store().unwrap().len();
    assert_eq!(read(RootSource::File(path)), 2);
    assert_eq!(read(RootSource::Pem(pem)), 2);
}

#[test]
fn settings_that_can_never_work() {
    let check = |change: fn(&mut Endpoint), expected: &str| {
        let mut endpoint = endpoint("https://istiod.istio-system.svc:15012");
        endpoint.check().unwrap();
        change(&mut endpoint);
        assert_eq!(endpoint.check().unwrap_err().to_string(), expected);
    };
    check(
        |endpoint| endpoint.address = "http://istiod:15010".parse().unwrap(),
        "control plane address http://istiod:15010/ is no https://host:port",
    );
    check(
        |endpoint| endpoint.address = "istiod".parse().unwrap(),
        "control plane address istiod is no https://host:port",
    );
    check(
        |endpoint| endpoint.address = "https://is_tiod!:1".parse().unwrap(),
        "\"is_tiod!\" is no DNS name or IP address that a certificate could carry",
    );
    check(
        |endpoint| endpoint.alt_hostname = Some("a b".to_owned()),
        "\"a b\" is no DNS name or IP address that a certificate could carry",
    );
    check(
        |endpoint| endpoint.headers = vec![("a b".to_owned(), "x".to_owned())],
        "extra header \"a b\" has a name or value that gRPC metadata cannot carry (visible ASCII only)",
    );
    check(
        |endpoint| endpoint.headers = vec![("a".to_owned(), "ü".to_owned())],
        "extra header \"a\" has a name or value that gRPC metadata cannot carry (visible ASCII only)",
    );
    check(
        |endpoint| endpoint.cluster_id = "ü".to_owned(),
        "cluster id \"ü\" has characters that no header can carry",
    );
}

#[test]
fn addresses_that_work() {
    for address in [
        "https://10.0.0.1:15012",
        "https://[fd00::1]:15012",
        "https://istiod",
    ] {
        endpoint(address).check().unwrap();
    }
}

#[test]
fn long_explanations_are_cut() {
    let status = tonic::Status::unknown("ü".repeat(100_000));
    assert_eq!(explain(&status).chars().count(), MAX_EXPLANATION + 1);
}

/// Makes one call over a shared channel and gives what came back.
async fn call_shared(channel: &SharedChannel) -> Result<(), String> {
    let mut request = tonic::Request::new(IstioCertificateRequest::default());
    *request.metadata_mut() = channel.endpoint().metadata().unwrap();
    let answer = IstioCertificateServiceClient::new(channel.get().map_err(|err| err.to_string())?)
        .create_certificate(request)
        .await;
    answer.map(drop).map_err(|status| explain(&status))
}

/// Waits for something that another task brings about.
async fn until(mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let bound = Duration::from_secs(10);
    tokio::time::timeout(bound, waiting).await.expect("in time");
}

/// The roots as the kubelet mounts them.
struct Mounted(Dir);

impl Mounted {
    fn new(name: &str) -> Self {
        let dir = Dir::new(name);
        std::os::unix::fs::symlink("..data/root-cert.pem", dir.0.join("root-cert.pem")).unwrap();
        Self(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.0.join("root-cert.pem")
    }

    fn publish(&self, version: &str, content: &str) {
        let at = |name: &str| self.0.0.join(name);
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("root-cert.pem"), content).unwrap();
        std::os::unix::fs::symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    }
}

#[tokio::test]
async fn roots_are_followed_when_the_kubelet_swaps_them() {
    let (ca, other) = (TestCa::new("control plane"), TestCa::new("other"));
    let server = Setup::new(&ca).start().await;
    let mounted = Mounted::new("swapped-roots");
    mounted.publish("..1", &ca.root);
    let mut endpoint = server.endpoint.clone();
    endpoint.roots = RootSource::File(mounted.file());
    let channel = std::sync::Arc::new(SharedChannel::new(endpoint));
    let pace = Pace {
        debounce: Duration::from_millis(1),
        at_least: Duration::from_millis(20),
    };
    let shutdown = Shutdown::default();
    let following = tokio::spawn({
        let (channel, shutdown) = (channel.clone(), shutdown.clone());
        async move { channel.follow_roots(pace, shutdown).await }
    });
    call_shared(&channel).await.unwrap();

    // Nothing usable: what was good stays in use, also for new connections.
    for (version, content) in [("..2", "rubbish"), ("..3", "")] {
        mounted.publish(version, content);
        let complained = |channel: &SharedChannel| {
            let complaint = channel.complaint();
            complaint.is_some_and(|text| text.contains(&*mounted.file().to_string_lossy()))
        };
        until(async || complained(&channel)).await;
        call_shared(&channel).await.unwrap();
        channel.reconnect();
        call_shared(&channel).await.unwrap();
    }
    assert_eq!(server.asked_for.lock().unwrap().len(), 3);

    // Roots that the server does not chain to: the connection that is open is not used any more.
    mounted.publish("..4", &other.root);
    until(async || call_shared(&channel).await.is_err()).await;
    let refusal = call_shared(&channel).await.unwrap_err();
    assert!(refusal.contains("UnknownIssuer"), "{refusal}");
    mounted.publish("..5", &format!("{}{}", other.root, ca.root));
    until(async || call_shared(&channel).await.is_ok()).await;
    shutdown.start();
    following.await.unwrap();
}
