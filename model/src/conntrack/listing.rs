//! The table as `/proc/net/nf_conntrack` prints it.
//!
//! Faithful to: `ct_seq_show`, `tcp_print_conntrack`.
//! Leaves out: accounting, security contexts, time stamps. The kernel's order is that of its seeded hash; here
//! lines are sorted by protocol and original tuple.

use core::fmt::Write;

use super::Conntrack;
use super::entry::{CtEntry, Status};
use crate::segment::{Proto, Tuple};
use crate::time::Jiffies;

/// What the kernel was built with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListingStyle {
    /// `CONFIG_NF_CONNTRACK_MARK`: `mark=0`.
    pub mark: bool,
    /// `CONFIG_NF_CONNTRACK_ZONES`: `zone=0`.
    pub zone: bool,
}

impl Conntrack {
    /// A line for each confirmed, unexpired entry, without line ends.
    pub fn listing(&self, now: Jiffies, style: ListingStyle) -> Vec<String> {
        let mut entries: Vec<&CtEntry> = self
            .iter()
            .map(|(_, entry)| entry)
            .filter(|entry| entry.status.has(Status::CONFIRMED) && !entry.is_expired(now))
            .collect();
        entries.sort_by_key(|entry| entry.orig());
        let hz = u64::from(self.clock.hz());
        entries
            .into_iter()
            .map(|entry| line(entry, now.until(entry.deadline) / hz, style))
            .collect()
    }
}

fn line(entry: &CtEntry, secs: u64, style: ListingStyle) -> String {
    let mut out = String::with_capacity(192);
    let (name, number) = match entry.proto() {
        Proto::Tcp => ("tcp", 6),
        Proto::Udp => ("udp", 17),
    };
    let state = match entry.tcp() {
        Some(tcp) => format!("{} ", tcp.state),
        None => String::new(),
    };
    let unreplied = mark(entry, Status::SEEN_REPLY, "", "[UNREPLIED] ");
    let assured = mark(entry, Status::ASSURED, "[ASSURED] ", "");
    let build = match (style.mark, style.zone) {
        (false, false) => "",
        (true, false) => "mark=0 ",
        (false, true) => "zone=0 ",
        (true, true) => "mark=0 zone=0 ",
    };
    write!(
        out,
        "{:<8} 2 {name:<8} {number} {secs} {state}{}{unreplied}{}{assured}{build}use=2",
        "ipv4",
        tuple_text(&entry.orig()),
        tuple_text(&entry.reply()),
    )
    .expect("writing to a string cannot fail");
    out
}

fn mark(entry: &CtEntry, bit: Status, set: &'static str, clear: &'static str) -> &'static str {
    if entry.status.has(bit) { set } else { clear }
}

fn tuple_text(tuple: &Tuple) -> String {
    format!(
        "src={} dst={} sport={} dport={} ",
        tuple.src.ip, tuple.dst.ip, tuple.src.port, tuple.dst.port
    )
}
