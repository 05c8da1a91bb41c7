//! What a capture says of its node, as the model wants it; and rules as they were applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipvs_model::conntrack::SourceNat;
use ipvs_model::ipvs::sched::{Flags, Kind};
use ipvs_model::ipvs::service::{Persistence, ServiceKey};
use ipvs_model::kernel::{Behaviours, Kernel};
use ipvs_model::node::{Balancer, NodeConfig};
use ipvs_model::segment::Tuple;
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Span};

use crate::capture::{Body, Capture, Files, ReadError, RuleCommand, ServiceArgs, ServiceId, Stamp};

/// The tick of a node whose manifest does not say: Debian's and Ubuntu's choice for most of their kernels.
const HZ_ASSUMED: u32 = 250;

/// The kernel of a node that does not say.
const KERNEL_ASSUMED: &str = "4.19.91";

/// How the model is set up for a capture.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub behaviours: Behaviours,
    pub sysctls: Sysctls,
    pub hz: u32,
    /// The time of the first event: the model's time 0.
    pub origin: Stamp,
    /// The node's uptime at the origin, if recorded.
    pub uptime: Option<Span>,
    /// By how much a listed time may be below the model's, in milliseconds.
    pub tolerance_ms: u64,
    /// Something on the node tracks connections.
    pub tracking: bool,
    /// The node has a nat table, if only an empty one: source ports that collide are changed.
    pub nat: bool,
    /// Count which cells of the tables are exercised.
    pub coverage: bool,
    /// The tables are listed right after every packet, so what a packet did is seen and not guessed.
    pub exact: bool,
    /// The capture missed packets.
    pub lossy: bool,
    /// When a service's rules changed between two listings: nobody saw when.
    pub doubtful: Arc<Vec<RuleGap>>,
}

/// Between two listings that differ for a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuleGap {
    from: Stamp,
    to: Stamp,
    service: ServiceKey,
}

impl Setup {
    pub(super) fn of(capture: &Capture, origin: Stamp) -> Result<Self, ReadError> {
        let manifest = &capture.manifest;
        let Some(kernel) = &manifest.kernel else {
            return Ok(Self {
                origin,
                ..Self::assumed()
            });
        };
        let behaviours = kernel.behaviours();
        let file = Arc::from("manifest.toml");
        let mut sysctls = manifest.sysctls(&file)?;
        let exact = manifest.transit.is_some();
        if exact {
            // Which entry a full table sacrifices depends on the node's hash seed: the next listing tells, not the model.
            sysctls.ct.buckets = u32::MAX;
        }
        Ok(Self {
            behaviours,
            sysctls,
            hz: manifest.hz.unwrap_or(HZ_ASSUMED),
            origin,
            uptime: manifest
                .boot
                .filter(|boot| *boot < origin)
                .map(|boot| origin.since(boot)),
            tolerance_ms: (manifest.snapshot_tolerance_s * 1_000.0) as u64,
            nat: true,
            doubtful: Arc::new(rule_gaps(capture)?),
            coverage: false,
            exact,
            lossy: false,
            tracking: sysctls.vs.conntrack || capture.files.conntrack.is_some(),
        })
    }

    /// A node of the founding case's time that says nothing of itself: a 4.19 kernel with what kube-proxy 1.14 set.
    pub(super) fn assumed() -> Self {
        let kernel = KERNEL_ASSUMED.parse::<Kernel>();
        let behaviours = kernel.map(|kernel| kernel.behaviours()).unwrap_or_default();
        let mut sysctls = Sysctls::of(behaviours);
        sysctls.vs.conntrack = true;
        sysctls.vs.conn_reuse_mode = 0;
        sysctls.vs.expire_nodest_conn = true;
        sysctls.vs.expire_quiescent_template = true;
        Self {
            behaviours,
            sysctls,
            hz: HZ_ASSUMED,
            origin: Stamp(0),
            uptime: None,
            tolerance_ms: 1_100,
            tracking: true,
            nat: true,
            doubtful: Arc::default(),
            coverage: false,
            exact: false,
            lossy: false,
        }
    }

    /// What source NAT does without a rule that matches.
    pub(super) const fn null_binding(&self) -> SourceNat {
        if self.nat {
            SourceNat::NullBinding
        } else {
            SourceNat::Inactive
        }
    }

