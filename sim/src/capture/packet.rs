//! From captured bytes to a segment: link header, IPv4, then TCP, UDP or an ICMP error.
//!
//! Leaves out: IPv6, fragments (the node reassembles them before any rule looks), checksums. What is cut by
//! the snapshot length is read as far as it goes.

use std::net::Ipv4Addr;

use ipvs_model::segment::{
    Endpoint, Flags, IcmpError, IcmpKind, Options, Proto, Segment, Timestamps, Tuple,
};

use super::place::Stamp;

/// Link types, as numbered by tcpdump.org.
pub mod link {
    /// BSD loopback: four bytes of address family.
    pub const NULL: u32 = 0;
    /// Ethernet.
    pub const ETHERNET: u32 = 1;
    /// Raw IP.
    pub const RAW: u32 = 101;
    /// Raw IP as some systems number it.
    pub const RAW_12: u32 = 12;
    /// Raw IP as OpenBSD numbers it.
    pub const RAW_14: u32 = 14;
    /// Linux cooked, version 1.
    pub const LINUX_SLL: u32 = 113;
    /// Raw IPv4.
    pub const IPV4: u32 = 228;
    /// Linux cooked, version 2.
    pub const LINUX_SLL2: u32 = 276;

    /// Whether packets of this link type can be read.
    pub const fn known(link: u32) -> bool {
        matches!(
            link,
            NULL | ETHERNET | RAW | RAW_12 | RAW_14 | LINUX_SLL | IPV4 | LINUX_SLL2
        )
    }
}

/// One packet of a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When it was seen.
    pub at: Stamp,
    /// Its number in the file, from 1.
    pub number: u64,
    /// Which way it crossed the interface, if the link header says.
    pub way: Option<Way>,
    /// The interface, if the link header or the file says.
    pub interface: Option<u32>,
    /// Time to live: one less after forwarding.
    pub ttl: u8,
    /// Identification of the IP header: unchanged by forwarding.
    pub ip_id: u16,
    /// What it carries.
    pub content: Content,
}

/// Which way a packet crossed the interface on which it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the node.
    In,
    /// Out of the node.
    Out,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment or a UDP datagram. `options_cut`: the snapshot length ended before the TCP options did.
    Segment {
        /// The segment.
        segment: Segment,
        /// Options are missing.
        options_cut: bool,
    },
    /// An ICMP error and its receiver.
    Icmp {
        /// The error.
        error: IcmpError,
        /// Its receiver.
        to: Ipv4Addr,
        /// Identification of the IP header that it quotes.
        quoted: u16,
    },
    /// None of the model's business, and why.
    Skipped(&'static str),
}

/// What the link header told.
struct Framed<'a> {
    payload: &'a [u8],
    way: Option<Way>,
    interface: Option<u32>,
}

/// Reads a captured packet of a link type. Never fails: what cannot be read is `Skipped`.
pub fn decode(at: Stamp, number: u64, link: u32, data: &[u8]) -> Packet {
    let mut packet = Packet {
        at,
        number,
        way: None,
        interface: None,
        ttl: 0,
        ip_id: 0,
        content: Content::Skipped("packet of an unknown link type"),
    };
    match unframe(link, data) {
        Ok(framed) => {
            packet.way = framed.way;
            packet.interface = framed.interface;
            packet.content = decode_ip(framed.payload, &mut packet.ttl, &mut packet.ip_id);
        }
        Err(why) => packet.content = Content::Skipped(why),
    }
    packet
}

