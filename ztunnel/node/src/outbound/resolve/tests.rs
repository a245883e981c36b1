//! Questions to a name server on loopback, and to one that does not answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::config::{NameServerConfig, ResolverConfig as Servers};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::*;

const PACE: Pace = Pace {
    debounce: Duration::from_millis(1),
    at_least: Duration::from_millis(20),
};
const A: u8 = 1;
const AAAA: u8 = 28;

/// A name server, and how often it was asked.
struct Server {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Server {
    /// One that gives `answer(kind of record)`, or says that the name does not exist, or says nothing.
    async fn start(answer: fn(u8) -> Option<&'static [IpAddr]>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let asked = Arc::<AtomicUsize>::default();
        let count = asked.clone();
        tokio::spawn(async move {
            let mut query = [0; 512];
            loop {
                let (len, from) = socket.recv_from(&mut query).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let question = &query[12..len];
                let end = question.iter().position(|b| *b == 0).unwrap() + 5;
                let kind = question[end - 3];
                let Some(found) = answer(kind) else { continue };
                let code = if found.is_empty() { 3 } else { 0 };
                let number = u8::try_from(found.len()).unwrap();
                let mut reply = vec![query[0], query[1], 0x81, 0x80 | code];
                reply.extend([0, 1, 0, number, 0, 0, 0, 0]);
                reply.extend(&question[..end]);
                for ip in found {
                    reply.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60]);
                    match ip {
                        IpAddr::V4(ip) => reply.extend([&[0, 4], &ip.octets()[..]].concat()),
                        IpAddr::V6(ip) => reply.extend([&[0, 16], &ip.octets()[..]].concat()),
                    }
                }
                socket.send_to(&reply, from).await.unwrap();
            }
        });
        Self { addr, asked }
    }

    fn resolver(&self, ipv6: bool) -> Resolver {
        let mut server = NameServerConfig::udp(self.addr.ip());
        for connection in &mut server.connections {
            connection.port = self.addr.port();
        }
        let servers = Servers::from_name_servers(vec![server]);
        let built = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        resolver(Ok(built.build().unwrap()), ipv6)
    }

    async fn resolve(&self) -> Answer {
        let resolver = self.resolver(true);
        resolver.resolve(&name(1), IpFamilies::Dual).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn resolver(configured: Configured, ipv6: bool) -> Resolver {
    Resolver(Arc::new(Inner {
        current: ArcSwap::from_pointee(configured),
        ipv6,
        asked: Mutex::default(),
        runtime: Handle::current(),
        tasks: TaskGroup::default(),
    }))
}

const V4: &[IpAddr] = &[IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1))];
const V6: &[IpAddr] = &[IpAddr::V6(std::net::Ipv6Addr::new(
    0x2001, 0xdb8, 0, 0, 0, 0, 0, 1,
))];

fn both_families(kind: u8) -> Option<&'static [IpAddr]> {
    match kind {
        A => Some(V4),
        AAAA => Some(V6),
        _ => None,
    }
}

fn name(number: usize) -> Arc<str> {
    format!("name{number}.example.").into()
}

#[tokio::test]
async fn only_the_families_that_are_wanted_are_asked_for() {
    for (ipv6, families, expected, asked) in [
        (true, IpFamilies::Automatic, [V4, V6].concat(), 2),
        (true, IpFamilies::Dual, [V4, V6].concat(), 2),
        (true, IpFamilies::V4Only, V4.to_vec(), 1),
        (true, IpFamilies::V6Only, V6.to_vec(), 1),
        (false, IpFamilies::Automatic, V4.to_vec(), 1),
        (false, IpFamilies::V6Only, vec![], 0),
    ] {
        let server = Server::start(both_families).await;
        let found = server.resolver(ipv6).resolve(&name(1), families).await;
        let mut found = found.unwrap().to_vec();
        found.sort();
        assert_eq!(found, expected, "{ipv6} {families:?}");
        assert_eq!(server.asked(), asked, "{ipv6} {families:?}");
    }
}

