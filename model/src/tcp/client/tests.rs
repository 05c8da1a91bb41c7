use super::super::ports::PortChooser;
use super::super::socket::{ConnError, Event};
use super::super::testing::{App, SERVER, Wire, destination, endpoint, stack, stack_hz};
use super::*;
use crate::segment::{Flags, IcmpKind, Tuple};
use crate::time::Span;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// The times, in milliseconds, of the segments that the client sent with these flags.
fn times(wire: &Wire, flags: &str) -> Vec<u64> {
    let wanted = format!("> [{flags}]");
    wire.log
        .iter()
        .filter(|line| line.contains(&wanted))
        .map(|line| millis(line))
        .collect()
}

fn millis(line: &str) -> u64 {
    let at = line.split(' ').next().unwrap();
    at.replace('.', "").parse().unwrap()
}

/// Facts 10.1: the client closes first and gets TIME_WAIT for 60 s (+0 to 2.05).
#[test]
fn the_client_that_closes_first_waits() {
    let mut wire = Wire::new("5.15.16", "5.15.16");
    let id = wire.connect().unwrap();
    wire.run_for(1);
    assert_eq!(
        wire.take_log(),
        [
            "0.000 > [S]",
            "0.000 < [S.]",
            "0.000 > [.]",
            "0.000 > [P.] 1",
            "0.000 < [.]",
            "0.000 < [P.] 1",
            "0.000 > [.]",
            "0.000 > [F.]",
            "0.001 < [F.]",
            "0.001 > [.]",
        ]
    );
    assert_eq!(wire.client.socket(id).unwrap().state(), State::TimeWait);
    assert!(wire.pod.is_empty(), "the pod holds nothing");
    assert_eq!(wire.client.ports_taken(destination()), 1);
    wire.run(Instant::NEVER);
    let (end, event) = *wire.events.last().unwrap();
    assert_eq!(event, Event::Closed);
    let late = end.since(Instant::from_secs(60));
    assert!(
        late > Span::ZERO && late <= Span::from_millis(2056),
        "{end}"
    );
    assert!(wire.client.is_empty());
    assert_eq!(wire.client.time_waits(), 0);
}

/// Facts 10.2, trap 7: the server closes first; the pod waits, the client's port is free at once.
#[test]
fn the_client_of_a_closing_server_has_its_port_back_at_once() {
    let mut wire = Wire::new("5.7.14", "5.7.14");
    wire.app.server_first = true;
    wire.connect().unwrap();
    wire.run_for(1);
    assert_eq!(
        wire.take_log()[5..],
        [
            "0.000 < [P.] 1",
            "0.000 < [F.]",
            "0.000 > [.]",
            "0.000 > [F.]",
            "0.001 < [.]",
        ]
    );
    assert!(wire.client.is_empty());
    assert_eq!(wire.pod.len(), 1);
    wire.run(Instant::NEVER);
    assert!(wire.pod.is_empty());
}

/// Facts 6.5: the SYNs of a blackholed connect() and its end, by kernel.
#[test]
fn blackholed_syns_follow_the_schedule_of_the_kernel() {
    let old = (vec![0, 1, 3, 7, 15, 31, 63], 127);
    let new = (vec![0, 1, 2, 3, 4, 5, 7, 11, 19, 35, 67], 131);
    for (release, (syns, end)) in [
        ("3.10.4", old.clone()),
        ("4.19.0", old.clone()),
        ("5.7.14", old.clone()),
        ("6.4.6", old),
        ("6.5.0", new.clone()),
        ("6.12.117", new),
    ] {
        for hz in [100, 250, 1000] {
            let mut wire = Wire::with(stack_hz(release, 1, hz), stack(release, 2));
            wire.blackhole = true;
            wire.connect().unwrap();
            wire.run(Instant::NEVER);
            let mut sent = times(&wire, "S");
            let (at, event) = *wire.events.last().unwrap();
            assert_eq!(event, Event::Failed(ConnError::TimedOut));
            sent.push(at.0 / 1_000_000);
            let mut nominal = syns.clone();
            nominal.push(end);
            assert_eq!(sent.len(), nominal.len(), "{release} HZ={hz}: {sent:?}");
            // Each firing is late by at most a granule of the wheel (1/256 of the delay before 4.8), and
            // lateness adds up.
            let clock = wire.client.stack().clock;
            let mut late_max = 0;
            for (n, (&sent, &secs)) in sent.iter().zip(&nominal).enumerate() {
                if let Some(last) = n.checked_sub(1) {
                    let ticks = clock.ticks(secs - nominal[last]);
                    late_max +=
                        (clock.lateness_max(ticks) + ticks / 256 + 1) * 1000 / u64::from(hz);
                }
                let late = sent - secs * 1000;
                assert!(
                    late <= late_max + 1,
                    "{release} HZ={hz}: {secs} s at {sent} ms"
                );
            }
            assert!(wire.client.is_empty(), "the port is free again");
        }
    }
}

