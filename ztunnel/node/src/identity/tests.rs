use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use prost_types::value::Kind;
use tonic::Status;

use super::ca::Signing;
use super::*;
use crate::control_plane::test_server::{Setup, TestServer};
use crate::control_plane::{Secret, TokenSource};
use crate::tls::test_ca::{HOUR, Leaf, TestCa};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn web() -> Identity {
    WEB.parse().unwrap()
}

fn numbered(number: usize) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/s{number}")
        .parse()
        .unwrap()
}

// With a CA in this process and paused time: when requests are made.

/// Signs for real, after a while, unless it is told to fail.
struct Clockwork {
    ca: TestCa,
    takes: Duration,
    /// Whom it was asked for, in this order.
    asked: Mutex<Vec<Identity>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    /// How many of the next requests fail.
    failures: AtomicUsize,
    /// From when to when certificates are valid.
    valid: fn(SystemTime) -> Range<SystemTime>,
    uri: fn(&Identity) -> String,
    /// What becomes of the chain before it is answered.
    spoil: fn(&mut Vec<String>),
}

impl Clockwork {
    fn new() -> Self {
        Self {
            ca: TestCa::new("clockwork"),
            takes: Duration::from_millis(100),
            asked: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            valid: |now| now - HOUR..now + 24 * HOUR,
            uri: Identity::to_string,
            spoil: |_| {},
        }
    }

    fn start(self) -> (Identities, Arc<Self>, Shutdown) {
        let (ca, shutdown) = (Arc::new(self), Shutdown::default());
        let identities = Identities::with(
            ca.clone(),
            tls::Context::default(),
            TaskGroup::default(),
            shutdown.clone(),
        );
        (identities, ca, shutdown)
    }

    fn asked(&self, identity: &Identity) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| *asked == identity).count()
    }

    /// The how manieth request of all was the first for `identity`.
    fn place(&self, identity: &Identity) -> Option<usize> {
        let asked = self.asked.lock().unwrap();
        asked.iter().position(|asked| asked == identity)
    }

    async fn answer(&self, identity: &Identity, csr: String) -> Result<Vec<String>, FetchError> {
        self.asked.lock().unwrap().push(identity.clone());
        let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(in_flight, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        let failing = |left: usize| left.checked_sub(1);
        if self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, failing)
            .is_ok()
        {
            return Err(FetchError::Refused {
                code: tonic::Code::Unauthenticated,
                explanation: "request impersonation authentication failure".to_owned(),
            });
        }
        let mut leaf = Leaf::uris(&[&(self.uri)(identity)]);
        leaf.valid = (self.valid)(SystemTime::now());
        let mut chain = self.ca.sign(&csr, leaf);
        (self.spoil)(&mut chain);
        Ok(chain)
    }
}

impl fmt::Debug for Clockwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clockwork")
    }
}

impl Sign for Clockwork {
    fn sign<'a>(&'a self, identity: &'a Identity, csr: String) -> Signing<'a> {
        Box::pin(self.answer(identity, csr))
    }
}

#[tokio::test(start_paused = true)]
async fn everybody_who_asks_shares_one_request() {
    let (identities, ca, _) = Clockwork::new().start();
    let id = web();
    let (one, two, three) = tokio::join!(
        identities.credential(&id),
        identities.credential(&id),
        identities.credential(&id)
    );
    let one = one.unwrap();
    assert_eq!(one.identity(), &id);
    assert!(Arc::ptr_eq(&one, &two.unwrap()) && Arc::ptr_eq(&one, &three.unwrap()));
    assert!(Arc::ptr_eq(
        &one,
        &identities.credential(&id).await.unwrap()
    ));
    assert_eq!(ca.asked(&id), 1);
}

