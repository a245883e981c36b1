//! How the mesh bears size: 100,000 workloads, 10,000 services.
//!
//! Questions: what does one workload cost in memory, all in; how much CPU does the first full sync take, from the
//! bytes on the wire to the published snapshot; how long does one change take in a service with thousands of
//! endpoints; what do the look-ups of a connection cost while a writer runs, and does a writer ever stall them; what
//! does a dump of all of it take?
//!
//! `cargo bench -p ztunnel-node --bench scale`. Prints a table; exits with an error when a target is missed by so much
//! that noise does not explain it.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has nothing to tell"
)]

mod dump;
mod mesh;
mod report;

use std::env::{args, current_exe};
use std::hint::black_box;
use std::io::{Write as _, stdout};
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use prost::Message as _;
use tikv_jemallocator::Jemalloc;
use ztunnel_mesh::balance::{Purpose, pick};
use ztunnel_mesh::name::ServiceName;
use ztunnel_mesh::{Mesh, Rng};
use ztunnel_node::discovery::session::{AdsSession, Resume, Subscription};
use ztunnel_node::state::{MeshReader, MeshWriter, mesh_channel};
use ztunnel_node::task::breath;
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Node};

use mesh::{BIG_ENDPOINTS, Big, SERVICES, WORKLOADS};
use report::{Report, quantile};

/// That of the daemon.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const CHANGES: usize = 4_000;
const LOOKUPS: usize = 1_000_000;
const PUSHED: usize = 50_000;

/// As the first argument: this process is the control plane.
const CONTROL_PLANE: &str = "control-plane";

fn main() {
    if args().nth(1).as_deref() == Some(CONTROL_PLANE) {
        let everything = mesh::everything().encode_to_vec();
        return stdout().write_all(&everything).unwrap();
    }
    let mut report = Report::default();
    // By another process, so that this one begins with bytes as the network delivers them, and with no memory that
    // it has used before.
    let control_plane = Command::new(current_exe().unwrap())
        .arg(CONTROL_PLANE)
        .output();
    let everything = control_plane.unwrap().stdout;
    let before = resident() - everything.len();
    let mut control_plane = Follower::new();
    report.fact(
        "first response",
        format!("{:.1} MB", everything.len() as f64 / 1e6),
    );

    let cpu = cpu_time();
    control_plane.receive(&everything);
    let sync = cpu_time() - cpu;
    drop(everything);
    let used = resident().saturating_sub(before);
    report.target("first full sync, CPU", sync.as_secs_f64(), "s", 3.0);
    let per_workload = used as f64 / WORKLOADS as f64 / 1024.0;
    report.target("memory for each workload, all in", per_workload, "KiB", 1.0);
    let peak = (status("VmHWM") - before) as f64 / WORKLOADS as f64 / 1024.0;
    report.fact("the same at its peak, KiB", format!("{peak:.2}"));
    let (workloads, services, _) = control_plane.mesh.counts();
    assert_eq!((workloads, services), (WORKLOADS, SERVICES));

    for big in [Big::Anywhere, Big::Near] {
        changes(&mut report, &mut control_plane, big);
    }
    lookups(&mut report, &mut control_plane);
    dump::measure(&mut report, control_plane.reader.clone());
    report.finish();
}

/// What discovery does with responses, without the network.
struct Follower {
    session: AdsSession,
    mesh: Mesh,
    writer: MeshWriter,
    reader: MeshReader,
}

impl Follower {
    fn new() -> Self {
        let (writer, reader) = mesh_channel();
        let mut session = AdsSession::new(Node::default(), Subscription::Everything);
        session.open(Resume::Tell);
        Self {
            session,
            mesh: Mesh::default(),
            writer,
            reader,
        }
    }

    fn receive(&mut self, response: &[u8]) {
        let response = DeltaDiscoveryResponse::decode(response).unwrap();
        let received = self.session.receive(response);
        assert!(received.rejected.is_empty());
        self.mesh = self.mesh.apply_in_steps(received.delta, &mut breath::step);
        self.session.tidy();
        self.writer.publish(self.mesh.clone());
    }
}

/// One endpoint of a service with thousands changes, again and again.
fn changes(report: &mut Report, control_plane: &mut Follower, big: Big) {
    let mut times = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        // Every endpoint in turn, and far apart: as cold as it gets.
        let endpoint = change * 997 % BIG_ENDPOINTS;
        let response = mesh::changed(big, endpoint, change).encode_to_vec();
        let began = Instant::now();
        control_plane.receive(&response);
        times.push(began.elapsed());
    }
    let name = format!("one changed endpoint of {BIG_ENDPOINTS}, {big}");
    report.target(
        &format!("{name}: median"),
        quantile(&mut times, 0.5).as_nanos() as f64 / 1e3,
        "µs",
        100.0,
    );
    report.fact(
        &format!("{name}: p99"),
        format!("{:?}", quantile(&mut times, 0.99)),
    );
}

