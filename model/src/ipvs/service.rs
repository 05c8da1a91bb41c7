//! Virtual services and their destinations (real servers), in the kernel's list order, with the trash of deleted
//! destinations that entries still refer to.
//!
//! Faithful to: `ip_vs_ctl.c` `ip_vs_add_dest`, `ip_vs_edit_dest`, `__ip_vs_del_dest`, `ip_vs_trash_get_dest`,
//! `ip_vs_dest_trash_expire`, `ip_vs_bind_dest`, 3.13 to 6.19.
//! Leaves out: connection thresholds, forwarding by direct routing or tunnel, firewall-mark services, IPv6.

use super::sched::Scheduler;
use crate::kernel::{Behaviours, Gate};
use crate::segment::{Endpoint, Proto};
use crate::time::Jiffies;

/// Index of a destination; stable while the destination or any entry that refers to it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestId(pub u32);

/// A virtual service: protocol, address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Transport protocol.
    pub proto: Proto,
    /// Virtual address and port.
    pub addr: Endpoint,
}

/// A destination: a real server of one service. A pod behind two services is two destinations.
#[derive(Clone, Debug)]
pub struct Dest {
    /// Address of the real server.
    pub addr: Endpoint,
    /// The service it belongs or belonged to.
    pub service: ServiceKey,
    /// Weight; 0 means quiesced. Kept after deletion.
    pub weight: u32,
    /// The latest weight above 0, or the weight at addition (used by mh).
    pub last_weight: u32,
    /// Entries in an active state.
    pub active: u32,
    /// Entries in any other state.
    pub inactive: u32,
    /// Persistence templates.
    pub templates: u32,
    /// In the service's list. Entries of a destination that is not are blackholed or expired.
    pub available: bool,
    /// Since when the trash has seen it without entries.
    idle_since: Option<Jiffies>,
}

impl Dest {
    /// Whether a scheduler may choose it.
    pub const fn usable(&self) -> bool {
        self.weight > 0
    }

    /// The load that lc and wlc compare (`ip_vs_dest_conn_overhead`).
    pub const fn overhead(&self, kernel: Behaviours) -> u64 {
        let weighted = (self.active as u64) << 8;
        if kernel.has(Gate::OverheadTotal) {
            weighted + self.active as u64 + self.inactive as u64
        } else {
            weighted + self.inactive as u64
        }
    }

    const fn referenced(&self) -> bool {
        self.active + self.inactive + self.templates > 0
    }
}

/// Persistence of a service (sessionAffinity ClientIP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Lifetime of a template after the latest new connection, in seconds.
    pub timeout_s: u32,
    /// Netmask that groups clients; 255.255.255.255 for kube-proxy.
    pub netmask: u32,
}

impl Persistence {
    /// kube-proxy's: one client address a template.
    pub const fn per_client(timeout_s: u32) -> Self {
        Self {
            timeout_s,
            netmask: u32::MAX,
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Protocol, virtual address and port.
    pub key: ServiceKey,
    /// Persistence, if any.
    pub persistence: Option<Persistence>,
    /// The scheduler with its state.
    pub scheduler: Scheduler,
    /// Destinations, head of the kernel's list first: the newest is first.
    pub dests: Vec<DestId>,
}

/// Why an `ipvsadm` command was refused, as the kernel would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// EEXIST.
    Exists,
    /// ENOENT or ESRCH.
    NotFound,
}

impl core::fmt::Display for AdminError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Exists => "it exists already",
            Self::NotFound => "there is no such service or real server",
        })
    }
}

impl core::error::Error for AdminError {}

/// Every destination of a node, listed or in the trash.
#[derive(Clone, Debug, Default)]
pub struct Dests {
    slots: Vec<Dest>,
    free: Vec<u32>,
    /// Newest first, as the kernel's list.
    trash: Vec<DestId>,
}

impl Dests {
    /// The destination of an index.
    #[inline]
    pub fn get(&self, id: DestId) -> &Dest {
        &self.slots[id.0 as usize]
    }

    /// The destination of an index, to change.
    #[inline]
    pub fn get_mut(&mut self, id: DestId) -> &mut Dest {
        &mut self.slots[id.0 as usize]
    }

    /// Deleted destinations that are still kept.
    pub fn trash(&self) -> &[DestId] {
        &self.trash
    }

    /// A new destination, or the revived one from the trash: same address, same service. Its counters are as
    /// they are, so its old entries become valid again (trap 24).
    pub(super) fn create(&mut self, service: ServiceKey, addr: Endpoint, weight: u32) -> DestId {
        let revived = self.trash.iter().position(|id| {
            let dest = self.get(*id);
            dest.addr == addr && dest.service == service
        });
        if let Some(at) = revived {
            let id = self.trash.remove(at);
            let dest = self.get_mut(id);
            (dest.weight, dest.last_weight) = (weight, weight);
            dest.available = true;
            return id;
        }
        let dest = Dest {
            addr,
            service,
            weight,
            last_weight: weight,
            active: 0,
            inactive: 0,
            templates: 0,
            available: true,
            idle_since: None,
        };
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = dest;
                DestId(slot)
            }
            None => {
                self.slots.push(dest);
                DestId(self.slots.len() as u32 - 1)
            }
        }
    }

    pub(super) fn set_weight(&mut self, id: DestId, weight: u32) {
        let dest = self.get_mut(id);
        dest.weight = weight;
        if weight != 0 {
            dest.last_weight = weight;
        }
    }

    /// Moves a destination to the trash. Returns whether the trash was empty before: then its timer starts.
    pub(super) fn delete(&mut self, id: DestId) -> bool {
        let was_empty = self.trash.is_empty();
        let dest = self.get_mut(id);
        dest.available = false;
        dest.idle_since = None;
        self.trash.insert(0, id);
        was_empty
    }

    /// The trash timer's pass: frees what was seen idle at least `keep` ticks ago. Returns whether any is left.
    pub(super) fn sweep(&mut self, now: Jiffies, keep: u64) -> bool {
        let mut kept = Vec::with_capacity(self.trash.len());
        for id in core::mem::take(&mut self.trash) {
            let dest = self.get_mut(id);
            let free = if dest.referenced() {
                false
            } else if let Some(since) = dest.idle_since {
                now.0 >= since.0 + keep
            } else {
                dest.idle_since = Some(now);
                false
            };
            if free {
                self.free.push(id.0);
            } else {
                kept.push(id);
            }
        }
        self.trash = kept;
        !self.trash.is_empty()
    }
}
