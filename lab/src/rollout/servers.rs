//! The real servers of the kernel, as kube-proxy lists and changes them.

use anyhow::{Context, Result, anyhow};
use ipvs_model::kube::{RealServer, RealServers, ServiceRef};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_sim::engine::node_sysctls;
use ipvs_sim::scenario::Scenario;
use ipvs_sim::scenario::field::Field as _;

use crate::guest::{line, set_sysctl};
use crate::netlink::Rules;

/// The virtual service on the node.
#[derive(Debug)]
pub struct Servers {
    rules: Rules,
    service: String,
    /// The line of the service in `/proc/net/ip_vs`.
    head: String,
    broken: Option<anyhow::Error>,
}

impl Servers {
    /// Sets the sysctls and makes the service. Runs in the node's namespace.
    pub fn set_up(scenario: &Scenario) -> Result<Self> {
        let sysctls = node_sysctls(scenario).map_err(|error| anyhow!(error))?;
        set_sysctl("net.netfilter.nf_conntrack_max", sysctls.ct.max)?;
        for (key, value) in [
            ("conntrack", u8::from(sysctls.vs.conntrack)),
            ("conn_reuse_mode", sysctls.vs.conn_reuse_mode),
            (
                "expire_nodest_conn",
                u8::from(sysctls.vs.expire_nodest_conn),
            ),
            (
                "expire_quiescent_template",
                u8::from(sysctls.vs.expire_quiescent_template),
            ),
        ] {
            set_sysctl(&format!("net.ipv4.vs.{key}"), value)?;
        }
        for (key, value) in scenario.node_sysctl_overrides() {
            set_sysctl(key, value)?;
        }
        let proxy = &scenario.kube_proxy;
        let timeouts = [proxy.tcp_timeout, proxy.tcpfin_timeout, proxy.udp_timeout];
        if timeouts.iter().any(|timeout| timeout.as_secs() > 0) {
            // Zero leaves one as it is.
            let [tcp, tcp_fin, udp] = timeouts.map(|timeout| timeout.as_secs());
            line("ipvsadm", &format!("--set {tcp} {tcp_fin} {udp}"))?;
        }
        let address = scenario.service.address;
        let (option, name) = match scenario.service.protocol {
            Proto::Tcp => ("-t", "TCP"),
            Proto::Udp => ("-u", "UDP"),
        };
        let head = format!(
            "{name}  {:08X}:{:04X} ",
            u32::from(address.ip),
            address.port
        );
        let this = Self {
            rules: Rules::open()?,
            service: format!("{option} {address}"),
            head,
            broken: None,
        };
        let scheduler = scenario.kube_proxy.scheduler.encode().unwrap_or_default();
        let affinity = scenario.service.session_affinity;
        let persistent =
            affinity.map_or_else(String::new, |time| format!(" -p {}", time.as_secs()));
        this.rules.run(&format!(
            "-A {} -s {}{persistent}",
            this.service,
            scheduler.trim_matches('"')
        ))?;
        Ok(this)
    }

    /// The real servers in the kernel's order.
    pub fn listed(&self) -> Result<Vec<RealServer>> {
        let text = std::fs::read_to_string("/proc/net/ip_vs").context("cannot read the rules")?;
        let rows = text
            .lines()
            .skip_while(|row| !row.starts_with(&self.head))
            .skip(1)
            .take_while(|row| row.trim_start().starts_with("->"));
        rows.map(|row| server(row).with_context(|| format!("not a real server: {row}")))
            .collect()
    }

    /// Whether the kernel could be asked so far.
    pub fn check(&mut self) -> Result<()> {
        self.broken.take().map_or(Ok(()), Err)
    }

    fn done(&self, arguments: &str) -> bool {
        self.rules.run(arguments).is_ok()
    }
}

/// A line `  -> 0A1B01F5:0050      Masq    1      0          3`.
fn server(row: &str) -> Option<RealServer> {
    let mut words = row.split_whitespace().skip(1);
    let (ip, port) = words.next()?.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut numbers = words.skip(1).map_while(|word| word.parse::<u32>().ok());
    Some(RealServer {
        addr: Endpoint::new(ip.into(), port),
        weight: numbers.next()?,
        active: numbers.next()?,
        inactive: numbers.next()?,
    })
}

impl RealServers for Servers {
    fn list(&self, _: ServiceRef) -> Vec<RealServer> {
        // An unreadable table ends the run at the next change; the trait has no word for it.
        self.listed().unwrap_or_default()
    }

    fn add(&mut self, _: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        if let Err(error) = self.listed() {
            self.broken = Some(error);
        }
        self.done(&format!("-a {} -r {addr} -m -w {weight}", self.service))
    }

    fn set_weight(&mut self, _: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        self.done(&format!("-e {} -r {addr} -m -w {weight}", self.service))
    }

    fn delete(&mut self, _: ServiceRef, addr: Endpoint) -> bool {
        self.done(&format!("-d {} -r {addr}", self.service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let row = "  -> 0A1B01F5:0050      Masq    0      2          14048     ";
        let found = server(row).expect("a real server");
        assert_eq!(found.addr.to_string(), "10.27.1.245:80");
        assert_eq!((found.weight, found.active, found.inactive), (0, 2, 14048));
    }
}