/// Facts 6.5: each firing is late by at most 32 ms at 1 s and HZ=250.
#[test]
fn a_repeated_syn_is_late_by_a_wheel_granule() {
    let mut wire = Wire::new("6.12.117", "6.12.117");
    wire.blackhole = true;
    for _ in 0..50 {
        wire.connect().unwrap();
        wire.run(wire.now + Span::from_millis(7));
    }
    let sent: Vec<Instant> = (0..50).map(|n| Instant::from_millis(n * 7)).collect();
    let mut lateness = Vec::new();
    wire.log.clear();
    wire.run(Instant::from_millis(1900));
    for (line, first) in wire.log.iter().zip(sent) {
        lateness.push(millis(line) - 1000 - first.0 / 1_000_000);
    }
    assert_eq!(lateness.len(), 50);
    assert!(lateness.iter().all(|&late| late <= 36), "{lateness:?}");
    assert!(lateness.iter().any(|&late| late > 15));
}

/// `tcp_write_timeout` ends few retries on 6.5+ by time, before the count of retries + 4 is reached.
#[test]
fn few_syn_retries_end_by_time_on_6_5() {
    for (release, retries, end) in [
        ("6.4.6", 1, 3),
        ("6.4.6", 2, 7),
        ("6.12.117", 1, 3),
        ("6.12.117", 2, 7),
        ("6.12.117", 3, 19),
    ] {
        let mut client = stack(release, 1);
        client.sysctls.syn_retries = retries;
        let mut wire = Wire::with(client, stack(release, 2));
        wire.blackhole = true;
        wire.connect().unwrap();
        wire.run(Instant::NEVER);
        let at = wire.events.last().unwrap().0;
        assert_eq!(
            at.as_secs(),
            end,
            "{release} tcp_syn_retries={retries}: {at}"
        );
    }
}

fn icmp(wire: &Wire, id: ConnId, kind: IcmpKind) -> IcmpError {
    let about = wire.client.socket(id).unwrap().tuple();
    IcmpError {
        kind,
        from: endpoint("10.0.0.254:0").ip,
        about,
    }
}

/// Facts 6.8, column SYN_SENT, and trap 19: the errors are hard and immediate.
#[test]
fn icmp_ends_a_syn_sent_socket_at_once() {
    for (kind, error) in [
        (IcmpKind::PortUnreachable, ConnError::Refused),
        (IcmpKind::HostUnreachable, ConnError::HostUnreachable),
        (IcmpKind::NetUnreachable, ConnError::NetUnreachable),
        (IcmpKind::AdminProhibited, ConnError::HostUnreachable),
        (IcmpKind::TtlExceeded, ConnError::HostUnreachable),
    ] {
        let mut wire = Wire::new("5.15.16", "5.15.16");
        wire.blackhole = true;
        let id = wire.connect().unwrap();
        let (found, outcome) = wire.client.on_icmp(wire.now, &icmp(&wire, id, kind), false);
        assert_eq!(found, Some(id));
        assert_eq!(outcome.rule, Rule::IcmpHard);
        assert_eq!(outcome.events(), [Event::Failed(error)], "{kind:?}");
        assert_eq!(wire.client.ports_taken(destination()), 0);
        assert_eq!(ConnError::HostUnreachable.text(), "No route to host");
    }
}

/// Facts 1.9 and 6.8: while connect() holds the socket the error is soft, and the final timeout reports it.
#[test]
fn icmp_during_connect_is_only_remembered() {
    let mut wire = Wire::new("5.7.14", "5.7.14");
    wire.blackhole = true;
    let id = wire.connect().unwrap();
    let error = icmp(&wire, id, IcmpKind::HostUnreachable);
    let (_, outcome) = wire.client.on_icmp(wire.now, &error, true);
    assert_eq!((outcome.rule, outcome.events()), (Rule::IcmpSoft, &[][..]));
    assert_eq!(
        wire.client.socket(id).unwrap().soft_error(),
        Some(ConnError::HostUnreachable)
    );
    wire.run(Instant::NEVER);
    let (at, event) = *wire.events.last().unwrap();
    assert_eq!(event, Event::Failed(ConnError::HostUnreachable));
    assert!(at.as_secs() >= 127);
}

