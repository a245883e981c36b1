//! Judges what was seen of a connection.
//!
//! Invariant: without evidence from the wire nothing is proven, whatever the proxy says of itself.

use super::proof::{Evidence, Proof};

/// How it was judged: a code, a sentence, and what to do.
struct Judged {
    code: String,
    verdict: String,
    next_step: String,
}

impl Judged {
    fn new(code: &str, verdict: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            verdict: verdict.into(),
            next_step: next_step.into(),
        }
    }
}

/// What follows from the evidence.
pub(super) fn judge(evidence: Evidence) -> Proof {
    let against = against(&evidence);
    let proven = against.is_none();
    let (code, verdict, next_step) = match against {
        Some(judged) => (judged.code, judged.verdict, Some(judged.next_step)),
        None => {
            let verdict =
                "the connection left the pod through the mesh, and nothing of it in the clear";
            ("PROVEN".to_owned(), verdict.to_owned(), None)
        }
    };
    Proof {
        proven,
        code,
        verdict,
        next_step,
        limits: limits(&evidence),
        evidence,
    }
}

/// The first thing that speaks against it, the worst first.
fn against(evidence: &Evidence) -> Option<Judged> {
    let Evidence {
        pod, to, app, wire, ..
    } = evidence;
    let repair = || {
        match &evidence.capture_problem {
        Some(problem) => format!(
            "The capture of the pod is damaged ({problem}): enroll the pod again, which repairs it, and find out who \
             changed it; `ztunnel pods` shows the state."
        ),
        None => "See with `ztunnel pods` whether the pod is captured, and with `ip rule` and `ip route show table all` \
                 in the pod who else routes there."
            .to_owned(),
    }
    };
    if wire.in_the_clear > 0 {
        let packets = count(wire.in_the_clear, "packet");
        let verdict = format!("it LEFT THE POD IN THE CLEAR: {packets} of it on the wire, to {to}");
        return Some(Judged::new("LEFT_IN_THE_CLEAR", verdict, repair()));
    }
    if app.forbidden {
        let verdict = "the connect hooks forbade it, since the capture of the pod is incomplete; nothing of it has left";
        return Some(Judged::new("FORBIDDEN", verdict, repair()));
    }
    if let Some(failed) = &evidence.failed {
        let why = failed.error.as_deref().unwrap_or(&failed.cause);
        let verdict = format!("the mesh refused it, {}: {why}", failed.reason);
        return Some(Judged::new(&failed.reason, verdict, &failed.next_step));
    }
    if !evidence.captured {
        return Some(match &app.refused {
            Some(error) => Judged::new(
                "CONNECT_FAILED",
                format!("the connect failed ({error}) and never came to the proxy"),
                repair(),
            ),
            None => Judged::new(
                "NOT_CAPTURED",
                "the connection never came to the proxy, though nothing of it was seen on the wire",
                repair(),
            ),
        });
    }
    let Some(proxy) = evidence.proxy.as_ref().filter(|proxy| proxy.connected) else {
        let next = "Try again with more time (--within); the log of this node has a line when the connection fails.";
        return Some(Judged::new(
            "TIMEOUT",
            "it was captured, and not connected in time",
            next,
        ));
    };
    if proxy.protocol == "TCP" {
        let via = proxy.via.map(|via| via.to_string()).unwrap_or_default();
        let verdict = format!(
            "it was captured, and goes on in plain TCP to {via}, since the mesh knows no tunnel there"
        );
        let next = format!(
            "Enroll the destination, if it should be in the mesh: `ztunnel workloads` shows the protocol that each \
             takes, and `ztunnel explain --from {pod} --to {to}` why."
        );
        return Some(Judged::new("PLAINTEXT", verdict, next));
    }
    if wire.text_seen > 0 {
        let seen = wire.text_seen_in.as_deref().unwrap_or_default();
        let packets = count(wire.text_seen, "packet");
        let verdict = format!("the text was seen IN THE CLEAR in {packets}, the first from {seen}");
        let next =
            "Send a text that nothing else in the pod sends, to know whether it was this one.";
        return Some(Judged::new("TEXT_IN_THE_CLEAR", verdict, next));
    }
    if wire.missed > 0 || wire.not_followed > 0 {
        let packets = count(wire.missed + wire.not_followed, "packet");
        let verdict = format!("{packets} passed that nobody had time to look at");
        return Some(Judged::new(
            "WIRE_TOO_BUSY",
            verdict,
            "Try again while the pod has less traffic.",
        ));
    }
    let data = |tunnel: &super::wire::Tunnel| {
        tunnel
            .out
            .records
            .application_data
            .min(tunnel.back.records.application_data)
    };
    let Some(tunnel) = evidence.tunnel().filter(|tunnel| data(tunnel) > 0) else {
        let verdict = "the proxy says that it went through a tunnel, and no record of TLS was seen on the wire";
        let next = "Try again; if it stays so, the pod has an interface that cannot be watched, or this is a bug: report \
                    it with the JSON output.";
        return Some(Judged::new("NOTHING_SEEN", verdict, next));
    };
    let not_tls = tunnel.out.records.not_tls_bytes + tunnel.back.records.not_tls_bytes;
    if not_tls > 0 {
        let verdict = format!(
            "{not_tls} bytes of the tunnel to {} are not TLS",
            tunnel.peer
        );
        let next = "Something between the proxy and the wire changes what it sends: look for it, and report it.";
        return Some(Judged::new("NOT_TLS", verdict, next));
    }
    if let Some(text) = evidence
        .text
        .as_ref()
        .filter(|text| proxy.bytes_sent < text.bytes)
    {
        let verdict = format!(
            "the tunnel took {} of the {} bytes of the text",
            proxy.bytes_sent, text.bytes
        );
        let next =
            "The other side may have ended the connection before it was sent: try without --send.";
        return Some(Judged::new("TEXT_NOT_CARRIED", verdict, next));
    }
    None
}

