//! A datagram meets its conntrack entry.
//!
//! Faithful to: `nf_conntrack_udp_packet`, 3.10 to 6.12.
//! Leaves out: UDP-Lite, and entries that were inserted despite a clash (they need two processors).

use super::entry::Status;
use super::rule::CtRule;
use crate::kernel::{Behaviours, Gate};
use crate::sysctl::CtSysctls;
use crate::time::Jiffies;

/// The rule and the lifetime in seconds from now; sets ASSURED.
pub fn udp_packet(
    status: &mut Status,
    stream_from: Jiffies,
    now: Jiffies,
    sysctls: &CtSysctls,
    kernel: Behaviours,
) -> (CtRule, u32) {
    if !status.has(Status::SEEN_REPLY) {
        return (CtRule::UdpUnreplied, sysctls.udp);
    }
    let is_stream = now > stream_from || !kernel.has(Gate::UdpStreamAfter2s);
    if is_stream || !kernel.has(Gate::UdpAssuredWhenStream) {
        status.set(Status::ASSURED);
    }
    if is_stream {
        (CtRule::UdpStream, sysctls.udp_stream)
    } else {
        (CtRule::UdpReplied, sysctls.udp)
    }
}
