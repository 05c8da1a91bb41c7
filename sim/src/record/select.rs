//! Which entries and packets belong to the services that are recorded: decided line by line and packet by packet,
//! without holding a table.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use ipvs_model::segment::{Endpoint, Proto};

/// A virtual service to record: `10.20.79.226:31199`, `10.96.0.10:53/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Transport protocol; TCP unless said otherwise.
    pub proto: Proto,
    /// Its address and port.
    pub at: Endpoint,
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (at, proto) = text.split_once('/').unwrap_or((text, "tcp"));
        let proto = match proto.to_ascii_lowercase().as_str() {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            _ => return Err(format!("`{proto}` is neither tcp nor udp")),
        };
        let at = at
            .parse::<Endpoint>()
            .map_err(|_| "write IPv4 address and port: 10.20.79.226:31199".to_owned())?;
        Ok(Self { proto, at })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = self.proto.name().to_ascii_lowercase();
        write!(f, "{}/{proto}", self.at)
    }
}

/// The services of a recording and the real servers that they have or had. All of a node if there are none.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    services: Vec<Service>,
    /// Real servers, with their protocol. Grows only: what was one may still have entries.
    servers: Arc<RwLock<BTreeSet<(Proto, Endpoint)>>>,
}

impl Selection {
    /// A recording of these services; of everything if there are none.
    pub fn new(services: Vec<Service>) -> Self {
        Self {
            services,
            servers: Arc::default(),
        }
    }

    /// Nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.services.is_empty()
    }

    /// Whether a service of the rules is recorded.
    pub fn has_service(&self, proto: Proto, at: Endpoint) -> bool {
        self.is_everything() || self.services.contains(&Service { proto, at })
    }

    fn has_address(&self, proto: Proto, ip: Ipv4Addr) -> bool {
        let mut services = self.services.iter();
        services.any(|service| service.proto == proto && service.at.ip == ip)
    }

    /// A service that is recorded has this real server.
    pub fn add_server(&self, proto: Proto, at: Endpoint) {
        if self.is_everything() || self.is_server(proto, at) {
            return;
        }
        if let Ok(mut servers) = self.servers.write() {
            servers.insert((proto, at));
        }
    }

    fn is_server(&self, proto: Proto, at: Endpoint) -> bool {
        self.servers
            .read()
            .is_ok_and(|servers| servers.contains(&(proto, at)))
    }

    /// Whether an end of a packet or an entry is a service or a real server that is recorded.
    pub fn has_end(&self, proto: Proto, at: Endpoint) -> bool {
        self.has_service(proto, at) || self.is_server(proto, at)
    }

    /// Ports and protocols of all ends: what the kernel can filter packets by.
    pub fn ports(&self) -> BTreeSet<u16> {
        let mut ports = self
            .services
            .iter()
            .map(|s| s.at.port)
            .collect::<BTreeSet<_>>();
        if let Ok(servers) = self.servers.read() {
            ports.extend(servers.iter().map(|(_, at)| at.port));
        }
        ports
    }

    /// Whether a line of `/proc/net/ip_vs_conn` is of a service that is recorded, or a heading. A persistence template that
    /// was invalidated keeps its service's address only: its ports are 65535 (`ip_vs_check_template`).
    pub fn wants_conn(&self, line: &[u8]) -> bool {
        let proto = match line.get(..4) {
            Some(b"TCP ") => Proto::Tcp,
            Some(b"UDP ") => Proto::Udp,
            Some(b"Pro ") => return true,
            _ => return false,
        };
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|w| !w.is_empty());
        let (Some(ip), Some(port)) = (words.nth(3), words.next()) else {
            return false;
        };
        match (hex(ip, 8), hex(port, 4)) {
            (Some(ip), Some(port)) => {
                let port = u16::try_from(port).unwrap_or(0);
                let virt = Endpoint::new(Ipv4Addr::from_bits(ip), port);
                self.has_service(proto, virt)
                    || port == u16::MAX && self.has_address(proto, virt.ip)
            }
            _ => false,
        }
    }

    /// Whether a line of `/proc/net/nf_conntrack` has an end that is recorded.
    pub fn wants_conntrack(&self, line: &[u8]) -> bool {
        let mut words = line.split(|b| *b == b' ').filter(|w| !w.is_empty());
        if words.next() != Some(b"ipv4") {
            return false;
        }
        let proto = match words.nth(1) {
            Some(b"tcp") => Proto::Tcp,
            Some(b"udp") => Proto::Udp,
            _ => return false,
        };
        let (mut src, mut dst, mut sport) = (None, None, None);
        for word in words {
            match word.first() {
                Some(b's') if word.starts_with(b"src=") => src = ip(&word[4..]),
                Some(b'd') if word.starts_with(b"dst=") => dst = ip(&word[4..]),
                Some(b's') if word.starts_with(b"sport=") => sport = decimal(&word[6..]),
                Some(b'd') if word.starts_with(b"dport=") => {
                    // The last field of a tuple.
                    let ends = [(src, sport), (dst, decimal(&word[6..]))];
                    let wanted = ends.into_iter().any(|end| match end {
                        (Some(ip), Some(port)) => self.has_end(proto, Endpoint::new(ip, port)),
                        _ => false,
                    });
                    if wanted {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }
}

fn hex(word: &[u8], digits: usize) -> Option<u32> {
    if word.len() != digits {
        return None;
    }
    word.iter().try_fold(0, |value, byte| {
        Some(value << 4 | char::from(*byte).to_digit(16)?)
    })
}

fn decimal(word: &[u8]) -> Option<u16> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0_u16, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u16::from(digit))
    })
}

