//! One real server as kube-proxy sees it: states, events, and the netlink calls in between.
//!
//! Faithful to: `syncEndpoint` in pkg/proxy/ipvs/proxier.go and graceful_termination.go, 1.11 to 1.30 (facts,
//! kube-proxy 3). The record is per virtual service and real server: a pod behind three virtual services has three.
//! Leaves out: the race between the check and a sync that 1.24 closed (`flushList` without the lock).

use super::version::{ProxyBehaviours, ProxyGate};

/// The protocol of a virtual service, as far as kube-proxy cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceProto {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Which connections keep a real server from being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaitFor {
    /// None: it is deleted at once.
    Nothing,
    /// Active ones.
    Active,
    /// Active and inactive ones.
    ActiveAndInactive,
}

impl WaitFor {
    /// What this release waits for.
    pub const fn of(proxy: ProxyBehaviours, proto: ServiceProto) -> Self {
        let immediate = match proto {
            ServiceProto::Tcp => false,
            ServiceProto::Udp => proxy.has(ProxyGate::UdpImmediate),
            ServiceProto::Sctp => proxy.has(ProxyGate::SctpImmediate),
        };
        if immediate || !proxy.has(ProxyGate::GracefulTermination) {
            Self::Nothing
        } else if proxy.has(ProxyGate::WaitsForInactive) {
            Self::ActiveAndInactive
        } else {
            Self::Active
        }
    }

    /// Whether these counts allow the deletion.
    pub const fn idle(self, active: u32, inactive: u32) -> bool {
        match self {
            Self::Nothing => true,
            Self::Active => active == 0,
            Self::ActiveAndInactive => active == 0 && inactive == 0,
        }
    }
}

/// What kube-proxy and the kernel know of one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerState {
    /// Not in IPVS, not in the graceful list.
    Absent,
    /// In IPVS with a weight above 0, not in the list.
    Serving,
    /// In IPVS at weight 0 and in the list: drains.
    Draining,
    /// In IPVS at weight 0, but the list was lost in a restart.
    Stranded,
    /// In the list, but gone from IPVS.
    Ghost,
    /// In the list, and in IPVS with a weight above 0: a check may delete a server in use.
    Haunted,
}

impl ServerState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Absent,
        Self::Serving,
        Self::Draining,
        Self::Stranded,
        Self::Ghost,
        Self::Haunted,
    ];

    /// The state of a server with this weight in IPVS (`None`: not there), in the list or not.
    pub const fn of(weight: Option<u32>, listed: bool) -> Self {
        match (weight, listed) {
            (None, false) => Self::Absent,
            (None, true) => Self::Ghost,
            (Some(0), true) => Self::Draining,
            (Some(0), false) => Self::Stranded,
            (Some(_), true) => Self::Haunted,
            (Some(_), false) => Self::Serving,
        }
    }
}

/// What happens to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerEvent {
    /// A sync wants it.
    Wanted,
    /// The first sync wants it and some server of the service has another weight than 1.
    WantedReset,
    /// A sync finds it in IPVS and does not want it; nothing keeps it from being deleted.
    UnwantedIdle,
    /// The same with connections that keep it.
    UnwantedBusy,
    /// The check of the graceful list finds it deletable, or not in IPVS at all.
    CheckIdle,
    /// The check finds connections that keep it.
    CheckBusy,
    /// kube-proxy restarts and forgets its list.
    Restart,
    /// Somebody else deletes it (`ipvsadm -d`).
    Removed,
}

impl ServerEvent {
    /// All events.
    pub const ALL: [Self; 8] = [
        Self::Wanted,
        Self::WantedReset,
        Self::UnwantedIdle,
        Self::UnwantedBusy,
        Self::CheckIdle,
        Self::CheckBusy,
        Self::Restart,
        Self::Removed,
    ];
}

/// One call of kube-proxy: to the kernel by netlink, or to its own list. Each is a step of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerStep {
    /// AddRealServer with weight 1.
    Add,
    /// UpdateRealServer to weight 1.
    WeightOne,
    /// UpdateRealServer to weight 0.
    WeightZero,
    /// DeleteRealServer.
    Delete,
    /// Into the graceful list.
    List,
    /// Out of the graceful list.
    Unlist,
}

