//! The conntrack half of the recordings of real kernels, packet by packet.
//!
//! Each packet that enters the node goes through conntrack; what the node did with it is read from the packet
//! that leaves right after, so that IPVS itself is not needed here. After every step the table must be the one
//! the kernel printed: every entry, its tuples, state and flags, and its remaining seconds within one. Entries
//! that IPVS deleted are recognised by their absence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipvs_model::conntrack::{Conntrack, CtRef, Incoming, ListingStyle, SourceNat};
use ipvs_model::kernel::{Behaviours, Kernel};
use ipvs_model::segment::{Endpoint, Flags, Segment, Tuple};
use ipvs_model::sysctl::CtSysctls;
use ipvs_model::time::{Clock, Instant, Jiffies, Span};
use rand::rand_core::{Infallible, TryRng};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 20, 79, 226);

/// One packet of a capture: a TCP segment, or something else that the node sent.
#[derive(Clone, Copy, Debug)]
struct Packet {
    at: Instant,
    seg: Option<Segment>,
}

impl Packet {
    fn is_to_virtual_service(&self) -> bool {
        self.seg.is_some_and(|seg| seg.tuple.dst.ip == VIP)
    }

    fn is_from_pod(&self) -> bool {
        self.seg.is_some_and(|seg| is_pod(seg.tuple.src))
    }
}

fn is_pod(endpoint: Endpoint) -> bool {
    endpoint.ip.octets()[..3] == [10, 27, 1]
}

/// One line of the kernel's table, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    tuples: String,
    state: String,
    secs: u64,
}

impl Line {
    fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split_whitespace().collect();
        assert!(words.len() > 6, "not a conntrack line: {text}");
        Self {
            secs: words[4].parse().expect("remaining seconds"),
            state: words[5].to_owned(),
            tuples: words[6..].join(" "),
        }
    }

    /// The original tuple, as `delete_tuple` wants it.
    fn original(&self) -> Tuple {
        let field = |name: &str| {
            let start = self.tuples.find(name).expect("field") + name.len();
            self.tuples[start..].split(' ').next().expect("value")
        };
        let endpoint = |ip: &str, port: &str| {
            format!("{}:{}", field(ip), field(port))
                .parse::<Endpoint>()
                .expect("endpoint")
        };
        Tuple::tcp(endpoint("src=", "sport="), endpoint("dst=", "dport="))
    }
}

/// A block of a log: when, and its lines.
type Block = (Instant, Vec<String>);

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
    if packet[9] != 6 {
        return None;
    }
    let tcp = &packet[header..];
    let ip = |at: usize| Ipv4Addr::from(be(&packet[at..at + 4]));
    let port = |at: usize| be(&tcp[at..at + 2]) as u16;
    let tuple = Tuple::tcp(
        Endpoint::new(ip(12), port(0)),
        Endpoint::new(ip(16), port(2)),
    );
    let offset = usize::from(tcp[12] >> 4) * 4;
    assert_eq!(offset, 20, "these recordings carry no TCP options");
    let mut seg = Segment::new(tuple, Flags(tcp[13]));
    seg.seq = be(&tcp[4..8]);
    seg.ack = be(&tcp[8..12]);
    seg.window = port(14);
    seg.len = (packet.len() - header - offset) as u16;
    Some(seg)
}

/// One recording.
struct Recording {
    name: String,
    kernel: Behaviours,
    hz: u32,
    ipvs_tracks: bool,
    packets: Vec<Packet>,
    tables: Vec<Block>,
    ipvs: Vec<Block>,
}

impl Recording {
    fn read(dir: &Path) -> Self {
        let manifest = fs::read_to_string(dir.join("manifest.toml")).expect("manifest");
        let value = |key: &str| {
            manifest
                .lines()
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| name.trim().trim_matches('"') == key)
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
                .unwrap_or_else(|| panic!("{key} in the manifest"))
        };
        Self {
            name: dir.file_name().expect("name").display().to_string(),
            kernel: value("kernel")
                .parse::<Kernel>()
                .expect("kernel")
                .behaviours(),
            hz: value("hz").parse().expect("hz"),
            ipvs_tracks: value("net.ipv4.vs.conntrack") == "1",
            packets: packets(&dir.join("packets.pcap")),
            tables: blocks(&dir.join("conntrack.log")),
            ipvs: blocks(&dir.join("ipvs-conn.log")),
        }
    }
}

/// The kernel's draw of a source port above 1023, as the packet that left shows it.
struct Scripted(u16);

