//! A client and a server that talk to each other in seeded schedules.

use super::random::Random;
use super::settings;
use super::world::{Plan, World};
use crate::http2::Settings;

/// What a seed makes of it.
fn plan(seed: u64) -> Plan {
    let mut random = Random::new(seed ^ 0xabcd_0000);
    let windows: &[u32] = random.one_of(&[
        &[1, 10, 1000][..],
        &[0, 1, 100, 5000],
        &[1000, 16_384, 65_535],
        &[65_535, 200_000, 1 << 20],
    ]);
    let narrow = random.one_of(&[None, Some(1), Some(50), Some(3000)]);
    let smallest = match narrow {
        None => windows[0],
        Some(window) => window.min(windows[0]),
    };
    let mut settings = || Settings {
        stream_window: random.one_of(windows).max(1),
        window: match narrow {
            None => random.one_of(&[65_535, 70_000, 200_000]),
            Some(_) => 65_535,
        },
        max_frame: random.one_of(&[16_384, 50_000]),
        max_streams: random.one_of(&[1, 3, 20]),
        send_buffer: random.one_of(&[1, 100, 20_000, 200_000]),
        ..settings()
    };
    let (client, server) = (settings(), settings());
    // A byte at a time takes its time.
    let longest: usize = match smallest.min(client.send_buffer).min(server.send_buffer) {
        0..10 => 100,
        10..100 => 300,
        100..1000 => 1000,
        1000..10_000 => 10_000,
        _ => random.one_of(&[10_000, 150_000]),
    };
    Plan {
        client,
        server,
        narrow,
        streams: random.one_of(&[2, 4, 12]),
        longest,
        wire: random.one_of(&[1, 30, 10_000, 1 << 20]).max(longest / 50),
        impatience: random.one_of(&[50, 1000, usize::MAX]),
        resizes: random.one_of(&[20, 300, usize::MAX]),
        windows,
        goes_away: random.one_of(&[0, 0, 50, 500]),
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed, plan(seed));
    world.run();
    world.open_windows();
    world.check_nobody_waits();
    world.check_windows();
    world.close();
}

/// More of them: `SEEDS=100000..200000`.
#[test]
fn everything_arrives_and_nobody_is_forgotten() {
    let seeds = match std::env::var("SEEDS") {
        Err(_) => 0..400,
        Ok(seeds) => {
            let (begin, end) = seeds.split_once("..").unwrap();
            begin.parse().unwrap()..end.parse().unwrap()
        }
    };
    let fails = |seed: &u64| std::panic::catch_unwind(|| run(*seed)).is_err();
    let failed: Vec<_> = seeds.filter(fails).collect();
    assert!(failed.is_empty(), "seeds {failed:?}");
}
