//! Small hand-made captures of what real nodes do to a recording: rules known by listings only, masquerading,
//! a clock that is set, connections older than the capture, packets that were not seen.

mod expired;

use std::fs;

use ipvs_model::segment::{Endpoint, Flags, Segment, Tuple};
use tempfile::TempDir;

use super::{Class, Report, diff};
use crate::capture::{Capture, Stamp, write};

const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);

/// A capture directory in the making.
struct Scene {
    directory: TempDir,
    packets: Vec<(u64, Segment, u8)>,
    rules: String,
    ipvs: String,
    ct: String,
    sysctls: String,
    /// More lines of the manifest: first of itself, then of its sysctls.
    manifest: [&'static str; 2],
}

fn end(text: &str) -> Endpoint {
    text.parse().unwrap()
}

const CLIENT: &str = "10.23.31.87:40000";
const VIP: &str = "10.20.79.226:31199";
const OLD: &str = "10.27.1.10:80";
const NEW: &str = "10.27.1.11:80";

fn segment(from: &str, to: &str, flags: Flags, seq: u32, ack: u32) -> Segment {
    let mut segment = Segment::new(Tuple::tcp(end(from), end(to)), flags);
    (segment.seq, segment.ack) = (seq, ack);
    segment
}

impl Scene {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            packets: Vec::new(),
            rules: String::new(),
            ipvs: String::new(),
            ct: String::new(),
            sysctls: String::new(),
            manifest: ["", ""],
        }
    }

    /// `ms` after the beginning, as a block header.
    fn header(ms: u64) -> String {
        format!("@ {}\n", Stamp(1_700_000_000_000_000_000 + ms * 1_000_000))
    }

    fn rules(&mut self, ms: u64, text: &str) {
        self.rules += &(Self::header(ms) + text + "\n");
    }

    fn listing(&mut self, ms: u64, dests: &[(&str, u32)]) {
        let mut text = format!("TCP  {VIP} rr\n");
        for (dest, weight) in dests {
            text += &format!("  -> {dest}  Masq {weight} 0 0\n");
        }
        self.rules(ms, &text);
    }

    /// A packet that enters and leaves with these ends.
    fn passes(&mut self, ms: u64, segment: Segment, from: &str, to: &str) {
        let mut left = segment;
        left.tuple = Tuple::tcp(end(from), end(to));
        self.packets.push((ms * 1_000_000, segment, 64));
        self.packets.push((ms * 1_000_000 + 2_000, left, 63));
    }

    fn diff(&self) -> Report {
        let put = |name: &str, text: &str| {
            if !text.is_empty() {
                fs::write(self.directory.path().join(name), text).unwrap();
            }
        };
        let [own, of_sysctls] = self.manifest;
        put(
            "manifest.toml",
            &format!(
                "schema = 1\nkernel = \"6.1.90\"\nhz = 250\n{own}[sysctl]\n\"net.ipv4.vs.conntrack\" = 1\n\
                 \"net.ipv4.vs.expire_nodest_conn\" = 1\n{of_sysctls}"
            ),
        );
        put("rules.log", &self.rules);
        put("ipvs-conn.log", &self.ipvs);
        put("conntrack.log", &self.ct);
        put("sysctl.log", &self.sysctls);
        let mut bytes = Vec::new();
        write::pcap_header(&mut bytes).unwrap();
        for (nanos, segment, ttl) in &self.packets {
            let at = Stamp(1_700_000_000_000_000_000 + nanos);
            write::pcap_packet(&mut bytes, at, &write::ipv4_bytes(segment, *ttl, 1)).unwrap();
        }
        fs::write(self.directory.path().join("packets.pcap"), bytes).unwrap();
        diff(&Capture::open(self.directory.path()).unwrap()).unwrap()
    }
}

