//! What a proxy needs, from the same figures: for whoever has to say how much CPU and memory a node gives it.
//!
//! Of one proxy: traffic between two nodes needs it at both. What a mesh of many workloads takes is measured by a
//! benchmark of its own.

use super::Report;
use crate::contestants::Who;
use crate::plan::Scenario;
use crate::rows::{AFTER_LOAD_SIZE, IDLE, MEMORY, PROXY_CPU, PROXY_CPU_EACH, for_each_idle};

/// A line of the table.
#[derive(Debug, PartialEq)]
pub(super) struct Need {
    pub(super) what: String,
    pub(super) of: f64,
    pub(super) unit: &'static str,
}

/// What is in no figure here, and where it is.
pub(super) const ELSEWHERE: (&str, &str) = (
    "memory for each workload of the mesh",
    "`cargo bench -p ztunnel-node --bench scale`",
);

/// Whatever was measured.
pub(super) fn needs(report: &Report) -> Vec<Need> {
    const PROCESSORS: &str = "processors";
    // A figure is in microseconds each, and a thousand of them are wanted in a second.
    const A_THOUSAND: f64 = 1e-3;
    // A figure is for both ends and 8 Gbit.
    const A_GBIT: f64 = 1.0 / 16.0;
    let of = |what: &str, unit, group: &str, name: &str, times: f64| {
        let mut rows = report.rows.iter();
        let row = rows.find(|row| row.group == group && row.name == name)?;
        let ours = row.summary(Who::Ours)?;
        Some(Need {
            what: what.to_owned(),
            of: ours.median * times,
            unit,
        })
    };
    let mut needs = vec![
        of(
            "for each 1,000 requests in a second",
            PROCESSORS,
            &Scenario::Requests(16).name(),
            PROXY_CPU_EACH,
            A_THOUSAND,
        ),
        of(
            "for each Gbit/s",
            PROCESSORS,
            &Scenario::Bulk(8).name(),
            PROXY_CPU,
            A_GBIT,
        ),
        of(
            "for each 1,000 new connections in a second",
            PROCESSORS,
            &Scenario::Connect.name(),
            PROXY_CPU_EACH,
            A_THOUSAND,
        ),
        of("memory, idle", "MiB", MEMORY, IDLE, 1.0),
        of(
            "memory some time after all that load",
            "MiB",
            MEMORY,
            AFTER_LOAD_SIZE,
            1.0,
        ),
    ];
    // Of the most of them, where what is there once counts least.
    if let Some(most) = report.plan.idle.iter().max() {
        needs.push(of(
            "memory for each idle connection",
            "KiB",
            MEMORY,
            &for_each_idle(*most),
            1.0,
        ));
    }
    needs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn a_node_needs_what_the_figures_say() {
        // 75 microseconds for a connection, and nothing of requests or of eight connections.
        let need = |what: &str, of, unit| Need {
            what: what.to_owned(),
            of,
            unit,
        };
        assert_eq!(
            needs(&example()),
            [
                need(
                    "for each 1,000 new connections in a second",
                    0.075,
                    "processors"
                ),
                need("memory, idle", 4.0, "MiB"),
                need("memory for each idle connection", 2.0, "KiB"),
            ]
        );
    }
}