impl TryRng for Scripted {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from(self.0.wrapping_sub(1024)) << 16)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("NAT draws 32 bits")
    }

    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Infallible> {
        unreachable!("NAT draws 32 bits")
    }
}

/// The node's conntrack while a recording is replayed.
#[derive(Clone)]
struct Node {
    clock: Clock,
    table: Conntrack,
    sysctls: CtSysctls,
    log: Vec<String>,
}

impl Node {
    fn new(recording: &Recording) -> Self {
        let clock = Clock::new(recording.hz, recording.kernel.timer_era(), Span::ZERO);
        Self {
            clock,
            table: Conntrack::new(clock, recording.kernel),
            sysctls: CtSysctls::default(),
            log: Vec::new(),
        }
    }

    fn now(&self, at: Instant) -> Jiffies {
        self.clock.jiffies(at)
    }

    /// A packet that reaches its end on this node or leaves it from `source`, with what IPVS did to its entry.
    /// False if conntrack gave it no entry.
    fn pass(
        &mut self,
        packet: Packet,
        source: Endpoint,
        alter: impl FnOnce(&mut Conntrack, CtRef) -> bool,
    ) -> bool {
        let now = self.now(packet.at);
        let seg = packet.seg.expect("a segment");
        let incoming = self.table.incoming(now, &seg, &self.sysctls);
        self.log.push(format!("{} {seg} {incoming:?}", packet.at));
        let Incoming::Tracked(ct, _) = incoming else {
            return false;
        };
        if !alter(&mut self.table, ct) {
            self.table.release(ct);
            return true;
        }
        let mut rng = Scripted(source.port);
        let (_, rule) = self
            .table
            .source_nat(now, ct, SourceNat::NullBinding, &mut rng);
        let confirmed = self.table.confirm(now, ct);
        self.log.push(format!("  {rule:?} {confirmed:?}"));
        true
    }

    /// Runs the packets of one step; what left the node tells what became of what entered.
    fn step(&mut self, packets: &[Packet], ipvs_tracks: bool) {
        let mut rest = packets;
        while let Some((packet, after)) = rest.split_first() {
            rest = after;
            let Some(seg) = packet.seg else { continue };
            let left = after.first().and_then(|next| next.seg);
            if packet.is_to_virtual_service() {
                match left {
                    Some(out) if is_pod(out.tuple.dst) => {
                        rest = &after[1..];
                        let tracked = self.pass(*packet, out.tuple.src, |table, ct| {
                            table.alter_reply_source(ct, out.tuple.dst);
                            ipvs_tracks
                        });
                        if !tracked && ipvs_tracks {
                            // IPVS re-injects the packet at LOCAL_OUT: conntrack sees it again, translated.
                            let mut again = seg;
                            again.tuple.dst = out.tuple.dst;
                            let again = Packet {
                                seg: Some(again),
                                ..*packet
                            };
                            self.pass(again, out.tuple.src, |_, _| true);
                        }
                    }
                    Some(out) if out.tuple == seg.tuple.reversed() => {
                        // The node's own RST: the packet reached the stack, and the answer is tracked too.
                        rest = &after[1..];
                        self.pass(*packet, seg.tuple.src, |_, _| true);
                        self.pass(after[0], out.tuple.src, |_, _| true);
                    }
                    _ => {
                        self.pass(*packet, seg.tuple.src, |_, _| false);
                    }
                }
            } else if packet.is_from_pod() {
                match left {
                    Some(out) if out.tuple.src.ip == VIP && out.seq == seg.seq => {
                        rest = &after[1..];
                        self.pass(*packet, out.tuple.src, |table, ct| {
                            table.alter_reply_destination(ct, out.tuple.src);
                            ipvs_tracks
                        });
                    }
                    Some(out) if out == seg => {
                        rest = &after[1..];
                        self.pass(*packet, seg.tuple.src, |_, _| true);
                    }
                    _ => {
                        self.pass(*packet, seg.tuple.src, |_, _| false);
                    }
                }
            } else {
                panic!("a packet from nowhere: {seg}");
            }
        }
    }

