//! The rounds in which many workloads change while requests are watched.
//!
//! In each round, a window without a push and one with it, in turn the first; in each window the same requests without
//! any mesh and through ours, at the same time: what the machine's scheduler does to one it does to the other. These
//! rounds come last, when memory has been measured, since they change it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::load::{LoadReport, RunningLoad};
use lab::{Crowd, Doing as _, LabError, Result};
use nix::unistd::gettid;
use serde::Serialize;

use crate::contestants::{Arena, Who};
use crate::measure::Usage;
use crate::plan::{Plan, Scenario};
use crate::rounds::answered;

/// How long the first push may take, which is not measured.
const FIRST: Duration = Duration::from_secs(60);
/// How long is watched at least after the daemons have said that they have it: they still drop what they had before.
const AFTERWARDS: Duration = Duration::from_millis(300);
const NODES: [&str; 2] = ["node1", "node2"];

/// Requests of one contestant in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Pushed {
    pub(crate) round: usize,
    pub(crate) who: Who,
    pub(crate) workloads: usize,
    /// Without a push.
    pub(crate) quiet: LoadReport,
    /// While the workloads were pushed.
    pub(crate) during: LoadReport,
    /// Seconds from the announcement until both daemons had said that they have it all.
    pub(crate) took: f64,
    /// Processors that were taken away by the machine below during the push.
    pub(crate) stolen: f64,
}

/// Pushes to the daemons of an arena.
pub(crate) struct Pushes<'a> {
    arena: &'a Arena,
    plan: &'a Plan,
    workloads: usize,
    /// Two revisions: each is what changes the other.
    crowds: [Crowd; 2],
    _low: LowPriority,
}

impl<'a> Pushes<'a> {
    /// Encodes what is to be pushed, and lets the daemons have one revision of it.
    pub(crate) fn prepare(arena: &'a Arena, plan: &'a Plan, workloads: usize) -> Result<Self> {
        let pushes = Self {
            arena,
            plan,
            workloads,
            crowds: [0, 1].map(|revision| Crowd::new(workloads, revision)),
            _low: LowPriority::of_the_control_plane()?,
        };
        let plane = arena.control_plane();
        plane.announce_crowd(&pushes.crowds[0]);
        pushes.taken(FIRST)?;
        Ok(pushes)
    }

    /// Waits until both daemons have what was announced, and have it as it was meant.
    fn taken(&self, limit: Duration) -> Result<()> {
        let plane = self.arena.control_plane();
        plane.settled(&NODES, limit)?;
        match plane.answers().into_iter().find_map(|a| a.rejected) {
            Some(why) => Err(LabError::new(format!("a daemon rejected it: {why}"))),
            None => Ok(()),
        }
    }

    pub(crate) fn round(&self, round: usize) -> Result<Vec<Pushed>> {
        let crowd = &self.crowds[(round + 1) % 2];
        let (quiet, during) = if round.is_multiple_of(2) {
            let quiet = self.window(None)?;
            (quiet, self.window(Some(crowd))?)
        } else {
            let during = self.window(Some(crowd))?;
            (self.window(None)?, during)
        };
        let both = quiet.loads.into_iter().zip(during.loads);
        Ok(both
            .map(|((who, quiet), (_, load))| Pushed {
                round,
                who,
                workloads: self.workloads,
                quiet,
                during: load,
                took: during.took,
                stolen: during.stolen,
            })
            .collect())
    }

    fn window(&self, push: Option<&Crowd>) -> Result<Window> {
        let began = Usage::now(&[])?;
        let mut running: Vec<(Who, RunningLoad)> = Vec::new();
        let mut ends = None;
        for contestant in &self.arena.contestants {
            if matches!(contestant.who, Who::NoMesh | Who::Ours) {
                let load = Scenario::Push(self.workloads).load(contestant.to, self.plan);
                running.push((contestant.who, contestant.client.start_load(&load)?));
                ends.get_or_insert_with(|| Instant::now() + load.measure);
            }
        }
        let announced = Instant::now();
        if let Some(crowd) = push {
            self.arena.control_plane().announce_crowd(crowd);
            self.taken(self.plan.push_window)?;
            if ends.is_none_or(|ends| Instant::now() + AFTERWARDS > ends) {
                return Err(LabError::new(format!(
                    "the push took {:?}: too long to be watched to its end",
                    announced.elapsed()
                )));
            }
        }
        let took = announced.elapsed().as_secs_f64();
        for (_, load) in &mut running {
            load.measured()?;
        }
        let ended = Usage::now(&[])?;
        let loads = running.into_iter().map(|(who, load)| {
            let report = load.report()?;
            answered(&report)?;
            Ok((who, report))
        });
        Ok(Window {
            loads: loads.collect::<Result<_>>()?,
            took,
            stolen: (ended.steal - began.steal) / (ended.at - began.at).as_secs_f64(),
        })
    }
}

struct Window {
    loads: Vec<(Who, LoadReport)>,
    took: f64,
    stolen: f64,
}

/// The lab's control plane and who waits for it run only where nobody else wants to, until this is dropped: they are
/// not what is measured, and in a cluster they are elsewhere.
struct LowPriority {
    threads: Vec<i32>,
}

impl LowPriority {
    fn of_the_control_plane() -> Result<Self> {
        let mut threads = vec![gettid().as_raw()];
        let tasks = fs::read_dir("/proc/self/task").doing(|| "list our threads")?;
        for task in tasks.flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let id = task.file_name();
            let id: Option<i32> = id.to_str().and_then(|id| id.parse().ok());
            threads.extend(id.filter(|_| name.trim() == "control-plane"));
        }
        if threads.len() < 2 {
            return Err(LabError::new("the control plane has no thread here"));
        }
        let low = Self { threads };
        low.schedule("--idle")?;
        Ok(low)
    }

    fn schedule(&self, policy: &str) -> Result<()> {
        for thread in &self.threads {
            let done = Command::new("chrt")
                .args([policy, "--pid", "0", &thread.to_string()])
                .output()
                .doing(|| "start chrt (is util-linux installed?)")?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                return Err(LabError::new(format!("chrt {policy}: {said}")));
            }
        }
        Ok(())
    }
}

impl Drop for LowPriority {
    fn drop(&mut self) {
        // Where that fails they stay last in the queue, which harms nobody.
        drop(self.schedule("--other"));
    }
}
