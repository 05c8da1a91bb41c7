use super::*;
use crate::kernel::Kernel;
use crate::time::{Span, TimerEra};
use core::net::Ipv4Addr;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

fn chooser(release: &str, seed: u64) -> PortChooser {
    let kernel = release.parse::<Kernel>().unwrap().behaviours();
    let clock = Clock::new(250, TimerEra::Wheel, Span::from_secs(1000));
    PortChooser::new(kernel, clock, Secret::from_seed(seed))
}

fn dest(last: u8) -> Destination {
    Destination {
        saddr: Ipv4Addr::new(10, 0, 0, 1),
        daddr: Ipv4Addr::new(10, 96, 0, last),
        dport: 80,
    }
}

const DEFAULT: PortRange = PortRange {
    low: 32768,
    end: 61000,
};
const LAB: PortRange = PortRange {
    low: 32768,
    end: 33768,
};

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(7)
}

/// Chooses `n` ports at `now` towards one destination, keeping each busy.
fn take(chooser: &mut PortChooser, to: Destination, range: PortRange, n: usize) -> Vec<Choice> {
    let (mut busy, mut rng) = (PortBitmap::new(), rng());
    (0..n)
        .map_while(|_| {
            let choice = chooser.choose(to, range, Instant::ZERO, &mut rng, &&busy)?;
            assert!(busy.insert(choice.port));
            Some(choice)
        })
        .collect()
}

#[test]
fn every_release_has_its_era_of_facts_6_1() {
    for (release, era) in [
        ("3.10.4", PortEra::Sequential),
        ("4.1.6", PortEra::Sequential),
        ("3.10.0-1160.el7.x86_64", PortEra::EvenStart),
        ("4.4.155", PortEra::EvenStart),
        ("4.6.2", PortEra::TwoPass),
        ("5.7.14", PortEra::TwoPass),
        ("5.11.4", PortEra::TwoPass),
        ("5.12.0", PortEra::Perturb256),
        ("5.15.40", PortEra::Perturb256),
        ("5.15.41", PortEra::RandomStep),
        ("5.10.125", PortEra::RandomStep),
        ("5.4.214", PortEra::RandomStep),
        ("6.12.117", PortEra::RandomStep),
    ] {
        assert_eq!(chooser(release, 1).era(), era, "{release}");
    }
}

/// Facts 6.1, row 1: strictly sequential.
#[test]
fn up_to_4_1_ports_come_one_after_the_other() {
    let taken = take(&mut chooser("4.1.6", 5), dest(1), DEFAULT, 1000);
    for pair in taken.windows(2) {
        let next = if u32::from(pair[0].port) + 1 == DEFAULT.end {
            DEFAULT.low as u16
        } else {
            pair[0].port + 1
        };
        assert_eq!(pair[1].port, next);
    }
}

/// Facts 6.1, row 2: even ports; a busy one makes it take the next odd one.
#[test]
fn from_4_2_a_busy_even_port_yields_the_next_odd_one() {
    let mut chooser = chooser("4.4.155", 5);
    let probe = take(&mut chooser.clone(), dest(1), LAB, 2);
    assert_eq!(probe[0].port % 2, 0);
    assert_eq!(probe[1].port, probe[0].port + 2);
    let mut busy = PortBitmap::new();
    busy.insert(probe[0].port);
    let choice = chooser
        .choose(dest(1), LAB, Instant::ZERO, &mut rng(), &&busy)
        .unwrap();
    assert_eq!(choice.port, probe[0].port + 1);
}

/// Facts 6.1, rows 3 to 5, and trap 12: the odd half only when the even half is exhausted, then EADDRNOTAVAIL.
#[test]
fn since_4_6_the_even_half_goes_first() {
    for release in ["4.6.2", "5.7.14", "5.15.16", "6.12.117"] {
        let taken = take(&mut chooser(release, 9), dest(1), LAB, 2000);
        assert_eq!(taken.len(), 1000, "{release}");
        for (index, choice) in taken.iter().enumerate() {
            let odd = index >= 500;
            assert_eq!((choice.port % 2 == 1, choice.second_pass), (odd, odd));
        }
        let ports: BTreeSet<u16> = taken.iter().map(|choice| choice.port).collect();
        assert_eq!(ports.len(), 1000);
    }
}

