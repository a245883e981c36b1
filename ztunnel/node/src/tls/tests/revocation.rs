//! Revoked certificates: refused when they are shown, and cut off when they were taken before.

use std::future::poll_fn;
use std::task::Poll;

use rcgen::SerialNumber;
use rustls_pki_types::CertificateDer;

use super::*;

fn serial(number: u64) -> SerialNumber {
    SerialNumber::from(number)
}

fn lists(lists: &[Vec<u8>]) -> RevocationLists {
    RevocationLists::parse(pem(lists).as_bytes()).unwrap()
}

fn pem(lists: &[Vec<u8>]) -> String {
    use base64::Engine as _;
    let block = |list: &Vec<u8>| {
        let text = base64::prelude::BASE64_STANDARD.encode(list);
        format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
    };
    lists.iter().map(block).collect()
}

fn refuses_client(outcome: Outcome) {
    outcome.assert_server_refuses(Reason::PeerRevoked, AlertDescription::CertificateRevoked);
}

#[tokio::test]
async fn revoked_peers_are_refused_in_both_directions_until_the_list_forgets_them() {
    let ca = TestCa::new("one");
    let (here, there) = (
        Context::with_revocation(Options::default()),
        Context::default(),
    );
    let (web, db) = (ca.numbered(&here, WEB, 1), ca.numbered(&there, DB, 2));
    let out = || handshake(web.client_config(expected(&[DB])), db.server_config());
    let back = || handshake(db.client_config(expected(&[WEB])), web.server_config());
    // Verified once, so that it is known.
    out().await.assert_accepted(DB, WEB);
    back().await.assert_accepted(WEB, DB);

    here.set_revocation_lists(lists(&[ca.revoke(&[serial(3), serial(2)])]));
    out()
        .await
        .assert_client_refuses(Reason::PeerRevoked, AlertDescription::CertificateRevoked);
    refuses_client(back().await);

    here.set_revocation_lists(lists(&[ca.revoke(&[serial(3)])]));
    out().await.assert_accepted(DB, WEB);
    back().await.assert_accepted(WEB, DB);
}

#[tokio::test]
async fn whole_chain_counts() {
    let ca = TestCa::new("one");
    let (west, context) = (ca.intermediate("west"), Context::default());
    let (web, db) = (west.credential(WEB), ca.credential_in(&context, DB));
    let call = || handshake(web.client_config(expected(&[DB])), db.server_config());
    context.set_revocation_lists(lists(&[ca.revoke(&[])]));
    call().await.assert_accepted(DB, WEB);
    context.set_revocation_lists(lists(&[ca.revoke(&[SerialNumber::from_slice(b"west")])]));
    refuses_client(call().await);
}

#[tokio::test]
async fn certificates_that_no_list_speaks_of_are_accepted() {
    let (ca, other) = (TestCa::new("one"), TestCa::new("two"));
    let context = Context::default();
    let (web, db) = (
        ca.numbered(&Context::default(), WEB, 1),
        ca.credential_in(&context, DB),
    );
    // The other CA has a certificate of that number, too.
    context.set_revocation_lists(lists(&[other.revoke(&[serial(1)])]));
    handshake(web.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_accepted(DB, WEB);
}

/// After a rotation, Istio's CA has the name it had before.
#[tokio::test]
async fn list_of_a_ca_with_the_same_name_and_another_key_says_nothing() {
    let (former, present) = (TestCa::new("one"), TestCa::new("one"));
    let context = Context::default();
    let bundle = format!("{}{}", former.root, present.root);
    let (key, mut chain) = present.issue(Leaf::uris(&[DB]));
    *chain.last_mut().unwrap() = bundle.clone();
    let db = Credential::from_chain(&DB.parse().unwrap(), &key, &chain, &context).unwrap();
    let client = |ca: &TestCa, number| {
        let mut leaf = Leaf::uris(&[WEB]);
        leaf.serial = Some(serial(number));
        let (key, mut chain) = ca.issue(leaf);
        *chain.last_mut().unwrap() = bundle.clone();
        let uri = WEB.parse().unwrap();
        Credential::from_chain(&uri, &key, &chain, &Context::default())
            .unwrap()
            .client_config(expected(&[DB]))
    };
    let (of_former, of_present) = (former.revoke(&[serial(1)]), present.revoke(&[serial(2)]));
    for lists_in_force in [
        vec![of_former.clone()],
        vec![of_former.clone(), of_present.clone()],
        vec![of_present.clone(), of_former.clone()],
    ] {
        context.set_revocation_lists(lists(&lists_in_force));
        let both = lists_in_force.len() == 2;
        for (ca, number, revoked) in [
            (&former, 1, true),
            (&former, 2, false),
            (&present, 1, false),
            (&present, 2, both),
        ] {
            let outcome = handshake(client(ca, number), db.server_config()).await;
            match revoked {
                true => refuses_client(outcome),
                false => drop(outcome.assert_accepted(DB, WEB)),
            }
        }
    }
}

#[test]
fn files_that_hold_lists_and_files_that_do_not() {
    let ca = TestCa::new("one");
    let list = ca.revoke(&[serial(1), serial(2)]);
    let count = |file: &[u8]| {
        let lists = RevocationLists::parse(file).map_err(|err| err.to_string())?;
        Ok::<_, String>((lists.len(), lists.revoked()))
    };
    assert_eq!(count(b""), Ok((0, 0)));
    assert_eq!(count(b" \n"), Ok((0, 0)));
    assert_eq!(count(&list), Ok((1, 2)));
    let one = pem(std::slice::from_ref(&list));
    assert_eq!(count(one.as_bytes()), Ok((1, 2)));
    let mixed = format!("# ours\n{one}{}\n{one}", ca.root);
    assert_eq!(count(mixed.as_bytes()), Ok((2, 4)));

    let error = |file: &[u8]| count(file).unwrap_err();
    let none = "neither a revocation list in DER nor any block `X509 CRL` in PEM";
    assert_eq!(error(b"nothing"), none);
    assert_eq!(error(ca.root.as_bytes()), none);
    assert_eq!(
        error(&list[..list.len() - 1]),
        "revocation list 0 cannot be read"
    );
    let second = one.clone() + &pem(&[vec![0x30, 0]]);
    assert_eq!(error(second.as_bytes()), "revocation list 1 cannot be read");
    assert_eq!(
        error(b"-----BEGIN X509 CRL-----\n%\n-----END X509 CRL-----\n"),
        "not readable as PEM"
    );
    assert_eq!(
        error(one.repeat(257).as_bytes()),
        "more than 256 revocation lists"
    );
}

/// What a peer with this credential shows.
fn shown(ca: &TestCa, uri: &str, number: u64) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject as _;
    let mut leaf = Leaf::uris(&[uri]);
    leaf.serial = Some(serial(number));
    let (_, chain) = ca.issue(leaf);
    vec![CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap()]
}