/// Facts 6.8, column ESTABLISHED: soft.
#[test]
fn icmp_does_not_end_an_open_connection() {
    let mut wire = Wire::new("5.15.16", "5.15.16");
    wire.app.request = 0;
    wire.app.request = 1;
    wire.pod.stop_accepting();
    let id = wire.connect().unwrap();
    wire.run_for(1);
    assert_eq!(wire.client.socket(id).unwrap().state(), State::Established);
    for kind in [IcmpKind::PortUnreachable, IcmpKind::HostUnreachable] {
        let (_, outcome) = wire.client.on_icmp(wire.now, &icmp(&wire, id, kind), false);
        assert_eq!(outcome.rule, Rule::IcmpSoft);
        assert!(outcome.events().is_empty());
    }
}

/// Facts 10.3 and 6.8: a RST for the SYN is ECONNREFUSED, for an open connection ECONNRESET.
#[test]
fn resets_are_reported_by_state() {
    let mut wire = Wire::new("5.15.16", "5.15.16");
    let outcomes = wire.pod.exit(wire.now, false);
    assert!(outcomes.is_empty());
    wire.connect().unwrap();
    wire.run_for(1);
    assert_eq!(wire.take_log(), ["0.000 > [S]", "0.000 < [R.]"]);
    assert_eq!(
        wire.events.last().unwrap().1,
        Event::Failed(ConnError::Refused)
    );

    let mut wire = Wire::new("5.15.16", "5.15.16");
    wire.pod.stop_accepting();
    wire.connect().unwrap();
    wire.run_for(1);
    for (peer, outcome) in wire.pod.close_listener(wire.now) {
        wire.pod_did(peer, &outcome);
    }
    wire.run_for(1);
    assert_eq!(wire.take_log().last().unwrap(), "1.000 < [R.]");
    assert_eq!(
        wire.events.last().unwrap().1,
        Event::Failed(ConnError::Reset)
    );
    assert!(wire.client.is_empty());
}

/// An application that gives up in SYN_SENT sends nothing, and its port is free at once.
#[test]
fn giving_up_in_syn_sent_is_silent() {
    let mut wire = Wire::new("5.7.14", "5.7.14");
    wire.blackhole = true;
    let id = wire.connect().unwrap();
    wire.run_for(5);
    wire.log.clear();
    let outcome = wire.client.close(wire.now, id, false);
    assert_eq!(outcome.rule, Rule::CloseUnconnected);
    assert!(outcome.segments().is_empty());
    assert!(wire.client.is_empty());
    wire.run(Instant::NEVER);
    assert!(wire.log.is_empty());
}

fn waiting_client(release: &str, sysctls: impl Fn(&mut Stack)) -> (Wire, ConnId) {
    let mut client = stack(release, 1);
    sysctls(&mut client);
    let mut wire = Wire::with(client, stack(release, 2));
    let id = wire.connect().unwrap();
    wire.run_for(0);
    wire.run(Instant::from_millis(10));
    assert_eq!(wire.client.socket(id).unwrap().state(), State::TimeWait);
    (wire, id)
}

/// When, in tenths of a second, an unbound connect() may first have the port of a TIME_WAIT again.
fn reused_after(release: &str, tw_reuse: u8) -> Option<u64> {
    let one_port = |stack: &mut Stack| {
        stack.sysctls.local_ports = (40000, 40000);
        stack.sysctls.tw_reuse = tw_reuse;
    };
    let (mut wire, _) = waiting_client(release, one_port);
    wire.blackhole = true;
    (1..1000).find(|tenth| {
        wire.run(Instant::from_millis(tenth * 100));
        wire.connect().is_ok()
    })
}

/// Facts 6.3 and trap 30: tcp_tw_reuse by kernel.
#[test]
fn tcp_tw_reuse_shortens_the_wait_as_the_kernel_allows() {
    // Without reuse the port is back after 60 s and the wheel's lateness.
    for release in ["3.10.4", "4.19.0", "6.12.117"] {
        let back = reused_after(release, 0).unwrap();
        let expected = if release == "3.10.4" {
            525..=601
        } else {
            600..=621
        };
        assert!(expected.contains(&back), "{release}: {back}");
    }
    // The stack has been up for whole seconds, and the last timestamp is of second 0.
    assert_eq!(reused_after("3.10.4", 1), Some(20), "more than one second");
    assert_eq!(reused_after("4.18.0", 1), Some(20));
    assert_eq!(reused_after("4.19.0", 1), Some(10), "the next second");
    assert_eq!(reused_after("6.12.117", 1), Some(10));
    assert_eq!(reused_after("6.14.0", 1), Some(11), "1000 ms since entry");
    // Value 2 is loopback only, and these addresses are not.
    let back = reused_after("6.12.117", 2).unwrap();
    assert!((600..=621).contains(&back), "{back}");
}

