//! Explanations as text: aligned, and no wider than a terminal.
//!
//! Names in them were chosen by whoever may create a service or a pod, so what a terminal would act on is left out.

use ztunnel_node::explain::reason::Reason;
use ztunnel_node::explain::{Explanation, Plan, Refused, Tunnel, Verdict, Why};

use super::page::Page;

/// What an explanation looks like.
pub(super) fn text(explanation: &Explanation) -> String {
    let Explanation {
        from,
        identity,
        to,
        steps,
        verdict,
        destination,
    } = explanation;
    let mut page = Page::default();
    page.labeled("FROM", from);
    page.labeled("AS", identity.as_deref().unwrap_or("plaintext, nobody"));
    page.labeled("TO", to);
    page.steps(steps);
    page.verdict(verdict);
    if let Some(destination) = destination {
        page.blank();
        let on = match &*destination.node {
            "" => String::new(),
            node => format!(" on node {node}"),
        };
        page.labeled(
            "THERE",
            &format!(
                "{}{on} decides for itself. By the policies that this node knows:",
                destination.workload
            ),
        );
        page.steps(&destination.steps);
        page.verdict(&destination.verdict);
    }
    page.text()
}

/// What one reason means.
pub(super) fn reason(reason: Reason) -> String {
    let mut page = Page::default();
    let failure = match reason.is_success() {
        true => ", not a failure",
        false => "",
    };
    page.labeled("REASON", &format!("{reason}{failure}"));
    page.labeled("CAUSE", reason.cause());
    page.labeled("NEXT", reason.next_step());
    page.text()
}

impl Page {
    fn steps(&mut self, steps: &[Why]) {
        for (number, Why { about, text }) in steps.iter().enumerate() {
            self.line(&format!("{:4}  {about:11}  ", number + 1), text);
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Go(plan) => self.plan(plan),
            Verdict::Permitted { app, policy } => {
                let by = match policy {
                    Some(policy) => format!(", by policy {policy}"),
                    None => String::new(),
                };
                self.labeled("VERDICT", &format!("permitted, to the app at {app}{by}"));
            }
            Verdict::LookUp { key } => {
                self.labeled("VERDICT", "not known yet");
                self.labeled(
                    "NEXT",
                    &format!(
                        "A connection would first ask the control plane for {key} (XDS_ON_DEMAND). Make one, and ask again."
                    ),
                );
            }
            Verdict::Refused(Refused {
                reason,
                detail,
                cause,
                next_step,
            }) => {
                self.labeled("VERDICT", &format!("refused, {reason}"));
                self.labeled("", detail);
                self.labeled("CAUSE", cause);
                self.labeled("NEXT", next_step);
            }
        }
    }

    fn plan(&mut self, Plan { to, tunnel }: &Plan) {
        let Some(tunnel) = tunnel else {
            return self.labeled("VERDICT", &format!("goes, by plain TCP to {to}"));
        };
        let Tunnel {
            connect,
            service,
            expected,
            inner,
        } = tunnel;
        self.labeled("VERDICT", &format!("goes, by HBONE to {to}"));
        let service = match service {
            Some(service) => format!(", for service {service}"),
            None => String::new(),
        };
        self.labeled("", &format!("CONNECT {connect}{service}"));
        self.labeled("", &format!("the peer must be {}", expected.join(" or ")));
        if !inner.is_empty() {
            let inner = inner.join(" or ");
            self.labeled("", &format!("and behind it, in a second tunnel, {inner}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::WIDTH;

    fn refused() -> Verdict {
        let reason = Reason::PolicyDenied;
        Verdict::Refused(Refused {
            reason: reason.code().into(),
            detail: "policy shop/no-client denies it".into(),
            cause: reason.cause().into(),
            next_step: reason.next_step().into(),
        })
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_or_has_what_it_would_act_on() {
        let long = "x".repeat(250);
        let hostile = format!("shop/\u{1b}[2J{long} and more words {long}\r\n");
        let explanation = Explanation {
            from: hostile.clone(),
            identity: Some(hostile.clone()),
            to: "10.0.0.1:80".into(),
            steps: vec![Why {
                about: "lookup".into(),
                text: hostile,
            }],
            verdict: refused(),
            destination: None,
        };
        let text = text(&explanation);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        assert!(text.matches('x').count() >= 250 * 6, "{text}");
    }

    #[test]
    fn every_reason_fits() {
        for code in Reason::ALL {
            let text = reason(*code);
            assert!(text.starts_with(&format!("REASON    {code}")), "{text}");
            assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        }
    }

    #[test]
    fn what_follows_is_aligned_with_what_it_belongs_to() {
        let mut page = Page::default();
        page.steps(&[Why {
            about: "endpoints".into(),
            text: format!("{} end", "word ".repeat(20)),
        }]);
        page.verdict(&refused());
        let text = page.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("word"), Some(19));
        assert_eq!(lines[1].find(|c| c != ' '), Some(19));
        assert_eq!(lines[2], "VERDICT   refused, POLICY_DENIED");
        assert_eq!(lines[3], "          policy shop/no-client denies it");
    }
}