fn ip(word: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = word.split(|b| *b == b'.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection() -> Selection {
        let selection = Selection::new(vec!["10.20.79.226:31199".parse().unwrap()]);
        selection.add_server(Proto::Tcp, "10.27.1.11:80".parse().unwrap());
        selection
    }

    #[test]
    fn entries_of_the_service_are_chosen_by_their_virtual_end() {
        let selection = selection();
        let mine = b"TCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 TIME_WAIT        119";
        assert!(selection.wants_conn(mine));
        assert!(selection.wants_conn(b"Pro FromIP   FPrt ToIP"));
        // A template, and one that was invalidated: found where the node's listing had it and the recording did not.
        assert!(
            selection
                .wants_conn(b"TCP 0A171F57 0000 0A144FE2 79DF 0A1B010B 0050 ASSURED           58")
        );
        assert!(
            selection
                .wants_conn(b"TCP 0A171F57 0000 0A144FE2 FFFF 0A1B010B FFFF ASSURED           58")
        );
        let others: [&[u8]; 6] = [
            b"TCP 0A171F57 0000 0A144FE3 FFFF 0A1B010B FFFF ASSURED           58",
            b"UDP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 UDP              119",
            b"TCP 0A171F58 9C42 0A144FE2 79DE 0A1B010B 0050 TIME_WAIT        119",
            b"TCP 0A144FE2 79DF 0A171F58 9C42 0A1B010B 0050 TIME_WAIT        119",
            b"TCP 2001:0db8:0000:0000:0000:0000:0000:0001 9C42 2001:0db8:0000:0000:0000:0000:0000:0002 0050",
            b"",
        ];
        for line in others {
            assert!(!selection.wants_conn(line), "{line:?}");
        }
    }

    #[test]
    fn conntrack_entries_are_chosen_by_any_end() {
        let selection = selection();
        let line = |text: &str| selection.wants_conntrack(text.as_bytes());
        assert!(line(
            "ipv4     2 tcp      6 60 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 \
             src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 [ASSURED] mark=0 use=2"
        ));
        assert!(line(
            "ipv4     2 tcp      6 60 SYN_SENT src=10.23.31.87 dst=10.99.0.1 sport=58578 dport=443 [UNREPLIED] \
             src=10.27.1.11 dst=10.23.31.87 sport=80 dport=58578 mark=0 use=2"
        ));
        for other in [
            "ipv4     2 udp      17 60 src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 \
             src=10.20.79.226 dst=10.23.31.87 sport=31199 dport=58578 mark=0 use=2",
            "ipv4     2 tcp      6 60 CLOSE src=10.23.31.87 dst=10.20.79.226 sport=31199 dport=58578 \
             src=10.20.79.226 dst=10.23.31.87 sport=58578 dport=31199 mark=0 use=2",
            "ipv6     10 tcp      6 60 CLOSE src=fe80::1 dst=fe80::2 sport=1 dport=2",
            "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=1",
            "ipv4",
            "",
        ] {
            assert!(!line(other), "{other}");
        }
    }

    #[test]
    fn services_are_written_with_their_protocol() {
        let udp = "10.96.0.10:53/udp".parse::<Service>().unwrap();
        assert_eq!(
            (udp.proto, udp.to_string().as_str()),
            (Proto::Udp, "10.96.0.10:53/udp")
        );
        for wrong in [
            "10.96.0.10",
            "host:80",
            "10.96.0.10:53/sctp",
            "10.96.0.10:99999",
        ] {
            assert!(wrong.parse::<Service>().is_err(), "{wrong}");
        }
    }
}
