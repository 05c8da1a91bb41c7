//! The node a packet run is about: sysctls, services, NAT. Drawn at random ("swarm style": every feature is on or off in
//! a whole run) or written by a person.

use anyhow::{Result, bail};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Source NAT on the way to the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Masquerade {
    /// None: pods see the client's address.
    #[default]
    Off,
    /// `-j MASQUERADE`.
    Plain,
    /// `-j MASQUERADE --random-fully`, as kube-proxy has it.
    RandomFully,
}

/// The configuration of a packet run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PacketConfig {
    /// `net.ipv4.vs.conn_reuse_mode`.
    pub conn_reuse_mode: u8,
    /// `net.ipv4.vs.expire_nodest_conn`.
    pub expire_nodest_conn: bool,
    /// `net.ipv4.vs.expire_quiescent_template`.
    pub expire_quiescent_template: bool,
    /// `net.ipv4.vs.conntrack`.
    pub conntrack: bool,
    /// `net.ipv4.vs.sloppy_tcp`.
    pub sloppy_tcp: bool,
    /// `net.ipv4.vs.secure_tcp`.
    pub secure_tcp: u8,
    /// Scheduler, as `ipvsadm -s` takes it.
    pub scheduler: String,
    /// Scheduler flags, as `ipvsadm -b` takes them (`sh-port`, `mh-fallback`, ...).
    pub scheduler_flags: Option<String>,
    /// Persistence timeout in seconds (`ipvsadm -p`).
    pub persistence: Option<u32>,
    /// A second virtual service with the same pods.
    pub second_service: bool,
    /// A UDP service beside the TCP one.
    pub udp: bool,
    /// Destinations get weights 0 to 3 instead of 0 and 1.
    pub weights: bool,
    /// `ipvsadm --set TCP TCPFIN UDP`, in seconds.
    pub timeouts: Option<[u32; 3]>,
    /// Source NAT towards the pods.
    pub masquerade: Masquerade,
    /// `net.netfilter.nf_conntrack_tcp_loose`.
    pub tcp_loose: bool,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal`.
    pub be_liberal: bool,
    /// `net.netfilter.nf_conntrack_max`, when it shall be small.
    pub conntrack_max: Option<u32>,
    /// Have conntrack track everything, as kube-proxy's rules do.
    pub track: bool,
    /// SYNs carry TCP options (window scaling among them).
    pub tcp_options: bool,
    /// How often, in a hundred steps, something impolite happens.
    pub disturbance: u8,
    /// How many client tuples talk: eight, or a multiple of it.
    pub tuples: u16,
    /// Sysctls and timeouts change while connections live.
    pub retuning: bool,
    /// Services are deleted and come back, and get other schedulers or another persistence (without scheduler flags).
    pub rebuilding: bool,
}

impl Default for PacketConfig {
    /// What kube-proxy sets on a current kernel.
    fn default() -> Self {
        Self {
            conn_reuse_mode: 1,
            expire_nodest_conn: true,
            expire_quiescent_template: true,
            conntrack: true,
            sloppy_tcp: false,
            secure_tcp: 0,
            scheduler: "rr".to_owned(),
            scheduler_flags: None,
            persistence: None,
            second_service: false,
            udp: false,
            weights: false,
            timeouts: None,
            masquerade: Masquerade::Off,
            tcp_loose: true,
            be_liberal: false,
            conntrack_max: None,
            track: true,
            tcp_options: false,
            disturbance: 25,
            tuples: 8,
            retuning: false,
            rebuilding: false,
        }
    }
}

/// The schedulers of `ipvsadm -s`; the first eight are drawn.
pub const SCHEDULERS: [&str; 11] = [
    "rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "mh", "dh", "ovf", "fo",
];

impl PacketConfig {
    /// Draws a configuration: the common switches evenly, each rarer feature with a small chance of its own.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let scheduler = SCHEDULERS[rng.random_range(0..8)];
        let flags: &[&str] = match scheduler {
            "sh" => &["sh-port", "sh-fallback", "sh-port,sh-fallback"],
            "mh" => &["mh-port", "mh-fallback", "mh-port,mh-fallback"],
            _ => &[],
        };
        let scheduler_flags = (!flags.is_empty() && rng.random_bool(0.6))
            .then(|| flags[rng.random_range(0..flags.len())].to_owned());
        let config = Self {
            conn_reuse_mode: *pick(rng, &[0, 0, 1, 1, 1, 2, 3]),
            expire_nodest_conn: rng.random(),
            expire_quiescent_template: rng.random(),
            conntrack: rng.random_bool(0.75),
            sloppy_tcp: rng.random_bool(0.15),
            secure_tcp: if rng.random_bool(0.1) { 3 } else { 0 },
            scheduler: scheduler.to_owned(),
            scheduler_flags,
            persistence: rng.random_bool(0.25).then(|| *pick(rng, &[20, 90, 300])),
            second_service: rng.random_bool(0.25),
            udp: rng.random_bool(0.15),
            weights: matches!(scheduler, "wrr" | "wlc" | "sed" | "nq" | "sh" | "mh")
                || rng.random_bool(0.3),
            timeouts: rng.random_bool(0.1).then_some([200, 40, 100]),
            masquerade: *pick(
                rng,
                &[
                    Masquerade::Off,
                    Masquerade::Off,
                    Masquerade::Off,
                    Masquerade::Plain,
                    Masquerade::RandomFully,
                ],
            ),
            tcp_loose: rng.random_bool(0.8),
            be_liberal: rng.random_bool(0.2),
            conntrack_max: rng.random_bool(0.1).then_some(4),
            track: rng.random_bool(0.95),
            tcp_options: rng.random_bool(0.3),
            disturbance: *pick(rng, &[5, 25, 25, 45]),
            tuples: *pick(rng, &[8, 8, 8, 8, 8, 16, 32]),
            retuning: rng.random_bool(0.3),
            rebuilding: rng.random_bool(0.2),
        };
        // The listing of the rules does not show flags: they cannot change in a run.
        let scheduler_flags = config.scheduler_flags.filter(|_| !config.rebuilding);
        Self {
            scheduler_flags,
            ..config
        }
    }

    /// Refuses values the kernel would refuse, in words.
    pub fn check(&self) -> Result<()> {
        if !SCHEDULERS.contains(&self.scheduler.as_str()) {
            bail!(
                "no scheduler `{}`: one of {}",
                self.scheduler,
                SCHEDULERS.join(" ")
            );
        }
        if self.conn_reuse_mode > 3 {
            bail!(
                "conn_reuse_mode is 0, 1, 2 or 3, not {}",
                self.conn_reuse_mode
            );
        }
        if !(8..=64).contains(&self.tuples) || !self.tuples.is_multiple_of(8) {
            bail!("tuples is 8, 16, ... or 64, not {}", self.tuples);
        }
        if self.rebuilding && self.scheduler_flags.is_some() {
            bail!("rebuilding goes without scheduler_flags: no listing would show the change");
        }
        if self.disturbance > 100 {
            bail!("disturbance is a percentage, not {}", self.disturbance);
        }
        Ok(())
    }

    /// The scheduler flags in the order in which `ipvsadm -Ln` shows them.
    pub fn shown_flags(&self) -> Option<String> {
        let mut flags: Vec<_> = self.scheduler_flags.as_deref()?.split(',').collect();
        flags.sort_unstable(); // sh-fallback before sh-port: by bit, which happens to be by name
        Some(flags.join(","))
    }

    /// The part of a capture's name that says how it was configured.
    pub fn name(&self, seed: u64) -> String {
        let mut name = format!(
            "mode{}-expire{}-{}-ct{}-seed{seed}",
            self.conn_reuse_mode,
            u8::from(self.expire_nodest_conn),
            self.scheduler,
            u8::from(self.conntrack),
        );
        let mut feature = |on: bool, text: &str| {
            if on {
                name.push('-');
                name.push_str(text);
            }
        };
        if let Some(flags) = &self.scheduler_flags {
            feature(
                true,
                &flags
                    .replace("sh-", "")
                    .replace("mh-", "")
                    .replace(',', "+"),
            );
        }
        let quiescent = if self.expire_quiescent_template {
            "quiescent1"
        } else {
            "quiescent0"
        };
        feature(self.persistence.is_some(), "persistent");
        feature(self.persistence.is_some(), quiescent);
        feature(self.sloppy_tcp, "sloppy");
        feature(self.secure_tcp > 0, "secure");
        feature(self.second_service, "two");
        feature(self.udp, "udp");
        feature(
            self.weights && matches!(self.scheduler.as_str(), "rr" | "lc"),
            "weights",
        );
        feature(self.timeouts.is_some(), "timeouts");
        feature(self.masquerade == Masquerade::Plain, "masquerade");
        feature(self.masquerade == Masquerade::RandomFully, "random");
        feature(!self.tcp_loose, "strict");
        feature(self.be_liberal, "liberal");
        feature(self.conntrack_max.is_some(), "full");
        feature(!self.track, "untracked");
        feature(self.tcp_options, "options");
        feature(self.tuples > 8, "crowd");
        feature(self.retuning, "retuned");
        feature(self.rebuilding, "rebuilt");
        name
    }
}

/// An element of a slice, each with the same chance.
pub fn pick<'a, T>(rng: &mut impl Rng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}
