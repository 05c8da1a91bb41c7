//! Conntrack entries: `/proc/net/nf_conntrack`, `conntrack -L` with or without `-o extended`, and the event
//! stream of `conntrack -E -o timestamp`.
//!
//! Faithful to: `ct_seq_show` (kernel) and libnetfilter_conntrack's default output. The fields after the
//! state are `key=value` in any order; the first `src=` belongs to the original direction, the second to
//! the reply.
//! Leaves out: IPv6 and protocols other than TCP and UDP; they are named and counted.

use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto, Tuple};

use super::ipvs_conn::StateName;
use super::place::{Parsed, Stamp};

/// One conntrack entry as listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConntrackLine {
    /// Addresses and ports of the first packet's direction.
    pub orig: Tuple,
    /// What the answer is expected to look like: source is the real server.
    pub reply: Tuple,
    /// TCP state; `None` for UDP, for offloaded flows and in some events.
    pub state: Option<StateName>,
    /// Remaining seconds; `None` for offloaded flows and destroyed entries.
    pub timeout_s: Option<u32>,
    /// `[UNREPLIED]`.
    pub unreplied: bool,
    /// `[ASSURED]`.
    pub assured: bool,
    /// `[OFFLOAD]` or `[HW_OFFLOAD]`: a flow table forwards it, the state stands still.
    pub offload: bool,
    /// Conntrack zone; 0 is the default zone, the only one IPVS looks into.
    pub zone: u16,
    /// `mark=`.
    pub mark: u32,
}

/// What happened to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConntrackChange {
    /// `[NEW]`: confirmed.
    New,
    /// `[UPDATE]`: state or status changed.
    Update,
    /// `[DESTROY]`: removed.
    Destroy,
}

/// One line of the event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackEvent {
    /// When the tool saw it.
    pub at: Stamp,
    /// What happened.
    pub change: ConntrackChange,
    /// To which entry.
    pub entry: ConntrackLine,
}

/// The fields of a line while they are being collected.
#[derive(Default)]
struct Fields {
    src: [Option<Ipv4Addr>; 2],
    dst: [Option<Ipv4Addr>; 2],
    sport: [Option<u16>; 2],
    dport: [Option<u16>; 2],
    numbers: Vec<u32>,
    state: Option<StateName>,
    unreplied: bool,
    assured: bool,
    offload: bool,
    zone: u16,
    mark: u32,
}

/// Reads one line of a listing.
pub fn parse_entry(line: &str) -> Parsed<ConntrackLine> {
    let mut words = line.split_ascii_whitespace().peekable();
    match words.peek() {
        None => return Parsed::Heading,
        Some(&"conntrack") => return Parsed::Heading,
        Some(&"ipv4") => {
            words.next();
            words.next();
        }
        Some(&"ipv6") => return Parsed::Foreign("IPv6"),
        Some(_) => {}
    }
    let proto = match words.next() {
        Some("tcp") => Proto::Tcp,
        Some("udp") => Proto::Udp,
        Some(
            "icmp" | "icmpv6" | "sctp" | "dccp" | "gre" | "udplite" | "unknown" | "igmp" | "esp"
            | "ah" | "ospf" | "vrrp" | "ipencap" | "ipip",
        ) => {
            return Parsed::Foreign("conntrack entry of another protocol");
        }
        _ => return Parsed::Unknown("no protocol of a conntrack entry"),
    };
    let Some(number) = words.next().and_then(|word| word.parse::<u8>().ok()) else {
        return Parsed::Unknown("no protocol number");
    };
    if number != proto.number() {
        return Parsed::Unknown("a protocol number that does not fit its name");
    }
    let mut fields = Fields::default();
    for word in words {
        if let Err(parsed) = fields.take(word) {
            return parsed;
        }
    }
    fields.finish(proto)
}

impl Fields {
    fn take(&mut self, word: &str) -> Result<(), Parsed<ConntrackLine>> {
        if let Some((key, value)) = word.split_once('=') {
            return self.take_pair(key, value);
        }
        match word {
            "[UNREPLIED]" => self.unreplied = true,
            "[ASSURED]" => self.assured = true,
            "[OFFLOAD]" | "[HW_OFFLOAD]" => self.offload = true,
            _ if word.starts_with('[') => {}
            _ => match (word.parse(), StateName::of(word)) {
                (Ok(number), _) => self.numbers.push(number),
                (_, Some(state)) => self.state = Some(state),
                _ if self.src[0].is_none() => {
                    return Err(Parsed::Unknown("an unknown conntrack state"));
                }
                _ => {}
            },
        }
        Ok(())
    }

