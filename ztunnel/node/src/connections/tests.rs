use std::future::pending;
use std::rc::Rc;

use tokio::time::{Duration, timeout};
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::name::PodName;
use ztunnel_mesh::reason::Reason;

use super::*;
use crate::telemetry::{Direction, Telemetry};

fn registry() -> Rc<Registry> {
    Registry::new(
        PodName {
            namespace: "shop".into(),
            name: "web-0".into(),
            service_account: "web".into(),
        },
        Telemetry::default(),
    )
}

fn start(registry: &Rc<Registry>) -> Record {
    registry.start(
        Direction::Outbound,
        ClientAddr(([10, 0, 0, 1], 40_000).into()),
    )
}

#[tokio::test]
async fn a_cut_ends_whoever_is_open_and_says_why() {
    let registry = registry();
    let records: Vec<_> = (0..1_000).map(|_| start(&registry)).collect();
    start(&registry).complete();
    assert_eq!(registry.cut_all(Cut::Drained).await, 1_000);
    assert_eq!(registry.cut_all(Cut::Drained).await, 0, "each only once");
    for record in records {
        let cut = record.unless_cut(pending::<()>()).await.unwrap_err();
        assert_eq!(cut.reason(), Reason::Drained);
        record.failed(cut.reason(), cut);
    }
    let later = start(&registry);
    assert!(
        timeout(Duration::ZERO, later.unless_cut(pending::<()>()))
            .await
            .is_err()
    );
}
