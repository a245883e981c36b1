//! What `ztunnel pods` says is what the kernel has at that moment.

use lab::tester::{Check, Outcome};

use crate::local_api::{Api, changed, unchanged};
use crate::mesh::enrolled;

#[test]
fn the_pods_of_a_node_are_listed_for_people_and_for_programs() {
    let lab = enrolled().unwrap();
    let node = lab.node("node1");
    let table = node.daemon(|daemon| daemon.ask(&["pods"])).unwrap();
    let table = table.success().unwrap().stdout;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|s| !s.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(rows[0], ["POD", "SERVICE ACCOUNT", "ADDRESSES", "STATE"]);
    for row in [
        [
            "shop/client",
            "client",
            "10.244.1.10,fd00:1::10",
            "captured",
        ],
        ["shop/near", "near", "10.244.1.11,fd00:1::11", "captured"],
    ] {
        assert!(rows.contains(&row.to_vec()), "{row:?} is not in:\n{table}");
    }

    let pods = node.daemon(|daemon| daemon.pods()).unwrap();
    let pods = pods.as_array().unwrap();
    assert_eq!(pods.len(), 2);
    let client = lab.pod("shop/client");
    let listed = pods.iter().find(|pod| pod["uid"] == client.uid()).unwrap();
    for (field, value) in [
        ("namespace", "shop"),
        ("name", "client"),
        ("service_account", "client"),
        ("netns", &client.namespace().path().display().to_string()),
        ("state", "captured"),
    ] {
        assert_eq!(listed[field], value, "{listed}");
    }
    assert!(listed["problem"].is_null());
    for ip in client.ips() {
        let addresses = listed["addresses"].as_array().unwrap();
        assert!(addresses.contains(&ip.to_string().into()), "{listed}");
    }

    lab.unenroll(&["shop/client", "shop/near"]).unwrap();
    let table = node.daemon(|daemon| daemon.ask(&["pods"])).unwrap();
    assert_eq!(table.stdout.lines().count(), 1, "{table:?}");
    assert_eq!(
        node.daemon(|daemon| daemon.pods()).unwrap(),
        serde_json::json!([])
    );
}

#[test]
fn damage_to_capture_is_shown_with_its_reason_and_enrolling_again_repairs_it() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let node = lab.node("node1");
    let mut api = Api::connect(node).unwrap();
    for (damage, problem) in [
        ("-4 rule flush", "policy routing"),
        ("-6 rule flush", "policy routing"),
        ("-4 rule del pref 100", "policy routing"),
        ("-6 rule del pref 102", "policy routing"),
        ("-4 rule del pref 104", "policy routing"),
        ("-4 rule add pref 0 lookup local", "policy routing"),
        ("-4 rule add pref 7 lookup main", "policy routing"),
        ("-4 route flush table 31348", "policy routing"),
        ("-6 route flush table 31348", "policy routing"),
    ] {
        let argv = ["ip"].into_iter().chain(damage.split(' '));
        client.run(argv).unwrap().success().unwrap();
        let table = node.daemon(|daemon| daemon.ask(&["pods"])).unwrap().stdout;
        let row = table.lines().find(|row| row.starts_with("shop/client "));
        let row = row.unwrap();
        assert!(
            row.contains("  DEFECTIVE: ") && row.contains(problem),
            "{damage}: {row}"
        );
        for (key, state, problem) in api.states().unwrap() {
            let defective = key == "shop/client";
            assert_eq!(
                state == "defective",
                defective,
                "{damage}: {key} is {state}"
            );
            assert_eq!(problem.is_some(), defective, "{damage}");
        }

        // What flushing took away that is not capture's is not capture's to bring back.
        if damage.ends_with("rule flush") {
            let family = &damage[..2];
            let tables: &[_] = if family == "-4" {
                &[("32766", "main"), ("32767", "default")]
            } else {
                &[("32766", "main")]
            };
            for (pref, table) in tables {
                let add = ["ip", family, "rule", "add", "pref", pref, "lookup", table];
                client.run(add).unwrap().success().unwrap();
            }
        }
        if damage.contains("pref 7") {
            // It cannot be repaired while somebody else's rule is in the way: no connection takes that way then.
            let refused = api.enroll(&client).unwrap();
            assert_eq!(refused["refused"]["code"], "ROUTING_FAILED", "{refused}");
            let report = client.check(far.v4().unwrap(), &Check::echo("no"));
            assert_eq!(report.unwrap().outcome, Outcome::Forbidden);
            let del = ["ip", "rule", "del", "pref", "7"];
            client.run(del).unwrap().success().unwrap();
        }
        assert_eq!(api.enroll(&client).unwrap(), changed(), "{damage}");
        assert_eq!(api.enroll(&client).unwrap(), unchanged(), "{damage}");
        let well = api.states().unwrap();
        assert!(
            well.iter().all(|(_, state, _)| state == "captured"),
            "{damage}: {well:?}"
        );
        for to in [far.v4(), far.v6()] {
            let report = client.check(to.unwrap(), &Check::echo("again")).unwrap();
            assert_eq!(report.outcome, Outcome::Good, "{damage}: {report:?}");
        }
    }
    lab.unenroll(&["shop/client"]).unwrap();
    assert_eq!(
        lab.pod_leftovers("shop/client").unwrap(),
        Vec::<String>::new()
    );
}
