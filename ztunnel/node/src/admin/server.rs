//! What operators ask, on loopback only.
//!
//! Only a POST changes anything, and nobody waits for what it changes: the end of the daemon is queued.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::sync::mpsc;

use super::config_dump::ConfigDump;
use super::http::{HttpListener, Limits, Request, Response};
use super::page::Page;
use super::profile::{self, Profiles};
use super::{guard, logging, plain};
use crate::task::{Shutdown, TaskGroup};
use crate::telemetry::LogLevels;

/// Where operators ask unless the configuration says otherwise.
pub const ADMIN_PORT: u16 = 15000;

/// A dump of a large mesh goes through somebody's tunnel to the cluster, and a profile takes as long as was asked for.
const LIMITS: Limits = Limits {
    request: Duration::from_secs(2),
    answer: Duration::from_secs(profile::MOST_SECONDS + 60),
    finish: true,
};

const PROFILES: &str = "/debug/pprof/";

/// What can be asked for.
pub struct Admin {
    pub dump: ConfigDump,
    pub page: Page,
    pub levels: LogLevels,
    /// Told when the daemon is asked to end.
    pub quit: mpsc::Sender<()>,
    pub profiles: Profiles,
}

impl Admin {
    /// Answers requests at `listener` until shutdown; what was asked before is answered after it.
    pub fn serve(self, listener: HttpListener, shutdown: Shutdown, tasks: &TaskGroup) {
        let this = Arc::new(self);
        let answer = move |request| {
            let this = Arc::clone(&this);
            async move { this.answer(&request).await }
        };
        listener.serve_within(LIMITS, answer, shutdown, tasks);
    }

    async fn answer(&self, request: &Request) -> Response {
        if let Some(why) = guard::refusal(request) {
            return plain(StatusCode::FORBIDDEN, format!("{why}\n"));
        }
        match request.uri().path() {
            "/" => self.page.answer(),
            "/overview" if request.method() == Method::GET => self.page.overview().await,
            "/overview" => plain(StatusCode::METHOD_NOT_ALLOWED, ""),
            "/config_dump" => self.dump.answer().await,
            "/logging" => logging::answer(request, &self.levels),
            "/quitquitquit" if request.method() == Method::POST => {
                // A second one finds the first one there.
                let _ = self.quit.try_send(());
                plain(StatusCode::OK, "shutdown now\n")
            }
            "/quitquitquit" => plain(StatusCode::METHOD_NOT_ALLOWED, ""),
            path if path.starts_with(PROFILES) => {
                self.profiles.answer(request, &path[PROFILES.len()..]).await
            }
            _ => plain(StatusCode::NOT_FOUND, ""),
        }
    }
}