const CUT: &str = "packet cut before its headers ended";
const NOT_IPV4: &str = "packet other than IPv4";

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(
        data.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn be32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        data.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn ipv4_at(data: &[u8], at: usize) -> Option<Ipv4Addr> {
    be32(data, at).map(Ipv4Addr::from_bits)
}

/// Takes the link header off, and any VLAN tags.
fn unframe(link: u32, data: &[u8]) -> Result<Framed<'_>, &'static str> {
    let framed = |at: usize, way, interface| {
        let payload = data.get(at..).ok_or(CUT)?;
        Ok(Framed {
            payload,
            way,
            interface,
        })
    };
    match link {
        link::RAW | link::RAW_12 | link::RAW_14 | link::IPV4 => framed(0, None, None),
        // The family is in the recording machine's byte order; AF_INET is 2 everywhere.
        link::NULL => match data.get(..4).ok_or(CUT)? {
            [2, 0, 0, 0] | [0, 0, 0, 2] => framed(4, None, None),
            _ => Err(NOT_IPV4),
        },
        link::ETHERNET => {
            let at = ether_payload(data, 12)?;
            framed(at, None, None)
        }
        link::LINUX_SLL => {
            let way = way_of(be16(data, 0).ok_or(CUT)?);
            let at = ether_payload(data, 14)?;
            framed(at, way, None)
        }
        link::LINUX_SLL2 => {
            let kind = *data.get(10).ok_or(CUT)?;
            let interface = be32(data, 4);
            match be16(data, 0).ok_or(CUT)? {
                0x0800 => framed(20, way_of(u16::from(kind)), interface),
                0x8100 | 0x88a8 => {
                    let at = vlan_payload(data, 20)?;
                    framed(at, way_of(u16::from(kind)), interface)
                }
                _ => Err(NOT_IPV4),
            }
        }
        _ => Err("packet of an unknown link type"),
    }
}

/// The packet types of a Linux cooked header: 4 was sent by the node, the others arrived.
const fn way_of(kind: u16) -> Option<Way> {
    match kind {
        4 => Some(Way::Out),
        0..=3 => Some(Way::In),
        _ => None,
    }
}

/// Where the IPv4 header begins, if the EtherType at `at` leads to one.
fn ether_payload(data: &[u8], at: usize) -> Result<usize, &'static str> {
    match be16(data, at).ok_or(CUT)? {
        0x0800 => Ok(at + 2),
        0x8100 | 0x88a8 | 0x9100 => vlan_payload(data, at + 2),
        _ => Err(NOT_IPV4),
    }
}

/// Past one or two VLAN tags: each is two bytes of tag and the EtherType of what follows.
fn vlan_payload(data: &[u8], at: usize) -> Result<usize, &'static str> {
    match be16(data, at + 2).ok_or(CUT)? {
        0x0800 => Ok(at + 4),
        0x8100 | 0x88a8 => match be16(data, at + 6).ok_or(CUT)? {
            0x0800 => Ok(at + 8),
            _ => Err(NOT_IPV4),
        },
        _ => Err(NOT_IPV4),
    }
}

fn decode_ip(data: &[u8], ttl: &mut u8, ip_id: &mut u16) -> Content {
    match ip_header(data) {
        Err(why) => Content::Skipped(why),
        Ok(header) => {
            *ttl = header.ttl;
            *ip_id = header.id;
            decode_transport(&header).unwrap_or(Content::Skipped(CUT))
        }
    }
}

/// What is needed of an IPv4 header.
struct Ip<'a> {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    proto: u8,
    ttl: u8,
    id: u16,
    /// Bytes after the header according to the header; what was captured may be less.
    len: usize,
    payload: &'a [u8],
}

fn ip_header(data: &[u8]) -> Result<Ip<'_>, &'static str> {
    let first = *data.first().ok_or(CUT)?;
    if first >> 4 != 4 {
        return Err(if first >> 4 == 6 { "IPv6" } else { NOT_IPV4 });
    }
    let header_len = usize::from(first & 0x0f) * 4;
    if header_len < 20 {
        return Err("packet with an impossible IPv4 header");
    }
    let parts = || {
        Some((
            be16(data, 2)?,
            be16(data, 4)?,
            be16(data, 6)?,
            *data.get(8)?,
            *data.get(9)?,
            ipv4_at(data, 12)?,
            ipv4_at(data, 16)?,
            data.get(header_len..)?,
        ))
    };
    let (total, id, fragment, ttl, proto, src, dst, payload) = parts().ok_or(CUT)?;
    if fragment & 0x3fff != 0 {
        return Err("IP fragment");
    }
    // Segmentation offload leaves a length of zero: then what was captured is all that is known.
    let len = match usize::from(total) {
        0 => payload.len(),
        total => total.saturating_sub(header_len),
    };
    Ok(Ip {
        src,
        dst,
        proto,
        ttl,
        id,
        len,
        payload,
    })
}

