//! One channel to the control plane, shared by many calls, and made anew when its roots have changed.
//!
//! Invariants: calls never wait for files and never fail because of one that cannot be read *any more*: roots that
//! were good once are used until there are better ones. What is wrong with a file is said once, and it is tried again.
//! A channel that was made with other roots than those in force carries no further call.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tonic::transport::Channel;
use tracing::{info, warn};

use super::{ControlPlaneError, Endpoint, RootSource, Roots};
use crate::task::{FileWatch, Pace, Shutdown};
use crate::telemetry::chain;

/// See the module.
#[derive(Debug)]
pub struct SharedChannel {
    endpoint: Endpoint,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    /// The latest roots that a channel can be made with.
    roots: Option<Roots>,
    /// What was said about the file last, not to be said again.
    complaint: Option<String>,
}

impl SharedChannel {
    /// A channel to `endpoint` that is made when it is first needed.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            state: Mutex::default(),
        }
    }

    /// Where it leads.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The channel, for one call. When there is none, one is made with the roots of this moment.
    ///
    /// # Errors
    /// When there are no good roots and never were, or the settings are unusable.
    pub fn get(&self) -> Result<Channel, ControlPlaneError> {
        let mut state = self.state();
        if let Some(channel) = &state.channel {
            return Ok(channel.clone());
        }
        let channel = match self
            .endpoint
            .roots
            .read()
            .and_then(|roots| self.make(roots))
        {
            Ok((roots, channel)) => {
                state.roots = Some(roots);
                state.complaint = None;
                channel
            }
            Err(error) => {
                let Some(roots) = state.roots.clone() else {
                    return Err(error);
                };
                state.complain(&error);
                self.endpoint.channel_with(&roots)?
            }
        };
        state.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Makes the next call begin with a new connection: this one may be dead without anybody having noticed, since
    /// HTTP/2 pings are slower than the deadlines of calls.
    pub fn reconnect(&self) {
        self.state().channel = None;
    }

    /// Watches the file of the roots until `shutdown`, and lets go of the channel when they have changed.
    pub async fn follow_roots(&self, pace: Pace, shutdown: Shutdown) {
        let RootSource::File(path) = &self.endpoint.roots else {
            return;
        };
        let mut watch = FileWatch::new([path.clone()], pace);
        loop {
            tokio::select! {
                () = shutdown.started() => return,
                () = watch.changed() => {}
            }
            if !self.reload() {
                watch.forget();
            }
        }
    }

    /// Reads the roots again, and says whether they were good.
    fn reload(&self) -> bool {
        let read = self
            .endpoint
            .roots
            .read()
            .and_then(|roots| self.make(roots));
        let mut state = self.state();
        match read {
            Ok((roots, channel)) => {
                state.complaint = None;
                if state.roots.as_ref() != Some(&roots) {
                    info!(?roots, "control plane roots reloaded");
                    state.roots = Some(roots);
                    // Connects when it is used.
                    state.channel = Some(channel);
                }
                true
            }
            Err(error) => {
                state.complain(&error);
                false
            }
        }
    }

    fn make(&self, roots: Roots) -> Result<(Roots, Channel), ControlPlaneError> {
        let channel = self.endpoint.channel_with(&roots)?;
        Ok((roots, channel))
    }

    #[cfg(test)]
    pub(super) fn complaint(&self) -> Option<String> {
        self.state().complaint.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn complain(&mut self, error: &ControlPlaneError) {
        let reason = chain(error);
        if self.complaint.as_ref() != Some(&reason) {
            warn!(
                reason,
                "control plane roots not reloaded; those from before stay in use"
            );
            self.complaint = Some(reason);
        }
    }
}
