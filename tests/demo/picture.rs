//! A picture of the page of a node, in a mesh with some services that talk: `deploy/page.png`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Check, Server, Service};
use lab::{ColorScheme, Doing as _, Lab, LabError, Result};

use crate::step;

/// `scraper` is an old thing outside of the mesh that reads from everybody.
const MESH: &str = "
workloads:
  - {name: web, namespace: shop, node: node1, service_account: web, addresses: [10.244.1.10]}
  - {name: cart, namespace: shop, node: node1, service_account: cart, addresses: [10.244.1.12]}
  - {name: checkout, namespace: shop, node: node1, service_account: checkout, addresses: [10.244.1.13]}
  - {name: api, namespace: payments, node: node1, service_account: api, addresses: [10.244.1.14]}
  - {name: scraper, namespace: legacy, node: node1, service_account: scraper, addresses: [10.244.1.15]}
  - {name: catalog, namespace: shop, node: node2, service_account: catalog, addresses: [10.244.2.10]}
  - {name: ledger, namespace: payments, node: node2, service_account: ledger, addresses: [10.244.2.11]}
  - {name: redis, namespace: shop, node: node2, service_account: redis, addresses: [10.244.2.12]}
  - {name: mail-relay, namespace: legacy, node: node2, service_account: mail, addresses: [10.244.2.13]}
services:
  - {name: cart, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001, 7009: 7009}, workloads: [cart]}
  - {name: checkout, namespace: shop, addresses: [10.96.0.11], ports: {7001: 7001, 7009: 7009}, workloads: [checkout]}
  - {name: api, namespace: payments, addresses: [10.96.0.12], ports: {7001: 7001, 7009: 7009}, workloads: [api]}
  - {name: catalog, namespace: shop, addresses: [10.96.0.13], ports: {7001: 7001, 7009: 7009}, workloads: [catalog]}
  - {name: ledger, namespace: payments, addresses: [10.96.0.14], ports: {7001: 7001, 7009: 7009}, workloads: [ledger]}
  - {name: redis, namespace: shop, addresses: [10.96.0.15], ports: {6379: 7001, 7001: 7001, 7009: 7009}, workloads: [redis]}
  - {name: search, namespace: shop, addresses: [10.96.0.16], ports: {80: 8080}}
policies:
  - {name: only-checkout, namespace: payments, scope: NAMESPACE, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/catalog]}]]]}
";
const MESHED: [&str; 7] = [
    "shop/web",
    "shop/cart",
    "shop/checkout",
    "payments/api",
    "shop/catalog",
    "payments/ledger",
    "shop/redis",
];
/// Who sends how many KiB to whom, and gets back how many, in each round.
const TALKS: [(&str, &str, u64, u64); 8] = [
    ("shop/web", "10.96.0.13", 40, 900),
    ("shop/web", "10.96.0.10", 60, 220),
    ("shop/cart", "10.96.0.15", 120, 380),
    ("shop/checkout", "10.96.0.12", 70, 50),
    ("payments/api", "10.96.0.14", 160, 110),
    ("shop/checkout", "10.244.2.13", 18, 2),
    ("shop/catalog", "10.96.0.15", 20, 60),
    ("legacy/scraper", "10.244.1.10", 1, 24),
];
/// Connections that stay open, so that something is.
const OPEN: [(&str, &str); 4] = [
    ("shop/cart", "10.96.0.15"),
    ("shop/web", "10.96.0.13"),
    ("shop/web", "10.96.0.10"),
    ("payments/api", "10.96.0.14"),
];
/// Who tries in vain to connect where.
const REFUSED: [(&str, &str); 2] = [
    ("shop/catalog", "10.244.1.14:7001"),
    ("shop/web", "10.96.0.16:80"),
];
/// How long the node is watched, so that the page has something to draw.
const WATCHED: Duration = Duration::from_secs(16);
const HEIGHT: u32 = 900;
/// Where that of the page ends which is alive: what follows is links.
const END: &str = "Math.ceil(document.getElementById('fails').closest('section').getBoundingClientRect().bottom) + 14";

/// How the page is to be looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    colors: ColorScheme,
    width: u32,
}

impl Wanted {
    pub(crate) fn parse(args: &[&str]) -> Result<Self> {
        let mut wanted = Self {
            colors: ColorScheme::Light,
            width: 1280,
        };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match *arg {
                "--dark" => wanted.colors = ColorScheme::Dark,
                "--width" => {
                    let pixels = rest
                        .next()
                        .ok_or_else(|| LabError::new("--width of what?"))?;
                    wanted.width = pixels
                        .parse()
                        .doing(|| format!("read the width {pixels}"))?;
                }
                other => return Err(LabError::new(format!("{other} is not understood"))),
            }
        }
        Ok(wanted)
    }
}

pub(crate) fn take(file: &Path, wanted: Wanted) -> Result<()> {
    let lab = step("build two nodes, nine pods and a control plane", || {
        Lab::from_yaml(MESH)
    })?;
    let _servers: Vec<Server> = step("start applications", || {
        lab.pods().iter().map(|pod| pod.serve()).collect()
    })?;
    step("start ztunnel on both nodes, and enroll pods", || {
        lab.start_daemons()?;
        lab.enroll(&MESHED)
    })?;
    let mut browser = step("open the page of node1", || {
        let mut browser = lab.node("node1").browser()?;
        browser.resize(wanted.width, HEIGHT)?;
        browser.prefer(wanted.colors)?;
        browser.open("http://127.0.0.1:15000/")?;
        Ok(browser)
    })?;
    let picture = step("let them talk, and take a picture", || {
        let to = |text: &str| text.parse::<SocketAddr>().doing(|| format!("read {text}"));
        let mut held = Vec::new();
        for (from, ip) in OPEN {
            held.push(
                lab.pod(from)
                    .hold(to(&format!("{ip}:{}", Service::Echo.port()))?)?,
            );
        }
        for (from, refused) in REFUSED {
            // How it ends is for the page to say.
            lab.pod(from)
                .check_at(to(refused)?, &Check::echo("hello"))?;
        }
        let until = Instant::now() + WATCHED;
        while Instant::now() < until {
            thread::scope(|scope| {
                let talking: Vec<_> = TALKS
                    .iter()
                    .map(|&(from, ip, up, down)| {
                        let (pod, check) = (lab.pod(from), Check::duplex(up << 10, down << 10));
                        let to = to(&format!("{ip}:{}", Service::Duplex.port()));
                        scope.spawn(move || pod.check_at(to?, &check))
                    })
                    .collect();
                talking.into_iter().try_for_each(|talk| {
                    let talk = talk.join();
                    talk.map_err(|_| LabError::new("talking panicked"))?
                        .map(drop)
                })
            })?;
        }
        // One that has seen the last of it.
        browser.until(
            "it is live",
            "document.getElementById('live').innerText === 'live'",
        )?;
        let height = browser.evaluate(END)?.as_u64().unwrap_or_default();
        browser.picture(wanted.width, u32::try_from(height).unwrap_or(HEIGHT))
    })?;
    let complaints = browser.complaints()?;
    if !complaints.is_empty() {
        return Err(LabError::new(format!(
            "the browser complains: {complaints:?}"
        )));
    }
    fs::write(file, &picture).doing(|| format!("write {}", file.display()))?;
    println!("{}: {} KiB", file.display(), picture.len() >> 10);
    Ok(())
}
