//! A comparison that cannot fail is worthless: faults are put into recordings, as a kernel with another timeout,
//! another table or another scheduler would have left them, and each must be found.

use std::fs;
use std::path::{Path, PathBuf};

use super::compare;
use crate::capture::Capture;

/// Changes a capture directory; false if there was nothing to change.
type Fault = Box<dyn Fn(&Path) -> bool>;

/// Rewrites a file line by line.
fn lines(file: &'static str, change: impl Fn(&str) -> Option<String> + 'static) -> Fault {
    Box::new(move |directory| {
        let path = directory.join(file);
        let before = fs::read_to_string(&path).unwrap();
        let after = before
            .lines()
            .filter_map(&change)
            .map(|line| line + "\n")
            .collect::<String>();
        fs::write(path, &after).unwrap();
        after != before
    })
}

/// IPVS entries of a state live `by` seconds longer.
fn ipvs_timeout(state: &'static str, by: i64) -> Fault {
    lines("ipvs-conn.log", move |line| {
        let mut words = line
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        if words.get(7).is_none_or(|word| word != state) {
            return Some(line.to_owned());
        }
        let seconds = words[8].parse::<i64>().unwrap() + by;
        words[8] = seconds.max(0).to_string();
        Some(words.join(" "))
    })
}

/// Conntrack entries of a state live `by` seconds longer.
fn ct_timeout(state: &'static str, by: i64) -> Fault {
    lines("conntrack.log", move |line| {
        let mut words = line
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        if words.get(5).is_none_or(|word| word != state) {
            return Some(line.to_owned());
        }
        let seconds = words[4].parse::<i64>().unwrap() + by;
        words[4] = seconds.max(0).to_string();
        Some(words.join(" "))
    })
}

fn replaced(file: &'static str, from: &'static str, to: &'static str) -> Fault {
    lines(file, move |line| Some(line.replace(from, to)))
}

/// The `n`th line with `mark` is not there.
fn without_line(file: &'static str, mark: &'static str, n: usize) -> Fault {
    Box::new(move |directory| {
        let path = directory.join(file);
        let before = fs::read_to_string(&path).unwrap();
        let mut met = 0;
        let keep = |line: &&str| {
            met += usize::from(line.contains(mark));
            !(line.contains(mark) && met == n)
        };
        let after = before
            .lines()
            .filter(keep)
            .map(|line| line.to_owned() + "\n");
        let after = after.collect::<String>();
        fs::write(path, &after).unwrap();
        after != before
    })
}

/// Records of the packet file, changed by `change`: it sees the record's number, the record before, and its bytes
/// with the 16 of its header.
fn packets(change: impl Fn(&mut Vec<Vec<u8>>) -> bool + 'static) -> Fault {
    Box::new(move |directory| {
        let path = directory.join("packets.pcap");
        let bytes = fs::read(&path).unwrap();
        let (head, mut rest) = bytes.split_at(24);
        let mut records = Vec::new();
        while rest.len() >= 16 {
            let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
            records.push(rest[..16 + len].to_vec());
            rest = &rest[16 + len..];
        }
        let changed = change(&mut records);
        fs::write(path, [head.to_vec(), records.concat()].concat()).unwrap();
        changed
    })
}

/// Offsets in a record: 16 bytes of its header, then IP without options.
const TTL: usize = 16 + 8;
const SRC: usize = 16 + 12;
const DST: usize = 16 + 16;
const SEQ: usize = 16 + 20 + 4;
const FLAGS: usize = 16 + 20 + 13;

/// The first packet that left towards a pod, from the middle of the recording on.
fn first_exit(records: &[Vec<u8>]) -> Option<usize> {
    let middle = records.len() / 2;
    (middle..records.len()).find(|at| {
        records[*at][TTL] == 63 && records[*at][DST] == 10 && records[*at][DST + 1] == 27
    })
}