fn decode_transport(ip: &Ip<'_>) -> Option<Content> {
    match ip.proto {
        6 => decode_tcp(ip),
        17 => {
            let (src, dst) = (be16(ip.payload, 0)?, be16(ip.payload, 2)?);
            let mut segment = Segment::new(tuple(Proto::Udp, ip, src, dst), Flags(0));
            segment.len = u16::try_from(ip.len.saturating_sub(8)).unwrap_or(u16::MAX);
            Some(Content::Segment {
                segment,
                options_cut: false,
            })
        }
        1 => decode_icmp(ip),
        _ => Some(Content::Skipped(
            "packet of another protocol than TCP, UDP and ICMP",
        )),
    }
}

fn tuple(proto: Proto, ip: &Ip<'_>, src: u16, dst: u16) -> Tuple {
    Tuple {
        proto,
        src: Endpoint::new(ip.src, src),
        dst: Endpoint::new(ip.dst, dst),
    }
}

fn decode_tcp(ip: &Ip<'_>) -> Option<Content> {
    let data = ip.payload;
    let header_len = usize::from(*data.get(12)? >> 4) * 4;
    if header_len < 20 {
        return Some(Content::Skipped("packet with an impossible TCP header"));
    }
    let tuple = tuple(Proto::Tcp, ip, be16(data, 0)?, be16(data, 2)?);
    let mut segment = Segment::new(tuple, Flags(*data.get(13)?));
    segment.seq = be32(data, 4)?;
    segment.ack = be32(data, 8)?;
    segment.window = be16(data, 14)?;
    segment.len = u16::try_from(ip.len.saturating_sub(header_len)).unwrap_or(u16::MAX);
    let captured = data.get(20..)?;
    let wanted = header_len - 20;
    segment.options = tcp_options(&captured[..captured.len().min(wanted)]);
    Some(Content::Segment {
        segment,
        options_cut: captured.len() < wanted,
    })
}

/// Reads the options that rules look at, as far as they were captured.
fn tcp_options(mut data: &[u8]) -> Options {
    let mut options = Options::default();
    while let [kind, rest @ ..] = data {
        data = match kind {
            0 => break,
            1 => rest,
            _ => {
                let Some(&len) = rest.first() else { break };
                let Some(body) = data.get(2..usize::from(len)) else {
                    break;
                };
                tcp_option(&mut options, *kind, body);
                &data[usize::from(len).max(2)..]
            }
        };
    }
    options
}

fn tcp_option(options: &mut Options, kind: u8, body: &[u8]) {
    match (kind, body) {
        (3, [shift]) => options.wscale = Some((*shift).min(14)),
        (4, []) => options.sack_ok = true,
        (5, blocks) => {
            let rights = (0..blocks.len() / 8).filter_map(|block| be32(blocks, block * 8 + 4));
            options.sack_right = rights.reduce(|highest, right| {
                if ipvs_model::segment::seq_after(right, highest) {
                    right
                } else {
                    highest
                }
            });
        }
        (8, body) if body.len() == 8 => {
            if let (Some(val), Some(ecr)) = (be32(body, 0), be32(body, 4)) {
                options.timestamps = Some(Timestamps { val, ecr });
            }
        }
        _ => {}
    }
}

fn decode_icmp(ip: &Ip<'_>) -> Option<Content> {
    let kind = match (*ip.payload.first()?, *ip.payload.get(1)?) {
        (3, 0) => IcmpKind::NetUnreachable,
        (3, 1) => IcmpKind::HostUnreachable,
        (3, 3) => IcmpKind::PortUnreachable,
        (3, 9 | 10 | 13) => IcmpKind::AdminProhibited,
        (11, 0) => IcmpKind::TtlExceeded,
        _ => {
            return Some(Content::Skipped(
                "ICMP other than unreachable and time exceeded",
            ));
        }
    };
    let inner = match ip_header(ip.payload.get(8..)?) {
        Ok(inner) => inner,
        Err(why) => return Some(Content::Skipped(why)),
    };
    let proto = match inner.proto {
        6 => Proto::Tcp,
        17 => Proto::Udp,
        _ => {
            return Some(Content::Skipped(
                "ICMP about another protocol than TCP and UDP",
            ));
        }
    };
    let about = tuple(
        proto,
        &inner,
        be16(inner.payload, 0)?,
        be16(inner.payload, 2)?,
    );
    Some(Content::Icmp {
        error: IcmpError {
            kind,
            from: ip.src,
            about,
        },
        to: ip.dst,
        quoted: inner.id,
    })
}