    /// Entries of the kernel that the model lacks or has otherwise; the model's surplus comes second.
    fn compare(&self, at: Instant, kernel: &[Line]) -> (Vec<String>, Vec<Line>) {
        let listing = self.table.listing(self.now(at), ListingStyle::default());
        let model: Vec<Line> = listing.iter().map(|text| Line::parse(text)).collect();
        let mut wrong = Vec::new();
        for line in kernel {
            let original = line.original();
            match model.iter().find(|other| other.original() == original) {
                None => wrong.push(format!("kernel {line:?}\n model  nothing")),
                Some(other)
                    if other.tuples != line.tuples
                        || other.state != line.state
                        || other.secs.abs_diff(line.secs) > 1 =>
                {
                    wrong.push(format!("kernel {line:?}\n model  {other:?}"));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<Tuple> = kernel.iter().map(Line::original).collect();
        let surplus = model
            .into_iter()
            .filter(|line| !known.contains(&line.original()))
            .collect();
        (wrong, surplus)
    }
}

/// When a client's IPVS entry was seen, and the seconds it had left.
type IpvsEntries = BTreeMap<Endpoint, (Instant, u64)>;

/// Clients whose IPVS entry may have expired by `at`, and with it the conntrack entry.
fn maybe_expired(ipvs: &IpvsEntries, at: Instant) -> Vec<Endpoint> {
    ipvs.iter()
        .filter(|(_, (seen, secs))| *seen + Span::from_secs(*secs) <= at)
        .map(|(client, _)| *client)
        .collect()
}

/// Client and remaining seconds of each line of `/proc/net/ip_vs_conn`.
fn ipvs_entries(block: &Block) -> IpvsEntries {
    let hex = |text: &str| u32::from_str_radix(text, 16).expect("hex");
    block
        .1
        .iter()
        .filter(|line| line.starts_with("TCP"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let client = Endpoint::new(Ipv4Addr::from(hex(words[1])), hex(words[2]) as u16);
            (client, (block.0, words[8].parse().expect("expires")))
        })
        .collect()
}

/// What a replay looked at.
#[derive(Debug, Default)]
struct Checked {
    snapshots: usize,
    entries: usize,
    packets: usize,
    expired_between: usize,
    vanished: usize,
    unexplained: Vec<String>,
}

fn replay(recording: &Recording) -> Result<Checked, String> {
    let service: Endpoint = "10.20.79.226:31199".parse().expect("service");
    let mut node = Node::new(recording);
    let mut checked = Checked::default();
    let mut ipvs = IpvsEntries::new();
    let mut rest = &recording.packets[..];
    for (index, (at, lines)) in recording.tables.iter().enumerate() {
        let kernel: Vec<Line> = lines.iter().map(|line| Line::parse(line)).collect();
        let count = rest.iter().take_while(|packet| packet.at <= *at).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        let before = node.clone();
        node.step(now, recording.ipvs_tracks);
        let (mut wrong, mut surplus) = node.compare(*at, &kernel);
        if !wrong.is_empty()
            && let Some(first) = now.first()
        {
            // IPVS entries whose time was up before the packet took their conntrack entry with them.
            let mut other = before;
            for client in maybe_expired(&ipvs, first.at) {
                let tick = other.now(first.at);
                other.table.delete_tuple(tick, &Tuple::tcp(client, service));
            }
            other.step(now, recording.ipvs_tracks);
            let (still, extra) = other.compare(*at, &kernel);
            if still.is_empty() {
                checked.expired_between += 1;
                (node, wrong, surplus) = (other, still, extra);
            }
        }
        if !wrong.is_empty() {
            let tail = node.log.len().saturating_sub(24);
            return Err(format!(
                "{} at {at}:\n{}\nafter\n{}",
                recording.name,
                wrong.join("\n"),
                node.log[tail..].join("\n")
            ));
        }
        let ipvs_now = ipvs_entries(&recording.ipvs[index]);
        for line in surplus {
            let original = line.original();
            if line.secs > 1 {
                checked.vanished += 1;
                if ipvs_now.contains_key(&original.src) && ipvs.contains_key(&original.src) {
                    let last = node.log.last().expect("a packet");
                    checked
                        .unexplained
                        .push(format!("{at} {line:?} after {last}"));
                }
            }
            let tick = node.now(*at);
            node.table.delete_tuple(tick, &original);
        }
        ipvs = ipvs_now;
        checked.snapshots += 1;
        checked.entries += kernel.len();
        checked.packets += now.len();
    }
    Ok(checked)
}

fn recordings() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures/kernels");
    let mut all: Vec<PathBuf> = fs::read_dir(root)
        .expect("captures/kernels")
        .map(|entry| entry.expect("entry").path())
        .collect();
    all.sort();
    all
}

#[test]
fn every_recorded_table_is_reproduced() {
    let mut failures = Vec::new();
    for path in recordings() {
        let recording = Recording::read(&path);
        match replay(&recording) {
            Ok(checked) => println!("{}: {checked:#?}", recording.name),
            Err(text) => failures.push(text),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