    fn take_pair(&mut self, key: &str, value: &str) -> Result<(), Parsed<ConntrackLine>> {
        let bad = || Err(Parsed::Unknown("an address or port that is none"));
        match key {
            "src" | "dst" if value.contains(':') => return Err(Parsed::Foreign("IPv6")),
            "src" | "dst" => {
                let slots = if key == "src" {
                    &mut self.src
                } else {
                    &mut self.dst
                };
                let Ok(ip) = value.parse() else { return bad() };
                fill(slots, ip);
            }
            "sport" | "dport" => {
                let slots = if key == "sport" {
                    &mut self.sport
                } else {
                    &mut self.dport
                };
                let Ok(port) = value.parse() else {
                    return bad();
                };
                fill(slots, port);
            }
            "zone" | "zone-orig" | "zone-reply" => {
                self.zone = value.parse().unwrap_or(u16::MAX);
            }
            "mark" => self.mark = value.parse().unwrap_or(0),
            _ => {}
        }
        Ok(())
    }

    fn finish(self, proto: Proto) -> Parsed<ConntrackLine> {
        let tuple = |side: usize| {
            Some(Tuple {
                proto,
                src: Endpoint::new(self.src[side]?, self.sport[side]?),
                dst: Endpoint::new(self.dst[side]?, self.dport[side]?),
            })
        };
        let (Some(orig), Some(reply)) = (tuple(0), tuple(1)) else {
            return Parsed::Unknown("no two tuples of src, dst, sport and dport");
        };
        if self.zone != 0 {
            return Parsed::Foreign("conntrack zone other than 0");
        }
        Parsed::Item(ConntrackLine {
            orig,
            reply,
            state: self.state,
            timeout_s: self.numbers.first().copied(),
            unreplied: self.unreplied,
            assured: self.assured,
            offload: self.offload,
            zone: self.zone,
            mark: self.mark,
        })
    }
}

/// Puts a value into the first free slot; a third one is ignored.
fn fill<T>(slots: &mut [Option<T>; 2], value: T) {
    if let Some(slot) = slots.iter_mut().find(|slot| slot.is_none()) {
        *slot = Some(value);
    }
}

/// Whether a line looks like one of the event stream: it begins with a time in brackets.
pub fn is_event(line: &str) -> bool {
    line.trim_start().starts_with('[')
}

/// Reads one line of `conntrack -E -o timestamp`, such as
/// `[1700000000.012863]      [NEW] tcp      6 120 SYN_SENT src=...`.
pub fn parse_event(line: &str) -> Parsed<ConntrackEvent> {
    let bad_time = Parsed::Unknown("no time in brackets (run conntrack -E with -o timestamp)");
    let Some((time, rest)) = line
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    else {
        return if line.trim().is_empty() || line.starts_with("conntrack ") {
            Parsed::Heading
        } else {
            bad_time
        };
    };
    let Some(at) = event_time(time) else {
        return bad_time;
    };
    let Some((kind, entry)) = rest
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    else {
        return Parsed::Unknown("no [NEW], [UPDATE] or [DESTROY] after its time");
    };
    let change = match kind {
        "NEW" => ConntrackChange::New,
        "UPDATE" => ConntrackChange::Update,
        "DESTROY" => ConntrackChange::Destroy,
        _ => return Parsed::Unknown("no [NEW], [UPDATE] or [DESTROY] after its time"),
    };
    parse_entry(entry).map(|entry| ConntrackEvent { at, change, entry })
}

