//! Source ports: facts 5.8 and 5.9, trap 14.

use super::*;

const PLAIN: SourceNat = SourceNat::Masquerade {
    ip: NODE,
    random: false,
};
const RANDOM: SourceNat = SourceNat::Masquerade {
    ip: NODE,
    random: true,
};

/// A SYN of `from` to `to`, forwarded to `real`: where its replies are expected, and why.
fn connect(net: &mut Net, from: Endpoint, to: Endpoint, real: Endpoint, isn: u32) -> Endpoint {
    let mut syn = Segment::new(Tuple::tcp(from, to), SYN);
    syn.seq = isn;
    let Incoming::Tracked(ct, _) = net.incoming(&syn) else {
        panic!("a SYN is tracked");
    };
    net.ct.alter_reply_source(ct, real);
    let tick = net.tick();
    net.ct.source_nat(tick, ct, net.policy, &mut net.draws);
    let entry = *net.ct.entry(ct.slot);
    assert_eq!(net.ct.confirm(tick, ct), Ok(()));
    entry.reply().dst
}

fn port(number: u16) -> Endpoint {
    Endpoint::new(client().ip, number)
}

/// Trap 14: two services with one pod, the same client port, and no rule at all.
#[test]
fn a_null_binding_moves_the_port_if_the_reply_tuple_is_taken() {
    let mut net = Net::new("5.15.16");
    net.policy = SourceNat::NullBinding;
    assert_eq!(connect(&mut net, client(), service(), pod(), 1), client());
    assert_eq!(net.draws.drawn, 0);
    net.draws.script = vec![5000];
    let other = endpoint("10.96.0.2:80");
    let moved = connect(&mut net, client(), other, pod(), 1);
    assert_eq!(moved, port(1024 + 5000));

    // Replies are undone, further packets translated.
    let reply = Segment::new(Tuple::tcp(pod(), moved), SYN_ACK);
    let Incoming::Tracked(ct, _) = net.incoming(&reply) else {
        panic!("tracked");
    };
    assert_eq!(net.ct.pre_routing_destination(ct), Some(client()));
    let original = CtRef {
        dir: Dir::Original,
        ..ct
    };
    assert_eq!(net.ct.post_routing_source(original), Some(moved));

    // Without a nat table the second connection is lost instead.
    let mut net = Net::new("5.15.16");
    assert_eq!(net.client(SYN, 1, 0), CtRule::NewSyn);
    let mut syn = Segment::new(Tuple::tcp(client(), other), SYN);
    syn.seq = 1;
    assert_eq!(net.forward(&syn, pod()), CtRule::Clash);
}

#[test]
fn masquerade_keeps_a_free_port_and_shares_the_mapping_of_its_source() {
    let mut net = Net::new("6.1.192");
    net.policy = PLAIN;
    let at_node = |number| Endpoint::new(NODE, number);
    assert_eq!(
        connect(&mut net, client(), service(), pod(), 1),
        at_node(40000)
    );
    // Another client with the same port must move.
    net.draws.script = vec![7];
    let other = endpoint("10.0.0.9:40000");
    assert_eq!(connect(&mut net, other, service(), pod(), 1), at_node(1031));
    // The same source to another destination goes by the port it already has.
    let elsewhere = endpoint("10.96.0.2:80");
    let real = endpoint("10.244.1.3:8080");
    assert_eq!(connect(&mut net, other, elsewhere, real, 1), at_node(1031));
    assert_eq!(net.draws.drawn, 1);
}

/// Facts 5.8: low ports stay low.
#[test]
fn privileged_ports_stay_privileged() {
    for (number, draw, expected) in [(600, 3, 603), (80, 0, 1), (1023, 424, 600)] {
        let mut net = Net::new("6.1.192");
        net.policy = RANDOM;
        net.draws.script = vec![draw];
        let mapped = connect(&mut net, port(number), service(), pod(), 1);
        assert_eq!(mapped.port, expected);
    }
}

