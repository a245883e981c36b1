//! Ours: a daemon on each node, as shipped, access log and metrics included.

use lab::{Lab, LabError, Result};

use super::{Contestant, Who};

const HBONE_PORT: u16 = 15008;

pub(super) fn start(lab: &Lab) -> Result<Contestant> {
    let mut contestant = Contestant::with_server(lab, Who::Ours, HBONE_PORT)?;
    lab.start_daemons()?;
    lab.enroll(&["ours/client", "ours/server"])?;
    let pid = |node: &str| {
        let pid = lab.node(node).daemon_pid();
        pid.ok_or_else(|| LabError::new(format!("{node} has no daemon")))
    };
    contestant.proxies = vec![pid("node1")?, pid("node2")?];
    Ok(contestant)
}
