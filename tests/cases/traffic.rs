//! What applications notice of the mesh: nothing, except that it works.

use lab::tester::{Check, Outcome};

use crate::mesh::enrolled;

#[test]
fn a_pod_reaches_a_pod_of_another_node_by_every_address() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    for ip in [
        far.v4().unwrap(),
        far.v6().unwrap(),
        "10.96.0.10".parse().unwrap(),
        "fd00:96::10".parse().unwrap(),
    ] {
        let report = client.check(ip, &Check::echo("hello")).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{ip}: {report:?}");
    }
}
