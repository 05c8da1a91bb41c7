//! The worked traces of facts 10, step by step: conntrack and IPVS together, and the counters of the real servers.
//!
//! A state reads `IPVS state and seconds | conntrack state, seconds and flags | active/inactive`, right after the
//! packet. Entries carry NFCT, HZ is 250.

mod common;

use common::{A, ACK, B, CLIENT, FIN, Flow, Lab, RST, SYN, SYN_ACK, at};
use ipvs_model::conntrack::{CtRule, SourceNat};
use ipvs_model::ipvs::Rule as Ipvs;
use ipvs_model::node::{Rule, Verdict};
use ipvs_model::segment::{Flags, Segment};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::Span;

/// Facts 10.1, the table: the client closes first.
#[test]
fn trace_10_1_the_client_closes_first() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.syn(&mut flow).unwrap();
    assert_eq!(
        lab.shows(&flow),
        "SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0",
        "1"
    );
    lab.pod(&mut flow, SYN_ACK);
    assert_eq!(lab.shows(&flow), "SYN_RECV 60 | SYN_RECV 60 | 1/0", "2");
    lab.client(&mut flow, ACK);
    let open = "ESTABLISHED 900 | ESTABLISHED 432000 [ASSURED] | 1/0";
    assert_eq!(lab.shows(&flow), open, "3");

    let unacknowledged = "ESTABLISHED 900 | ESTABLISHED 300 [ASSURED] | 1/0";
    lab.client_data(&mut flow, ACK, 100);
    assert_eq!(lab.shows(&flow), unacknowledged, "4: a request");
    lab.pod(&mut flow, ACK);
    assert_eq!(lab.shows(&flow), open, "4: acknowledged");
    lab.pod_data(&mut flow, ACK, 1000);
    assert_eq!(lab.shows(&flow), unacknowledged, "4: a response");
    lab.client(&mut flow, ACK);
    assert_eq!(lab.shows(&flow), open, "4: acknowledged");

    lab.client(&mut flow, FIN);
    assert_eq!(
        lab.shows(&flow),
        "CLOSE_WAIT 60 | FIN_WAIT 120 [ASSURED] | 0/1",
        "5"
    );
    lab.pod(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "CLOSE_WAIT 60 | CLOSE_WAIT 60 [ASSURED] | 0/1",
        "6"
    );
    lab.pod(&mut flow, FIN);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | LAST_ACK 30 [ASSURED] | 0/1",
        "7"
    );
    lab.client(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1",
        "8"
    );

    let closed = lab.now;
    lab.until(closed, Span::from_millis(119_990));
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 0 | TIME_WAIT 0 [ASSURED] | 0/1",
        "9: before"
    );
    lab.until(closed, Span::from_millis(122_060));
    assert_eq!(
        lab.shows(&flow),
        "- | - | 0/0",
        "9: after 120 s and at most 2.05"
    );
    assert_eq!(lab.node.ct.iter().count(), 0, "deleted with it");
}

/// Facts 10.1, row 6 in brackets: kube-proxy's close_wait of an hour reaches conntrack only.
#[test]
fn trace_10_1_with_kube_proxys_close_wait() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.sysctl(|all| all.ct.close_wait = 3600);
    lab.open(&mut flow);
    lab.client(&mut flow, FIN);
    lab.pod(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "CLOSE_WAIT 60 | CLOSE_WAIT 3600 [ASSURED] | 0/1"
    );
    // Trap 22: IPVS deletes it after a minute all the same.
    lab.wait_s(63);
    assert_eq!(lab.shows(&flow), "- | - | 0/0");
}

/// Facts 10.1, last sentence but one: FIN and ACK of the server in one segment.
#[test]
fn trace_10_1_with_fin_and_ack_together() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.client(&mut flow, FIN);
    lab.pod(&mut flow, FIN);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | LAST_ACK 30 [ASSURED] | 0/1"
    );
    lab.client(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1"
    );
}

