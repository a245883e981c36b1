//! What processes and the machine have used: CPU and memory, from the kernel's own accounts.
//!
//! Work in softirq lands on whoever it interrupts, so of what is done for the network the CPU of the whole machine is
//! the honest figure; that of a process is what it is charged with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use lab::{Doing as _, LabError, Result};
use nix::sys::time::TimeSpec;
use nix::time::clock_getcpuclockid;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// What was used so far, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    pub(crate) at: Instant,
    /// CPU seconds of each process that was asked for.
    pub(crate) processes: Vec<f64>,
    /// CPU seconds of the whole machine that were not idle.
    pub(crate) machine: f64,
    /// CPU seconds that the machine below gave to others.
    pub(crate) steal: f64,
}

impl Usage {
    pub(crate) fn now(processes: &[u32]) -> Result<Self> {
        let processes = processes
            .iter()
            .map(|pid| cpu_of(*pid))
            .collect::<Result<_>>()?;
        let stat = fs::read_to_string("/proc/stat").doing(|| "read /proc/stat")?;
        let (machine, steal) = machine(&stat, ticks_per_second())
            .ok_or_else(|| LabError::new("/proc/stat cannot be understood"))?;
        Ok(Self {
            at: Instant::now(),
            processes,
            machine,
            steal,
        })
    }
}

/// To the nanosecond, threads that have ended included.
fn cpu_of(pid: u32) -> Result<f64> {
    let used = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))
        .and_then(nix::time::ClockId::now)
        .doing(|| format!("read the CPU time of process {pid}"))?;
    Ok(seconds(used))
}

fn seconds(time: TimeSpec) -> f64 {
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

/// Busy and stolen seconds, from the first line of `/proc/stat`.
fn machine(stat: &str, ticks: f64) -> Option<(f64, f64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<f64> = line.split_whitespace().flat_map(str::parse).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    Some((
        (user + nice + system + irq + softirq) / ticks,
        steal / ticks,
    ))
}

/// Memory that only this process has, in KiB.
pub(crate) fn private_kib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    private(&text).ok_or_else(|| LabError::new(format!("{path} cannot be understood")))
}

fn private(rollup: &str) -> Option<f64> {
    let field = |name: &str| -> Option<f64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(field("Private_Clean:")? + field("Private_Dirty:")?)
}

/// CPU seconds of every process that is not part of the benchmark, kernel threads left out.
pub(crate) struct Others {
    at: Instant,
    processes: BTreeMap<i32, Process>,
}

impl Others {
    pub(crate) fn now() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes: BTreeMap<i32, Process> = entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                Some((pid, Process::parse(&stat)?))
            })
            .collect();
        Self {
            at: Instant::now(),
            processes: strangers(processes, std::process::id().cast_signed()),
        }
    }

    /// Processors that others kept busy since `before`.
    pub(crate) fn busy_since(&self, before: &Self) -> f64 {
        let used = used_since(&before.processes, &self.processes) / ticks_per_second();
        used / (self.at - before.at).as_secs_f64().max(1e-3)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    parent: i32,
    /// Its own ticks.
    own: f64,
    /// Those of its children that have ended.
    children: f64,
}

impl Process {
    fn parse(stat: &str) -> Option<Self> {
        // The name, in parentheses, may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            children: number(13)? + number(14)?,
        })
    }
}

/// Without kernel threads and without `root` and what descends from it. Who descends from others stays.
fn strangers(all: BTreeMap<i32, Process>, root: i32) -> BTreeMap<i32, Process> {
    const KERNEL: i32 = 2;
    let mut left_out = BTreeSet::from([root, KERNEL]);
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|(pid, process)| !left_out.contains(pid) && left_out.contains(&process.parent))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        left_out.extend(more);
    }
    let mut all = all;
    all.retain(|pid, _| !left_out.contains(pid));
    all
}

fn used_since(before: &BTreeMap<i32, Process>, now: &BTreeMap<i32, Process>) -> f64 {
    let total = |of: &Process| of.own + of.children;
    let grown: f64 = now
        .iter()
        .map(|(pid, process)| total(process) - before.get(pid).map_or(0.0, total))
        .sum();
    // Who has ended since is in the account of its parent now, with all it ever used.
    let ended = before.iter().filter(|(pid, _)| !now.contains_key(pid));
    (grown - ended.map(|(_, process)| total(process)).sum::<f64>()).max(0.0)
}

fn ticks_per_second() -> f64 {
    match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) if ticks > 0 => ticks as f64,
        _ => 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_busy_with_all_but_idling() {
        let stat = "cpu  100 10 200 5000 50 1 40 7 0 0\ncpu0 1 2 3\n";
        assert_eq!(machine(stat, 100.0), Some((3.51, 0.07)));
        assert_eq!(machine("cpu  1 2", 100.0), None);
    }

    #[test]
    fn private_memory_is_clean_and_dirty() {
        let rollup = "Rss: 900 kB\nPrivate_Clean:  12 kB\nPrivate_Dirty:  30 kB\n";
        assert_eq!(private(rollup), Some(42.0));
        assert_eq!(private("Rss: 900 kB"), None);
        assert!(private_kib(std::process::id()).unwrap() > 100.0);
    }

    #[test]
    fn own_cpu_time_grows_with_work() {
        let own = [std::process::id()];
        let before = Usage::now(&own).unwrap();
        let mut now = before.clone();
        while now.processes[0] < before.processes[0] + 0.01 {
            now = Usage::now(&own).unwrap();
        }
        assert!(now.at > before.at);
    }

    #[test]
    fn others_are_those_who_are_neither_kernel_nor_ours() {
        let line = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 30 12 5 4 20 0";
        let process = Process::parse(line).unwrap();
        let expected = Process {
            parent: 1,
            own: 42.0,
            children: 9.0,
        };
        assert_eq!(process, expected);

        let of = |parent, own, children| Process {
            parent,
            own,
            children,
        };
        let before = BTreeMap::from([
            (1, of(0, 5.0, 0.0)),
            (2, of(0, 0.0, 0.0)),
            (3, of(2, 100.0, 0.0)),
            (10, of(1, 50.0, 0.0)),
            (11, of(10, 50.0, 0.0)),
            (20, of(1, 7.0, 0.0)),
            (21, of(20, 30.0, 0.0)),
        ]);
        let before = strangers(before, 10);
        assert_eq!(before.keys().copied().collect::<Vec<_>>(), [1, 20, 21]);
        // 21 used two more ticks and ended; 22 is new.
        let now = BTreeMap::from([
            (1, of(0, 5.0, 0.0)),
            (20, of(1, 7.0, 32.0)),
            (22, of(20, 3.0, 0.0)),
        ]);
        assert_eq!(used_since(&before, &now), 5.0);
    }
}