#[tokio::test]
async fn many_who_ask_the_same_ask_once_and_an_answer_is_remembered() {
    let server = Server::start(both_families).await;
    let resolver = server.resolver(true);
    let asking = (0..100).map(|_| {
        let resolver = resolver.clone();
        tokio::spawn(async move { resolver.resolve(&name(1), IpFamilies::V4Only).await })
    });
    for one in asking.collect::<Vec<_>>() {
        assert_eq!(*one.await.unwrap().unwrap(), *V4);
    }
    assert_eq!(server.asked(), 1);
    let again = resolver.resolve(&name(1), IpFamilies::V4Only).await;
    assert_eq!(*again.unwrap(), *V4);
    assert_eq!(server.asked(), 1);
    assert!(resolver.0.asked().is_empty());
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_an_error_that_says_so() {
    let server = Server::start(|_| Some(&[])).await;
    let err = server.resolve().await.unwrap_err();
    assert_eq!(err.reason(), Reason::NameUnresolved);
    let text = err.to_string();
    assert!(text.contains("name1.example. cannot be resolved"), "{text}");
    assert!(text.contains("Non-Existent Domain"), "{text}");
}

#[tokio::test]
async fn a_family_without_an_answer_does_not_keep_the_other_from_being_used() {
    for (answer, expected) in [
        ((|kind| (kind == A).then_some(V4)) as fn(u8) -> _, V4),
        (|kind| (kind == AAAA).then_some(V6), V6),
    ] {
        let server = Server::start(answer).await;
        let started = Instant::now();
        let found = server.resolve();
        assert_eq!(*found.await.unwrap(), *expected);
        assert!(started.elapsed() < OTHER_FAMILY * 3);
    }
    // One that has none, and says so at once.
    let server = Server::start(|kind| Some(if kind == AAAA { V6 } else { &[] })).await;
    let found = server.resolve();
    assert_eq!(*found.await.unwrap(), *V6);
}

#[tokio::test(start_paused = true)]
async fn a_silent_name_server_costs_a_bounded_time() {
    let server = Server::start(|_| None).await;
    let started = Instant::now();
    let err = server.resolve().await.unwrap_err();
    assert_eq!(err.reason(), Reason::NameUnresolved, "{err}");
    assert!(started.elapsed() <= LIMIT);
}

#[tokio::test(start_paused = true)]
async fn there_is_a_limit_to_the_questions_at_a_time() {
    let server = Server::start(|_| None).await;
    let resolver = server.resolver(true);
    let asking: Vec<_> = (0..MAX_QUESTIONS)
        .map(|number| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.resolve(&name(number), IpFamilies::V4Only).await })
        })
        .collect();
    while resolver.0.asked().len() < MAX_QUESTIONS {
        tokio::task::yield_now().await;
    }
    let last = name(MAX_QUESTIONS);
    let one_more = resolver.resolve(&last, IpFamilies::V4Only).await;
    let one_more = one_more.unwrap_err();
    assert_eq!(one_more.reason(), Reason::Overloaded, "{one_more}");
    // Whoever asks what is asked already is none more.
    let resolver_too = resolver.clone();
    let same =
        tokio::spawn(async move { resolver_too.resolve(&name(0), IpFamilies::V4Only).await });
    for one in asking {
        assert_eq!(
            one.await.unwrap().unwrap_err().reason(),
            Reason::NameUnresolved
        );
    }
    assert_eq!(
        same.await.unwrap().unwrap_err().reason(),
        Reason::NameUnresolved
    );
    assert!(resolver.0.asked().is_empty());
}

#[tokio::test]
async fn who_waits_when_the_daemon_stops_is_told() {
    let server = Server::start(|_| None).await;
    let resolver = server.resolver(true);
    let asking = {
        let resolver = resolver.clone();
        tokio::spawn(async move { resolver.resolve(&name(1), IpFamilies::V4Only).await })
    };
    while server.asked() == 0 {
        tokio::task::yield_now().await;
    }
    resolver.0.tasks.drain(Duration::ZERO).await;
    let err = asking.await.unwrap().unwrap_err();
    assert_eq!(err.reason(), Reason::Drained, "{err}");
}

#[tokio::test]
async fn an_address_in_place_of_a_name_needs_nobody() {
    let nobody = resolver(Err("nobody".into()), true);
    for ip in ["192.0.2.1", "2001:db8::1"] {
        let found = nobody.resolve(&ip.into(), IpFamilies::Dual).await.unwrap();
        assert_eq!(*found, [ip.parse::<IpAddr>().unwrap()]);
    }
}

#[tokio::test]
async fn the_configuration_is_followed_and_one_that_is_no_good_changes_nothing() {
    let dir = std::env::temp_dir().join(format!("resolve-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("resolv.conf");
    let config = ResolverConfig {
        resolv_conf: path.clone(),
        ipv6: true,
    };
    let shutdown = Shutdown::default();
    let resolver = Resolver::start(config, PACE, TaskGroup::default(), shutdown.clone());
    let asked = async || {
        let found = resolver.resolve(&name(1), IpFamilies::V4Only).await;
        found.unwrap_err().to_string()
    };
    let without = asked().await;
    assert!(
        without.contains("resolv.conf: it cannot be read"),
        "{without}"
    );
    let become_so = async |expected: fn(&Resolver) -> bool| {
        timeout(Duration::from_secs(10), async {
            while !expected(&resolver) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the file is followed");
    };
    std::fs::write(&path, "search example\n").unwrap();
    become_so(|resolver| match &**resolver.0.current.load() {
        Ok(_) => false,
        Err(why) => why.contains("no nameservers"),
    })
    .await;
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    become_so(|resolver| resolver.0.current.load().is_ok()).await;
    shutdown.start();
    let before = resolver.0.current.load_full();
    std::fs::write(&path, "nonsense\n").unwrap();
    resolver.reload(&path);
    assert!(Arc::ptr_eq(&before, &resolver.0.current.load_full()));
    std::fs::remove_dir_all(&dir).unwrap();
}
