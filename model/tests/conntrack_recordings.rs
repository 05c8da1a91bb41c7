//! The conntrack half of the recordings of real kernels, packet by packet.
//!
//! Each packet that enters the node goes through conntrack; what the node did with it is read from the packet
//! that leaves right after, so that IPVS itself is not needed here. After every step the table must be the one
//! the kernel printed: every entry, its tuples, state, flags and remaining seconds (within one second where the
//! recording does not tell how its clock relates to the ticks). Entries that IPVS deleted are recognised by their
//! absence, and only where the client's IPVS entry is gone too.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipvs_model::conntrack::{Conntrack, CtRef, Incoming, ListingStyle, SourceNat};
use ipvs_model::kernel::{Behaviours, Kernel};
use ipvs_model::segment::{Endpoint, Flags, Options, Proto, Segment, Tuple};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Jiffies, Span};
use rand::rand_core::{Infallible, TryRng};

/// The node's address on the side of the pods.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 27, 1, 1);

/// One packet of a capture: a segment or datagram, or something else that the node sent.
#[derive(Clone, Copy, Debug)]
struct Packet {
    at: Instant,
    seg: Option<Segment>,
}

fn is_service(endpoint: Endpoint) -> bool {
    endpoint.ip.octets()[..3] == [10, 20, 79]
}

fn is_pod(endpoint: Endpoint) -> bool {
    endpoint.ip.octets()[..3] == [10, 27, 1] && endpoint.ip != NODE
}

