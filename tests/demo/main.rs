//! The main job, shown to a newcomer: one request through the mesh, the evidence for it, and the same request
//! without the mesh.

mod evidence;
mod picture;

use std::env;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use lab::{DaemonOptions, Lab, LabError, Nginx, Result};

use evidence::{AccessLog, Evidence};
use picture::Wanted;

const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: web, namespace: shop, node: node2, service_account: web, addresses: [10.244.2.10, 'fd00:2::10']}
services:
  - {name: web, namespace: shop, addresses: [10.96.0.10], ports: {80: 8080}, workloads: [web]}
";
const CLIENT: &str = "shop/client";
const SERVER: &str = "shop/web";
const URL: &str = "http://web.shop.svc.cluster.local/greeting.txt";
/// What somebody on the wire would look for.
const MARKER: &str = "card-4111-1111-1111-1111";
const GREETING: &str = "hello from shop/web\n";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => demo(false),
        ["--keep"] => demo(true),
        ["--picture", file, ref how @ ..] => Wanted::parse(how)
            .and_then(|wanted| picture::take(Path::new(file), wanted))
            .map(|()| true),
        ref other => Err(LabError::new(format!(
            "{other:?} is not understood; the options are --keep and --picture FILE [--dark] [--width PIXELS]"
        ))),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("demo: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn demo(keep: bool) -> Result<bool> {
    println!(
        "Two Kubernetes-like nodes out of network namespaces, a pod on each, a ztunnel on each.\n"
    );
    let lab = step("build nodes, pods and a control plane", || {
        Lab::from_yaml(MESH)
    })?;
    let nginx = step("start nginx in pod shop/web", || {
        // As on any cluster: for pods outside the mesh something turns service addresses into pods'.
        lab.start_service_proxies()?;
        serve(&lab)
    })?;
    step("start ztunnel on node1 and node2", || {
        let options = DaemonOptions::default().env("LOG_FORMAT", "json");
        lab.nodes()
            .iter()
            .try_for_each(|node| node.start_daemon_with(&options))
    })?;
    step("enroll both pods", || lab.enroll_all())?;

    let meshed = request(&lab, &nginx)?;
    println!(
        "\nIn pod {CLIENT}, which knows nothing of a mesh:\n  {}",
        command()
    );
    println!("  {}", meshed.answer.trim_end());
    let log = AccessLog::read(&lab)?;
    meshed.show_meshed(&lab, &log);

    if keep {
        wait_for_enter(&lab);
    }

    step("\nunenroll both pods", || lab.unenroll(&[CLIENT, SERVER]))?;
    let plain = request(&lab, &nginx)?;
    plain.show_plain();

    let left = step(
        "\nstop both daemons and look for anything left behind",
        || {
            lab.nodes()
                .iter()
                .try_for_each(|node| node.stop().map(drop))?;
            Ok(lab.expect_nothing_left())
        },
    )?;
    if let Err(err) = &left {
        println!("  {err}");
    }
    let proven = meshed.is_meshed(&lab, &log) && plain.is_plain() && left.is_ok();
    println!(
        "\n{}",
        if proven {
            "All as it should be."
        } else {
            "NOT as it should be: see above."
        }
    );
    Ok(proven)
}

fn step<T>(what: &str, job: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("{what} ");
    drop(io::stdout().flush());
    let started = Instant::now();
    let outcome = job();
    match &outcome {
        Ok(_) => println!("({} ms)", started.elapsed().as_millis()),
        Err(_) => println!("FAILED"),
    }
    outcome
}

fn serve(lab: &Lab) -> Result<Nginx> {
    let nginx = lab.pod(SERVER).nginx(8080)?;
    std::fs::write(nginx.www().join("greeting.txt"), GREETING)
        .map_err(|err| LabError::new(format!("write the page to serve: {err}")))?;
    Ok(nginx)
}

fn command() -> String {
    format!("curl '{URL}?{MARKER}'")
}

/// One request, watched on the link between the nodes.
fn request(lab: &Lab, nginx: &Nginx) -> Result<Evidence> {
    let tap = lab.tap("node1", "node2", &[MARKER])?;
    let before = nginx.clients().len();
    let url = format!("{URL}?{MARKER}");
    let output = lab
        .pod(CLIENT)
        .run([
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "10",
            &url,
        ])?
        .success()?;
    let client = nginx.client(before)?;
    Ok(Evidence {
        answer: output.stdout,
        client,
        seen: tap.stop()?,
    })
}

fn wait_for_enter(lab: &Lab) {
    println!("\nEverything stays up until you press Enter. From another shell:");
    for pod in lab.pods() {
        let netns = pod.namespace().path();
        println!(
            "  a shell in pod {:<12} nsenter --net={} bash",
            pod.key(),
            netns.display()
        );
    }
    for node in lab.nodes() {
        println!("  log of {:<20} {}", node.name(), node.log_file().display());
    }
    println!(
        "  the mesh, to edit            {}",
        lab.control_plane().mesh_file().display()
    );
    println!("  try: curl {URL}   (in shop/client)");
    drop(io::stdin().read_line(&mut String::new()));
}
