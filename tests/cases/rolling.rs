//! A rolling restart of a service under load: pods are replaced one after the other, and no request fails.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lab::{DaemonOptions, Health, Lab, Pod, Workload};
use nix::sys::socket;

use crate::access::eventually;

/// A client, and a service with two endpoints on the other node.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10]}
  - {name: db0, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.10], protocol: HBONE}
  - {name: db1, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.11], protocol: HBONE}
services:
  - {name: db, namespace: shop, addresses: [10.96.0.10], ports: {80: 8080}, workloads: [db0, db1]}
";
const VIP: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
const APP_PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(20);
const CLIENTS: usize = 4;
/// Pods that are replaced.
const RESTARTS: usize = 4;

/// Held while a client connects and gets its first answer. A connection that the kernel has taken for an app that is just
/// closing its listener is lost with any proxy and without one; so none is on its way at that moment.
type Door = Arc<RwLock<()>>;

/// An app as it should be: when it is to stop it takes no more connections, and ends when those it has are done.
struct App {
    listener: TcpListener,
    thread: JoinHandle<()>,
    door: Door,
}

impl App {
    fn start(pod: &Pod, door: &Door) -> Self {
        let on = SocketAddr::new(pod.v4().unwrap(), APP_PORT);
        let listener = pod.listen(on).unwrap();
        let accepting = listener.try_clone().unwrap();
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                while let Ok((stream, _)) = accepting.accept() {
                    scope.spawn(move || echo(stream));
                }
                drop(accepting);
            });
        });
        Self {
            listener,
            thread,
            door: door.clone(),
        }
    }

    fn stop(self) {
        let closed = self.door.write().unwrap();
        socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both).unwrap();
        drop(self.listener);
        drop(closed);
        self.thread.join().unwrap();
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

/// Clients that send one request after the other, each on a connection of its own.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: &Pod, door: &Door) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..CLIENTS {
            let (client, door) = (client.clone(), door.clone());
            let (stop, done, failed) = (load.stop.clone(), load.done.clone(), load.failed.clone());
            load.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(err) = request(&client, &door) {
                        failed.lock().unwrap().push(err.to_string());
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        load
    }

    /// Waits for some more requests, from each client and to each endpoint.
    fn go_on(&self) {
        let enough = self.done.load(Ordering::Relaxed) + 10 * CLIENTS;
        eventually("requests end", || {
            self.done.load(Ordering::Relaxed) >= enough
        });
        assert_eq!(*self.failed.lock().unwrap(), Vec::<String>::new());
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert_eq!(*self.failed.lock().unwrap(), Vec::<String>::new());
    }
}

fn request(client: &Pod, door: &Door) -> io::Result<()> {
    let open = door.read().unwrap();
    let mut stream = client.connect(VIP.into(), SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    exchange(&mut stream)?;
    drop(open);
    exchange(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was asked for")),
    }
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"a request")?;
    let mut answer = [0; 9];
    stream.read_exact(&mut answer)?;
    match &answer {
        b"a request" => Ok(()),
        _ => Err(io::Error::other("another answer")),
    }
}

/// Who ends an endpoint when the control plane is still to tell about it.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// The control plane tells, and some time later the app ends.
    ToldBefore,
    /// The app is gone, and its proxy and its network, before anybody is told.
    ToldAfter,
}

struct Rollout {
    lab: Lab,
    door: Door,
    apps: Vec<(String, App)>,
    load: Load,
}

impl Rollout {
    fn start() -> Self {
        let lab = Lab::from_yaml(MESH).unwrap();
        let options = DaemonOptions::default().env("CONNECTION_TERMINATION_DEADLINE", "2s");
        for node in lab.nodes() {
            node.start_daemon_with(&options).unwrap();
        }
        lab.enroll_all().unwrap();
        let door = Door::default();
        let apps = ["shop/db0", "shop/db1"].map(|key| {
            let app = App::start(&lab.pod(key), &door);
            (key.to_owned(), app)
        });
        let load = Load::start(&lab.pod("shop/client"), &door);
        load.go_on();
        Self {
            lab,
            door,
            apps: apps.into(),
            load,
        }
    }

    /// Adds a pod to the service, as soon as its app listens.
    fn add(&mut self, number: usize) {
        let model = self.lab.pod(&self.apps[0].0).workload().clone();
        let address: IpAddr = [10, 244, 2, 20 + u8::try_from(number).unwrap()].into();
        let new = Workload {
            name: format!("new{number}"),
            addresses: vec![address],
            status: Health::Healthy,
            ..model
        };
        let key = new.key();
        let pod = self.lab.add_pod(new.clone()).unwrap();
        self.lab.enroll(&[&key]).unwrap();
        let app = App::start(&pod, &self.door);
        self.apps.push((key, app));
        let add = |mesh: &mut lab::MeshFile| {
            mesh.service_mut("shop/db")
                .unwrap()
                .workloads
                .push(new.name);
        };
        self.lab.control_plane().update(add).unwrap();
        self.lab.settle().unwrap();
    }

    /// Ends the oldest pod.
    fn remove(&mut self, order: Order) {
        let (key, app) = self.apps.remove(0);
        if order == Order::ToldBefore {
            let unhealthy = |mesh: &mut lab::MeshFile| {
                mesh.workload_mut(&key).unwrap().status = Health::Unhealthy;
            };
            self.lab.control_plane().update(unhealthy).unwrap();
            self.lab.settle().unwrap();
        }
        app.stop();
        self.load.go_on();
        let pod = self.lab.pod(&key);
        let node = self.lab.node("node2");
        node.daemon(|daemon| daemon.unenroll(&pod)).unwrap();
        self.load.go_on();
        drop(pod);
        // Its network first, and then the control plane tells that it is gone.
        self.lab.remove_pod(&key).unwrap();
        self.lab.settle().unwrap();
        self.load.go_on();
    }
}

fn rolls_without_a_failed_request(order: Order) {
    let mut rollout = Rollout::start();
    for number in 0..RESTARTS {
        rollout.add(number);
        rollout.load.go_on();
        rollout.remove(order);
    }
    let Rollout {
        lab, apps, load, ..
    } = rollout;
    load.finish();
    let now: Vec<_> = apps.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(now, ["shop/new2", "shop/new3"]);
    for (_, app) in apps {
        app.stop();
    }
    drop(lab);
}

#[test]
fn no_request_fails_when_the_control_plane_tells_before_a_pod_goes() {
    rolls_without_a_failed_request(Order::ToldBefore);
}

#[test]
fn no_request_fails_when_pods_are_gone_before_the_control_plane_tells() {
    rolls_without_a_failed_request(Order::ToldAfter);
}
