//! The page at `/` of port 15000, as a person sees it in a real browser.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lab::tester::{Check, Held, Outcome, Service};
use lab::{Browser, ColorScheme, Lab, Pod, Workload};
use serde_json::{Value, json};

use crate::access::eventually;
use crate::local_api::{Api, changed};

const PAGE: &str = "http://127.0.0.1:15000/";
/// What would run a script if it became markup.
const EVIL: &str = "<img src=x onerror=window.hacked=1>";

/// The browser is on node1. `legacy` is not in the mesh; the name of a service is nobody's to choose but its owner's.
const MESH: &str = "
workloads:
  - {name: web, namespace: shop, node: node1, service_account: web, addresses: [10.244.1.10]}
  - {name: api, namespace: payments, node: node1, service_account: api, addresses: [10.244.1.11]}
  - {name: late, namespace: shop, node: node1, service_account: late, addresses: [10.244.1.12]}
  - {name: cart, namespace: shop, node: node2, service_account: cart, addresses: [10.244.2.10]}
  - {name: legacy, namespace: batch, node: node2, service_account: legacy, addresses: [10.244.2.11]}
  - {name: forgotten, namespace: shop, node: node1, service_account: x, addresses: [10.244.1.99], protocol: HBONE, pod: false}
services:
  - {name: cart, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001, 7009: 7009}, workloads: [cart]}
  - {name: evil, namespace: shop, hostname: '<img src=x onerror=window.hacked=1>', addresses: [10.96.0.66], ports: {80: 7001}}
policies:
  - {name: no-cart, namespace: payments, scope: NAMESPACE, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/cart]}]]]}
";

fn at(ip: &str, service: Service) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), service.port())
}

fn hold(pod: &Pod, to: SocketAddr) -> Held {
    let mut held = pod.hold(to).unwrap();
    assert_eq!(held.exchange("ready").unwrap().outcome, Outcome::Good);
    held
}

/// Waits for a row that says all of this, and gives all that it says.
fn row(browser: &mut Browser, table: &str, words: &[&str]) -> String {
    let find = format!(
        "[...document.querySelectorAll('#{table} tbody tr')].map(row => row.innerText.replace(/\\s+/g, ' ')) \
         .find(row => {}.every(word => row.includes(word)))",
        json!(words)
    );
    let what = format!("a row of {table} with {words:?}");
    let row = browser.until(&what, &find).unwrap();
    row.as_str().unwrap().to_owned()
}

fn text(browser: &mut Browser, id: &str) -> String {
    let text = browser.evaluate(&format!("document.getElementById('{id}').innerText"));
    text.unwrap().as_str().unwrap().to_owned()
}

/// Waits until the element says this, among other things.
fn says(browser: &mut Browser, id: &str, what: &str) {
    let so = format!(
        "document.getElementById('{id}').innerText.includes({})",
        json!(what)
    );
    browser.until(&format!("#{id} says {what}"), &so).unwrap();
}

