//! How things stand with the control plane, for those who look at a node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use ztunnel_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

use super::convert::ConvertError;
use crate::task::breath;

/// So many rejected resources are remembered.
const MOST_REJECTED: usize = 1000;
/// So much is remembered of a name, and of what is wrong.
const LONGEST: usize = 300;

/// Written by whoever follows the control plane. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Link(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    address: String,
    /// Of the present stream.
    connected: Option<Instant>,
    /// Since when there is no stream.
    lost: Option<Instant>,
    /// What the last attempt failed with.
    problem: Option<String>,
    pushed: Option<Instant>,
    /// By name: what was wrong with it when it came last.
    rejected: BTreeMap<String, String>,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    pub address: String,
    /// None while there is no stream.
    pub connected_seconds: Option<u64>,
    /// None while there is one.
    pub lost_seconds: Option<u64>,
    /// Why there is none.
    pub problem: Option<String>,
    /// None when there was no push yet.
    pub last_push_seconds: Option<u64>,
    /// How many resources are not in force as the control plane wants them, at most 1000.
    pub rejected: usize,
    /// Some of them, and what is wrong with each.
    pub rejected_such_as: Vec<(String, String)>,
}

impl Link {
    pub(super) fn begin(&self, address: &str) {
        let mut state = self.state();
        address.clone_into(&mut state.address);
        state.lost = Some(Instant::now());
    }

    pub(super) fn connected(&self) {
        let mut state = self.state();
        state.connected = Some(Instant::now());
        (state.lost, state.problem) = (None, None);
        // What is still wrong comes again.
        state.rejected.clear();
    }

    pub(super) fn lost(&self, problem: &str) {
        let mut state = self.state();
        state.connected = None;
        state.lost.get_or_insert_with(Instant::now);
        state.problem = Some(short(problem));
    }

    /// A response has come: what was wrong with what is in it does not count any more.
    pub(super) fn received(&self, response: &DeltaDiscoveryResponse) {
        let mut state = self.state();
        state.pushed = Some(Instant::now());
        if state.rejected.is_empty() {
            return;
        }
        let names = response.resources.iter().map(|resource| &resource.name);
        for name in names.chain(&response.removed_resources) {
            state.rejected.remove(&short(name));
            breath::step();
        }
    }

    pub(super) fn rejected(&self, rejected: &[(String, ConvertError)]) {
        let mut state = self.state();
        for (name, error) in rejected {
            if state.rejected.len() == MOST_REJECTED {
                return;
            }
            state
                .rejected
                .insert(short(name), short(&error.to_string()));
        }
    }

    /// How things stand now.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        const SHOWN: usize = 10;
        let state = self.state();
        let seconds = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs());
        let such_as = state.rejected.iter().take(SHOWN);
        LinkStatus {
            address: state.address.clone(),
            connected_seconds: seconds(state.connected),
            lost_seconds: seconds(state.lost),
            problem: state.problem.clone(),
            last_push_seconds: seconds(state.pushed),
            rejected: state.rejected.len(),
            rejected_such_as: such_as.map(|(a, b)| (a.clone(), b.clone())).collect(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST)].to_owned()
}

#[cfg(test)]
mod tests {
    use ztunnel_proto::envoy::service::discovery::v3::Resource;

    use super::*;

    fn push(link: &Link, name: &str, rejected: bool) {
        let resource = Resource {
            name: name.into(),
            ..Resource::default()
        };
        link.received(&DeltaDiscoveryResponse {
            resources: vec![resource],
            ..DeltaDiscoveryResponse::default()
        });
        if rejected {
            link.rejected(&[(name.into(), ConvertError::NoContent)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_counts_until_it_comes_right() {
        let link = Link::default();
        link.begin("https://istiod:15012");
        link.lost("connection refused");
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        link.lost("connection reset");
        let status = link.status();
        assert_eq!(
            (status.connected_seconds, status.lost_seconds),
            (None, Some(3))
        );
        assert_eq!(status.problem.as_deref(), Some("connection reset"));
        link.connected();
        push(&link, "a", true);
        push(&link, "b", true);
        push(&link, "b", true);
        let status = link.status();
        assert_eq!(
            (status.connected_seconds, status.lost_seconds),
            (Some(0), None)
        );
        assert_eq!((status.rejected, status.problem), (2, None));
        push(&link, "b", false);
        assert_eq!(link.status().rejected_such_as[0].0, "a");
        let removed = DeltaDiscoveryResponse {
            removed_resources: vec!["a".into()],
            ..DeltaDiscoveryResponse::default()
        };
        link.received(&removed);
        assert_eq!(link.status().rejected, 0);
        for name in 0..2 * MOST_REJECTED {
            push(&link, &format!("{name}{}", "é".repeat(LONGEST)), true);
        }
        assert_eq!(link.status().rejected, MOST_REJECTED);
    }
}
