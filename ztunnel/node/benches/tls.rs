//! What do our TLS streams spare against those of rustls, whose keys they use?
//!
//! Both move the same bytes on one thread through a pipe in memory, so what differs is the sealing, the opening and the
//! copies in between. Bulk: a frame of 64 KiB, head and data apart, as a tunnel writes it. Small: 16 frames of 100 bytes for
//! each flush, as requests of many streams are.
//!
//! ```text
//! cargo bench -p ztunnel-node --bench tls
//! ```
//! Cases take turns, so that a bad moment hits all of them; medians, with the tenth and the ninetieth percentile.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tikv_jemallocator::Jemalloc;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use ztunnel_mesh::name::Identity;
use ztunnel_node::tls::{self, Context, Credential, PrivateKey};

#[path = "../src/tls/test_ca.rs"]
#[expect(dead_code, reason = "made for the unit tests, which use all of it")]
mod test_ca;

use test_ca::TestCa;

/// That of the daemon.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const PIPE: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(10);
const ROUNDS: usize = 15;

/// A head and data, so often for each flush, so often in all.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    data: usize,
    per_flush: usize,
    flushes: usize,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "bulk, ms per GB",
        data: 65_527,
        per_flush: 4,
        flushes: 400,
    },
    Shape {
        name: "small, ns per frame",
        data: 100,
        per_flush: 16,
        flushes: 2_000,
    },
];

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (ca, node) = (TestCa::new("root"), Context::default());
    let expected: Arc<[Identity]> = Arc::new([DB.parse().unwrap()]);
    let client = ca.credential_in(&node, WEB).client_config(expected);
    let server = ca.credential_in(&node, DB).server_config();
    println!("{:<24}{:<28}{:<28}ratio", "", "ours", "rustls");
    for shape in SHAPES {
        let (mut ours, mut rustls) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(runtime.block_on(through_ours(&client, &server, shape)));
            rustls.push(runtime.block_on(through_rustls(&client, &server, shape)));
        }
        let (ours, rustls) = (quantiles(ours), quantiles(rustls));
        let show = |[low, median, high]: [f64; 3]| format!("{median:.0} ({low:.0}, {high:.0})");
        let ratio = ours[1] / rustls[1];
        println!(
            "{:<24}{:<28}{:<28}{ratio:.2}",
            shape.name,
            show(ours),
            show(rustls)
        );
    }
}

async fn through_ours(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, shape: Shape) -> f64 {
    let (near, far) = duplex(PIPE);
    let (near, far) = tokio::join!(
        tls::connect(Arc::clone(client), near, SOON),
        tls::accept(Arc::clone(server), far, SOON),
    );
    let (near, far) = (near.ok().unwrap(), far.ok().unwrap());
    moved(near.stream, far.stream, shape).await
}

async fn through_rustls(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    shape: Shape,
) -> f64 {
    let (near, far): (DuplexStream, DuplexStream) = duplex(PIPE);
    let nobody = ServerName::from(Ipv4Addr::UNSPECIFIED);
    let (near, far) = tokio::join!(
        TlsConnector::from(Arc::clone(client)).connect(nobody, near),
        TlsAcceptor::from(Arc::clone(server)).accept(far),
    );
    moved(near.unwrap(), far.unwrap(), shape).await
}

/// What it takes, in the unit of the shape.
async fn moved(
    mut near: impl AsyncWrite + Unpin,
    mut far: impl AsyncRead + Unpin,
    shape: Shape,
) -> f64 {
    let (head, data) = ([1; 9], vec![2; shape.data]);
    let frame = head.len() + data.len();
    let frames = shape.per_flush * shape.flushes;
    let began = Instant::now();
    let write = async {
        for _ in 0..shape.flushes {
            for _ in 0..shape.per_flush {
                let mut sent = 0;
                while sent < frame {
                    let (head, data) = (
                        head.get(sent..).unwrap_or_default(),
                        &data[sent.saturating_sub(9)..],
                    );
                    let bufs = [IoSlice::new(head), IoSlice::new(data)];
                    sent += std::future::poll_fn(|cx| {
                        Pin::new(&mut near).poll_write_vectored(cx, &bufs)
                    })
                    .await
                    .unwrap();
                }
            }
            near.flush().await.unwrap();
        }
    };
    let read = async {
        let (mut buf, mut left) = (vec![0; 64 * 1024], frames * frame);
        while left > 0 {
            left -= far.read(&mut buf).await.unwrap();
        }
    };
    tokio::join!(write, read);
    let took = began.elapsed().as_secs_f64();
    match shape.per_flush {
        16 => took * 1e9 / frames as f64,
        _ => took * 1e3 / (frames * frame) as f64 * 1e9,
    }
}

fn quantiles(mut samples: Vec<f64>) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [1, 5, 9].map(|tenth| samples[samples.len() * tenth / 10])
}
