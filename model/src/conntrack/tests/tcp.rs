//! TCP traces: facts 5.3 and 5.4, the ct column of facts 10.

use super::*;
use CtState::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};

/// Facts 10.1.
#[test]
fn client_closes_first() {
    let mut net = Net::new("6.12.117");
    assert_eq!(net.client(SYN, 100, 0), CtRule::NewSyn);
    assert_eq!(net.state(), Some((SynSent, 120)));
    assert!(!net.status().has(Status::SEEN_REPLY));
    assert_eq!(net.pod(SYN_ACK, 500, 101), CtRule::InWindow);
    assert_eq!(net.state(), Some((SynRecv, 60)));
    assert_eq!(net.client(ACK, 101, 501), CtRule::InWindow);
    assert_eq!(net.state(), Some((Established, 432_000)));
    assert!(net.status().has(Status::ASSURED));
    net.client(FIN, 101, 501);
    assert_eq!(net.state(), Some((FinWait, 120)));
    net.pod(ACK, 501, 102);
    assert_eq!(net.state(), Some((CloseWait, 60)));
    net.pod(FIN, 501, 102);
    assert_eq!(net.state(), Some((LastAck, 30)));
    net.client(ACK, 102, 502);
    assert_eq!(net.state(), Some((TimeWait, 120)));
    net.wait(119);
    assert_eq!(net.state(), Some((TimeWait, 1)));
    net.wait(1);
    assert_eq!(net.state(), None);
}

/// Facts 10.2, with FIN and ACK in one segment.
#[test]
fn server_closes_first() {
    let mut net = Net::new("5.7.14");
    net.establish();
    net.pod(FIN, 501, 101);
    assert_eq!(net.state(), Some((FinWait, 120)));
    net.client(FIN, 101, 502);
    assert_eq!(net.state(), Some((LastAck, 30)));
    net.pod(ACK, 502, 102);
    assert_eq!(net.state(), Some((TimeWait, 120)));
}

/// Facts 10.3 and trap 20.
#[test]
fn a_refused_connection_leaves_no_entry() {
    let mut net = Net::new("6.1.192");
    net.client(SYN, 100, 0);
    assert_eq!(
        net.pod(RST.with(ACK), 0, 101),
        CtRule::RstUnanswered,
        "seq 0 answers the SYN"
    );
    assert_eq!(net.state(), None);
    assert_eq!(net.ct.count(), 0);
}

/// Facts 5.2: kernels since 5.14 keep the deadline of an unanswered SYN, older ones move it.
#[test]
fn a_retransmitted_syn_keeps_the_deadline_since_5_14() {
    for (release, rule, left) in [
        ("5.10.44", CtRule::InWindow, 120),
        ("5.15.16", CtRule::SynRetransmitted, 119),
    ] {
        let mut net = Net::new(release);
        net.client(SYN, 100, 0);
        net.wait(1);
        assert_eq!(net.client(SYN, 100, 0), rule, "{release}");
        assert_eq!(net.state(), Some((SynSent, left)), "{release}");
    }
}

/// Facts 5.4, the rows TW and CL.
#[test]
fn which_finished_connections_a_syn_reopens() {
    // A FIN-closed connection: always.
    let mut net = Net::new("5.9.1");
    net.establish();
    net.client(FIN, 101, 501);
    net.pod(FIN, 501, 102);
    net.client(ACK, 102, 502);
    assert_eq!(net.state(), Some((TimeWait, 120)));
    assert_eq!(net.client(SYN, 9000, 0), CtRule::Reopened);
    assert_eq!(net.state(), Some((SynSent, 120)));
    assert_eq!(net.ct.count(), 1);

    // Closed by the client's RST: yes.
    let mut net = Net::new("5.9.1");
    net.establish();
    assert_eq!(net.client(RST, 101, 0), CtRule::RstClosed);
    assert_eq!(net.state(), Some((Close, 10)));
    assert_eq!(net.client(SYN, 9000, 0), CtRule::Reopened);

    // Closed by the server's RST without a FIN before: no.
    let mut net = Net::new("5.9.1");
    net.establish();
    assert_eq!(net.pod(RST, 501, 0), CtRule::RstClosed);
    assert_eq!(net.client(SYN, 9000, 0), CtRule::IgnoredSyn);
    assert_eq!(net.state(), Some((Close, 10)));

    // Closed by the server's RST after a FIN: yes.
    let mut net = Net::new("5.9.1");
    net.establish();
    net.client(FIN, 101, 501);
    assert_eq!(net.pod(RST, 501, 0), CtRule::RstClosed);
    assert_eq!(net.client(SYN, 9000, 0), CtRule::Reopened);
}