/// The rules changed at some moment between two listings: what the node did meanwhile is no divergence; where they
/// did not change, it is one.
#[test]
fn rules_known_by_listings_are_doubtful_between_them() {
    for changes in [true, false] {
        let mut scene = Scene::new();
        scene.listing(0, &[(OLD, 1)]);
        let after: &[_] = if changes { &[(NEW, 1)] } else { &[(OLD, 1)] };
        scene.passes(5_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, NEW);
        scene.listing(10_000, after);
        scene.listing(20_000, after);
        scene.rules(30_000, "");
        let report = scene.diff();
        assert_eq!(
            report.divergence_count() == 0,
            changes,
            "{}",
            report.text(9)
        );
        let doubt = "packet between two listings of rules that differ for its service";
        assert_eq!(
            report.not_checked.contains_key(doubt),
            changes,
            "{}",
            report.text(9)
        );
    }
}

/// Source NAT draws its port at random: the packet that left tells which, and the reply must come back from it.
#[test]
fn masqueraded_connections_are_followed() {
    let node = "10.20.79.226:51515";
    let mut scene = Scene::new();
    scene.rules(
        0,
        &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
    );
    scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 100, 0), node, OLD);
    scene.passes(1_010, segment(OLD, node, SYN_ACK, 900, 101), VIP, CLIENT);
    scene.passes(1_020, segment(CLIENT, VIP, Flags::ACK, 101, 901), node, OLD);
    scene.rules(2_000, "");
    let report = scene.diff();
    assert_eq!(
        (report.divergence_count(), report.verdicts),
        (0, 3),
        "{}",
        report.text(9)
    );
    // A reply that leaves with another address than the virtual one is wrong.
    scene.packets[3].1.tuple.src = end("10.20.79.226:31200");
    let report = scene.diff();
    assert_eq!(
        report.by_class.get(&Class::Verdict),
        Some(&1),
        "{}",
        report.text(9)
    );
}

/// A connection that was there before the capture began is taken from the first listing, not called a fault.
#[test]
fn connections_older_than_the_capture_are_taken_over() {
    let mut scene = Scene::new();
    scene.rules(
        0,
        &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
    );
    scene.ipvs = Scene::header(500) + &format!("TCP 14:30  ESTABLISHED {CLIENT} {VIP} {OLD}\n");
    scene.ct = Scene::header(501)
        + "tcp      6 86000 ESTABLISHED src=10.23.31.87 dst=10.20.79.226 sport=40000 dport=31199 \
           src=10.27.1.10 dst=10.23.31.87 sport=80 dport=40000 [ASSURED] use=1\n";
    scene.passes(
        1_000,
        segment(CLIENT, VIP, Flags::ACK, 777, 888),
        CLIENT,
        OLD,
    );
    scene.ipvs +=
        &(Scene::header(1_500) + &format!("TCP 14:59  ESTABLISHED {CLIENT} {VIP} {OLD}\n"));
    scene.ipvs +=
        &(Scene::header(2_500) + &format!("TCP 14:58  ESTABLISHED {CLIENT} {VIP} {OLD}\n"));
    let report = scene.diff();
    assert_eq!(
        (report.divergence_count(), report.verdicts),
        (0, 1),
        "{}",
        report.text(9)
    );
    // The same in a state that the packet cannot have led to.
    scene.ipvs = scene
        .ipvs
        .replacen("14:58  ESTABLISHED", "00:58  SYN_RECV", 1);
    let report = scene.diff();
    assert_eq!(
        report.by_class.get(&Class::IpvsState),
        Some(&1),
        "{}",
        report.text(9)
    );
}