/// Facts 10.2: the server closes first.
#[test]
fn trace_10_2_the_server_closes_first() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.pod(&mut flow, FIN);
    assert_eq!(
        lab.shows(&flow),
        "FIN_WAIT 120 | FIN_WAIT 120 [ASSURED] | 0/1"
    );
    lab.client(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "FIN_WAIT 120 | CLOSE_WAIT 60 [ASSURED] | 0/1"
    );
    lab.client(&mut flow, FIN);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | LAST_ACK 30 [ASSURED] | 0/1"
    );
    lab.pod(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1"
    );
}

/// Facts 10.3, row 1: a SYN refused by the pod.
#[test]
fn trace_10_3_refused() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.syn(&mut flow).unwrap();
    flow.pod_next = 0;
    lab.pod(&mut flow, RST.with(ACK));
    assert_eq!(lab.shows(&flow), "CLOSE 10 | - | 0/1");
    lab.wait_s(11);
    assert_eq!(lab.shows(&flow), "- | - | 0/0");
}

/// Facts 10.3, row 2: the client resets; the next SYN reopens conntrack and is scheduled at once.
#[test]
fn trace_10_3_the_client_resets() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.client(&mut flow, RST);
    assert_eq!(lab.shows(&flow), "CLOSE 10 | CLOSE 10 [ASSURED] | 0/1");
    lab.replace(A, B);
    lab.wait_s(5);
    assert_eq!(lab.syn(&mut flow), Ok(at(B)));
    lab.wait(Span::from_millis(8));
    assert_eq!(
        lab.shows(&flow),
        "SYN_RECV 59 | SYN_SENT 119 [UNREPLIED] | 1/0"
    );
}

/// Facts 10.3, row 3, and 10.5: after a reset of the server conntrack does not let the port be reopened: the first SYN
/// is dropped, the one sent again a second later is scheduled.
#[test]
fn trace_10_3_the_server_resets() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.pod(&mut flow, RST);
    assert_eq!(lab.shows(&flow), "CLOSE 10 | CLOSE 10 [ASSURED] | 0/1");
    lab.wait_s(5);
    let dropped = (Verdict::Drop, Rule::Ipvs(Ipvs::DroppedReuse));
    assert_eq!(lab.syn(&mut flow), Err(dropped));
    lab.wait_s(1);
    assert_eq!(lab.ipvs_of(&flow), "-", "it went with the next tick");
    assert_eq!(lab.ct_of(&flow), "-", "and took its conntrack entry along");
    assert!(matches!(lab.again(&mut flow).verdict, Verdict::Forward(_)));
    assert_eq!(
        lab.shows(&flow),
        "SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0"
    );
}

/// Facts 10.3, row 4: each SYN restarts IPVS; conntrack counts from the first since 5.14, before from the last.
#[test]
fn trace_10_3_blackholed() {
    for (release, second, third) in [
        ("5.4.120", "SYN_SENT 120", "SYN_SENT 120"),
        ("5.10.44", "SYN_SENT 120", "SYN_SENT 120"),
        ("5.15.16", "SYN_SENT 119", "SYN_SENT 117"),
        ("6.12.117", "SYN_SENT 119", "SYN_SENT 117"),
    ] {
        let (mut lab, mut flow) = (Lab::new(release, 1, &[A]), Flow::new(CLIENT));
        lab.syn(&mut flow).unwrap();
        for (secs, ct) in [(1, second), (2, third)] {
            lab.wait_s(secs);
            lab.again(&mut flow);
            let want = format!("SYN_RECV 60 | {ct} [UNREPLIED] | 1/0");
            assert_eq!(lab.shows(&flow), want, "{release}");
        }
        lab.wait(Span::from_millis(59_990));
        assert_eq!(lab.ipvs_of(&flow), "SYN_RECV 0", "{release}");
        lab.wait(Span::from_millis(2_060));
        assert_eq!(
            lab.shows(&flow),
            "- | - | 0/0",
            "{release}: 60 s after the last"
        );
    }
}

