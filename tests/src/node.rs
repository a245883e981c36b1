//! A node: a place that can have a daemon.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::control_plane::ControlPlane;
use crate::daemon::{self, BPF_DIR, Daemon, DaemonOptions};
use crate::dir::LabDir;
use crate::error::{Doing, LabError, Result};
use crate::fingerprint::Fingerprint;
use crate::place::Place;
use crate::sync::lock;

/// A node of the lab.
pub struct Node {
    place: Place,
    control_plane: Arc<ControlPlane>,
    lab_dir: Arc<LabDir>,
    daemon: Mutex<Option<Daemon>>,
    before: Mutex<Option<Fingerprint>>,
}

impl Node {
    pub(crate) fn new(
        place: Place,
        control_plane: Arc<ControlPlane>,
        lab_dir: Arc<LabDir>,
    ) -> Self {
        Self {
            place,
            control_plane,
            lab_dir,
            daemon: Mutex::new(None),
            before: Mutex::new(None),
        }
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it is already running, ends, or does not answer in time.
    pub fn start_daemon(&self) -> Result<()> {
        self.start_daemon_with(&DaemonOptions::default())
    }

    /// As [`start_daemon`](Self::start_daemon), with other settings.
    ///
    /// # Errors
    /// As [`start_daemon`](Self::start_daemon).
    pub fn start_daemon_with(&self, options: &DaemonOptions) -> Result<()> {
        let mut daemon = lock(&self.daemon);
        if daemon.is_some() {
            return Err(LabError::new(format!(
                "{} has a daemon already",
                self.name()
            )));
        }
        let mut before = lock(&self.before);
        if before.is_none() {
            *before = Some(self.fingerprint()?);
        }
        let started = Daemon::start(&self.place, &self.control_plane, options)?;
        if let Some(cgroup) = started.cgroup() {
            self.lab_dir.note_cgroup(cgroup)?;
        }
        *daemon = Some(started);
        Ok(())
    }

    /// Does something with the running daemon.
    ///
    /// # Errors
    /// When there is none.
    pub fn daemon<T>(&self, job: impl FnOnce(&mut Daemon) -> Result<T>) -> Result<T> {
        let mut daemon = lock(&self.daemon);
        let daemon = daemon.as_mut().ok_or_else(|| self.no_daemon())?;
        job(daemon)
    }

    /// `ztunnel stop`, and the end of the daemon.
    ///
    /// # Errors
    /// When the command fails, or the daemon does not end in time.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.take_daemon()?.stop()
    }

    /// Kills the daemon without warning.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self) -> Result<()> {
        self.take_daemon()?.kill();
        Ok(())
    }

    /// SIGTERM, and the end of the daemon. Capture stays in place.
    ///
    /// # Errors
    /// When it does not end within `timeout`.
    pub fn terminate(&self, timeout: Duration) -> Result<ExitStatus> {
        self.take_daemon()?.terminate(timeout)
    }

    /// Whether a daemon was started and not yet stopped.
    #[must_use]
    pub fn has_daemon(&self) -> bool {
        lock(&self.daemon).is_some()
    }

    /// The log of all daemons this node has had.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        daemon::log_file(&self.place)
    }

    /// What the daemons of this node have logged.
    #[must_use]
    pub fn log(&self) -> String {
        daemon::whole_lines(&self.log_file())
    }

    /// The last lines of the log, for people.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        daemon::tail(&self.log_file(), lines)
    }

    /// What a daemon that was stopped left on the node: pinned objects, its cgroup, its socket, its notes, changes
    /// to the node's own network.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let pins = self.namespace().enter(|| files_below(Path::new(BPF_DIR)))?;
        found.extend(pins.iter().map(|pin| format!("pinned {}", pin.display())));
        let notes = files_below(&daemon::state_dir(&self.place));
        found.extend(notes.iter().map(|note| format!("note {}", note.display())));
        let socket = daemon::api_socket(&self.place);
        found.extend(
            socket
                .exists()
                .then(|| format!("socket {}", socket.display())),
        );
        if !self.has_daemon() {
            let cgroups = self.lab_dir.cgroups();
            let empty = cgroups.iter().filter(|cgroup| processes_in(cgroup) == 0);
            found.extend(empty.map(|cgroup| format!("cgroup {}", cgroup.display())));
        }
        if let Some(before) = lock(&self.before).as_ref() {
            found.extend(self.fingerprint()?.changes_since(before));
        }
        Ok(found
            .into_iter()
            .map(|what| format!("{}: {what}", self.name()))
            .collect())
    }

    /// Ends the daemon at once, whatever state it is in.
    pub(crate) fn abandon(&self) {
        drop(lock(&self.daemon).take());
    }

    /// Process id of the daemon.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        lock(&self.daemon)
            .as_mut()
            .map(|daemon| daemon.process().pid())
    }

    fn take_daemon(&self) -> Result<Daemon> {
        lock(&self.daemon).take().ok_or_else(|| self.no_daemon())
    }

    fn no_daemon(&self) -> LabError {
        LabError::new(format!("{} has no daemon", self.name()))
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.name())
    }
}

fn processes_in(cgroup: &Path) -> usize {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs"))
        .doing(|| format!("read {}", cgroup.display()));
    listed.map_or(0, |text| text.lines().count())
}

/// All files, and empty directories, below `dir`, itself not included.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let inside = files_below(&path);
        if inside.is_empty() {
            found.push(path);
        } else {
            found.extend(inside);
        }
    }
    found
}