/// The preferred parity is that of the range's low end, not "even".
#[test]
fn an_odd_low_end_prefers_odd_ports() {
    let range = PortRange::new(1025, 2024).unwrap();
    let taken = take(&mut chooser("5.7.14", 9), dest(1), range, 500);
    assert!(taken.iter().all(|choice| choice.port % 2 == 1));
}

/// Trap 11: up to 5.11 other traffic of the node advances a client's port sequence; later it does not.
#[test]
fn the_hint_is_shared_by_all_destinations_up_to_5_11() {
    for (release, gap) in [("5.7.14", 22), ("4.1.6", 11)] {
        let mut chooser = chooser(release, 3);
        let (empty, mut rng) = (PortBitmap::new(), rng());
        let mut next = |to| {
            let choice = chooser.choose(to, DEFAULT, Instant::ZERO, &mut rng, &&empty);
            u32::from(choice.unwrap().port)
        };
        let first = next(dest(1));
        for _ in 0..10 {
            next(dest(2));
        }
        let distance = (next(dest(1)) + DEFAULT.size() - first) % DEFAULT.size();
        assert_eq!(distance, gap, "{release}");
    }
}

/// Facts 6.1: with a rate of 117.6 a second and 60 s of TIME_WAIT, 7058 even ports are what a sequential client
/// needs; one connection a second more and it wraps into its own TIME_WAIT.
#[test]
fn the_sequential_client_has_a_sharp_threshold() {
    let reuse_after = |ports: u16| {
        let range = PortRange::new(10_000, 10_000 + 2 * ports - 1).unwrap();
        let mut chooser = chooser("5.7.14", 11);
        let (mut busy, mut rng) = (PortBitmap::new(), rng());
        let mut waiting: VecDeque<(u64, u16)> = VecDeque::new();
        let mut odd = 0;
        for n in 0..40_000_u64 {
            let now = n * 1_000_000_000 / 117_633; // Microseconds, at 117.633 connections a second.
            while waiting
                .front()
                .is_some_and(|&(at, _)| at + 60_000_000 <= now)
            {
                busy.remove(waiting.pop_front().unwrap().1);
            }
            let choice = chooser
                .choose(dest(1), range, Instant::ZERO, &mut rng, &&busy)
                .unwrap();
            odd += u32::from(choice.second_pass);
            busy.insert(choice.port);
            waiting.push_back((now, choice.port));
        }
        odd
    };
    assert_eq!(
        reuse_after(7058),
        0,
        "117.633/s * 60 s = 7058 ports suffice"
    );
    assert!(reuse_after(7050) > 0, "a few less and odd ports come up");
}

/// Facts 6.1: 5.18 and later take 4.5 even ports a connection, so 9 on average.
#[test]
fn the_random_step_is_nine_ports_on_average() {
    let mut chooser = chooser("6.12.117", 4);
    let (empty, mut rng) = (PortBitmap::new(), rng());
    let mut steps = BTreeMap::new();
    let mut last = None;
    let mut sum = 0;
    for _ in 0..8000 {
        let choice = chooser
            .choose(dest(1), DEFAULT, Instant::ZERO, &mut rng, &&empty)
            .unwrap();
        let port = u32::from(choice.port);
        if let Some(last) = last.replace(port) {
            let step = (port + DEFAULT.size() - last) % DEFAULT.size();
            *steps.entry(step).or_insert(0) += 1;
            sum += step;
        }
    }
    assert_eq!(
        steps.keys().copied().collect::<Vec<_>>(),
        [2, 4, 6, 8, 10, 12, 14, 16]
    );
    assert!(
        steps.values().all(|&n| (850..1150).contains(&n)),
        "{steps:?}"
    );
    assert!((8.8..9.2).contains(&(f64::from(sum) / 7999.0)));
}