/// Facts 5.4, the rows SR to LA: the SYN is noted, and a SYN-ACK to it brings conntrack back in sync.
#[test]
fn an_ignored_syn_and_its_answer() {
    let mut net = Net::new("6.12.117");
    net.establish();
    net.wait(10);
    assert_eq!(net.client(SYN, 777_000, 0), CtRule::IgnoredSyn);
    assert_eq!(net.state(), Some((Established, 431_990)));
    assert_eq!(net.pod(SYN_ACK, 900_000, 777_001), CtRule::Resynchronised);
    assert_eq!(net.state(), Some((SynRecv, 60)));
    assert_eq!(net.client(ACK, 777_001, 900_001), CtRule::InWindow);
    assert_eq!(net.state(), Some((Established, 432_000)));
}

/// Facts 5.3.4: RFC 5961.
#[test]
fn a_challenge_ack_in_last_ack_is_not_the_last_ack() {
    for (release, rule, state) in [
        ("3.10.4", CtRule::InWindow, TimeWait),
        ("6.1.192", CtRule::IgnoredChallengeAck, LastAck),
    ] {
        let mut net = Net::new(release);
        net.establish();
        net.client(FIN, 101, 501);
        net.pod(FIN, 501, 102);
        assert_eq!(net.client(SYN, 777_000, 0), CtRule::IgnoredSyn);
        assert_eq!(net.pod(ACK, 502, 102), rule, "{release}");
        assert_eq!(
            net.state().map(|(state, _)| state),
            Some(state),
            "{release}"
        );
    }
}

/// Facts 5.3.4 and 5.2: a RST that misses the expected number, by kernel.
#[test]
fn a_rst_off_the_expected_number() {
    for (release, rule, state, left) in [
        ("4.19.0", CtRule::RstClosed, Close, 10),
        ("5.4.214", CtRule::RstInexact, Established, 10),
        ("6.1.192", CtRule::RstInexact, Established, 10),
        ("6.12.117", CtRule::RstInexact, Established, 300),
    ] {
        let mut net = Net::new(release);
        net.establish();
        assert_eq!(net.client(RST, 1101, 0), rule, "{release}");
        assert_eq!(net.state(), Some((state, left)), "{release}");
    }
}

/// Facts 5.3.4: below the acknowledged data a RST is invalid, unless the connection is closing (5.14).
#[test]
fn an_old_rst() {
    for (release, ignore, rule) in [
        ("5.10.44", false, CtRule::InvalidRst),
        ("6.12.117", false, CtRule::InvalidRst),
        ("6.12.117", true, CtRule::RstInexact),
    ] {
        let mut net = Net::new(release);
        net.sysctls.ignore_invalid_rst = ignore;
        net.establish();
        // The pod acknowledges 101, so 50 is old.
        net.pod(ACK, 501, 101);
        assert_eq!(net.client(RST, 50, 0), rule, "{release}");
    }
    for (release, rule) in [
        ("5.10.44", CtRule::InvalidRst),
        ("5.15.16", CtRule::RstWhileClosing),
    ] {
        let mut net = Net::new(release);
        net.establish();
        net.client(FIN, 101, 501);
        net.pod(ACK, 501, 102);
        assert_eq!(net.client(RST, 50, 0), rule, "{release}");
    }
}

/// Facts 5.3.3.
#[test]
fn what_can_begin_an_entry() {
    let mut net = Net::new("6.12.117");
    assert_eq!(net.client(SYN_ACK, 1, 1), CtRule::InvalidNew);
    assert_eq!(net.client(FIN, 1, 1), CtRule::InvalidNew);
    assert_eq!(net.client(RST, 1, 0), CtRule::InvalidNew);
    assert_eq!(net.client(Flags::FIN, 1, 0), CtRule::InvalidFlags);
    assert_eq!(net.client(Flags(0), 1, 0), CtRule::InvalidFlags);
    assert_eq!(net.ct.count(), 0);
    assert_eq!(net.client(ACK, 1, 1), CtRule::NewMidStream);
    assert_eq!(net.state(), Some((Established, 300)), "no reply seen yet");
    net.pod(ACK, 1, 1);
    assert!(
        !net.status().has(Status::ASSURED),
        "the reply itself came too early"
    );
    assert_eq!(net.state(), Some((Established, 300)));
    net.client(ACK, 1, 1);
    assert!(net.status().has(Status::ASSURED));
    assert_eq!(net.state(), Some((Established, 432_000)));

    let mut net = Net::new("6.12.117");
    net.sysctls.tcp_loose = false;
    assert_eq!(net.client(ACK, 1, 1), CtRule::InvalidNotLoose);
}

