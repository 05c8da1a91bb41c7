//! What the releases of Cilium do differently with a service's connections.
//!
//! Faithful to: cilium/cilium pull requests and issues named in the table (facts kube-proxy.md 7), `conntrack.h` and
//! `lb.h` of trees of about 1.13 and after 1.19.
//! Leaves out: backports to patch releases, which were not looked up.

use crate::kernel::Version;

/// A behaviour that some releases of Cilium have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CiliumGate {
    /// A backend that terminates stays known until its endpoint is gone; before, it was forgotten at once.
    KeepsTerminating,
    /// A SYN on a closing service entry is balanced anew once a grace period has passed since the last packet.
    RebalancesClosed,
    /// A SYN on an entry whose backend is not active is balanced anew at once. TCP only.
    LeavesInactive,
    /// FIN or RST closes a service entry as a whole, and any SYN on a closing one is balanced anew.
    ReopensAnew,
}

/// One row of the table of gates.
#[derive(Clone, Copy, Debug)]
pub struct CiliumGateRow {
    /// The gate.
    pub gate: CiliumGate,
    /// The name in documents.
    pub name: &'static str,
    /// The first release that has it.
    pub since: Version,
    /// Pull request, and how the release is known.
    pub source: &'static str,
}

/// Every gate, in the order of the enum.
pub const CILIUM_GATES: [CiliumGateRow; 4] = [
    CiliumGateRow {
        gate: CiliumGate::KeepsTerminating,
        name: "keeps-terminating",
        since: Version(1, 11, 0),
        source: "enable-k8s-terminating-endpoint; the release from memory",
    },
    CiliumGateRow {
        gate: CiliumGate::RebalancesClosed,
        name: "rebalances-closed",
        since: Version(1, 12, 0),
        source: "#19451, #19800; not in 1.11.6 (#20382)",
    },
    CiliumGateRow {
        gate: CiliumGate::LeavesInactive,
        name: "leaves-inactive",
        since: Version(1, 12, 0),
        source: "#20407 for #20382; the release from its date, July 2022; not done for UDP (#24131 was not merged)",
    },
    CiliumGateRow {
        gate: CiliumGate::ReopensAnew,
        name: "reopens-anew",
        since: Version(1, 19, 0),
        source: "`__ct_lookup` of a tree after 1.19, absent in one of about 1.13; the release between is not known",
    },
];

/// The gates that a release has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CiliumBehaviours(u8);

impl CiliumBehaviours {
    /// What a release does.
    pub fn of(version: Version) -> Self {
        let rows = CILIUM_GATES.iter().filter(|row| row.since <= version);
        Self(rows.fold(0, |set, row| set | 1 << row.gate as u8))
    }

    /// Whether a behaviour is present.
    pub const fn has(self, gate: CiliumGate) -> bool {
        self.0 & (1 << gate as u8) != 0
    }
}
