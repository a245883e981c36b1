//! The whole benchmark once, with counts that prove that it works and figures that mean nothing.
//!
//! Here and not among the end-to-end cases, since only from inside can it be run with a debug build: the program
//! itself refuses.

use std::time::Duration;

use crate::contestants::{Envoy, Who};
use crate::plan::{Plan, Scenario};
use crate::{run, write};

#[test]
fn everything_is_measured_with_and_without_the_mesh() {
    let scenarios = vec![
        Scenario::Bulk(1),
        Scenario::Bulk(8),
        Scenario::Requests(16),
        Scenario::Connect,
        Scenario::SlowReader(8),
        Scenario::Push(500),
    ];
    let plan = Plan {
        name: "smoke",
        rounds: 1,
        warm: Duration::from_millis(50),
        measure: Duration::from_millis(200),
        scenarios,
        idle: vec![20],
        memory_rounds: 1,
        settle: Duration::ZERO,
        stall_settle: Duration::from_millis(200),
        push_window: Duration::from_millis(2_500),
        control: false,
        one_cpu: false,
    };
    let report = run(plan, &Envoy::Missing("a smoke run".to_owned())).unwrap();
    assert_eq!(report.measurements.failures, Vec::<String>::new());
    assert_eq!(report.columns, [Who::NoMesh, Who::Ours]);
    for row in &report.rows {
        let ours = row.summary(Who::Ours);
        assert!(ours.is_some_and(|ours| ours.median.is_finite()), "{row:?}");
        let of_proxies = row.group.contains("memory") || row.name.contains("prox");
        assert_eq!(row.summary(Who::NoMesh).is_none(), of_proxies, "{row:?}");
    }

    let out = std::env::temp_dir().join(format!("zt-bench-smoke-{}", std::process::id()));
    write(&report, &out).unwrap();
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(page, report.html());
    assert!(page.contains("Envoy: none: a smoke run."));
}
