//! What a setting costs beside failures, measured in its runs: how unevenly the load falls on the real servers, how many
//! ports a client holds, how large the node's tables grow.
//!
//! Leaves out: processor time and memory of the node.

use serde::Serialize;

use crate::engine::trace::RunTrace;

/// The measures of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunSide {
    /// SYNs that the busiest real server in service got, summed over samples, ...
    busiest: u64,
    /// ... and those that all in service got, times 1,000 over their number: what an even share would have been.
    even_milli: u64,
    /// The most ports that one client held.
    pub ports_max: u64,
    /// The ports of that client.
    pub ports_of: u64,
    /// The most IPVS entries.
    pub ipvs_max: u64,
    /// The most conntrack entries.
    pub conntrack_max: u64,
}

impl RunSide {
    /// The measures of an observed run. Without samples there are none.
    pub fn of(trace: &RunTrace) -> Self {
        let mut side = Self::default();
        for moment in trace.servers.chunk_by(|a, b| a.at == b.at) {
            // In service: listed with a weight. One alone cannot be uneven.
            let serving = moment.iter().filter(|s| s.weight.is_some_and(|w| w > 0));
            let (mut count, mut sum, mut most) = (0_u64, 0_u64, 0_u64);
            for server in serving {
                let syns = u64::from(server.syns);
                count += 1;
                sum += syns;
                most = most.max(syns);
            }
            if count > 1 {
                side.busiest += most;
                side.even_milli += sum * 1_000 / count;
            }
        }
        for gauges in &trace.gauges {
            if u64::from(gauges.ports_held) > side.ports_max {
                side.ports_max = u64::from(gauges.ports_held);
                side.ports_of = u64::from(gauges.ports_of);
            }
            side.ipvs_max = side.ipvs_max.max(u64::from(gauges.ipvs_entries));
            side.conntrack_max = side.conntrack_max.max(u64::from(gauges.conntrack_entries));
        }
        side
    }
}

/// The measures of several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Side {
    /// How many times its even share of connections the busiest real server in service gets, in thousandths: 1,000 is even.
    /// None if there was never more than one.
    pub skew_milli: Option<u64>,
    /// The most ports that one client held at a moment, in any run.
    pub ports_max: u64,
    /// The ports of that client.
    pub ports_of: u64,
    /// The most IPVS entries at a moment, in any run.
    pub ipvs_entries_max: u64,
    /// The most conntrack entries at a moment, in any run.
    pub conntrack_entries_max: u64,
}

impl Side {
    /// The measures of runs.
    pub fn of<'a>(runs: impl Iterator<Item = &'a RunSide>) -> Self {
        let mut all = Self::default();
        let (mut busiest, mut even) = (0_u64, 0_u64);
        for run in runs {
            busiest += run.busiest;
            even += run.even_milli;
            if run.ports_max > all.ports_max {
                (all.ports_max, all.ports_of) = (run.ports_max, run.ports_of);
            }
            all.ipvs_entries_max = all.ipvs_entries_max.max(run.ipvs_max);
            all.conntrack_entries_max = all.conntrack_entries_max.max(run.conntrack_max);
        }
        all.skew_milli = (even > 0).then(|| busiest.saturating_mul(1_000_000) / even);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::trace::{Gauges, ServerSample};
    use ipvs_model::segment::Endpoint;
    use ipvs_model::time::Instant;

    fn sample(at: u64, last: u8, weight: Option<u32>, syns: u32) -> ServerSample {
        ServerSample {
            at: Instant::from_secs(at),
            server: Endpoint::new([10, 0, 0, last].into(), 80),
            weight,
            active: 0,
            inactive: 0,
            syns,
        }
    }

    #[test]
    fn skew_counts_real_servers_in_service_only() {
        let trace = RunTrace {
            servers: vec![
                sample(5, 1, Some(1), 100),
                sample(5, 2, Some(1), 100),
                // The drained one still gets most: that is failure, not skew.
                sample(10, 1, Some(0), 500),
                sample(10, 2, Some(1), 30),
                sample(10, 3, Some(1), 10),
                // Alone in service.
                sample(15, 1, None, 5),
                sample(15, 3, Some(1), 77),
            ],
            gauges: vec![
                Gauges {
                    at: Instant::from_secs(5),
                    ipvs_entries: 7,
                    conntrack_entries: 9,
                    ports_held: 3,
                    ports_of: 28_232,
                },
                Gauges {
                    at: Instant::from_secs(10),
                    ipvs_entries: 5,
                    conntrack_entries: 12,
                    ports_held: 2,
                    ports_of: 64_000,
                },
            ],
            ..RunTrace::default()
        };
        let side = Side::of([RunSide::of(&trace)].iter());
        // (100 + 30) of (100 + 20).
        assert_eq!(side.skew_milli, Some(1_083));
        assert_eq!((side.ports_max, side.ports_of), (3, 28_232));
        assert_eq!((side.ipvs_entries_max, side.conntrack_entries_max), (7, 12));
        assert_eq!(Side::of([].iter()).skew_milli, None);
    }
}
