//! Certificates that the CA takes back: whoever shows one is refused, and cut off where it was taken before.

use std::path::PathBuf;
use std::time::Duration;

use lab::hbone::{self, Client};
use lab::tester::{Check, Held, Outcome, Service};
use lab::{DaemonOptions, Lab, Node, Pod, Validity};

use crate::access::{self, eventually};
use crate::mesh::MESH;
use crate::metrics::{scrape, value};

const LOADED: &str = "revocation lists loaded";

/// Where a node looks for its lists.
fn file(node: &Node) -> PathBuf {
    node.dir().join("ca-crl.pem")
}

/// A lab whose nodes check revocation, each with a file of its own that is not there yet.
fn lab_with_lists() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    for node in lab.nodes() {
        let options = DaemonOptions::default().env("CRL_PATH", file(node).to_string_lossy());
        node.start_daemon_with(&options).unwrap();
        assert!(node.log().contains("no revocation lists yet"));
    }
    lab.enroll_all().unwrap();
    lab
}

/// Puts the file in place as a whole, and waits until the node has it.
fn publish(node: &Node, content: &str) {
    let loaded = || node.log().matches(LOADED).count();
    let before = loaded();
    let beside = file(node).with_extension("new");
    std::fs::write(&beside, content).unwrap();
    std::fs::rename(&beside, file(node)).unwrap();
    eventually("the lists are loaded", || loaded() > before);
}

/// The list of the mesh's CA with the certificate that the pod has now.
fn taken_back(lab: &Lab, pod: &Pod) -> String {
    let plane = lab.control_plane();
    let issued = plane.issued().into_iter();
    let serial = issued
        .rev()
        .find(|issued| issued.identity == pod.identity())
        .map(|issued| issued.serial)
        .unwrap();
    plane.authority().revoke(&[serial]).unwrap()
}

fn hold(from: &Pod, to: &Pod) -> Held {
    let mut held = from
        .hold((to.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();
    assert_eq!(held.exchange("hello").unwrap().outcome, Outcome::Good);
    held
}

fn call(from: &Pod, to: &Pod) -> Outcome {
    let report = from.check(to.v4().unwrap(), &Check::echo("hello")).unwrap();
    report.outcome
}

#[test]
fn a_revoked_client_is_cut_off_and_kept_out_until_the_list_forgets_it() {
    let lab = lab_with_lists();
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let _server = far.serve().unwrap();
    let (mut cut, mut stays) = (hold(&client, &far), hold(&near, &far));
    let (node1, node2) = (lab.node("node1"), lab.node("node2"));

    // Only the node of the server knows.
    publish(node2, &taken_back(&lab, &client));
    let ended = [("direction", "inbound"), ("reason", "PEER_REVOKED")];
    let line = access::line(node2, &ended);
    assert_eq!(line.field("src.identity"), client.identity());
    assert_ne!(cut.exchange("still there?").unwrap().outcome, Outcome::Good);
    assert_eq!(
        stays.exchange("still there?").unwrap().outcome,
        Outcome::Good
    );

    let refused = || access::lines(node2, &[("pod", "shop/far"), ("reason", "PEER_REVOKED")]).len();
    let before = refused();
    assert_eq!(call(&client, &far), Outcome::Reset);
    eventually("it is refused for its certificate", || refused() > before);
    // The client's side learns it, too.
    let told = [("pod", "shop/client"), ("reason", "PEER_TLS_FAILED")];
    let line = access::line(node1, &told);
    assert!(line.contains("CertificateRevoked"), "{line:?}");
    assert_eq!(call(&near, &far), Outcome::Good);
    let (_, text) = scrape(node2, "/metrics");
    let here = [("reporter", "destination")];
    let rejected = value(&text, "istio_crl_policy_rejections_total", &here);
    assert!(
        rejected >= Some(2.0),
        "the one cut, and the one refused: {text}"
    );

    // What cannot be read changes nothing.
    let not_reloaded = || node2.log().matches("revocation lists not reloaded").count();
    std::fs::write(file(node2), "rubbish").unwrap();
    eventually("it is said", || not_reloaded() > 0);
    assert_eq!(call(&client, &far), Outcome::Reset);

    publish(node2, "");
    assert_eq!(not_reloaded(), 1);
    assert_eq!(call(&client, &far), Outcome::Good);
    assert_eq!(stays.close().unwrap().outcome, Outcome::Good);
}

#[test]
fn a_revoked_server_loses_its_clients_and_gets_no_new_ones() {
    let lab = lab_with_lists();
    let (client, far, other) = (
        lab.pod("shop/client"),
        lab.pod("shop/far"),
        lab.pod("bank/other"),
    );
    let _servers = [far.serve().unwrap(), other.serve().unwrap()];
    let (mut cut, mut stays) = (hold(&client, &far), hold(&client, &other));
    let node1 = lab.node("node1");

    publish(node1, &taken_back(&lab, &far));
    let ended = [("direction", "outbound"), ("reason", "PEER_REVOKED")];
    let line = access::line(node1, &ended);
    assert_eq!(line.field("dst.identity"), far.identity());
    assert_ne!(cut.exchange("still there?").unwrap().outcome, Outcome::Good);
    assert_eq!(
        stays.exchange("still there?").unwrap().outcome,
        Outcome::Good
    );
    let refused = || access::lines(node1, &ended).len();
    let before = refused();
    assert_eq!(call(&client, &far), Outcome::Reset);
    eventually("it is refused for its certificate", || refused() > before);
    assert_eq!(call(&client, &other), Outcome::Good);
    let (_, text) = scrape(node1, "/metrics");
    let here = [("reporter", "source")];
    let rejected = value(&text, "istio_crl_policy_rejections_total", &here);
    assert!(
        rejected >= Some(2.0),
        "the one cut, and the one refused: {text}"
    );

    publish(node1, &lab.control_plane().authority().revoke(&[]).unwrap());
    assert_eq!(call(&client, &far), Outcome::Good);
    assert_eq!(stays.close().unwrap().outcome, Outcome::Good);
}

#[test]
fn unreadable_lists_stop_no_node() {
    let lab = Lab::from_yaml(MESH).unwrap();
    for node in lab.nodes() {
        std::fs::write(file(node), "-----BEGIN X509 CRL-----\nrubbish").unwrap();
        let options = DaemonOptions::default().env("CRL_PATH", file(node).to_string_lossy());
        node.start_daemon_with(&options).unwrap();
        let log = node.log();
        let told = log
            .lines()
            .find(|line| line.contains("certificates are not checked until the file is mended"))
            .unwrap_or_else(|| panic!("{log}"));
        assert!(
            told.contains("\terror\t") && told.contains("ca-crl.pem"),
            "{told}"
        );
    }
    lab.enroll_all().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    assert_eq!(call(&client, &far), Outcome::Good);

    // Mended, it counts: also against somebody who is no node proxy.
    let stranger = lab
        .control_plane()
        .authority()
        .issue(client.identity(), Validity::of(Duration::from_secs(60)))
        .unwrap();
    publish(lab.node("node2"), &taken_back(&lab, &client));
    assert_eq!(call(&client, &far), Outcome::Reset);
    // The identity is not what is revoked: another certificate for it is as good as ever.
    let app = format!("{}:{}", far.v4().unwrap(), Service::Echo.port());
    let answer = Client::from(lab.outside())
        .with(&stranger)
        .payload("hello")
        .connect((far.v4().unwrap(), hbone::PORT).into(), &app)
        .unwrap();
    assert!(
        answer.as_ref().is_ok_and(|answer| answer.status == 200),
        "{answer:?}"
    );
}
