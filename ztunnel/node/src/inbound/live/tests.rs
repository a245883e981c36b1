use std::cell::Cell;
use std::future::pending;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::timeout;
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::name::{Identity, PodName, PolicyName, Principal};
use ztunnel_mesh::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::{Delta, Removal, Upsert};

use super::*;
use crate::state::{MeshWriter, mesh_channel};
use crate::telemetry::{Direction, Telemetry};

const UID: &str = "pod";
/// A look happens at once, the next one after this.
const LOOKED: Duration = Duration::from_millis(2 * PAUSE.as_millis() as u64);

/// What the control plane has said so far, and what it made of it.
struct Plane(MeshWriter, MeshReader);

impl Plane {
    fn new() -> Self {
        let (writer, reader) = mesh_channel();
        let mut plane = Self(writer, reader);
        plane.workload(&[]);
        plane
    }

    fn say(&mut self, upserts: Vec<Upsert>, removals: Vec<Removal>) {
        let next = self.1.load().apply(Delta { upserts, removals });
        self.0.publish(next);
    }

    /// The pod now lists these.
    fn workload(&mut self, policies: &[&str]) {
        let mut pod = Workload::new(UID);
        pod.namespace = "shop".into();
        pod.policies = policies.iter().map(|name| key(name)).collect();
        self.say(vec![Upsert::Workload(Arc::new(pod))], vec![]);
    }

    fn put(&mut self, policy: Policy) {
        self.say(vec![Upsert::Policy(Arc::new(policy))], vec![]);
    }

    fn remove(&mut self, name: &str) {
        self.say(vec![], vec![Removal::Policy(key(name))]);
    }

    fn policies(&self) -> Rc<PodPolicies> {
        let mesh = self.1.load();
        Rc::new(PodPolicies::new(&mesh, mesh.workload(UID).unwrap()))
    }

    /// Judges connections again while `script` runs.
    async fn beside<T>(reader: MeshReader, live: &Live, script: impl Future<Output = T>) -> T {
        let current = |mesh: &Mesh, known: &Arc<Workload>| {
            Rc::new(PodPolicies::new(mesh, mesh.workload(UID).unwrap_or(known)))
        };
        tokio::select! {
            () = live.follow(reader, current) => panic!("nobody judges any more"),
            done = script => done,
        }
    }
}

fn key(name: &str) -> PolicyName {
    PolicyName::new("shop", name)
}

/// A policy `name` about whom `who` names; about everybody if nobody.
fn policy(action: Action, scope: PolicyScope, name: &str, who: &[&str]) -> Policy {
    let mut names = Match::default();
    let principal = |who: &&str| StringMatch::Exact(format!("cluster.local/ns/a/sa/{who}").into());
    names.principals.is = who.iter().map(principal).collect();
    let clause = Clause {
        matches: [names].into(),
    };
    let clauses = if who.is_empty() { vec![] } else { vec![clause] };
    Policy {
        key: key(name),
        scope,
        action,
        dry_run: false,
        rules: [Rule {
            clauses: clauses.into(),
        }]
        .into(),
    }
}

fn deny(name: &str, who: &[&str]) -> Policy {
    policy(Action::Deny, PolicyScope::Namespace, name, who)
}

fn allow(name: &str, who: &[&str]) -> Policy {
    policy(Action::Allow, PolicyScope::Namespace, name, who)
}

fn selector(action: Action, name: &str, who: &[&str]) -> Policy {
    policy(action, PolicyScope::WorkloadSelector, name, who)
}

fn admit(live: &Live, plane: &Plane, who: &str) -> Result<Record, Refusal> {
    admit_by(live, &plane.policies(), who)
}

fn live() -> Live {
    Live::new(Registry::new(
        PodName {
            namespace: "shop".into(),
            name: UID.into(),
            service_account: "web".into(),
        },
        Telemetry::default(),
    ))
}

fn admit_by(live: &Live, policies: &Rc<PodPolicies>, who: &str) -> Result<Record, Refusal> {
    let identity = format!("spiffe://cluster.local/ns/a/sa/{who}");
    let principal = identity.parse::<Identity>().ok().map(Principal::from);
    let peer = Peer {
        principal: principal.as_ref().filter(|_| who != "plain"),
        addr: ClientAddr(([10, 0, 0, 1], 40_000).into()),
    };
    let app = AppAddr(([10, 1, 0, 1], 8080).into());
    let record = live.connections.start(Direction::InboundHbone, peer.addr);
    live.admit(&record, policies, peer, app)?;
    Ok(record)
}