/// Why kube-proxy did what it did to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyRule {
    /// A wanted endpoint that IPVS lacks is added with weight 1.
    AddMissing,
    /// A wanted endpoint that is there stays as it is.
    AlreadyThere,
    /// A wanted endpoint that drains is deleted and added again: its entries find their real server again only if
    /// the kernel still has it.
    Returning,
    /// A wanted endpoint at weight 0 that is not in the list stays at 0 (before 1.26).
    StaysStranded,
    /// The first sync sets weight 1 on every wanted endpoint once per server whose weight is not 1 (1.26 and later).
    FirstSyncReset,
    /// An endpoint that is not wanted and has no connections that count is deleted at once; it never has weight 0.
    DeletedAtOnce,
    /// An endpoint that is not wanted and has connections gets weight 0 and enters the graceful list.
    DrainStarts,
    /// An endpoint in the list is left to the next check.
    LeftToCheck,
    /// The check deletes an endpoint without connections.
    CheckDeletes,
    /// The check lets an endpoint with connections be.
    CheckWaits,
    /// The check finds an endpoint that is not in IPVS and forgets it.
    CheckFindsNothing,
    /// A restart loses the graceful list.
    ListLost,
    /// Somebody else deleted the real server.
    RemovedByOthers,
    /// Before 1.15: the start deletes or drains every real server (#73154).
    StartClears,
}

impl ProxyRule {
    /// The rule in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::AddMissing => "wanted and missing: added",
            Self::AlreadyThere => "wanted and present: left alone",
            Self::Returning => "wanted again while draining: deleted and added",
            Self::StaysStranded => "wanted, at weight 0 since a restart: left at 0",
            Self::FirstSyncReset => "first sync: weight set to 1",
            Self::DeletedAtOnce => "not wanted, nothing to wait for: deleted",
            Self::DrainStarts => "not wanted, has connections: weight 0",
            Self::LeftToCheck => "draining: left to the one-minute check",
            Self::CheckDeletes => "one-minute check: no connections left, deleted",
            Self::CheckWaits => "one-minute check: still has connections",
            Self::CheckFindsNothing => "one-minute check: not in IPVS, forgotten",
            Self::ListLost => "restart: forgotten by the graceful list",
            Self::RemovedByOthers => "deleted by somebody else",
            Self::StartClears => "start: every real server deleted or drained",
        }
    }
}

/// On which variants of the graceful list a transition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum When {
    /// On all.
    Always,
    /// Entries leave the list ([`ProxyGate::GracefulListForgets`]).
    Forgets,
    /// Entries never leave it: the fault of 1.11.5, 1.12.2 and 1.13.0.
    Keeps,
}

impl When {
    /// Whether the row holds for this kube-proxy.
    pub const fn holds(self, proxy: ProxyBehaviours) -> bool {
        match self {
            Self::Always => true,
            Self::Forgets => proxy.has(ProxyGate::GracefulListForgets),
            Self::Keeps => !proxy.has(ProxyGate::GracefulListForgets),
        }
    }
}

/// One row: state, event, variant; the steps in their order, the state after them, the rule.
pub type Transition = (
    ServerState,
    ServerEvent,
    When,
    &'static [ServerStep],
    ServerState,
    ProxyRule,
);