fn faults() -> Vec<(&'static str, Fault)> {
    let mut all: Vec<(&'static str, Fault)> = vec![
        ("IPVS SYN_RECV a second longer", ipvs_timeout("SYN_RECV", 1)),
        (
            "IPVS SYN_RECV a second shorter",
            ipvs_timeout("SYN_RECV", -1),
        ),
        (
            "IPVS ESTABLISHED a second longer",
            ipvs_timeout("ESTABLISHED", 1),
        ),
        (
            "IPVS TIME_WAIT a second longer",
            ipvs_timeout("TIME_WAIT", 1),
        ),
        (
            "IPVS TIME_WAIT a second shorter",
            ipvs_timeout("TIME_WAIT", -1),
        ),
        ("IPVS CLOSE a second longer", ipvs_timeout("CLOSE", 1)),
        (
            "IPVS CLOSE_WAIT a second longer",
            ipvs_timeout("CLOSE_WAIT", 1),
        ),
        ("IPVS FIN_WAIT a second longer", ipvs_timeout("FIN_WAIT", 1)),
        (
            "conntrack SYN_SENT a second longer",
            ct_timeout("SYN_SENT", 1),
        ),
        (
            "conntrack SYN_RECV a second shorter",
            ct_timeout("SYN_RECV", -1),
        ),
        (
            "conntrack ESTABLISHED a second longer",
            ct_timeout("ESTABLISHED", 1),
        ),
        (
            "conntrack FIN_WAIT a second longer",
            ct_timeout("FIN_WAIT", 1),
        ),
        (
            "conntrack CLOSE_WAIT a second longer",
            ct_timeout("CLOSE_WAIT", 1),
        ),
        (
            "conntrack LAST_ACK a second longer",
            ct_timeout("LAST_ACK", 1),
        ),
        ("conntrack CLOSE a second longer", ct_timeout("CLOSE", 1)),
        (
            "a cell: FIN of the client leads to FIN_WAIT",
            replaced("ipvs-conn.log", "CLOSE_WAIT ", "FIN_WAIT   "),
        ),
        (
            "a cell: RST leads to TIME_WAIT",
            replaced("ipvs-conn.log", "CLOSE   ", "TIME_WAIT"),
        ),
        (
            "a cell: conntrack skips CLOSE_WAIT",
            replaced("conntrack.log", "CLOSE_WAIT", "LAST_ACK"),
        ),
        (
            "no entry is ever assured",
            replaced("conntrack.log", "[ASSURED] ", ""),
        ),
        (
            "answers do not clear [UNREPLIED]",
            replaced(
                "conntrack.log",
                "dport=31199 src=",
                "dport=31199 [UNREPLIED] src=",
            ),
        ),
        (
            "another scheduler: wlc",
            replaced("rules.log", "-s rr", "-s wlc"),
        ),
        (
            "another scheduler: rr",
            replaced("rules.log", "-s wlc", "-s rr"),
        ),
        (
            "another scheduler: wrr for rr",
            replaced("rules.log", "-s rr", "-s wrr"),
        ),
        (
            "another scheduler: rr for wrr",
            replaced("rules.log", "-s wrr", "-s rr"),
        ),
        (
            "a drain that never happened",
            replaced("rules.log", "-w 0", "-w 1"),
        ),
        (
            "real servers added in another order",
            Box::new(|directory| {
                let path = directory.join("rules.log");
                let before = fs::read_to_string(&path).unwrap();
                let after = before
                    .replacen("10.27.1.10:80", "10.27.1.99:80", 1)
                    .replacen("10.27.1.11:80", "10.27.1.10:80", 1)
                    .replacen("10.27.1.99:80", "10.27.1.11:80", 1);
                fs::write(path, &after).unwrap();
                after != before
            }),
        ),
        (
            "a deletion that never happened",
            without_line("rules.log", "ipvsadm -d", 1),
        ),
        (
            "conn_reuse_mode off",
            replaced(
                "manifest.toml",
                "conn_reuse_mode\" = 1",
                "conn_reuse_mode\" = 0",
            ),
        ),
        (
            "conn_reuse_mode on",
            replaced(
                "manifest.toml",
                "conn_reuse_mode\" = 0",
                "conn_reuse_mode\" = 1",
            ),
        ),
        (
            "expire_nodest_conn off",
            replaced(
                "manifest.toml",
                "expire_nodest_conn\" = 1",
                "expire_nodest_conn\" = 0",
            ),
        ),
        (
            "vs.conntrack off",
            replaced("manifest.toml", "vs.conntrack\" = 1", "vs.conntrack\" = 0"),
        ),
        (
            "an older kernel by name",
            replaced("manifest.toml", "6.12.117", "5.7.14"),
        ),
        (
            "a newer kernel by name",
            replaced("manifest.toml", "5.7.14", "6.12.117"),
        ),
        (
            "an IPVS entry is lost",
            without_line("ipvs-conn.log", "ESTABLISHED", 200),
        ),
        (
            "a conntrack entry is lost",
            without_line("conntrack.log", "ESTABLISHED", 200),
        ),
    ];
    all.extend(packet_faults());
    all
}

