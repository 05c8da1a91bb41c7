//! The schedulers: rr, wrr, lc, wlc, sed, nq and, in [`hash`](super::sched_hash), sh and mh.
//!
//! Faithful to: `ip_vs_rr.c`, `ip_vs_wrr.c`, `ip_vs_lc.c`, `ip_vs_wlc.c`, `ip_vs_sed.c`, `ip_vs_nq.c`, 3.10 to 6.19.
//! Leaves out: overload thresholds (kube-proxy never sets them), fo, ovf, lblc, lblcr, dh, twos.

use core::fmt;
use core::str::FromStr;

use super::sched_hash::{MhTable, ShTable};
use super::service::{DestId, Dests};
use crate::kernel::Behaviours;
use crate::segment::Endpoint;

/// Name of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Source hashing.
    Sh,
    /// Maglev hashing.
    Mh,
}

impl Kind {
    /// Every scheduler that is modelled.
    pub const ALL: [Self; 8] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Sed,
        Self::Nq,
        Self::Sh,
        Self::Mh,
    ];

    /// The name that `ipvsadm -s` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Sh => "sh",
            Self::Mh => "mh",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                format!(
                    "unknown scheduler `{name}`: write one of rr, wrr, lc, wlc, sed, nq, sh, mh"
                )
            })
    }
}

/// Flags of `ipvsadm -b`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// sh-fallback or mh-fallback: probe on when the hashed server is unavailable. kube-proxy does not set it.
    pub fallback: bool,
    /// sh-port or mh-port: hash the source port too. kube-proxy sets it for mh from 1.27.
    pub port: bool,
}

/// The most falling weights of wrr that are told apart when its state is not known.
const WEIGHT_STEPS_MAX: i64 = 256;

/// A scheduler with its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduler {
    /// Which one.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    None,
    /// The destination chosen last; `None` is the head of the list.
    Rr(Option<DestId>),
    Wrr(Wrr),
    Sh(Box<ShTable>),
    Mh(Box<MhTable>),
}

/// Whose turn it is, as far as picking alone moves it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(Option<Whose>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Rr(Option<DestId>),
    Wrr(Wrr),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wrr {
    current: Option<DestId>,
    current_weight: i64,
    max_weight: i64,
    step: i64,
}

/// A change of the destination list, as the scheduler is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Added at the head.
    Added,
    /// Unlinked; the index says where it had been.
    Removed {
        /// The destination.
        dest: DestId,
        /// Its former position from the head.
        at: usize,
    },
    /// Weight changed.
    Edited,
}

impl Scheduler {
    /// A scheduler freshly bound to a service without destinations.
    pub fn new(kind: Kind, flags: Flags) -> Self {
        let state = match kind {
            Kind::Rr => State::Rr(None),
            Kind::Wrr => State::Wrr(Wrr {
                step: 1,
                ..Wrr::default()
            }),
            Kind::Sh => State::Sh(Box::default()),
            Kind::Mh => State::Mh(Box::default()),
            Kind::Lc | Kind::Wlc | Kind::Sed | Kind::Nq => State::None,
        };
        Self { kind, flags, state }
    }

    /// Tells the scheduler of a change; `list` is the list after it.
    pub(super) fn changed(&mut self, change: Change, list: &[DestId], dests: &Dests) {
        match &mut self.state {
            State::None => {}
            State::Rr(last) => {
                if let Change::Removed { dest, at } = change
                    && *last == Some(dest)
                {
                    *last = at.checked_sub(1).map(|before| list[before]);
                }
            }
            State::Wrr(wrr) => wrr.changed(list, dests),
            State::Sh(table) => table.rebuild(list, dests),
            State::Mh(table) => table.rebuild(list, dests),
        }
    }

    /// Every state in which this scheduler may be after choices that nobody saw.
    pub(super) fn possible(&self, list: &[DestId]) -> Vec<Self> {
        let at = |state| Self {
            kind: self.kind,
            flags: self.flags,
            state,
        };
        let places = || core::iter::once(None).chain(list.iter().copied().map(Some));
        match &self.state {
            State::Rr(_) => places().map(|last| at(State::Rr(last))).collect(),
            State::Wrr(wrr) => places()
                .flat_map(|current| {
                    let steps = (wrr.max_weight.max(1) + wrr.step - 1) / wrr.step.max(1);
                    (0..steps.clamp(1, WEIGHT_STEPS_MAX)).map(move |step| {
                        let current_weight = wrr.max_weight - step * wrr.step;
                        (current, current_weight)
                    })
                })
                .map(|(current, current_weight)| {
                    at(State::Wrr(Wrr {
                        current,
                        current_weight,
                        ..*wrr
                    }))
                })
                .collect(),
            _ => vec![self.clone()],
        }
    }

