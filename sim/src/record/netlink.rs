//! The conntrack table over netlink, written as `/proc/net/nf_conntrack` writes it.
//!
//! The kernel's dump goes on where it stopped, so it takes time in proportion to the table, misses no live entry, and
//! works where the file of `/proc` is compiled out. It needs CAP_NET_ADMIN.
//!
//! Faithful to: `ctnetlink_dump_table`, `ctnetlink_fill_info` (the dump), `ct_seq_show` (the text).
//! Leaves out: IPv6, protocols other than TCP and UDP, accounting, labels.

use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use ipvs_model::segment::{Endpoint, Proto, Tuple};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

use super::control::Control;
use super::log::Log;
use super::select::Selection;
use super::table::Listed;
use super::{RecordError, clock};

/// Room for one message of a dump; the kernel sends at most 32 KiB at once.
const ROOM: usize = 1 << 16;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`: the message type.
const CT_GET: u16 = 0x0101;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x0301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Length of a netlink header, and of the one of netfilter behind it.
const HEADERS: usize = 16 + 4;
/// What is written at once.
const GATHERED: usize = 1 << 16;

/// States in the order of the kernel's numbers.
const STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// An open way to the table.
#[derive(Debug)]
pub struct Conntrack {
    socket: OwnedFd,
}

/// One entry of a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    orig: Option<Tuple>,
    reply: Option<Tuple>,
    status: u32,
    state: Option<u8>,
    timeout_s: Option<u32>,
    mark: u32,
    zone: u16,
    users: u32,
}

impl Conntrack {
    /// Opens the way, and tries it.
    ///
    /// # Errors
    /// If the kernel refuses or has no such dump.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let this = Self { socket };
        this.dump(|_| Ok(false))?;
        Ok(this)
    }

    /// Writes the table as a block: the entries with an end that is selected.
    ///
    /// # Errors
    /// If the kernel or the log fails.
    pub fn list(
        &self,
        log: &mut Log<'_>,
        selection: &Selection,
        control: &Control,
    ) -> Result<Listed, RecordError> {
        let (at, start) = (clock::wall(), clock::monotonic());
        log.begin(at)?;
        let (mut rows, mut bytes) = (0, 0);
        let mut text = Vec::with_capacity(GATHERED + 512);
        let mut failed = None;
        let done = self.dump(|message| {
            bytes += message.len() as u64;
            if let Some(entry) = entry(message)
                && entry.is_wanted(selection)
                && entry.print(&mut text)
            {
                rows += 1;
                if text.len() >= GATHERED {
                    failed = log.write(&text).err();
                    text.clear();
                }
            }
            Ok(failed.is_none() && !log.is_full())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        log.write(&text)?;
        log.end()?;
        if let Err(error) = done {
            control.end(super::Ended::Failed);
            return Err(RecordError::read(
                "the conntrack table over netlink".as_ref(),
                error,
            ));
        }
        Ok(Listed {
            took: clock::monotonic() - start,
            bytes,
            rows,
            cut: false,
        })
    }

    /// Asks for the table and hands over each entry's message; false from `each` makes the rest pass unseen.
    fn dump(&self, mut each: impl FnMut(&[u8]) -> io::Result<bool>) -> io::Result<()> {
        let mut request = Vec::with_capacity(HEADERS);
        request.extend((HEADERS as u32).to_ne_bytes());
        request.extend(CT_GET.to_ne_bytes());
        request.extend(DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([2, 0, 0, 0]); // AF_INET, version 0, no resource.
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut room = vec![0; ROOM];
        let mut wanted = true;
        loop {
            let read = match recv(self.socket.as_raw_fd(), &mut room, MsgFlags::empty()) {
                Ok(read) => read,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut data = &room[..read];
            while let Some((kind, message, rest)) = next_message(data) {
                data = rest;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = word(message).map_or(0, u32::cast_signed);
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ if wanted => wanted = each(message)?,
                    _ => {}
                }
            }
        }
    }
}

/// The type and the content of the first message, and what follows it.
fn next_message(data: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = word(data)? as usize;
    let kind = u16::from_ne_bytes(data.get(4..6)?.try_into().ok()?);
    let message = data.get(16..len)?;
    let next = data.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, message, next))
}

/// The attributes in a piece of a message: number and content. The upper two bits of a number are flags.
fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(data.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(data.get(2..4)?.try_into().ok()?) & 0x3fff;
        let content = data.get(4..len)?;
        data = data.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, content))
    })
}

fn attribute(data: &[u8], number: u16) -> Option<&[u8]> {
    attributes(data)
        .find(|(kind, _)| *kind == number)
        .map(|(_, content)| content)
}

fn word(data: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(..4)?.try_into().ok()?))
}

fn be32(data: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(..4)?.try_into().ok()?))
}

fn be16(data: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(..2)?.try_into().ok()?))
}

/// Reads one entry. `None` if it is no message of one.
fn entry(message: &[u8]) -> Option<Entry> {
    let mut entry = Entry::default();
    // Numbers of attributes: `CTA_*` of the kernel's interface.
    for (kind, content) in attributes(message.get(4..)?) {
        match kind {
            1 => entry.orig = tuple(content),
            2 => entry.reply = tuple(content),
            3 => entry.status = be32(content)?,
            4 => {
                let tcp = attribute(content, 1);
                let state = tcp.and_then(|tcp| attribute(tcp, 1));
                entry.state = state.and_then(|state| state.first().copied());
            }
            7 => entry.timeout_s = be32(content),
            8 => entry.mark = be32(content)?,
            11 => entry.users = be32(content)?,
            18 => entry.zone = be16(content)?,
            _ => {}
        }
    }
    Some(entry)
}

fn tuple(data: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (attribute(data, 1)?, attribute(data, 2)?);
    let end = |address, port| {
        let ip = Ipv4Addr::from_bits(be32(attribute(ip, address)?)?);
        Some(Endpoint::new(ip, be16(attribute(proto, port)?)?))
    };
    let proto = match *attribute(proto, 1)?.first()? {
        6 => Proto::Tcp,
        17 => Proto::Udp,
        _ => return None,
    };
    Some(Tuple {
        proto,
        src: end(1, 2)?,
        dst: end(2, 3)?,
    })
}

impl Entry {
    fn is_wanted(&self, selection: &Selection) -> bool {
        let tuples = [self.orig, self.reply].into_iter().flatten();
        selection.is_everything()
            || tuples.into_iter().any(|tuple| {
                selection.has_end(tuple.proto, tuple.src)
                    || selection.has_end(tuple.proto, tuple.dst)
            })
    }

    /// Prints the entry; false if it has no two tuples of ours.
    fn print(&self, out: &mut Vec<u8>) -> bool {
        let (Some(orig), Some(reply)) = (self.orig, self.reply) else {
            return false;
        };
        let has = |bit: u32| self.status >> bit & 1 == 1;
        let name = match orig.proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        };
        // Writing to memory does not fail.
        let _ = write!(out, "ipv4     2 {name:<8} {} ", orig.proto.number());
        // The file shows neither for a flow that a flow table forwards.
        let offloaded = has(14) || has(15);
        if let Some(timeout_s) = self.timeout_s.filter(|_| !offloaded) {
            let _ = write!(out, "{timeout_s} ");
        }
        let state = self.state.and_then(|state| STATES.get(usize::from(state)));
        if let Some(state) = state.filter(|_| !offloaded) {
            let _ = write!(out, "{state} ");
        }
        for (tuple, direction) in [(orig, 0), (reply, 1)] {
            let Tuple { src, dst, .. } = tuple;
            let _ = write!(
                out,
                "src={} dst={} sport={} dport={} ",
                src.ip, dst.ip, src.port, dst.port
            );
            if direction == 0 && !has(1) {
                out.extend_from_slice(b"[UNREPLIED] ");
            }
        }
        out.extend_from_slice(match (has(15), has(14), has(2)) {
            (true, ..) => b"[HW_OFFLOAD] ",
            (_, true, _) => b"[OFFLOAD] ",
            (_, _, true) => b"[ASSURED] ",
            _ => b"",
        });
        let _ = writeln!(
            out,
            "mark={} zone={} use={}",
            self.mark, self.zone, self.users
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::conntrack::parse_entry;

    fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + content.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_of(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16) -> Vec<u8> {
        let ip = [attribute(1, &src), attribute(2, &dst)].concat();
        let proto = [
            attribute(1, &[6]),
            attribute(2, &sport.to_be_bytes()),
            attribute(3, &dport.to_be_bytes()),
        ]
        .concat();
        [attribute(0x8001, &ip), attribute(0x8002, &proto)].concat()
    }

    fn message(status: u32, state: u8) -> Vec<u8> {
        let orig = tuple_of([10, 23, 31, 87], [10, 20, 79, 226], 58578, 31199);
        let reply = tuple_of([10, 27, 1, 11], [10, 23, 31, 87], 80, 58578);
        let tcp = attribute(0x8001, &attribute(1, &[state]));
        let parts = [
            vec![2, 0, 0, 0],
            attribute(0x8001, &orig),
            attribute(0x8002, &reply),
            attribute(3, &status.to_be_bytes()),
            attribute(7, &60_u32.to_be_bytes()),
            attribute(0x8004, &tcp),
            attribute(11, &2_u32.to_be_bytes()),
        ];
        parts.concat()
    }

    #[test]
    fn an_entry_is_printed_as_the_file_has_it() {
        let mut out = Vec::new();
        let read = entry(&message(1 << 1 | 1 << 2 | 1 << 3, 7)).unwrap();
        assert!(read.print(&mut out));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "ipv4     2 tcp      6 60 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 \
             src=10.27.1.11 dst=10.23.31.87 sport=80 dport=58578 [ASSURED] mark=0 zone=0 use=2\n"
        );
        let row = parse_entry(&text).item().unwrap();
        assert_eq!(
            (row.timeout_s, row.assured, row.unreplied),
            (Some(60), true, false)
        );
        let mut out = Vec::new();
        entry(&message(1 << 3, 1)).unwrap().print(&mut out);
        let row = parse_entry(&String::from_utf8(out).unwrap())
            .item()
            .unwrap();
        assert!(row.unreplied && !row.assured);
    }

    #[test]
    fn the_selection_looks_at_all_four_ends() {
        let read = entry(&message(0, 1)).unwrap();
        for (at, wanted) in [
            ("10.20.79.226:31199", true),
            ("10.27.1.11:80", true),
            ("10.27.1.11:81", false),
        ] {
            let selection = Selection::new(vec![at.parse().unwrap()]);
            assert_eq!(read.is_wanted(&selection), wanted, "{at}");
        }
    }

    #[test]
    fn broken_messages_are_no_entries() {
        let whole = message(0, 1);
        for len in 0..whole.len() {
            if let Some(entry) = entry(&whole[..len]) {
                entry.print(&mut Vec::new());
            }
        }
        for len in 0..40 {
            let _ = next_message(&[0xff; 40][..len]);
        }
    }
}