/// Facts 5.2: at most 300 s while data is unacknowledged, after three repeated ACKs, with a closed window.
#[test]
fn what_cuts_the_lifetime_of_an_established_entry() {
    let mut net = Net::new("6.12.117");
    net.establish();
    let mut data = Segment::new(Tuple::tcp(client(), service()), ACK);
    (data.seq, data.ack, data.len) = (101, 501, 10);
    net.forward(&data, pod());
    assert_eq!(net.state(), Some((Established, 300)), "unacknowledged");
    net.pod(ACK, 501, 111);
    assert_eq!(net.state(), Some((Established, 432_000)));
    for _ in 0..2 {
        net.pod(ACK, 501, 111);
        assert_eq!(net.state(), Some((Established, 432_000)));
    }
    net.pod(ACK, 501, 111);
    assert_eq!(net.state(), Some((Established, 300)), "three repetitions");
    let mut probe = Segment::new(Tuple::tcp(client(), service()), ACK);
    (probe.seq, probe.ack, probe.window) = (111, 501, 0);
    net.forward(&probe, pod());
    assert_eq!(net.state(), Some((Established, 300)), "closed window");
}

/// Facts 5.3.5: out of window, by kernel.
#[test]
fn segments_out_of_the_window() {
    for (release, late, shortened) in [
        ("5.10.44", CtRule::InvalidSeqUnder, CtRule::InvalidSeqOver),
        ("6.1.192", CtRule::IgnoredDelayed, CtRule::InvalidShortened),
    ] {
        let mut net = Net::new(release);
        net.establish();
        assert_eq!(net.client(ACK, 900_101, 501), CtRule::InvalidSeqOver);
        assert_eq!(net.client(ACK, 101, 9_501), CtRule::InvalidAckOver);
        let old = 101_u32.wrapping_sub(100_000);
        assert_eq!(net.client(ACK, old, 501), late, "{release}");
        assert_eq!(net.state(), Some((Established, 432_000)));
        // A FIN of each side, both far out of the window.
        assert_eq!(net.client(FIN, 900_101, 501), CtRule::InvalidSeqOver);
        assert_eq!(net.pod(FIN, 900_501, 101), shortened, "{release}");
        let left = if shortened == CtRule::InvalidShortened {
            300
        } else {
            432_000
        };
        assert_eq!(net.state(), Some((Established, left)), "{release}");
        net.sysctls.be_liberal = true;
        assert_eq!(net.client(ACK, 900_101, 501), CtRule::LiberalWindow);
    }
}

/// A new connection attempt while the first is half open: facts 5.4, row SS. (The facts expect an earlier ISN to
/// be invalid; with no window of the other side known, kernels since 3.12 let it pass.)
#[test]
fn another_isn_on_a_half_open_entry() {
    for (release, earlier) in [
        ("3.10.4", CtRule::InvalidSeqUnder),
        ("6.12.117", CtRule::SynRetransmitted),
    ] {
        let mut net = Net::new(release);
        net.client(SYN, 5000, 0);
        assert_eq!(net.client(SYN, 4000, 0), earlier, "{release}");
        assert_ne!(net.client(SYN, 6000, 0), CtRule::InvalidSeqUnder);
        assert_eq!(net.pod(SYN_ACK, 1, 6001), CtRule::InWindow, "{release}");
        assert_eq!(net.pod(SYN_ACK, 1, 5001), CtRule::IgnoredSynAck);
    }
}

#[test]
fn sequence_numbers_wrap_in_mid_connection() {
    let mut net = Net::new("6.12.117");
    let isn = u32::MAX - 1;
    net.client(SYN, isn, 0);
    net.pod(SYN_ACK, isn, isn.wrapping_add(1));
    assert_eq!(
        net.client(ACK, isn.wrapping_add(1), u32::MAX),
        CtRule::InWindow
    );
    let mut data = Segment::new(Tuple::tcp(client(), service()), ACK);
    (data.seq, data.ack, data.len) = (u32::MAX, u32::MAX, 1000);
    assert_eq!(net.forward(&data, pod()), CtRule::InWindow);
    assert_eq!(net.pod(ACK, u32::MAX, 999), CtRule::InWindow);
    assert_eq!(net.state(), Some((Established, 432_000)));
}

/// Before 4.9 an entry has a timer, which moves only by a second or more and is armed with slack.
#[test]
fn timers_of_3_10_move_in_whole_seconds() {
    let mut net = Net::new("3.10.108");
    assert_eq!(net.clock.era(), TimerEra::Slack);
    net.establish();
    let now = net.tick();
    let ct = net.ct.find(now, &Tuple::tcp(client(), service())).unwrap();
    let before = net.ct.entry(ct.slot).deadline;
    net.now += Span::from_millis(900);
    net.pod(ACK, 501, 101);
    assert_eq!(net.ct.entry(ct.slot).deadline, before);
    net.now += Span::from_millis(100);
    net.client(ACK, 101, 501);
    assert_eq!(net.ct.entry(ct.slot).deadline, before + 250);
}
