use super::super::client::{Client, ConnId, Source};
use super::super::ports::PortChooser;
use super::super::socket::{ConnError, Event, Outcome, Socket};
use super::super::testing::{destination, endpoint, stack_hz};
use super::*;
use crate::icmp::{IcmpCause, IcmpLimiter, IcmpVerdict};
use crate::kernel::Gate;
use crate::segment::{Endpoint, Flags, IcmpError};
use crate::sysctl::IcmpSysctls;
use crate::time::{Span, TimerEra};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

fn clock(hz: u32) -> Clock {
    Clock::new(hz, TimerEra::Wheel, Span::from_secs(1000))
}

fn syn(port: u16) -> Segment {
    let client = Endpoint::new(endpoint("10.0.0.1:0").ip, port);
    Segment::new(Tuple::tcp(client, endpoint("10.27.1.10:80")), Flags::SYN)
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// Runs the dead end's timer up to `until`; the errors with their times.
fn errors(end: &mut DeadEnd, clock: &Clock, until: Instant) -> Vec<(u64, u16)> {
    let mut errors = Vec::new();
    while let Some(now) = end.timer().map(|tick| clock.instant(tick))
        && now <= until
    {
        for tuple in end.on_timer(now, clock) {
            errors.push((now.0 / 1_000_000, tuple.src.port));
        }
    }
    errors
}

/// Facts 7.6, row 1: ARP at 0, 1, 2 s, ICMP at 3 s for every queued packet, then the cycle starts again.
#[test]
fn arp_fails_after_three_seconds_for_all_queued_packets() {
    for hz in [100, 250, 1000] {
        let clock = clock(hz);
        let mut end = DeadEnd::ArpFailure(Neighbour::unknown());
        for n in 0..10 {
            let answer = end.on_segment(at(u64::from(n) * 250), &clock, &syn(40000 + n));
            assert_eq!(answer, Answer::Queued);
        }
        let failed = errors(&mut end, &clock, at(10_000));
        let ports: Vec<u16> = failed.iter().map(|&(_, port)| port).collect();
        assert_eq!(ports, (40000..40010).collect::<Vec<u16>>());
        let when = failed[0].0;
        assert!(failed.iter().all(|&(time, _)| time == when));
        assert!((3000..3300).contains(&when), "HZ={hz}: {when}");
        assert_eq!(end.timer(), None, "nobody asks until the next packet");
        assert_eq!(
            end.on_segment(at(20_000), &clock, &syn(50000)),
            Answer::Queued
        );
        let failed = errors(&mut end, &clock, at(30_000));
        assert_eq!(failed.len(), 1);
        assert!((23_000..23_300).contains(&failed[0].0));
    }
}

/// Facts 7.6, row 1: the queue is limited, the oldest packets are lost silently.
#[test]
fn the_arp_queue_drops_its_oldest() {
    let clock = clock(250);
    let mut end = DeadEnd::ArpFailure(Neighbour::unknown());
    for n in 0..300 {
        end.on_segment(at(u64::from(n)), &clock, &syn(40000 + n));
    }
    let failed = errors(&mut end, &clock, at(5_000));
    assert_eq!(failed.len(), QUEUE_LIMIT);
    assert_eq!(failed[0].1, 40044);
    let mut end = DeadEnd::ArpFailure(Neighbour::unknown().with_queue_limit(3));
    for n in 0..300 {
        end.on_segment(at(u64::from(n)), &clock, &syn(40000 + n));
    }
    assert_eq!(errors(&mut end, &clock, at(5_000)).len(), 3);
}

/// Facts 7.6, row 2: a stale entry swallows packets for 5 s of delay and 3 s of probes.
#[test]
fn a_stale_neighbour_loses_packets_for_eight_seconds() {
    let clock = clock(250);
    let mut end = DeadEnd::ArpFailure(Neighbour::stale());
    let mut queued = None;
    for n in 0..120_u16 {
        let now = at(u64::from(n) * 100);
        errors(&mut end, &clock, now);
        match end.on_segment(now, &clock, &syn(n)) {
            Answer::Lost => assert_eq!(queued, None),
            Answer::Queued => {
                queued.get_or_insert(u64::from(n) * 100);
            }
            other => panic!("{other:?}"),
        }
    }
    let since = queued.unwrap();
    assert!((8_000..8_700).contains(&since), "{since}");
}

/// Facts 7.6, row 2: a reachable entry is believed for 15 to 45 s first.
#[test]
fn a_reachable_neighbour_is_believed_first() {
    let clock = clock(250);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let ticks: Vec<u64> = (0..1000)
        .map(|_| Neighbour::random_reachable(&clock, &mut rng))
        .collect();
    assert!(ticks.iter().all(|ticks| (3750..11_250).contains(ticks)));
    assert!(*ticks.iter().max().unwrap() > 11_000 && *ticks.iter().min().unwrap() < 4_000);
    let mut end = DeadEnd::ArpFailure(Neighbour::reachable(&clock, at(0), clock.ticks(20)));
    let mut first = None;
    for n in 0..400_u16 {
        let now = at(u64::from(n) * 100);
        errors(&mut end, &clock, now);
        if end.on_segment(now, &clock, &syn(n)) == Answer::Queued {
            first.get_or_insert(now.as_secs());
        }
    }
    assert!((28..31).contains(&first.unwrap()), "{first:?}");
    // Nobody sends: the entry becomes stale by itself and waits.
    let mut idle = Neighbour::reachable(&clock, at(0), clock.ticks(20));
    assert!(idle.on_timer(at(25_000), &clock).is_empty());
    assert_eq!(idle.state(), Nud::Stale);
}

/// Facts 7.6, the other rows, and kube-proxy.md section 6: one answer a kind of end.
#[test]
fn each_dead_end_answers_in_its_way() {
    let clock = clock(250);
    let answer = |mut end: DeadEnd| end.on_segment(at(0), &clock, &syn(40000));
    assert_eq!(answer(DeadEnd::Blackhole), Answer::Lost);
    let unreachable = DeadEnd::Unreachable(IcmpKind::HostUnreachable);
    assert_eq!(answer(unreachable), Answer::Icmp(IcmpKind::HostUnreachable));
    for end in [DeadEnd::Reset, DeadEnd::Reassigned { listening: false }] {
        let Answer::Segment(reset) = answer(end) else {
            panic!("a RST");
        };
        assert_eq!(reset.flags, Flags::RST.with(Flags::ACK));
    }
    let reassigned = DeadEnd::Reassigned { listening: true };
    assert_eq!(answer(reassigned), Answer::NewOwner);
    let mut reset = DeadEnd::Reset;
    let mut stray = syn(1);
    stray.flags = Flags::RST;
    assert_eq!(reset.on_segment(at(0), &clock, &stray), Answer::Lost);
}

/// A load of attempts through a node with an `unreachable` route, as the recordings in captures/rollouts
/// were made: HZ=100, 12 attempts a second, the application gives up after 5 s. An attempt's number is twelve
/// times its second.
struct Load {
    release: &'static str,
    attempts: core::ops::Range<u64>,
    /// Attempts that another server answered: they never met the dead end.
    answered: &'static [u64],
}

/// Timers first, of the highest wheel level first, the last armed first; then what the application does.
type Order = (Instant, u8, Reverse<(u8, u64)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Attempt(u64),
    Timer(ConnId),
    GiveUp(ConnId),
}

impl Load {
    /// The attempts that heard "No route to host", each with the moment of it, in the order of those moments.
    fn told(&self) -> Vec<(u64, Instant)> {
        let stack = stack_hz(self.release, 1, 100);
        let owned = !stack.kernel.has(Gate::IcmpAfterConnect);
        let mut client = Client::new(stack, &[]);
        let mut chooser = PortChooser::new(stack.kernel, stack.clock, stack.secret);
        let mut limiter = IcmpLimiter::new(stack.kernel, stack.clock, IcmpSysctls::default());
        let mut route = DeadEnd::Unreachable(IcmpKind::HostUnreachable);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut queue: BinaryHeap<Reverse<(Order, What)>> = BinaryHeap::new();
        let mut open = BTreeMap::new();
        let mut told = Vec::new();
        for n in self.attempts.clone() {
            if !self.answered.contains(&n) {
                let start = Instant(n * 1_000_000_000 / 12 + 100_000);
                queue.push(Reverse(((start, 1, Reverse((0, 0))), What::Attempt(n))));
            }
        }
        let mut armed = 0;
        while let Some(Reverse(((now, ..), what))) = queue.pop() {
            let (id, outcome, owned): (ConnId, Outcome, bool) = match what {
                What::Attempt(n) => {
                    let to = destination();
                    let (id, outcome) = client
                        .connect(now, to, Source::Unbound, &mut chooser, &mut rng)
                        .unwrap();
                    open.insert(id, n);
                    let end = now + Span::from_secs(5);
                    queue.push(Reverse(((end, 2, Reverse((0, 0))), What::GiveUp(id))));
                    (id, outcome, owned)
                }
                What::Timer(id) => (id, client.on_timer(now, id), false),
                What::GiveUp(id) => {
                    client.close(now, id, false);
                    continue;
                }
            };
            for segment in outcome.segments() {
                let answer = route.on_segment(now, &stack.clock, segment);
                assert_eq!(answer, Answer::Icmp(IcmpKind::HostUnreachable));
                let peer = segment.tuple.src.ip;
                if limiter.allow(now, peer, IcmpCause::Direct, &mut rng) != IcmpVerdict::Sent {
                    continue;
                }
                let error = IcmpError {
                    kind: IcmpKind::HostUnreachable,
                    from: endpoint("10.0.0.254:0").ip,
                    about: segment.tuple,
                };
                let (_, outcome) = client.on_icmp(now, &error, owned);
                if outcome.events() == [Event::Failed(ConnError::HostUnreachable)] {
                    told.push((open[&id], now));
                }
            }
            if let Some(tick) = client.timer(now, id)
                && !outcome.segments().is_empty()
            {
                armed += 1;
                let level = client.socket(id).map_or(0, Socket::timer_level);
                let order = (stack.clock.instant(tick), 0, Reverse((level, armed)));
                queue.push(Reverse((order, What::Timer(id))));
            }
        }
        told
    }
}

/// The recording rollouts/57-m0-sf-c41: every attempt from 180.08 s on meets the dead pods. Six tokens go to
/// errors that connect() only remembers; after that each second token goes to a first SYN in the same way, and
/// the others to a repetition, which fails: one "No route to host" every two seconds, for 240 seconds.
#[test]
fn the_5_7_14_recording_hears_no_route_every_two_seconds() {
    let load = Load {
        release: "5.7.14",
        attempts: 2161..5040,
        answered: &[],
    };
    let told: Vec<u64> = load.told().into_iter().map(|(n, _)| n).collect();
    // Recorded: 181.0004, 183.0002, 185.0010, ... 417.0002, 419.0002, and when the load has ended 418.0004
    // and 419.0844.
    let mut recorded: Vec<u64> = (181..=419).step_by(2).map(|second| second * 12).collect();
    recorded.extend([418 * 12, 419 * 12 + 1]);
    assert_eq!(told, recorded);
}

/// The recording rollouts/612-m0-en0-sf, its first twelve seconds after the pods' death: here the first SYN's
/// error ends the attempt at once, and the tokens alternate between a fresh attempt and a repetition.
#[test]
fn the_6_12_recording_hears_no_route_every_second() {
    let load = Load {
        release: "6.12.117",
        attempts: 2161..2304,
        answered: &[
            2185, 2190, 2207, 2214, 2224, 2237, 2257, 2258, 2259, 2276, 2300,
        ],
    };
    // After 192 s the attempts that the excerpt leaves out would take part.
    let told = load.told().into_iter();
    let told: Vec<u64> = told
        .take_while(|&(_, at)| at < Instant::from_secs(192))
        .map(|(n, _)| n)
        .collect();
    // In the order of the recording, which is that of the failures.
    let recorded = [
        2161, 2162, 2163, 2164, 2165, 2166, 2173, 2172, 2197, 2184, 2221, 2183, 2245, 2232, 2269,
        2231, 2293,
    ];
    assert_eq!(told, recorded);
}
