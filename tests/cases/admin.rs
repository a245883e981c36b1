//! Port 15000: what operators ask, and who may not.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lab::tester::{Outcome, Service};
use lab::{DaemonOptions, Lab, MeshFile, Node};
use prost::Message as _;
use serde_json::{Value, json};

use crate::access::eventually;
use crate::mesh::{MESH, enrolled};

const PORT: u16 = 15000;
const PATIENCE: Duration = Duration::from_secs(10);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    body: String,
    /// The same, if it is no text.
    bytes: Vec<u8>,
}

/// HTTP/1.0, so that the answer is not chunked.
fn request(node: &Node, to: SocketAddr, line: &str, headers: &str) -> Option<Answer> {
    let mut connection = node.connect(to, PATIENCE).ok()?;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{line} HTTP/1.0\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).ok()?;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let bytes = answer.split_off(head + 4);
    let head = String::from_utf8(answer).ok()?;
    Some(Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: String::from_utf8_lossy(&bytes).into_owned(),
        bytes,
    })
}

pub(crate) fn ask(node: &Node, line: &str) -> Answer {
    let headers = "Host: localhost:15000\r\n";
    request(node, (LOCALHOST, PORT).into(), line, headers).unwrap()
}

pub(crate) fn dump(node: &Node) -> Value {
    let answer = ask(node, "GET /config_dump");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(
        answer.head.contains("content-type: application/json"),
        "{}",
        answer.head
    );
    serde_json::from_str(&answer.body).unwrap()
}

fn names<'a>(table: &'a Value, name: &str) -> Vec<&'a str> {
    let table = table.as_array().unwrap();
    table
        .iter()
        .map(|row| row[name].as_str().unwrap())
        .collect()
}

#[test]
fn a_dump_is_what_the_control_plane_and_the_pods_say_and_no_secret() {
    const POLICY: &str = "
policies:
  - {name: no-bank, namespace: shop, scope: NAMESPACE, action: DENY, rules: [[[{namespaces: [bank]}]]]}
";
    let lab = Lab::from_yaml(&format!("{MESH}{POLICY}")).unwrap();
    let options = DaemonOptions::default()
        .env("XDS_HEADER_X_KEY", "open-sesame")
        .env("CA_HEADER_X_KEY", "open-sesame");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    let node = lab.node("node1");
    eventually("both certificates are there", || {
        let states = dump(node);
        names(&states["certificates"], "state") == ["Available", "Available"]
    });
    let shown = dump(node);

    let workloads = shown["workloads"].as_array().unwrap();
    let by_name = |name: &str| workloads.iter().find(|w| w["name"] == name).unwrap();
    assert_eq!(workloads.len(), 4);
    let far = by_name("far");
    let pod = lab.pod("shop/far");
    assert_eq!(far["workloadIps"], json!(pod.ips()));
    assert_eq!(far["namespace"], "shop");
    assert_eq!(far["node"], "node2");
    assert_eq!(far["protocol"], "HBONE");
    assert_eq!(far["status"], "Healthy");
    assert_eq!(far["serviceAccount"], "far");
    let uid = far["uid"].as_str().unwrap();

    let services = shown["services"].as_array().unwrap();
    assert_eq!(services.len(), 3);
    let service = services.iter().find(|s| s["name"] == "far").unwrap();
    assert_eq!(service["vips"], json!(["/10.96.0.10", "/fd00:96::10"]));
    assert_eq!(service["ports"]["80"], 8080);
    assert_eq!(service["endpoints"][uid]["workloadUid"], uid);
    assert_eq!(shown["stagedServices"], json!({}));

    assert_eq!(names(&shown["policies"], "name"), ["no-bank"]);
    assert_eq!(shown["policies"][0]["scope"], "Namespace");
    assert_eq!(shown["policies"][0]["action"], "Deny");
    let rules = &shown["policies"][0]["rules"];
    assert_eq!(rules, &json!([[[{"namespaces": [{"Exact": "bank"}]}]]]));

    let identities = names(&shown["certificates"], "identity");
    let (client, near) = (lab.pod("shop/client"), lab.pod("shop/near"));
    assert_eq!(identities, [client.identity(), near.identity()]);
    for set in shown["certificates"].as_array().unwrap() {
        for list in ["certChain", "rootCerts"] {
            let serial = set[list][0]["serialNumber"].as_str().unwrap();
            assert!(!serial.is_empty() && serial.bytes().all(|b| b.is_ascii_digit()));
        }
    }
    let state = |pod: &lab::Pod, name: &str| {
        json!({
            "connections": {"inbound": [], "outbound": []},
            "info": {"name": name, "namespace": "shop", "serviceAccount": name}, "state": "Up",
        }) == shown["workloadState"][pod.uid()]
    };
    assert!(state(&client, "client") && state(&near, "near"), "{shown}");
    assert_eq!(shown["workloadState"].as_object().unwrap().len(), 2);
    assert_eq!(shown["config"]["localNode"], "node1");
    assert_eq!(
        shown["config"]["adminAddr"],
        json!({"Localhost": [true, 15000]})
    );
    assert_eq!(shown["version"]["cryptoProvider"], "tls-aws-lc");

    let text = shown.to_string();
    let token = lab.control_plane().token_file("node1");
    let token = std::fs::read_to_string(token).unwrap();
    for secret in [
        "open-sesame",
        token.trim(),
        "PRIVATE KEY",
        "MIGHAgEAMBMGByqGSM49AgEG",
    ] {
        assert!(!text.contains(secret), "{secret}");
    }

    // It follows the control plane.
    let arrived = MeshFile::parse("policies", &format!("{MESH}policies: []\n")).unwrap();
    lab.control_plane()
        .update(|mesh| mesh.policies = arrived.policies)
        .unwrap();
    lab.settle().unwrap();
    assert_eq!(dump(node)["policies"], json!([]));
}

