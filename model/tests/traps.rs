//! Traps of facts 9 at the level of the node, as far as no module tests them already; docs/traps.md lists all 34.

mod common;

use common::{A, ACK, B, CLIENT, FIN, Flow, Lab, NODE_PORT, RST, SYN, SYN_ACK, at};
use ipvs_model::conntrack::{CtRule, SourceNat};
use ipvs_model::ipvs::Rule as Ipvs;
use ipvs_model::node::{Decision, Rule, Verdict};
use ipvs_model::segment::{IcmpKind, Segment};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::Span;

const MODERN: &str = "6.12.117";
const C: &str = "10.27.1.251:80";

/// The segment that leaves the node.
fn forwarded(decision: &Decision) -> Segment {
    match decision.verdict {
        Verdict::Forward(out) => out,
        other => panic!("not forwarded: {other:?} by {:?}", decision.rule),
    }
}

fn masquerading(mode: u8, random: bool) -> Lab {
    let mut sysctls = Sysctls::of(common::kernel(MODERN));
    sysctls.vs.conntrack = true;
    sysctls.vs.expire_nodest_conn = true;
    sysctls.vs.conn_reuse_mode = mode;
    let ip = "10.27.1.1".parse().expect("address");
    Lab::with(MODERN, sysctls, SourceNat::Masquerade { ip, random }, &[A])
}

/// Trap 1: only the SYN bit makes a packet new to IPVS: a retransmission is new, so is a SYN-ACK, and no sequence
/// number, old or new, changes that.
#[test]
fn trap_1_only_the_syn_bit_counts() {
    for (flags, shift) in [
        (SYN, 1_u32),
        (SYN, 0_u32.wrapping_sub(500_000_000)),
        (SYN, 2_000_000_000),
        (SYN_ACK, 1),
    ] {
        let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        flow.client_next = flow.client_next.wrapping_add(shift);
        let decision = lab.client(&mut flow, flags);
        assert_eq!(decision.rule, Rule::Ipvs(Ipvs::RescheduledReuse), "{flags}");
    }
    // A retransmitted SYN of a half-open connection meets the weight-0 rule like any other.
    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.syn(&mut flow).unwrap();
    lab.replace(A, B);
    lab.wait_s(1);
    assert_eq!(
        lab.again(&mut flow).rule,
        Rule::Ipvs(Ipvs::DroppedWeightZero)
    );
    lab.wait_s(2);
    assert_eq!(forwarded(&lab.again(&mut flow)).tuple.dst, at(B));
}