/// Facts 5.8: 128 ports from the first draw, then 64, 32, 16 and 8 from new ones; the last stays, and is lost.
#[test]
fn a_search_without_success_ends_with_a_clash() {
    let mut net = Net::new("6.1.192");
    net.policy = RANDOM;
    for number in 0..128 {
        net.draws = Draws {
            script: vec![number],
            drawn: 0,
        };
        let from = port(10_000 + number);
        assert_eq!(
            connect(&mut net, from, service(), pod(), 1).port,
            1024 + number
        );
    }
    net.draws = Draws::default();
    let mut syn = Segment::new(Tuple::tcp(port(9), service()), SYN);
    syn.tuple.src.port = 20_000;
    assert_eq!(net.forward(&syn, pod()), CtRule::Clash);
    assert_eq!(net.draws.drawn, 5, "runs of 128, 64, 32, 16, 8");
}

/// Facts 5.8 and 5.9: since 6.7 a finished connection gives way, if the new one's ISN is later.
#[test]
fn a_closing_entry_is_evicted_near_the_end_of_a_run() {
    for (release, isn, evicts) in [
        ("6.1.192", 9_000, false),
        ("6.12.117", 9_000, true),
        ("6.12.117", 100, false),
    ] {
        let mut net = Net::new(release);
        net.policy = RANDOM;
        for number in 0..128_u16 {
            net.draws = Draws {
                script: vec![number],
                drawn: 0,
            };
            let from = port(10_000 + number);
            let mapped = connect(&mut net, from, service(), pod(), 5_000);
            let mut answer = Segment::new(Tuple::tcp(pod(), mapped), SYN_ACK);
            (answer.seq, answer.ack) = (1, 5_001);
            net.pod_sends(&answer);
            net.client_from(from, RST, 5_001, 0);
        }
        let before = net.ct.count();
        net.draws = Draws::default();
        let mut syn = Segment::new(Tuple::tcp(port(20_000), service()), SYN);
        syn.seq = isn;
        let Incoming::Tracked(ct, _) = net.incoming(&syn) else {
            panic!("tracked");
        };
        net.ct.alter_reply_source(ct, pod());
        let tick = net.tick();
        let (source, rule) = net.ct.source_nat(tick, ct, RANDOM, &mut net.draws);
        if evicts {
            assert_eq!(rule, CtRule::NatEvicted, "{release} {isn}");
            assert_eq!(source, Some(Endpoint::new(NODE, 1024 + 96)), "the 97th try");
            assert_eq!(net.ct.count(), before);
        } else {
            assert_eq!(rule, CtRule::NatExhausted, "{release} {isn}");
        }
    }
}

/// Facts 5.8: up to 4.20 the search walks on from where the last one ended.
#[test]
fn the_rover_of_old_kernels() {
    let mut net = Net::new("4.19.0");
    net.policy = PLAIN;
    let mapped: Vec<u16> = (1..=4)
        .map(|host| {
            let from = Endpoint::new(Ipv4Addr::new(10, 0, 0, host), 40000);
            connect(&mut net, from, service(), pod(), 1).port
        })
        .collect();
    assert_eq!(mapped, [40000, 1024, 1025, 1026]);
    assert_eq!(net.draws.drawn, 0);
}

/// kube-proxy's iptables mode: the backend is chosen once, replies come back as the service.
#[test]
fn destination_nat_of_a_service() {
    let mut net = Net::new("6.12.117");
    net.policy = SourceNat::NullBinding;
    let syn = Segment::new(Tuple::tcp(client(), service()), SYN);
    let Incoming::Tracked(ct, _) = net.incoming(&syn) else {
        panic!("tracked");
    };
    net.ct.destination_nat(ct, Some(pod()));
    net.ct
        .destination_nat(ct, Some(endpoint("10.244.9.9:8080")));
    assert_eq!(net.ct.pre_routing_destination(ct), Some(pod()));
    let tick = net.tick();
    let (source, _) = net.ct.source_nat(tick, ct, net.policy, &mut net.draws);
    assert_eq!(source, None);
    assert_eq!(net.ct.confirm(tick, ct), Ok(()));
    let reply = Segment::new(Tuple::tcp(pod(), client()), SYN_ACK);
    let Incoming::Tracked(back, _) = net.incoming(&reply) else {
        panic!("tracked");
    };
    assert_eq!((back.slot, back.dir), (ct.slot, Dir::Reply));
    assert_eq!(net.ct.post_routing_source(back), Some(service()));
    assert_eq!(net.ct.pre_routing_destination(back), None);
}
