//! A scenario back as TOML: what was set stands live, defaults stand commented out with their values.

use std::fmt::Write as _;

use super::field::{Section, quoted};
use super::{Client, Rollout, Scenario};

const HEAD: &str = "# The scenario as the simulator understands it. Lines that start with # are defaults: take the # away to change
# them. Fields, units and sources: `sim scenario schema`, docs/scenario.md.
";

/// Fields that are sections of their own, and so do not fit on a line.
const SECTIONS: &[&str] = &[
    "node",
    "kube_proxy",
    "cilium",
    "service",
    "client",
    "server",
    "network",
    "rollout",
];

impl Scenario {
    /// The scenario as TOML. Parsing it gives an equal scenario.
    pub fn to_toml(&self) -> String {
        let mut out = HEAD.to_owned();
        for (name, value, is_default) in self.lines() {
            if !SECTIONS.contains(&name) {
                line(&mut out, name, value, is_default);
            }
        }
        let node = self.node.lines();
        section(
            &mut out,
            "[node]",
            node.iter().filter(|(name, ..)| *name != "sysctl"),
        );
        if !self.node.sysctl.0.is_empty() {
            out.push_str("\n[node.sysctl]\n");
            for (key, value) in &self.node.sysctl.0 {
                let _ = writeln!(out, "{} = {}", quoted(key), quoted(value));
            }
        }
        section(&mut out, "[kube_proxy]", &self.kube_proxy.lines());
        section(&mut out, "[cilium]", &self.cilium.lines());
        section(&mut out, "[service]", &self.service.lines());
        for client in &self.client {
            let lines: &[_] = &Client::lines(client);
            section(&mut out, "[[client]]", lines);
        }
        section(&mut out, "[server]", &self.server.lines());
        section(&mut out, "[network]", &self.network.lines());
        let (head, lines) = match &self.rollout {
            Rollout::None(steady) => ("[rollout.none]", steady.lines()),
            Rollout::Deployment(deployment) => ("[rollout.deployment]", deployment.lines()),
            Rollout::Scripted(script) => ("[rollout.scripted]", script.lines()),
            Rollout::Scale(scale) => ("[rollout.scale]", scale.lines()),
            Rollout::Flap(flap) => ("[rollout.flap]", flap.lines()),
        };
        section(&mut out, head, &lines);
        out
    }
}

type Line = (&'static str, Option<String>, bool);

fn section<'a>(out: &mut String, head: &str, lines: impl IntoIterator<Item = &'a Line>) {
    let _ = write!(out, "\n{head}\n");
    for (name, value, is_default) in lines {
        line(out, name, value.clone(), *is_default);
    }
}

fn line(out: &mut String, name: &str, value: Option<String>, is_default: bool) {
    if let Some(value) = value {
        let mark = if is_default { "# " } else { "" };
        let _ = writeln!(out, "{mark}{name} = {value}");
    }
}
