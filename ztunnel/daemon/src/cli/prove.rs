//! `ztunnel prove`: what was seen of a connection, and the process that makes it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use ztunnel_node::enroll::{Outcome, Request};
use ztunnel_node::explain::{Plan, Verdict};
use ztunnel_node::prove::{self, Evidence, Passed, Proof, Proxied, Wanted};

use super::page::Page;
use super::text::{bytes, count};
use super::{Daemon, Format, fail, json, print};

/// Prove that a connection of a pod leaves through the mesh: make one, and watch the wire.
///
/// A process of the daemon's connects from the pod's network namespace, as an app would, and ends the connection again.
/// Nothing is sent to the app that accepts it, unless with --send. Meanwhile all interfaces of the pod are watched: packets
/// of the tunnel must be there, and none of the connection in the clear. Exit code 0: proven; 1: not.
///
/// Example: ztunnel prove shop/web-0 10.96.0.10:80
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The pod that connects: namespace/name, as `ztunnel pods` shows it, or its name or uid alone.
    pod: String,
    /// Where it connects to.
    #[arg(value_name = "ADDRESS:PORT")]
    to: String,
    /// A line to send to the app once there is a tunnel, and to look for on the wire: 8 to 1024 bytes.
    #[arg(long, value_name = "TEXT")]
    send: Option<String>,
    /// How many seconds it may take to be connected.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    within: u64,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

/// Connect in the place of an app; the daemon runs this.
#[derive(Debug, clap::Parser)]
pub(super) struct Connect {
    #[arg(long)]
    netns: PathBuf,
    #[arg(long)]
    to: SocketAddr,
    /// Id of the cgroup in which nothing is captured.
    #[arg(long)]
    not_cgroup: u64,
}

pub(super) fn connect(args: Connect) -> ExitCode {
    let Connect {
        netns,
        to,
        not_cgroup,
    } = args;
    match prove::run(&prove::Connect {
        netns,
        to,
        not_cgroup,
    }) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody listens any more.
        Err(err) => fail(&err),
    }
}