/// Facts 6.1: the slot and the base change every ten seconds since 5.18, never before.
#[test]
fn the_random_client_jumps_every_ten_seconds() {
    let jumps = |release| {
        let mut chooser = chooser(release, 4);
        let (empty, mut rng) = (PortBitmap::new(), rng());
        let mut last: Option<u32> = None;
        let mut jumps = Vec::new();
        for n in 0..400_u64 {
            let now = Instant::from_millis(n * 250);
            let choice = chooser.choose(dest(1), DEFAULT, now, &mut rng, &&empty);
            let port = u32::from(choice.unwrap().port);
            if let Some(last) = last.replace(port)
                && (port + DEFAULT.size() - last) % DEFAULT.size() > 16
            {
                jumps.push(now.as_secs());
            }
        }
        jumps
    };
    let all = jumps("6.12.117");
    assert!((9..=10).contains(&all.len()), "{all:?}");
    assert!(
        all.windows(2).all(|pair| pair[1] - pair[0] == 10),
        "{all:?}"
    );
    assert_eq!(jumps("5.7.14"), []);
    assert_eq!(jumps("5.15.16"), []);
}

/// Facts 6.1: in 1/16 of the hits at the first try 5.12 to 5.17 skip a port.
#[test]
fn from_5_12_one_in_sixteen_skips_a_port() {
    let taken = take(&mut chooser("5.15.16", 4), dest(1), DEFAULT, 8000);
    let skips = taken
        .windows(2)
        .filter(|pair| u32::from(pair[1].port) == u32::from(pair[0].port) + 4)
        .count();
    assert!((420..580).contains(&skips), "{skips} of 8000");
}

/// Facts 6.2: bind(addr, 0) takes odd ports first; with SO_REUSEADDR the lower half first; then EADDRINUSE.
#[test]
fn bind_takes_odd_ports_first() {
    for (reuse, lower) in [(false, false), (true, true)] {
        let chooser = chooser("6.12.117", 1);
        let (mut busy, mut rng) = (PortBitmap::new(), rng());
        for n in 0..1000 {
            let port = chooser
                .find_open_port(LAB, reuse, &mut rng, &&busy)
                .unwrap();
            assert!(busy.insert(port));
            if lower {
                assert_eq!(port < 33268, n < 500);
                assert_eq!(port % 2 == 1, n % 500 < 250, "{n}: {port}");
            } else {
                assert_eq!(port % 2 == 1, n < 500, "{n}: {port}");
            }
        }
        assert_eq!(chooser.find_open_port(LAB, reuse, &mut rng, &&busy), None);
    }
}

/// Facts 6.2: before 4.6 bind() starts anywhere and takes the next port; every port is found.
#[test]
fn old_bind_walks_one_by_one() {
    for release in ["3.10.4", "4.4.155"] {
        let chooser = chooser(release, 1);
        let (mut busy, mut rng) = (PortBitmap::new(), rng());
        for reuse in [false, true] {
            for _ in 0..500 {
                let port = chooser.find_open_port(LAB, reuse, &mut rng, &&busy);
                assert!(busy.insert(port.unwrap()));
            }
        }
        assert_eq!(chooser.find_open_port(LAB, true, &mut rng, &&busy), None);
    }
}

#[test]
fn reserved_and_bound_ports_are_skipped_and_waiting_ones_asked_about() {
    let mut excluded = PortBitmap::new();
    for port in (32768..33700).filter(|port| port % 2 == 0) {
        excluded.insert(port);
    }
    let mut waiting = PortBitmap::new();
    for port in 33700..33768 {
        waiting.insert(port);
    }
    let busy = PortBitmap::new();
    let usable = Usable {
        busy: Some(&busy),
        excluded: Some(&excluded),
        waiting: Some((&waiting, |port| port == 33744)),
    };
    let choice = chooser("5.7.14", 2)
        .choose(dest(1), LAB, Instant::ZERO, &mut rng(), &usable)
        .unwrap();
    assert_eq!(choice.port, 33744);
}

