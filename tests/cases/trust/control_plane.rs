//! What the control plane's certificate has to chain to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use lab::{Authority, DaemonOptions, Lab, Validity};

use crate::access::eventually;
use crate::mesh::MESH;

/// A ConfigMap as the kubelet mounts it.
struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        symlink("..data/root-cert.pem", dir.join("root-cert.pem")).unwrap();
        Self(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.join("root-cert.pem")
    }

    fn publish(&self, version: &str, content: &str) {
        fs::create_dir(self.0.join(version)).unwrap();
        fs::write(self.0.join(version).join("root-cert.pem"), content).unwrap();
        symlink(version, self.0.join("..data_tmp")).unwrap();
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
    }
}

#[test]
fn roots_are_followed_and_what_cannot_be_read_changes_nothing() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.limit_certificates(Validity {
        back_dated: Duration::ZERO,
        lifetime: Duration::from_secs(4),
    });
    let good = fs::read_to_string(plane.root_file()).unwrap();
    let mounted = Mounted::new(lab.dir().join("istio"));
    mounted.publish("..1", &good);
    let node = lab.node("node1");
    let roots = mounted.file().to_string_lossy().into_owned();
    node.start_daemon_with(&DaemonOptions::default().env("CA_ROOT_CA", &roots))
        .unwrap();
    let client = lab.pod("shop/client");
    node.daemon(|daemon| daemon.enroll(&client)).unwrap();
    let issued = || plane.issued_for(client.identity());
    let renewed = || {
        let before = issued();
        eventually("the certificate is renewed", || issued() > before + 1);
    };
    renewed();

    mounted.publish("..2", "rubbish");
    let complaints = || {
        let log = node.log();
        let lines = log.lines();
        let complaints = lines.filter(|line| line.contains("control plane roots not reloaded"));
        complaints.map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("it is said", || !complaints().is_empty());
    renewed();
    let said = complaints();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains(&roots) && said[0].contains("no PEM certificate"),
        "{said:?}"
    );

    // The roots of somebody else: the connection that is open is not used any more.
    mounted.publish("..3", &Authority::new("somebody else").unwrap().root_pem());
    eventually("the CA is not believed", || {
        let log = node.log();
        let mut lines = log.lines();
        lines.any(|line| {
            line.contains("certificate request failed") && line.contains("UnknownIssuer")
        })
    });
    let before = issued();
    mounted.publish(
        "..4",
        &(Authority::new("another").unwrap().root_pem() + &good),
    );
    eventually("the CA is believed again", || issued() > before);
    assert!(
        plane.connected().contains(&"node1".to_owned()),
        "discovery went on"
    );
}

#[test]
fn the_trust_store_of_the_system_will_do() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let system = DaemonOptions::default()
        .env("XDS_ROOT_CA", "SYSTEM")
        .env("CA_ROOT_CA", "SYSTEM");
    let root = lab.control_plane().root_file();
    let (known, unknown) = (lab.node("node1"), lab.node("node2"));
    known
        .start_daemon_with(&system.clone().env("SSL_CERT_FILE", root.to_string_lossy()))
        .unwrap();
    unknown.start_daemon_with(&system).unwrap();
    let client = lab.pod("shop/client");
    known.daemon(|daemon| daemon.enroll(&client)).unwrap();
    eventually("a certificate", || {
        lab.control_plane().issued_for(client.identity()) > 0
    });
    // The system does not vouch for a lab.
    eventually("the control plane is not believed", || {
        let log = unknown.log();
        log.contains("UnknownIssuer") || log.contains("the system's trust store contains no")
    });
    assert!(
        !lab.control_plane()
            .connected()
            .contains(&"node2".to_owned())
    );
}
