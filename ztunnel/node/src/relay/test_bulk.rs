//! Much in both directions at once, for the tests of everything that relays.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// How much goes each way.
pub(crate) const LEN: usize = 24 << 20;

/// Has two apps send [`LEN`] bytes to each other at once, and compares what came.
pub(crate) async fn exchange(one: TcpStream, other: TcpStream) {
    let (a, b) = (pattern(1), pattern(2));
    let (mut one_read, mut one_write) = one.into_split();
    let (mut other_read, mut other_write) = other.into_split();
    let (to_other, to_one) = (a.clone(), b.clone());
    spawn_local(async move {
        one_write.write_all(&to_other).await.unwrap();
        one_write.shutdown().await.unwrap();
    });
    spawn_local(async move {
        other_write.write_all(&to_one).await.unwrap();
        other_write.shutdown().await.unwrap();
    });
    let (mut got_a, mut got_b) = (Vec::new(), Vec::new());
    let (first, second) = tokio::join!(
        other_read.read_to_end(&mut got_a),
        one_read.read_to_end(&mut got_b)
    );
    first.unwrap();
    second.unwrap();
    assert!(got_a == a && got_b == b);
}

fn pattern(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..LEN).map(|_| next()).collect()
}
