//! What a namespace looks like to the kernel, to see afterwards what was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};
use crate::net::{Namespace, ip_output};

/// Addresses, links, routes, rules and network parameters of one namespace, as lines of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    lines: BTreeSet<String>,
}

/// Where parameters live that capture could touch.
const SYSCTL_TREES: [&str; 3] = [
    "/proc/sys/net/ipv4",
    "/proc/sys/net/ipv6",
    "/proc/sys/net/core",
];

/// What the kernel changes by itself.
const RESTLESS: [&str; 4] = [
    "/neigh/",
    "/route/flush",
    "stable_secret",
    "tcp_fastopen_key",
];

impl Fingerprint {
    pub(crate) fn take(ns: &Namespace) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for (what, args) in [
            ("rule", &["-4", "rule"] as &'static [&'static str]),
            ("rule6", &["-6", "rule"]),
            ("route", &["-4", "route", "show", "table", "all"]),
            ("route6", &["-6", "route", "show", "table", "all"]),
            ("link and address", &["-oneline", "addr"]),
        ] {
            let text = ip_output(ns, args)?;
            lines.extend(text.lines().map(|line| {
                format!(
                    "{what}: {}",
                    line.split_whitespace().collect::<Vec<_>>().join(" ")
                )
            }));
        }
        ns.enter(|| {
            for tree in SYSCTL_TREES {
                read_parameters(Path::new(tree), &mut lines)?;
            }
            Ok(())
        })??;
        Ok(Self { lines })
    }

    /// What is different from `before`: lines that came with `+`, lines that went with `-`.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let came = self
            .lines
            .difference(&before.lines)
            .map(|line| format!("+ {line}"));
        let went = before
            .lines
            .difference(&self.lines)
            .map(|line| format!("- {line}"));
        came.chain(went).collect()
    }
}

fn read_parameters(dir: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    let entries = fs::read_dir(dir).doing(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let path = entry.doing(|| format!("read {}", dir.display()))?.path();
        let shown = path.display().to_string();
        if RESTLESS.iter().any(|part| shown.contains(part)) {
            continue;
        }
        if path.is_dir() {
            read_parameters(&path, lines)?;
        } else if let Ok(value) = fs::read_to_string(&path) {
            // Unreadable ones are those that can only be written: they hold nothing.
            lines.insert(format!("sysctl: {shown} = {}", value.trim()));
        }
    }
    Ok(())
}

/// One listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    /// Names the socket among the descriptors of the process that holds it.
    pub(crate) inode: u64,
}

/// Ports that the calling thread's namespace listens on.
pub(crate) fn listening_ports() -> Result<Vec<u16>> {
    Ok(listeners()?.into_iter().map(|l| l.port).collect())
}

/// Listening TCP sockets of the calling thread's namespace.
pub(crate) fn listeners() -> Result<Vec<Listener>> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let path = PathBuf::from("/proc/thread-self/net").join(table);
        // Without IPv6 there is no table for it.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        found.extend(text.lines().skip(1).filter_map(parse_listener));
    }
    Ok(found)
}

fn parse_listener(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let port = fields.get(1)?.rsplit_once(':')?.1;
    Some(Listener {
        port: u16::from_str_radix(port, 16).ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_count() {
        let listen = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0";
        let open = listen.replace(" 0A ", " 01 ");
        assert_eq!(
            parse_listener(listen),
            Some(Listener {
                port: 8080,
                inode: 4242
            })
        );
        assert_eq!(parse_listener(&open), None);
    }
}