/// The recording rollouts/57-m0-sf-c41: 500 even ports, each attempt the next one, 33766 is followed by 32768.
#[test]
fn the_5_7_14_recording_walks_the_even_ports_in_order() {
    let recorded = [33760_u16, 33762, 33764, 33766, 32768, 32770, 32772];
    let mut chooser = chooser("5.7.14", 21);
    let start = take(&mut chooser.clone(), dest(1), LAB, 1)[0].port;
    // Another hint only moves the start, so the recorded stretch can be put under the model exactly.
    let hint = (u32::from(recorded[0]) + LAB.size() - u32::from(start)) % LAB.size();
    chooser = chooser.with_hint(hint);
    let ports: Vec<u16> = take(&mut chooser, dest(1), LAB, recorded.len())
        .iter()
        .map(|choice| choice.port)
        .collect();
    assert_eq!(ports, recorded);
}

/// The recording rollouts/612-m0-en0-sf: the sequence jumps between the attempts of 185.0001 and 185.0834 s, and
/// every ten seconds from there; in between the steps are even, 2 to 16. The run began two seconds after boot
/// (modulo ten), HZ is 100.
#[test]
fn the_6_12_recording_jumps_at_185_and_every_ten_seconds() {
    let kernel = "6.12.117".parse::<Kernel>().unwrap().behaviours();
    let clock = Clock::new(100, TimerEra::Wheel, Span::from_secs(2));
    let mut chooser = PortChooser::new(kernel, clock, Secret::from_seed(8));
    let (empty, mut rng) = (PortBitmap::new(), rng());
    let mut last = None;
    let mut jumps = Vec::new();
    for n in 180 * 12..420 * 12_u64 {
        let now = Instant(n * 1_000_000_000 / 12 + 100_000);
        let choice = chooser.choose(dest(1), LAB, now, &mut rng, &&empty);
        let port = u32::from(choice.unwrap().port);
        if let Some(last) = last.replace(port) {
            let step = (port + LAB.size() - last) % LAB.size();
            if !(2..=16).contains(&step) {
                jumps.push(now.0 / 1_000_000);
            }
            assert_eq!(step % 2, 0);
        }
    }
    let recorded = [
        185_083, 195_083, 205_083, 225_083, 235_083, 245_083, 255_083,
    ];
    assert!(jumps.iter().all(|at| at % 10_000 == 5_083), "{jumps:?}");
    assert!(
        jumps.len() >= 22,
        "a jump may look like a step now and then: {jumps:?}"
    );
    assert!(recorded.iter().filter(|at| jumps.contains(at)).count() >= 6);
}

/// The kernel's loops, written out: the reference for the bitmap's shortcut.
fn linear(era: PortEra, offset: u32, range: PortRange, busy: &BTreeSet<u16>) -> Option<(u16, u32)> {
    let free = |port: u32| !busy.contains(&(port as u16));
    if !era.two_passes() {
        return (0..range.size())
            .map(|i| (range.low + (offset % range.size() + i) % range.size(), i))
            .find(|&(port, _)| free(port))
            .map(|(port, i)| (port as u16, i));
    }
    let remaining = if range.size() > 1 {
        range.size() & !1
    } else {
        range.size()
    };
    let mut offset = (offset % remaining) & !1;
    loop {
        let mut port = range.low + offset;
        let mut i = 0;
        while i < remaining {
            if port >= range.end {
                port -= remaining;
            }
            if free(port) {
                return Some((port as u16, i));
            }
            i += 2;
            port += 2;
        }
        offset += 1;
        if offset & 1 == 0 || remaining <= 1 {
            return None;
        }
    }
}

