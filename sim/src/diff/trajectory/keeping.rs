//! Which rule, settings and kernels leave a reused port with its old, drained real server: the founding case in words.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipvs_model::ipvs::Listed;
use ipvs_model::ipvs::sched::{Flags as SchedFlags, Kind};
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::State;
use ipvs_model::node::{Node, Rule};
use ipvs_model::segment::{Endpoint, Flags, Segment, Tuple};
use ipvs_model::time::{Clock, Instant, Span};

use crate::diff::ahead::Seen;
use crate::diff::drawn::Drawn;
use crate::diff::setup::Setup;

/// The model's rule that leads a SYN on a finished connection's entry to its old, drained real server.
pub(super) fn keeping_rule(
    tuple: Tuple,
    dest: Endpoint,
    listed: &BTreeSet<Ipv4Addr>,
    setup: &Setup,
) -> String {
    let rule = syn_on_time_wait(tuple, dest, listed, setup);
    format!(
        "{rule:?}: {}. {}",
        rule.describe(),
        settings_that_keep(tuple, dest, true)
    )
}

/// Runs a SYN into a TIME_WAIT entry of a drained real server.
fn syn_on_time_wait(
    tuple: Tuple,
    dest: Endpoint,
    listed: &BTreeSet<Ipv4Addr>,
    setup: &Setup,
) -> Rule {
    let clock = Clock::new(
        setup.hz,
        setup.behaviours.timer_era(),
        Span::from_secs(86_400),
    );
    let mut node = Node::new(setup.node_config(clock));
    let key = ServiceKey {
        proto: tuple.proto,
        addr: tuple.dst,
    };
    node.add_local(tuple.dst.ip);
    let _ = node
        .ipvs
        .add_service(key, Kind::Rr, SchedFlags::default(), None);
    let _ = node.ipvs.add_dest(key, dest, 0);
    node.ipvs.adopt(
        Instant::ZERO,
        &Listed {
            proto: tuple.proto,
            client: tuple.src,
            virt: tuple.dst,
            dest,
            state: State::Tw,
            assured: false,
            left_ticks: clock.ticks(60),
        },
    );
    for ip in listed {
        let _ = node.ipvs.add_dest(key, Endpoint::new(*ip, dest.port), 1);
    }
    let syn = Segment::new(tuple, Flags::SYN);
    let mut drawn = Drawn::of(Seen::Nothing);
    node.packet(Instant::from_millis(1), &syn, &mut drawn).rule
}

/// Under which settings and kernels a SYN on a finished connection's entry of a drained real server stays with it.
pub(super) fn settings_that_keep(tuple: Tuple, dest: Endpoint, kept: bool) -> String {
    use ipvs_model::ipvs::Rule as IpvsRule;
    use ipvs_model::kernel::Gate;
    if !kept {
        return String::new();
    }
    let mut words = Vec::new();
    for (mode, any_mode) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut setup = Setup::assumed();
        setup.behaviours = setup.behaviours.with(Gate::WeightZeroAnyMode, any_mode);
        setup.sysctls.vs.conn_reuse_mode = mode;
        let others = BTreeSet::from([Ipv4Addr::UNSPECIFIED]);
        let rule = syn_on_time_wait(tuple, dest, &others, &setup);
        if rule == Rule::Ipvs(IpvsRule::SynKeptAtWeightZero) {
            let fix = if any_mode { "with" } else { "without" };
            words.push(format!(
                "conn_reuse_mode={mode} on a kernel {fix} c95c07836fa4"
            ));
        }
    }
    format!(
        "With expire_nodest_conn=1 a drained real server is kept by {} only",
        words.join(" or ")
    )
}