#[test]
fn a_person_sees_how_the_node_is_while_it_changes() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/web", "payments/api", "shop/cart"])
        .unwrap();
    let node = lab.node("node1");
    let [web, api, cart, legacy] =
        ["shop/web", "payments/api", "shop/cart", "batch/legacy"].map(|name| lab.pod(name));
    let _servers = [&api, &cart, &legacy].map(|pod| pod.serve().unwrap());

    // Through a tunnel, around the mesh, refused by policy, and to a service whose name is an attack.
    let moved = web.check_at(
        at("10.96.0.10", Service::Duplex),
        &Check::duplex(100_000, 1_000_000),
    );
    assert_eq!(moved.unwrap().outcome, Outcome::Good);
    let plain = web.check(legacy.v4().unwrap(), &Check::duplex(50_000, 50_000));
    assert_eq!(plain.unwrap().outcome, Outcome::Good);
    let refused = cart
        .check(api.v4().unwrap(), &Check::echo("let me in"))
        .unwrap();
    assert_eq!(refused.outcome, Outcome::Reset);
    let nowhere = "10.96.0.66:80".parse().unwrap();
    let refused = web.check_at(nowhere, &Check::echo("anybody?")).unwrap();
    assert_eq!(refused.outcome, Outcome::Reset);

    let mut browser = node.browser().unwrap();
    browser.resize(1280, 900).unwrap();
    browser.open(PAGE).unwrap();
    says(&mut browser, "live", "live");
    assert_eq!(text(&mut browser, "node"), "node1");

    // What is not as it should be is said first, with what to do.
    row(
        &mut browser,
        "pods",
        &["shop/web", "captured", "10.244.1.10"],
    );
    row(&mut browser, "pods", &["payments/api", "captured"]);
    row(&mut browser, "pods", &["shop/late", "not in the mesh"]);
    row(
        &mut browser,
        "pods",
        &["shop/forgotten", "not enrolled", "ztunnel enroll"],
    );
    assert_eq!(text(&mut browser, "g-pods"), "2 of 3");
    assert_eq!(
        text(&mut browser, "verdict-head"),
        "1 thing needs attention"
    );
    says(
        &mut browser,
        "attention",
        "pod shop/forgotten is not enrolled",
    );
    assert_eq!(text(&mut browser, "g-plane"), "connected");

    row(&mut browser, "certs", &["shop/web", "valid", " h "]);
    row(&mut browser, "certs", &["payments/api", "valid"]);
    let tunneled = [
        "shop/web",
        "shop/cart",
        "mutual TLS",
        "for cart.shop.svc",
        "1.0 MiB",
    ];
    row(&mut browser, "talks", &tunneled);
    row(
        &mut browser,
        "talks",
        &["shop/web", "batch/legacy", "plaintext"],
    );
    let share = text(&mut browser, "g-tls");
    let percent: f64 = share.strip_suffix('%').unwrap().parse().unwrap();
    // 1,100,000 of 1,200,000, and what the tester says around it.
    assert!((91.0..92.0).contains(&percent), "{share}");
    let drawn = browser
        .evaluate("document.querySelectorAll('#graph path').length")
        .unwrap();
    assert!(drawn.as_u64() >= Some(2), "{drawn}");

    let denied = row(
        &mut browser,
        "fails",
        &["shop/cart", "payments/api", "POLICY_DENIED"],
    );
    for part in [
        "A policy does not allow",
        "payments/no-cart",
        "kubectl get authorizationpolicies",
        "inbound",
    ] {
        assert!(denied.contains(part), "{part}: {denied}");
    }

    // The names of others are text.
    row(&mut browser, "fails", &["NO_HEALTHY_ENDPOINT", EVIL]);
    let late = lab.pod("shop/late");
    let request = json!({"enroll": {
        "uid": late.uid(), "netns": late.namespace().path(), "namespace": "shop", "name": EVIL, "service_account": "late",
    }});
    let local = || Api::connect(node).unwrap();
    assert_eq!(local().ask(&request).unwrap(), changed());
    row(&mut browser, "pods", &[EVIL, "captured"]);
    let harmed = browser
        .evaluate("[document.images.length, window.hacked ?? null]")
        .unwrap();
    assert_eq!(harmed, json!([0, null]));

    // Live, and without making anew what has not changed.
    let this = "[...document.querySelectorAll('#talks tbody tr')].find(row => row.innerText.includes('mutual TLS'))";
    browser
        .evaluate(&format!("window.seen = {this}; 0"))
        .unwrap();
    let mut held = hold(&web, at("10.96.0.10", Service::Echo));
    row(&mut browser, "talks", &["shop/web", "shop/cart", " 1 0"]);
    says(&mut browser, "g-rate-sub", "0 in, 1 out open");
    let much = "m".repeat(400_000);
    assert_eq!(held.exchange(&much).unwrap().outcome, Outcome::Good);
    row(&mut browser, "talks", &["shop/web", "shop/cart", "1.8 MiB"]);
    let moving = format!("!{this}.innerText.includes(' 0 B/s') && {this} === window.seen");
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                assert_eq!(held.exchange("more").unwrap().outcome, Outcome::Good);
            }
        });
        let moved = browser.until("bytes move now, in the same row", &moving);
        enough.store(true, Ordering::Relaxed);
        moved.unwrap();
    });
    let workload: Workload = serde_json::from_value(json!({
        "name": "new", "namespace": "shop", "node": "node1", "service_account": "new", "addresses": ["10.244.1.20"],
    }))
    .unwrap();
    lab.add_pod(workload).unwrap();
    lab.enroll(&["shop/new"]).unwrap();
    row(
        &mut browser,
        "pods",
        &["shop/new", "captured", "10.244.1.20"],
    );

    // What is broken in the kernel is seen there, not remembered.
    let damage = ["ip", "-4", "rule", "del", "pref", "100"];
    web.run(damage).unwrap().success().unwrap();
    row(
        &mut browser,
        "pods",
        &["shop/web", "defective", "policy routing", "Enroll it again"],
    );
    assert_eq!(local().enroll(&web).unwrap(), changed());
    row(&mut browser, "pods", &["shop/web", "captured"]);
    lab.control_plane().pause();
    says(&mut browser, "g-plane", "away");
    says(
        &mut browser,
        "attention",
        "no connection to the control plane",
    );
    lab.control_plane().resume().unwrap();
    says(&mut browser, "g-plane", "connected");

    // For every eye and every screen.
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.evaluate(ground).unwrap();
    browser.prefer(ColorScheme::Dark).unwrap();
    assert_ne!(browser.evaluate(ground).unwrap(), light);
    for width in [1280, 800, 400] {
        browser.resize(width, 900).unwrap();
        let shown = browser
            .evaluate("document.documentElement.scrollWidth")
            .unwrap();
        assert_eq!(shown, json!(width), "nothing sticks out");
    }

    // Nothing was complained about, and nobody else was asked for anything.
    assert_eq!(browser.complaints().unwrap(), &[] as &[String]);
    let overview = format!("{PAGE}overview");
    for url in browser.requests() {
        assert!([PAGE, &overview, "data:,"].contains(&&**url), "{url}");
    }
    assert!(
        browser
            .requests()
            .iter()
            .filter(|url| **url == overview)
            .count()
            > 2
    );

    // Even a script that got into the document would not run, and that would be complained about.
    let harmed = browser.evaluate(
        "const script = document.createElement('script'); script.textContent = 'window.hacked = 1'; \
         document.body.append(script); window.hacked ?? null",
    );
    assert_eq!(harmed.unwrap(), Value::Null);
    let complaints = browser.complaints().unwrap();
    let said = complaints
        .iter()
        .any(|said| said.contains("Content Security Policy"));
    assert!(said, "{complaints:?}");

    // What is old is not shown as if it were new.
    drop(held);
    node.kill().unwrap();
    says(&mut browser, "live", "cannot be reached");
    let stale = "document.body.hasAttribute('data-stale')";
    browser.until("it is called old", stale).unwrap();
    row(&mut browser, "pods", &["shop/web", "captured"]);
    node.start_daemon().unwrap();
    says(&mut browser, "live", "live");
    assert_eq!(browser.evaluate(stale).unwrap(), json!(false));

    let profile = node.dir().join("browser").display().to_string();
    assert!(running(&profile) > 0, "this is how it is recognized");
    drop(browser);
    eventually("no process of the browser is left", || {
        running(&profile) == 0
    });
}

