//! The table itself: confirm, clash, deletion, full table, collector, listing.

use super::*;
use proptest::prelude::*;

/// Facts 5.3.8.
#[test]
fn a_dropped_packet_leaves_nothing() {
    let mut net = Net::new("6.12.117");
    let syn = Segment::new(Tuple::tcp(client(), service()), SYN);
    let Incoming::Tracked(ct, CtRule::NewSyn) = net.incoming(&syn) else {
        panic!("tracked");
    };
    assert!(!net.ct.is_confirmed(ct));
    assert_eq!(net.ct.count(), 1);
    net.ct.release(ct);
    assert_eq!(net.ct.count(), 0);
    assert_eq!(net.state(), None);
}

/// Facts 5.5 and 5.6: IPVS deletes by the client's tuple, whichever direction that is.
#[test]
fn ipvs_deletes_by_the_clients_tuple() {
    let mut net = Net::new("6.12.117");
    net.establish();
    let tuple = Tuple::tcp(client(), service());
    assert!(net.ct.delete_tuple(net.tick(), &tuple));
    assert!(!net.ct.delete_tuple(net.tick(), &tuple));

    // A reply picked up in mid-stream has the client's tuple as its reply tuple.
    let reply = Segment::new(Tuple::tcp(pod(), client()), ACK);
    let Incoming::Tracked(ct, CtRule::NewMidStream) = net.incoming(&reply) else {
        panic!("tracked");
    };
    net.ct.alter_reply_destination(ct, service());
    assert_eq!(net.ct.confirm(net.tick(), ct), Ok(()));
    assert_eq!(net.ct.entry(ct.slot).reply(), tuple);
    net.ct.alter_reply_destination(ct, pod());
    assert_eq!(
        net.ct.entry(ct.slot).reply(),
        tuple,
        "confirmed: never altered"
    );
    net.wait(300);
    assert!(!net.ct.delete_tuple(net.tick(), &tuple), "expired");
    assert_eq!(net.ct.count(), 0);
}

/// Facts 5.7 and trap 32.
#[test]
fn a_full_table_drops_what_it_cannot_make_room_for() {
    let mut net = Net::new("6.12.117");
    net.sysctls.max = 8;
    net.sysctls.buckets = 1;
    for host in 1..=8 {
        let from = Endpoint::new(Ipv4Addr::new(10, 0, 1, host), 40000);
        assert_eq!(net.client_from(from, ACK, 1, 1), CtRule::NewMidStream);
        let reply = Segment::new(Tuple::tcp(pod(), from), ACK);
        net.pod_sends(&reply);
        net.client_from(from, ACK, 1, 1);
    }
    assert_eq!(net.client(SYN, 1, 0), CtRule::TableFull, "all are assured");
    assert_eq!(net.ct.count(), 8);

    let mut net = Net::new("6.12.117");
    net.sysctls.max = 8;
    net.sysctls.buckets = 1;
    for host in 1..=8 {
        let from = Endpoint::new(Ipv4Addr::new(10, 0, 1, host), 40000);
        net.client_from(from, SYN, 1, 0);
    }
    assert_eq!(
        net.client(SYN, 1, 0),
        CtRule::NewSyn,
        "unassured ones give way"
    );
    assert!(net.ct.count() <= 8);
}

/// Facts 5.7: once the table has been full, the collector takes closing entries above 95 %.
#[test]
fn after_a_full_table_the_collector_takes_closing_entries() {
    let mut net = Net::new("6.12.117");
    net.sysctls.max = 100;
    for host in 1..=100 {
        let from = Endpoint::new(Ipv4Addr::new(10, 0, 1, host), 40000);
        net.client_from(from, ACK, 1, 1);
        net.pod_sends(&Segment::new(Tuple::tcp(pod(), from), ACK));
        net.client_from(from, ACK, 1, 1);
        net.sysctls.fin_wait = 3600;
        net.client_from(from, FIN, 1, 1);
    }
    assert_eq!(net.client(SYN, 1, 0), CtRule::TableFull);
    net.wait(64);
    assert_eq!(net.client(SYN, 1, 0), CtRule::NewSyn);
    assert_eq!(
        net.ct.count(),
        95,
        "94 are left below the limit, and the new one"
    );
}

