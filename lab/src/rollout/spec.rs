//! What a rollout is made of. One address, one service, one port range; everything else can be set.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::Masquerade;

/// When connections start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// At constant spacing.
    Const,
    /// As a Poisson process.
    Poisson,
}

/// Who closes a connection first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClosesFirst {
    /// The client: it keeps the TIME_WAIT.
    Client,
    /// The server: the client's port is free at once.
    Server,
}

/// What becomes of a packet to an old pod that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadEnd {
    /// The node has an `unreachable` route: ICMP, as with Calico.
    Unreachable,
    /// The node has a `blackhole` route. IPVS finds no way and answers with ICMP all the same.
    Blackhole,
    /// Packets leave the node and nothing answers, as in a network that drops them.
    Silent,
    /// The pod's network namespace is gone from the bridge: nobody answers ARP.
    Gone,
    /// The process is gone and its namespace lives: RST.
    Reset,
}

impl DeadEnd {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable route",
            Self::Blackhole => "blackhole route",
            Self::Silent => "nothing answers",
            Self::Gone => "namespace deleted",
            Self::Reset => "process gone",
        }
    }
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutSpec {
    /// Seed of the arrivals.
    pub seed: u64,
    /// How long connections are started, in seconds.
    pub duration_s: f64,
    /// Connections a second.
    pub rate: f64,
    /// When they start.
    pub arrivals: Arrivals,
    /// `net.ipv4.ip_local_port_range` of the client.
    pub ports: [u16; 2],
    /// `net.ipv4.tcp_tw_reuse` of the client; the kernel's default if absent.
    pub tcp_tw_reuse: Option<u8>,
    /// The application gives up after this many seconds.
    pub app_timeout_s: f64,
    /// A connection that took longer than this to be established counts as slow.
    pub slow_s: f64,
    /// Who closes first.
    pub closes_first: ClosesFirst,
    /// `net.ipv4.vs.conn_reuse_mode`.
    pub conn_reuse_mode: u8,
    /// `net.ipv4.vs.expire_nodest_conn`.
    pub expire_nodest_conn: bool,
    /// `net.ipv4.vs.expire_quiescent_template`.
    pub expire_quiescent_template: bool,
    /// `net.ipv4.vs.conntrack`.
    pub conntrack: bool,
    /// Scheduler.
    pub scheduler: String,
    /// Persistence in seconds.
    pub persistence: Option<u32>,
    /// Source NAT towards the pods.
    pub masquerade: Masquerade,
    /// Pods before the rollout.
    pub old_pods: usize,
    /// Pods after it.
    pub new_pods: usize,
    /// When the endpoints change.
    pub rollout_at_s: f64,
    /// When the old pods die.
    pub death_at_s: f64,
    /// What their death looks like from the node.
    pub dead_end: DeadEnd,
    /// First check of kube-proxy's graceful termination.
    pub check_from_s: f64,
    /// Time between checks.
    pub check_every_s: f64,
}

impl Default for RolloutSpec {
    /// The founding case, scaled down to a thousand ports: 12 connections a second are what 339 are to 28232 ports.
    fn default() -> Self {
        Self {
            seed: 1,
            duration_s: 420.0,
            rate: 12.0,
            arrivals: Arrivals::Const,
            ports: [32768, 33767],
            tcp_tw_reuse: None,
            app_timeout_s: 5.0,
            slow_s: 0.5,
            closes_first: ClosesFirst::Server,
            conn_reuse_mode: 0,
            expire_nodest_conn: true,
            expire_quiescent_template: true,
            conntrack: true,
            scheduler: "rr".to_owned(),
            persistence: None,
            masquerade: Masquerade::Off,
            old_pods: 2,
            new_pods: 2,
            rollout_at_s: 150.0,
            death_at_s: 180.0,
            dead_end: DeadEnd::Unreachable,
            check_from_s: 210.0,
            check_every_s: 60.0,
        }
    }
}

impl RolloutSpec {
    /// Refuses what cannot be run, in words.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.rate > 0.0 && self.rate <= 2000.0,
            "rate must be in (0, 2000]"
        );
        ensure!(
            self.duration_s > 0.0 && self.duration_s <= 86_400.0,
            "duration_s must be in (0, 86400]"
        );
        ensure!(
            self.ports[0] <= self.ports[1] && self.ports[0] > 0,
            "ports: [first, last]"
        );
        ensure!(self.app_timeout_s > 0.0, "app_timeout_s must be positive");
        ensure!(
            self.check_every_s >= 1.0,
            "check_every_s must be at least 1"
        );
        ensure!(self.old_pods >= 1, "old_pods must be at least 1");
        ensure!(self.old_pods + self.new_pods <= 100, "at most 100 pods");
        Ok(())
    }
}
