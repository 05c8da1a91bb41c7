//! The few IPv4 packets the lab speaks: built from fields, read back into fields.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK.
pub const ACK: u8 = 0x10;
/// URG.
pub const URG: u8 = 0x20;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A TCP segment or a UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Sender.
    pub src: SocketAddrV4,
    /// Receiver.
    pub dst: SocketAddrV4,
    /// UDP instead of TCP: the fields after `len` are then zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub udp: bool,
    /// Bytes of payload.
    #[serde(default)]
    pub len: u16,
    /// TCP flags, as letters of `FSRPAU`.
    #[serde(default, with = "flag_letters")]
    pub flags: u8,
    /// Sequence number.
    #[serde(default)]
    pub seq: u32,
    /// Acknowledgement number.
    #[serde(default)]
    pub ack: u32,
    /// Window, unscaled.
    #[serde(default)]
    pub win: u16,
    /// A SYN offers a maximum segment size, window scaling and selective acknowledgements.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub options: bool,
}

impl Segment {
    /// The sequence space the segment takes: payload, SYN and FIN.
    pub fn span(&self) -> u32 {
        u32::from(self.len) + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0)
    }

    /// The packet, with correct checksums.
    pub fn to_bytes(&self) -> Vec<u8> {
        let options: &[u8] = if self.options && self.flags & SYN != 0 && !self.udp {
            // MSS 1460, SACK permitted, window scale 7.
            &[2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 0, 0]
        } else {
            &[]
        };
        let header = if self.udp { 8 } else { 20 + options.len() };
        let total = 20 + header + usize::from(self.len);
        let mut p = Vec::with_capacity(total);
        p.extend([0x45, 0]);
        p.extend((total as u16).to_be_bytes());
        p.extend([0, 0, 0x40, 0, 64, if self.udp { UDP } else { TCP }, 0, 0]);
        p.extend(self.src.ip().octets());
        p.extend(self.dst.ip().octets());
        let sum = checksum(&p, 0);
        p[10..12].copy_from_slice(&sum.to_be_bytes());
        p.extend(self.src.port().to_be_bytes());
        p.extend(self.dst.port().to_be_bytes());
        let at = if self.udp {
            p.extend(((header + usize::from(self.len)) as u16).to_be_bytes());
            p.extend([0, 0]);
            26
        } else {
            p.extend(self.seq.to_be_bytes());
            p.extend(self.ack.to_be_bytes());
            p.extend([(header as u8 / 4) << 4, self.flags]);
            p.extend(self.win.to_be_bytes());
            p.extend([0, 0, 0, 0]);
            p.extend(options);
            36
        };
        p.resize(total, b'x');
        let protocol = if self.udp { UDP } else { TCP };
        let pseudo = u32::from(protocol) + (total - 20) as u32;
        // The two addresses are part of the pseudo header, and lie just before the payload.
        let sum = checksum(&p[12..], pseudo);
        p[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        p
    }

    /// Reads a packet; `None` if it is neither TCP nor UDP over IPv4.
    pub fn parse(p: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(p.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(p.get(at..at + 4)?.try_into().ok()?));
        if *p.first()? >> 4 != 4 {
            return None;
        }
        let ip = usize::from(p[0] & 15) * 4;
        let total = usize::from(word(2)?);
        let address = |at, port| Some(SocketAddrV4::new(Ipv4Addr::from(long(at)?), word(port)?));
        let (src, dst) = (address(12, ip)?, address(16, ip + 2)?);
        match *p.get(9)? {
            TCP => {
                let offset = *p.get(ip + 12)?;
                Some(Self {
                    src,
                    dst,
                    udp: false,
                    len: total.checked_sub(ip + usize::from(offset >> 4) * 4)? as u16,
                    flags: *p.get(ip + 13)?,
                    seq: long(ip + 4)?,
                    ack: long(ip + 8)?,
                    win: word(ip + 14)?,
                    options: offset >> 4 > 5,
                })
            }
            UDP => Some(Self {
                src,
                dst,
                udp: true,
                len: total.checked_sub(ip + 8)? as u16,
                flags: 0,
                seq: 0,
                ack: 0,
                win: 0,
                options: false,
            }),
            _ => None,
        }
    }
}

/// The Internet checksum of some bytes, starting from a partial sum.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

mod flag_letters {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const LETTERS: &str = "FSRPAU";

    pub fn serialize<S: Serializer>(flags: &u8, s: S) -> Result<S::Ok, S::Error> {
        let letters = LETTERS
            .chars()
            .enumerate()
            .filter(|(bit, _)| flags >> bit & 1 == 1);
        s.serialize_str(&letters.map(|(_, letter)| letter).collect::<String>())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
        let mut flags = 0;
        for letter in String::deserialize(d)?.chars() {
            let bit = LETTERS.find(letter);
            flags |= 1 << bit.ok_or_else(|| D::Error::custom(format!("no TCP flag {letter:?}")))?;
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_survives_its_bytes() {
        for udp in [false, true] {
            let segment = Segment {
                src: "10.23.31.87:40000".parse().unwrap(),
                dst: "10.20.79.226:31199".parse().unwrap(),
                udp,
                len: 3,
                flags: if udp { 0 } else { SYN | ACK },
                seq: if udp { 0 } else { 7 },
                ack: if udp { 0 } else { 9 },
                win: if udp { 0 } else { 64240 },
                options: !udp,
            };
            let bytes = segment.to_bytes();
            assert_eq!(checksum(&bytes[..20], 0), 0);
            assert_eq!(
                checksum(
                    &bytes[12..],
                    u32::from(bytes[9]) + (bytes.len() - 20) as u32
                ),
                0
            );
            assert_eq!(Segment::parse(&bytes), Some(segment));
        }
    }

    #[test]
    fn flags_are_letters() {
        let line = r#"{"src":"1.2.3.4:5","dst":"6.7.8.9:10","flags":"SA"}"#;
        let segment: Segment = serde_json::from_str(line).unwrap();
        assert_eq!(segment.flags, SYN | ACK);
        assert!(
            serde_json::to_string(&segment)
                .unwrap()
                .contains(r#""flags":"SA""#)
        );
    }
}
