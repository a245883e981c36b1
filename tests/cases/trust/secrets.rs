//! What nobody may see.

use std::time::Duration;

use lab::tester::{Check, Outcome};
use lab::{CaMode, DaemonOptions, Lab, Validity};

use crate::access::eventually;
use crate::mesh::MESH;

/// How every P-256 key in PKCS#8 begins, as it would be printed: as PEM, as base64, as bytes in hexadecimal and in
/// decimal.
const KEY_FORMS: [&str; 5] = [
    "PRIVATE KEY",
    "MIGHAgEAMBMGByqGSM49AgEG",
    "308187020100301306072a8648ce3d0201",
    "[30, 81, 87, 02, 01, 00, 30, 13",
    "48, 129, 135, 2, 1, 0, 48, 19, 6, 7, 42, 134, 72, 206, 61, 2, 1",
];

#[test]
fn neither_keys_nor_tokens_are_in_the_most_talkative_log() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.limit_certificates(Validity {
        back_dated: Duration::ZERO,
        lifetime: Duration::from_secs(3),
    });
    let options = DaemonOptions::default()
        .env("RUST_LOG", "trace")
        .env("CA_HEADER_X_KEY", "open-sesame");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let call = || {
        client
            .check(far.v4().unwrap(), &Check::echo("hello"))
            .unwrap()
    };
    assert_eq!(call().outcome, Outcome::Good);
    // What goes wrong is told at more length.
    for mode in [CaMode::WrongIdentity, CaMode::Unavailable] {
        plane.set_ca_mode(mode);
        let failed = || {
            lab.node("node1")
                .log()
                .matches("certificate request failed")
                .count()
        };
        let before = failed();
        eventually("a renewal fails", || failed() > before);
    }
    plane.set_ca_mode(CaMode::Sign);
    let mut tokens = vec!["open-sesame".to_owned()];
    for node in lab.nodes() {
        let token = std::fs::read_to_string(plane.token_file(node.name())).unwrap();
        tokens.push(token.trim().to_owned());
    }
    plane.rotate_token("node1").unwrap();
    plane.pause();
    plane.resume().unwrap();
    lab.settle().unwrap();
    tokens.push(std::fs::read_to_string(plane.token_file("node1")).unwrap());
    eventually("it works again", || call().outcome == Outcome::Good);
    for node in lab.nodes() {
        let log = node.log();
        assert!(
            log.contains("\ttrace\t") && log.contains("certificate issued"),
            "it is talkative"
        );
        for secret in KEY_FORMS
            .iter()
            .copied()
            .chain(tokens.iter().map(String::as_str))
        {
            let shown = log.lines().find(|line| line.contains(secret));
            assert_eq!(shown, None, "{secret}");
        }
    }
}
