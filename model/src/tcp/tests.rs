//! What must hold of both ends together, whatever is lost and whoever dies.

use proptest::prelude::*;

use super::server::Phase;
use super::testing::{App, SERVER, Wire, endpoint};
use crate::time::{Instant, Span};

#[derive(Clone, Copy, Debug)]
enum Act {
    Connect,
    CloseClient { oldest: bool, linger_zero: bool },
    ShutdownClient,
    StopAccepting,
    Accept,
    CloseListener,
    Exit { linger_zero: bool },
    Destroy,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => Just(Act::Connect),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(oldest, linger_zero)| Act::CloseClient { oldest, linger_zero }),
        1 => Just(Act::ShutdownClient),
        1 => Just(Act::StopAccepting),
        1 => Just(Act::Accept),
        1 => Just(Act::CloseListener),
        1 => any::<bool>().prop_map(|linger_zero| Act::Exit { linger_zero }),
        1 => Just(Act::Destroy),
    ]
}

fn perform(wire: &mut Wire, act: Act, ids: &mut Vec<super::client::ConnId>) {
    match act {
        Act::Connect => ids.extend(wire.connect()),
        Act::CloseClient {
            oldest,
            linger_zero,
        } => {
            let id = if oldest { ids.first() } else { ids.last() };
            if let Some(&id) = id {
                let outcome = wire.client.close(wire.now, id, linger_zero);
                wire.client_did(id, &outcome);
            }
        }
        Act::ShutdownClient => {
            if let Some(&id) = ids.last() {
                let outcome = wire.client.shutdown(wire.now, id);
                wire.client_did(id, &outcome);
            }
        }
        Act::StopAccepting => wire.pod.stop_accepting(),
        Act::Accept => drop(wire.pod.accept()),
        Act::CloseListener => {
            for (peer, outcome) in wire.pod.close_listener(wire.now) {
                wire.pod_did(peer, &outcome);
            }
        }
        Act::Exit { linger_zero } => {
            for (peer, outcome) in wire.pod.exit(wire.now, linger_zero) {
                wire.pod_did(peer, &outcome);
            }
        }
        Act::Destroy => wire.pod.destroy(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every socket ends closed, every port comes back, and no two ends exchange packets for ever.
    #[test]
    fn sockets_are_conserved(
        client in proptest::sample::select(vec!["3.10.4", "4.4.155", "5.7.14", "6.12.117"]),
        server in proptest::sample::select(vec!["4.19.0", "5.7.14", "6.12.117"]),
        lost in proptest::collection::vec(1u32..80, 0..20),
        acts in proptest::collection::vec((0u64..3000, act()), 1..25),
        request in 1u32..200_000, answer in 1u32..200_000, server_first in any::<bool>(),
        ports in 1u16..6, tw_reuse in 0u8..3, backlog in 0u32..3,
    ) {
        let mut stack = super::testing::stack(client, 1);
        stack.sysctls.local_ports = (40_000, 40_000 + ports);
        stack.sysctls.tw_reuse = tw_reuse;
        let mut wire = Wire::with(stack, super::testing::stack(server, 2));
        wire.pod = super::server::Pod::new(super::testing::stack(server, 2), endpoint(SERVER), backlog);
        wire.app = App { request, answer, server_first };
        wire.lost = lost;
        let mut ids = Vec::new();
        for (pause, act) in acts {
            perform(&mut wire, act, &mut ids);
            wire.run(wire.now + Span::from_millis(pause));
        }
        for id in ids {
            let outcome = wire.client.close(wire.now, id, false);
            wire.client_did(id, &outcome);
        }
        wire.run_for(1);
        perform(&mut wire, Act::Exit { linger_zero: false }, &mut Vec::new());
        wire.run(Instant::NEVER);
        prop_assert!(wire.client.is_empty(), "{:?}", wire.log);
        prop_assert_eq!(wire.client.time_waits(), 0);
        prop_assert_eq!(wire.client.ports_taken(super::testing::destination()), 0);
        prop_assert!(wire.pod.is_empty(), "{:?}", wire.log);
        prop_assert!(wire.pod.phase() >= Phase::ProcessGone);
    }
}
