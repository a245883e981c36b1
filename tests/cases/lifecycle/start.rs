//! What stops a daemon from starting.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use lab::tester::Outcome;
use lab::{Lab, Node, Output, Program};

use super::{assert_good, hold};
use crate::local_api::Api;
use crate::mesh::{MESH, enrolled};

/// The program and the environment of the daemon that runs on a node.
fn like_the_running(node: &Node) -> Program {
    let process = format!("/proc/{}", node.daemon_pid().unwrap());
    let program = std::fs::read_link(format!("{process}/exe")).unwrap();
    let environment = std::fs::read(format!("{process}/environ")).unwrap();
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let text = |bytes| std::ffi::OsStr::from_bytes(bytes).to_owned();
        Some((text(&variable[..at]), text(&variable[at + 1..])))
    });
    variables.fold(
        Program::new([program.into_os_string(), "run".into()]).clear_env(),
        |program, (name, value)| program.env(name, value),
    )
}

fn assert_refused(said: &Output, reasons: &[&str]) {
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    for reason in reasons {
        assert!(
            said.stderr.contains(reason),
            "no {reason:?} in {}",
            said.stderr
        );
    }
}

#[test]
fn a_second_daemon_refuses_to_start_and_does_no_harm_to_the_first() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let node = lab.node("node1");
    let mut held = hold(&client, far.v4().unwrap());
    let tap = client.tap(&["hello", "carried on"]).unwrap();
    let elsewhere = node.dir().join("other.sock");
    let second = || like_the_running(node);
    for (settings, reason) in [
        (
            second(),
            "another daemon captures on this node and holds /sys/fs/bpf/ztunnel",
        ),
        // Settings that differ do not help as long as they share anything.
        (
            second().env("ZTUNNEL_API_SOCKET", &elsewhere),
            "another daemon captures on this node and holds /sys/fs/bpf/ztunnel",
        ),
        (
            second().env("ZTUNNEL_BPF_DIR", "/sys/fs/bpf/another"),
            "another daemon answers there",
        ),
    ] {
        assert_refused(&settings.run(node.namespace()).unwrap(), &[reason]);
        assert_eq!(held.exchange("carried on").unwrap().outcome, Outcome::Good);
        assert_good(&client, &far);
        assert_good(&far, &client);
        let states = Api::connect(node).unwrap().states().unwrap();
        assert!(
            states.iter().all(|(_, state, _)| state == "captured"),
            "{states:?}"
        );
        assert_eq!(states.len(), 2);
    }
    assert!(!elsewhere.exists());
    let another = || Path::new("/sys/fs/bpf/another").exists();
    assert!(!node.namespace().enter(another).unwrap());
    let seen = tap.stop().unwrap();
    assert_eq!((seen.marker("hello"), seen.marker("carried on")), (0, 0));
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    for node in lab.nodes() {
        node.stop().unwrap();
    }
    lab.expect_nothing_left().unwrap();
}

#[test]
fn wrong_settings_stop_the_start_and_are_all_named_with_what_is_accepted() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    node.start_daemon().unwrap();
    let good = like_the_running(node);
    node.stop().unwrap();
    let wrong = good
        .env("NODE_NAME", "")
        .env("LOG_FORMAT", "xml")
        .env("SECRET_TTL", "a while")
        .env("ZTUNNEL_WORKER_THREADS", "many")
        .env("XDS_ROOT_CA", "/nowhere/root.pem")
        .env("PROXY_MODE", "dedicated")
        .env("ZTUNNEL_BPF_DIR", "relative/path");
    let said = wrong.run(node.namespace()).unwrap();
    assert_refused(
        &said,
        &[
            "NODE_NAME",
            "LOG_FORMAT",
            "xml",
            "plain or json",
            "SECRET_TTL",
            "a while",
            "such as 90m or 24h",
            "ZTUNNEL_WORKER_THREADS",
            "many",
            "a number up to 4096",
            "XDS_ROOT_CA",
            "/nowhere/root.pem",
            "the path of a PEM file",
            "PROXY_MODE",
            "dedicated",
            "shared",
            "ZTUNNEL_BPF_DIR",
            "relative/path",
            "an absolute path in a bpf file system",
        ],
    );
    assert_eq!(said.stdout, "");
    assert_eq!(node.leftovers().unwrap(), Vec::<String>::new());
}
