use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PORT: u16 = 40_000;
const TEXT: &str = "nobody-may-read-it";

fn seen() -> Seen {
    Seen::new(Look {
        port: PORT,
        to: (FAR, 80).into(),
        tunnel_ports: vec![15008],
        text: Some(TEXT.to_owned()),
    })
}

fn packet(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), opens: bool, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0];
    bytes.extend(from.0.octets());
    bytes.extend(to.0.octets());
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes.extend([0, 0, 0, if opens { 0 } else { 1 }]);
    bytes.extend([0, 0, 0, 0, 0x50, u8::from(opens) << 1]);
    bytes.extend([0; 6]);
    bytes.extend(payload);
    bytes
}

fn pass(seen: &mut Seen, outgoing: bool, bytes: &[u8]) {
    seen.packet(Packet {
        interface: 2,
        outgoing,
        bytes,
    });
}

fn record() -> Vec<u8> {
    let mut bytes = vec![23, 3, 3, 0, 20];
    bytes.extend([7; 20]);
    bytes
}

#[test]
fn a_tunnel_is_told_from_what_is_in_the_clear() {
    let mut seen = seen();
    let (tunnel, here) = ((FAR, 15008), (POD, 50_000));
    pass(&mut seen, true, &packet(here, tunnel, true, b""));
    pass(&mut seen, true, &packet(here, tunnel, false, &record()));
    pass(&mut seen, false, &packet(tunnel, here, false, &record()));
    // The connection itself, both ways; another one; somebody else's; and the text in something that is not TCP.
    pass(&mut seen, true, &packet((POD, PORT), (FAR, 80), true, b""));
    pass(&mut seen, false, &packet((FAR, 80), (POD, PORT), true, b""));
    pass(
        &mut seen,
        true,
        &packet((POD, PORT + 1), (FAR, 80), true, b""),
    );
    pass(&mut seen, true, &packet((POD, PORT), (FAR, 81), true, b""));
    pass(&mut seen, true, TEXT.as_bytes());
    let wire = seen.done();
    assert_eq!(
        (wire.packets, wire.in_the_clear, wire.others_to_destination),
        (8, 2, 1)
    );
    assert_eq!(wire.text_seen, 1);
    assert_eq!(
        wire.text_seen_in.as_deref(),
        Some("a packet that is not TCP")
    );
    let [tunnel] = &wire.tunnels[..] else {
        panic!("{wire:?}")
    };
    assert!(tunnel.opened);
    assert_eq!(
        (tunnel.out.packets, tunnel.out.records.application_data),
        (2, 1)
    );
    assert_eq!(
        (tunnel.back.packets, tunnel.back.records.application_data),
        (1, 1)
    );
}

#[test]
fn more_tunnels_than_are_followed_are_counted() {
    let mut seen = seen();
    let most = u16::try_from(MOST_STREAMS).unwrap();
    for port in 0..most + 10 {
        pass(
            &mut seen,
            true,
            &packet((POD, port), (FAR, 15008), true, b""),
        );
    }
    assert_eq!(seen.streams.len(), MOST_STREAMS);
    assert_eq!(seen.done().not_followed, 10);
}

/// Whatever passes: anybody can send the pod a packet.
#[test]
fn nothing_that_passes_does_harm() {
    let mut random = StdRng::seed_from_u64(7);
    let mut seen = seen();
    for round in 0..200_000_u32 {
        let payload = [record(), record()].concat();
        let mut bytes = packet((POD, 50_000), (FAR, 15008), round % 97 == 0, &payload);
        for _ in 0..random.random_range(0..6) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(0..=bytes.len()));
        pass(&mut seen, random.random(), &bytes);
    }
    assert!(seen.streams.len() <= MOST_STREAMS);
    assert_eq!(seen.done().packets, 200_000);
}
