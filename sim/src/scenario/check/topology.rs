//! Checks of where clients stand, and of what is between them and the node.

use ipvs_model::segment::Proto;

use super::{contradiction, report};
use crate::diag::Diag;
use crate::scenario::field::Cx;
use crate::scenario::{
    Client, DataPlane, LoadBalancer, Location, ReturnPath, Rollout, Scenario, ServiceKind,
    TrafficPolicy,
};

/// Whether a client is one of the service's own pods: it shares that pod's address on purpose.
pub(super) fn is_own_pod(scenario: &Scenario, client: &Client) -> bool {
    let first = scenario.server.old_address.to_bits();
    let pods = first..first.saturating_add(scenario.rollout.old_pods());
    client.location == Location::Pod
        && client.count == 1
        && pods.contains(&client.address.to_bits())
}

pub(super) fn check(scenario: &Scenario, cx: &mut Cx) {
    hairpin(scenario, cx);
    balancer(scenario, cx);
    if scenario.service.traffic_policy == TrafficPolicy::Local
        && scenario.server.nodes == 1
        && let Some(place) = cx.place("service.traffic_policy")
    {
        let title =
            "`service.traffic_policy` has no effect: all pods run on the node that balances";
        let diag = Diag::warning("no-effect", title).at(place, "");
        cx.diags
            .push(diag.help("say on how many nodes they run: server.nodes"));
    }
}

fn hairpin(scenario: &Scenario, cx: &mut Cx) {
    let stays = matches!(scenario.rollout, Rollout::None(_));
    for (index, client) in scenario.client.iter().enumerate() {
        if is_own_pod(scenario, client) && !stays {
            contradiction(
                cx,
                format!(
                    "`client.{index}.address` is a pod that the rollout replaces: the client would die with it"
                ),
                "write [rollout.none], or another address",
                &[(&format!("client.{index}.address"), String::new())],
            );
        }
    }
}

fn balancer(scenario: &Scenario, cx: &mut Cx) {
    let path = "load_balancer";
    let mut wrong = |title: &str, help: &str, other: &str| {
        let labels = [(path, String::new()), (other, String::new())];
        contradiction(cx, title.to_owned(), help, &labels);
    };
    let pool = match &scenario.load_balancer {
        LoadBalancer::None => return,
        LoadBalancer::Keep(_) => None,
        LoadBalancer::Replace(pool) => Some(pool),
    };
    if matches!(
        scenario.node.mode,
        DataPlane::CiliumSocket | DataPlane::Headless
    ) {
        wrong(
            "`load_balancer` stands before a node, and in this `node.mode` clients connect to pods",
            "leave it out, or let the node balance",
            "node.mode",
        );
    }
    if scenario.service.kind == ServiceKind::ClusterIp {
        wrong(
            "`load_balancer` cannot reach a cluster address",
            "write service.kind = \"node-port\"",
            "service.kind",
        );
    }
    if scenario.network.return_path != ReturnPath::Node {
        wrong(
            "`load_balancer` must see the answers, and `network.return_path` leads past it",
            "leave one of them out",
            "network.return_path",
        );
    }
    if pool.is_some() && scenario.service.protocol == Proto::Udp {
        wrong(
            "a `load_balancer` with full NAT for UDP is not modelled: nothing tells when a flow ends",
            "write { keep = { } }, or protocol = \"tcp\"",
            "service.protocol",
        );
    }
    let Some(pool) = pool else { return };
    if pool
        .source_address
        .to_bits()
        .checked_add(pool.sources - 1)
        .is_none()
    {
        let title = "`load_balancer.replace.sources`: so many addresses do not exist".to_owned();
        let diag = Diag::error("out-of-range", title).help("start at a lower address");
        report(
            cx,
            diag,
            &[("load_balancer.replace.sources", String::new())],
        );
    }
}
