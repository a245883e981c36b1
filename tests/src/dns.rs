//! A name server, the smallest that a resolver can ask: A and AAAA over UDP, and every name that it was not told of does
//! not exist.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Doing, Result};
use crate::place::Place;
use crate::sync::lock;

/// Where resolvers expect one.
pub(crate) const PORT: u16 = 53;
/// How often it looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);
/// How long resolvers may keep an answer.
const TTL: u32 = 60;
/// Record types.
const A: u16 = 1;
const AAAA: u16 = 28;
/// What a name server says besides an answer.
const NAME_ERROR: u8 = 3;

/// A running name server.
pub struct Dns {
    state: Arc<Mutex<State>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, Vec<IpAddr>>,
    asked: BTreeMap<String, usize>,
}

impl Dns {
    pub(crate) fn start(place: &Place, on: SocketAddr) -> Result<Self> {
        let socket = place
            .namespace()
            .enter(|| UdpSocket::bind(on))?
            .doing(|| format!("be a name server on {on} in {}", place.name()))?;
        socket
            .set_read_timeout(Some(LOOK))
            .doing(|| "limit the waits of a name server")?;
        let (state, done) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (known, ends) = (state.clone(), done.clone());
        let thread = std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || {
                let mut query = [0; 512];
                while !ends.load(Ordering::Relaxed) {
                    // A limit that is reached and a signal are errors, too.
                    let Ok((length, from)) = socket.recv_from(&mut query) else {
                        continue;
                    };
                    if let Some(answer) = lock(&known).answer(&query[..length]) {
                        drop(socket.send_to(&answer, from));
                    }
                }
            })
            .doing(|| "start the thread of a name server")?;
        Ok(Self {
            state,
            done,
            thread: Some(thread),
        })
    }

    /// Gives a name these addresses, instead of those it had.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let parse = |ip: &&str| {
            ip.parse()
                .unwrap_or_else(|_| panic!("`{ip}` is no address"))
        };
        let addresses = addresses.iter().map(parse).collect();
        lock(&self.state).names.insert(name.to_owned(), addresses);
    }

    /// How often somebody has asked about a name, for either kind of address.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        lock(&self.state).asked.get(name).copied().unwrap_or(0)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl State {
    /// Nothing for what is no question.
    fn answer(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = name(query.get(12..)?)?;
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let question = &query[12..query.len() - rest.len() + 4];
        *self.asked.entry(name.clone()).or_default() += 1;
        let known = self.names.get(&name);
        let of_kind = |ip: &&IpAddr| (kind == A && ip.is_ipv4()) || (kind == AAAA && ip.is_ipv6());
        let found: Vec<IpAddr> = known
            .into_iter()
            .flatten()
            .filter(of_kind)
            .copied()
            .collect();

        let mut answer = query[..2].to_vec();
        // A response, with recursion asked for and available.
        answer.push(0x81);
        answer.push(0x80 | if known.is_some() { 0 } else { NAME_ERROR });
        for count in [1, u16::try_from(found.len()).ok()?, 0, 0] {
            answer.extend(count.to_be_bytes());
        }
        answer.extend(question);
        for ip in found {
            // The name of the question, again.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend(1_u16.to_be_bytes());
            answer.extend(TTL.to_be_bytes());
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            answer.extend(u16::try_from(octets.len()).ok()?.to_be_bytes());
            answer.extend(octets);
        }
        Some(answer)
    }
}

/// The name that a question begins with, and what comes after it.
fn name(mut question: &[u8]) -> Option<(String, &[u8])> {
    let mut labels = Vec::new();
    loop {
        let (length, rest) = question.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        question = rest;
        if label.is_empty() {
            return (question.len() >= 4).then(|| (labels.join("."), question));
        }
        labels.push(String::from_utf8_lossy(label).to_lowercase());
    }
}