/// The whole machine. What is not here cannot happen: a sync does not visit servers that it does not want and that
/// IPVS does not list, and the check visits the list only.
#[rustfmt::skip]
pub const TRANSITIONS: &[Transition] = {
    use ProxyRule as R;
    use ServerEvent::*;
    use ServerState::*;
    use ServerStep::*;
    use When::*;
    &[
        (Absent,   Wanted,       Always,  &[Add],                            Serving,  R::AddMissing),
        (Absent,   WantedReset,  Always,  &[Add],                            Serving,  R::AddMissing),
        (Ghost,    Wanted,       Always,  &[Add],                            Haunted,  R::AddMissing),
        (Serving,  Wanted,       Always,  &[],                               Serving,  R::AlreadyThere),
        (Serving,  WantedReset,  Always,  &[WeightOne],                      Serving,  R::FirstSyncReset),
        (Stranded, Wanted,       Always,  &[],                               Stranded, R::StaysStranded),
        (Stranded, WantedReset,  Always,  &[WeightOne],                      Serving,  R::FirstSyncReset),
        (Draining, Wanted,       Forgets, &[Delete, Unlist, Add],            Serving,  R::Returning),
        (Draining, Wanted,       Keeps,   &[Delete, Add],                    Haunted,  R::Returning),
        (Haunted,  Wanted,       Forgets, &[Delete, Unlist, Add],            Serving,  R::Returning),
        (Haunted,  Wanted,       Keeps,   &[Delete, Add],                    Haunted,  R::Returning),

        (Serving,  UnwantedIdle, Always,  &[Delete],                         Absent,   R::DeletedAtOnce),
        (Serving,  UnwantedBusy, Always,  &[WeightZero, List],               Draining, R::DrainStarts),
        (Stranded, UnwantedIdle, Always,  &[Delete],                         Absent,   R::DeletedAtOnce),
        (Stranded, UnwantedBusy, Always,  &[WeightZero, List],               Draining, R::DrainStarts),
        (Draining, UnwantedIdle, Always,  &[],                               Draining, R::LeftToCheck),
        (Draining, UnwantedBusy, Always,  &[],                               Draining, R::LeftToCheck),
        (Haunted,  UnwantedIdle, Always,  &[],                               Haunted,  R::LeftToCheck),
        (Haunted,  UnwantedBusy, Always,  &[],                               Haunted,  R::LeftToCheck),

        (Draining, CheckIdle,    Forgets, &[Delete, Unlist],                 Absent,   R::CheckDeletes),
        (Draining, CheckIdle,    Keeps,   &[Delete],                         Ghost,    R::CheckDeletes),
        (Draining, CheckBusy,    Always,  &[],                               Draining, R::CheckWaits),
        (Haunted,  CheckIdle,    Forgets, &[Delete, Unlist],                 Absent,   R::CheckDeletes),
        (Haunted,  CheckIdle,    Keeps,   &[Delete],                         Ghost,    R::CheckDeletes),
        (Haunted,  CheckBusy,    Always,  &[],                               Haunted,  R::CheckWaits),
        (Ghost,    CheckIdle,    Forgets, &[Unlist],                         Absent,   R::CheckFindsNothing),
        (Ghost,    CheckIdle,    Keeps,   &[],                               Ghost,    R::CheckFindsNothing),

        (Draining, Restart,      Always,  &[Unlist],                         Stranded, R::ListLost),
        (Haunted,  Restart,      Always,  &[Unlist],                         Serving,  R::ListLost),
        (Ghost,    Restart,      Always,  &[Unlist],                         Absent,   R::ListLost),

        (Serving,  Removed,      Always,  &[Delete],                         Absent,   R::RemovedByOthers),
        (Stranded, Removed,      Always,  &[Delete],                         Absent,   R::RemovedByOthers),
        (Draining, Removed,      Always,  &[Delete],                         Ghost,    R::RemovedByOthers),
        (Haunted,  Removed,      Always,  &[Delete],                         Ghost,    R::RemovedByOthers),
    ]
};

