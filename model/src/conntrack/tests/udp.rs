//! UDP: 30 s unreplied, 120 s as a stream.

use super::*;

fn datagram(from: Endpoint, to: Endpoint) -> Segment {
    let tuple = Tuple {
        proto: Proto::Udp,
        src: from,
        dst: to,
    };
    Segment::new(tuple, Flags(0))
}

#[test]
fn a_stream_by_kernel() {
    for (release, early, assured_early) in [
        ("4.19.0", (CtRule::UdpStream, 120), true),
        ("5.9.1", (CtRule::UdpReplied, 30), true),
        ("6.12.117", (CtRule::UdpReplied, 30), false),
    ] {
        let mut net = Net::new(release);
        let query = datagram(client(), service());
        assert_eq!(net.forward(&query, pod()), CtRule::NewUdp);
        assert_eq!(
            net.pod_sends(&datagram(pod(), client())),
            CtRule::UdpUnreplied
        );
        assert_eq!(net.forward(&query, pod()), early.0, "{release}");
        let now = net.tick();
        let ct = net.ct.find(now, &query.tuple).unwrap();
        let entry = *net.ct.entry(ct.slot);
        assert_eq!(now.until(entry.deadline), early.1 * 250, "{release}");
        assert_eq!(
            entry.status.has(Status::ASSURED),
            assured_early,
            "{release}"
        );
        net.wait(3);
        assert_eq!(net.forward(&query, pod()), CtRule::UdpStream, "{release}");
        assert!(net.ct.entry(ct.slot).status.has(Status::ASSURED));
    }
}

/// Seen in the lab: the pod spoke first, so the reply tuple is taken. 6.1 lets the client's datagram pass as a
/// packet of the pod's entry, 6.12 drops it.
#[test]
fn a_datagram_that_clashes_with_the_pods_own_entry() {
    for (release, result) in [("6.1.192", CtRule::NewUdp), ("6.12.117", CtRule::Clash)] {
        let mut net = Net::new(release);
        assert_eq!(net.pod_sends(&datagram(pod(), client())), CtRule::NewUdp);
        assert_eq!(
            net.forward(&datagram(client(), service()), pod()),
            result,
            "{release}"
        );
        assert_eq!(net.ct.count(), 1, "{release}");
    }
}
