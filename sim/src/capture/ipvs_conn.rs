//! IPVS connection entries: `/proc/net/ip_vs_conn` (hexadecimal) and `ipvsadm -Lnc`, into one row.
//!
//! Faithful to: `ip_vs_conn_seq_show`, `ip_vs_conn_sync_seq_show` and ipvsadm's `print_conn`.
//! Leaves out: IPv6 entries, persistence engine data, templates of firewall marks; they are named and counted.

use std::fmt;
use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto};

use super::place::Parsed;

/// The names that the kernel gives to states of its two tables.
const NAMES: [&str; 21] = [
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
    "ASSURED",
    "UDP",
    "SYN_SENT2",
    "ICMP",
    "INIT",
    "COOKIE_WAIT",
    "ERR!",
    "MAX_RETRANS",
    "UNACK",
    "UNREPLIED",
];

/// The name of a state as the kernel prints it, such as `TIME_WAIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateName(&'static str);

impl StateName {
    /// The state of this name; `None` if no table has it.
    pub fn of(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|known| **known == name)
            .map(|known| Self(known))
    }

    /// The name.
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

/// One IPVS connection entry as listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpvsConnLine {
    /// Transport protocol.
    pub proto: Proto,
    /// The client as IPVS sees it. Port 0 in a persistence template.
    pub client: Endpoint,
    /// The virtual service.
    pub virt: Endpoint,
    /// The real server.
    pub dest: Endpoint,
    /// State of the IPVS machine.
    pub state: StateName,
    /// Whole seconds until the entry's deadline, rounded down; 0 when overdue.
    pub expires_s: u32,
}

impl IpvsConnLine {
    /// A persistence template, not a connection.
    pub const fn is_template(&self) -> bool {
        self.client.port == 0
    }
}

/// Reads one line of `/proc/net/ip_vs_conn` or of `ipvsadm -Lnc`.
pub fn parse_conn_line(line: &str) -> Parsed<IpvsConnLine> {
    let mut words = line.split_ascii_whitespace();
    let Some(first) = words.next() else {
        return Parsed::Heading;
    };
    let proto = match first {
        "TCP" => Proto::Tcp,
        "UDP" => Proto::Udp,
        "SCTP" => return Parsed::Foreign("IPVS entry of SCTP"),
        "IP" => return Parsed::Foreign("IPVS template of a firewall mark"),
        "Pro" | "pro" | "IPVS" => return Parsed::Heading,
        _ => return Parsed::Unknown("no IPVS protocol at its beginning"),
    };
    let words = words.collect::<Vec<_>>();
    match words.first() {
        Some(word) if word.len() > 2 && word.contains(':') && !word.contains('.') => {
            parse_ipvsadm(proto, &words)
        }
        Some(_) => parse_proc(proto, &words),
        None => Parsed::Unknown("no entry after the protocol"),
    }
}

/// `00:59 SYN_RECV 10.0.0.1:1024 10.0.0.2:80 10.0.0.3:80`, perhaps with persistence data behind.
fn parse_ipvsadm(proto: Proto, words: &[&str]) -> Parsed<IpvsConnLine> {
    let [expires, state, client, virt, dest, ..] = words else {
        return if words.first().is_some_and(|word| is_ipv6(word)) {
            Parsed::Foreign("IPv6")
        } else {
            Parsed::Unknown("fewer columns than an IPVS entry")
        };
    };
    if is_ipv6(expires) || [client, virt, dest].iter().any(|word| is_ipv6(word)) {
        return Parsed::Foreign("IPv6");
    }
    let Some(expires_s) = minutes_and_seconds(expires) else {
        return Parsed::Unknown("no time such as 00:59 as its second column");
    };
    let Some(state) = StateName::of(state) else {
        return Parsed::Unknown("an unknown IPVS state");
    };
    let (Ok(client), Ok(virt), Ok(dest)) = (client.parse(), virt.parse(), dest.parse()) else {
        return Parsed::Unknown("names instead of numeric addresses (list with -n)");
    };
    Parsed::Item(IpvsConnLine {
        proto,
        client,
        virt,
        dest,
        state,
        expires_s,
    })
}