#[test]
fn the_collector_frees_expired_entries_within_a_minute_or_so() {
    let mut net = Net::new("6.12.117");
    net.client(SYN, 1, 0);
    net.wait(121);
    assert_eq!(net.ct.count(), 1, "expired and not yet collected");
    net.wait(63);
    let tick = net.tick();
    net.ct.gc(tick, &net.sysctls);
    assert_eq!(net.ct.count(), 0);
}

/// A recorded node's own count tells what its collector has taken: the longest expired first, and nothing that lives.
#[test]
fn a_count_tells_what_was_collected() {
    let mut net = Net::new("6.12.117");
    for host in 1..=4 {
        let from = Endpoint::new(Ipv4Addr::new(10, 0, 1, host), 40000);
        net.client_from(from, SYN, 1, 0);
        net.wait(1);
    }
    net.wait(117);
    let tick = net.tick();
    let of = |host| {
        Tuple::tcp(
            Endpoint::new(Ipv4Addr::new(10, 0, 1, host), 40000),
            service(),
        )
    };
    let has = |ct: &Conntrack, host| ct.iter().any(|(_, entry)| entry.orig() == of(host));
    let mut other = net.ct.clone();
    let two_expired = Ok(Collected::Part);
    assert_eq!(net.ct.collect_to(tick, 3, |_| 0), two_expired);
    assert!(!has(&net.ct, 1) && has(&net.ct, 2));
    let spared = |entry: &CtEntry| u8::from(entry.orig() == of(1));
    assert_eq!(other.collect_to(tick, 3, spared), two_expired);
    assert!(has(&other, 1) && !has(&other, 2), "the second has its turn");
    assert_eq!(net.ct.collect_to(tick, 3, |_| 0), Ok(Collected::Nothing));
    assert_eq!(net.ct.collect_to(tick, 1, |_| 0), Err(3), "two live");
    assert_eq!(net.ct.collect_to(tick, 4, |_| 0), Err(3), "it cannot grow");
    assert_eq!(other.collect_to(tick, 2, |_| 0), Ok(Collected::All));
    net.wait(600);
    let tick = net.tick();
    net.ct.gc(tick, &net.sysctls);
    assert_eq!(net.ct.count(), 3, "nothing goes untold");
}

/// What a recording shows of a full table: the entries it gave up go when room is needed, not before.
#[test]
fn a_full_table_gives_up_what_was_foretold() {
    let mut net = Net::new("6.12.117");
    net.sysctls.max = 2;
    for host in 1..=2 {
        let from = Endpoint::new(Ipv4Addr::new(10, 0, 1, host), 40000);
        net.client_from(from, SYN, 1, 0);
    }
    let second = Tuple::tcp(Endpoint::new(Ipv4Addr::new(10, 0, 1, 2), 40000), service());
    net.ct.foretell_sacrifice(vec![second]);
    assert_eq!(
        net.client_from(second.src, SYN, 1, 0),
        CtRule::SynRetransmitted
    );
    assert_eq!(net.ct.spared(), 1, "no room was needed");
    assert_eq!(net.client(SYN, 1, 0), CtRule::NewSyn);
    assert_eq!((net.ct.spared(), net.ct.count()), (0, 2));
    assert!(net.ct.iter().all(|(_, entry)| entry.orig() != second));
    let third = Endpoint::new(Ipv4Addr::new(10, 0, 1, 3), 40000);
    assert_eq!(net.client_from(third, SYN, 1, 0), CtRule::TableFull);
}

