//! Packets of the recorded services: a packet socket of our own, so that a node needs no other tool.
//!
//! Why not tcpdump: it is not on most nodes; on any device it sees a packet at every layer (pod's veth, bridge, bond,
//! VLAN); and it cannot follow real servers that come and go. Here the kernel drops what has no port of interest,
//! devices under a bridge or bond are left out (their packets are seen at the bridge), and a packet is judged half a second
//! after it was seen, when the rules of its moment are known. The kernel stamps it on arrival.
//!
//! Kept is what rules can look at: headers, no payload of TCP or UDP.
//! Leaves out: IPv6, fragments behind the first; a client on the node itself, whose packets are
//! translated before any device sees them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::atomic::Ordering;

use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::time::{NANOS_PER_SEC, Span};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimestampns, RxqOvfl};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::control::Control;
use super::log::Log;
use super::select::Selection;
use super::{RecordError, clock};
use crate::capture::Stamp;
use crate::capture::packet::link;
use crate::capture::pcap::MAGIC_NANOS;

/// Bytes of a packet that the kernel hands over: two largest IPv4 headers and a largest TCP header.
const SNAP: u32 = 192;
/// What the kernel may hold for us.
const BUFFER: usize = 32 << 20;
/// A packet is judged so long after it was seen, when the rules have been looked at again.
const JUDGED_AFTER: Span = Span::from_millis(500);
/// Packets that wait to be judged; the oldest are judged early beyond this.
const WAITING_MAX: usize = 200_000;
/// More ports than this are not put into the kernel's filter: then it passes on all TCP and UDP.
const PORTS_MAX: usize = 60;
/// Packets read between two looks at other things.
const BATCH: usize = 1024;
/// How long what is known of a device is believed.
const DEVICE_BELIEVED: Span = Span::from_secs(5);

/// A packet socket and the file that its packets go to.
pub struct Packets<'c> {
    socket: Socket,
    log: Log<'c>,
    selection: Selection,
    control: &'c Control,
    ports: BTreeSet<u16>,
    waiting: VecDeque<Seen>,
    devices: BTreeMap<u32, (Stamp, bool)>,
    /// Packets written.
    pub written: u64,
    /// Packets that the kernel had no room for.
    pub lost: u64,
}

/// A packet as it was seen.
struct Seen {
    at: Stamp,
    device: u32,
    device_kind: u16,
    /// 4 was sent by the node.
    kind: u8,
    link_address: [u8; 6],
    link_address_len: u8,
    len: u32,
    bytes: Vec<u8>,
}

