//! `ztunnel connections`: what is open now.

use std::process::ExitCode;

use clap::ValueEnum;
use ztunnel_node::inspect::{
    ConnectionEnd, ConnectionRow, End, List, Rows, Sort, Wanted, WantedPeer, WantedPod, Way,
};

use super::table::{Column, Table, left_out};
use super::text::{bytes, count, time};
use super::{Daemon, Format, Limit};

/// List the open connections of this node's pods, with both ends, their identities, and bytes so far.
///
/// Bytes are those that the app of this node's pod has sent and received. Below each connection stand the identities of
/// its source and its destination, and what encrypts it.
///
/// Example: ztunnel connections --pod shop/web --direction outbound --sort bytes --limit 20
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only those of this pod of this node.
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<WantedPod>,
    /// Only those with this other end: an address, NAMESPACE/NAME of a pod or workload, a SPIFFE id, or the full
    /// hostname of a service.
    #[arg(long, value_name = "WHO")]
    peer: Option<WantedPeer>,
    /// Only those that were made this way, seen from the pod of this node.
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// What comes first: the most bytes, or the oldest.
    #[arg(long, value_enum, default_value_t = By::Age)]
    sort: By,
    #[command(flatten)]
    limit: Limit,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Direction {
    Inbound,
    Outbound,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Bytes,
    Age,
}

pub(super) fn run(args: Args) -> ExitCode {
    let wanted = Wanted {
        pod: args.pod,
        peer: args.peer,
        direction: args.direction.map(|direction| match direction {
            Direction::Inbound => Way::Inbound,
            Direction::Outbound => Way::Outbound,
        }),
        sort: match args.sort {
            By::Bytes => Sort::Bytes,
            By::Age => Sort::Age,
        },
        limit: args.limit.of(args.output),
    };
    args.daemon
        .list(List::Connections(wanted), args.output, table)
}

fn table(rows: &Rows, end: End) -> String {
    let Rows::Connections(rows) = rows else {
        return String::new();
    };
    let open = count(end.total, "connection is open", "connections are open");
    if rows.is_empty() && end.left_out == 0 {
        return match end.total {
            0 => open,
            _ => format!("none as asked for; {open}"),
        };
    }
    let mut table = Table::new(&[
        Column::Left("DIRECTION"),
        Column::Left("SOURCE"),
        Column::Left("DESTINATION"),
        Column::Left("PROTOCOL"),
        Column::Right("SENT"),
        Column::Right("RECEIVED"),
        Column::Right("AGE"),
    ]);
    for row in rows {
        let protocol = match row.opened {
            true => row.protocol.clone(),
            false => format!("{} (opening)", row.protocol),
        };
        let cells = [
            row.direction.clone(),
            name(&row.source),
            destination(row),
            protocol,
            bytes(row.bytes_sent),
            bytes(row.bytes_received),
            time(row.age_seconds),
        ];
        let encrypted = [&row.tls_cipher, &row.tls_key_exchange];
        let encrypted = encrypted.into_iter().flatten();
        let encrypted: Vec<_> = encrypted
            .map(|name| name.strip_prefix("TLS_").unwrap_or(name))
            .collect();
        let by = match encrypted.is_empty() {
            true => "not encrypted".to_owned(),
            false => encrypted.join(" "),
        };
        let (from, to) = (identity(&row.source), identity(&row.destination));
        table.row_with(cells, [from, "->".to_owned(), to, by]);
    }
    table.text() + &left_out(end.left_out)
}

/// The pod; the address of whoever is none.
fn name(end: &ConnectionEnd) -> String {
    match (&end.namespace, &end.name, end.address) {
        (Some(namespace), Some(name), _) => format!("{namespace}/{name}"),
        (_, _, Some(address)) => address.to_string(),
        _ => "unknown".to_owned(),
    }
}

/// The pod or the service, and the address that was asked for.
fn destination(row: &ConnectionRow) -> String {
    let name = name(&row.destination);
    match row.destination.address {
        Some(address) if row.destination.name.is_some() => format!("{name} {address}"),
        _ => name,
    }
}

fn identity(end: &ConnectionEnd) -> String {
    let identity = end.identity.as_deref();
    let identity = identity.map(|id| id.strip_prefix("spiffe://").unwrap_or(id));
    identity.unwrap_or("no identity").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::WIDTH;

    fn row(name: &str) -> ConnectionRow {
        let end = |port| ConnectionEnd {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            workload: None,
            address: Some(([10, 0, 0, 1], port).into()),
            identity: Some(format!("spiffe://cluster.local/ns/shop/sa/{name}")),
        };
        ConnectionRow {
            pod: format!("shop/{name}"),
            direction: "outbound".to_owned(),
            protocol: "HBONE".to_owned(),
            opened: true,
            source: end(40_000),
            destination: end(443),
            service: None,
            via: None,
            tls_cipher: Some("TLS_AES_128_GCM_SHA256".to_owned()),
            tls_key_exchange: Some("X25519MLKEM768".to_owned()),
            bytes_sent: 1 << 20,
            bytes_received: 3,
            age_seconds: 65,
        }
    }

    #[test]
    fn lines_fit_and_say_what_is_left_out() {
        let hostile = "\u{1b}[31m".to_owned() + &"n".repeat(200);
        let rows = Rows::Connections(vec![row("web"), row(&hostile)]);
        let end = End {
            total: 7,
            matched: 5,
            left_out: 3,
        };
        let text = table(&rows, end);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        assert!(text.contains("1.0 MiB") && text.contains("1m05s"), "{text}");
        let below = "  cluster.local/ns/shop/sa/web  ->  cluster.local/ns/shop/sa/web  AES_128_GCM_SHA256 \
                     X25519MLKEM768";
        assert!(!text.contains("spiffe"), "{text}");
        assert!(text.lines().any(|line| line == below), "{text}");
        assert!(
            text.ends_with("3 more are not shown: see --limit"),
            "{text}"
        );
        let none = Rows::Connections(Vec::new());
        let end = |total| End {
            total,
            ..End::default()
        };
        assert_eq!(table(&none, end(0)), "0 connections are open");
        let filtered = "none as asked for; 1 connection is open";
        assert_eq!(table(&none, end(1)), filtered);
    }
}