async fn is_revoked(watch: &mut RevocationWatch) -> bool {
    poll_fn(|cx| Poll::Ready(watch.poll_revoked(cx).is_ready())).await
}

#[tokio::test]
async fn live_sessions_with_revoked_peers_end_and_no_others() {
    let ca = TestCa::new("one");
    let context = Context::with_revocation(Options::default());
    let own = ca.credential_in(&context, WEB);
    let (bad, good) = (shown(&ca, DB, 1), shown(&ca, DB, 2));
    let mut sessions = [
        own.watch_server(&bad).unwrap(),
        own.watch_client(&bad).unwrap(),
        own.watch_server(&good).unwrap(),
        own.watch_client(&good).unwrap(),
    ];
    // A root that is dropped ends nobody, and protects nobody.
    let other = TestCa::new("two");
    let (key, mut chain) = ca.issue(Leaf::uris(&[WEB]));
    *chain.last_mut().unwrap() = other.root.clone();
    let renewed = Credential::from_chain(&WEB.parse().unwrap(), &key, &chain, &context).unwrap();
    drop(own);
    let gone = renewed.watch_server(&bad).unwrap();
    drop(gone);

    assert_eq!(context.set_revocation_lists(lists(&[ca.revoke(&[])])), 0);
    assert_eq!(
        context.set_revocation_lists(lists(&[ca.revoke(&[serial(1)])])),
        2
    );
    for (number, ends) in [true, true, false, false].into_iter().enumerate() {
        assert_eq!(is_revoked(&mut sessions[number]).await, ends, "{number}");
        assert!(!is_revoked(&mut sessions[number]).await, "told once");
    }
    assert_eq!(
        context.set_revocation_lists(lists(&[ca.revoke(&[serial(1)])])),
        0
    );
}

#[tokio::test]
async fn session_that_begins_while_lists_change_is_judged_by_the_new_ones() {
    let ca = TestCa::new("one");
    let context = Context::with_revocation(Options::default());
    let bad = shown(&ca, DB, 1);
    // The moment between the handshake and the watch.
    let trusted = trust::Trusted {
        anchors: vec![ca.anchor()],
        ..trust::Trusted::default()
    };
    let before = verify::PeerRoots::new(
        Arc::new(arc_swap::ArcSwap::from_pointee(trusted)),
        context.provider().signature_verification_algorithms,
    );
    context.set_revocation_lists(lists(&[ca.revoke(&[serial(1)])]));
    let error = context.watch(&bad, &before, verify::Usage::Server);
    assert_eq!(error.unwrap_err().reason(), Reason::PeerRevoked);
}

#[tokio::test]
async fn node_without_lists_watches_nobody() {
    let ca = TestCa::new("one");
    let own = ca.credential(WEB);
    let mut watch = own.watch_server(&shown(&ca, DB, 1)).unwrap();
    assert!(!is_revoked(&mut watch).await);
}
