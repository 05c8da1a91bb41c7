//! What a SYN does to the entry that it finds: the heart of the founding case.
//!
//! Faithful to: `ip_vs_core.c` `ip_vs_in` / `ip_vs_in_hook`, `is_new_conn_expected`,
//! `ip_vs_conn_uses_conntrack`, `ip_vs_conn_uses_old_conntrack`, in all eras from 3.10 to 6.19.

use super::state::State;
use crate::kernel::{Behaviours, Gate};

/// What conntrack attached to the packet before IPVS sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtSeen {
    /// Nothing: not tracked, or judged invalid.
    None,
    /// A fresh entry that is not in the table yet.
    Unconfirmed,
    /// An entry of the table.
    Confirmed,
}

/// All that the decision looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// `conn_reuse_mode`.
    pub mode: u8,
    /// `expire_nodest_conn`.
    pub expire_nodest: bool,
    /// Weight of the entry's real server; a deleted one keeps its last.
    pub weight: u32,
    /// Whether the entry's real server is in the service's list.
    pub available: bool,
    /// State of the entry.
    pub state: State,
    /// The entry's replies bypass the node.
    pub no_output: bool,
    /// The entry belongs to a persistence template.
    pub controlled: bool,
    /// Other entries belong to this one.
    pub controls: bool,
    /// The entry keeps its conntrack twin (`vs.conntrack` at its creation).
    pub nfct: bool,
    /// The packet's conntrack.
    pub ct: CtSeen,
}

/// What becomes of a packet that found an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reuse {
    /// Forward to the entry's real server.
    Keep,
    /// Let the entry expire and schedule this packet anew.
    Reschedule {
        /// The old entry lets go of its conntrack twin, so that its expiry does not kill the new one.
        release_ct: bool,
        /// Why.
        trigger: Trigger,
    },
    /// Let the entry expire and drop this packet: the client's retransmission is scheduled anew.
    Drop {
        /// Why.
        trigger: Trigger,
    },
    /// Drop this packet and leave the entry alone (deleted real server, expire_nodest_conn=0).
    Blackhole,
}

/// Which test asked for the entry's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// expire_nodest_conn=1 and the real server's weight is 0.
    WeightZero,
    /// The entry is in a state in which a new connection is expected.
    State,
    /// The real server was deleted.
    Deleted,
}

/// Whether a new connection may be expected on an entry (`is_new_conn_expected`).
const fn new_conn_expected(kernel: Behaviours, inputs: &Inputs) -> bool {
    if inputs.controlled {
        return false;
    }
    match inputs.state {
        State::Tw => true,
        State::Cl => kernel.has(Gate::CloseReused),
        State::Fw => inputs.mode & 2 != 0 && inputs.no_output,
        _ => false,
    }
}

/// Whether the packet must be dropped because conntrack has settled on the old real server.
const fn uses_conntrack(kernel: Behaviours, inputs: &Inputs) -> bool {
    if kernel.has(Gate::ReuseDropsConfirmed) {
        matches!(inputs.ct, CtSeen::Confirmed)
    } else {
        kernel.has(Gate::ReuseDropsTracked) && inputs.nfct && !matches!(inputs.ct, CtSeen::None)
    }
}

/// Decides on a packet that found an entry. `syn`: the packet has the SYN bit; nothing else makes it new.
pub const fn decide(kernel: Behaviours, syn: bool, inputs: &Inputs) -> Reuse {
    let by_weight = inputs.expire_nodest && inputs.weight == 0;
    if syn {
        let mode_on = inputs.mode != 0 && kernel.has(Gate::ReuseMode);
        let weight_rule = by_weight
            && (mode_on || !kernel.has(Gate::ReuseMode) || kernel.has(Gate::WeightZeroAnyMode));
        if weight_rule {
            return expire(kernel, inputs, Trigger::WeightZero);
        }
        if mode_on && new_conn_expected(kernel, inputs) {
            let settled = inputs.controls && uses_conntrack(kernel, inputs);
            if !settled {
                return expire(kernel, inputs, Trigger::State);
            }
        }
    }
    if inputs.available {
        return Reuse::Keep;
    }
    if !inputs.expire_nodest {
        return Reuse::Blackhole;
    }
    if kernel.has(Gate::DeletedDestReschedules) {
        expire(kernel, inputs, Trigger::Deleted)
    } else {
        Reuse::Drop {
            trigger: Trigger::Deleted,
        }
    }
}