#[test]
fn a_dump_has_the_connections_that_are_open() {
    const APP: u16 = 7001;
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let connections = |pod: &lab::Pod, way: &str| {
        let mut shown = dump(lab.node(pod.node()));
        shown["workloadState"][pod.uid()]["connections"][way].take()
    };
    let dialed: SocketAddr = format!("10.96.0.10:{APP}").parse().unwrap();
    let mut held = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..3 {
        let mut one = client.hold(dialed).unwrap();
        let report = one.exchange("ready").unwrap();
        assert_eq!(report.outcome, Outcome::Good);
        let (hop, src) = (
            format!("{}:15008", far.v4().unwrap()),
            report.local.unwrap(),
        );
        expected.push((
            src.to_string(),
            json!({"actualDst": hop, "originalDst": dialed, "protocol": "HBONE", "src": src}),
        ));
        held.push(one);
    }
    let mut rows = connections(&client, "outbound");
    let by_src = |row: &Value| row["src"].as_str().unwrap().to_owned();
    rows.as_array_mut().unwrap().sort_by_key(by_src);
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    let expected: Vec<_> = expected.into_iter().map(|(_, row)| row).collect();
    assert_eq!(rows, json!(expected));
    assert_eq!(connections(&client, "inbound"), json!([]));
    // There they are streams of one tunnel of each worker, so those of a worker are one.
    let there = connections(&far, "inbound");
    let there = there.as_array().unwrap();
    assert!((1..=2).contains(&there.len()), "{there:?}");
    for row in there {
        assert_eq!(row["actualDst"], format!("{}:{APP}", far.v4().unwrap()));
        assert_eq!(row["originalDst"], "far.shop.svc.cluster.local");
        assert_eq!(row["protocol"], "HBONE");
        let src = row["src"].as_str().unwrap();
        assert!(src.starts_with(&client.v4().unwrap().to_string()), "{row}");
    }
    for one in held {
        assert_eq!(one.close().unwrap().outcome, Outcome::Good);
    }
    eventually("they are gone from the dump", || {
        connections(&client, "outbound") == json!([]) && connections(&far, "inbound") == json!([])
    });
}

