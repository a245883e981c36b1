use std::sync::Arc;

use ztunnel_mesh::name::PodName;

use super::*;
use crate::state::mesh_channel;

fn candidate(uid: &str, namespace: &str, name: &str) -> Candidate {
    Candidate {
        uid: uid.to_owned(),
        known: KnownPod {
            name: PodName {
                namespace: namespace.into(),
                name: name.into(),
                service_account: "default".into(),
            },
            addresses: Vec::new(),
            listeners: Arc::default(),
            served: true,
        },
        netns: Some(Arc::new(NetNs::current().unwrap())),
        problem: None,
    }
}

fn chosen(wanted: &str) -> String {
    let mut leaving = candidate("old", "shop", "web");
    leaving.netns = None;
    let pods = vec![
        leaving,
        candidate("new", "shop", "web"),
        candidate("b", "bank", "web"),
        candidate("c", "bank", "db"),
    ];
    match choose(pods, wanted) {
        Ok(pod) => pod.uid,
        Err(err) => format!("{}: {err}", err.code()),
    }
}

#[test]
fn a_pod_is_named_as_people_name_it() {
    assert_eq!(
        chosen("shop/web"),
        "new",
        "the one that leaves is not meant"
    );
    assert_eq!(chosen("db"), "c");
    assert_eq!(chosen("b"), "b");
    assert_eq!(
        chosen("web"),
        "AMBIGUOUS_POD: \"web\" is several enrolled pods: shop/web (uid new), bank/web (uid b); give one of them"
    );
    assert!(chosen("shop/db").starts_with("NOT_ENROLLED: "));
}

#[tokio::test]
async fn what_cannot_be_tried_is_said() {
    let (_publisher, mesh) = mesh_channel();
    let explainer = Explainer {
        node: "one".into(),
        network: "".into(),
        mesh,
    };
    let prover = Prover::new(explainer, Watch::default(), 0);
    let good = Wanted {
        pod: "shop/web".into(),
        to: "10.0.0.9:80".into(),
        text: None,
        within_seconds: 10,
    };
    let cases = [
        (
            Wanted {
                pod: "shop/none".into(),
                ..good.clone()
            },
            "NOT_ENROLLED",
        ),
        (
            Wanted {
                pod: "none".into(),
                ..good.clone()
            },
            "NOT_ENROLLED",
        ),
        (
            Wanted {
                to: "far:80".into(),
                ..good.clone()
            },
            "INVALID_ADDRESS",
        ),
        (
            Wanted {
                to: "127.0.0.1:80".into(),
                ..good.clone()
            },
            "NOT_CAPTURED",
        ),
        (
            Wanted {
                text: Some("short".into()),
                ..good.clone()
            },
            "INVALID_TEXT",
        ),
        (
            Wanted {
                text: Some("x".repeat(1025)),
                ..good.clone()
            },
            "INVALID_TEXT",
        ),
        (
            Wanted {
                within_seconds: 0,
                ..good.clone()
            },
            "INVALID_TIME",
        ),
        (
            Wanted {
                within_seconds: 61,
                ..good.clone()
            },
            "INVALID_TIME",
        ),
    ];
    for (wanted, code) in cases {
        let pods = vec![candidate("a", "shop", "web")];
        let err = prover.prove(pods, &wanted).await.unwrap_err();
        assert_eq!(err.code(), code, "{wanted:?}: {err}");
    }
    let _turn = prover.turn.acquire().await.unwrap();
    let pods = vec![candidate("a", "shop", "web")];
    assert_eq!(prover.prove(pods, &good).await.unwrap_err().code(), "BUSY");
}
