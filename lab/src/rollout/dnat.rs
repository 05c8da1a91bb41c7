//! The service as DNAT rules of the kernel: kube-proxy's iptables and nftables modes, for comparison with IPVS.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_sim::engine::{drops_invalid, node_sysctls};
use ipvs_sim::scenario::{DataPlane, Scenario};

use crate::guest::{line, set_sysctl};

/// Where rules are written before they are loaded; a file system in memory.
const RULES: &str = "/run/dnat-rules";

/// The rules of one service. A new list of endpoints replaces the old one at once.
#[derive(Debug)]
pub struct Dnat {
    nft: bool,
    service: Endpoint,
    proto: &'static str,
}

impl Dnat {
    /// The chains of a service without endpoints. Runs in the node's namespace.
    pub fn set_up(scenario: &Scenario) -> Result<Self> {
        let sysctls = node_sysctls(scenario).map_err(|error| anyhow::anyhow!(error))?;
        set_sysctl("net.netfilter.nf_conntrack_max", sysctls.ct.max)?;
        for (key, value) in scenario.node_sysctl_overrides() {
            if !key.starts_with("net.ipv4.vs.") {
                set_sysctl(key, value)?;
            }
        }
        if scenario.node.mode == DataPlane::Iptables && drops_invalid(scenario, &sysctls) {
            line(
                "iptables-legacy",
                "-w -I FORWARD -m conntrack --ctstate INVALID -j DROP",
            )?;
        }
        let this = Self {
            nft: scenario.node.mode == DataPlane::Nftables,
            service: scenario.service.address,
            proto: match scenario.service.protocol {
                Proto::Tcp => "tcp",
                Proto::Udp => "udp",
            },
        };
        let (ip, port, proto) = (this.service.ip, this.service.port, this.proto);
        if this.nft {
            let jump = format!("ip daddr {ip} {proto} dport {port} goto service");
            this.load(&format!(
                "table ip kube-proxy {{\n\
                 chain service {{ }}\n\
                 chain pre {{ type nat hook prerouting priority -100; {jump}; }}\n\
                 chain out {{ type nat hook output priority -100; {jump}; }}\n\
                 }}\n"
            ))?;
        } else {
            line("iptables-legacy", "-w -t nat -N KUBE-SVC")?;
            for hook in ["PREROUTING", "OUTPUT"] {
                line(
                    "iptables-legacy",
                    &format!("-w -t nat -A {hook} -d {ip} -p {proto} --dport {port} -j KUBE-SVC"),
                )?;
            }
        }
        Ok(this)
    }

    fn load(&self, text: &str) -> Result<()> {
        std::fs::write(Path::new(RULES), text).context("cannot write the rules")?;
        if self.nft {
            line("nft", &format!("-f {RULES}"))
        } else {
            line(
                "iptables-legacy-restore",
                &format!("--wait --noflush {RULES}"),
            )
        }
        .with_context(|| format!("the kernel does not take these rules:\n{text}"))
    }

    /// A new connection goes to any of these, each as likely.
    pub fn replace(&self, endpoints: &[Endpoint]) -> Result<()> {
        let mut text = String::new();
        if self.nft {
            text.push_str("flush chain ip kube-proxy service\n");
        } else {
            text.push_str("*nat\n:KUBE-SVC - [0:0]\n");
        }
        for (number, endpoint) in endpoints.iter().enumerate() {
            // Each takes its share of what those before it have left.
            let left = endpoints.len() - number;
            let last = left == 1;
            if self.nft {
                let share = (1_u64 << 32) / left as u64;
                let when = if last {
                    String::new()
                } else {
                    format!("meta random < {share} ")
                };
                writeln!(
                    text,
                    "add rule ip kube-proxy service {when}{} dport {} dnat to {endpoint}",
                    self.proto, self.service.port
                )?;
            } else {
                let when = if last {
                    String::new()
                } else {
                    let share = 1.0 / left as f64;
                    format!("-m statistic --mode random --probability {share:.11} ")
                };
                writeln!(
                    text,
                    "-A KUBE-SVC {when}-p {} -j DNAT --to-destination {endpoint}",
                    self.proto
                )?;
            }
        }
        if !self.nft {
            text.push_str("COMMIT\n");
        }
        self.load(&text)
    }
}
