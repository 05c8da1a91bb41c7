use super::super::client::Source;
use super::super::socket::ConnError;
use super::super::testing::{SERVER, Wire, endpoint, stack};
use super::*;
use crate::segment::{Options, Timestamps, Tuple};
use crate::time::Span;

const PEER: &str = "10.0.0.1:40000";

fn segment(flags: Flags, seq: u32, ack: u32) -> Segment {
    Segment {
        seq,
        ack,
        ..Segment::new(Tuple::tcp(endpoint(PEER), endpoint(SERVER)), flags)
    }
}

fn stamped(segment: Segment, val: u32) -> Segment {
    Segment {
        options: Options {
            timestamps: Some(Timestamps { val, ecr: 0 }),
            ..Options::default()
        },
        ..segment
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn pod() -> Pod {
    Pod::new(stack("6.12.117", 2), endpoint(SERVER), 511)
}

/// An open connection whose client has sent up to `seq` 1001; the server's next number.
fn open(pod: &mut Pod, val: Option<u32>) -> u32 {
    let dress = |segment| val.map_or(segment, |val| stamped(segment, val));
    let answer = pod.on_segment(at(0), &dress(segment(Flags::SYN, 1000, 0)));
    let syn_ack = answer.segments()[0];
    assert_eq!(syn_ack.flags, Flags::SYN.with(Flags::ACK));
    let next = syn_ack.seq.wrapping_add(1);
    let outcome = pod.on_segment(at(1), &dress(segment(Flags::ACK, 1001, next)));
    assert_eq!(outcome.events(), [Event::Accepted]);
    next
}

/// A connection in TIME_WAIT at the pod since 3 ms; rcv_nxt is 1002; the server's next number.
fn time_wait(pod: &mut Pod, val: Option<u32>) -> u32 {
    let dress = |segment| val.map_or(segment, |val| stamped(segment, val));
    let next = open(pod, val);
    let outcome = pod.close(at(2), endpoint(PEER), false);
    assert_eq!(outcome.segments()[0].flags, Flags::FIN.with(Flags::ACK));
    let last = next.wrapping_add(1);
    let fin = dress(segment(Flags::FIN.with(Flags::ACK), 1001, last));
    let outcome = pod.on_segment(at(3), &fin);
    assert_eq!(outcome.segments().len(), 1);
    let state = pod.socket(endpoint(PEER)).unwrap().state();
    assert_eq!(state, State::TimeWait);
    last
}

/// Facts 7.1: a new SYN is dropped when the queue holds backlog + 1 connections.
#[test]
fn a_full_accept_queue_drops_syns() {
    let mut wire = Wire::new("6.12.117", "6.12.117");
    wire.pod = Pod::new(stack("6.12.117", 2), endpoint(SERVER), 3);
    wire.pod.stop_accepting();
    for _ in 0..4 {
        wire.connect().unwrap();
        wire.run(wire.now + Span::from_millis(10));
    }
    assert_eq!(wire.pod.queued(), 4, "backlog 3 holds 4");
    wire.take_log();
    wire.connect().unwrap();
    wire.run(wire.now + Span::from_millis(2500));
    assert_eq!(wire.pod.len(), 4);
    assert!(
        wire.log.iter().all(|line| line.contains("> [S]")),
        "{:?}",
        wire.log
    );
    // A connection is accepted: the next repetition of the SYN gets in.
    assert!(wire.pod.accept().is_some());
    wire.run_for(1);
    assert_eq!(wire.pod.len(), 5);
}

/// Facts 7.1: the final ACK is ignored, the client believes that it is connected, the SYN-ACK comes again.
#[test]
fn a_full_accept_queue_ignores_the_last_ack() {
    let mut pod = Pod::new(stack("6.12.117", 2), endpoint(SERVER), 0);
    pod.stop_accepting();
    let peer = |n: u16| Endpoint::new(endpoint(PEER).ip, 40000 + n);
    let from = |n: u16, mut segment: Segment| {
        segment.tuple.src = peer(n);
        segment
    };
    let mut nexts = Vec::new();
    for n in 0..3 {
        let outcome = pod.on_segment(at(0), &from(n, segment(Flags::SYN, 1000, 0)));
        nexts.push(outcome.segments()[0].seq.wrapping_add(1));
    }
    let mut last = |n: u16| {
        pod.on_segment(
            at(1),
            &from(n, segment(Flags::ACK, 1001, nexts[usize::from(n)])),
        )
    };
    assert_eq!(last(0).rule, Rule::Accepted);
    assert_eq!(last(1).rule, Rule::AcceptOverflow);
    assert!(last(1).segments().is_empty());
    let due = pod.timer(at(1), peer(1)).unwrap();
    let outcome = pod.on_timer(stack("6.12.117", 2).clock.instant(due), peer(1));
    assert_eq!(outcome.rule, Rule::SynAckRetransmitted);

    let mut strict = stack("6.12.117", 2);
    strict.sysctls.abort_on_overflow = true;
    let mut pod = Pod::new(strict, endpoint(SERVER), 0);
    pod.stop_accepting();
    let nexts = [0, 1].map(|n| {
        let outcome = pod.on_segment(at(0), &from(n, segment(Flags::SYN, 1000, 0)));
        outcome.segments()[0].seq.wrapping_add(1)
    });
    for (n, next) in (0..).zip(nexts) {
        let outcome = pod.on_segment(at(1), &from(n, segment(Flags::ACK, 1001, next)));
        assert_eq!(
            outcome.segments().len(),
            usize::from(n),
            "RST for the second"
        );
    }
}

/// Facts 6.5: SYN-ACKs at 1, 3, 7, 15, 31 s, given up at 63 s.
#[test]
fn a_half_open_request_lasts_63_seconds() {
    let mut pod = pod();
    let clock = stack("6.12.117", 2).clock;
    pod.on_segment(at(0), &segment(Flags::SYN, 1000, 0));
    let mut now = at(0);
    let mut sent = Vec::new();
    let mut end = None;
    while let Some(tick) = pod.timer(now, endpoint(PEER)) {
        now = clock.instant(tick);
        let outcome = pod.on_timer(now, endpoint(PEER));
        if outcome.segments().is_empty() {
            end = Some(now.as_secs());
        } else {
            sent.push(now.as_secs());
        }
    }
    assert_eq!(sent, [1, 3, 7, 15, 31]);
    assert!((63..66).contains(&end.unwrap()));
    assert!(pod.is_empty());
}

/// Facts 7.2, row by row: what a new SYN meets in each phase.
#[test]
fn each_phase_answers_a_syn_in_its_way() {
    let syn = segment(Flags::SYN, 1000, 0);
    let mut pod = pod();
    assert_eq!(pod.clone().on_segment(at(0), &syn).rule, Rule::SynAnswered);
    pod.stop_accepting();
    assert_eq!(pod.clone().on_segment(at(0), &syn).rule, Rule::SynAnswered);
    pod.close_listener(at(0));
    let outcome = pod.clone().on_segment(at(0), &syn);
    assert_eq!(outcome.rule, Rule::NoSocket);
    let reset = outcome.segments()[0];
    assert_eq!(
        (reset.flags, reset.ack),
        (Flags::RST.with(Flags::ACK), 1001)
    );
    pod.exit(at(0), false);
    assert_eq!(pod.clone().on_segment(at(0), &syn).rule, Rule::NoSocket);
    pod.destroy();
    let outcome = pod.on_segment(at(0), &syn);
    assert_eq!(outcome.rule, Rule::NetnsGone);
    assert!(outcome.segments().is_empty());
}

/// Facts 7.2: the exiting process: FIN for a read connection, RST for unread data and for the accept queue.
#[test]
fn an_exiting_process_sends_fins_and_resets() {
    let mut pod = pod();
    let next = open(&mut pod, None);
    pod.stop_accepting();
    let other = Endpoint::new(endpoint(PEER).ip, 40001);
    let from = |mut segment: Segment| {
        segment.tuple.src = other;
        segment
    };
    let syn_ack = pod.on_segment(at(2), &from(segment(Flags::SYN, 1, 0)));
    let theirs = syn_ack.segments()[0].seq.wrapping_add(1);
    let mut last = from(segment(Flags::ACK.with(Flags::PSH), 2, theirs));
    last.len = 100;
    let outcome = pod.on_segment(at(3), &last);
    assert_eq!(outcome.events(), [Event::Accepted, Event::Data(100)]);
    assert_eq!(pod.queued(), 1);
    let outcomes = pod.exit(at(4), false);
    let sent: Vec<(u16, Flags)> = outcomes
        .iter()
        .map(|(peer, outcome)| (peer.port, outcome.segments()[0].flags))
        .collect();
    assert_eq!(
        sent,
        [
            (40001, Flags::RST.with(Flags::ACK)),
            (40000, Flags::FIN.with(Flags::ACK))
        ]
    );
    assert_eq!(pod.len(), 1, "the orphan in FIN_WAIT1");
    // The orphan repeats its FIN, 8 times or so, and goes.
    let clock = stack("6.12.117", 2).clock;
    let mut now = at(4);
    let mut fins = 0;
    while let Some(tick) = pod.timer(now, endpoint(PEER)) {
        now = clock.instant(tick);
        let outcome = pod.on_timer(now, endpoint(PEER));
        for fin in outcome.segments() {
            assert_eq!((fin.flags, fin.seq), (Flags::FIN.with(Flags::ACK), next));
            fins += 1;
        }
    }
    assert_eq!(fins, 8, "0.2 s doubled until 102 s have passed");
    assert!((102..210).contains(&now.as_secs()), "{now}");
    assert!(pod.is_empty());
}

/// Facts 7.2, last row: with the network namespace the sockets vanish without a packet.
#[test]
fn a_destroyed_pod_is_silent() {
    let mut pod = pod();
    open(&mut pod, None);
    pod.destroy();
    assert!(pod.is_empty());
    let data = segment(Flags::ACK, 1001, 0);
    assert!(pod.on_segment(at(5), &data).segments().is_empty());
}

/// Facts 7.3, the table: what decides whether a SYN reopens a TIME_WAIT.
#[test]
fn a_syn_reopens_a_time_wait_by_timestamp_or_sequence() {
    let (older, newer, same) = (1000_u32, 2000_u32, 1500_u32);
    // (timestamps of the old connection, SYN's seq relative to rcv_nxt, SYN's tsval, reopened)
    let cases = [
        (Some(same), 1_i32, Some(newer), true),
        (Some(same), -1, Some(newer), true), // the larger timestamp suffices
        (Some(same), 1, Some(older), false), // PAWS rejects even a newer sequence number
        (Some(same), -1, Some(older), false),
        (Some(same), 1, Some(same), true), // an equal timestamp: the sequence decides
        (Some(same), -1, Some(same), false),
        (Some(same), 1, None, true), // without a timestamp: the sequence decides
        (Some(same), -1, None, false),
        (None, 1, Some(older), true), // the old connection had none: the sequence decides
        (None, -1, Some(newer), false),
        (None, 1, None, true),
        (None, 0, None, false), // equal is not newer
    ];
    for (before, relative, val, reopened) in cases {
        let mut pod = pod();
        let last = time_wait(&mut pod, before);
        let seq = 1002_u32.wrapping_add_signed(relative);
        let plain = segment(Flags::SYN, seq, 0);
        let syn = val.map_or(plain, |val| stamped(plain, val));
        let outcome = pod.on_segment(at(1000), &syn);
        let answer = outcome.segments()[0];
        let case = format!("{before:?} {relative} {val:?}");
        if reopened {
            assert_eq!(outcome.rule, Rule::TimeWaitReopened, "{case}");
            assert_eq!(answer.flags, Flags::SYN.with(Flags::ACK));
            assert_eq!(answer.seq, last.wrapping_add(65_537), "{case}");
            assert_eq!(answer.ack, seq.wrapping_add(1));
        } else {
            assert_eq!(outcome.rule, Rule::TimeWaitAck, "{case}");
            assert_eq!((answer.flags, answer.ack), (Flags::ACK, 1002));
        }
    }
}

/// Facts 7.3 step 2: without a listener the SYN falls to step 3; with a full accept queue it is dropped.
#[test]
fn a_reopening_syn_needs_a_listener_with_room() {
    let mut silent = pod();
    time_wait(&mut silent, None);
    silent.close_listener(at(10));
    let syn = segment(Flags::SYN, 5000, 0);
    let outcome = silent.on_segment(at(1000), &syn);
    assert_eq!(outcome.segments()[0].flags, Flags::ACK);
    assert_eq!(silent.len(), 1, "the TIME_WAIT stays");
}

/// Facts 7.3 step 3: one ACK in 500 ms, and the timer restarts only if PAWS rejected or the segment had ACK.
#[test]
fn the_ack_of_a_time_wait_is_rate_limited() {
    let mut pod = pod();
    time_wait(&mut pod, None);
    let old = segment(Flags::SYN, 900, 0);
    let timer = pod.timer(at(10), endpoint(PEER));
    assert_eq!(pod.on_segment(at(1000), &old).rule, Rule::TimeWaitAck);
    assert_eq!(
        pod.on_segment(at(1400), &old).rule,
        Rule::TimeWaitAckLimited
    );
    assert_eq!(pod.on_segment(at(1500), &old).rule, Rule::TimeWaitAck);
    assert_eq!(pod.timer(at(1500), endpoint(PEER)), timer);
    let acked = segment(Flags::SYN.with(Flags::ACK), 900, 0);
    pod.on_segment(at(5000), &acked);
    assert_ne!(pod.timer(at(5000), endpoint(PEER)), timer);
}

/// Facts 10.7: through SNAT a SYN of an older connection meets a TIME_WAIT: ACK, RST, and the SYN again.
#[test]
fn a_foreign_syn_dances_with_a_time_wait() {
    let fixed = Source::BindPort {
        port: 40000,
        reuse_addr: true,
    };
    let mut probe = Wire::new("5.7.14", "5.7.14");
    let id = probe.connect_from(fixed).unwrap();
    let offset = probe.client.socket(id).unwrap().ts_offset;
    // Another client behind the same address and port has used timestamps a thousand seconds ahead.
    let mut wire = Wire::new("5.7.14", "5.7.14");
    time_wait(&mut wire.pod, Some(offset.wrapping_add(1_000_000)));
    wire.run(at(1000));
    wire.connect_from(fixed).unwrap();
    wire.run_for(1);
    let brief: Vec<&str> = wire
        .log
        .iter()
        .map(|line| line.split_once(' ').unwrap().1)
        .take(5)
        .collect();
    assert_eq!(brief, ["> [S]", "< [.]", "> [R]", "> [S]", "< [S.]"]);
    assert!(
        wire.log[3].starts_with("1.0"),
        "two jiffies: {:?}",
        wire.log
    );
}

/// Facts 7.4: a SYN for a stale socket: challenge ACK, one in 500 ms; the client's exact RST kills it.
#[test]
fn a_syn_for_a_stale_connection_is_challenged() {
    for close in [false, true] {
        let mut pod = pod();
        let next = open(&mut pod, None);
        if close {
            pod.close(at(2), endpoint(PEER), false);
        }
        for (time, rule) in [
            (1000, Rule::ChallengeAck),
            (1400, Rule::ChallengeLimited),
            (1500, Rule::ChallengeAck),
        ] {
            let outcome = pod.on_segment(at(time), &segment(Flags::SYN, 700_000, 0));
            assert_eq!(outcome.rule, rule, "{time}");
            for answer in outcome.segments() {
                assert_eq!((answer.flags, answer.ack), (Flags::ACK, 1001));
            }
        }
        let outcome = pod.on_segment(at(1600), &segment(Flags::RST, 1002, 0));
        assert_eq!(outcome.rule, Rule::ChallengeLimited, "an inexact RST");
        let outcome = pod.on_segment(at(1700), &segment(Flags::RST, 1001, 0));
        assert_eq!(outcome.rule, Rule::ResetAccepted);
        let expected = if close {
            Event::Closed
        } else {
            Event::Failed(ConnError::Reset)
        };
        assert_eq!(outcome.events(), [expected]);
        assert!(pod.is_empty());
        let again = pod.on_segment(at(1800), &segment(Flags::SYN, 700_000, 0));
        assert_eq!(again.rule, Rule::SynAnswered);
        assert_ne!(again.segments()[0].seq, next);
    }
}

/// Facts 7.4 for CLOSE_WAIT and LAST_ACK: also the RST of a peer that does not count its FIN.
#[test]
fn a_peer_that_forgot_its_fin_may_reset() {
    for close in [false, true] {
        let mut pod = pod();
        let next = open(&mut pod, None);
        let fin = segment(Flags::FIN.with(Flags::ACK), 1001, next);
        assert_eq!(pod.on_segment(at(2), &fin).events(), [Event::PeerClosed]);
        if close {
            pod.close(at(3), endpoint(PEER), false);
        }
        let outcome = pod.on_segment(at(4), &segment(Flags::RST, 1001, 0));
        assert_eq!(outcome.rule, Rule::ResetAccepted);
        let expected = if close {
            Event::Closed
        } else {
            Event::Failed(ConnError::BrokenPipe)
        };
        assert_eq!(outcome.events(), [expected]);
    }
}

/// Facts 7.4, last sentence but one: the request answers a repeated SYN again, and dies of another SYN.
#[test]
fn a_request_answers_its_syn_again() {
    let mut pod = pod();
    let syn = segment(Flags::SYN, 1000, 0);
    let first = pod.on_segment(at(0), &syn).segments()[0];
    let again = pod.on_segment(at(1000), &syn);
    assert_eq!(again.rule, Rule::RequestSynAgain);
    assert_eq!(again.segments()[0].seq, first.seq);
    let outcome = pod.on_segment(at(1100), &segment(Flags::ACK, 1001, 99));
    assert_eq!(outcome.rule, Rule::RequestBadAck);
    assert_eq!(outcome.segments()[0].seq, 99);
    let other = pod.on_segment(at(1200), &segment(Flags::SYN, 1500, 0));
    assert_eq!(other.rule, Rule::RequestReset);
    assert!(pod.is_empty());
}

/// FIN_WAIT2 without a process: 60 s, data are reset, the FIN brings TIME_WAIT (facts 6.4, 7.3).
#[test]
fn an_orphan_in_fin_wait2_lasts_a_minute() {
    let mut pod = pod();
    let next = open(&mut pod, None);
    let last = next.wrapping_add(1);
    pod.close(at(2), endpoint(PEER), false);
    pod.on_segment(at(3), &segment(Flags::ACK, 1001, last));
    let state = |pod: &Pod| pod.socket(endpoint(PEER)).map(Socket::state);
    assert_eq!(state(&pod), Some(State::OrphanFinWait2));
    let clock = stack("6.12.117", 2).clock;
    let end = clock.instant(pod.timer(at(3), endpoint(PEER)).unwrap());
    assert!((60..63).contains(&end.as_secs()));

    let mut with_data = pod.clone();
    let mut data = segment(Flags::ACK, 1001, last);
    data.len = 10;
    let outcome = with_data.on_segment(at(4), &data);
    assert_eq!(outcome.rule, Rule::FinWait2Reset);
    assert!(outcome.segments()[0].flags.has(Flags::RST) && with_data.is_empty());

    let mut with_syn = pod.clone();
    let outcome = with_syn.on_segment(at(4), &segment(Flags::SYN, 2000, 0));
    assert_eq!(outcome.rule, Rule::FinWait2Reset);
    let mut with_old_syn = pod.clone();
    let outcome = with_old_syn.on_segment(at(4), &segment(Flags::SYN, 900, 0));
    assert_eq!(outcome.rule, Rule::TimeWaitAck);

    let outcome = pod.on_segment(at(5), &segment(Flags::FIN.with(Flags::ACK), 1001, last));
    assert_eq!(outcome.rule, Rule::FinWait2Fin);
    assert_eq!(state(&pod), Some(State::TimeWait));
    pod.on_timer(Instant::from_secs(100), endpoint(PEER));
    assert!(pod.is_empty());
}

/// A half-open request of a closed listener: a segment for it meets nobody.
#[test]
fn closing_the_listener_drops_requests() {
    let mut pod = pod();
    let outcome = pod.on_segment(at(0), &segment(Flags::SYN, 1000, 0));
    let next = outcome.segments()[0].seq.wrapping_add(1);
    pod.close_listener(at(1));
    assert_eq!(pod.len(), 1);
    let outcome = pod.on_segment(at(2), &segment(Flags::ACK, 1001, next));
    assert_eq!(outcome.rule, Rule::NoSocket);
    assert_eq!(outcome.segments()[0].flags, Flags::RST);
    assert!(pod.is_empty());
}

/// The listener closes after a request's last repetition: the request gives up by itself, once.
#[test]
fn a_request_gives_up_behind_a_closed_listener() {
    let mut pod = pod();
    let clock = stack("6.12.117", 2).clock;
    let peer = endpoint(PEER);
    pod.on_segment(at(0), &segment(Flags::SYN, 1000, 0));
    for _ in 0..5 {
        let now = clock.instant(pod.timer(at(0), peer).unwrap());
        let outcome = pod.on_timer(now, peer);
        assert_eq!(outcome.rule, Rule::SynAckRetransmitted);
    }
    let now = clock.instant(pod.timer(at(0), peer).unwrap());
    pod.close_listener(now);
    let outcome = pod.on_timer(now, peer);
    assert_eq!(outcome.rule, Rule::RequestExpired);
    assert_eq!(outcome.events(), [Event::Closed]);
    assert!(pod.is_empty());
}

/// `tcp_cwnd_test`: until 6.9 a FIN goes out while data are being sent again, since 6.10 it waits for their acknowledgement.
#[test]
fn a_fin_waits_behind_what_is_sent_again() {
    for (kernel, waits) in [("6.1.192", false), ("6.12.117", true)] {
        let mut pod = Pod::new(stack(kernel, 2), endpoint(SERVER), 511);
        let next = open(&mut pod, None);
        let peer = endpoint(PEER);
        assert_eq!(pod.send(at(2), peer, 100).segments().len(), 1, "{kernel}");
        let mut now = at(2);
        for _ in 0..2 {
            now = pod.stack().clock.instant(pod.timer(now, peer).unwrap());
            let outcome = pod.on_timer(now, peer);
            assert_eq!(outcome.rule, Rule::Retransmitted, "{kernel}");
        }
        let outcome = pod.close(now, peer, false);
        let fins = |outcome: &Outcome| {
            let segments = outcome.segments().iter();
            segments.filter(|sent| sent.flags.has(Flags::FIN)).count()
        };
        assert_eq!(fins(&outcome), usize::from(!waits), "{kernel}");
        let state = |pod: &Pod| pod.socket(peer).unwrap().state();
        assert_eq!(state(&pod), State::FinWait1, "{kernel}");
        let ack = segment(Flags::ACK, 1001, next.wrapping_add(100));
        let outcome = pod.on_segment(now + Span::from_millis(1), &ack);
        if waits {
            assert_eq!(fins(&outcome), 1, "acknowledged: {kernel}");
        }
        assert_eq!(state(&pod), State::FinWait1, "{kernel}");
    }
}