#[test]
fn what_is_logged_changes_at_run_time_and_back() {
    const LINE: &str = "HTTP connection failed";
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    let nonsense = || {
        let mut connection = node.connect((LOCALHOST, 15021).into(), PATIENCE).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(b"\x16\x03\x01\r\n\r\n").unwrap();
        let _ = connection.read_to_end(&mut Vec::new());
    };
    let lines = || node.log().matches(LINE).count();
    let now = |query: &str, expected: &str| {
        let answer = ask(node, &format!("POST /logging{query}"));
        let expected = format!("current log level is {expected}\n");
        assert_eq!((answer.status, answer.body), (200, expected));
    };
    // A line is told after the connection has ended, so one that would not be may come after the level has changed.
    const SILENT: usize = 10;
    const LATE: usize = 3;
    let silent = || (0..SILENT).for_each(|_| nonsense());
    now("", "info");
    silent();
    now(
        "?level=ztunnel_node::admin:debug",
        "ztunnel_node::admin=debug,info",
    );
    nonsense();
    eventually("the line is there", || lines() > 0);
    now("?reset", "info");
    silent();
    assert!(lines() <= 1 + LATE, "{}", node.log());
    let before = lines();
    now("?level=debug", "debug");
    nonsense();
    eventually("the next line is there", || lines() > before);
    let refused = ask(node, "POST /logging?level=loud");
    assert_eq!(refused.status, 400);
    assert!(refused.body.starts_with("Invalid level provided: "));
    now("?level=info&reset", "info");
    assert!(lines() <= before + 1 + LATE, "{}", node.log());
}