/// The row of the table for a state and an event; `None` if the event does not concern a server in this state.
pub fn transition(
    state: ServerState,
    event: ServerEvent,
    proxy: ProxyBehaviours,
) -> Option<&'static Transition> {
    TRANSITIONS
        .iter()
        .find(|row| row.0 == state && row.1 == event && row.2.holds(proxy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use petgraph::algo::tarjan_scc;
    use petgraph::dot::{Config, Dot};
    use petgraph::graph::{DiGraph, NodeIndex};
    use petgraph::visit::Dfs;

    fn forgets() -> ProxyBehaviours {
        ProxyBehaviours::default().with(ProxyGate::GracefulListForgets, true)
    }

    /// The machine as a graph, built by asking it.
    fn graph(proxy: ProxyBehaviours) -> DiGraph<String, String> {
        let mut graph = DiGraph::new();
        for state in ServerState::ALL {
            graph.add_node(format!("{state:?}"));
        }
        for (from, state) in ServerState::ALL.into_iter().enumerate() {
            for event in ServerEvent::ALL {
                if let Some(row) = transition(state, event, proxy) {
                    let label = format!("{event:?}: {:?}", row.3);
                    graph.add_edge(NodeIndex::new(from), NodeIndex::new(row.4 as usize), label);
                }
            }
        }
        graph
    }

    #[test]
    fn every_state_can_be_reached_and_left() {
        for proxy in [ProxyBehaviours::default(), forgets()] {
            let graph = graph(proxy);
            let mut seen = 0;
            let mut walk = Dfs::new(&graph, NodeIndex::new(ServerState::Absent as usize));
            while walk.next(&graph).is_some() {
                seen += 1;
            }
            assert_eq!(seen, ServerState::ALL.len(), "some state is out of reach");
            // One strongly connected component: from every state a way leads back to Absent.
            assert_eq!(tarjan_scc(&graph).len(), 1, "some state is a trap");
        }
    }

    #[test]
    fn no_state_and_event_has_two_rows() {
        for proxy in [ProxyBehaviours::default(), forgets()] {
            for state in ServerState::ALL {
                for event in ServerEvent::ALL {
                    let rows = TRANSITIONS
                        .iter()
                        .filter(|row| row.0 == state && row.1 == event && row.2.holds(proxy))
                        .count();
                    assert!(rows <= 1, "{state:?} {event:?}");
                }
            }
        }
    }

    /// Running a row's steps on weight and list gives the row's next state: the table cannot contradict itself.
    #[test]
    fn the_steps_lead_to_the_next_state() {
        for &(from, event, when, steps, to, _) in TRANSITIONS {
            let (mut weight, mut listed) = match from {
                ServerState::Absent => (None, false),
                ServerState::Serving => (Some(1), false),
                ServerState::Draining => (Some(0), true),
                ServerState::Stranded => (Some(0), false),
                ServerState::Ghost => (None, true),
                ServerState::Haunted => (Some(1), true),
            };
            assert_eq!(ServerState::of(weight, listed), from);
            for step in steps {
                match step {
                    ServerStep::Add => {
                        assert_eq!(weight, None, "{from:?} {event:?}: EEXIST");
                        weight = Some(1);
                    }
                    ServerStep::WeightOne | ServerStep::WeightZero => {
                        assert!(weight.is_some(), "{from:?} {event:?}: ENOENT");
                        weight = Some(u32::from(*step == ServerStep::WeightOne));
                    }
                    ServerStep::Delete => {
                        assert!(weight.is_some(), "{from:?} {event:?}: ENOENT");
                        weight = None;
                    }
                    ServerStep::List => listed = true,
                    ServerStep::Unlist => listed = false,
                }
            }
            assert_eq!(
                ServerState::of(weight, listed),
                to,
                "{from:?} {event:?} {when:?}"
            );
        }
    }

    /// "Weight 0 only with live connections": F7, and founding case U2 of F3.
    #[test]
    fn only_a_server_with_connections_ever_gets_weight_zero() {
        for row in TRANSITIONS {
            if row.3.contains(&ServerStep::WeightZero) {
                assert_eq!(row.1, ServerEvent::UnwantedBusy);
            }
        }
    }

    #[test]
    fn what_is_waited_for_by_release_and_protocol() {
        use ServiceProto::*;
        use WaitFor::*;
        let rows = [
            ("1.11.4", [Nothing, Nothing, Nothing]),
            ("1.13.0", [Active, Active, Active]),
            (
                "1.13.1",
                [ActiveAndInactive, ActiveAndInactive, ActiveAndInactive],
            ),
            (
                "1.14.3",
                [ActiveAndInactive, ActiveAndInactive, ActiveAndInactive],
            ),
            ("1.14.4", [ActiveAndInactive, Nothing, ActiveAndInactive]),
            ("1.18.6", [ActiveAndInactive, Nothing, ActiveAndInactive]),
            ("1.20.0", [ActiveAndInactive, Nothing, Nothing]),
            ("1.35.0", [ActiveAndInactive, Nothing, Nothing]),
        ];
        for (version, want) in rows {
            let proxy = version
                .parse::<crate::kube::ProxyVersion>()
                .unwrap()
                .behaviours();
            assert_eq!(
                [Tcp, Udp, Sctp].map(|proto| WaitFor::of(proxy, proto)),
                want,
                "{version}"
            );
        }
    }

    #[test]
    fn the_machine_as_a_picture() {
        let graph = graph(forgets());
        let dot = Dot::with_config(&graph, &[Config::GraphContentOnly]);
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
        }, {
            insta::assert_snapshot!("kube_proxy_real_server", format!("digraph real_server {{\n{dot}}}"));
        });
    }
}
