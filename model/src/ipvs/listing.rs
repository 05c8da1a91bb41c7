//! Listings in the formats that people know: `/proc/net/ip_vs_conn`, `ipvsadm -Lnc`, `ipvsadm -Ln`.

use core::fmt::Write;

use super::Ipvs;
use super::state::State;
use super::table::Entry;
use crate::kernel::Gate;
use crate::segment::{Endpoint, Proto};
use crate::time::Jiffies;

/// One line of the connection table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnLine {
    /// Transport protocol.
    pub proto: Proto,
    /// Client; port 0 for a template.
    pub client: Endpoint,
    /// Virtual address; port 65535 for an invalidated template.
    pub virt: Endpoint,
    /// Real server.
    pub dest: Endpoint,
    /// State name.
    pub state: &'static str,
    /// Whole seconds until the deadline; 0 when overdue.
    pub expires_s: u64,
}

impl ConnLine {
    fn of(ipvs: &Ipvs, entry: &Entry, now: Jiffies) -> Self {
        let invalid = |addr: Endpoint| {
            if entry.is_invalid() {
                Endpoint::new(addr.ip, 65535)
            } else {
                addr
            }
        };
        let state = match (entry.is_template(), entry.proto()) {
            (true, _) if entry.is_assured() && ipvs.kernel.has(Gate::TemplateAssured) => "ASSURED",
            (true, _) => State::No.name(),
            (false, Proto::Udp) => "UDP",
            (false, Proto::Tcp) => entry.state().name(),
        };
        Self {
            proto: entry.proto(),
            client: entry.client(),
            virt: invalid(entry.virt()),
            dest: invalid(ipvs.dests.get(entry.dest()).addr),
            state,
            expires_s: now.until(entry.expires()) / u64::from(ipvs.clock.hz()),
        }
    }
}

/// The connection table, sorted by client. The kernel's order follows a random hash.
pub fn list_connections(ipvs: &Ipvs, now: Jiffies) -> Vec<ConnLine> {
    let mut lines = ipvs
        .table
        .iter()
        .map(|(_, entry)| ConnLine::of(ipvs, entry, now))
        .collect::<Vec<_>>();
    lines.sort();
    lines
}

/// The connection table as `ipvsadm -Lnc` prints it.
pub fn list_connections_ipvsadm(ipvs: &Ipvs, now: Jiffies) -> String {
    let mut text = String::from(
        "IPVS connection entries\npro expire state       source             virtual            destination\n",
    );
    for line in list_connections(ipvs, now) {
        let (minutes, seconds) = (line.expires_s / 60, line.expires_s % 60);
        writeln!(
            text,
            "{:<3} {minutes:02}:{seconds:02}  {:<11} {:<18} {:<18} {}",
            line.proto.name(),
            line.state,
            line.client.to_string(),
            line.virt.to_string(),
            line.dest,
        )
        .expect("writing to a string cannot fail");
    }
    text
}

/// Services and real servers as `ipvsadm -Ln` prints them.
pub fn list_services(ipvs: &Ipvs) -> String {
    let mut text = String::from(
        "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
    );
    for service in ipvs.services() {
        let persistent = match service.persistence {
            Some(persistence) => format!(" persistent {}", persistence.timeout_s),
            None => String::new(),
        };
        let lines = ipvs.real_servers(service.key).map(|server| {
            format!(
                "  -> {:<28} {:<7} {:<6} {:<10} {:<10}\n",
                server.addr.to_string(),
                "Masq",
                server.weight,
                server.active,
                server.inactive
            )
        });
        text.push_str(&format!(
            "{:<4} {} {}{persistent}\n",
            service.key.proto.name(),
            service.key.addr,
            service.scheduler.kind
        ));
        text.extend(lines);
    }
    text
}
