//! What the demo has seen: on the wire, at the server, in the access log.

use std::net::IpAddr;

use lab::{Lab, LabError, Result, Seen};
use serde_json::Value;

use crate::{CLIENT, GREETING, MARKER, SERVER};

const HBONE_PORT: u16 = 15008;
/// The service's and the pod's own.
const PLAIN_PORTS: [u16; 2] = [80, 8080];

/// One request.
pub(crate) struct Evidence {
    pub(crate) answer: String,
    /// Whom the server saw.
    pub(crate) client: IpAddr,
    pub(crate) seen: Seen,
}

impl Evidence {
    pub(crate) fn show_meshed(&self, lab: &Lab, log: &AccessLog) {
        println!("\nWhat the proxies did:");
        println!("  caller        {}", log.src_identity);
        println!("  answered by   {}", log.dst_identity);
        println!("  asked for     {}", log.dst);
        println!(
            "  tunnel        HBONE to {}, {} with {}",
            log.hbone, log.cipher, log.key_exchange
        );
        let own = if self.is_pod_itself(lab) {
            "the pod's own address"
        } else {
            "NOT the pod's address"
        };
        println!("  nginx saw     {} as its client: {own}", self.client);
        println!("What went over the link between the nodes:");
        println!(
            "  {} packets, {} bytes in all",
            self.seen.packets, self.seen.bytes
        );
        self.show_wire();
    }

    pub(crate) fn show_plain(&self) {
        println!("The same request now:");
        self.show_wire();
    }

    fn show_wire(&self) {
        println!(
            "  {:>6} bytes on port {HBONE_PORT}, TLS",
            self.seen.on_port(HBONE_PORT)
        );
        println!(
            "  {:>6} bytes on the ports of the application",
            self.plain_bytes()
        );
        println!(
            "  {MARKER:?} in plaintext: {}",
            times(self.seen.marker(MARKER))
        );
    }

    pub(crate) fn is_meshed(&self, lab: &Lab, log: &AccessLog) -> bool {
        self.answer == GREETING
            && self.is_pod_itself(lab)
            && log.src_identity == lab.pod(CLIENT).identity()
            && log.dst_identity == lab.pod(SERVER).identity()
            && self.seen.on_port(HBONE_PORT) > 0
            && self.plain_bytes() == 0
            && self.seen.marker(MARKER) == 0
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.answer == GREETING
            && self.seen.on_port(HBONE_PORT) == 0
            && self.seen.marker(MARKER) > 0
    }

    fn is_pod_itself(&self, lab: &Lab) -> bool {
        lab.pod(CLIENT).ips().contains(&self.client)
    }

    fn plain_bytes(&self) -> u64 {
        PLAIN_PORTS
            .iter()
            .map(|port| self.seen.on_port(*port))
            .sum()
    }
}

fn times(count: u64) -> String {
    match count {
        0 => "never".into(),
        1 => "once".into(),
        more => format!("{more} times"),
    }
}

/// What the access log of the client's node says about the request.
pub(crate) struct AccessLog {
    pub(crate) src_identity: String,
    pub(crate) dst_identity: String,
    pub(crate) dst: String,
    pub(crate) hbone: String,
    pub(crate) cipher: String,
    pub(crate) key_exchange: String,
}

impl AccessLog {
    pub(crate) fn read(lab: &Lab) -> Result<Self> {
        // The line is written when both directions are closed, which may be a moment after curl has its answer.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            let log = lab.node("node1").log();
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut outbound =
                lines.filter(|line| line["scope"] == "access" && line["direction"] == "outbound");
            if let Some(line) = outbound.next() {
                let field = |name: &str| line[name].as_str().unwrap_or("unknown").to_owned();
                return Ok(Self {
                    src_identity: field("src.identity"),
                    dst_identity: field("dst.identity"),
                    dst: field("dst.orig_addr"),
                    hbone: field("dst.addr"),
                    cipher: field("tls.cipher"),
                    key_exchange: field("tls.key_exchange"),
                });
            }
            if std::time::Instant::now() > deadline {
                return Err(LabError::new(
                    "node1 has no access log line for the request",
                ));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