/// How many processes have been told of this.
fn running(argument: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(argument))
        .count()
}

#[test]
fn whoever_looks_gets_the_same_and_no_more_than_there_is_room_for() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/web"]).unwrap();
    let web = lab.pod("shop/web");
    // More refusals than are remembered, of one kind; and one before them, of another.
    let nowhere = "10.96.0.66:80".parse().unwrap();
    let refused = |to| web.check_at(to, &Check::echo("anybody?")).unwrap().outcome;
    assert_eq!(refused("10.96.0.10:81".parse().unwrap()), Outcome::Reset);
    for _ in 0..20 {
        assert_eq!(refused(nowhere), Outcome::Reset);
    }
    let overview = || -> Value {
        let url = format!("{PAGE}overview");
        let answer = lab
            .node("node1")
            .run(["curl", "-sS", "--fail", &url])
            .unwrap();
        serde_json::from_str(&answer.success().unwrap().stdout).unwrap()
    };
    let mut shown = Value::Null;
    eventually("all are told", || {
        shown = overview();
        let rows = shown["failures"]["rows"].as_array().unwrap();
        rows.len() == 2 && rows[0]["count"] == 16
    });
    let rows = &shown["failures"]["rows"];
    assert_eq!(rows[0]["reason"], "NO_HEALTHY_ENDPOINT");
    assert_eq!(
        (&rows[1]["reason"], &rows[1]["count"]),
        (&json!("NO_SUCH_PORT"), &json!(1))
    );
    assert!(
        shown["reasons"]["NO_SUCH_PORT"]["next_step"].is_string(),
        "{shown:#}"
    );
    // Asked again at once, nothing is measured again.
    let same = (0..5).any(|_| overview()["up_ms"] == overview()["up_ms"]);
    assert!(same, "it is made anew for everybody who asks");
    let token = lab.control_plane().token_file("node1");
    let token = fs::read_to_string(token).unwrap();
    assert!(!shown.to_string().contains(token.trim()));
}
