//! Nothing stays behind, however a lab ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::Lab;

use crate::SHOP;

/// What to look for after a lab: its directory, its network namespaces, its programs.
struct Traces {
    dir: PathBuf,
    namespaces: Vec<String>,
    pids: Vec<u32>,
}

impl Traces {
    fn of(lab: &Lab, pids: Vec<u32>) -> Self {
        let pods = lab.pods();
        let places = pods.iter().map(|pod| pod.namespace().inode().unwrap());
        Self {
            dir: lab.dir().to_owned(),
            namespaces: places.map(|inode| format!("net:[{inode}]")).collect(),
            pids,
        }
    }

    fn expect_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        left.extend(self.dir.exists().then(|| self.dir.display().to_string()));
        left.extend(
            self.pids
                .iter()
                .filter(|pid| runs(**pid))
                .map(|pid| format!("pid {pid}")),
        );
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(inside) = std::fs::read_link(process.path().join("ns/net")) else {
                continue;
            };
            let inside = inside.to_string_lossy().into_owned();
            if self.namespaces.contains(&inside) {
                left.push(format!("{} in {inside}", process.path().display()));
            }
        }
        left
    }
}

fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains("zombie"))
}

#[test]
fn a_panic_leaves_nothing() {
    let mut traces = None;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::from_yaml(SHOP).unwrap();
        let _server = lab.pod("shop/web").serve().unwrap();
        let mut sleeper = lab.pod("shop/client").spawn(["sleep", "1000"]).unwrap();
        assert!(sleeper.is_running());
        traces = Some(Traces::of(&lab, vec![sleeper.pid()]));
        panic!("as intended");
    }));
    assert!(ended.is_err());
    traces.unwrap().expect_gone();
}

/// Not a test by itself: the body of the process that the next one kills.
#[test]
#[ignore = "run by the test below, which kills it"]
fn lab_that_will_be_killed() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let sleeper = lab.pod("shop/client").spawn(["sleep", "1000"]).unwrap();
    let inode = lab.pod("shop/client").namespace().inode().unwrap();
    println!("UP {} {} net:[{inode}]", lab.dir().display(), sleeper.pid());
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn a_killed_lab_leaves_a_directory_that_the_next_lab_removes() {
    use std::io::BufRead as _;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cleanup::lab_that_will_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let up = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("UP ").map(|(_, rest)| rest.to_owned()))
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let words: Vec<&str> = up.split(' ').collect();
    let traces = Traces {
        dir: PathBuf::from(words[0]),
        namespaces: vec![words[2].to_owned()],
        pids: vec![words[1].parse().unwrap()],
    };
    drop(Lab::from_yaml(SHOP).unwrap());
    traces.expect_gone();
}

#[test]
fn the_fingerprint_of_a_pod_shows_what_capture_would_change() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let pod = lab.pod("shop/web");
    let before = pod.fingerprint().unwrap();
    assert_eq!(pod.fingerprint().unwrap(), before);
    for change in [
        "ip rule add fwmark 0x1 lookup 100",
        "ip -6 rule add fwmark 0x1 lookup 100",
        "ip route add local default dev lo table 100",
        "ip -6 route add local default dev lo table 100",
    ] {
        pod.run(change.split(' ')).unwrap().success().unwrap();
    }
    pod.namespace()
        .set_sysctls([
            ("net/ipv4/tcp_fwmark_accept", "1"),
            ("net/ipv6/fwmark_reflect", "1"),
        ])
        .unwrap();
    let changes = pod.fingerprint().unwrap().changes_since(&before).join("\n");
    for expected in [
        "+ rule: ",
        "+ rule6: ",
        "+ route: local default dev lo table 100",
        "+ route6: local default dev lo table 100",
        "+ sysctl: /proc/sys/net/ipv4/tcp_fwmark_accept = 1",
        "- sysctl: /proc/sys/net/ipv6/fwmark_reflect = 0",
    ] {
        assert!(
            changes.contains(expected),
            "{expected} is not in:\n{changes}"
        );
    }
}

#[test]
fn what_a_node_pins_is_its_own() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let pin = Path::new("/sys/fs/bpf/ztunnel-lab-test");
    let (one, two) = (lab.node("node1"), lab.node("node2"));
    one.namespace()
        .enter(|| std::fs::create_dir(pin))
        .unwrap()
        .unwrap();
    assert!(one.namespace().enter(|| pin.exists()).unwrap());
    assert!(!two.namespace().enter(|| pin.exists()).unwrap());
    assert!(!pin.exists());
}
