//! What a kernel may be whose release leaves open which fixes it has.
//!
//! A stable branch takes fixes in one order, so a hidden patch level leaves one possibility for each interval between
//! fixes. A vendor picks patches one by one, so every set is possible that its own dependencies allow.

use super::release::{Kernel, Taken};
use super::{Answer, Behaviours, Flavour, Gate, Version};

/// Behaviours that a result turns on, each with the one that it needs.
pub type Decisive = &'static [(Gate, Option<Gate>)];

/// On the node: what becomes of a SYN whose port still has an IPVS entry.
pub const NODE_DECISIVE: Decisive = &[
    (Gate::ReuseMode, None),
    (Gate::ReuseDropsTracked, Some(Gate::ReuseMode)),
    (Gate::ReuseDropsConfirmed, Some(Gate::ReuseDropsTracked)),
    (Gate::WeightZeroAnyMode, Some(Gate::ReuseMode)),
];

/// On a client: how connect() goes through its ports.
pub const CLIENT_DECISIVE: Decisive = &[(Gate::ConnectRandomStep, None)];

impl Kernel {
    /// This kernel once for each set of `decisive` behaviours that it may have, with that decided; the oldest first. Only
    /// itself if its release decides them all.
    pub fn possibilities(&self, decisive: Decisive) -> Vec<Self> {
        let open = decisive
            .iter()
            .filter(|(gate, _)| self.answer(*gate) == Answer::Unknown)
            .copied()
            .collect::<Vec<_>>();
        if open.is_empty() {
            return vec![self.clone()];
        }
        let ports = open
            .iter()
            .map(|(gate, _)| self.port(*gate))
            .collect::<Option<Vec<_>>>();
        match ports.filter(|_| self.flavour == Flavour::HiddenPatch) {
            Some(ports) => self.by_level(ports),
            None => self.by_set(&open),
        }
    }

    /// The patch level of this kernel's branch that brought a behaviour.
    fn port(&self, gate: Gate) -> Option<u16> {
        let branch = (self.version.0, self.version.1);
        let mut ports = gate.row().backports.iter();
        ports
            .find(|port| (port.0, port.1) == branch)
            .map(|port| port.2)
    }

    fn by_level(&self, mut ports: Vec<u16>) -> Vec<Self> {
        ports.sort_unstable();
        ports.dedup();
        let at = |patch| self.taken(Taken::As(Version(self.version.0, self.version.1, patch)));
        let before = ports.first().map_or(0, |port| port.saturating_sub(1));
        core::iter::once(before).chain(ports).map(at).collect()
    }

    fn by_set(&self, open: &[(Gate, Option<Gate>)]) -> Vec<Self> {
        let known = self.behaviours();
        let mut sets = (0..1_u32 << open.len())
            .map(|bits| {
                let picked = open
                    .iter()
                    .enumerate()
                    .filter(|(place, _)| bits & (1 << place) != 0);
                picked.fold(Behaviours::default(), |set, (_, (gate, _))| {
                    set.with(*gate, true)
                })
            })
            .filter(|set| {
                let stands = |(gate, needs): &(Gate, Option<Gate>)| {
                    !set.has(*gate) || needs.is_none_or(|needs| set.has(needs) || known.has(needs))
                };
                open.iter().all(stands)
            })
            .collect::<Vec<_>>();
        let size = |set: &Behaviours| open.iter().filter(|(gate, _)| set.has(*gate)).count();
        sets.sort_by_key(size);
        sets.into_iter()
            .map(|set| self.taken(Taken::With(set)))
            .collect()
    }
}