/// Facts 10.4 on 5.4.120 (era D), mode 0: the core of #81775, and what conntrack does meanwhile.
#[test]
fn trace_10_4_the_quiesced_real_server_is_kept() {
    let (mut lab, mut flow) = (Lab::new("5.4.120", 0, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.server_closes(&mut flow);
    let closed = lab.now;
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1"
    );
    lab.until(closed, Span::from_secs(10));
    lab.replace(A, B);
    lab.until(closed, Span::from_secs(20));
    assert_eq!(lab.syn(&mut flow), Ok(at(A)));
    assert_eq!(lab.server(A).unwrap(), "0 1/0", "active again");
    assert_eq!(lab.server(B).unwrap(), "1 0/0");
    assert_eq!(
        lab.shows(&flow),
        "SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0"
    );

    // (a) The old pod still serves: the entry is good for another TIME_WAIT.
    let mut served = (lab.node.clone(), flow);
    std::mem::swap(&mut lab.node, &mut served.0);
    lab.pod(&mut flow, SYN_ACK);
    lab.client(&mut flow, ACK);
    lab.server_closes(&mut flow);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1",
        "(a)"
    );
    // (b) Its listener is closed.
    std::mem::swap(&mut lab.node, &mut served.0);
    served.1.pod_next = 0;
    lab.pod(&mut served.1, RST.with(ACK));
    assert_eq!(lab.shows(&served.1), "CLOSE 10 | - | 0/1", "(b)");
}

