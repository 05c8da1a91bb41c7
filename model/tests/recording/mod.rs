//! Reading a capture directory of the lab: packets, both tables, what the node was set to.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use ipvs_model::conntrack::SourceNat;
use ipvs_model::kernel::{Behaviours, Kernel};
use ipvs_model::segment::{Endpoint, Flags, Options, Proto, Segment, Tuple};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Span};

/// The node's address on the side of the pods.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 27, 1, 1);

/// One packet of a capture: a segment or datagram, or something else that the node sent.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub at: Instant,
    pub seg: Option<Segment>,
}

pub fn is_service(endpoint: Endpoint) -> bool {
    endpoint.ip.octets()[..3] == [10, 20, 79]
}

pub fn is_pod(endpoint: Endpoint) -> bool {
    endpoint.ip.octets()[..3] == [10, 27, 1] && endpoint.ip != NODE
}

/// Whether `left` is what entered as `entered`, translated or not.
pub fn is_same(entered: &Segment, left: &Segment) -> bool {
    let mut left = *left;
    left.tuple = entered.tuple;
    left == *entered
}

/// One line of the kernel's table, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    pub tuples: String,
    pub state: String,
    pub secs: u64,
}

impl Line {
    pub fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(words.len() > 6, "not a conntrack line: {text}");
        let (state, tuples) = match words[2] {
            "tcp" => (words[5], &words[6..]),
            _ => ("udp", &words[5..]),
        };
        Self {
            secs: words[4].parse().expect("remaining seconds"),
            state: state.to_owned(),
            tuples: tuples.join(" "),
        }
    }

    /// The tuple of the original direction.
    pub fn original(&self) -> Tuple {
        self.tuple(0)
    }

    /// The tuple of the reply direction.
    pub fn reply(&self) -> Tuple {
        self.tuple(1)
    }

    pub fn tuple(&self, nth: usize) -> Tuple {
        let field = |name: &str| {
            self.tuples
                .split(' ')
                .filter_map(|word| word.strip_prefix(name))
                .nth(nth)
                .expect("field")
        };
        let endpoint = |ip: &str, port: &str| {
            format!("{}:{}", field(ip), field(port))
                .parse::<Endpoint>()
                .expect("endpoint")
        };
        Tuple {
            proto: if self.state == "udp" {
                Proto::Udp
            } else {
                Proto::Tcp
            },
            src: endpoint("src=", "sport="),
            dst: endpoint("dst=", "dport="),
        }
    }
}

/// A block of a log: when, and its lines.
pub type Block = (Instant, Vec<String>);

fn blocks(path: &Path) -> Vec<Block> {
    let text = fs::read_to_string(path).expect("log");
    let mut out: Vec<Block> = Vec::new();
    for line in text.lines() {
        if let Some(time) = line.strip_prefix("@ ") {
            out.push((instant(time), Vec::new()));
        } else {
            out.last_mut().expect("block").1.push(line.to_owned());
        }
    }
    out
}

/// Unix time with microseconds, as time since 1700000000.
fn instant(text: &str) -> Instant {
    let (secs, micros) = text.trim().split_once('.').expect("seconds.micros");
    let secs: u64 = secs.parse().expect("seconds");
    let micros: u64 = micros.parse().expect("micros");
    Instant((secs - 1_700_000_000) * 1_000_000_000 + micros * 1_000)
}

fn be(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u32::from(*byte))
}

fn packets(path: &Path) -> Vec<Packet> {
    let data = fs::read(path).expect("packets.pcap");
    let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().expect("word"));
    assert_eq!(
        (word(0), word(20)),
        (0xa1b2_c3d4, 101),
        "raw IP, microseconds"
    );
    let mut out = Vec::new();
    let mut at = 24;
    while at < data.len() {
        let secs = u64::from(word(at) - 1_700_000_000);
        let micros = u64::from(word(at + 4));
        let size = word(at + 8) as usize;
        let packet = &data[at + 16..at + 16 + size];
        at += 16 + size;
        out.push(Packet {
            at: Instant(secs * 1_000_000_000 + micros * 1_000),
            seg: segment(packet),
        });
    }
    out
}

fn segment(packet: &[u8]) -> Option<Segment> {
    let header = usize::from(packet[0] & 15) * 4;
    let (proto, body) = match packet[9] {
        6 => (Proto::Tcp, &packet[header..]),
        17 => (Proto::Udp, &packet[header..]),
        _ => return None,
    };
    let ip = |at: usize| Ipv4Addr::from(be(&packet[at..at + 4]));
    let short = |at: usize| be(&body[at..at + 2]) as u16;
    let tuple = Tuple {
        proto,
        src: Endpoint::new(ip(12), short(0)),
        dst: Endpoint::new(ip(16), short(2)),
    };
    if proto == Proto::Udp {
        let mut seg = Segment::new(tuple, Flags(0));
        seg.len = (body.len() - 8) as u16;
        return Some(seg);
    }
    let offset = usize::from(body[12] >> 4) * 4;
    let mut seg = Segment::new(tuple, Flags(body[13]));
    seg.seq = be(&body[4..8]);
    seg.ack = be(&body[8..12]);
    seg.window = short(14);
    seg.len = (body.len() - offset) as u16;
    seg.options = options(&body[20..offset]);
    Some(seg)
}

