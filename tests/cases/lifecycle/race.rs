//! A daemon that dies in the middle of enrolling or unenrolling a pod.

use std::thread;
use std::time::{Duration, Instant};

use lab::Lab;
use lab::tester::Outcome;

use super::{echo, echo_within};
use crate::local_api::{Api, changed};
use crate::mesh::MESH;

#[test]
fn a_daemon_killed_at_any_moment_leaves_pods_captured_or_without_a_trace() {
    /// Moments at which it is killed: from the request until after the answer.
    const MOMENTS: u32 = 20;
    /// Enough for a connection that is possible at all.
    const SOON: Duration = Duration::from_millis(300);
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    node.start_daemon().unwrap();
    lab.node("node2").start_daemon().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    lab.enroll(&["shop/far"]).unwrap();
    lab.remember("shop/client").unwrap();

    // How long it takes, to know what the middle is.
    let started = Instant::now();
    let mut api = Api::connect(node).unwrap();
    assert_eq!(api.enroll(&client).unwrap(), changed());
    let took = started.elapsed();
    assert_eq!(api.unenroll(client.uid()).unwrap(), changed());
    drop(api);

    let mut captured = false;
    for moment in 0..MOMENTS {
        let mut api = Api::connect(node).unwrap();
        let answer = thread::scope(|scope| {
            let request = scope.spawn(|| {
                if captured {
                    api.unenroll(client.uid())
                } else {
                    api.enroll(&client)
                }
            });
            if moment < MOMENTS - 3 {
                thread::sleep(took * moment / (MOMENTS - 3));
                node.kill().unwrap();
                request.join().unwrap()
            } else {
                let answer = request.join().unwrap();
                node.kill().unwrap();
                answer
            }
        });
        let answered = answer.is_ok_and(|answer| answer == changed());
        let what = if captured { "unenroll" } else { "enroll" };

        // Nobody has told the pod that it is captured unless the daemon has said so, and then it must be so.
        let tap = client.tap(&["meanwhile"]).unwrap();
        let report = echo_within(&client, far.v4().unwrap(), "meanwhile", SOON);
        let plain = tap.stop().unwrap().marker("meanwhile");
        assert_eq!(report.outcome == Outcome::Good, plain > 0, "{report:?}");
        if answered {
            assert_eq!(plain > 0, captured, "moment {moment}: {what} was answered");
        }

        node.start_daemon().unwrap();
        lab.settle().unwrap();
        let states = Api::connect(node).unwrap().states().unwrap();
        let before = captured;
        captured = match states.as_slice() {
            [] => false,
            [(_, state, None)] if state == "captured" => true,
            other => panic!("moment {moment} of {what}: {other:?}"),
        };
        if answered {
            assert_ne!(captured, before, "moment {moment}: {what} was answered");
        }
        let tap = client.tap(&["afterwards"]).unwrap();
        let report = echo(&client, far.v4().unwrap(), "afterwards");
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        let plain = tap.stop().unwrap().marker("afterwards");
        assert_eq!(plain == 0, captured, "moment {moment} of {what}");
        if !captured {
            let left = lab.pod_leftovers("shop/client").unwrap();
            assert_eq!(left, Vec::<String>::new(), "moment {moment} of {what}");
            let notes = std::fs::read_dir(node.dir().join("pods")).unwrap();
            assert_eq!(notes.count(), 0, "moment {moment} of {what}");
        }
    }
}