/// Facts 6.3: the takeover continues the old connection's numbers.
#[test]
fn a_takeover_jumps_ahead_in_sequence() {
    let (mut wire, id) = waiting_client("6.12.117", |stack| {
        stack.sysctls.local_ports = (40000, 40000);
        stack.sysctls.tw_reuse = 1;
    });
    let old = *wire.client.socket(id).unwrap();
    wire.run(Instant::from_millis(1500));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (again, outcome) = wire
        .client
        .connect(
            wire.now,
            destination(),
            Source::Unbound,
            &mut wire.chooser,
            &mut rng,
        )
        .unwrap();
    assert_eq!(again, id);
    assert_eq!(outcome.rule, Rule::TimeWaitTakenOver);
    let syn = outcome.segments()[0];
    assert_eq!(syn.seq, old.snd_nxt.wrapping_add(65_537));
    assert_eq!(syn.options.timestamps.unwrap().ecr, old.ts_recent);
    assert_eq!(wire.client.time_waits(), 0);
    assert_eq!(wire.client.len(), 1);
}

/// Facts 6.2: bind(addr, port) takes a TIME_WAIT over at any age, but only one with timestamps.
#[test]
fn a_bound_port_takes_a_time_wait_over_at_once() {
    let bound = Source::BindPort {
        port: 40000,
        reuse_addr: true,
    };
    let fixed = |stack: &mut Stack| stack.sysctls.local_ports = (40000, 40000);
    let (mut wire, _) = waiting_client("5.15.16", fixed);
    assert_eq!(wire.connect(), Err(NoPort::AddressNotAvailable));
    assert!(wire.connect_from(bound).is_ok());

    let (mut wire, _) = waiting_client("5.15.16", |stack| {
        fixed(stack);
        stack.sysctls.timestamps = false;
    });
    assert_eq!(wire.connect_from(bound), Err(NoPort::AddressNotAvailable));
    let without = Source::BindPort {
        port: 40000,
        reuse_addr: false,
    };
    assert_eq!(wire.connect_from(without), Err(NoPort::AddressInUse));
}

/// Facts 6.1: a port that somebody has bound is skipped by connect() users, whatever their destination.
#[test]
fn bound_ports_are_not_for_connect() {
    let mut client = stack("5.7.14", 1);
    client.sysctls.local_ports = (40000, 40003);
    let mut wire = Wire::with(client, stack("5.7.14", 2));
    wire.blackhole = true;
    let any = Source::BindAny { reuse_addr: false };
    let first = wire.connect_from(any).unwrap().port();
    assert_eq!(first % 2, 1, "bind takes odd ports first");
    let mut ports: Vec<u16> = (0..3).map(|_| wire.connect().unwrap().port()).collect();
    ports.push(first);
    ports.sort_unstable();
    assert_eq!(ports, [40000, 40001, 40002, 40003]);
    assert_eq!(wire.connect(), Err(NoPort::AddressNotAvailable));
    assert_eq!(wire.connect_from(any), Err(NoPort::AddressInUse));
}

#[test]
fn the_same_port_serves_several_destinations() {
    let mut client = stack("6.12.117", 1);
    client.sysctls.local_ports = (40000, 40000);
    let mut chooser = PortChooser::new(client.kernel, client.clock, client.secret);
    let mut client = Client::new(client, &[]);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for last in 1..=9 {
        let to = Destination {
            daddr: core::net::Ipv4Addr::new(10, 96, 0, last),
            ..destination()
        };
        let connected = client.connect(Instant::ZERO, to, Source::Unbound, &mut chooser, &mut rng);
        assert_eq!(connected.unwrap().0.port(), 40000);
    }
    assert_eq!(client.len(), 9);
}

/// Facts 6.4: over tcp_max_tw_buckets there is no TIME_WAIT.
#[test]
fn too_many_time_waits_are_skipped() {
    let mut client = stack("6.12.117", 1);
    client.sysctls.max_tw_buckets = 2;
    let mut wire = Wire::with(client, stack("6.12.117", 2));
    for _ in 0..5 {
        wire.connect().unwrap();
        wire.run_for(1);
    }
    assert_eq!((wire.client.len(), wire.client.time_waits()), (2, 2));
}

