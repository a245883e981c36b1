//! `ztunnel certificates`: the certificates of this node's pods.

use std::process::ExitCode;

use ztunnel_node::inspect::{End, List, Rows};

use super::table::{Column, Table, left_out};
use super::text::time;
use super::{Daemon, Format, Limit};

/// List the certificates of this node's pods, those with a problem first.
///
/// Example: ztunnel certificates --output json
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    limit: Limit,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

pub(super) fn run(args: Args) -> ExitCode {
    let limit = args.limit.of(args.output);
    args.daemon
        .list(List::Certificates { limit }, args.output, table)
}

fn table(rows: &Rows, end: End) -> String {
    let Rows::Certificates(rows) = rows else {
        return String::new();
    };
    let mut table = Table::new(&[
        Column::Left("IDENTITY"),
        Column::Left("STATE"),
        Column::Right("ENDS IN"),
        Column::Right("NEXT TRY"),
        Column::Left("IN USE"),
    ]);
    for row in rows {
        let left = row.seconds_left.map(|left| match u64::try_from(left) {
            Ok(left) => time(left),
            Err(_) => "ended".to_owned(),
        });
        let next_try = row.next_try_seconds.map(time);
        let cells = [
            row.identity.clone(),
            row.state.as_str().to_owned(),
            left.unwrap_or_else(|| "-".to_owned()),
            next_try.unwrap_or_else(|| "-".to_owned()),
            if row.in_use { "yes" } else { "no" }.to_owned(),
        ];
        match &row.failure {
            Some(failure) => table.row_with(cells, [failure.clone()]),
            None => table.row(cells),
        }
    }
    table.text() + &left_out(end.left_out)
}
