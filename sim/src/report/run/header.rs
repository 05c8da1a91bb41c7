//! A scenario in a few lines: what decides whether ports are reused against entries of pods that are gone.

use ipvs_model::segment::Proto;
use ipvs_model::sysctl::Sysctls;

use super::Header;
use crate::report::text::{length, thousands};
use crate::scenario::field::Field;
use crate::scenario::{
    Arrivals, Client, DataPlane, OnSigterm, PortChoice, ProxyVersion, Rollout, Scenario, Side,
};

/// Kinds of clients described; the rest are counted.
const CLIENTS_MAX: usize = 4;

impl Header {
    /// The words about a scenario that came from `file` and runs with `seed` on a node with `sysctls`; `command`
    /// repeats the run.
    pub fn of(
        scenario: &Scenario,
        file: Option<String>,
        seed: u64,
        sysctls: &Sysctls,
        command: String,
    ) -> Self {
        let mut facts = vec![node(scenario, sysctls), kube_proxy(scenario)];
        let clients = scenario.client.iter().take(CLIENTS_MAX);
        facts.extend(clients.map(|client| load(client, scenario.service.protocol)));
        if let Some(rest) = scenario.client.len().checked_sub(CLIENTS_MAX + 1) {
            facts.push(("load", format!("and {} more kinds of clients", rest + 1)));
        }
        facts.push(rollout(scenario));
        let facts = facts
            .into_iter()
            .map(|(label, words)| (label.to_owned(), words));
        Self {
            name: scenario.name.clone(),
            file,
            facts: facts.collect(),
            seed,
            duration: scenario.duration,
            warmup: scenario.warmup,
            ipvs: scenario.node.mode == DataPlane::Ipvs,
            command,
            possible: Vec::new(),
        }
    }
}

type Fact = (&'static str, String);

fn node(scenario: &Scenario, sysctls: &Sysctls) -> Fact {
    let node = &scenario.node;
    let balancer = match node.mode {
        DataPlane::Ipvs => format!(
            "IPVS {}, conn_reuse_mode {}, expire_nodest_conn {}",
            word(&scenario.kube_proxy.scheduler),
            sysctls.vs.conn_reuse_mode,
            u8::from(sysctls.vs.expire_nodest_conn),
        ),
        DataPlane::Iptables | DataPlane::Nftables => format!("{} mode", word(&node.mode)),
        DataPlane::CiliumPacket => {
            format!("Cilium {}, packet by packet", scenario.cilium.version.0)
        }
        DataPlane::CiliumSocket => "Cilium's socket load balancer".to_owned(),
        DataPlane::Headless => format!(
            "no balancer: clients resolve a headless service, and keep answers for {}",
            length(scenario.service.dns_ttl)
        ),
    };
    let words = format!("kernel {} at {} Hz, {balancer}", node.kernel, node.hz.0);
    ("node", words)
}

fn kube_proxy(scenario: &Scenario) -> Fact {
    let kube_proxy = &scenario.kube_proxy;
    let version = match kube_proxy.version {
        ProxyVersion::None => "none, a script".to_owned(),
        version => version.to_string(),
    };
    let masquerade = word(&kube_proxy.masquerade);
    let restart = kube_proxy
        .restart_at
        .map_or_else(String::new, |at| format!("; starts anew at {}", length(at)));
    (
        "kube-proxy",
        format!("{version}; masquerade: {masquerade}{restart}"),
    )
}

fn load(client: &Client, protocol: Proto) -> Fact {
    let arrivals = match &client.arrivals {
        Arrivals::Constant(rate) => format!("{} requests/s", rate.rate),
        Arrivals::Poisson(rate) => format!("{} requests/s at random (Poisson)", rate.rate),
        Arrivals::Closed(closed) => format!("{} workers in a closed loop", closed.concurrency),
    };
    let from = match client.count {
        1 => client.address.to_string(),
        count => format!("{count} clients from {} on", client.address),
    };
    let ports = match &client.port_choice {
        PortChoice::Fixed(ports) => format!("{} ports of its own choice", ports.len()),
        PortChoice::Pool(size) => format!("{size} sockets that stay open"),
        PortChoice::Connect | PortChoice::Bind => {
            let (low, high) = client.tcp().local_ports;
            format!(
                "{} ports",
                thousands(u64::from(high.saturating_sub(low)) + 1)
            )
        }
    };
    let timeout = match client.timeout {
        Some(timeout) => format!("gives up after {}", length(timeout)),
        None => "does not give up".to_owned(),
    };
    if protocol == Proto::Udp {
        let udp = client.udp;
        let again = match udp.retries {
            0 => "no datagram is sent twice".to_owned(),
            retries => format!(
                "sent again after {} at most {retries} times",
                length(udp.retry_after)
            ),
        };
        let words = format!("UDP, {arrivals} from {from}, {ports}, {again}, {timeout}");
        return ("load", words);
    }
    let requests = match client.requests_per_connection {
        1 => "a connection each".to_owned(),
        many => format!("{many} requests a connection"),
    };
    let closes = match client.closes_first {
        Side::Server => "server",
        Side::Client => "client",
    };
    let words =
        format!("{arrivals} from {from}, {ports}, {requests}, {closes} closes first, {timeout}");
    ("load", words)
}

fn rollout(scenario: &Scenario) -> Fact {
    let end = word(&scenario.server.dead_end);
    let words = match &scenario.rollout {
        Rollout::None(steady) => format!("none, {} pods stay", steady.pods),
        Rollout::Deployment(deployment) => {
            let on_sigterm = match deployment.on_sigterm {
                OnSigterm::Exits(after) => format!("exits {} after SIGTERM", length(after)),
                OnSigterm::Drains => "drains at SIGTERM".to_owned(),
                OnSigterm::Ignores => "ignores SIGTERM".to_owned(),
            };
            format!(
                "{} pods replaced from {} on, preStop {}, {on_sigterm}, dead addresses: {end}",
                deployment.replicas,
                length(deployment.start),
                length(deployment.pre_stop),
            )
        }
        Rollout::Scripted(script) => format!(
            "{} pods replaced by {} at {}, old ones die at {}, dead addresses: {end}",
            script.old_pods,
            script.new_pods,
            length(script.at),
            length(script.old_die_at),
        ),
        Rollout::Flap(flap) => format!(
            "{} of {} pods unready from {} on for {}",
            flap.flapping,
            flap.pods,
            length(flap.at),
            length(flap.lasts),
        ),
        Rollout::Scale(scale) => format!(
            "{} pods become {} at {}, dead addresses: {end}",
            scale.from,
            scale.to,
            length(scale.at),
        ),
    };
    ("rollout", words)
}

/// A choice by its name in scenarios.
fn word(choice: &impl Field) -> String {
    choice.encode().unwrap_or_default().replace('"', "")
}