/// What nobody should read into it.
fn limits(evidence: &Evidence) -> Vec<String> {
    let mut limits = vec![
        "made by a process of the daemon's in the pod's network namespace, not in the pod's cgroup: what others \
         attached to that cgroup alone was not met"
            .to_owned(),
        "one TCP connection, now, by the way that was chosen for it; others may be decided otherwise".to_owned(),
    ];
    if evidence.text.is_none() {
        limits.push(
            "no bytes of an app were sent: with --send TEXT a line is, and looked for on the wire"
                .to_owned(),
        );
    }
    let there = evidence.decision.destination.as_ref();
    let through = evidence
        .proxy
        .as_ref()
        .is_some_and(|proxy| proxy.connected && proxy.protocol != "TCP");
    if through && there.is_none() {
        limits.push(
            "the peer is not the app's own node but somebody who passes it on (a waypoint or a gateway): what happens \
             behind it was not seen"
                .to_owned(),
        );
    }
    if let Some(problem) = &evidence.capture_problem {
        limits.push(format!("the capture of the pod is damaged: {problem}"));
    }
    limits
}

fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proof::{App, Failed, Proxied, Text};
    use super::super::records::Records;
    use super::super::wire::{Passed, Tunnel, Wire};
    use super::*;
    use crate::explain::{Explanation, Plan, Verdict};

    fn passed() -> Passed {
        Passed {
            packets: 2,
            bytes: 100,
            records: Records {
                application_data: 1,
                ..Records::default()
            },
        }
    }

    fn good() -> Evidence {
        let via = "10.0.0.2:15008".parse().unwrap();
        Evidence {
            pod: "shop/web".into(),
            to: "10.0.0.2:80".parse().unwrap(),
            capture_problem: None,
            captured: true,
            decision: Explanation {
                from: "shop/web".into(),
                identity: None,
                to: "10.0.0.2:80".into(),
                steps: Vec::new(),
                verdict: Verdict::Go(Plan {
                    to: "10.0.0.2:15008".into(),
                    tunnel: None,
                }),
                destination: None,
            },
            app: App {
                from: Some("10.0.0.1:40000".parse().unwrap()),
                ..App::default()
            },
            proxy: Some(Proxied {
                protocol: "HBONE".into(),
                connected: true,
                via: Some(via),
                identity: None,
                peer_identity: None,
                peer: None,
                peer_node: None,
                tls_version: None,
                tls_cipher: None,
                tls_key_exchange: None,
                bytes_sent: 9,
                bytes_received: 0,
            }),
            failed: None,
            wire: Wire {
                tunnels: vec![Tunnel {
                    peer: via,
                    opened: false,
                    out: passed(),
                    back: passed(),
                }],
                ..Wire::default()
            },
            text: Some(Text {
                bytes: 9,
                sent: true,
            }),
            took_milliseconds: 1,
        }
    }

    fn check(change: impl FnOnce(&mut Evidence), code: &str) {
        let mut evidence = good();
        change(&mut evidence);
        let proof = judge(evidence);
        assert_eq!(proof.code, code, "{proof:?}");
        assert_eq!(proof.proven, code == "PROVEN");
        assert_eq!(proof.next_step.is_none(), proof.proven);
    }

    fn proxy(evidence: &mut Evidence) -> &mut Proxied {
        evidence.proxy.as_mut().unwrap()
    }

    #[test]
    fn only_what_was_seen_on_the_wire_and_nowhere_else_is_proven() {
        check(|_| {}, "PROVEN");
        check(|it| it.wire.others_to_destination = 3, "PROVEN");
        check(|it| it.wire.in_the_clear = 1, "LEFT_IN_THE_CLEAR");
        check(|it| it.wire.tunnels.clear(), "NOTHING_SEEN");
        check(|it| it.wire.tunnels[0].peer.set_port(1), "NOTHING_SEEN");
        check(
            |it| it.wire.tunnels[0].back.records = Records::default(),
            "NOTHING_SEEN",
        );
        check(
            |it| it.wire.tunnels[0].out.records.not_tls_bytes = 1,
            "NOT_TLS",
        );
        check(|it| it.wire.text_seen = 1, "TEXT_IN_THE_CLEAR");
        check(|it| it.wire.missed = 1, "WIRE_TOO_BUSY");
        check(|it| it.wire.not_followed = 1, "WIRE_TOO_BUSY");
        check(|it| proxy(it).bytes_sent = 8, "TEXT_NOT_CARRIED");
        check(|it| proxy(it).connected = false, "TIMEOUT");
        check(|it| proxy(it).protocol = "TCP".into(), "PLAINTEXT");
        check(|it| it.proxy = None, "TIMEOUT");
        check(|it| it.captured = false, "NOT_CAPTURED");
        check(|it| it.app.forbidden = true, "FORBIDDEN");
        let failed = Failed {
            reason: "PEER_DENIED".into(),
            error: None,
            cause: "because".into(),
            next_step: "do".into(),
        };
        check(|it| it.failed = Some(failed), "PEER_DENIED");
        check(
            |it| (it.captured, it.app.refused) = (false, Some("no route".into())),
            "CONNECT_FAILED",
        );
    }

    #[test]
    fn a_leak_is_told_before_everything_else() {
        let leak = |it: &mut Evidence| {
            (it.wire.in_the_clear, it.captured, it.app.forbidden) = (1, false, true);
            it.capture_problem = Some("no rules".into());
        };
        check(leak, "LEFT_IN_THE_CLEAR");
        let mut evidence = good();
        leak(&mut evidence);
        let proof = judge(evidence);
        assert!(proof.next_step.unwrap().contains("no rules"));
        assert!(proof.limits.iter().any(|limit| limit.contains("no rules")));
    }
}
