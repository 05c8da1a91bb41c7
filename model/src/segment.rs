//! What a rule can look at: addresses, ports, tuples, TCP flags and sequence numbers.

use core::fmt;
use core::net::Ipv4Addr;

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// TCP, protocol number 6.
    Tcp,
    /// UDP, protocol number 17.
    Udp,
}

impl Proto {
    /// The number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Upper-case name, as `ipvsadm` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// IPv4 address.
    pub ip: Ipv4Addr,
    /// Port, 0 to 65535, host byte order.
    pub port: u16,
}

impl Endpoint {
    /// `ip:port`.
    pub const fn new(ip: Ipv4Addr, port: u16) -> Self {
        Self { ip, port }
    }

    /// Both as one integer: address in bits 16 to 47, port in bits 0 to 15.
    pub const fn key(self) -> u64 {
        ((self.ip.to_bits() as u64) << 16) | self.port as u64
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ip, self.port)
    }
}

/// Reads `10.0.0.1:80`.
impl core::str::FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            || format!("`{text}` is not an IPv4 address with a port, such as 10.20.79.226:31199");
        let (ip, port) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self {
            ip: ip.parse().map_err(|_| bad())?,
            port: port.parse().map_err(|_| bad())?,
        })
    }
}

/// The addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Transport protocol.
    pub proto: Proto,
    /// Sender.
    pub src: Endpoint,
    /// Receiver.
    pub dst: Endpoint,
}

impl Tuple {
    /// A TCP tuple.
    pub const fn tcp(src: Endpoint, dst: Endpoint) -> Self {
        Self {
            proto: Proto::Tcp,
            src,
            dst,
        }
    }

    /// The tuple of the packets that answer.
    pub const fn reversed(self) -> Self {
        Self {
            proto: self.proto,
            src: self.dst,
            dst: self.src,
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.proto.name(), self.src, self.dst)
    }
}

/// TCP flag bits, as in the header's byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// The sender has finished.
    pub const FIN: Self = Self(0x01);
    /// Open a connection.
    pub const SYN: Self = Self(0x02);
    /// Abort the connection.
    pub const RST: Self = Self(0x04);
    /// Push: no effect on any table.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number is valid.
    pub const ACK: Self = Self(0x10);

    /// Both sets together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// A SYN without ACK.
    pub const fn is_plain_syn(self) -> bool {
        self.has(Self::SYN) && !self.has(Self::ACK)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As tcpdump prints them: `S`, `S.`, `F.`, `R`, `.`.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [
            (Self::SYN, "S"),
            (Self::FIN, "F"),
            (Self::RST, "R"),
            (Self::PSH, "P"),
            (Self::ACK, "."),
        ] {
            if self.has(bit) {
                f.write_str(letter)?;
            }
        }
        if self.0 & 0x1f == 0 {
            f.write_str("none")
        } else {
            Ok(())
        }
    }
}

/// The TCP timestamps option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// The sender's clock.
    pub val: u32,
    /// The echo of the peer's clock.
    pub ecr: u32,
}

/// The TCP options that some rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// Window scale shift of a SYN, 0 to 14.
    pub wscale: Option<u8>,
    /// SACK permitted, in a SYN.
    pub sack_ok: bool,
    /// The highest right edge of the SACK blocks.
    pub sack_right: Option<u32>,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
}

/// A transport segment with as much of its header as any rule looks at. UDP uses tuple and `len` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Addresses and ports as on the wire.
    pub tuple: Tuple,
    /// TCP flags.
    pub flags: Flags,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Acknowledgement number; meaningful with ACK.
    pub ack: u32,
    /// Advertised window, unscaled, as in the header.
    pub window: u16,
    /// Bytes of payload.
    pub len: u16,
    /// TCP options.
    pub options: Options,
}

impl Segment {
    /// A segment without payload, sequence numbers or options; window 65535.
    pub const fn new(tuple: Tuple, flags: Flags) -> Self {
        Self {
            tuple,
            flags,
            seq: 0,
            ack: 0,
            window: u16::MAX,
            len: 0,
            options: Options {
                wscale: None,
                sack_ok: false,
                sack_right: None,
                timestamps: None,
            },
        }
    }

    /// The sequence number after this segment: payload plus one for SYN and one for FIN.
    pub const fn end_seq(&self) -> u32 {
        self.seq
            .wrapping_add(self.len as u32)
            .wrapping_add(self.flags.has(Flags::SYN) as u32)
            .wrapping_add(self.flags.has(Flags::FIN) as u32)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] seq {}", self.tuple, self.flags, self.seq)?;
        if self.flags.has(Flags::ACK) {
            write!(f, " ack {}", self.ack)?;
        }
        if self.len > 0 {
            write!(f, " len {}", self.len)?;
        }
        Ok(())
    }
}

/// The ICMP errors that the model's parts send and understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpKind {
    /// Type 3 code 0.
    NetUnreachable,
    /// Type 3 code 1.
    HostUnreachable,
    /// Type 3 code 3.
    PortUnreachable,
    /// Type 3 code 9, 10 or 13.
    AdminProhibited,
    /// Type 11 code 0.
    TtlExceeded,
}

/// An ICMP error with the packet that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// What is wrong.
    pub kind: IcmpKind,
    /// The sender of the error.
    pub from: Ipv4Addr,
    /// The tuple of the packet that the error is about, as its receiver knows it.
    pub about: Tuple,
}

/// Whether sequence number `a` comes before `b`, modulo 2^32.
pub const fn seq_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether sequence number `a` comes after `b`, modulo 2^32.
pub const fn seq_after(a: u32, b: u32) -> bool {
    seq_before(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_in_tcpdump() {
        assert_eq!(Flags::SYN.with(Flags::ACK).to_string(), "S.");
        assert_eq!(Flags::ACK.to_string(), ".");
        assert_eq!(Flags(0).to_string(), "none");
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert!(seq_before(u32::MAX, 1));
        assert!(seq_after(1, u32::MAX));
        assert!(!seq_after(5, 5));
    }

    #[test]
    fn endpoints_parse_and_print() {
        let text = "10.20.79.226:31199";
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        assert!("10.20.79.226".parse::<Endpoint>().is_err());
        assert!("10.20.79.226:70000".parse::<Endpoint>().is_err());
    }
}