/// Whether `left` is what entered as `entered`, translated or not.
fn is_same(entered: &Segment, left: &Segment) -> bool {
    let mut left = *left;
    left.tuple = entered.tuple;
    left == *entered
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
struct Recording {
    name: String,
    kernel: Behaviours,
    clock: Clock,
    tolerance_secs: u64,
    sysctls: Sysctls,
    to_pods: SourceNat,
    packets: Vec<Packet>,
    tables: Vec<Block>,
    ipvs: Vec<Block>,
}

impl Recording {
    fn read(dir: &Path) -> Self {
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
        let made_by = value("made-by").map_or("", String::as_str);
        let to_pods = if !made_by.contains("masquerade=") {
            SourceNat::NullBinding
        } else {
            SourceNat::Masquerade {
                ip: NODE,
                random: made_by.contains("random-fully"),
            }
        };
        Self {
            name: dir.file_name().expect("name").display().to_string(),
            kernel,
            clock: Clock::new(hz, kernel.timer_era(), Span::ZERO),
            tolerance_secs: u64::from(!phase_is_known),
            sysctls,
            to_pods,
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
struct Node<'a> {
    recording: &'a Recording,
    table: Conntrack,
    log: Vec<String>,
}

impl<'a> Node<'a> {
    fn new(recording: &'a Recording) -> Self {
        Self {
            recording,
            table: Conntrack::new(recording.clock, recording.kernel),
            log: Vec::new(),
        }
    }

    fn now(&self, at: Instant) -> Jiffies {
        self.recording.clock.jiffies(at)
    }

    /// A packet that reaches its end on this node or leaves it as `left`, with what IPVS did to its entry.
    /// False if conntrack gave it no entry.
    fn pass(
        &mut self,
        (at, seg): (Instant, &Segment),
        left: &Segment,
        alter: impl FnOnce(&mut Conntrack, CtRef) -> bool,
    ) -> bool {
        let now = self.now(at);
        let incoming = self.table.incoming(now, seg, &self.recording.sysctls.ct);
        self.log.push(format!("{at} {seg} {incoming:?}"));
        let Incoming::Tracked(ct, _) = incoming else {
            return false;
        };
        if !alter(&mut self.table, ct) {
            self.table.release(ct);
            return true;
        }
        let policy = if is_pod(left.tuple.dst) {
            self.recording.to_pods
        } else {
            SourceNat::NullBinding
        };
        let mut rng = Scripted(left.tuple.src.port);
        let (source, rule) = self.table.source_nat(now, ct, policy, &mut rng);
        if let Some(source) = source {
            assert_eq!(source, left.tuple.src, "source after {rule:?} at {at}");
        }
        let confirmed = self.table.confirm(now, ct);
        self.log.push(format!("  {rule:?} {confirmed:?}"));
        true
    }

    /// Runs the packets of one step; what left the node tells what became of what entered.
    fn step(&mut self, packets: &[Packet]) {
        let mut rest = packets;
        while let Some((packet, after)) = rest.split_first() {
            rest = after;
            let Some(seg) = packet.seg else { continue };
            let left = after.first().and_then(|next| next.seg);
            if left.is_some() {
                rest = &after[1..];
            }
            let entered = (packet.at, &seg);
            match left {
                Some(left) if is_same(&seg, &left) => self.forwarded(entered, &left),
                Some(left) if left.tuple.dst == seg.tuple.src => {
                    // The node's own RST: the packet reached the stack, and the answer is tracked too.
                    self.pass(entered, &seg, |_, _| true);
                    self.pass((packet.at, &left), &left, |_, _| true);
                }
                Some(left) => panic!("{seg} entered and {left} left"),
                None => {
                    self.pass(entered, &seg, |_, _| false);
                }
            }
        }
    }

    /// A packet that left the node for the other side.
    fn forwarded(&mut self, (at, seg): (Instant, &Segment), left: &Segment) {
        let ipvs_tracks = self.recording.sysctls.vs.conntrack;
        if is_service(seg.tuple.dst) {
            let tracked = self.pass((at, seg), left, |table, ct| {
                table.alter_reply_source(ct, left.tuple.dst);
                ipvs_tracks
            });
            if !tracked && ipvs_tracks {
                // IPVS re-injects the packet at LOCAL_OUT, where conntrack sees it again, translated.
                let mut again = *seg;
                again.tuple.dst = left.tuple.dst;
                self.pass((at, &again), left, |_, _| true);
            }
        } else if is_service(left.tuple.src) {
            self.pass((at, seg), left, |table, ct| {
                let virtual_service = table.entry(ct.slot).orig.dst;
                // The port on the wire may be NAT's choice; IPVS's own is that of the service.
                let to = if is_service(virtual_service) {
                    virtual_service
                } else {
                    service_of(left.tuple.src)
                };
                table.alter_reply_destination(ct, to);
                ipvs_tracks
            });
        } else {
            self.pass((at, seg), left, |_, _| true);
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
                        || other.secs.abs_diff(line.secs) > self.recording.tolerance_secs =>
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

/// The virtual service at an address of one.
fn service_of(source: Endpoint) -> Endpoint {
    let port = if source.ip.octets()[3] == 226 {
        31199
    } else {
        80
    };
    Endpoint::new(source.ip, port)
}

/// Clients in a block of `/proc/net/ip_vs_conn`.
fn ipvs_clients(block: &Block) -> BTreeSet<Endpoint> {
    let hex = |text: &str| u32::from_str_radix(text, 16).expect("hex");
    block
        .1
        .iter()
        .filter(|line| line.starts_with("TCP") || line.starts_with("UDP"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Endpoint::new(Ipv4Addr::from(hex(words[1])), hex(words[2]) as u16)
        })
        .collect()
}

/// What a replay looked at.
#[derive(Debug, Default)]
struct Checked {
    snapshots: usize,
    entries: usize,
    packets: usize,
    vanished: usize,
}

fn replay(recording: &Recording) -> Result<Checked, String> {
    let mut node = Node::new(recording);
    let mut checked = Checked::default();
    let mut ipvs = BTreeSet::new();
    let mut rest = &recording.packets[..];
    for (index, (at, lines)) in recording.tables.iter().enumerate() {
        let kernel: Vec<Line> = lines.iter().map(|line| Line::parse(line)).collect();
        let count = rest.iter().take_while(|packet| packet.at <= *at).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        node.step(now);
        let (mut wrong, surplus) = node.compare(*at, &kernel);
        let ipvs_now = ipvs_clients(&recording.ipvs[index]);
        for line in surplus {
            let original = line.original();
            if line.secs > 1 {
                checked.vanished += 1;
                if ipvs_now.contains(&original.src) && ipvs.contains(&original.src) {
                    wrong.push(format!("kernel nothing\n model  {line:?}"));
                }
            }
            let tick = node.now(*at);
            node.table.delete_tuple(tick, &original);
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
        ipvs = ipvs_now;
        checked.snapshots += 1;
        checked.entries += kernel.len();
        checked.packets += now.len();
    }
    Ok(checked)
}

fn recordings() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures");
    let root = std::env::var_os("RECORDINGS").map_or(root, PathBuf::from);
    let mut all = Vec::new();
    for dir in [root.join("kernels"), root] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        all.extend(
            entries
                .map(|entry| entry.expect("entry").path())
                .filter(|path| path.join("packets.pcap").exists()),
        );
    }
    all.sort();
    all
}

#[test]
fn every_recorded_table_is_reproduced() {
    let all = recordings();
    assert!(all.len() >= 13, "the recordings are in captures/kernels");
    let mut failures = Vec::new();
    let mut entries = 0;
    for path in all {
        let recording = Recording::read(&path);
        match replay(&recording) {
            Ok(checked) => {
                println!("{}: {checked:?}", recording.name);
                entries += checked.entries;
            }
            Err(text) => failures.push(text),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(entries >= 18_000, "only {entries} entries compared");
}
