//! Connections that are open while pods come and go.

use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Check, Held, Outcome};
use lab::{Lab, Pod};

use super::{assert_good, echo, enrolled_with_deadline, eventually, hold};
use crate::access;
use crate::local_api::Api;
use crate::mesh::MESH;

fn hold_each(from: &lab::Place, to: &Pod) -> Vec<Held> {
    to.ips().iter().map(|&ip| hold(from, ip)).collect()
}

fn exchange(held: &mut [Held], what: &str) {
    for one in held {
        let report = one.exchange(what).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{what}: {report:?}");
    }
}

fn close(held: Vec<Held>) {
    for one in held {
        let report = one.close().unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    }
}

#[test]
fn connections_from_before_enrollment_survive_it_and_the_end_of_it() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let mut held = hold_each(&client, &far);
    held.extend(hold_each(&far, &client));
    held.extend(hold_each(lab.outside(), &far));
    held.extend(hold_each(&far, &far));
    exchange(&mut held, "before");

    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    let tap = lab.tap("node1", "node2", &["hello"]).unwrap();
    exchange(&mut held, "enrolled");
    assert_good(&client, &far);
    assert_eq!(
        tap.stop().unwrap().marker("hello"),
        0,
        "new ones are in the mesh"
    );
    exchange(&mut held, "still enrolled");

    lab.unenroll(&["shop/client", "shop/far"]).unwrap();
    exchange(&mut held, "unenrolled");
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    exchange(&mut held, "enrolled again");
    close(held);
}

#[test]
fn captured_connections_go_on_after_unenrollment_while_new_ones_are_direct() {
    let lab = enrolled_with_deadline("60s");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let mut held = hold_each(&client, &far);
    held.extend(hold_each(&far, &client));
    held.extend(hold_each(lab.outside(), &client));
    exchange(&mut held, "captured");

    thread::scope(|scope| {
        let leaving = scope.spawn(|| lab.unenroll(&["shop/client"]));
        let mut api = Api::connect(lab.node("node1")).unwrap();
        let mut state = |key: &str| {
            let states = api.states().unwrap();
            states
                .into_iter()
                .find(|(pod, ..)| pod == key)
                .map(|(_, state, _)| state)
        };
        eventually("the pod is leaving", || {
            state("shop/client").as_deref() == Some("leaving")
        });
        // The old ones are in the mesh to their end, the new ones in the clear at once, both ways.
        let tap = lab
            .tap("node1", "node2", &["old secret", "new and plain"])
            .unwrap();
        exchange(&mut held[..4], "old secret");
        assert_eq!(tap.so_far().marker("new and plain"), 0);
        for (from, to) in [(&client, &far), (&far, &client)] {
            for &ip in to.ips() {
                let report = echo(from, ip, "new and plain");
                assert_eq!(report.outcome, Outcome::Good, "{report:?}");
            }
        }
        exchange(&mut held[..4], "old secret");
        exchange(&mut held[4..], "from outside");
        let seen = tap.stop().unwrap();
        assert_eq!(seen.marker("old secret"), 0);
        // Client and server, each way, in each family; far is still captured as a client, and client is not HBONE.
        assert!(seen.marker("new and plain") >= 4, "{seen:?}");
        assert!(!leaving.is_finished());
        // Somebody else asks for the same thing: it waits, and finds it done.
        let impatient = scope.spawn(|| {
            let mut api = Api::connect(lab.node("node1")).unwrap();
            api.unenroll(client.uid()).unwrap()
        });
        // Coming back has to wait, too; it is refused with the reason.
        let refused = Api::connect(lab.node("node1")).unwrap().enroll(&client);
        assert_eq!(refused.unwrap()["refused"]["code"], "LEAVING");

        let closing = Instant::now();
        close(held);
        leaving.join().unwrap().unwrap();
        assert_eq!(impatient.join().unwrap(), crate::local_api::unchanged());
        assert!(
            closing.elapsed() < Duration::from_secs(5),
            "it does not wait for the deadline"
        );
        assert_eq!(state("shop/client"), None);
    });
    assert_eq!(
        lab.pod_leftovers("shop/client").unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn connections_that_do_not_end_by_the_deadline_are_cut_and_nothing_of_them_is_sent_in_the_clear() {
    let lab = enrolled_with_deadline("1s");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let mut held = hold_each(&client, &far);
    held.extend(hold_each(&far, &client));
    let tap = lab.tap("node1", "node2", &["too late"]).unwrap();
    let started = Instant::now();
    lab.unenroll(&["shop/client"]).unwrap();
    let took = started.elapsed();
    assert!((1..5).contains(&took.as_secs()), "{took:?}");
    // One line each, with the reason, whichever way it went.
    let drained = [("pod", "shop/client"), ("reason", "DRAINED")];
    eventually("each is told of", || {
        let told = |direction| {
            let lines = access::lines(lab.node("node1"), &drained);
            let lines = lines.iter().filter(|l| l.field("direction") == direction);
            lines.filter(|l| l.contains("time to end is over")).count()
        };
        (told("outbound"), told("inbound")) == (held.len() / 2, held.len() / 2)
    });
    for mut one in held {
        let report = one.exchange("too late").unwrap();
        let cut = [Outcome::Reset, Outcome::Ended].contains(&report.outcome);
        assert!(cut, "{report:?}");
    }
    assert_eq!(tap.stop().unwrap().marker("too late"), 0);
    assert_eq!(
        lab.pod_leftovers("shop/client").unwrap(),
        Vec::<String>::new()
    );
    let check = Check::echo("direct");
    let report = client.check(far.v4().unwrap(), &check).unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
}
