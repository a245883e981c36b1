//! Certificates from outside: what a CA answers, what a file of revocation lists holds, what a peer shows.
//!
//! What must hold: nothing panics; a credential that comes about is for the identity that was asked for, is to be
//! renewed before it ends, and makes both of its TLS configurations; lists that parse name no more certificates than
//! fit into the file; an identity that is found in a certificate is one that survives being written and read.
//!
//! An input is a byte that chooses what it is, and then fields, each with its length in two bytes (big-endian) in
//! front; the last one may be cut short. Certificates are DER, so that what the fuzzer changes is not lost in base64;
//! an odd number in place of the even one takes the text of the PEM itself.
#![no_main]

use std::sync::LazyLock;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;
use ztunnel_mesh::name::Identity;
use ztunnel_node::tls::{Context, Credential, PrivateKey, RevocationLists, peer_identity};

/// One for all inputs, as a node has: what one leaves behind, the next meets.
static CONTEXT: LazyLock<Context> = LazyLock::new(Context::default);

fuzz_target!(|input: &[u8]| {
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    let is_text = kind % 2 == 1;
    match kind / 2 {
        0 => chain(&mut Fields(rest), is_text),
        1 => lists(&armor(rest, "X509 CRL", is_text)),
        2 => peer(&mut Fields(rest)),
        _ => {}
    }
});

/// Key, identity, leaf, intermediates, and last the roots, one field each.
fn chain(fields: &mut Fields<'_>, is_text: bool) {
    let (Some(key), Some(identity)) = (fields.next(), fields.next()) else {
        return;
    };
    let Ok(identity) = String::from_utf8_lossy(identity).parse::<Identity>() else {
        return;
    };
    let key = PrivateKey::from_pkcs8(Zeroizing::new(key.to_vec()));
    let elements: Vec<String> = fields
        .map(|element| {
            let text = armor(element, "CERTIFICATE", is_text);
            String::from_utf8_lossy(&text).into_owned()
        })
        .collect();
    let Ok(credential) = Credential::from_chain(&identity, &key, &elements, &CONTEXT) else {
        return;
    };
    assert_eq!(credential.identity(), &identity);
    assert!(credential.refresh_at() <= credential.not_after());
    drop(credential.client_config([identity].into()));
    drop(credential.server_config());
}

fn lists(file: &[u8]) {
    let Ok(lists) = RevocationLists::parse(file) else {
        return;
    };
    // A serial number and a time take more than this.
    assert!(lists.revoked() <= file.len() / 16);
    assert!(!lists.is_empty() || lists.revoked() == 0);
    CONTEXT.set_revocation_lists(lists);
}

/// A chain as it is shown, leaf first.
fn peer(fields: &mut Fields<'_>) {
    let certs: Vec<_> = fields.map(CertificateDer::from).collect();
    if let Some(identity) = peer_identity(&certs) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let length = rest.len().min(u16::from_be_bytes(*length).into());
        let (field, rest) = rest.split_at(length);
        self.0 = rest;
        Some(field)
    }
}

fn armor(der: &[u8], label: &str, is_text: bool) -> Vec<u8> {
    if is_text {
        return der.to_vec();
    }
    let text = BASE64_STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}