const fn expire(kernel: Behaviours, inputs: &Inputs, trigger: Trigger) -> Reuse {
    if uses_conntrack(kernel, inputs) {
        Reuse::Drop { trigger }
    } else {
        Reuse::Reschedule {
            release_ct: kernel.has(Gate::ReuseDropsConfirmed),
            trigger,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    /// The outcomes of facts 1.6.2, with "drop?" split by what conntrack attached.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Want {
        Keep,
        Resched,
        DropOrResched,
    }

    const TW: &[State] = &[State::Tw];
    const CL: &[State] = &[State::Cl];
    const OTHERS: &[State] = &[
        State::No,
        State::Sr,
        State::Es,
        State::Fw,
        State::Cw,
        State::La,
        State::Sa,
    ];
    const ALL: &[State] = &State::ALL;

    type Row = (u8, bool, u32, &'static [State], [Want; 5]);

    /// Facts 1.6.2, row by row: (mode, en, weight, state) -> eras A, B, C, D/E, F.
    #[test]
    fn the_decision_table() {
        use Want::{DropOrResched as D, Keep as K, Resched as R};
        let rows: &[Row] = &[
            (0, false, 0, ALL, [K, K, K, K, K]),
            (0, false, 1, ALL, [K, K, K, K, K]),
            (0, true, 1, ALL, [K, K, K, K, K]),
            (0, true, 0, ALL, [R, K, K, K, D]),
            (1, false, 0, TW, [K, R, D, D, D]),
            (1, false, 1, TW, [K, R, D, D, D]),
            (1, false, 1, CL, [K, K, D, D, D]),
            (1, false, 1, OTHERS, [K, K, K, K, K]),
            (1, true, 0, ALL, [R, R, D, D, D]),
            (1, true, 1, TW, [K, R, D, D, D]),
            (1, true, 1, CL, [K, K, D, D, D]),
            (1, true, 1, OTHERS, [K, K, K, K, K]),
        ];
        let kernels = ["4.0.5", "4.1.6", "5.7.14", "5.10.44", "6.1.192"];
        for &(mode, expire_nodest, weight, states, wants) in rows {
            for (release, want) in kernels.into_iter().zip(wants) {
                let kernel = release.parse::<Kernel>().unwrap().behaviours();
                for &state in states {
                    for ct in [CtSeen::None, CtSeen::Unconfirmed, CtSeen::Confirmed] {
                        let inputs = Inputs {
                            mode,
                            expire_nodest,
                            weight,
                            available: true,
                            state,
                            no_output: false,
                            controlled: false,
                            controls: false,
                            nfct: true,
                            ct,
                        };
                        let got = decide(kernel, true, &inputs);
                        let drops = match release {
                            "5.7.14" => ct != CtSeen::None,
                            _ => ct == CtSeen::Confirmed,
                        };
                        let context = format!(
                            "{release} mode {mode} en {expire_nodest} w {weight} {state:?} {ct:?}"
                        );
                        match want {
                            K => assert_eq!(got, Reuse::Keep, "{context}"),
                            R => assert!(matches!(got, Reuse::Reschedule { .. }), "{context}"),
                            D if drops => assert!(matches!(got, Reuse::Drop { .. }), "{context}"),
                            D => assert!(matches!(got, Reuse::Reschedule { .. }), "{context}"),
                        }
                    }
                }
            }
        }
    }

    /// Facts 1.8 and trap 4: data on an entry of a deleted real server.
    #[test]
    fn deleted_real_servers() {
        let decide_for = |release: &str, expire_nodest, syn, ct| {
            let inputs = Inputs {
                mode: 0,
                expire_nodest,
                weight: 1,
                available: false,
                state: State::Es,
                no_output: false,
                controlled: false,
                controls: false,
                nfct: true,
                ct,
            };
            decide(
                release.parse::<Kernel>().unwrap().behaviours(),
                syn,
                &inputs,
            )
        };
        let deleted = Trigger::Deleted;
        for syn in [false, true] {
            for release in ["3.10.4", "5.7.14", "6.12.117"] {
                assert_eq!(
                    decide_for(release, false, syn, CtSeen::Confirmed),
                    Reuse::Blackhole
                );
            }
            assert_eq!(
                decide_for("5.7.14", true, syn, CtSeen::None),
                Reuse::Drop { trigger: deleted }
            );
            assert_eq!(
                decide_for("5.9.1", true, syn, CtSeen::Confirmed),
                Reuse::Drop { trigger: deleted }
            );
            assert_eq!(
                decide_for("5.9.1", true, syn, CtSeen::Unconfirmed),
                Reuse::Reschedule {
                    release_ct: true,
                    trigger: deleted
                }
            );
        }
    }

    /// Trap 15: a connection under a persistence template is never rescheduled by its state.
    #[test]
    fn controlled_entries_are_not_expected_to_be_reused() {
        let kernel = "6.1.192".parse::<Kernel>().unwrap().behaviours();
        let mut inputs = Inputs {
            mode: 1,
            expire_nodest: true,
            weight: 1,
            available: true,
            state: State::Tw,
            no_output: false,
            controlled: true,
            controls: false,
            nfct: true,
            ct: CtSeen::Unconfirmed,
        };
        assert_eq!(decide(kernel, true, &inputs), Reuse::Keep);
        inputs.weight = 0;
        assert!(matches!(
            decide(kernel, true, &inputs),
            Reuse::Reschedule { .. }
        ));
    }

    /// Facts 1.6.4: mode bit 2 makes FIN_WAIT reusable for direct routing only.
    #[test]
    fn fin_wait_needs_bit_two_and_direct_routing() {
        let kernel = "6.1.192".parse::<Kernel>().unwrap().behaviours();
        for (mode, no_output, reused) in [
            (1, true, false),
            (2, false, false),
            (2, true, true),
            (3, true, true),
        ] {
            let inputs = Inputs {
                mode,
                expire_nodest: false,
                weight: 1,
                available: true,
                state: State::Fw,
                no_output,
                controlled: false,
                controls: false,
                nfct: true,
                ct: CtSeen::None,
            };
            assert_eq!(
                decide(kernel, true, &inputs) != Reuse::Keep,
                reused,
                "{mode} {no_output}"
            );
        }
    }
}
