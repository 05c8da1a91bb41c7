//! Writers of the formats that the readers understand: for `sim record`, for tests, and for regressions that
//! the lab saves.

use std::io::{self, Write};

use ipvs_model::segment::{Proto, Segment};

use super::conntrack::ConntrackLine;
use super::ipvs_conn::IpvsConnLine;
use super::packet::link;
use super::pcap::MAGIC_NANOS;
use super::place::Stamp;

/// The heading of `/proc/net/ip_vs_conn`.
pub const IPVS_CONN_HEADING: &str =
    "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData";

/// Writes the header of a block.
///
/// # Errors
/// Those of the writer.
pub fn block_header(out: &mut impl Write, at: Stamp) -> io::Result<()> {
    writeln!(out, "@ {at}")
}

/// Writes an entry as `/proc/net/ip_vs_conn` has it.
///
/// # Errors
/// Those of the writer.
pub fn ipvs_conn_proc(out: &mut impl Write, row: &IpvsConnLine) -> io::Result<()> {
    let hex = |end: ipvs_model::segment::Endpoint| (end.ip.to_bits(), end.port);
    let ((c_ip, c_port), (v_ip, v_port)) = (hex(row.client), hex(row.virt));
    let (d_ip, d_port) = hex(row.dest);
    writeln!(
        out,
        "{:<3} {c_ip:08X} {c_port:04X} {v_ip:08X} {v_port:04X} {d_ip:08X} {d_port:04X} {:<11} {:>7}",
        row.proto.name(),
        row.state,
        row.expires_s,
    )
}

/// Writes an entry as `ipvsadm -Lnc` has it.
///
/// # Errors
/// Those of the writer.
pub fn ipvs_conn_tool(out: &mut impl Write, row: &IpvsConnLine) -> io::Result<()> {
    writeln!(
        out,
        "{:<3} {:02}:{:02}  {:<11} {:<18} {:<18} {}",
        row.proto.name(),
        row.expires_s / 60,
        row.expires_s % 60,
        row.state,
        row.client.to_string(),
        row.virt.to_string(),
        row.dest,
    )
}

/// Writes an entry as `/proc/net/nf_conntrack` has it.
///
/// # Errors
/// Those of the writer.
pub fn conntrack_proc(out: &mut impl Write, row: &ConntrackLine) -> io::Result<()> {
    let proto = match row.orig.proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    };
    write!(out, "ipv4     2 {proto:<8} {} ", row.orig.proto.number())?;
    if let Some(timeout_s) = row.timeout_s {
        write!(out, "{timeout_s} ")?;
    }
    if let Some(state) = row.state {
        write!(out, "{state} ")?;
    }
    for (tuple, after) in [(row.orig, "[UNREPLIED] "), (row.reply, "[ASSURED] ")] {
        write!(
            out,
            "src={} dst={} sport={} dport={} ",
            tuple.src.ip, tuple.dst.ip, tuple.src.port, tuple.dst.port
        )?;
        let shown = if after.starts_with("[U") {
            row.unreplied
        } else {
            row.assured
        };
        if shown && !(row.offload && after.starts_with("[A")) {
            write!(out, "{after}")?;
        }
    }
    if row.offload {
        write!(out, "[OFFLOAD] ")?;
    }
    writeln!(out, "mark={} zone={} use=2", row.mark, row.zone)
}

/// Writes the header of a pcap file of raw IPv4 packets with nanosecond timestamps.
///
/// # Errors
/// Those of the writer.
pub fn pcap_header(out: &mut impl Write) -> io::Result<()> {
    for word in [MAGIC_NANOS, 0x0004_0002, 0, 0, 0xffff, link::RAW] {
        out.write_all(&word.to_le_bytes())?;
    }
    Ok(())
}

/// Writes one packet record. Seconds beyond the 32 bits of the format are cut.
///
/// # Errors
/// Those of the writer.
pub fn pcap_packet(out: &mut impl Write, at: Stamp, ip: &[u8]) -> io::Result<()> {
    let second = ipvs_model::time::NANOS_PER_SEC;
    let len = u32::try_from(ip.len()).unwrap_or(u32::MAX);
    let words = [(at.0 / second) as u32, (at.0 % second) as u32, len, len];
    for word in words {
        out.write_all(&word.to_le_bytes())?;
    }
    out.write_all(ip)
}

/// The bytes of a segment as an IPv4 packet with valid checksums; the payload is zeros.
pub fn ipv4_bytes(segment: &Segment, ttl: u8, ip_id: u16) -> Vec<u8> {
    let transport = match segment.tuple.proto {
        Proto::Tcp => tcp_bytes(segment),
        Proto::Udp => udp_bytes(segment),
    };
    let total = u16::try_from(20 + transport.len()).unwrap_or(u16::MAX);
    let mut ip = Vec::with_capacity(usize::from(total));
    ip.extend([0x45, 0]);
    ip.extend(total.to_be_bytes());
    ip.extend(ip_id.to_be_bytes());
    ip.extend([0, 0, ttl, segment.tuple.proto.number(), 0, 0]);
    ip.extend(segment.tuple.src.ip.octets());
    ip.extend(segment.tuple.dst.ip.octets());
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(transport);
    ip
}

fn tcp_bytes(segment: &Segment) -> Vec<u8> {
    let mut options = Vec::new();
    if let Some(shift) = segment.options.wscale {
        options.extend([3, 3, shift, 1]);
    }
    if segment.options.sack_ok {
        options.extend([4, 2, 1, 1]);
    }
    if let Some(right) = segment.options.sack_right {
        options.extend([1, 1, 5, 10]);
        options.extend(right.wrapping_sub(1).to_be_bytes());
        options.extend(right.to_be_bytes());
    }
    if let Some(stamps) = segment.options.timestamps {
        options.extend([1, 1, 8, 10]);
        options.extend(stamps.val.to_be_bytes());
        options.extend(stamps.ecr.to_be_bytes());
    }
    let mut tcp = Vec::new();
    tcp.extend(segment.tuple.src.port.to_be_bytes());
    tcp.extend(segment.tuple.dst.port.to_be_bytes());
    tcp.extend(segment.seq.to_be_bytes());
    tcp.extend(segment.ack.to_be_bytes());
    let words = (20 + options.len()) / 4;
    tcp.extend([(words as u8) << 4, segment.flags.0]);
    tcp.extend(segment.window.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(options);
    tcp.resize(tcp.len() + usize::from(segment.len), 0);
    seal(segment, tcp, 16)
}

fn udp_bytes(segment: &Segment) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(segment.tuple.src.port.to_be_bytes());
    udp.extend(segment.tuple.dst.port.to_be_bytes());
    udp.extend(segment.len.saturating_add(8).to_be_bytes());
    udp.extend([0; 2]);
    udp.resize(udp.len() + usize::from(segment.len), 0);
    seal(segment, udp, 6)
}

/// Puts the transport checksum at `at`.
fn seal(segment: &Segment, mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let mut pseudo = Vec::new();
    pseudo.extend(segment.tuple.src.ip.octets());
    pseudo.extend(segment.tuple.dst.ip.octets());
    pseudo.extend([0, segment.tuple.proto.number()]);
    pseudo.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    let start = u32::from(!checksum(&pseudo, 0));
    let sum = checksum(&bytes, start);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The Internet checksum of `bytes`, on top of an earlier sum.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