fn options(mut bytes: &[u8]) -> Options {
    let mut out = Options::default();
    while let [kind, rest @ ..] = bytes {
        match (kind, rest) {
            (0, _) => break,
            (1, _) => bytes = rest,
            (_, [size, ..]) if *size >= 2 => {
                match kind {
                    3 => out.wscale = Some(bytes[2]),
                    4 => out.sack_ok = true,
                    2 => {}
                    other => panic!("option {other} is not in these recordings"),
                }
                bytes = &bytes[usize::from(*size)..];
            }
            _ => panic!("broken options"),
        }
    }
    out
}

/// One recording.
pub struct Recording {
    pub name: String,
    pub kernel: Behaviours,
    pub clock: Clock,
    pub tolerance_secs: u64,
    pub sysctls: Sysctls,
    pub to_pods: SourceNat,
    pub to_clients: SourceNat,
    pub is_comparable: bool,
    pub packets: Vec<Packet>,
    pub tables: Vec<Block>,
    pub ipvs: Vec<Block>,
}

impl Recording {
    pub fn read(dir: &Path) -> Self {
        let manifest = fs::read_to_string(dir.join("manifest.toml")).expect("manifest");
        let fields: Vec<(&str, String)> = manifest
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| {
                let value = value.trim().trim_matches('"').replace("\\t", "\t");
                (name.trim().trim_matches('"'), value)
            })
            .collect();
        let value = |key: &str| fields.iter().find(|(name, _)| *name == key).map(|(_, v)| v);
        let release = value("kernel").expect("kernel in the manifest");
        let kernel = release.parse::<Kernel>().expect("kernel").behaviours();
        let hz = value("hz").expect("hz").parse().expect("hz");
        let phase_is_known = value("jiffies_at_boot").is_some_and(|ticks| {
            assert_eq!(*ticks, Clock::initial_jiffies(hz).to_string());
            true
        });
        let mut sysctls = Sysctls::of(kernel);
        for (name, value) in &fields {
            sysctls.set(name, value).expect("sysctl");
        }
        let name = dir.file_name().expect("name").display().to_string();
        // The older recordings had an empty nat table, the lab has one only when it masquerades.
        let random = name.contains("-random");
        let (to_pods, to_clients) = if random || name.contains("-masquerade") {
            let masquerade = SourceNat::Masquerade { ip: NODE, random };
            (masquerade, SourceNat::NullBinding)
        } else if value("made-by").is_none() {
            (SourceNat::NullBinding, SourceNat::NullBinding)
        } else {
            (SourceNat::Inactive, SourceNat::Inactive)
        };
        Self {
            // A full table evicts by the kernel's own hash.
            is_comparable: !name.contains("-untracked") && !name.contains("-full"),
            name,
            kernel,
            clock: Clock::new(hz, kernel.timer_era(), Span::ZERO),
            tolerance_secs: u64::from(!phase_is_known),
            sysctls,
            to_pods,
            to_clients,
            packets: packets(&dir.join("packets.pcap")),
            tables: blocks(&dir.join("conntrack.log")),
            ipvs: blocks(&dir.join("ipvs-conn.log")),
        }
    }
}

/// One line of `/proc/net/ip_vs_conn`: client to virtual service, real server, and the last second it can live to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpvsEntry {
    pub tuple: Tuple,
    pub real_server: Endpoint,
    pub expires: Instant,
}

impl IpvsEntry {
    pub fn is_same(&self, other: &Self) -> bool {
        (self.tuple, self.real_server) == (other.tuple, other.real_server)
    }
}

/// The entries in a block of `/proc/net/ip_vs_conn`.
pub fn ipvs_entries(block: &Block) -> Vec<IpvsEntry> {
    let hex = |text: &str| u32::from_str_radix(text, 16).expect("hex");
    let endpoint = |ip: &str, port: &str| Endpoint::new(Ipv4Addr::from(hex(ip)), hex(port) as u16);
    block
        .1
        .iter()
        .filter(|line| line.starts_with("TCP") || line.starts_with("UDP"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let secs = words[8].parse().expect("expires");
            IpvsEntry {
                tuple: Tuple {
                    proto: if words[0] == "TCP" {
                        Proto::Tcp
                    } else {
                        Proto::Udp
                    },
                    src: endpoint(words[1], words[2]),
                    dst: endpoint(words[3], words[4]),
                },
                real_server: endpoint(words[5], words[6]),
                expires: block.0 + Span::from_secs(secs),
            }
        })
        .collect()
}