/// The tool prints `%-.8ld.%-.6ld`: old versions do not pad the microseconds with zeros.
fn event_time(text: &str) -> Option<Stamp> {
    let (secs, micros) = text.split_once('.')?;
    let micros = micros.trim();
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(secs.trim()) || !digits(micros) || micros.len() > 6 {
        return None;
    }
    Stamp::from_micros(secs.trim().parse().ok()?, micros.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(line: &str) -> ConntrackLine {
        match parse_entry(line) {
            Parsed::Item(row) => row,
            other => panic!("{line}: {other:?}"),
        }
    }

    const FOUNDING: &str = "ipv4     2 tcp      6 60 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 \
        sport=58578 dport=31199 src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 [ASSURED] \
        mark=0 zone=0 use=2";

    #[test]
    fn the_founding_case_is_read() {
        let row = item(FOUNDING);
        assert_eq!(
            row.orig.to_string(),
            "TCP 10.23.31.87:58578 -> 10.20.79.226:31199"
        );
        assert_eq!(row.reply.src.to_string(), "10.27.1.249:80");
        assert_eq!(row.state.unwrap().name(), "TIME_WAIT");
        assert_eq!(
            (row.timeout_s, row.assured, row.unreplied),
            (Some(60), true, false)
        );
    }

    #[test]
    fn all_tools_give_the_same_row() {
        let tool = "tcp      6 60 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 \
            packets=5 bytes=300 src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 packets=4 \
            bytes=200 [ASSURED] mark=0 secctx=system_u:object_r:unlabeled_t:s0 helper=none use=1";
        assert_eq!(item(tool), item(FOUNDING));
        let shuffled = "ipv4 2 tcp 6 60 TIME_WAIT sport=58578 dport=31199 dst=10.20.79.226 \
            src=10.23.31.87 mark=0 dport=58578 sport=80 dst=10.23.31.87 src=10.27.1.249 [ASSURED]";
        assert_eq!(item(shuffled), item(FOUNDING));
    }

    #[test]
    fn offloaded_flows_have_no_timeout() {
        let row = item(
            "ipv4     2 tcp      6 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.3 \
             dst=10.0.0.1 sport=2 dport=1 [OFFLOAD] mark=0 zone=0 use=3",
        );
        assert!(row.offload && row.timeout_s.is_none() && row.state.is_none());
    }

    #[test]
    fn foreign_and_broken_lines() {
        let foreign = [
            "ipv6     10 tcp      6 431999 ESTABLISHED src=fe80::1 dst=fe80::2 sport=1 dport=2",
            "tcp      6 431999 ESTABLISHED src=fe80::1 dst=fe80::2 sport=1 dport=2",
            "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=1",
            "ipv4     2 unknown  2 500 src=10.0.0.1 dst=224.0.0.1 [UNREPLIED]",
            "tcp 6 60 CLOSE src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 zone=3",
        ];
        for line in foreign {
            assert!(matches!(parse_entry(line), Parsed::Foreign(_)), "{line}");
        }
        let unknown = [
            "tcp",
            "tcp 17 60",
            "tcp 6 60 DANCING src=10.0.0.1",
            "tcp 6 60 CLOSE src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2",
            "tcp 6 60 CLOSE src=10.0.0.1 dst=10.0.0.2 sport=1 dport=99999",
            "hello world",
        ];
        for line in unknown {
            assert!(matches!(parse_entry(line), Parsed::Unknown(_)), "{line}");
        }
        let tail = "conntrack v1.4.7 (conntrack-tools): 3 flow entries have been shown.";
        assert_eq!(parse_entry(tail), Parsed::Heading);
    }

    #[test]
    fn events_are_read_with_their_time() {
        let line = "[1591610302.25    ]\t    [NEW] tcp      6 120 SYN_SENT src=10.0.0.1 dst=10.0.0.2 \
            sport=1 dport=2 [UNREPLIED] src=10.0.0.3 dst=10.0.0.1 sport=2 dport=1";
        let Parsed::Item(event) = parse_event(line) else {
            panic!("not read");
        };
        assert_eq!(event.at.to_string(), "1591610302.000025");
        assert_eq!(event.change, ConntrackChange::New);
        let destroyed = "[1591610302.000025]\t[DESTROY] tcp      6 src=10.0.0.1 dst=10.0.0.2 sport=1 \
            dport=2 src=10.0.0.3 dst=10.0.0.1 sport=2 dport=1 [ASSURED]";
        let Parsed::Item(event) = parse_event(destroyed) else {
            panic!("not read");
        };
        assert_eq!(
            (event.change, event.entry.timeout_s),
            (ConntrackChange::Destroy, None)
        );
        assert!(matches!(parse_event("    [NEW] tcp 6"), Parsed::Unknown(_)));
        assert!(matches!(parse_event("[1.2] tcp 6"), Parsed::Unknown(_)));
    }
}