/// A clock that is set back in mid-capture: spans across it mean nothing, and the listings after it are taken over.
#[test]
fn a_clock_that_is_set_back_is_no_divergence() {
    let mut scene = Scene::new();
    scene.rules(
        0,
        &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
    );
    scene.passes(60_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
    scene.ipvs = Scene::header(60_500) + &format!("TCP 00:59  SYN_RECV {CLIENT} {VIP} {OLD}\n");
    // An hour back would be a long span otherwise.
    scene.ipvs += &(Scene::header(20_000) + &format!("TCP 00:39  SYN_RECV {CLIENT} {VIP} {OLD}\n"));
    scene.ipvs += &(Scene::header(21_000) + &format!("TCP 00:38  SYN_RECV {CLIENT} {VIP} {OLD}\n"));
    let report = scene.diff();
    assert_eq!(report.divergence_count(), 0, "{}", report.text(9));
    assert_eq!(report.skipped.of("clock set back"), 1);
    assert_eq!(report.snapshots, 3);
}

/// A sysctl that changes in mid-capture holds for what comes after: conn_reuse_mode=0 keeps the real server of a
/// TIME_WAIT entry at weight 1, 1 does not.
#[test]
fn sysctls_that_change_are_followed() {
    for mode in ["0", "1"] {
        let mut scene = Scene::new();
        scene.rules(
            0,
            &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
        );
        scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
        scene.passes(1_010, segment(OLD, CLIENT, SYN_ACK, 900, 2), VIP, CLIENT);
        let fin = Flags::FIN.with(Flags::ACK);
        scene.passes(1_020, segment(CLIENT, VIP, fin, 2, 901), CLIENT, OLD);
        scene.passes(1_030, segment(OLD, CLIENT, fin, 901, 3), VIP, CLIENT);
        scene.passes(1_040, segment(CLIENT, VIP, Flags::ACK, 3, 902), CLIENT, OLD);
        scene.rules(2_000, &format!("ipvsadm -a -t {VIP} -r {NEW} -m"));
        scene.sysctls =
            Scene::header(3_000) + "net.ipv4.vs.conn_reuse_mode = " + mode + "\nnonsense\n";
        let kept = segment(CLIENT, VIP, Flags::SYN, 100_000, 0);
        scene.passes(4_000, kept, CLIENT, OLD);
        scene.rules(5_000, "");
        let report = scene.diff();
        let diverges = report.divergence_count() > 0;
        assert_eq!(diverges, mode == "1", "{}", report.text(9));
        assert_eq!(report.skipped.of("no line of sysctl -a"), 1);
    }
}

/// A packet that left without having been seen to enter is counted, not guessed at.
#[test]
fn packets_that_the_capture_missed_are_counted() {
    let mut scene = Scene::new();
    scene.rules(
        0,
        &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
    );
    scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
    scene.packets.remove(0);
    scene.rules(2_000, "");
    let report = scene.diff();
    assert_eq!(report.divergence_count(), 0);
    let missed = "packet that left without having been seen to enter";
    assert_eq!(
        report.not_checked.get(missed),
        Some(&1),
        "{}",
        report.text(9)
    );
}

/// What left tells what entered: the model goes on beside the node, and a listing agrees.
#[test]
fn what_left_tells_what_entered() {
    for missed in [0, 2, 4] {
        let mut scene = Scene::new();
        scene.rules(
            0,
            &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
        );
        scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
        scene.passes(1_010, segment(OLD, CLIENT, SYN_ACK, 900, 2), VIP, CLIENT);
        scene.passes(1_020, segment(CLIENT, VIP, Flags::ACK, 2, 901), CLIENT, OLD);
        scene.packets.remove(missed);
        scene.ipvs = Scene::header(3_000)
            + &format!("TCP 14:58 ESTABLISHED {CLIENT} {VIP} {OLD}\n")
            + &Scene::header(4_000)
            + &format!("TCP 14:57 ESTABLISHED {CLIENT} {VIP} {OLD}\n");
        let report = scene.diff();
        assert_eq!(report.divergence_count(), 0, "{}", report.text(9));
        assert_eq!(
            (report.missed, report.verdicts),
            (1, 2),
            "{}",
            report.text(9)
        );
    }
}

/// A packet that did not leave where no other was missed is a drop.
#[test]
fn a_drop_is_seen_as_long_as_the_capture_is_whole() {
    let mut scene = Scene::new();
    scene.rules(
        0,
        &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
    );
    scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
    scene.passes(2_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
    scene.packets.pop();
    scene.rules(3_000, "");
    let report = scene.diff();
    assert_eq!(report.by_class.get(&Class::Verdict), Some(&1));
}

/// Invalidated templates of one client and real server have one tuple, and a row of whole seconds of time left agrees
/// with a listed one that is a second less: whatever their order, each is taken for itself.
#[test]
fn rows_of_one_tuple_are_not_taken_for_each_other() {
    let row = |left: u32| {
        format!("TCP 00:{left}  ASSURED 10.23.31.87:0 10.20.79.226:65535 10.27.1.10:65535\n")
    };
    let listing = |ms, left: [u32; 2]| Scene::header(ms) + &row(left[0]) + &row(left[1]);
    for (first, then) in [
        ([59, 58], [39, 38]),
        ([59, 58], [38, 39]),
        ([58, 59], [39, 38]),
        ([58, 59], [38, 39]),
    ] {
        let mut scene = Scene::new();
        scene.rules(0, &format!("ipvsadm -A -t {VIP} -s rr -p 60"));
        scene.sysctls = Scene::header(500) + "net.ipv4.vs.expire_nodest_conn = 0\n";
        scene.ipvs = listing(1_000, first) + &listing(21_000, then);
        scene.rules(30_000, "");
        let report = scene.diff();
        assert_eq!(report.divergence_count(), 0, "{}", report.text(9));
        // Both are shorter than they can be.
        scene.ipvs = listing(1_000, first) + &listing(21_000, then.map(|left| left - 3));
        let report = scene.diff();
        let wrong = report.by_class.get(&Class::IpvsTime);
        assert_eq!(wrong, Some(&2), "{}", report.text(9));
    }
}

/// The kubelet probes pods without the service; so may a client on the node.
#[test]
fn probes_of_the_node_are_passed_over() {
    let mut scene = Scene::new();
    scene.listing(0, &[(OLD, 1)]);
    let node = "10.27.1.1:50000";
    for (ms, from, to, flags, seq, ack) in [
        (1_000, node, OLD, Flags::SYN, 1, 0),
        (1_001, OLD, node, SYN_ACK, 900, 2),
        (1_002, node, OLD, Flags::ACK, 2, 901),
    ] {
        let packet = segment(from, to, flags, seq, ack);
        scene.packets.push((ms * 1_000_000, packet, 64));
    }
    scene.passes(1_500, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
    scene.ct = Scene::header(3_000)
        + "ipv4 2 tcp 6 86398 ESTABLISHED src=10.27.1.1 dst=10.27.1.10 sport=50000 dport=80 src=10.27.1.10 dst=10.27.1.1 \
           sport=80 dport=50000 [ASSURED] mark=0 use=1\n\
           ipv4 2 tcp 6 86398 ESTABLISHED src=10.23.31.99 dst=10.20.79.227 sport=5000 dport=80 src=10.27.1.10 dst=10.23.31.99 \
           sport=80 dport=5000 [ASSURED] mark=0 use=1\n\
           ipv4 2 tcp 6 118 SYN_SENT src=10.23.31.87 dst=10.20.79.226 sport=40000 dport=31199 [UNREPLIED] src=10.27.1.10 \
           dst=10.23.31.87 sport=80 dport=40000 mark=0 use=1\n";
    let report = scene.diff();
    assert_eq!(report.divergence_count(), 0, "{}", report.text(9));
    assert_eq!(report.verdicts, 1, "{}", report.text(9));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(96))]

    /// Damaged captures are compared as far as they go: no damage makes the comparison panic.
    #[test]
    fn damaged_captures_do_not_panic(
        edits in proptest::collection::vec(
            (0..4_usize, proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()),
            1..30,
        ),
        digits in proptest::prelude::any::<bool>(),
    ) {
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../captures/linux-6.1.192-mode1-expire1-rr-ct1-seed101-persistent-quiescent1");
        let to = tempfile::tempdir().unwrap();
        let names = ["rules.log", "ipvs-conn.log", "conntrack.log", "packets.pcap"];
        fs::copy(from.join("manifest.toml"), to.path().join("manifest.toml")).unwrap();
        for (which, name) in names.iter().enumerate() {
            let mut bytes = fs::read(from.join(name)).unwrap();
            for (file, at, byte) in &edits {
                let len = bytes.len();
                if *file == which && len > 0 {
                    let at = at.index(len);
                    // Digits for digits keep most lines readable: they reach deeper.
                    bytes[at] = match (digits && which < 3, bytes[at]) {
                        (true, b'0'..=b'9') => b'0' + byte % 10,
                        (true, other) => other,
                        (false, _) => *byte,
                    };
                }
            }
            fs::write(to.path().join(name), bytes).unwrap();
        }
        if let Ok(capture) = Capture::open(to.path()) {
            let _ = super::compare(&capture);
        }
    }
}
