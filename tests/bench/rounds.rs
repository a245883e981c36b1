//! The rounds: in each, every contestant in every scenario, one at a time, in an order that moves on.

use std::thread;

use lab::load::{Load, LoadReport};
use lab::{LabError, Result};
use serde::Serialize;

use crate::contestants::{Arena, Contestant, Envoy, Who};
use crate::measure::{Others, Usage, private_kib};
use crate::plan::{Plan, Scenario};
use crate::push::{Pushed, Pushes};

/// Descriptors that a proxy needs besides those of connections.
const SPARE_DESCRIPTORS: usize = 400;

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Measurements {
    pub(crate) windows: Vec<Window>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) pushes: Vec<Pushed>,
    /// What did not work. It is in no figure.
    pub(crate) failures: Vec<String>,
}

/// One contestant under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Window {
    pub(crate) round: usize,
    pub(crate) who: Who,
    pub(crate) scenario: Scenario,
    pub(crate) load: LoadReport,
    /// CPU seconds of the proxies: the client's, the server's.
    pub(crate) proxies: Vec<f64>,
    /// CPU seconds of the whole machine.
    pub(crate) machine: f64,
    /// Processors that were taken away by the machine below.
    pub(crate) stolen: f64,
    /// Processors that programs kept busy which have no part in this.
    pub(crate) others: f64,
}

/// Private memory of a contestant's proxies.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) round: usize,
    pub(crate) who: Who,
    pub(crate) when: When,
    /// Of the client's, of the server's.
    pub(crate) kib: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum When {
    /// Before any load.
    Idle,
    /// With idle connections.
    Holding {
        /// How many were asked for.
        planned: usize,
        /// How many there are: the limit of descriptors may not allow more.
        open: usize,
    },
    AfterLoad,
}

pub(crate) fn run(plan: &Plan, envoy: &Envoy, progress: &dyn Fn(&str)) -> Result<Measurements> {
    progress("building nodes, pods and proxies");
    let arena = Arena::build(plan, envoy)?;
    progress("looking at what is on the wire");
    arena.check_wire(plan)?;
    let mut rounds = Rounds {
        plan,
        arena: &arena,
        found: Measurements::default(),
        progress,
    };
    thread::sleep(plan.settle);
    rounds.memory(0, When::Idle);
    for round in 0..plan.memory_rounds {
        rounds.memory_round(round);
    }
    for round in 0..plan.rounds {
        rounds.round(round);
    }
    thread::sleep(plan.settle);
    rounds.memory(0, When::AfterLoad);
    for &scenario in &plan.scenarios {
        if let Scenario::Push(workloads) = scenario {
            rounds.pushes(workloads);
        }
    }
    if !rounds.found.failures.is_empty() {
        eprintln!("{}", arena.logs());
    }
    Ok(rounds.found)
}

struct Rounds<'a> {
    plan: &'a Plan,
    arena: &'a Arena,
    found: Measurements,
    progress: &'a dyn Fn(&str),
}

impl Rounds<'_> {
    fn round(&mut self, round: usize) {
        (self.progress)(&format!("round {} of {}", round + 1, self.plan.rounds));
        for (number, &scenario) in self.plan.scenarios.iter().enumerate() {
            if matches!(scenario, Scenario::Push(_)) {
                continue;
            }
            for contestant in in_order(&self.arena.contestants, round + number) {
                // It takes long, and is a ratio of two times in one run as it is.
                if matches!(scenario, Scenario::SlowReader(_)) && contestant.who == Who::OursAgain {
                    continue;
                }
                match window(contestant, scenario, round, self.plan) {
                    Ok(window) => self.found.windows.push(window),
                    Err(err) => self.failed(round, contestant.who, &scenario.name(), &err),
                }
            }
        }
    }

    fn pushes(&mut self, workloads: usize) {
        let what = Scenario::Push(workloads).name();
        (self.progress)(&what);
        let pushes = match Pushes::prepare(self.arena, self.plan, workloads) {
            Ok(pushes) => pushes,
            Err(err) => return self.failed(0, Who::Ours, &what, &err),
        };
        for round in 0..self.plan.rounds {
            match pushes.round(round) {
                Ok(pushed) => self.found.pushes.extend(pushed),
                Err(err) => self.failed(round, Who::Ours, &what, &err),
            }
        }
    }

    fn memory_round(&mut self, round: usize) {
        for &planned in &self.plan.idle {
            (self.progress)(&format!("memory with {planned} idle connections"));
            let meshed = |c: &&Contestant| !c.proxies.is_empty() && c.who != Who::OursAgain;
            for contestant in self.arena.contestants.iter().filter(meshed) {
                match idle(contestant, planned, round, self.plan) {
                    Ok(memory) => self.found.memory.push(memory),
                    Err(err) => {
                        let what = format!("{planned} idle connections");
                        self.failed(round, contestant.who, &what, &err);
                    }
                }
            }
        }
    }

    fn memory(&mut self, round: usize, when: When) {
        for contestant in &self.arena.contestants {
            if contestant.proxies.is_empty() || contestant.who == Who::OursAgain {
                continue;
            }
            match Memory::now(contestant, round, when) {
                Ok(memory) => self.found.memory.push(memory),
                Err(err) => self.failed(round, contestant.who, "memory", &err),
            }
        }
    }

    fn failed(&mut self, round: usize, who: Who, what: &str, err: &LabError) {
        let text = format!(
            "round {}, {}, {what}: {}",
            round + 1,
            who.name(),
            err.chain()
        );
        (self.progress)(&format!("FAILED: {text}"));
        self.found.failures.push(text);
    }
}