fn packet_faults() -> Vec<(&'static str, Fault)> {
    vec![
        (
            "a packet is dropped",
            packets(|records| {
                let found = first_exit(records);
                found.map(|at| records.remove(at)).is_some()
            }),
        ),
        (
            "a packet goes to another pod",
            packets(|records| {
                let found = first_exit(records);
                found.map(|at| records[at][DST + 3] ^= 1).is_some()
            }),
        ),
        (
            "a missing drop: the packet leaves all the same",
            packets(|records| {
                let to_vip = |record: &[u8]| record[TTL] == 64 && record[DST + 1] == 20;
                let lonely = (1..records.len() - 1).find(|at| {
                    let next = &records[at + 1];
                    to_vip(&records[*at])
                        && next[TTL] == 64
                        && next[SEQ..SEQ + 4] != records[*at][SEQ..SEQ + 4]
                        && next[FLAGS] & 4 == 0
                });
                lonely
                    .map(|at| {
                        let mut left = records[at].clone();
                        left[TTL] = 63;
                        left[DST..DST + 4].copy_from_slice(&[10, 27, 1, 10]);
                        left[38..40].copy_from_slice(&80_u16.to_be_bytes());
                        records.insert(at + 1, left);
                    })
                    .is_some()
            }),
        ),
        (
            "the node's RST has another number",
            packets(|records| {
                let is_reset = |record: &Vec<u8>| {
                    record[FLAGS] & 4 != 0 && record[TTL] == 64 && record[SRC + 1] == 20
                };
                let found = records.iter().position(is_reset);
                found.map(|at| records[at][SEQ + 3] ^= 0x55).is_some()
            }),
        ),
    ]
}

fn copied(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn recordings() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures/kernels");
    let mut all = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("-seed1"))
        .collect::<Vec<_>>();
    all.sort();
    all
}

/// Each fault is found in at least one recording in which it shows.
#[test]
fn every_seeded_fault_is_found() {
    let recordings = recordings();
    let mut missed = Vec::new();
    let all = faults();
    let count = all.len();
    for (name, fault) in all {
        let mut found = false;
        let mut tried = 0;
        for recording in &recordings {
            let directory = tempfile::tempdir().unwrap();
            copied(recording, directory.path());
            if !fault(directory.path()) {
                continue;
            }
            tried += 1;
            let capture = Capture::open(directory.path()).unwrap();
            let (_, _, report) = compare(&capture).unwrap();
            if report.divergence_count() > 0 {
                found = true;
                break;
            }
        }
        if !found {
            missed.push(format!("{name} ({tried} recordings changed)"));
        }
    }
    assert!(
        count >= 35 && missed.is_empty(),
        "of {count} faults missed: {missed:#?}"
    );
}