fn lookups(report: &mut Report, control_plane: &mut Follower) {
    let reader = control_plane.reader.clone();
    let client = mesh::a_client();
    let (done, rounds) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut pushes = 0_usize;
            while !done.load(Ordering::Relaxed) {
                // Mostly single changes, and now and then half of everything.
                if rounds.swap(false, Ordering::Relaxed) {
                    control_plane.receive(&mesh::changed_many(PUSHED, pushes).encode_to_vec());
                }
                let change = mesh::changed(Big::Anywhere, pushes * 997 % BIG_ENDPOINTS, pushes);
                control_plane.receive(&change.encode_to_vec());
                pushes += 1;
                // A control plane that changes something a thousand times a second is a busy one.
                thread::sleep(Duration::from_millis(1));
            }
            pushes
        });
        let mut random = Lcg(1);
        let mesh = reader.load();
        let from = Arc::clone(mesh.workload(&client).unwrap());
        let big =
            [Big::Anywhere, Big::Near].map(|big| Arc::clone(mesh.service(&big.name()).unwrap()));
        let small: Vec<_> = mesh.services().take(4_096).cloned().collect();
        drop(mesh);

        measure(report, "address to workload", &reader, |mesh| {
            let ip = mesh::workload_ip(random.below(WORKLOADS));
            assert!(black_box(mesh.workload_by_ip("", ip)).is_some());
        });
        let mut random = Lcg(2);
        measure(report, "address to service", &reader, |mesh| {
            let ip: IpAddr = mesh::service_ip(random.below(SERVICES));
            assert!(black_box(mesh.service_by_vip("", ip, "ns-1")).is_some());
        });
        let mut random = Lcg(3);
        measure(report, "address of nothing to service", &reader, |mesh| {
            let ip = IpAddr::from([203, 0, 113, random.below(256) as u8]);
            assert!(black_box(mesh.service_by_vip("", ip, "ns-1")).is_none());
        });
        let mut random = Lcg(4);
        let mut dice = Lcg(5);
        measure(report, "pick an endpoint, any service", &reader, |mesh| {
            let service = &small[random.below(small.len())];
            black_box(pick(
                mesh,
                service,
                80,
                &from,
                Purpose::Destination,
                &mut dice,
            ));
        });
        for (service, name) in big.iter().zip([Big::Anywhere, Big::Near]) {
            let mut dice = Lcg(6);
            measure(
                report,
                &format!("pick an endpoint of {BIG_ENDPOINTS}, {name}"),
                &reader,
                |mesh| {
                    assert!(
                        black_box(pick(
                            mesh,
                            service,
                            80,
                            &from,
                            Purpose::Destination,
                            &mut dice
                        ))
                        .is_some()
                    );
                },
            );
        }

        stalls(report, &reader, &rounds);
        done.store(true, Ordering::Relaxed);
        let pushes = writing.join().unwrap();
        report.fact("pushes meanwhile", pushes.to_string());
    });
    let name = ServiceName::new("ns-0", "svc-0");
    black_box(reader.load().service(&name));
}

/// The mean of many look-ups, each on the snapshot that is current then.
fn measure(report: &mut Report, name: &str, reader: &MeshReader, mut look_up: impl FnMut(&Mesh)) {
    let cpu = thread_cpu_time();
    for _ in 0..LOOKUPS {
        look_up(&reader.load());
    }
    let each = (thread_cpu_time() - cpu).as_nanos() as f64 / LOOKUPS as f64;
    report.target(name, each, "ns", 300.0);
}

/// How long single look-ups take at worst while half of the mesh is pushed, again and again.
fn stalls(report: &mut Report, reader: &MeshReader, push: &AtomicBool) {
    let mut random = Lcg(7);
    let mut times = Vec::with_capacity(LOOKUPS * 4);
    let began = Instant::now();
    let mut next_push = Duration::ZERO;
    while times.len() < times.capacity() && began.elapsed() < Duration::from_secs(20) {
        if began.elapsed() >= next_push {
            push.store(true, Ordering::Relaxed);
            next_push += Duration::from_millis(700);
        }
        let ip = mesh::workload_ip(random.below(WORKLOADS));
        let start = Instant::now();
        let mesh = reader.load();
        assert!(black_box(mesh.workload_by_ip("", ip)).is_some());
        drop(mesh);
        times.push(start.elapsed());
    }
    let p999 = quantile(&mut times, 0.999).as_nanos() as f64 / 1e6;
    report.target(
        "a look-up while half of the mesh is pushed: p99.9",
        p999,
        "ms",
        1.0,
    );
    report.fact(
        "the same: p99.99",
        format!("{:?}", quantile(&mut times, 0.9999)),
    );
    report.fact(
        "the same: longest",
        format!("{:?}", quantile(&mut times, 1.0)),
    );
}

/// Good enough to spread look-ups, and free.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.next_u32() as usize % bound
    }
}

impl Rng for Lcg {
    fn next_u32(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

fn cpu_time() -> Duration {
    usage(UsageWho::RUSAGE_SELF)
}

fn thread_cpu_time() -> Duration {
    usage(UsageWho::RUSAGE_THREAD)
}

fn usage(who: UsageWho) -> Duration {
    let usage = getrusage(who).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap())
}

/// Bytes of this process in memory, once the allocator has given back what is free: it takes a second.
fn resident() -> usize {
    thread::sleep(Duration::from_secs(2));
    status("VmRSS")
}

fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