pub(super) fn run(args: Args) -> ExitCode {
    let Args {
        pod,
        to,
        send,
        within,
        output,
        daemon,
    } = args;
    let wanted = Wanted {
        pod,
        to,
        text: send,
        within_seconds: within,
    };
    match daemon.done(&Request::Prove(wanted)) {
        Ok(Outcome::Proof(proof)) => {
            print(&match output {
                Format::Table => text(&proof),
                Format::Json => json(&proof),
            });
            match proof.proven {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Ok(Outcome::Refused { code, reason }) => fail(&format!("{code}: {reason}")),
        Ok(_) => fail(&"the daemon gave another answer: its version is another one"),
        Err(err) => fail(&err),
    }
}

/// What a proof looks like.
fn text(proof: &Proof) -> String {
    let Proof {
        proven,
        code,
        verdict,
        next_step,
        evidence,
        limits,
    } = proof;
    let mut page = Page::default();
    let judged = match proven {
        true => "PROVEN".to_owned(),
        false => format!("NOT PROVEN, {code}"),
    };
    page.labeled("VERDICT", &judged);
    page.labeled("", verdict);
    if let Some(next_step) = next_step {
        page.labeled("NEXT", next_step);
    }
    page.blank();
    page.evidence(evidence);
    page.blank();
    for (number, limit) in limits.iter().enumerate() {
        page.labeled(if number == 0 { "NOT SHOWN" } else { "" }, limit);
    }
    page.text()
}

impl Page {
    fn evidence(&mut self, evidence: &Evidence) {
        let Evidence {
            pod,
            to,
            captured,
            capture_problem,
            decision,
            app,
            proxy,
            wire,
            text,
            took_milliseconds,
            ..
        } = evidence;
        self.labeled("POD", pod);
        if let Some(problem) = capture_problem {
            self.labeled("", &format!("CAPTURE DEFECTIVE: {problem}"));
        }
        let from = app.from.map(|from| format!(" from {from}"));
        let from = from.unwrap_or_default();
        self.labeled("TO", &format!("{to}{from}, in {took_milliseconds} ms"));
        if let Some(refused) = &app.refused {
            self.labeled("", &format!("the connect failed: {refused}"));
        }
        self.labeled(
            "CAPTURED",
            if *captured {
                "yes, by the proxy of this node"
            } else {
                "NO"
            },
        );
        match &decision.verdict {
            Verdict::Go(Plan { to, tunnel }) => {
                let how = match tunnel {
                    Some(tunnel) => format!("HBONE to {to}, CONNECT {}", tunnel.connect),
                    None => format!("plain TCP to {to}"),
                };
                self.labeled("DECISION", &how);
            }
            Verdict::Refused(refused) => {
                self.labeled(
                    "DECISION",
                    &format!("refused, {}: {}", refused.reason, refused.detail),
                );
            }
            Verdict::LookUp { key } => {
                self.labeled("DECISION", &format!("asks the control plane for {key}"))
            }
            Verdict::Permitted { .. } => {}
        }
        if let Some(there) = &decision.destination
            && let Verdict::Refused(refused) = &there.verdict
        {
            let who = format!(
                "{} would refuse it, {}: {}",
                there.workload, refused.reason, refused.detail
            );
            self.labeled("", &who);
        }
        if let Some(proxy) = proxy {
            self.proxied(proxy);
        }
        match evidence.tunnel() {
            Some(tunnel) => {
                let opened = if tunnel.opened {
                    "opened now"
                } else {
                    "there before"
                };
                self.labeled("WIRE", &format!("tunnel to {}, {opened}", tunnel.peer));
                self.labeled("", &passed("out", &tunnel.out));
                self.labeled("", &passed("in ", &tunnel.back));
            }
            None => self.labeled("WIRE", "no packet of a tunnel for it"),
        }
        let clear = count_of(wire.in_the_clear, "packet");
        self.labeled("", &format!("{clear} of the connection in the clear"));
        if wire.others_to_destination > 0 {
            let others = count_of(wire.others_to_destination, "packet");
            self.labeled(
                "",
                &format!("{others} of other connections of the pod to {to}, outside of a tunnel"),
            );
        }
        let all = count_of(wire.packets, "packet");
        self.labeled("", &format!("{all} looked at, {} missed", wire.missed));
        match text {
            None => self.labeled("SENT", "nothing"),
            Some(text) if !text.sent => {
                self.labeled("SENT", "nothing, since there was no tunnel for it")
            }
            Some(text) => {
                let sent = format!(
                    "{} through the tunnel, {} came back; seen in the clear in {}",
                    bytes(text.bytes),
                    bytes(app.received_bytes),
                    count_of(wire.text_seen, "packet"),
                );
                self.labeled("SENT", &sent);
            }
        }
    }

    fn proxied(&mut self, proxy: &Proxied) {
        let Proxied {
            peer,
            peer_node,
            peer_identity,
            identity,
            tls_version,
            tls_cipher,
            tls_key_exchange,
            ..
        } = proxy;
        if let Some(identity) = identity {
            self.labeled("AS", identity);
        }
        if let Some(identity) = peer_identity {
            self.labeled("PEER", identity);
        }
        let node = peer_node.as_ref().map(|node| format!(" on node {node}"));
        let label = if peer_identity.is_some() { "" } else { "PEER" };
        if let Some(peer) = peer {
            self.labeled(label, &format!("{peer}{}", node.unwrap_or_default()));
        }
        if let (Some(version), Some(cipher), Some(kx)) = (tls_version, tls_cipher, tls_key_exchange)
        {
            self.labeled("TLS", &format!("{version}, {cipher}, {kx}"));
        }
    }
}

fn passed(way: &str, passed: &Passed) -> String {
    let Passed {
        packets,
        bytes: payload,
        records,
    } = passed;
    let mut seen = vec![format!("{} with data", records.application_data)];
    if records.handshake > 0 {
        seen.push(format!("{} of a handshake", records.handshake));
    }
    if records.alert > 0 {
        seen.push(format!("{} alerts", records.alert));
    }
    let seen = seen.join(", ");
    let packets = count_of(*packets, "packet");
    format!("{way} {packets}, {}; TLS records: {seen}", bytes(*payload))
}

fn count_of(number: u64, what: &str) -> String {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    count(number, what, &format!("{what}s"))
}
