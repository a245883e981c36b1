//! What does it cost to judge 50,000 connections of a pod and worker again, and to end some? How long until all are
//! judged, and for how long is the thread held up at most meanwhile?
//!
//! ```text
//! cargo bench -p ztunnel-node --bench live
//! ```

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tikv_jemallocator::Jemalloc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};
use tokio::time::sleep;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::{Peer, PodPolicies};
use ztunnel_mesh::name::{Identity, PodName, PolicyName, Principal};
use ztunnel_mesh::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};
use ztunnel_mesh::{Delta, Upsert, Workload};
use ztunnel_node::connections::{Cut, Record, Registry};
use ztunnel_node::inbound::Live;
use ztunnel_node::relay::{ResetOnDrop, join_tcp};
use ztunnel_node::state::{MeshReader, MeshWriter, mesh_channel};
use ztunnel_node::telemetry::{Direction, Telemetry};

/// That of the daemon.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const CONNECTIONS: usize = 50_000;
/// Each takes four descriptors.
const RELAYED: usize = 200;
const POLICIES: usize = 100;
const ROUNDS: usize = 5;
const UID: &str = "pod";
/// A look happens at once, the next one not before this.
const LOOKED: Duration = Duration::from_millis(100);

/// From the change to the last cut, and the longest that another task waited for its turn.
type Round = (Duration, Duration);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    println!("median of {ROUNDS} rounds, time in total and longest hold-up; best; worst");
    LocalSet::new().block_on(&runtime, async {
        judged("one is cut", "last").await;
        judged("all are cut", "a").await;
        relayed().await;
    });
}

/// A mesh with one pod, and policies about people who do not connect.
struct Plane(MeshWriter, MeshReader);

impl Plane {
    fn new() -> Self {
        let (writer, reader) = mesh_channel();
        let mut plane = Self(writer, reader);
        let mut pod = Workload::new(UID);
        pod.namespace = "shop".into();
        plane.say(Upsert::Workload(Arc::new(pod)));
        for number in 0..POLICIES {
            plane.deny(&format!("no-{number}"), &[&format!("x-{number}")]);
        }
        plane
    }

    fn say(&mut self, upsert: Upsert) {
        let delta = Delta {
            upserts: vec![upsert],
            removals: vec![],
        };
        let next = self.1.load().apply(delta);
        self.0.publish(next);
    }

    fn deny(&mut self, name: &str, who: &[&str]) {
        let mut names = Match::default();
        let principal =
            |who: &&str| StringMatch::Exact(format!("cluster.local/ns/a/sa/{who}").into());
        names.principals.is = who.iter().map(principal).collect();
        let clauses = [Clause {
            matches: [names].into(),
        }];
        self.say(Upsert::Policy(Arc::new(Policy {
            key: PolicyName::new("shop", name),
            scope: PolicyScope::Namespace,
            action: Action::Deny,
            dry_run: false,
            rules: [Rule {
                clauses: clauses.into(),
            }]
            .into(),
        })));
    }

    fn policies(&self) -> Rc<PodPolicies> {
        let mesh = self.1.load();
        Rc::new(PodPolicies::new(&mesh, mesh.workload(UID).unwrap()))
    }
}

/// The connections of the pod, judged by whatever the mesh says.
struct Pod(Rc<Registry>, Live);

impl Pod {
    fn new() -> Self {
        let connections = Registry::new(
            PodName {
                namespace: "shop".into(),
                name: UID.into(),
                service_account: "web".into(),
            },
            Telemetry::default(),
        );
        Self(Rc::clone(&connections), Live::new(connections))
    }

    fn admit(&self, policies: &Rc<PodPolicies>, who: &str) -> Record {
        let identity = format!("spiffe://cluster.local/ns/a/sa/{who}");
        let principal = Principal::from(identity.parse::<Identity>().unwrap());
        let peer = Peer {
            principal: Some(&principal),
            addr: ClientAddr(([10, 0, 0, 1], 40_000).into()),
        };
        let record = self.0.start(Direction::InboundHbone, peer.addr);
        let app = AppAddr(([10, 1, 0, 1], 8080).into());
        self.1.admit(&record, policies, peer, app).unwrap();
        record
    }

    async fn judged_beside<T>(&self, reader: MeshReader, script: impl Future<Output = T>) -> T {
        tokio::select! {
            () = self.1.follow(reader, |mesh, known| {
                Rc::new(PodPolicies::new(mesh, mesh.workload(UID).unwrap_or(known)))
            }) => panic!("nobody judges any more"),
            done = script => done,
        }
    }
}

fn report(name: &str, mut rounds: Vec<Round>) {
    rounds.sort();
    let [best, median, worst] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| rounds[at]);
    println!("{name}: {median:.2?}; {best:.2?}; {worst:.2?}");
}

async fn until(done: impl Fn() -> bool) -> Round {
    let began = Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    while !done() {
        yield_now().await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    (began.elapsed(), longest)
}

async fn judged(name: &str, who: &str) {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (mut plane, pod) = (Plane::new(), Pod::new());
        let policies = plane.policies();
        let records: Vec<_> = (0..CONNECTIONS)
            .map(|_| pod.admit(&policies, "a"))
            .collect();
        let last = pod.admit(&policies, "last");
        let ended = Rc::new(Cell::new(false));
        let told = Rc::clone(&ended);
        let waits = spawn_local(async move {
            drop(last.unless_cut(std::future::pending::<()>()).await);
            told.set(true);
        });
        let round = pod.judged_beside(plane.1.clone(), async {
            sleep(LOOKED).await;
            plane.deny("now", &[who, "last"]);
            until(|| ended.get()).await
        });
        rounds.push(round.await);
        waits.await.unwrap();
        drop(records);
    }
    report(
        &format!("{CONNECTIONS} connections, {POLICIES} other policies, {name}"),
        rounds,
    );
}

async fn relayed() {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let pod = Rc::new(Pod::new());
        let policies = Plane::new().policies();
        let mut ends: Vec<JoinHandle<()>> = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..RELAYED {
            let ((app, ours), (client, accepted)) = (pair().await, pair().await);
            peers.extend([app, client]);
            let record = pod.admit(&policies, "a");
            ends.push(spawn_local(async move {
                let [mut app, mut far] = [ours, accepted].map(ResetOnDrop::new);
                let joined = join_tcp(&mut app, &mut far, record.traffic());
                assert!(record.unless_cut(joined).await.is_err());
            }));
        }
        yield_now().await;
        let registry = Rc::clone(&pod.0);
        let cut = spawn_local(async move { registry.cut_all(Cut::Drained).await });
        rounds.push(until(|| ends.iter().all(JoinHandle::is_finished)).await);
        assert_eq!(cut.await.unwrap(), RELAYED);
    }
    report(
        &format!("{RELAYED} relayed connections over TCP, all are cut"),
        rounds,
    );
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}
