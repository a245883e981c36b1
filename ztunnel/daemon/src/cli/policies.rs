//! `ztunnel policies`: what the control plane has told about authorization policies.

use std::process::ExitCode;

use ztunnel_node::inspect::{End, List, Rows, WantedOfMesh};

use super::table::{Column, Table, left_out};
use super::{Daemon, Format, Limit};

/// List the authorization policies that this node knows.
///
/// What they make of one connection says `ztunnel explain`.
///
/// Example: ztunnel policies --namespace shop
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only those of this namespace.
    #[arg(long)]
    namespace: Option<String>,
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
        node: None,
        limit: args.limit.of(args.output),
    };
    args.daemon.list(List::Policies(wanted), args.output, table)
}

fn table(rows: &Rows, end: End) -> String {
    let Rows::Policies(rows) = rows else {
        return String::new();
    };
    let mut table = Table::new(&[
        Column::Left("POLICY"),
        Column::Left("ACTION"),
        Column::Left("APPLIES TO"),
        Column::Right("RULES"),
        Column::Left("MODE"),
    ]);
    for row in rows {
        table.row([
            format!("{}/{}", row.namespace, row.name),
            row.action.clone(),
            row.scope.clone(),
            row.rules.to_string(),
            if row.dry_run { "dry run" } else { "enforced" }.to_owned(),
        ]);
    }
    table.text() + &left_out(end.left_out)
}