impl<'c> Packets<'c> {
    /// Opens the socket: from now on packets are kept.
    ///
    /// # Errors
    /// If the kernel refuses the socket, or the file cannot be written.
    pub fn open(
        dir: &Path,
        selection: &Selection,
        control: &'c Control,
    ) -> Result<Self, RecordError> {
        let refused = |error| RecordError::read("packets (a packet socket)".as_ref(), error);
        let all = Protocol::from(i32::from(0x0003_u16.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).map_err(refused)?;
        let mut this = Self {
            socket,
            log: Log::create(dir, "packets.pcap", control)?,
            selection: selection.clone(),
            control,
            ports: BTreeSet::new(),
            waiting: VecDeque::new(),
            devices: BTreeMap::new(),
            written: 0,
            lost: 0,
        };
        this.follow_ports().map_err(refused)?;
        let set_up = || -> nix::Result<()> {
            let fd = &this.socket;
            // The larger buffer needs CAP_NET_ADMIN; without it the usual limit holds.
            if setsockopt(fd, RcvBufForce, &BUFFER).is_err() {
                setsockopt(fd, RcvBuf, &BUFFER)?;
            }
            setsockopt(fd, ReceiveTimestampns, &true)?;
            setsockopt(fd, RxqOvfl, &1)
        };
        set_up().map_err(|error| refused(error.into()))?;
        let mut header = Vec::with_capacity(24);
        for word in [MAGIC_NANOS, 0x0004_0002, 0, 0, SNAP + 20, link::LINUX_SLL2] {
            header.extend(word.to_le_bytes());
        }
        this.log.write(&header)?;
        this.log.end()?;
        Ok(this)
    }

    /// Reads and writes packets until the recording ends, and then those that still wait.
    ///
    /// # Errors
    /// If the socket or the file fails.
    pub fn run(&mut self) -> Result<(), RecordError> {
        let failed = |error: Errno| RecordError::read("packets".as_ref(), error.into());
        loop {
            let ended = self.control.ended().is_some();
            {
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                let wait = if ended { 0_u8 } else { 50 };
                match poll(&mut fds, PollTimeout::from(wait)) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            let read = self.read_batch().map_err(failed)?;
            if self.selection.ports() != self.ports {
                self.follow_ports()
                    .map_err(|error| RecordError::read("packets".as_ref(), error))?;
            }
            self.judge(ended)?;
            if self.log.is_full() || (ended && read < BATCH) {
                break;
            }
        }
        self.judge(true)
    }

    /// Bytes written.
    pub const fn size(&self) -> u64 {
        self.log.size()
    }

    /// Puts the ports of today into the kernel's filter.
    fn follow_ports(&mut self) -> std::io::Result<()> {
        self.ports = self.selection.ports();
        let program = filter(&self.ports);
        let program = program
            .into_iter()
            .map(|(code, yes, no, k)| SockFilter::new(code, yes, no, k));
        self.socket.attach_filter(&program.collect::<Vec<_>>())
    }

    fn read_batch(&mut self) -> nix::Result<usize> {
        let mut room = [0; SNAP as usize];
        let mut control = nix::cmsg_space!(TimeSpec, u32);
        for read in 0..BATCH {
            let mut parts = [IoSliceMut::new(&mut room)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = recvmsg::<LinkAddr>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                flags,
            );
            let message = match message {
                Ok(message) => message,
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(read),
                Err(error) => return Err(error),
            };
            let mut at = None;
            for part in message.cmsgs()? {
                match part {
                    ControlMessageOwned::ScmTimestampns(time) => {
                        at = u64::try_from(std::time::Duration::from(time).as_nanos()).ok();
                    }
                    ControlMessageOwned::RxqOvfl(lost) => self.lost = u64::from(lost),
                    _ => {}
                }
            }
            let (got, from) = (message.bytes, message.address);
            let at = at.map_or_else(clock::wall, Stamp);
            if let Some(from) = from {
                self.seen(at, &from, &room[..got.min(SNAP as usize)]);
            }
        }
        Ok(BATCH)
    }

    /// Keeps a packet that was seen where the node's IP layer sees it.
    fn seen(&mut self, at: Stamp, from: &LinkAddr, bytes: &[u8]) {
        const LOOPBACK: u16 = 772;
        const TO_ANOTHER: u8 = 3;
        const SENT: u8 = 4;
        let device = u32::try_from(from.ifindex()).unwrap_or(0);
        // Loopback shows a packet when it is sent and when it arrives.
        let twice = from.hatype() == LOOPBACK && from.pkttype() == SENT;
        if twice || from.pkttype() == TO_ANOTHER || self.is_part_of_another(at, device) {
            return;
        }
        self.waiting.push_back(Seen {
            at,
            device,
            device_kind: from.hatype(),
            kind: from.pkttype(),
            link_address: from.addr().unwrap_or_default(),
            link_address_len: u8::try_from(from.halen()).unwrap_or(0),
            // The filter's cut hides the length on the wire; the packet tells it itself, unless it is still to be
            // segmented.
            len: be16(bytes, 2).map_or(0, u32::from).max(bytes.len() as u32),
            bytes: headers_of(bytes).to_vec(),
        });
    }

    /// Whether a device is part of a bridge or a bond: its packets are seen there.
    fn is_part_of_another(&mut self, now: Stamp, device: u32) -> bool {
        if let Some((when, part)) = self.devices.get(&device)
            && now.since(*when) < DEVICE_BELIEVED
        {
            return *part;
        }
        let name = nix::net::if_::if_indextoname(device).ok();
        let part = name.is_some_and(|name| {
            let folder = Path::new("/sys/class/net").join(name.to_string_lossy().as_ref());
            folder.join("brport").exists() || folder.join("bonding_slave").exists()
        });
        self.devices.insert(device, (now, part));
        part
    }

    /// Writes those of the waiting packets that are wanted, once they have waited long enough; `all`: at once.
    fn judge(&mut self, all: bool) -> Result<(), RecordError> {
        let from = Stamp(self.control.packets_from.load(Ordering::Acquire));
        if from.0 == 0 && !all && self.waiting.len() <= WAITING_MAX {
            return Ok(());
        }
        let now = clock::wall();
        while let Some(seen) = self.waiting.front() {
            // A clock that is set back must not hold packets for ever: those before it wait no longer.
            let waited = now.since(seen.at) >= JUDGED_AFTER || now < seen.at;
            if !waited && !all && self.waiting.len() <= WAITING_MAX {
                break;
            }
            let Some(seen) = self.waiting.pop_front() else {
                break;
            };
            if from.0 == 0 || seen.at < from || !self.is_wanted(&seen.bytes) {
                continue;
            }
            self.log.begin_record();
            self.log.write(&seen.record())?;
            if self.log.is_full() {
                return self.log.end();
            }
            self.written += 1;
        }
        self.log.begin_record();
        self.log.end()
    }

    fn is_wanted(&self, ip: &[u8]) -> bool {
        let ends = ends_of(ip).or_else(|| icmp_subject(ip).and_then(ends_of));
        ends.is_some_and(|(proto, ends)| {
            ends.into_iter()
                .any(|end| self.selection.has_end(proto, end))
        })
    }
}

impl Seen {
    /// As a record of a pcap file of Linux cooked packets, version 2.
    fn record(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(36 + self.bytes.len());
        let captured = 20 + u32::try_from(self.bytes.len()).unwrap_or(SNAP);
        let secs = (self.at.0 / NANOS_PER_SEC) as u32;
        let nanos = (self.at.0 % NANOS_PER_SEC) as u32;
        for word in [secs, nanos, captured, self.len.saturating_add(20)] {
            out.extend(word.to_le_bytes());
        }
        out.extend(0x0800_u16.to_be_bytes());
        out.extend([0; 2]);
        out.extend(self.device.to_be_bytes());
        out.extend(self.device_kind.to_be_bytes());
        out.extend([self.kind, self.link_address_len]);
        out.extend(self.link_address);
        out.extend([0; 2]);
        out.extend_from_slice(&self.bytes);
        out
    }
}

/// An instruction of classic BPF: code, jumps if true and if false, operand.
type Instruction = (u16, u8, u8, u32);

/// Where a test of the filter leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// To the instruction of this number.
    At(usize),
    Keep,
    Drop,
}

/// The kernel's filter: IPv4 without a VLAN tag (behind it the packet is seen at the VLAN's own device), and in it
/// ICMP errors of unreachability, and TCP and UDP from or to one of the ports.
fn filter(ports: &BTreeSet<u16>) -> Vec<Instruction> {
    // Opcodes of classic BPF, and the addresses at which it keeps what is not in the packet.
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_AT_X: u16 = 0x48;
    const LOAD_BYTE_AT_X: u16 = 0x50;
    const X_IS_HEADER_LENGTH: u16 = 0xb1;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY_BIT: u16 = 0x45;
    const PROTOCOL: u32 = 0xffff_f000;
    const VLAN_TAG: u32 = 0xffff_f000 + 48;

    let load = |code, k| (code, k, To::Next, To::Next);
    let mut program = vec![
        load(LOAD_WORD, PROTOCOL),
        (IF_EQUAL, 0x0800, To::Next, To::Drop),
        load(LOAD_WORD, VLAN_TAG),
        (IF_EQUAL, 0, To::Next, To::Drop),
        load(LOAD_HALF, 6),
        (IF_ANY_BIT, 0x1fff, To::Drop, To::Next),
        load(X_IS_HEADER_LENGTH, 0),
        load(LOAD_BYTE, 9),
        (IF_EQUAL, 6, To::At(13), To::Next),
        (IF_EQUAL, 17, To::At(13), To::Next),
        (IF_EQUAL, 1, To::Next, To::Drop),
        load(LOAD_BYTE_AT_X, 0),
        (IF_EQUAL, 3, To::Keep, To::Drop),
    ];
    if ports.len() <= PORTS_MAX {
        for at in [0, 2] {
            program.push(load(LOAD_HALF_AT_X, at));
            program.extend(
                ports
                    .iter()
                    .map(|port| (IF_EQUAL, u32::from(*port), To::Keep, To::Next)),
            );
        }
        // What no port was found in.
        program.push((IF_EQUAL, 0, To::Drop, To::Drop));
    } else {
        program.push((IF_EQUAL, 0, To::Keep, To::Keep));
    }
    assemble(&program)
}

/// Puts distances for places, and the two ends behind.
fn assemble(program: &[(u16, u32, To, To)]) -> Vec<Instruction> {
    const RETURN: u16 = 0x06;
    let (keep, drop) = (program.len(), program.len() + 1);
    let distance = |from: usize, to| {
        let to = match to {
            To::Next => from + 1,
            To::At(at) => at,
            To::Keep => keep,
            To::Drop => drop,
        };
        // At most twice PORTS_MAX tests and a dozen others lie between.
        u8::try_from(to - from - 1).unwrap_or(u8::MAX)
    };
    let tests = program
        .iter()
        .enumerate()
        .map(|(from, (code, k, yes, no))| (*code, distance(from, *yes), distance(from, *no), *k));
    let ends = [SNAP, 0].map(|k| (RETURN, 0, 0, k));
    tests.chain(ends).collect()
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn header_len(ip: &[u8]) -> Option<usize> {
    let first = ip.first()?;
    (first >> 4 == 4).then_some(usize::from(first & 0x0f) * 4)
}

/// Protocol and ends of a packet of TCP or UDP.
fn ends_of(ip: &[u8]) -> Option<(Proto, [Endpoint; 2])> {
    let at = header_len(ip)?;
    let proto = match ip.get(9)? {
        6 => Proto::Tcp,
        17 => Proto::Udp,
        _ => return None,
    };
    let address = |from: usize| {
        let octets: [u8; 4] = ip.get(from..from + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    Some((
        proto,
        [
            Endpoint::new(address(12)?, be16(ip, at)?),
            Endpoint::new(address(16)?, be16(ip, at + 2)?),
        ],
    ))
}

/// The packet that an ICMP error is about.
fn icmp_subject(ip: &[u8]) -> Option<&[u8]> {
    let at = header_len(ip)?;
    (ip.get(9) == Some(&1)).then(|| ip.get(at + 8..))?
}

/// A packet without the payload of TCP or UDP.
fn headers_of(ip: &[u8]) -> &[u8] {
    let end = header_len(ip).and_then(|at| match ip.get(9)? {
        6 => Some(at + usize::from(*ip.get(at + 12)? >> 4) * 4),
        17 => Some(at + 8),
        _ => None,
    });
    &ip[..end.unwrap_or(ip.len()).min(ip.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::write::ipv4_bytes;
    use crate::capture::{Content, packet};
    use ipvs_model::segment::{Flags, Segment, Tuple};

    fn segment(len: u16) -> Segment {
        let tuple = Tuple {
            proto: Proto::Tcp,
            src: "10.23.31.87:58578".parse().unwrap(),
            dst: "10.20.79.226:31199".parse().unwrap(),
        };
        let mut segment = Segment::new(tuple, Flags::SYN);
        segment.options.wscale = Some(7);
        segment.len = len;
        segment
    }

    #[test]
    fn records_are_headers_that_read_back_with_their_length() {
        let segment = segment(700);
        let ip = ipv4_bytes(&segment, 64, 9);
        let headers = headers_of(&ip);
        assert_eq!(headers.len(), 44);
        let seen = Seen {
            at: Stamp(1_700_000_000_000_000_321),
            device: 7,
            device_kind: 1,
            kind: 4,
            link_address: [2; 6],
            link_address_len: 6,
            len: 744,
            bytes: headers.to_vec(),
        };
        let record = seen.record();
        let read = packet::decode(seen.at, 1, link::LINUX_SLL2, &record[16..]);
        assert_eq!(
            (read.interface, read.way),
            (Some(7), Some(crate::capture::Way::Out))
        );
        let Content::Segment {
            segment: back,
            options_cut,
        } = read.content
        else {
            panic!("{read:?}");
        };
        assert_eq!((back, options_cut), (segment, false));
    }

    #[test]
    fn an_icmp_error_is_judged_by_what_it_is_about() {
        let ip = ipv4_bytes(&segment(0), 64, 9);
        let mut icmp = vec![
            0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        icmp.extend([3, 1, 0, 0, 0, 0, 0, 0]);
        icmp.extend(&ip[..28]);
        let about = icmp_subject(&icmp).and_then(ends_of).unwrap();
        assert_eq!(about.1[1].port, 31199);
        assert!(ends_of(&icmp).is_none());
        for len in 0..icmp.len() {
            let _ = (
                icmp_subject(&icmp[..len]).and_then(ends_of),
                headers_of(&icmp[..len]),
            );
        }
    }

    /// Runs the filter as the kernel does, for the instructions that it uses.
    fn keeps(program: &[Instruction], ip: &[u8], vlan: bool) -> bool {
        let (mut a, mut x, mut at) = (0, 0, 0);
        let half = |from: usize| u32::from(be16(ip, from).unwrap());
        loop {
            let (code, yes, no, k) = program[at];
            at += 1;
            let jump = |test| usize::from(if test { yes } else { no });
            match code {
                0x20 if k == 0xffff_f000 => a = 0x0800,
                0x20 => a = u32::from(vlan),
                0x28 => a = half(k as usize),
                0x30 => a = u32::from(ip[k as usize]),
                0x48 => a = half(k as usize + x),
                0x50 => a = u32::from(ip[k as usize + x]),
                0xb1 => x = usize::from(ip[k as usize] & 0xf) * 4,
                0x15 => at += jump(a == k),
                0x45 => at += jump(a & k != 0),
                0x06 => return k > 0,
                _ => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn the_kernels_filter_keeps_ports_and_unreachabilities() {
        let ip = ipv4_bytes(&segment(0), 64, 9);
        let mut other = ip.clone();
        other[22..24].copy_from_slice(&443_u16.to_be_bytes());
        let mut icmp = ip.clone();
        (icmp[9], icmp[20]) = (1, 3);
        let mut echo = icmp.clone();
        echo[20] = 8;
        let mut fragment = ip.clone();
        fragment[7] = 1;
        let mut gre = ip.clone();
        gre[9] = 47;
        for ports in [
            vec![31199],
            vec![80, 31199],
            (1..=59).chain([31199]).collect(),
        ] {
            let program = filter(&ports.into_iter().collect());
            assert!(keeps(&program, &ip, false));
            assert!(keeps(&program, &icmp, false));
            for (which, packet) in [&other, &echo, &fragment, &gre].into_iter().enumerate() {
                assert!(!keeps(&program, packet, false), "{which}");
            }
            assert!(!keeps(&program, &ip, true));
        }
        let program = filter(&(1..=200).collect());
        assert!(keeps(&program, &other, false) && keeps(&program, &icmp, false));
        assert!(!keeps(&program, &gre, false) && !keeps(&program, &fragment, false));
    }
}