proptest! {
    #[test]
    fn the_search_answers_as_the_kernels_loop(
        low in 1u16..300, size in 1u32..400, offset in any::<u32>(),
        busy in proptest::collection::btree_set(0u16..800, 0..799),
    ) {
        let range = PortRange { low: u32::from(low), end: u32::from(low) + size };
        let mut map = PortBitmap::new();
        for &port in &busy {
            map.insert(port);
        }
        for era in [PortEra::EvenStart, PortEra::TwoPass] {
            let found = if era.two_passes() {
                two_pass(offset, range, &&map)
            } else {
                one_pass(offset, range, &&map)
            };
            let expected = linear(era, offset, range, &busy);
            prop_assert_eq!(found.map(|choice| (choice.port, choice.distance)), expected);
        }
    }

    #[test]
    fn three_sets_together_answer_as_one_closure(
        busy in proptest::collection::btree_set(0u16..300, 0..280),
        excluded in proptest::collection::btree_set(0u16..300, 0..150),
        waiting in proptest::collection::btree_set(0u16..300, 0..150),
        modulus in 1u16..9, from in 0u32..300, even in any::<bool>(),
    ) {
        let map = |set: &BTreeSet<u16>| {
            let mut map = PortBitmap::new();
            set.iter().for_each(|&port| { map.insert(port); });
            map
        };
        let (busy_map, excluded_map, waiting_map) = (map(&busy), map(&excluded), map(&waiting));
        let usable = Usable {
            busy: Some(&busy_map),
            excluded: Some(&excluded_map),
            waiting: Some((&waiting_map, |port: u16| port.is_multiple_of(modulus))),
        };
        let plain = OneByOne(|port: u16| {
            !busy.contains(&port)
                && !excluded.contains(&port)
                && (!waiting.contains(&port) || port.is_multiple_of(modulus))
        });
        let step = if even { Step::Two } else { Step::One };
        prop_assert_eq!(usable.first_usable(from, 300, step), plain.first_usable(from, 300, step));
    }
}

/// The chance of each port, counted, and as it is known beforehand.
#[test]
fn the_chance_of_a_port_is_known_before_the_draw() {
    for (release, low, high) in [
        ("4.4.155", 1_000, 1_036),
        ("5.7.14", 1_000, 1_039),
        ("6.12.117", 1_001, 1_041),
    ] {
        let chooser = chooser(release, 3);
        let range = PortRange::new(low, high).unwrap();
        for taken in [&[][..], &[1_001, 1_003, 1_004, 1_010, 1_011, 1_013, 1_035]] {
            let mut busy = PortBitmap::new();
            for port in taken {
                busy.insert(*port);
            }
            let (mut rng, mut found) = (rng(), [0_u32; 50]);
            const DRAWS: u32 = 20_000;
            for _ in 0..DRAWS {
                let port = chooser.find_open_port(range, false, &mut rng, &&busy);
                found[usize::from(port.unwrap() - 1_000)] += 1;
            }
            let mut sum = 0;
            for port in low..=high {
                let (starts, of) = chooser.starts_leading_to(range, &&busy, port).unwrap();
                sum += starts;
                let (expected, counted) = (DRAWS * starts / of, found[usize::from(port - 1_000)]);
                // Five standard deviations of a Poisson count, and rounding.
                let off = expected.abs_diff(counted);
                assert!(
                    off.pow(2) <= 25 * expected.max(1) + 25,
                    "{release} {port}: {expected} {counted}"
                );
                assert!(starts > 0 || counted == 0, "{release} {port}: {counted}");
                if port == high {
                    assert_eq!(sum, of, "{release}: chances add up to one");
                }
            }
        }
        assert_eq!(
            chooser.starts_leading_to(range, &&PortBitmap::new(), high + 1),
            None
        );
    }
}