#[tokio::test(start_paused = true)]
async fn hold_fetches_ahead() {
    let (identities, ca, _) = Clockwork::new().start();
    let hold = identities.hold(web());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = Instant::now();
    hold.credential().await.unwrap();
    identities.credential(&web()).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(ca.asked(&web()), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_eight_requests_are_in_flight() {
    let (identities, ca, _) = Clockwork::new().start();
    let holds: Vec<_> = (0..30).map(|n| identities.hold(numbered(n))).collect();
    for hold in &holds {
        hold.credential().await.unwrap();
    }
    assert_eq!(ca.most_in_flight.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn certificate_is_renewed_at_half_of_its_validity() {
    let (identities, ca, _) = Clockwork::new().start();
    let hold = identities.hold(web());
    let first = hold.credential().await.unwrap();
    // Half of 25 h, less the hour that had passed, less a tenth: at 10:21 at the earliest, 12:39 at the latest.
    tokio::time::sleep(10 * HOUR).await;
    assert_eq!(ca.asked(&web()), 1);
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(ca.asked(&web()), 2);
    assert!(!Arc::ptr_eq(&first, &hold.credential().await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn failed_renewal_leaves_the_old_certificate_in_use() {
    let (identities, ca, _) = Clockwork::new().start();
    let hold = identities.hold(web());
    let first = hold.credential().await.unwrap();
    ca.failures.store(usize::MAX, Ordering::SeqCst);
    tokio::time::sleep(13 * HOUR).await;
    assert!(ca.asked(&web()) > 5);
    assert!(Arc::ptr_eq(&first, &hold.credential().await.unwrap()));
    ca.failures.store(0, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(!Arc::ptr_eq(&first, &hold.credential().await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn short_certificate_is_not_renewed_in_a_loop() {
    let mut ca = Clockwork::new();
    ca.valid = |now| now - HOUR..now + Duration::from_secs(60);
    let (identities, ca, _) = ca.start();
    let _hold = identities.hold(web());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = ca.asked(&web());
    assert!((3..=6).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn connection_waits_through_a_refusal_that_passes() {
    // istiod refuses for a moment, until it has seen a new pod.
    let ca = Clockwork::new();
    ca.failures.store(2, Ordering::SeqCst);
    let (identities, ca, _) = ca.start();
    let before = Instant::now();
    identities.credential(&web()).await.unwrap();
    assert!(before.elapsed() < WAIT);
    assert_eq!(ca.asked(&web()), 3);
}

#[tokio::test(start_paused = true)]
async fn connection_does_not_wait_when_the_next_try_is_far() {
    let ca = Clockwork::new();
    ca.failures.store(usize::MAX, Ordering::SeqCst);
    let (identities, ca, _) = ca.start();
    let hold = identities.hold(web());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = ca.asked(&web());
    let mut immediately = 0;
    for _ in 0..100 {
        let before = Instant::now();
        let error = hold.credential().await.unwrap_err();
        assert!(before.elapsed() <= WAIT);
        immediately += usize::from(before.elapsed() == Duration::ZERO);
        let IdentityError::Unavailable { source, .. } = &error else {
            panic!("{error}");
        };
        assert!(source.to_string().starts_with(
            "the CA answered Unauthenticated: request impersonation authentication failure; check this node's token"
        ));
        assert_eq!(error.reason(), Reason::IdentityRefused);
    }
    assert!(immediately >= 98, "{immediately}");
    // Asking does not make the CA's work harder.
    assert!(ca.asked(&web()) <= asked + 1);
}

#[tokio::test(start_paused = true)]
async fn slow_ca_is_waited_for() {
    let mut ca = Clockwork::new();
    ca.takes = WAIT - Duration::from_secs(1);
    let (identities, ca, _) = ca.start();
    let before = Instant::now();
    identities.credential(&web()).await.unwrap();
    assert_eq!(before.elapsed(), ca.takes);
}

#[tokio::test(start_paused = true)]
async fn silent_ca_costs_a_connection_the_stated_time() {
    let mut ca = Clockwork::new();
    ca.takes = Duration::from_secs(3600);
    let (identities, _, _) = ca.start();
    let before = Instant::now();
    let error = identities.credential(&web()).await.unwrap_err();
    assert_eq!(before.elapsed(), WAIT);
    assert_eq!(
        error.to_string(),
        format!("no certificate for {WEB} after 5s")
    );
}

/// The answer of the CA is of no use, and the error says why.
async fn check_unusable(what: impl Fn(&mut Clockwork), expected: &str) {
    let mut ca = Clockwork::new();
    what(&mut ca);
    let (identities, _, _) = ca.start();
    let error = identities.credential(&web()).await.unwrap_err();
    let IdentityError::Unavailable { source, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(source.to_string(), "the CA's answer is unusable");
    let why = crate::telemetry::chain(&**source);
    assert!(why.contains(expected), "{why}");
    assert_eq!(error.reason(), Reason::IdentityRefused);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_of_no_use_are_told_apart() {
    check_unusable(
        |ca| ca.uri = |_| "spiffe://cluster.local/ns/shop/sa/somebody-else".to_owned(),
        "is for spiffe://cluster.local/ns/shop/sa/somebody-else instead of",
    )
    .await;
    check_unusable(
        |ca| ca.uri = |_| "https://example.com/".to_owned(),
        "carries a name that is no identity",
    )
    .await;
    check_unusable(|ca| ca.spoil = Vec::clear, "has 0 elements").await;
    check_unusable(|ca| ca.spoil = |chain| chain.truncate(1), "has 1 elements").await;
    check_unusable(
        |ca| ca.spoil = |chain| chain[0] = "no certificate".to_owned(),
        "element 0 of the certificate chain is no PEM certificate",
    )
    .await;
    check_unusable(
        |ca| ca.spoil = |chain| chain[1] = chain[1].repeat(257),
        "more than 256 certificates",
    )
    .await;
    check_unusable(
        |ca| ca.spoil = |chain| chain[1].clear(),
        "no usable root certificate",
    )
    .await;
    check_unusable(
        |ca| ca.valid = |now| now - HOUR..now - HOUR / 2,
        "is already expired; compare the clocks",
    )
    .await;
    check_unusable(
        |ca| ca.valid = |now| now + HOUR..now - HOUR,
        "is already expired; compare the clocks",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn odd_answers_that_can_be_used_are() {
    async fn check(odd: impl Fn(&mut Clockwork), requests_in_an_hour: Range<usize>) {
        let mut ca = Clockwork::new();
        odd(&mut ca);
        let (identities, ca, _) = ca.start();
        let hold = identities.hold(web());
        hold.credential().await.unwrap();
        tokio::time::sleep(HOUR).await;
        let asked = ca.asked(&web());
        assert!(requests_in_an_hour.contains(&asked), "{asked}");
    }
    check(
        |ca| ca.spoil = |chain| chain[1] = chain[1].repeat(200),
        1..2,
    )
    .await;
    // Until the last second that a certificate can name.
    let end = |now| now..SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    check(move |ca| ca.valid = end, 1..2).await;
    // Not valid yet, by this node's clock: the CA's may be the right one.
    check(|ca| ca.valid = |now| now + HOUR..now + 24 * HOUR, 1..2).await;
    // It ends before it begins: renewed at the end, which is in half an hour.
    check(|ca| ca.valid = |now| now + HOUR..now + HOUR / 2, 2..4).await;
    // Seconds are all there is: renewed every one of them, not more often.
    check(
        |ca| ca.valid = |now| now..now + Duration::from_secs(2),
        2700..3700,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_goes_before_those_that_only_prepare() {
    let (identities, ca, _) = Clockwork::new().start();
    let _holds: Vec<_> = (0..40).map(|n| identities.hold(numbered(n))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ca.asked.lock().unwrap().len(), queue::MAX_IN_FLIGHT);
    // One that waits in the queue already, and one that nobody knew of.
    let (known, unknown) = (numbered(39), web());
    let (one, two) = tokio::join!(
        identities.credential(&known),
        identities.credential(&unknown)
    );
    one.unwrap();
    two.unwrap();
    for id in [known, unknown] {
        let place = ca.place(&id).unwrap();
        assert!((8..10).contains(&place), "{id} was number {place}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_no_connection_waits_for_any_more_goes_back() {
    let mut ca = Clockwork::new();
    ca.takes = WAIT + Duration::from_secs(1);
    let (identities, ca, _) = ca.start();
    let holds: Vec<_> = (0..40).map(|n| identities.hold(numbered(n))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // By its hold this time.
    let error = holds[39].credential().await.unwrap_err();
    assert!(matches!(error, IdentityError::Pending { .. }), "{error}");
    tokio::time::sleep(10 * ca.takes).await;
    assert_eq!(ca.place(&numbered(39)), Some(39));
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_leaves_the_queue() {
    let (identities, ca, _) = Clockwork::new().start();
    let holds: Vec<_> = (0..40).map(|n| identities.hold(numbered(n))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(holds);
    let hold = identities.hold(web());
    hold.credential().await.unwrap();
    assert_eq!(ca.asked.lock().unwrap().len(), queue::MAX_IN_FLIGHT + 1);
    assert!(identities.shared.table().turns.is_empty());
}

#[tokio::test(start_paused = true)]
async fn renewals_of_what_began_together_are_spread() {
    const PODS: usize = 100;
    let (identities, ca, _) = Clockwork::new().start();
    let holds: Vec<_> = (0..PODS).map(|n| identities.hold(numbered(n))).collect();
    for hold in &holds {
        hold.credential().await.unwrap();
    }
    let mut before = ca.asked.lock().unwrap().len();
    assert_eq!(before, PODS);
    for _ in 0..26 {
        tokio::time::sleep(HOUR / 2).await;
        let asked = ca.asked.lock().unwrap().len();
        // They are renewed in the course of 2.3 hours: 22 in half an hour on average.
        assert!(asked - before < PODS / 2, "{} at once", asked - before);
        before = asked;
    }
    assert_eq!(before, 2 * PODS);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_is_asked_less_and_less() {
    const PODS: usize = 100;
    let ca = Clockwork::new();
    ca.failures.store(usize::MAX, Ordering::SeqCst);
    let (identities, ca, _) = ca.start();
    let _holds: Vec<_> = (0..PODS).map(|n| identities.hold(numbered(n))).collect();
    tokio::time::sleep(HOUR).await;
    let before = ca.asked.lock().unwrap().len();
    tokio::time::sleep(HOUR).await;
    let hourly = ca.asked.lock().unwrap().len() - before;
    // Every 150 s, give or take a fifth.
    assert!((PODS * 20..PODS * 30).contains(&hourly), "{hourly}");
    assert_eq!(
        ca.most_in_flight.load(Ordering::SeqCst),
        queue::MAX_IN_FLIGHT
    );
}

#[tokio::test(start_paused = true)]
async fn identity_is_forgotten_with_its_last_hold() {
    let (identities, ca, _) = Clockwork::new().start();
    let (one, two) = (identities.hold(web()), identities.hold(web()));
    one.credential().await.unwrap();
    drop(one);
    assert_eq!(identities.shared.table().known.len(), 1);
    two.credential().await.unwrap();
    drop(two);
    assert!(identities.shared.table().known.is_empty());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(identities.shared.tasks.is_empty());
    assert_eq!(ca.asked(&web()), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_hold_ends_a_request_in_flight() {
    let (identities, ca, _) = Clockwork::new().start();
    let hold = identities.hold(web());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ca.asked(&web()), 1);
    drop(hold);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(identities.shared.tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropped_hold_does_not_take_the_certificate_from_who_waits() {
    let (identities, ca, _) = Clockwork::new().start();
    let hold = identities.hold(web());
    let id = web();
    let (credential, ()) = tokio::join!(identities.credential(&id), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(hold);
    });
    credential.unwrap();
    assert_eq!(ca.asked(&id), 1);
}

#[tokio::test(start_paused = true)]
async fn identity_that_nobody_holds_is_forgotten_after_a_while() {
    let (identities, ca, _) = Clockwork::new().start();
    identities.credential(&web()).await.unwrap();
    tokio::time::sleep(UNHELD_FOR / 2).await;
    identities.credential(&web()).await.unwrap();
    assert_eq!(ca.asked(&web()), 1);
    tokio::time::sleep(2 * UNHELD_FOR + Duration::from_secs(1)).await;
    assert!(identities.shared.table().known.is_empty());
    assert!(identities.shared.tasks.is_empty());
    identities.credential(&web()).await.unwrap();
    assert_eq!(ca.asked(&web()), 2);
}

#[tokio::test(start_paused = true)]
async fn there_is_a_bound_on_identities_that_nobody_holds() {
    let (identities, _, _) = Clockwork::new().start();
    let holds: Vec<_> = (0..MAX_UNHELD)
        .map(|n| identities.hold(numbered(n)))
        .collect();
    let error = identities.credential(&web()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Overloaded);
    // A pod is not turned away.
    let hold = identities.hold(web());
    assert_eq!(identities.shared.table().known.len(), MAX_UNHELD + 1);
    drop((holds, hold));
    assert!(identities.shared.table().known.is_empty());
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_tasks_and_leaves_the_certificates() {
    let (identities, _, shutdown) = Clockwork::new().start();
    let hold = identities.hold(web());
    hold.credential().await.unwrap();
    let late = numbered(1);
    let (waiting, ()) = tokio::join!(identities.credential(&late), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        shutdown.start();
    });
    assert!(matches!(waiting, Err(IdentityError::Stopped { .. })));
    hold.credential().await.unwrap();
    identities.credential(&web()).await.unwrap();
    assert!(identities.shared.tasks.is_empty());
}

#[test]
fn worker_threads_have_their_tasks_run_on_the_control_runtime() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (control, stop) = (runtime(), Shutdown::default());
    let (identities, ca, _) = {
        let _inside = control.enter();
        Clockwork::new().start()
    };
    let worker = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let first = runtime().block_on(identities.credential(&web())).unwrap();
            // That runtime is gone; the certificate is still kept.
            let second = runtime().block_on(identities.credential(&web())).unwrap();
            stop.start();
            Arc::ptr_eq(&first, &second)
        }
    });
    control.block_on(stop.started());
    assert!(worker.join().unwrap());
    assert_eq!(ca.asked(&web()), 1);
}

// Over the wire.

async fn ca_server(ca: &TestCa, delay: Duration) -> TestServer {
    let root = Arc::new(TestCa::new("mesh"));
    let mut setup = Setup::new(ca);
    setup.delay = delay;
    setup.answer = Arc::new(move |request| {
        let uri = impersonated(request)
            .ok_or_else(|| Status::unauthenticated("request authenticate failure"))?;
        Ok(root.sign(&request.csr, Leaf::uris(&[&uri])))
    });
    setup.start().await
}

fn impersonated(
    request: &ztunnel_proto::istio::v1::auth::IstioCertificateRequest,
) -> Option<String> {
    let value = request
        .metadata
        .as_ref()?
        .fields
        .get("ImpersonatedIdentity")?;
    match value.kind.as_ref()? {
        Kind::StringValue(uri) => Some(uri.clone()),
        _ => None,
    }
}

fn identities(endpoint: Endpoint) -> Identities {
    let cfg = CaConfig {
        endpoint,
        secret_ttl: 24 * HOUR,
        tls: tls::Context::default(),
        metrics: crate::telemetry::Metrics::new("test", 1).ca.clone(),
    };
    Identities::new(cfg, TaskGroup::default(), Shutdown::default())
}

#[tokio::test]
async fn certificates_come_from_the_ca_service() {
    let ca = TestCa::new("control plane");
    let server = ca_server(&ca, Duration::from_millis(20)).await;
    let mut endpoint = server.endpoint.clone();
    endpoint.token = Some(TokenSource::Literal(Secret::new("sesame".to_owned())));
    let identities = identities(endpoint);
    let (web, other) = (web(), numbered(1));
    let (one, two, three) = tokio::join!(
        identities.credential(&web),
        identities.credential(&web),
        identities.credential(&other)
    );
    assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
    assert_eq!(three.unwrap().identity(), &other);

    let mut calls = server.calls.lock().unwrap().clone();
    calls.sort_by_key(|call| impersonated(&call.request));
    assert_eq!(
        calls
            .iter()
            .map(|call| impersonated(&call.request).unwrap())
            .collect::<Vec<_>>(),
        [other.to_string(), web.to_string()]
    );
    for call in &calls {
        assert_eq!(call.request.validity_duration, 86_400);
        assert_eq!(call.metadata.get("authorization").unwrap(), "Bearer sesame");
        assert_eq!(call.metadata.get("clusterid").unwrap(), "Kubernetes");
    }
    // One connection for both.
    assert_eq!(server.asked_for.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn changed_roots_are_used_by_the_next_request() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let server = ca_server(&new, Duration::ZERO).await;
    let path = std::env::temp_dir().join(format!("ztunnel-ca-roots-{}", std::process::id()));
    std::fs::write(&path, &old.root).unwrap();
    let mut endpoint = server.endpoint.clone();
    endpoint.roots = crate::control_plane::RootSource::File(path.clone());
    let identities = identities(endpoint);
    let hold = identities.hold(web());
    let mut latest = hold.latest.clone();
    // The first try fails; the roots are replaced before the second.
    latest.changed().await.unwrap();
    let failure = latest.borrow().error(&web());
    assert!(
        format!("{failure:?}").contains("UnknownIssuer"),
        "{failure:?}"
    );
    std::fs::write(&path, &new.root).unwrap();
    hold.credential().await.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(server.calls.lock().unwrap().len(), 1);
}