#[test]
fn lines_as_the_kernel_prints_them() {
    let mut net = Net::new("6.12.117");
    net.client(SYN, 100, 0);
    let all = |net: &Net, style| net.ct.listing(net.tick(), style);
    assert_eq!(
        all(&net, ListingStyle::default()),
        [
            "ipv4     2 tcp      6 120 SYN_SENT src=10.0.0.1 dst=10.96.0.1 sport=40000 dport=80 \
          [UNREPLIED] src=10.244.1.2 dst=10.0.0.1 sport=8080 dport=40000 use=2"
        ]
    );
    net.pod(SYN_ACK, 500, 101);
    net.client(ACK, 101, 501);
    let style = ListingStyle {
        mark: true,
        zone: true,
    };
    assert_eq!(
        all(&net, style),
        [
            "ipv4     2 tcp      6 432000 ESTABLISHED src=10.0.0.1 dst=10.96.0.1 sport=40000 \
          dport=80 src=10.244.1.2 dst=10.0.0.1 sport=8080 dport=40000 [ASSURED] mark=0 zone=0 use=2"
        ]
    );
    net.wait(432_000);
    assert!(all(&net, style).is_empty());
}

#[test]
fn every_rule_describes_itself_differently() {
    let rules = [
        CtRule::NewSyn,
        CtRule::Reopened,
        CtRule::IgnoredSyn,
        CtRule::RstClosed,
        CtRule::TableFull,
        CtRule::Clash,
        CtRule::NatExhausted,
    ];
    let texts: std::collections::BTreeSet<&str> =
        rules.iter().map(|rule| rule.describe()).collect();
    assert_eq!(texts.len(), rules.len());
}

/// A packet of one of four clients, or of the pod to one of them.
fn any_packet() -> impl Strategy<Value = (u8, bool, u8, u32, u32, u16)> {
    (
        0..4_u8,
        any::<bool>(),
        0..64_u8,
        0..4_u32,
        0..4_u32,
        0..200_u16,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever arrives, both tuples of each confirmed entry lead to it, and nothing else is in the table. A table that
    /// keeps some clients' ports in arrays says the same.
    #[test]
    fn the_index_and_the_entries_agree(
        packets in prop::collection::vec(any_packet(), 0..200),
        modern in any::<bool>(),
        masquerade in any::<bool>(),
    ) {
        let mut net = Net::new(if modern { "6.12.117" } else { "4.19.0" });
        if masquerade {
            net.policy = SourceNat::Masquerade { ip: NODE, random: modern };
        }
        let mut hashed = Net::new(if modern { "6.12.117" } else { "4.19.0" });
        hashed.policy = net.policy;
        for host in 0..3 {
            net.ct.reserve(Proto::Tcp, Ipv4Addr::new(10, 0, 0, host), (32_768, 60_999));
        }
        for (host, from_pod, flags, seq, ack, wait) in packets {
            let peer = Endpoint::new(Ipv4Addr::new(10, 0, 0, host), 40000);
            net.wait(u64::from(wait));
            hashed.wait(u64::from(wait));
            let tuple = if from_pod {
                Tuple::tcp(pod(), peer)
            } else {
                Tuple::tcp(peer, service())
            };
            let mut seg = Segment::new(tuple, Flags(flags));
            (seg.seq, seg.ack) = (seq * 1000, ack * 1000);
            prop_assert_eq!(net.forward(&seg, pod()), hashed.forward(&seg, pod()));
        }
        let now = net.tick();
        let style = ListingStyle::default();
        prop_assert_eq!(net.ct.listing(now, style), hashed.ct.listing(now, style));
        let all: Vec<(u32, CtEntry)> = net.ct.iter().map(|(slot, entry)| (slot, *entry)).collect();
        prop_assert_eq!(all.len() as u32, net.ct.count());
        for (slot, entry) in all {
            prop_assert!(entry.status.has(Status::CONFIRMED));
            if !entry.is_expired(now) {
                for dir in [Dir::Original, Dir::Reply] {
                    let found = net.ct.find(now, &entry.tuple(dir));
                    prop_assert_eq!(found, Some(CtRef { slot, dir }));
                }
            }
        }
    }
}