/// Facts 6.4: a retransmitted FIN is acknowledged again and restarts the 60 s.
#[test]
fn a_retransmitted_fin_restarts_time_wait() {
    let mut wire = Wire::new("6.12.117", "6.12.117");
    wire.lost = vec![10, 12, 14, 16]; // the client's last ACKs
    let id = wire.connect().unwrap();
    wire.run(Instant::from_millis(100));
    assert_eq!(wire.log.last().unwrap(), "0.001 > [.] lost");
    let before = wire.client.timer(wire.now, id).unwrap();
    wire.run_for(1);
    assert_eq!(
        wire.log[10..12],
        ["0.208 < [F.]", "0.208 > [.] lost"],
        "RTO 200 ms and a tick, late by a granule"
    );
    wire.run_for(5);
    assert_eq!(wire.log.len(), 18);
    assert!(wire.client.timer(wire.now, id).unwrap() > before);
    assert!(wire.pod.is_empty());
}

/// Facts 6.7: an ACK that is not for the SYN is answered by a RST of its number, and the SYN comes again after
/// two jiffies (5.7 and later) or a second.
#[test]
fn a_challenge_ack_in_syn_sent_is_reset_and_the_syn_repeated() {
    for (release, again) in [
        ("5.4.150", 1000..1040),
        ("5.7.14", 8..20),
        ("6.12.117", 8..20),
    ] {
        let mut wire = Wire::new(release, release);
        wire.blackhole = true;
        let id = wire.connect().unwrap();
        let tuple = wire.client.socket(id).unwrap().tuple();
        let challenge = Segment {
            seq: 5,
            ack: 12345,
            ..Segment::new(tuple.reversed(), Flags::ACK)
        };
        let (_, outcome) = wire.client.on_segment(wire.now, &challenge);
        let reset = outcome.segments()[0];
        assert_eq!((reset.flags, reset.seq), (Flags::RST, 12345));
        assert_eq!(outcome.rule, Rule::SynSentBadAck);
        wire.client_did(id, &outcome);
        wire.run_for(2);
        let at = millis(&wire.log[2]);
        assert!(again.contains(&at), "{release}: {:?}", wire.log);
    }
}

/// A segment nobody waits for is reset by the client host; a RST is not answered.
#[test]
fn strays_are_reset() {
    let mut client = Client::new(stack("6.12.117", 1), &[]);
    let tuple = Tuple::tcp(endpoint(SERVER), endpoint("10.0.0.1:40000"));
    let stray = Segment {
        ack: 77,
        ..Segment::new(tuple, Flags::ACK)
    };
    let (id, outcome) = client.on_segment(Instant::ZERO, &stray);
    assert_eq!((id, outcome.rule), (None, Rule::NoSocket));
    assert_eq!(outcome.segments()[0].seq, 77);
    let (_, outcome) = client.on_segment(Instant::ZERO, &Segment::new(tuple, Flags::RST));
    assert_eq!(outcome.rule, Rule::NoSocketReset);
    assert!(outcome.segments().is_empty());
}

/// Gate 27: before 4.2 the calendar of 7.5 s ends TIME_WAIT after 52.5 to 60 s.
#[test]
fn the_old_calendar_ends_time_wait_early() {
    let mut ends = Vec::new();
    for start in 0..40 {
        let mut wire = Wire::new("3.10.4", "3.10.4");
        wire.run(Instant::from_millis(start * 200));
        wire.connect().unwrap();
        wire.run(Instant::NEVER);
        ends.push(wire.events.last().unwrap().0.0 / 1_000_000 - start * 200);
    }
    assert!(
        ends.iter().all(|end| (52_499..=60_005).contains(end)),
        "{ends:?}"
    );
    assert!(ends.iter().max().unwrap() - ends.iter().min().unwrap() > 7_000);
}

/// Keep-alive: several requests on one connection, either side closes.
#[test]
fn a_connection_serves_several_requests() {
    let mut wire = Wire::new("6.12.117", "6.12.117");
    wire.app = App {
        request: 100,
        answer: 200_000,
        server_first: true,
    };
    let id = wire.connect().unwrap();
    wire.run_for(1);
    let read: u32 = wire
        .events
        .iter()
        .map(|(_, event)| if let Event::Data(n) = event { *n } else { 0 })
        .sum();
    assert_eq!(
        read, 200_000,
        "an answer larger than a window arrives whole"
    );
    assert!(wire.client.socket(id).is_none());
}
