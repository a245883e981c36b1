//! `ztunnel workloads`: what the control plane has told about workloads.

use std::process::ExitCode;

use ztunnel_node::inspect::{End, List, Rows, WantedOfMesh};

use super::table::{Column, Table, left_out};
use super::{Daemon, Format, Limit};

/// List the workloads that the control plane has told about.
///
/// With `XDS_ON_DEMAND` these are the ones that connections of this node have needed.
///
/// Example: ztunnel workloads --namespace shop --node worker-3
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only those of this namespace.
    #[arg(long)]
    namespace: Option<String>,
    /// Only those on this node.
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    limit: Limit,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

pub(super) fn run(args: Args) -> ExitCode {
    let wanted = WantedOfMesh {
        namespace: args.namespace,
        node: args.node,
        limit: args.limit.of(args.output),
    };
    args.daemon
        .list(List::Workloads(wanted), args.output, table)
}

fn table(rows: &Rows, end: End) -> String {
    let Rows::Workloads(rows) = rows else {
        return String::new();
    };
    let mut table = Table::new(&[
        Column::Left("WORKLOAD"),
        Column::Left("ADDRESSES"),
        Column::Left("NODE"),
        Column::Left("IDENTITY"),
        Column::Left("PROTOCOL"),
        Column::Left("WAYPOINT"),
        Column::Left("HEALTH"),
    ]);
    for row in rows {
        let addresses = row.addresses.iter().map(ToString::to_string);
        let addresses: Vec<_> = addresses.chain(row.hostname.clone()).collect();
        table.row([
            format!("{}/{}", row.namespace, row.name),
            addresses.join(","),
            row.node.clone(),
            (row.identity.strip_prefix("spiffe://"))
                .unwrap_or(&row.identity)
                .to_owned(),
            row.protocol.clone(),
            row.waypoint.clone().unwrap_or_else(|| "-".to_owned()),
            if row.healthy { "healthy" } else { "UNHEALTHY" }.to_owned(),
        ]);
    }
    table.text() + &left_out(end.left_out)
}
