//! IPVS rules: `ipvsadm` commands as they were run, dumps of `ipvsadm -Sn`, listings of `ipvsadm -Ln`.
//!
//! Faithful to: ipvsadm 1.31 (option names, `print_service_entry`, `print_service_and_dests`).
//! Leaves out: IPv6 services, firewall marks, SCTP and tunnel options; they are named and counted.

mod command;
mod listing;

pub use command::{parse_command, split_words};
pub use listing::{ListLine, ListedDest, ListedService, parse_list_line};

use std::fmt;

use ipvs_model::segment::{Endpoint, Proto};

use super::place::Parsed;

/// A virtual service's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// Transport protocol.
    pub proto: Proto,
    /// Virtual address and port; port 0 catches all ports.
    pub at: Endpoint,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.proto.name(), self.at)
    }
}

/// How packets reach the real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forward {
    /// Network address translation (`-m`, Masq).
    Masq,
    /// Direct routing (`-g`, Route): ipvsadm's default.
    Route,
    /// A tunnel (`-i`, Tunnel).
    Tunnel,
    /// The real server is the node itself (Local).
    Local,
}

/// What `-A` and `-E` say of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceArgs {
    /// The service.
    pub id: ServiceId,
    /// Scheduler's name; `wlc` unless given.
    pub scheduler: String,
    /// Persistence timeout in seconds, if persistent.
    pub persistent_s: Option<u32>,
    /// Netmask of persistent clients.
    pub netmask: Option<std::net::Ipv4Addr>,
    /// Scheduler flags as `-b` gives them, such as `sh-port` or `flag-1`.
    pub flags: Vec<String>,
    /// One-packet scheduling (`-o`).
    pub one_packet: bool,
}

/// What `-a` and `-e` say of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestArgs {
    /// The real server.
    pub real: Endpoint,
    /// Forwarding method.
    pub forward: Forward,
    /// Weight; 1 unless given.
    pub weight: u32,
    /// `-x`; 0 is none.
    pub upper_threshold: u32,
    /// `-y`; 0 is none.
    pub lower_threshold: u32,
}

/// One `ipvsadm` command that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleCommand {
    /// `-A`
    AddService(ServiceArgs),
    /// `-E`
    EditService(ServiceArgs),
    /// `-D`
    DeleteService(ServiceId),
    /// `-a`
    AddDest(ServiceId, DestArgs),
    /// `-e`
    EditDest(ServiceId, DestArgs),
    /// `-d`
    DeleteDest(ServiceId, Endpoint),
    /// `-C`: all services.
    Flush,
    /// `--set TCP TCPFIN UDP`, in seconds; 0 leaves a value as it is.
    SetTimeouts {
        /// ESTABLISHED.
        tcp_s: u32,
        /// FIN_WAIT.
        tcpfin_s: u32,
        /// UDP.
        udp_s: u32,
    },
}

/// One line of a rules log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleLine {
    /// A command as it was run: `ipvsadm -e -t ...`.
    Command(RuleCommand),
    /// A line of `ipvsadm -Sn`: part of the whole state at this moment.
    Dump(RuleCommand),
    /// A line of `ipvsadm -Ln`: part of the whole state at this moment.
    Listed(ListLine),
}

/// Reads one line of a rules log, whichever of the three forms it has.
pub fn parse_rule_line(line: &str) -> Parsed<RuleLine> {
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Parsed::Heading;
    }
    let bare = trimmed
        .strip_prefix("sudo ")
        .unwrap_or(trimmed)
        .trim_start();
    let bare = bare.trim_start_matches(['+', '$']).trim_start();
    let (program, rest) = bare.split_once(char::is_whitespace).unwrap_or((bare, ""));
    if program == "ipvsadm" || program.ends_with("/ipvsadm") {
        return parse_command(rest).map(RuleLine::Command);
    }
    if trimmed.starts_with('-') && !trimmed.starts_with("->") && trimmed != "--" {
        return parse_command(trimmed).map(RuleLine::Dump);
    }
    parse_list_line(trimmed).map(RuleLine::Listed)
}

#[cfg(test)]
mod tests;