#[test]
fn a_daemon_that_is_asked_to_quit_drains_as_after_sigterm() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let options = DaemonOptions::default().env("CONNECTION_TERMINATION_DEADLINE", "60s");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let mut held = client
        .hold((far.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();
    assert_eq!(held.exchange("before").unwrap().outcome, Outcome::Good);
    let node = lab.node("node1");
    assert_eq!(ask(node, "GET /quitquitquit").status, 405);
    let answer = ask(node, "POST /quitquitquit");
    assert_eq!((answer.status, &*answer.body), (200, "shutdown now\n"));
    let headers = "Host: localhost\r\n";
    let answers = |port| request(node, (LOCALHOST, port).into(), "GET /metrics", headers);
    eventually("nobody listens for operators", || answers(PORT).is_none());
    // The connection that the daemon waits for goes on, and so do scrapes.
    assert_eq!(held.exchange("after").unwrap().outcome, Outcome::Good);
    assert_eq!(answers(15020).unwrap().status, 200);
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    let ended = node.daemon(|daemon| daemon.process().wait(PATIENCE));
    assert_eq!(ended.unwrap().code(), Some(0));
    assert!(node.log().contains("enrolled pods stay captured"));
    assert!(!node.leftovers().unwrap().is_empty(), "what captures stays");
    node.kill().unwrap(); // only makes the lab forget the one that has ended
    node.start_daemon().unwrap();
    lab.settle().unwrap();
    let mut next = client
        .hold((far.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();
    assert_eq!(next.exchange("again").unwrap().outcome, Outcome::Good);
}

#[test]
fn those_who_may_not_ask_change_nothing_and_learn_nothing() {
    let lab = enrolled().unwrap();
    let node = lab.node("node1");
    let to = |ip: IpAddr| SocketAddr::new(ip, PORT);
    for (line, headers, status) in [
        // A name that was made to mean loopback, and forms and scripts of other pages.
        ("POST /quitquitquit", "Host: evil.example\r\n", 403),
        ("GET /config_dump", "Host: evil.example:15000\r\n", 403),
        (
            "POST /quitquitquit",
            "Host: localhost\r\nOrigin: http://evil.example\r\n",
            403,
        ),
        (
            "POST /logging?level=off",
            "Host: localhost\r\nOrigin: null\r\n",
            403,
        ),
        (
            "GET /config_dump",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
            403,
        ),
        ("GET /overview", "Host: evil.example\r\n", 403),
        (
            "GET /overview",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
            403,
        ),
        ("POST /overview", "Host: localhost\r\n", 405),
        ("GET /quitquitquit", "Host: localhost\r\n", 405),
        ("PUT /quitquitquit", "Host: localhost\r\n", 405),
        ("GET /logging?level=off", "Host: localhost\r\n", 405),
        ("POST /", "Host: localhost\r\n", 200),
        ("GET /no", "Host: localhost\r\n", 404),
        ("GET /healthz/ready", "Host: localhost\r\n", 404),
        ("GET /debug/pprof/heap", "Host: localhost\r\n", 500),
    ] {
        let answer = request(node, to(LOCALHOST), line, headers).unwrap();
        assert_eq!(answer.status, status, "{line} {headers}: {}", answer.body);
        assert!(!answer.body.contains("workloads\""), "{line} {headers}");
    }
    let page = ask(node, "GET /");
    assert!(
        page.head.contains("content-type: text/html"),
        "{}",
        page.head
    );
    assert!(page.body.contains("href=\"config_dump\""), "{}", page.body);
    let v6 = request(
        node,
        to(Ipv6Addr::LOCALHOST.into()),
        "POST /logging",
        "Host: [::1]\r\n",
    );
    assert_eq!(v6.unwrap().body, "current log level is info\n");
    // Nobody but loopback gets that far, and those who say nothing make room.
    assert!(node.connect(to(node_address(node)), PATIENCE).is_err());
    let silent: Vec<_> = (0..100)
        .map(|_| node.connect(to(LOCALHOST), PATIENCE).unwrap())
        .collect();
    assert_eq!(ask(node, "POST /logging").status, 200);
    drop(silent);
    assert!(
        node.daemon(|daemon| Ok(daemon.process().is_running()))
            .unwrap()
    );
}

/// An address of the node that is not loopback.
fn node_address(node: &Node) -> IpAddr {
    let shown = node.run(["ip", "-4", "-o", "addr", "show", "scope", "global"]);
    let shown = shown.unwrap().success().unwrap().stdout;
    let address = shown.split_whitespace().nth(3).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

#[test]
fn a_daemon_that_operators_cannot_ask_does_not_start() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    let taken = [LOCALHOST, Ipv6Addr::LOCALHOST.into()];
    for ip in taken {
        let taken = node.listen((ip, PORT).into()).unwrap();
        let said = node.start_daemon().unwrap_err().to_string();
        let expected = "listen for operators on port 15000: Address already in use";
        assert!(said.contains(expected), "{said}");
        assert_eq!(node.leftovers().unwrap(), Vec::<String>::new());
        drop(taken);
    }
    let _taken = node.listen((LOCALHOST, PORT).into()).unwrap();
    let elsewhere = DaemonOptions::default().env("PROXY_CONFIG", "proxyAdminPort: 15099");
    node.start_daemon_with(&elsewhere).unwrap();
    let to = (LOCALHOST, 15099).into();
    let answer = request(node, to, "POST /logging", "Host: localhost:15099\r\n");
    assert_eq!(answer.unwrap().status, 200);
}

/// Of `profile.proto`, what every profile has.
#[derive(Clone, PartialEq, prost::Message)]
struct Profile {
    #[prost(bytes = "vec", repeated, tag = "2")]
    samples: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "6")]
    strings: Vec<String>,
}

fn profile(answer: &Answer) -> Profile {
    assert_eq!(answer.status, 200, "{}", answer.body);
    Profile::decode(&answer.bytes[..]).unwrap()
}

#[test]
fn profiles_tell_where_cpu_and_memory_go() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    let cpu = std::thread::scope(|scope| {
        let busy = scope.spawn(|| ask(node, "GET /debug/pprof/profile?seconds=1&frequency=999"));
        while !busy.is_finished() {
            dump(node);
        }
        busy.join().unwrap()
    });
    let cpu = profile(&cpu);
    assert!(!cpu.samples.is_empty());
    let ours = |name: &String| name.contains("ztunnel_node::");
    assert!(cpu.strings.iter().any(ours), "{:?}", cpu.strings);

    const HEAP: &str = "/debug/pprof/heap";
    assert_eq!(ask(node, &format!("GET {HEAP}")).status, 500);
    let switch = |method: &str, value: &str| {
        ask(node, &format!("{method} {HEAP}/profiling?activate={value}"))
    };
    assert_eq!(switch("GET", "true").status, 405);
    assert_eq!(switch("POST", "yes").status, 400);
    assert_eq!(
        ask(node, &format!("GET {HEAP}/profiling")).body,
        "heap profiling active: false\n"
    );
    assert_eq!(switch("POST", "true").body, "heap profiling active: true\n");
    let heap = profile(&ask(node, &format!("GET {HEAP}")));
    assert!(
        heap.strings.iter().any(|name| name == "inuse_space"),
        "{:?}",
        heap.strings
    );
    assert_eq!(
        switch("POST", "false").body,
        "heap profiling active: false\n"
    );

    for bad in ["seconds=0", "seconds=301", "seconds=x", "frequency=1001"] {
        let answer = ask(node, &format!("GET /debug/pprof/profile?{bad}"));
        assert_eq!(answer.status, 400, "{bad}: {}", answer.body);
    }
}