/// Who goes first in one round or scenario goes last in the next.
fn in_order<T>(of: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (last, first) = of.split_at(turn % of.len().max(1));
    first.iter().chain(last)
}

fn window(
    contestant: &Contestant,
    scenario: Scenario,
    round: usize,
    plan: &Plan,
) -> Result<Window> {
    let load = scenario.load(contestant.to, plan);
    let others = Others::now();
    let mut running = contestant.client.start_load(&load)?;
    let began = Usage::now(&contestant.proxies)?;
    running.measured()?;
    let ended = Usage::now(&contestant.proxies)?;
    let load = running.report()?;
    let others = Others::now().busy_since(&others);
    answered(&load)?;
    stood_still(&load, scenario)?;
    // We look a moment after the client said so, at both ends: what is used in a second is what counts.
    let wall = (ended.at - began.at).as_secs_f64();
    let scale = load.seconds / wall;
    let proxies: Vec<f64> = (ended.processes.iter().zip(&began.processes))
        .map(|(ended, began)| (ended - began) * scale)
        .collect();
    if proxies.contains(&0.0) {
        return Err(LabError::new("a proxy did nothing: it is not in the way"));
    }
    Ok(Window {
        round,
        who: contestant.who,
        scenario,
        load,
        proxies,
        machine: (ended.machine - began.machine) * scale,
        stolen: (ended.steal - began.steal) / wall,
        others,
    })
}

pub(crate) fn answered(load: &LoadReport) -> Result<()> {
    if load.errors > 0 {
        let first = load.first_error.as_deref().unwrap_or_default();
        return Err(LabError::new(format!(
            "{} errors, first: {first}",
            load.errors
        )));
    }
    if load.bytes == 0 {
        return Err(LabError::new("nothing was answered"));
    }
    Ok(())
}

/// Whether the connection that was not to be read was in the midst of something, and hardly more of it came: on a busy
/// machine the last of what is on its way may take a while.
fn stood_still(load: &LoadReport, scenario: Scenario) -> Result<()> {
    match (scenario, load.stalled) {
        (Scenario::SlowReader(_), Some(s))
            if s.waiting > 0 && s.waited <= s.waiting + s.waiting / 4 =>
        {
            Ok(())
        }
        (Scenario::SlowReader(_), stalled) => Err(LabError::new(format!(
            "the connection that was not read did not stand still: {stalled:?}"
        ))),
        _ => Ok(()),
    }
}

fn idle(contestant: &Contestant, planned: usize, round: usize, plan: &Plan) -> Result<Memory> {
    // A sidecar has two descriptors for each connection, and who may not raise the limit has to do with it.
    let open = planned.min((descriptors()? - SPARE_DESCRIPTORS) / 2);
    let load = Load {
        connections: open,
        ..Scenario::Requests(1).load(contestant.to, plan)
    };
    let held = contestant.client.hold_load(&load)?;
    thread::sleep(plan.settle);
    let holding = Memory::now(contestant, round, When::Holding { planned, open })?;
    answered(&held.release()?)?;
    Ok(holding)
}

impl Memory {
    fn now(contestant: &Contestant, round: usize, when: When) -> Result<Self> {
        let kib = contestant.proxies.iter().map(|pid| private_kib(*pid));
        Ok(Self {
            round,
            who: contestant.who,
            when,
            kib: kib.collect::<Result<_>>()?,
        })
    }
}

fn descriptors() -> Result<usize> {
    use lab::Doing as _;
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).doing(|| "read the limit of descriptors")?;
    Ok(usize::try_from(soft)
        .unwrap_or(usize::MAX)
        .max(SPARE_DESCRIPTORS + 2))
}