    /// Whose turn it is.
    pub(super) const fn turn(&self) -> Turn {
        Turn(match &self.state {
            State::Rr(last) => Some(Whose::Rr(*last)),
            State::Wrr(wrr) => Some(Whose::Wrr(*wrr)),
            _ => None,
        })
    }

    /// Gives the turn back to whom it was when [`Scheduler::turn`] told it; the list has not changed since.
    pub(super) fn set_turn(&mut self, turn: Turn) {
        match turn.0 {
            Some(Whose::Rr(last)) => self.state = State::Rr(last),
            Some(Whose::Wrr(wrr)) => self.state = State::Wrr(wrr),
            None => {}
        }
    }

    /// Chooses a destination for a new connection of `client`; `None` if none is available.
    pub(super) fn pick(
        &mut self,
        kernel: Behaviours,
        client: Endpoint,
        list: &[DestId],
        dests: &Dests,
    ) -> Option<DestId> {
        match &mut self.state {
            State::Rr(last) => rr(last, list, dests),
            State::Wrr(wrr) => wrr.pick(list, dests),
            State::Sh(table) => table.pick(client, self.flags, dests),
            State::Mh(table) => table.pick(client, self.flags, dests),
            State::None => match self.kind {
                Kind::Lc => list
                    .iter()
                    .copied()
                    .filter(|id| dests.get(*id).usable())
                    .min_by_key(|id| dests.get(*id).overhead(kernel)),
                Kind::Nq => list
                    .iter()
                    .copied()
                    .find(|id| dests.get(*id).usable() && dests.get(*id).active == 0)
                    .or_else(|| least_per_weight(list, dests, expected_delay)),
                Kind::Wlc => {
                    least_per_weight(list, dests, |dests, id| dests.get(id).overhead(kernel))
                }
                _ => least_per_weight(list, dests, expected_delay),
            },
        }
    }
}

/// The load that sed and nq compare: the connections there would be with this one.
fn expected_delay(dests: &Dests, id: DestId) -> u64 {
    u64::from(dests.get(id).active) + 1
}

/// The first destination with the least cost for its weight; ties go to the head of the list.
fn least_per_weight(
    list: &[DestId],
    dests: &Dests,
    cost: impl Fn(&Dests, DestId) -> u64,
) -> Option<DestId> {
    let mut best: Option<(DestId, u64)> = None;
    for &id in list.iter().filter(|id| dests.get(**id).usable()) {
        let load = cost(dests, id);
        let better = best.is_none_or(|(least, least_load)| {
            least_load * u64::from(dests.get(id).weight) > load * u64::from(dests.get(least).weight)
        });
        if better {
            best = Some((id, load));
        }
    }
    best.map(|(id, _)| id)
}

/// The next available destination after the last one, wrapping once past the head.
fn rr(last: &mut Option<DestId>, list: &[DestId], dests: &Dests) -> Option<DestId> {
    let after = last
        .and_then(|id| list.iter().position(|d| *d == id))
        .map_or(0, |at| at + 1);
    let picked = list[after..]
        .iter()
        .chain(&list[..after])
        .copied()
        .find(|id| dests.get(*id).usable())?;
    *last = Some(picked);
    Some(picked)
}

const fn gcd(mut a: i64, mut b: i64) -> i64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Wrr {
    fn changed(&mut self, list: &[DestId], dests: &Dests) {
        let weights = || list.iter().map(|id| i64::from(dests.get(*id).weight));
        self.current = None;
        self.step = weights().filter(|w| *w > 0).fold(0, gcd).max(1);
        self.max_weight = weights().max().unwrap_or(0) - (self.step - 1);
        if self.current_weight > self.max_weight || self.current_weight == 0 {
            self.current_weight = self.max_weight;
        } else if self.step > 1 {
            self.current_weight = self.current_weight / self.step * self.step + 1;
        }
    }

    /// Passes over the list with a falling required weight, from after the last choice, until every
    /// destination was tried with a required weight that any usable one meets.
    fn pick(&mut self, list: &[DestId], dests: &Dests) -> Option<DestId> {
        if self.max_weight == 0 {
            return None;
        }
        let start = self
            .current
            .and_then(|id| list.iter().position(|d| *d == id));
        let mut next = start.map_or(0, |at| at + 1);
        let (mut last_pass, mut restarted, mut stop) = (false, false, None);
        loop {
            while let Some(&id) = list.get(next) {
                if i64::from(dests.get(id).weight) >= self.current_weight {
                    self.current = Some(id);
                    return Some(id);
                }
                if stop == Some(next) {
                    self.current = Some(id);
                    return None;
                }
                next += 1;
            }
            self.current_weight -= self.step;
            if self.current_weight <= 0 {
                self.current_weight = self.max_weight;
                if last_pass || start.is_none() {
                    self.current = None;
                    return None;
                }
                restarted = true;
            }
            last_pass = self.current_weight <= self.step;
            if last_pass && restarted && start.is_some() {
                stop = start;
            }
            next = 0;
        }
    }
}
