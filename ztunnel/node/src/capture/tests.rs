//! Capture in the real kernel, in a namespace of the test's own.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use ztunnel_abi::connect::{PodEntry, STATE_CAPTURE, STATE_REFUSE};
use ztunnel_abi::{ANSWER_MARK, CAPTURE_MARK, DELIVERY_MARK};
use ztunnel_sys::cgroup::{self, OwnCgroup};
use ztunnel_sys::interface::interfaces;
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::policy_routing::{self, Marks};
use ztunnel_sys::socket::{Family, Liveness, listen_any};

use super::*;

const TIMEOUT: Duration = Duration::from_millis(500);

struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn ip(arguments: &str) {
    assert!(
        Command::new("ip")
            .args(arguments.split(' '))
            .status()
            .unwrap()
            .success(),
        "{arguments}"
    );
}

fn connect(to: &str) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to.parse().unwrap(), TIMEOUT)
}

/// One accepted connection's local address, which is what the app meant to connect to.
fn accept(listener: OwnedFd) -> mpsc::Receiver<SocketAddr> {
    let (found, accepted) = mpsc::channel();
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let local = stream.local_addr().unwrap();
            if found
                .send(SocketAddr::new(local.ip().to_canonical(), local.port()))
                .is_err()
            {
                break;
            }
        }
    });
    accepted
}

#[test]
fn connects_of_an_enrolled_namespace_arrive_at_the_outbound_listener() {
    let pins = Pins(PathBuf::from(format!(
        "/sys/fs/bpf/ztunnel-test-{}",
        std::process::id()
    )));
    // Not the cgroup of this process, whose connects are the ones to capture.
    let daemon = OwnCgroup {
        root: cgroup::root().unwrap(),
        id: u64::MAX,
    };
    let claim = NodeClaim::take(&pins.0).unwrap();
    assert!(
        matches!(NodeClaim::take(&pins.0), Err(CaptureError::Taken { .. })),
        "one daemon at a time"
    );
    let mut node = NodeCapture::start(&claim, &daemon).unwrap();

    let pod = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for command in [
            "link set lo up",
            "link add eth0 type veth peer name far",
            "link set eth0 up",
            "addr add 10.0.0.5/32 dev eth0",
            "addr add fd00::5/128 dev eth0 nodad",
        ] {
            ip(command);
        }
        let netns = NetNs::open(Path::new("/proc/thread-self/ns/net")).unwrap();
        let interfaces = interfaces().unwrap();
        let addresses: Vec<_> = interfaces
            .iter()
            .flat_map(|one| one.addresses.clone())
            .collect();
        let listen = || listen_any(Family::V6, 16, Liveness::default()).unwrap();
        let listeners = [ListenerSet {
            outbound: listen(),
            inbound: listen(),
            hbone: listen(),
        }];

        let mut capture = node.pods().open(&netns).unwrap();
        capture.set_settings(&settings(&addresses, 1, 0)).unwrap();
        capture.set_listeners(&listeners).unwrap();
        capture.attach(&netns).unwrap();
        let marks = Marks {
            capture: CAPTURE_MARK,
            delivery: DELIVERY_MARK,
            answer: ANSWER_MARK,
        };
        policy_routing::install(&interfaces, marks).unwrap();
        let mut entry = PodEntry {
            state: STATE_CAPTURE,
            interfaces: [2, 0, 0, 0, 0, 0, 0, 0],
        };
        node.set(netns.cookie(), entry).unwrap();

        let [set] = listeners;
        let accepted = accept(set.outbound);
        for to in ["192.0.2.1:80", "[2001:db8::1]:443"] {
            let stream = connect(to).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), to.parse().unwrap());
            assert_eq!(accepted.recv_timeout(TIMEOUT).unwrap(), to.parse().unwrap());
        }

        // The pod itself is not captured, under none of its addresses.
        let own = TcpListener::bind("[::]:8080").unwrap();
        for to in [
            "10.0.0.5:8080",
            "127.0.0.1:8080",
            "[fd00::5]:8080",
            "[::1]:8080",
        ] {
            connect(to).unwrap();
            own.accept().unwrap();
        }

        // Replacing the program under load of nothing keeps it attached.
        capture.attach(&netns).unwrap();
        connect("192.0.2.2:80").unwrap();
        accepted.recv_timeout(TIMEOUT).unwrap();

        entry.state = STATE_REFUSE;
        node.set(netns.cookie(), entry).unwrap();
        assert_eq!(
            connect("192.0.2.1:80").unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );

        node.clear(netns.cookie()).unwrap();
        policy_routing::remove().unwrap();
        assert!(
            connect("192.0.2.1:80").is_err(),
            "the namespace has no route of its own"
        );
        node.pods().remove(netns.cookie()).unwrap();
        node.remove().unwrap();
    });
    pod.join().unwrap();
    assert!(!pins.0.exists());
}