/// Trap 3: weight 0 and even deletion (expire_nodest_conn=0) stop no reply, and weight 0 no segment without SYN.
#[test]
fn trap_3_weight_zero_is_invisible_to_existing_entries() {
    for (release, mode) in [("4.19.57", 0), ("4.19.57", 1), (MODERN, 1)] {
        let (mut lab, mut flow) = (Lab::new(release, mode, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.replace(A, B);
        let request = lab.client_data(&mut flow, ACK, 100);
        assert_eq!(forwarded(&request).tuple.dst, at(A), "{release}");
        let response = lab.pod_data(&mut flow, ACK, 1000);
        assert_eq!(forwarded(&response).tuple.src, at(NODE_PORT), "{release}");
        lab.client(&mut flow, ACK);
        lab.server_closes(&mut flow);
        assert_eq!(lab.server(A).as_deref(), Some("0 0/1"), "closed in peace");
    }
    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.sysctl(|all| all.vs.expire_nodest_conn = false);
    lab.open(&mut flow);
    lab.delete(A);
    let response = lab.pod_data(&mut flow, ACK, 1000);
    assert_eq!(forwarded(&response).tuple.src, at(NODE_PORT));
}

/// Trap 4: expire_nodest_conn acts on SYNs only for a drained real server, on everything for a deleted one.
#[test]
fn trap_4_expire_nodest_means_two_things() {
    for release in ["5.7.14", MODERN] {
        let (mut lab, mut flow) = (Lab::new(release, 1, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.replace(A, B);
        let data = lab.client_data(&mut flow, ACK, 1);
        assert_eq!(data.rule, Rule::Ipvs(Ipvs::EntryFound), "{release}");
        lab.delete(A);
        lab.wait(Span::from_millis(20));
        let data = lab.client_data(&mut flow, ACK, 1);
        assert!(!matches!(data.verdict, Verdict::Forward(_)), "{release}");
    }
}

/// Trap 6: the delay of a second returns on current kernels whenever conntrack cannot be reopened: after a server's RST
/// (worked trace 10.5), and at weight 0 in every state but the closed ones.
#[test]
fn trap_6_the_delay_returns_when_conntrack_cannot_reopen() {
    type Walk = fn(&mut Lab, &mut Flow);
    let walks: [(&str, Walk, Ipvs); 7] = [
        ("SYN_RECV", |_, _| {}, Ipvs::DroppedWeightZero),
        (
            "ESTABLISHED",
            |lab, flow| handshake(lab, flow, 0),
            Ipvs::DroppedWeightZero,
        ),
        (
            "FIN_WAIT",
            |lab, flow| handshake(lab, flow, 1),
            Ipvs::DroppedWeightZero,
        ),
        (
            "CLOSE_WAIT of conntrack",
            |lab, flow| handshake(lab, flow, 2),
            Ipvs::DroppedWeightZero,
        ),
        (
            "LAST_ACK of conntrack",
            |lab, flow| handshake(lab, flow, 3),
            Ipvs::DroppedWeightZero,
        ),
        (
            "TIME_WAIT",
            |lab, flow| handshake(lab, flow, 4),
            Ipvs::RescheduledWeightZero,
        ),
        (
            "CLOSE after the client's RST",
            |lab, flow| {
                handshake(lab, flow, 0);
                lab.client(flow, RST);
            },
            Ipvs::RescheduledWeightZero,
        ),
    ];
    for (name, walk, want) in walks {
        let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
        lab.syn(&mut flow).unwrap();
        walk(&mut lab, &mut flow);
        lab.replace(A, B);
        flow.begin_again();
        let decision = lab.client(&mut flow, SYN);
        assert_eq!(decision.rule, Rule::Ipvs(want), "{name}: {:?}", decision.ct);
    }
}

/// The rest of the handshake, and that many packets of the server's close.
fn handshake(lab: &mut Lab, flow: &mut Flow, closing: usize) {
    lab.pod(flow, SYN_ACK);
    lab.client(flow, ACK);
    for step in 0..closing {
        match step {
            0 => lab.pod(flow, FIN),
            1 => lab.client(flow, ACK),
            2 => lab.client(flow, FIN),
            _ => lab.pod(flow, ACK),
        };
    }
}

/// Trap 8: TIME_WAIT counts from the last packet: a FIN or an ACK sent again starts the 120 s anew, in both tables.
#[test]
fn trap_8_time_wait_counts_from_the_last_packet() {
    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.client(&mut flow, FIN);
    lab.pod(&mut flow, ACK);
    let last_fin = flow.pod_segment(FIN, 0);
    lab.pod(&mut flow, FIN);
    lab.client(&mut flow, ACK);
    lab.wait_s(50);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 70 | TIME_WAIT 70 [ASSURED] | 0/1"
    );
    lab.packet(&last_fin);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1"
    );
    lab.wait_s(50);
    lab.again(&mut flow);
    assert_eq!(
        lab.shows(&flow),
        "TIME_WAIT 120 | TIME_WAIT 120 [ASSURED] | 0/1"
    );
}

/// Trap 9: conntrack expires exactly, IPVS up to 2.05 s later (HZ 250): in between the entry is still hit, beside a
/// fresh conntrack entry. Mode 0 keeps; mode 1 reschedules, before the fix of 5.9 with a drop.
#[test]
fn trap_9_between_the_two_expiries() {
    for (release, mode, rule) in [
        (MODERN, 1, Ipvs::RescheduledReuse),
        ("5.7.14", 1, Ipvs::DroppedReuse),
        ("5.7.14", 0, Ipvs::SynKept),
    ] {
        let (mut lab, mut flow) = (Lab::new(release, mode, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        lab.wait(Span::from_millis(120_004));
        assert_eq!(lab.shows(&flow), "TIME_WAIT 0 | - | 0/1", "{release}");
        flow.begin_again();
        let decision = lab.client(&mut flow, SYN);
        assert_eq!(decision.ct, Some(CtRule::NewSyn), "{release}");
        assert_eq!(decision.rule, Rule::Ipvs(rule), "{release} mode {mode}");
    }
}

/// Trap 13: IPVS looks up before source NAT. A masquerading node tells its clients apart; clients behind an earlier
/// translation share the address, and then the port alone.
#[test]
fn trap_13_the_lookup_precedes_source_nat() {
    let mut lab = masquerading(0, true);
    let mut flows = ["10.23.31.87:40000", "10.23.31.88:40000"].map(Flow::new);
    for flow in &mut flows {
        lab.syn(flow).unwrap();
    }
    assert_eq!(lab.node.ipvs.table().len(), 2);
    let seen = flows.map(|flow| flow.pod_side.unwrap().src);
    assert_eq!(seen[0].ip, seen[1].ip, "the pod sees the node");
    assert_ne!(seen[0].port, seen[1].port);

    // Two hosts behind 10.23.31.87: the second one's SYN is the first one's port reused.
    let (mut lab, mut first) = (Lab::new("4.19.57", 0, &[A]), Flow::new(CLIENT));
    lab.open(&mut first);
    lab.server_closes(&mut first);
    lab.replace(A, B);
    let mut second = Flow::new(CLIENT);
    second.begin_again();
    assert_eq!(lab.syn(&mut second), Ok(at(A)));
    assert_eq!(lab.node.ipvs.table().len(), 1);
}

/// Trap 14: without any MASQUERADE rule the source port changes if another connection has the pod's reply tuple: two
/// services on one pod. (`replies_do_not_know_their_service` has the other half.)
#[test]
fn trap_14_a_null_binding_may_change_the_port() {
    let mut lab = Lab::new(MODERN, 1, &[A]);
    let node_port = lab.key;
    lab.key = lab.add_service("10.27.255.42:80", None);
    lab.add(A);
    lab.key = node_port;
    let mut one = Flow::to("10.23.31.87:40000", NODE_PORT);
    lab.open(&mut one);
    lab.server_closes(&mut one);
    assert_eq!(one.pod_side.unwrap().src.port, 40000);
    let mut other = Flow::to("10.23.31.87:40000", "10.27.255.42:80");
    lab.syn(&mut other).unwrap();
    let drawn = other.pod_side.unwrap().src;
    assert_eq!(drawn.ip, one.client.ip);
    assert_ne!(drawn.port, 40000, "even in TIME_WAIT the tuple is taken");
    // Another port has no such trouble.
    let mut free = Flow::to("10.23.31.87:40002", "10.27.255.42:80");
    lab.syn(&mut free).unwrap();
    assert_eq!(free.pod_side.unwrap().src.port, 40002);
}

/// Trap 20: a refused connect leaves nothing in conntrack and CLOSE for 10 s in IPVS: mode 0 keeps the next SYN on the
/// same pod, mode 1 schedules it anew, at once.
#[test]
fn trap_20_after_a_refusal() {
    for (mode, want) in [(0, A), (1, B)] {
        let (mut lab, mut flow) = (Lab::new(MODERN, mode, &[A]), Flow::new(CLIENT));
        lab.syn(&mut flow).unwrap();
        flow.pod_next = 0;
        lab.pod(&mut flow, RST.with(ACK));
        assert_eq!(lab.shows(&flow), "CLOSE 10 | - | 0/1");
        lab.add(B);
        lab.wait_s(3);
        assert_eq!(lab.syn(&mut flow), Ok(at(want)), "mode {mode}");
    }
}

/// Trap 21: an idle connection ends after IPVS's 900 s, whatever conntrack and TCP keepalive think: its next segment
/// is answered by the node with RST.
#[test]
fn trap_21_an_idle_connection_dies_with_its_ipvs_entry() {
    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.wait_s(899);
    assert_eq!(
        lab.shows(&flow),
        "ESTABLISHED 1 | ESTABLISHED 431101 [ASSURED] | 1/0"
    );
    lab.wait_s(18);
    assert_eq!(lab.shows(&flow), "- | - | 0/0");
    let late = lab.client_data(&mut flow, ACK, 10);
    assert_eq!(late.rule, Rule::Ipvs(Ipvs::NotSchedulable));
    let Verdict::Local { answer: Some(rst) } = late.verdict else {
        panic!("{late:?}")
    };
    assert!(rst.flags.has(RST) && rst.tuple.src == at(NODE_PORT));
}

/// Trap 25: each SYN sees the world as it is then: dropped at a drained pod, sent again a second later to one that is
/// itself draining by the third time, and refused when nobody is left.
#[test]
fn trap_25_each_retransmission_decides_anew() {
    let (mut lab, mut flow) = (Lab::new("5.7.14", 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.server_closes(&mut flow);
    lab.replace(A, B);
    let first = lab.syn(&mut flow);
    assert_eq!(
        first,
        Err((Verdict::Drop, Rule::Ipvs(Ipvs::DroppedWeightZero)))
    );
    lab.wait_s(1);
    assert_eq!(forwarded(&lab.again(&mut flow)).tuple.dst, at(B));
    lab.replace(B, C);
    lab.wait_s(2);
    assert_eq!(
        lab.again(&mut flow).rule,
        Rule::Ipvs(Ipvs::DroppedWeightZero)
    );
    lab.weight(C, 0);
    lab.wait_s(4);
    let refused = lab.again(&mut flow);
    assert_eq!(refused.verdict, Verdict::Reject(IcmpKind::PortUnreachable));
    assert_eq!(refused.rule, Rule::Ipvs(Ipvs::NoDestination));
}

/// Trap 28: the old entry goes with the next tick, and its callback must not take the new entry's conntrack along:
/// from 5.9 it has let go of it. 4.1 to 4.5 had not: there the handshake loses its conntrack entry.
#[test]
fn trap_28_the_old_entrys_end_spares_the_new_conntrack() {
    for (release, survives) in [("4.1.6", false), ("5.9.1", true), (MODERN, true)] {
        let (mut lab, mut flow) = (Lab::new(release, 1, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        lab.wait_s(30);
        lab.syn(&mut flow).unwrap();
        assert_eq!(lab.node.ipvs.table().len(), 2, "{release}: not at once");
        assert_eq!(lab.ct_of(&flow), "SYN_SENT 120 [UNREPLIED]");
        lab.wait(Span::from_millis(8));
        assert_eq!(lab.node.ipvs.table().len(), 1, "{release}");
        assert!(
            lab.ipvs_of(&flow).starts_with("SYN_RECV"),
            "{release}: the new one"
        );
        assert_eq!(lab.ct_of(&flow) != "-", survives, "{release}");
    }
}

/// Trap 31: a packet that conntrack calls invalid has no entry: IPVS takes it for "not old" and reschedules without a
/// drop; masquerading does not apply, so it leaves with the client's own address.
#[test]
fn trap_31_invalid_packets_carry_no_conntrack() {
    // On this kernel every tracked SYN on a TIME_WAIT entry is dropped; an invalid segment with SYN is not.
    for (flags, ct, rule) in [
        (SYN, CtRule::Reopened, Ipvs::DroppedReuse),
        (SYN_ACK, CtRule::InvalidState, Ipvs::RescheduledReuse),
    ] {
        let (mut lab, mut flow) = (Lab::new("5.7.14", 1, &[A]), Flow::new(CLIENT));
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        let decision = lab.client(&mut flow, flags);
        assert_eq!(decision.ct, Some(ct));
        assert_eq!(decision.rule, Rule::Ipvs(rule), "{flags}");
    }
    // Facts 5.4 expect the same of a SYN that is older than the half-open connection's. Since 3.12 it passes: nothing
    // was heard of the peer, so there is no lower edge to its window.
    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.syn(&mut flow).unwrap();
    lab.replace(A, B);
    flow.client_next -= 90_000_000;
    let older = lab.client(&mut flow, SYN);
    assert_eq!(older.ct, Some(CtRule::SynRetransmitted));
    assert_eq!(older.rule, Rule::Ipvs(Ipvs::DroppedWeightZero));

    let (mut lab, mut flow) = (masquerading(1, false), Flow::new(CLIENT));
    lab.open(&mut flow);
    let translated = lab.client_data(&mut flow, ACK, 10);
    assert_eq!(forwarded(&translated).tuple.src.ip.octets(), [10, 27, 1, 1]);
    flow.client_next = flow.client_next.wrapping_add(1_000_000_000);
    let stray = lab.client_data(&mut flow, RST, 0);
    assert!(
        matches!(stray.ct, Some(CtRule::InvalidSeqOver)),
        "{stray:?}"
    );
    let left = forwarded(&stray).tuple;
    assert_eq!((left.src, left.dst), (flow.client, at(A)), "not translated");
}

/// Trap 32: a full table and a clash of tuples look like a lost SYN: no answer, no entry, and IPVS has its entry all
/// the same if it came first.
#[test]
fn trap_32_a_full_table_looks_like_loss() {
    let (mut lab, mut one) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.sysctl(|all| all.ct.max = 1);
    lab.open(&mut one);
    let mut two = Flow::new("10.23.31.87:58580");
    let dropped = lab.syn(&mut two);
    assert_eq!(
        dropped,
        Err((Verdict::Drop, Rule::Conntrack(CtRule::TableFull)))
    );
    assert_eq!(lab.node.ipvs.table().len(), 1, "IPVS never saw it");

    // Without a nat table nobody avoids the clash of two services on one pod.
    let mut sysctls = Sysctls::of(common::kernel(MODERN));
    sysctls.vs.conntrack = true;
    let mut lab = Lab::with(MODERN, sysctls, SourceNat::Inactive, &[A]);
    let node_port = lab.key;
    lab.key = lab.add_service("10.27.255.42:80", None);
    lab.add(A);
    lab.key = node_port;
    lab.open(&mut Flow::to("10.23.31.87:40000", NODE_PORT));
    let clash = lab.syn(&mut Flow::to("10.23.31.87:40000", "10.27.255.42:80"));
    assert_eq!(clash, Err((Verdict::Drop, Rule::Conntrack(CtRule::Clash))));
    assert_eq!(lab.node.ipvs.table().len(), 2, "IPVS had made its entry");
}

/// Trap 34: a SYN on an entry that is still ESTABLISHED (the client rebooted): moved only at weight 0, otherwise kept:
/// the old pod answers with a challenge ACK, the client's RST closes, and the SYN sent again is on its own.
#[test]
fn trap_34_a_syn_on_an_established_entry() {
    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.add(B);
    let stale = flow;
    assert_eq!(lab.syn(&mut flow), Ok(at(A)), "kept");
    assert_eq!(
        lab.shows(&flow),
        "ESTABLISHED 900 | ESTABLISHED 431999 [ASSURED] | 1/0",
        "and conntrack ignores it"
    );
    let mut challenge = stale.pod_segment(ACK, 0);
    challenge.ack = stale.client_next;
    lab.wait(Span::from_millis(5));
    lab.packet(&challenge);
    let mut reset = flow.client_segment(RST, 0);
    reset.seq = challenge.ack;
    lab.wait(Span::from_millis(5));
    lab.packet(&reset);
    assert_eq!(lab.ipvs_of(&flow), "CLOSE 10");
    lab.wait(Span::from_millis(8));
    let retried = lab.again(&mut flow);
    assert_eq!(retried.rule, Rule::Ipvs(Ipvs::RescheduledReuse));
    assert_eq!(forwarded(&retried).tuple.dst, at(B));

    let (mut lab, mut flow) = (Lab::new(MODERN, 1, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.replace(A, B);
    let moved = lab.syn(&mut flow);
    assert_eq!(
        moved,
        Err((Verdict::Drop, Rule::Ipvs(Ipvs::DroppedWeightZero)))
    );
    lab.wait_s(1);
    assert_eq!(forwarded(&lab.again(&mut flow)).tuple.dst, at(B));
}
