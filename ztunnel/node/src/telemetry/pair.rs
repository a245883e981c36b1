//! Who talks to whom: the labels of Istio's traffic metrics, in their order.

use std::borrow::Cow;
use std::fmt::Write as _;

use ztunnel_mesh::name::Identity;
use ztunnel_mesh::service::Service;

use super::Direction;
use super::party::{Named, Party};

/// All that tells apart two series of traffic, but for the flags.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    pub direction: Direction,
    pub source: &'a Party,
    /// Proved by TLS.
    pub source_identity: Option<&'a Identity>,
    pub destination: &'a Party,
    pub destination_identity: Option<&'a Identity>,
    pub service: Option<&'a Service>,
    pub mutual_tls: bool,
}

/// Labels of a series as they are exposed, in two parts with the flags between them.
#[derive(Debug)]
pub(super) struct Labels {
    text: Box<str>,
    flags_at: usize,
}

impl Labels {
    pub(super) fn of(pair: &Pair<'_>) -> Self {
        let mut text = Text(String::with_capacity(1024));
        let destination = pair.destination.named();
        let source = pair.source.named();
        text.label("reporter", pair.direction.reporter().as_str());
        text.party("source", &source, pair.source_identity);
        let service = pair.service;
        text.label(
            "destination_service",
            service.map_or("", |s| &s.key.hostname),
        );
        text.label(
            "destination_service_namespace",
            service.map_or("", |s| &s.key.namespace),
        );
        text.label("destination_service_name", service.map_or("", |s| &s.name));
        text.party("destination", &destination, pair.destination_identity);
        text.rest(pair.mutual_tls, &source, &destination)
    }

    /// Of the series for all pairs that there is no room for.
    pub(super) fn of_overflow(direction: Direction, mutual_tls: bool) -> Self {
        const OVERFLOW: &str = "overflow";
        let all = Named {
            name: OVERFLOW,
            workload: OVERFLOW,
            namespace: OVERFLOW,
            canonical_name: OVERFLOW,
            canonical_revision: OVERFLOW,
            app: OVERFLOW,
            cluster: OVERFLOW,
            region: OVERFLOW,
            zone: OVERFLOW,
        };
        let mut text = Text(String::with_capacity(1024));
        text.label("reporter", direction.reporter().as_str());
        text.party("source", &all, None);
        for label in [
            "destination_service",
            "destination_service_namespace",
            "destination_service_name",
        ] {
            text.label(label, OVERFLOW);
        }
        text.party("destination", &all, None);
        text.rest(mutual_tls, &all, &all)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Names and values, in their order.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let mut rest = &*self.text;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_once("=\"")?;
            let (mut escaped, mut end) = (false, after.len());
            for (at, byte) in after.bytes().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => {
                        end = at;
                        break;
                    }
                    _ => {}
                }
            }
            let (value, after) = after.split_at(end);
            rest = after.trim_start_matches(['"', ',']);
            Some((name, unescaped(value)))
        })
    }

    /// What stands before the flags, and after them.
    pub(super) fn parts(&self) -> (&str, &str) {
        self.text.split_at(self.flags_at)
    }
}

struct Text(String);

impl Text {
    fn party(&mut self, side: &str, named: &Named<'_>, identity: Option<&Identity>) {
        self.side(side, "workload", named.workload);
        self.side(side, "canonical_service", named.canonical_name);
        self.side(side, "canonical_revision", named.canonical_revision);
        self.side(side, "workload_namespace", named.namespace);
        match identity {
            // Its parts come from a certificate: only those of the form that was parsed.
            Some(identity) => self.side(side, "principal", &identity.to_string()),
            None => self.side(side, "principal", ""),
        }
        self.side(side, "app", named.app);
        self.side(side, "version", named.canonical_revision);
        self.side(side, "cluster", named.cluster);
    }

    fn rest(mut self, mutual_tls: bool, source: &Named<'_>, destination: &Named<'_>) -> Labels {
        self.label("request_protocol", "tcp");
        let flags_at = self.0.len();
        let policy = if mutual_tls { "mutual_tls" } else { "" };
        self.label("connection_security_policy", policy);
        self.side("source", "region", source.region);
        self.side("source", "zone", source.zone);
        self.side("destination", "region", destination.region);
        self.side("destination", "zone", destination.zone);
        self.0.pop();
        Labels {
            text: self.0.into(),
            flags_at,
        }
    }

    fn side(&mut self, side: &str, name: &str, value: &str) {
        self.0.push_str(side);
        self.0.push('_');
        self.label(name, value);
    }

    fn label(&mut self, name: &str, value: &str) {
        let value = if value.is_empty() { "unknown" } else { value };
        self.0.push_str(name);
        self.0.push_str("=\"");
        for character in value.chars() {
            // What the exposition format gives a meaning to.
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => {
                    // Writing to a string does not fail.
                    let _ = self.0.write_char(other);
                }
            }
        }
        self.0.push_str("\",");
    }
}

/// A value as it was before the exposition format made something else of it.
fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => break,
            },
            other => other,
        });
    }
    Cow::Owned(text)
}