    pub(super) const fn node_config(&self, clock: Clock) -> NodeConfig {
        NodeConfig {
            kernel: self.behaviours,
            clock,
            sysctls: self.sysctls,
            balancer: Balancer::Ipvs,
            source_nat: self.null_binding(),
            tracking: self.tracking,
        }
    }

    /// By how much a listing may be late: what the tolerance leaves after rounding to seconds.
    pub(super) const fn slack(&self) -> Span {
        Span::from_millis(self.tolerance_ms.saturating_sub(1_000))
    }

    /// Whether the rules that a packet met are not known: they changed between the listing before and the one
    /// after.
    pub(super) fn rules_in_doubt(&self, at: Stamp, tuple: &Tuple) -> bool {
        self.doubtful.iter().any(|gap| {
            let service = gap.service;
            gap.from <= at
                && at <= gap.to
                && service.proto == tuple.proto
                && service.addr == tuple.dst
        })
    }

    /// Whether a listed number of whole seconds agrees with the model's ticks.
    pub(super) const fn time_agrees(&self, left_ticks: u64, listed_s: u64) -> bool {
        let left_ms = left_ticks.saturating_mul(1_000) / self.hz as u64;
        let listed_ms = listed_s.saturating_mul(1_000);
        let slack_ms = self.tolerance_ms.saturating_sub(1_000);
        listed_ms <= left_ms.saturating_add(slack_ms)
            && listed_ms.saturating_add(self.tolerance_ms) >= left_ms
    }
}

pub(super) const fn key_of(id: ServiceId) -> ServiceKey {
    ServiceKey {
        proto: id.proto,
        addr: id.at,
    }
}

/// A service's arguments as the model wants them; `None` if its scheduler is not modelled.
pub(super) fn service_of(args: &ServiceArgs) -> Option<(Kind, Flags, Option<Persistence>)> {
    let kind = args.scheduler.parse().ok()?;
    let has = |names: &[&str]| args.flags.iter().any(|flag| names.contains(&flag.as_str()));
    let flags = Flags {
        fallback: has(&["sh-fallback", "mh-fallback", "flag-1"]),
        port: has(&["sh-port", "mh-port", "flag-2"]),
    };
    let persistence = args.persistent_s.map(|timeout_s| Persistence {
        timeout_s,
        netmask: args.netmask.map_or(u32::MAX, |mask| mask.to_bits()),
    });
    Some((kind, flags, persistence))
}

/// Where listings or dumps of rules differ from the ones before. Commands are dated and leave no gap.
fn rule_gaps(capture: &Capture) -> Result<Vec<RuleGap>, ReadError> {
    let rules_only = Capture {
        files: Files {
            rules: capture.files.rules.clone(),
            ..Files::default()
        },
        ..capture.clone()
    };
    let mut events = rules_only.events()?;
    let mut gaps = Vec::new();
    let mut before = None::<(Stamp, BTreeMap<ServiceKey, String>)>;
    while let Some(event) = events.next_event()? {
        let Body::Rules(block) = &event.body else {
            continue;
        };
        if !block.commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut services = BTreeMap::new();
        for service in block.listing.iter().flatten() {
            let dests = service.dests.iter().map(|dest| (dest.real, dest.weight));
            let text = format!("{:?} {:?}", service.service, dests.collect::<Vec<_>>());
            services.insert(key_of(service.service.id), text);
        }
        for command in block.dump.iter().flatten() {
            if let RuleCommand::AddService(args) = command {
                services.entry(key_of(args.id)).or_insert_with(String::new);
            }
            if let RuleCommand::AddDest(id, dest) = command {
                let text = services.entry(key_of(*id)).or_insert_with(String::new);
                *text += &format!("{dest:?}");
            }
        }
        if block.listing.is_none() && block.dump.is_none() {
            continue;
        }
        if let Some((from, earlier)) = &before {
            let keys = services
                .keys()
                .chain(earlier.keys())
                .collect::<BTreeSet<_>>();
            for key in keys {
                if services.get(key) != earlier.get(key) {
                    gaps.push(RuleGap {
                        from: *from,
                        to: event.at,
                        service: *key,
                    });
                }
            }
        }
        before = Some((event.at, services));
    }
    Ok(gaps)
}
