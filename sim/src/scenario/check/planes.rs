//! Checks of what balances: fields that belong to one data plane and say nothing in another.

use super::contradiction;
use crate::diag::Diag;
use crate::scenario::field::{Cx, Field};
use crate::scenario::{Cilium, DataPlane, Masquerade, Scenario};

pub(super) fn check(scenario: &Scenario, cx: &mut Cx) {
    let mode = scenario.node.mode;
    let name = mode.encode().unwrap_or_default();
    let ipvs = "leave it out, or write mode = \"ipvs\"";
    if mode != DataPlane::Ipvs {
        let why = format!("{name}, which chooses at random");
        no_effect(
            cx,
            "kube_proxy.scheduler",
            "`kube_proxy.scheduler`",
            &why,
            ipvs,
        );
        if mode == DataPlane::Headless && scenario.service.session_affinity.is_some() {
            let path = "service.session_affinity";
            no_effect(cx, path, "`service.session_affinity`", &name, ipvs);
        }
        for (key, _) in scenario.node_sysctl_overrides() {
            if key.starts_with("net.ipv4.vs.") {
                let path = format!("node.sysctl.{key}");
                no_effect(cx, &path, &format!("sysctl {key}"), &name, ipvs);
            }
        }
    }
    if mode != DataPlane::CiliumPacket && scenario.cilium != Cilium::default() {
        let help = "leave it out, or write mode = \"cilium-packet\"";
        no_effect(cx, "cilium", "`cilium`", &name, help);
    }
    if masquerades_nothing(mode) && scenario.kube_proxy.masquerade != Masquerade::None {
        contradiction(
            cx,
            format!(
                "`kube_proxy.masquerade` is set, and in `node.mode` {name} there is no masquerading of services"
            ),
            "write masquerade = \"none\"",
            &[
                ("kube_proxy.masquerade", String::new()),
                ("node.mode", String::new()),
            ],
        );
    }
}

fn no_effect(cx: &mut Cx, path: &str, what: &str, mode: &str, help: &str) {
    if let Some(place) = cx.place(path) {
        let title = format!("{what} has no effect: `node.mode` is {mode}");
        let diag = Diag::warning("no-effect", title).at(place, "").help(help);
        cx.diags.push(diag);
    }
}

/// Cilium's source NAT for backends on other nodes is not modelled; the others connect to pods.
const fn masquerades_nothing(mode: DataPlane) -> bool {
    matches!(
        mode,
        DataPlane::CiliumPacket | DataPlane::CiliumSocket | DataPlane::Headless
    )
}