/// Why it was cut, if it was.
async fn cut(place: &Record) -> Option<String> {
    let going = place.unless_cut(pending::<()>());
    let going = timeout(Duration::ZERO, going).await;
    going.ok().map(|cut| cut.unwrap_err().to_string())
}

async fn look() {
    sleep(LOOKED).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_deny_cuts_whom_it_names_at_once_and_nobody_else() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        let [a, b, plain] = ["a", "b", "plain"].map(|who| admit(&live, &plane, who).unwrap());
        look().await;
        assert_eq!(cut(&a).await, None);
        let since = Instant::now();
        plane.put(deny("no-a", &["a"]));
        let why = a.unless_cut(pending::<()>()).await.unwrap_err();
        assert!(since.elapsed() < PAUSE, "{:?}", since.elapsed());
        assert_eq!(why.reason(), Reason::PolicyDenied);
        assert!(
            why.to_string().ends_with("policy shop/no-a denies it"),
            "{why}"
        );
        // There it stays, also when the policy goes.
        plane.remove("no-a");
        look().await;
        assert!(cut(&a).await.is_some());
        assert_eq!((cut(&b).await, cut(&plain).await), (None, None));
        drop((a, b, plain));
        assert!(live.connections.none_admitted());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_allowed_it_may_go_and_what_restricts_it_may_come() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        plane.put(allow("a", &["a"]));
        plane.put(allow("b", &["b"]));
        let [a, b] = ["a", "b"].map(|who| admit(&live, &plane, who).unwrap());
        plane.remove("a");
        look().await;
        assert!(cut(&a).await.unwrap().contains("no ALLOW policy"));
        assert_eq!(cut(&b).await, None);
        // Without any, everybody may; with one, nobody else.
        plane.remove("b");
        let plain = admit(&live, &plane, "plain").unwrap();
        look().await;
        assert_eq!((cut(&b).await, cut(&plain).await), (None, None));
        plane.put(allow("b", &["b"]));
        look().await;
        assert_eq!(cut(&b).await, None);
        assert!(cut(&plain).await.is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn changes_that_deny_nobody_cut_nobody() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        let place = admit(&live, &plane, "a").unwrap();
        let dry_run = Policy {
            dry_run: true,
            ..deny("dry", &["a"])
        };
        plane.put(deny("b", &["b"]));
        plane.put(dry_run);
        plane.put(selector(Action::Deny, "of-others", &["a"]));
        let elsewhere = Policy {
            key: PolicyName::new("elsewhere", "x"),
            ..deny("x", &["a"])
        };
        plane.put(elsewhere);
        look().await;
        plane.remove("b");
        look().await;
        assert_eq!(cut(&place).await, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_comes_to_be_listed_by_the_workload_counts() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        plane.put(selector(Action::Deny, "no-a", &["a"]));
        let [a, b] = ["a", "b"].map(|who| admit(&live, &plane, who).unwrap());
        plane.workload(&["no-a"]);
        look().await;
        assert!(cut(&a).await.unwrap().contains("shop/no-a"));
        assert_eq!(cut(&b).await, None);
        // A pod that is gone from the mesh is still what it was.
        plane.say(vec![], vec![Removal::Address(UID.into())]);
        look().await;
        assert_eq!(cut(&b).await, None);
        plane.put(selector(Action::Deny, "no-a", &["b"]));
        look().await;
        assert!(cut(&b).await.unwrap().contains("shop/no-a"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_listed_policy_may_be_on_its_way_for_a_moment() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        let [a, b] = ["a", "b"].map(|who| admit(&live, &plane, who).unwrap());
        plane.workload(&["soon"]);
        let since = Instant::now();
        assert!(admit(&live, &plane, "c").is_err());
        // Other changes neither end that moment nor draw it out; what did arrive counts.
        for round in 0..5 {
            plane.put(deny("other", if round == 4 { &["b"] } else { &["c"] }));
            look().await;
            assert_eq!(cut(&a).await, None);
            assert_eq!(cut(&b).await.is_some(), round == 4);
        }
        let why = a.unless_cut(pending::<()>()).await.unwrap_err();
        assert!(why.to_string().contains("shop/soon"), "{why}");
        let took = since.elapsed();
        assert!(took >= ON_ITS_WAY && took < ON_ITS_WAY + LOOKED, "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_listed_policy_that_arrives_counts_from_then_on() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        let [a, b] = ["a", "b"].map(|who| admit(&live, &plane, who).unwrap());
        // In either order, one after the other, and again from the beginning.
        for round in 0..3 {
            plane.workload(&["soon"]);
            sleep(ON_ITS_WAY / 2).await;
            assert_eq!(cut(&b).await, None, "round {round}");
            plane.put(selector(Action::Deny, "soon", &["a"]));
            look().await;
            assert!(cut(&a).await.is_some());
            sleep(2 * ON_ITS_WAY).await;
            plane.remove("soon");
            sleep(ON_ITS_WAY / 2).await;
            plane.workload(&[]);
            sleep(2 * ON_ITS_WAY).await;
            assert_eq!(cut(&b).await, None, "round {round}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_was_away_between_two_looks_cuts_who_came_meanwhile() {
    let (mut plane, live) = (Plane::new(), live());
    Plane::beside(plane.1.clone(), &live, async {
        plane.put(deny("no-a", &["a"]));
        let b = admit(&live, &plane, "b").unwrap();
        look().await;
        plane.remove("no-a");
        let a = admit(&live, &plane, "a").unwrap();
        plane.put(deny("no-a", &["a"]));
        look().await;
        assert!(cut(&a).await.is_some());
        assert_eq!(cut(&b).await, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn others_get_their_turn_while_many_are_judged_and_cut() {
    const CONNECTIONS: usize = 5_000;
    // As many turns at least.
    for (who, batch) in [("b", 256), ("a", 16)] {
        let (mut plane, live) = (Plane::new(), live());
        Plane::beside(plane.1.clone(), &live, async {
            let mut places: Vec<_> = (0..CONNECTIONS)
                .map(|_| admit(&live, &plane, who).unwrap())
                .collect();
            places.push(admit(&live, &plane, "a").unwrap());
            look().await;
            plane.put(deny("no-a", &["a"]));
            let last = places.last().unwrap().unless_cut(pending::<()>());
            let turns = Cell::new(0);
            let others = async {
                loop {
                    turns.set(turns.get() + 1);
                    yield_now().await;
                }
            };
            tokio::select! {
                ended = last => assert!(ended.is_err()),
                () = others => {}
            }
            let turns = turns.get();
            assert!(turns >= CONNECTIONS / batch, "{turns} for {who}");
            // The last batch ends with it.
            let cut = places[0].is_cut();
            assert!(places[..CONNECTIONS].iter().all(|p| p.is_cut() == cut));
            assert_eq!(cut, who == "a");
        })
        .await;
    }
}

/// Whatever changes when: who goes on is permitted by what is known now, and who was cut was denied at some time.
#[tokio::test(start_paused = true)]
async fn any_order_of_changes_leaves_open_what_is_permitted_and_nothing_else() {
    let mut cuts = 0;
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut plane, live) = (Plane::new(), live());
        Plane::beside(plane.1.clone(), &live, async {
            let mut open: Vec<(Record, bool)> = Vec::new();
            for _ in 0..30 {
                let who = *["a", "b", "c"].choose(&mut rng).unwrap();
                match rng.random_range(0..9) {
                    0 => plane.put(deny("d", &[who])),
                    1 => plane.remove("d"),
                    2 => plane.put(allow("w", &[who, "c"])),
                    3 => plane.remove("w"),
                    4 => plane.put(selector(Action::Deny, "s", &[who])),
                    5 => plane.remove("s"),
                    6 => plane.workload(if rng.random() { &["s"] } else { &[] }),
                    7 => {
                        open.extend(admit(&live, &plane, who).ok().map(|place| (place, false)));
                    }
                    _ => sleep(PAUSE * rng.random_range(0..30) / 10).await,
                }
                let policies = plane.policies();
                for (place, denied) in &mut open {
                    *denied |= refused(&policies, place);
                }
            }
            sleep(ON_ITS_WAY + LOOKED).await;
            let policies = plane.policies();
            for (place, denied) in &open {
                let cut = place.is_cut();
                assert!(cut || !refused(&policies, place), "seed {seed}");
                assert!(!cut || *denied, "seed {seed}");
                cuts += usize::from(cut);
            }
        })
        .await;
    }
    assert!(cuts > 100, "{cuts}");
}

fn refused(policies: &PodPolicies, place: &Record) -> bool {
    let admitted = place.admitted().unwrap();
    let again = policies.reconsider(admitted.peer(), admitted.app(), true);
    again.is_err()
}