/// Facts 10.4 (c): the pod is gone. Each SYN holds its entry for another minute, active: kube-proxy does not delete.
#[test]
fn trace_10_4_a_dead_pod_is_held_by_retries() {
    let (mut lab, mut flow) = (Lab::new("5.4.120", 0, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.server_closes(&mut flow);
    lab.replace(A, B);
    lab.wait_s(20);
    assert_eq!(lab.syn(&mut flow), Ok(at(A)));
    for secs in [1, 2, 4, 8, 16, 32] {
        lab.wait_s(secs);
        let kept = lab.again(&mut flow);
        assert_eq!(kept.rule, Rule::Ipvs(Ipvs::SynKeptAtWeightZero));
        assert_eq!(
            lab.shows(&flow),
            "SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0"
        );
    }
    lab.wait_s(59);
    assert_eq!(
        lab.server(A).unwrap(),
        "0 1/0",
        "a minute after the last SYN"
    );
    // The next connect on the port, within that minute, starts it all again.
    assert_eq!(lab.syn(&mut flow), Ok(at(A)));
    lab.wait_s(63);
    assert_eq!(lab.server(A).unwrap(), "0 0/0");
}

/// Facts 10.4, the other kernels: what the same SYN does, and whether the client loses a second.
#[test]
fn trace_10_4_on_other_kernels() {
    for (release, mode, pod, dropped) in [
        ("5.4.30", 0, A, false),
        ("5.4.30", 1, B, true),
        ("5.4.120", 0, A, false),
        ("5.4.163", 0, B, false),
        ("5.10.83", 0, B, false),
        ("5.10.83", 1, B, false),
        ("6.12.117", 1, B, false),
    ] {
        let (mut lab, mut flow) = (Lab::new(release, mode, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        lab.wait_s(10);
        lab.replace(A, B);
        lab.wait_s(10);
        let first = lab.syn(&mut flow);
        if dropped {
            let want = (Verdict::Drop, Rule::Ipvs(Ipvs::DroppedWeightZero));
            assert_eq!(first, Err(want), "{release} mode {mode}");
            lab.wait_s(1);
            lab.again(&mut flow);
        } else {
            assert_eq!(first, Ok(at(pod)), "{release} mode {mode}");
        }
        let reached = flow.pod_side.expect("forwarded").dst;
        assert_eq!(reached, at(pod), "{release} mode {mode}");
        assert_eq!(lab.node.bound_to(&flow.tuple()), Some(at(pod)));
        lab.wait(Span::from_millis(8));
        assert_eq!(
            lab.shows(&flow),
            "SYN_RECV 59 | SYN_SENT 119 [UNREPLIED] | 1/0",
            "{release} mode {mode}: one entry in each table"
        );
    }
}

/// Facts 10.5: mode 1, era F, the real server is in use: the scheduler chooses anew, maybe the same, without a delay.
#[test]
fn trace_10_5_reuse_in_time_wait_is_rescheduled() {
    for (pods, next) in [(&[A][..], A), (&[A, B][..], A)] {
        let (mut lab, mut flow) = (Lab::new("6.12.117", 1, pods), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        lab.wait_s(30);
        flow.begin_again();
        let decision = lab.client(&mut flow, SYN);
        assert_eq!(decision.rule, Rule::Ipvs(Ipvs::RescheduledReuse));
        assert_eq!(decision.ct, Some(CtRule::Reopened));
        let reached = flow.pod_side.expect("forwarded").dst;
        assert_eq!(reached, at(next), "rr: the newest had the first connection");
    }
}

/// Facts 10.5, last sentence: five seconds after a reset of the server the SYN costs a second.
#[test]
fn trace_10_5_after_a_servers_reset_it_costs_a_second() {
    let (mut lab, mut flow) = (Lab::new("6.12.117", 1, &[A, B]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.pod(&mut flow, RST);
    lab.wait_s(5);
    flow.begin_again();
    let decision = lab.client(&mut flow, SYN);
    assert_eq!(decision.rule, Rule::Ipvs(Ipvs::DroppedReuse));
    assert_eq!(decision.ct, Some(CtRule::IgnoredSyn));
    lab.wait_s(1);
    let retried = lab.again(&mut flow);
    assert_eq!(retried.rule, Rule::Ipvs(Ipvs::Scheduled));
}

/// What the node sends to a client whose connection it has forgotten.
fn reset_by_the_node(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Local { answer: Some(Segment { flags, .. }) } if flags.has(Flags::RST))
}

/// Facts 10.6, 5.9 and later: the flush takes entry and conntrack, the client's next segment meets the node's own RST.
#[test]
fn trace_10_6_deletion_cuts_a_live_connection() {
    for release in ["5.9.1", "6.12.117"] {
        let (mut lab, mut flow) = (Lab::new(release, 1, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.delete(A);
        lab.wait(Span::from_millis(12));
        assert_eq!(lab.shows(&flow), "- | - | 0/0", "{release}");
        let answer = lab.client_data(&mut flow, ACK, 10).verdict;
        assert!(reset_by_the_node(answer), "{release}: {answer:?}");
        let Verdict::Local { answer: Some(rst) } = answer else {
            panic!("no answer")
        };
        assert_eq!(
            rst.tuple,
            flow.tuple().reversed(),
            "from the virtual address"
        );
        // What the server still sends leaves with its own address.
        let late = lab.pod_data(&mut flow, ACK, 10);
        let Verdict::Forward(out) = late.verdict else {
            panic!("{release}: {late:?}")
        };
        assert_eq!(out.tuple.src, at(A), "{release}");
    }
}

/// Facts 10.6, 5.8 and before: one packet is dropped first.
#[test]
fn trace_10_6_before_5_9_it_takes_a_packet() {
    let (mut lab, mut flow) = (Lab::new("5.7.14", 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.delete(A);
    lab.wait_s(1);
    assert_eq!(lab.ipvs_of(&flow), "ESTABLISHED 899");
    let first = lab.client_data(&mut flow, ACK, 10);
    assert_eq!(
        (first.verdict, first.rule),
        (Verdict::Drop, Rule::Ipvs(Ipvs::DroppedDeleted))
    );
    lab.wait(Span::from_millis(200));
    assert_eq!(lab.shows(&flow), "- | - | 0/0");
    assert!(reset_by_the_node(lab.again(&mut flow).verdict));
}

/// Facts 10.6, expire_nodest_conn=0: silence until the last deadline, then the node's RST.
#[test]
fn trace_10_6_without_expire_nodest_it_is_silent() {
    for release in ["5.7.14", "6.12.117"] {
        let (mut lab, mut flow) = (Lab::new(release, 1, &[A]), Flow::new(CLIENT));
        lab.sysctl(|all| all.vs.expire_nodest_conn = false);
        lab.open(&mut flow);
        let accepted = lab.now;
        lab.delete(A);
        lab.client_data(&mut flow, ACK, 10);
        for secs in [1, 100, 899] {
            lab.until(accepted, Span::from_secs(secs));
            let silent = lab.again(&mut flow);
            assert_eq!(silent.verdict, Verdict::Drop, "{release} at {secs} s");
            assert_eq!(silent.rule, Rule::Ipvs(Ipvs::BlackholedDeleted));
        }
        lab.until(accepted, Span::from_millis(916_500));
        assert!(reset_by_the_node(lab.again(&mut flow).verdict), "{release}");
    }
}

/// The node masquerades as kube-proxy makes it.
fn masquerading(release: &str, mode: u8) -> Lab {
    let mut sysctls = Sysctls::of(common::kernel(release));
    sysctls.vs.conntrack = true;
    sysctls.vs.expire_nodest_conn = true;
    sysctls.vs.conn_reuse_mode = mode;
    let masquerade = SourceNat::Masquerade {
        ip: "10.27.1.1".parse().expect("address"),
        random: true,
    };
    Lab::with(release, sysctls, masquerade, &[A, B])
}

/// Facts 10.7: a SYN meets a TIME_WAIT of its translated port: the ACK makes the entry ESTABLISHED, the client's RST
/// closes it, and the SYN sent again goes to the same real server in mode 0 and is scheduled anew in mode 1; a new
/// port is drawn for it.
#[test]
fn trace_10_7_a_syn_meets_a_time_wait_behind_snat() {
    for (mode, rule) in [(0, Ipvs::SynKept), (1, Ipvs::RescheduledReuse)] {
        let (mut lab, mut flow) = (masquerading("6.12.117", mode), Flow::new(CLIENT));
        let first = lab.syn(&mut flow).unwrap();
        let port = flow.pod_side.unwrap().src.port;
        assert_eq!(
            lab.shows(&flow),
            "SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0"
        );

        // The TIME_WAIT socket acknowledges another connection's number.
        let mut challenge = flow.pod_segment(ACK, 0);
        (challenge.seq, challenge.ack) = (7_000, 777_000_000);
        lab.wait(Span::from_millis(5));
        let seen = lab.packet(&challenge);
        assert_eq!(seen.ct, Some(CtRule::IgnoredAck));
        assert_eq!(
            lab.shows(&flow),
            "ESTABLISHED 900 | SYN_SENT 119 | 1/0",
            "mode {mode}"
        );

        let mut reset = flow.client_segment(RST, 0);
        reset.seq = challenge.ack;
        lab.wait(Span::from_millis(5));
        lab.packet(&reset);
        assert_eq!(lab.shows(&flow), "CLOSE 10 | CLOSE 10 | 0/1", "mode {mode}");

        lab.wait(Span::from_millis(8));
        let retried = lab.again(&mut flow);
        assert_eq!(retried.rule, Rule::Ipvs(rule), "mode {mode}");
        assert_eq!(retried.ct, Some(CtRule::Reopened));
        let reached = flow.pod_side.unwrap();
        assert_eq!(reached.dst == first, mode == 0, "mode {mode}");
        assert_ne!(reached.src.port, port, "another port is drawn");
        lab.wait(Span::from_millis(8));
        assert_eq!(
            lab.shows(&flow),
            "SYN_RECV 59 | SYN_SENT 119 [UNREPLIED] | 1/0"
        );
    }
}
