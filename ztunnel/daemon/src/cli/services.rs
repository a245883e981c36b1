//! `ztunnel services`: what the control plane has told about services.

use std::process::ExitCode;

use ztunnel_node::inspect::{End, List, Rows, ServicePort, WantedOfMesh};

use super::table::{Column, Table, left_out};
use super::{Daemon, Format, Limit};

/// List the services that the control plane has told about.
///
/// Example: ztunnel services --namespace shop
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
    args.daemon.list(List::Services(wanted), args.output, table)
}

fn table(rows: &Rows, end: End) -> String {
    let Rows::Services(rows) = rows else {
        return String::new();
    };
    let mut table = Table::new(&[
        Column::Left("SERVICE"),
        Column::Left("ADDRESSES"),
        Column::Left("PORTS"),
        Column::Left("WAYPOINT"),
        Column::Right("HEALTHY ENDPOINTS"),
    ]);
    for row in rows {
        let ports: Vec<_> = row.ports.iter().map(port).collect();
        table.row([
            format!("{}/{}", row.namespace, row.hostname),
            row.addresses.join(","),
            ports.join(","),
            row.waypoint.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{} of {}", row.healthy_endpoints, row.endpoints),
        ]);
    }
    table.text() + &left_out(end.left_out)
}

fn port(ServicePort { port, target }: &ServicePort) -> String {
    match target {
        Some(target) => format!("{port}:{target}"),
        None => port.to_string(),
    }
}
