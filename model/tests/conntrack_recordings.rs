//! The conntrack half of the recordings of real kernels, packet by packet.
//!
//! Each packet that enters the node goes through conntrack; what the node did with it is read from the packet
//! that leaves right after, so that IPVS itself is not needed here. After every step the table must be the one
//! the kernel printed: every entry, its tuples, state, flags and remaining seconds (within a tick; within a second
//! where the recording does not tell how its clock relates to the ticks). Entries that IPVS deleted are recognised by their
//! absence, and only where the client's IPVS entry is gone too.
//!
//! `RECORDINGS=DIR cargo test -p ipvs-model --test conntrack_recordings` takes those in another directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ipvs_model::conntrack::{Conntrack, CtRef, Incoming, ListingStyle};
use ipvs_model::segment::{Endpoint, Segment, Tuple};
use ipvs_model::time::{Instant, Jiffies, Span};
use rand::rand_core::{Infallible, TryRng};

mod recording;

use recording::{
    Block, IpvsEntry, Line, NODE, Packet, Recording, ipvs_entries, is_pod, is_same, is_service,
};

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
struct Node<'a> {
    recording: &'a Recording,
    table: Conntrack,
    log: Vec<String>,
    wrong: Vec<String>,
}

impl<'a> Node<'a> {
    fn new(recording: &'a Recording) -> Self {
        Self {
            recording,
            table: Conntrack::new(recording.clock, recording.kernel),
            log: Vec::new(),
            wrong: Vec::new(),
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
            self.recording.to_clients
        };
        let mut rng = Scripted(left.tuple.src.port);
        let (source, rule) = self.table.source_nat(now, ct, policy, &mut rng);
        if let Some(source) = source.filter(|source| *source != left.tuple.src) {
            self.wrong
                .push(format!("source {source} by {rule:?}, left as {left}"));
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
                    // Dropped, or taken by the node itself.
                    let is_local = seg.tuple.dst.ip == NODE;
                    self.pass(entered, &seg, |_, _| is_local);
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
            if !tracked {
                // IPVS re-injects the packet at LOCAL_OUT, where conntrack sees it again, translated
                // (with vs.conntrack=0 too: what had no entry is not marked as untracked).
                let mut again = *seg;
                again.tuple.dst = left.tuple.dst;
                self.pass((at, &again), left, |_, _| true);
            }
        } else if is_service(left.tuple.src) {
            self.pass((at, seg), left, |table, ct| {
                let virtual_service = table.entry(ct.slot).orig().dst;
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
        let now = self.now(at);
        let listing = |tick| -> Vec<Line> {
            let lines = self.table.listing(tick, ListingStyle::default());
            lines.iter().map(|text| Line::parse(text)).collect()
        };
        // The tick of a listing is known to within one.
        let (early, model) = (listing(Jiffies(now.0 - 1)), listing(now));
        let mut wrong = self.wrong.clone();
        for line in kernel {
            let find = |lines: &[Line]| {
                let same = |other: &&Line| other.original() == line.original();
                lines.iter().find(same).cloned()
            };
            let tolerance = self.recording.tolerance_secs;
            let agrees = |other: &Line| {
                (&other.tuples, &other.state) == (&line.tuples, &line.state)
                    && other.secs.abs_diff(line.secs) <= tolerance
            };
            if ![find(&early), find(&model)].iter().flatten().any(agrees) {
                wrong.push(format!("kernel {line:?}\n model  {:?}", find(&model)));
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

/// What a replay looked at.
#[derive(Debug, Default)]
struct Checked {
    snapshots: usize,
    entries: usize,
    packets: usize,
    vanished: usize,
    deleted_before_packet: usize,
    omitted: usize,
}

/// What is wrong after a step, the model's surplus, and the node then.
type Outcome<'a> = (Vec<String>, Vec<Line>, Node<'a>);

/// Runs a step. An IPVS entry that goes takes its conntrack entry along; whether that was before or after the
/// step's packet the tables cannot tell, so both are tried.
fn run_step<'a>(
    node: &Node<'a>,
    packets: &[Packet],
    (gone, going): (&[Tuple], &[Tuple]),
    (at, kernel): (Instant, &[Line]),
) -> (Outcome<'a>, bool) {
    let run = |deleted: &[Tuple]| {
        let mut node = node.clone();
        if let Some(first) = packets.first() {
            let tick = node.now(first.at);
            for tuple in deleted {
                node.table.delete_tuple(tick, tuple);
            }
        }
        node.step(packets);
        let (wrong, surplus) = node.compare(at, kernel);
        (wrong, surplus, node)
    };
    let outcome = run(&[]);
    let is_right = |(wrong, surplus, _): &Outcome<'_>| {
        let unexplained = surplus.iter().any(|line| {
            let tuples = [line.original(), line.reply()];
            line.secs > 0 && !tuples.iter().any(|tuple| gone.contains(tuple))
        });
        wrong.is_empty() && !unexplained
    };
    if is_right(&outcome) {
        return (outcome, false);
    }
    let mut guesses = vec![gone.to_vec()];
    guesses.extend(gone.iter().map(|tuple| vec![*tuple]));
    guesses.extend(going.iter().map(|tuple| vec![*tuple]));
    guesses.extend(going.iter().map(|tuple| [gone, &[*tuple]].concat()));
    guesses.push([gone, going].concat());
    for guess in guesses {
        let other = run(&guess);
        if is_right(&other) {
            return (other, true);
        }
    }
    (outcome, false)
}

fn replay(recording: &Recording) -> Result<Checked, String> {
    let mut node = Node::new(recording);
    let mut checked = Checked::default();
    let mut ipvs: Vec<IpvsEntry> = Vec::new();
    let mut listed: Block = (Instant::ZERO, Vec::new());
    let mut omitted: BTreeSet<Tuple> = BTreeSet::new();
    let mut rest = &recording.packets[..];
    for (table, ipvs_table) in recording.tables.iter().zip(&recording.ipvs) {
        let at = table.0;
        let kernel: Vec<Line> = table.1.iter().map(|line| Line::parse(line)).collect();
        let count = rest.iter().take_while(|packet| packet.at <= at).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        let ipvs_now = ipvs_entries(ipvs_table);
        let (gone, left): (Vec<&IpvsEntry>, Vec<&IpvsEntry>) = ipvs
            .iter()
            .partition(|old| !ipvs_now.iter().any(|new| new.is_same(old)));
        let going = left.into_iter().filter(|old| old.expires <= at);
        let going: Vec<Tuple> = going.map(|old| old.tuple).collect();
        let gone: Vec<Tuple> = gone.into_iter().map(|old| old.tuple).collect();
        let step = (at, &kernel[..]);
        let ((mut wrong, surplus, after), deleted_first) =
            run_step(&node, now, (&gone, &going), step);
        node = after;
        // A listing that meets an expired entry deletes it and may then miss others.
        let may_omit = any_expired(&listed, &kernel, at);
        let mut omitted_now = BTreeSet::new();
        for line in &surplus {
            let original = line.original();
            let tuples = [original, line.reply()];
            if tuples.iter().any(|t| gone.contains(t) || going.contains(t)) {
                checked.vanished += 1;
                let tick = node.now(at);
                node.table.delete_tuple(tick, &original);
            } else if line.secs == 0 {
                // About to expire: on one side of the tick or the other.
            } else if may_omit && !omitted.contains(&original) {
                omitted_now.insert(original);
                checked.omitted += 1;
            } else {
                wrong.push(format!("kernel nothing\n model  {line:?}"));
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
        let tick = node.now(at);
        node.table.delete_expired(tick);
        (ipvs, omitted, listed) = (ipvs_now, omitted_now, table.clone());
        checked.snapshots += 1;
        checked.entries += kernel.len();
        checked.packets += now.len();
        checked.deleted_before_packet += usize::from(deleted_first);
    }
    Ok(checked)
}

/// Whether an entry of an earlier listing had expired by the time of a later one.
fn any_expired((then, lines): &Block, now: &[Line], at: Instant) -> bool {
    lines.iter().map(|line| Line::parse(line)).any(|old| {
        *then + Span::from_secs(old.secs) <= at
            && !now.iter().any(|new| new.original() == old.original())
    })
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
                .filter(|path| path.join("manifest.toml").exists()),
        );
    }
    all.sort();
    all
}

#[test]
fn every_recorded_table_is_reproduced() {
    let all = recordings();
    assert!(!all.is_empty(), "no recordings");
    let mut failures = Vec::new();
    let mut entries = 0;
    for path in all {
        let recording = Recording::read(&path);
        if !recording.is_comparable {
            continue;
        }
        match replay(&recording) {
            Ok(checked) => {
                println!("{}: {checked:?}", recording.name);
                entries += checked.entries;
            }
            Err(text) => failures.push(text),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(entries >= 100, "only {entries} entries compared");
}