/// `0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV 60`; the sync listing has an origin before the time.
fn parse_proc(proto: Proto, words: &[&str]) -> Parsed<IpvsConnLine> {
    if words.iter().take(6).any(|word| is_ipv6(word)) {
        return Parsed::Foreign("IPv6");
    }
    let [c_ip, c_port, v_ip, v_port, d_ip, d_port, state, rest @ ..] = words else {
        return Parsed::Unknown("fewer columns than an IPVS entry");
    };
    let (Some(client), Some(virt), Some(dest)) = (
        hex_endpoint(c_ip, c_port),
        hex_endpoint(v_ip, v_port),
        hex_endpoint(d_ip, d_port),
    ) else {
        return Parsed::Unknown("no hexadecimal addresses and ports");
    };
    let Some(state) = StateName::of(state) else {
        return Parsed::Unknown("an unknown IPVS state");
    };
    let expires = match rest {
        ["LOCAL" | "SYNC", expires, ..] | [expires, ..] => expires,
        [] => return Parsed::Unknown("no remaining time"),
    };
    let Ok(expires_s) = expires.parse() else {
        return Parsed::Unknown("no remaining time");
    };
    Parsed::Item(IpvsConnLine {
        proto,
        client,
        virt,
        dest,
        state,
        expires_s,
    })
}

/// Whether a column holds an IPv6 address, in either tool's form.
pub(super) fn is_ipv6(word: &str) -> bool {
    word.starts_with('[') || word.bytes().filter(|&b| b == b':').count() >= 2
}

/// `119:59`, as minutes and seconds.
fn minutes_and_seconds(word: &str) -> Option<u32> {
    let (minutes, seconds) = word.split_once(':')?;
    let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
        true => digits.parse::<u32>().ok(),
        false => None,
    };
    let seconds = number(seconds).filter(|&s| s < 60)?;
    number(minutes)?.checked_mul(60)?.checked_add(seconds)
}

fn hex_endpoint(ip: &str, port: &str) -> Option<Endpoint> {
    let hex = |word: &str, len: usize| {
        (word.len() == len && word.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u32::from_str_radix(word, 16).ok())
            .flatten()
    };
    let port = u16::try_from(hex(port, 4)?).ok()?;
    Some(Endpoint::new(Ipv4Addr::from_bits(hex(ip, 8)?), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(line: &str) -> IpvsConnLine {
        match parse_conn_line(line) {
            Parsed::Item(row) => row,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn both_tools_give_the_same_row() {
        let proc = "TCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV         60";
        let tool = "TCP 01:00  SYN_RECV    10.23.31.88:40002  10.20.79.226:31199 10.27.1.11:80";
        assert_eq!(item(proc), item(tool));
        assert_eq!(item(tool).expires_s, 60);
        let sync = "TCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV    LOCAL       60";
        assert_eq!(item(sync), item(proc));
    }

    /// Lines of the founding case.
    #[test]
    fn the_founding_case_is_read() {
        let row =
            item("TCP 00:09  SYN_RECV    100.97.130.130:26633 10.20.79.226:31199 10.27.1.245:80");
        assert_eq!((row.client.port, row.expires_s), (26633, 9));
        assert_eq!(row.dest.to_string(), "10.27.1.245:80");
        let persistent =
            item("TCP 179:59 NONE        10.0.0.1:0         10.0.0.2:80        10.0.0.3:80");
        assert!(persistent.is_template() && persistent.expires_s == 10_799);
    }

    #[test]
    fn headings_and_foreign_entries_are_told_apart_from_nonsense() {
        let heading =
            "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData";
        assert_eq!(parse_conn_line(heading), Parsed::Heading);
        assert_eq!(parse_conn_line("IPVS connection entries"), Parsed::Heading);
        let foreign = [
            "TCP 2001:0db8:0000:0000:0000:0000:0000:0001 9C42 2001:0db8:0000:0000:0000:0000:0000:0002 0050 2001:0db8:0000:0000:0000:0000:0000:0003 0050 ESTABLISHED     899",
            "TCP 14:59  ESTABLISHED [2001:db8::1]:4000 [2001:db8::2]:80 [2001:db8::3]:80",
            "IP  0A000001 0000 00000001 0000 0A000003 0000 NONE             99",
            "SCTP 00:59  INIT 10.0.0.1:1 10.0.0.2:2 10.0.0.3:3",
        ];
        for line in foreign {
            assert!(
                matches!(parse_conn_line(line), Parsed::Foreign(_)),
                "{line}"
            );
        }
        let unknown = [
            "TCP",
            "TCP 00:59",
            "TCP 00:99  SYN_RECV 10.0.0.1:1 10.0.0.2:2 10.0.0.3:3",
            "TCP 00:59  SYN_RECV node-1:http 10.0.0.2:2 10.0.0.3:3",
            "TCP 00:59  DANCING 10.0.0.1:1 10.0.0.2:2 10.0.0.3:3",
            "TCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV",
            "TCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B",
            "TCP +A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV 60",
            "what is this",
        ];
        for line in unknown {
            assert!(
                matches!(parse_conn_line(line), Parsed::Unknown(_)),
                "{line}"
            );
        }
    }
}
