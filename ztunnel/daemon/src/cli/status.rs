//! `ztunnel status`: this node at a glance.

use std::process::ExitCode;

use serde_json::json;
use ztunnel_node::enroll::{Outcome, Request};
use ztunnel_node::inspect::{Attention, NodeStatus};

use super::ask::NoAnswer;
use super::page::Page;
use super::text::{count, time};
use super::{Daemon, Format, fail, print};

/// Exit code.
const NEEDS_ATTENTION: u8 = 1;

/// Show this node at a glance: pods, certificates, control plane, connections, what was refused lately.
///
/// Exit code 0: all is well. 1: something needs attention, and it is said what and what to do; also when the daemon is
/// not running. 2: the command line is wrong.
///
/// Example: ztunnel status --output json | jq '.attention'
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match (args.daemon.answer(&Request::Status {}), args.output) {
        (Ok(Outcome::Status(status)), output) => {
            print(&match output {
                Format::Table => text(&status),
                Format::Json => {
                    let mut all = json!(status);
                    all["running"] = true.into();
                    super::json(&all)
                }
            });
            match status.attention.is_empty() {
                true => ExitCode::SUCCESS,
                false => ExitCode::from(NEEDS_ATTENTION),
            }
        }
        (Ok(Outcome::Refused { code, reason }), _) => fail(&format!("{code}: {reason}")),
        (Ok(_), _) => fail(&"the daemon gave another answer: its version is another one"),
        (Err(NoAnswer { problem, next_step }), output) => {
            print(&match output {
                Format::Table => {
                    let mut page = Page::default();
                    page.labeled("STATUS", "no answer from the daemon");
                    attention(&mut page, &problem, &next_step);
                    page.text()
                }
                Format::Json => super::json(&json!({
                    "running": false,
                    "attention": [{"problem": problem, "next_step": next_step}],
                })),
            });
            ExitCode::from(NEEDS_ATTENTION)
        }
    }
}

fn text(status: &NodeStatus) -> String {
    let mut page = Page::default();
    let problems = match status.attention.len() {
        0 => "all is well".to_owned(),
        some => format!("{} attention", count(some, "thing needs", "things need")),
    };
    page.labeled("STATUS", &problems);
    page.labeled(
        "NODE",
        &format!(
            "{}, ztunnel {} (Istio {}), up {}",
            status.node,
            status.version,
            status.istio_version,
            time(status.up_seconds)
        ),
    );
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        page.labeled("", &format!("this command is of version {own}"));
    }
    let pods = &status.pods;
    page.labeled(
        "PODS",
        &format!(
            "{} captured, {} leaving, {} defective, as measured in the kernel",
            pods.captured, pods.leaving, pods.defective
        ),
    );
    let ends = status.first_ends_seconds.map(|left| {
        let left = u64::try_from(left).unwrap_or_default();
        format!("; the first ends in {}", time(left))
    });
    page.labeled(
        "CERTS",
        &format!(
            "{} of {} valid{}",
            status.certificates_valid,
            status.certificates,
            ends.unwrap_or_default()
        ),
    );
    page.labeled("CONTROL", &control_plane(status));
    page.labeled(
        "MESH",
        &format!(
            "{}, {}, {}",
            count(status.workloads, "workload", "workloads"),
            count(status.services, "service", "services"),
            count(status.policies, "policy", "policies")
        ),
    );
    let open = match (status.inbound, status.outbound) {
        (Some(inbound), Some(outbound)) => format!("{inbound} inbound, {outbound} outbound"),
        _ => "not known: the workers are too busy to say".to_owned(),
    };
    page.labeled("OPEN", &open);
    page.labeled("FAILED", &failed(status));
    for Attention { problem, next_step } in &status.attention {
        page.blank();
        attention(&mut page, problem, next_step);
    }
    page.text()
}

fn attention(page: &mut Page, problem: &str, next_step: &str) {
    page.labeled("PROBLEM", problem);
    page.labeled("NEXT", next_step);
}

fn control_plane(status: &NodeStatus) -> String {
    let link = &status.control_plane;
    let pushed = match link.last_push_seconds {
        Some(ago) => format!("last push {} ago", time(ago)),
        None => "no push yet".to_owned(),
    };
    let connected = match (link.connected_seconds, link.lost_seconds) {
        (Some(since), _) => format!("connected to {} for {}", link.address, time(since)),
        (None, since) => {
            let since = time(since.unwrap_or_default());
            format!("NOT CONNECTED to {} for {since}", link.address)
        }
    };
    let rejected = count(link.rejected, "resource", "resources");
    format!("{connected}; {pushed}; {rejected} rejected")
}

fn failed(status: &NodeStatus) -> String {
    let failures = &status.failures;
    let within = time(failures.within_seconds);
    if failures.by_reason.is_empty() {
        return format!("none in the last {within}");
    }
    let by_reason = failures.by_reason.iter();
    let by_reason: Vec<_> = by_reason.map(|(code, n)| format!("{n} {code}")).collect();
    let by_reason = by_reason.join(", ");
    format!("in the last {within}: {by_reason} (`ztunnel reasons CODE` says what one means)")
}
