//! What kube-proxy works with: the kernel's real servers, its configuration, its delays and its log.

use core::fmt;

use rand::Rng;

use crate::kube::server::ProxyRule;
use crate::kube::version::ProxyBehaviours;
use crate::segment::Endpoint;
use crate::time::{Instant, Span};

/// A virtual service: an index, in the order in which services were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef(pub u16);

/// A real server as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// The pod's address and port.
    pub addr: Endpoint,
    /// Its weight; 0 gets no new connections.
    pub weight: u32,
    /// ActiveConn.
    pub active: u32,
    /// InActConn.
    pub inactive: u32,
}

/// The kernel's side: the real servers of each virtual service. Each call is one netlink request.
pub trait RealServers {
    /// All real servers of a service, those at weight 0 included.
    fn list(&self, service: ServiceRef) -> Vec<RealServer>;
    /// Adds a real server. False if it is there already (EEXIST) or the service is not (ENOENT).
    fn add(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool;
    /// Sets a weight. False if the real server is not there (ENOENT).
    fn set_weight(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool;
    /// Deletes a real server. False if it is not there (ENOENT).
    fn delete(&mut self, service: ServiceRef, addr: Endpoint) -> bool;
}

/// A delay that the caller draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyLatency {
    /// From the start until Services and EndpointSlices have been received: the first sync.
    Received,
    /// From the turn of one of our services to that of the next (the other services of the cluster lie between;
    /// also before the first one).
    BeforeService,
    /// After one netlink call that changes something.
    Call,
    /// From the last service to the end of the sync: iptables and ipset.
    AfterServices,
}

/// What kube-proxy did to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyAction {
    /// Added it with weight 1.
    Added,
    /// Set its weight.
    WeightSet(u32),
    /// Deleted it.
    Deleted,
    /// Put it into the graceful list.
    Listed,
    /// Took it out of the graceful list.
    Unlisted,
    /// Looked at it and left it as it is.
    Kept,
}

/// One entry of kube-proxy's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyLog {
    /// When.
    pub at: Instant,
    /// On which virtual service.
    pub service: ServiceRef,
    /// On which real server.
    pub server: Endpoint,
    /// What.
    pub action: ProxyAction,
    /// Why.
    pub rule: ProxyRule,
    /// False if the kernel refused; then the steps that would have followed are left out.
    pub accepted: bool,
}

impl fmt::Display for ProxyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added => f.write_str("added"),
            Self::WeightSet(weight) => write!(f, "weight {weight}"),
            Self::Deleted => f.write_str("deleted"),
            Self::Listed => f.write_str("listed for graceful deletion"),
            Self::Unlisted => f.write_str("off the graceful list"),
            Self::Kept => f.write_str("kept"),
        }
    }
}

impl fmt::Display for ProxyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = if self.accepted { "" } else { ", refused" };
        let ProxyLog { server, action, .. } = self;
        write!(f, "{server} {action}{refused} ({})", self.rule.text())
    }
}

/// The configuration of one kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// What this release does.
    pub behaviours: ProxyBehaviours,
    /// `ipvs.minSyncPeriod` (0: every change is synced at once).
    pub min_sync: Span,
    /// `ipvs.syncPeriod` (30 s).
    pub sync_period: Span,
    /// The interval of the graceful list's check (one minute; no release can change it).
    pub check_interval: Span,
}

impl ProxyConfig {
    /// The defaults of a release.
    pub const fn of(behaviours: ProxyBehaviours) -> Self {
        Self {
            behaviours,
            min_sync: Span::ZERO,
            sync_period: Span::from_secs(30),
            check_interval: Span::from_secs(60),
        }
    }
}

/// What a poll works with: the kernel, the caller's randomness and delays, and the log to append to.
pub struct ProxyIo<'a> {
    /// The node's IPVS.
    pub ipvs: &'a mut dyn RealServers,
    /// Decides the orders that Go's maps leave to chance.
    pub rng: &'a mut dyn Rng,
    /// Draws the delays.
    pub draw: &'a mut dyn FnMut(ProxyLatency) -> Span,
    /// Receives what was done.
    pub log: &'a mut Vec<ProxyLog>,
}
