//! Recordings as real nodes give them: packets are missing, and the clock is set while they are made. What cannot be checked is
//! named; the node is not blamed for it.

use std::fs;
use std::path::{Path, PathBuf};

use ipvs_sim::capture::Capture;
use ipvs_sim::diff::{Report, diff};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

const SECOND: i64 = 1_000_000_000;

/// A recording of `sim record` under a rollout, to be spoilt.
fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../captures/regressions/two-neighbours-fail-together")
}

/// A packet of a pcap file, with its header.
struct Record {
    nanos: i64,
    bytes: Vec<u8>,
}

/// A copy of the recording, with other packets and other moments.
fn spoilt(mut keeps: impl FnMut(&Record) -> bool, moves: impl Fn(i64) -> i64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(recording()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_owned();
        let bytes = match path.extension().and_then(|end| end.to_str()) {
            Some("pcap") => spoilt_packets(&bytes, &mut keeps, &moves),
            Some("log") => moved_blocks(&String::from_utf8(bytes).unwrap(), &moves).into_bytes(),
            _ => bytes,
        };
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn spoilt_packets(
    file: &[u8],
    keeps: &mut impl FnMut(&Record) -> bool,
    moves: &impl Fn(i64) -> i64,
) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    // Little-endian, and fractions of a second in nanoseconds or microseconds.
    let fraction = match word(0) {
        0xa1b2_3c4d => 1,
        0xa1b2_c3d4 => 1_000,
        other => panic!("{other:x}"),
    };
    let (mut out, mut at) = (file[..24].to_vec(), 24);
    while at < file.len() {
        let end = at + 16 + word(at + 8) as usize;
        let nanos = i64::from(word(at)) * SECOND + i64::from(word(at + 4)) * fraction;
        let mut record = Record {
            nanos,
            bytes: file[at..end].to_vec(),
        };
        let moved = moves(nanos);
        let seconds = u32::try_from(moved / SECOND).unwrap();
        let rest = u32::try_from(moved % SECOND / fraction).unwrap();
        record.bytes[..4].copy_from_slice(&seconds.to_le_bytes());
        record.bytes[4..8].copy_from_slice(&rest.to_le_bytes());
        if keeps(&record) {
            out.extend(record.bytes);
        }
        at = end;
    }
    out
}

fn moved_blocks(text: &str, moves: &impl Fn(i64) -> i64) -> String {
    let lines = text.lines().map(|line| {
        let Some((seconds, micros)) = line.strip_prefix("@ ").and_then(|at| at.split_once('.'))
        else {
            return format!("{line}\n");
        };
        let nanos =
            seconds.parse::<i64>().unwrap() * SECOND + micros.parse::<i64>().unwrap() * 1_000;
        let moved = moves(nanos);
        format!("@ {}.{:06}\n", moved / SECOND, moved % SECOND / 1_000)
    });
    lines.collect()
}

fn compared(directory: &TempDir) -> Report {
    diff(&Capture::open(directory.path()).unwrap()).unwrap()
}

/// The recording with a share of its packets left out by chance.
fn without(share: f64, seed: u64) -> TempDir {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    spoilt(|_| !rng.random_bool(share), |at| at)
}

#[test]
fn packets_that_are_missing_are_no_divergence() {
    let whole = compared(&without(0.0, 0));
    assert_eq!((whole.divergence_count(), whole.missed), (0, 0));
    for share in [0.002, 0.01, 0.2] {
        for seed in 0..4 {
            let report = compared(&without(share, seed));
            let text = report.text(5);
            assert_eq!(report.divergence_count(), 0, "{share} {seed}\n{text}");
            // Much is compared all the same.
            assert!(
                2 * report.verdicts > whole.verdicts,
                "{share} {seed}\n{text}"
            );
            assert!(2 * report.entries > whole.entries, "{share} {seed}\n{text}");
        }
    }
}

#[test]
fn a_recording_that_misses_packets_can_still_diverge() {
    let directory = without(0.05, 1);
    // No packet that is missing makes an entry live shorter than the model says.
    let log = directory.path().join("ipvs-conn.log");
    let text = fs::read_to_string(&log).unwrap();
    let lines = text.lines().map(|line| match line.rsplit_once(' ') {
        Some((row, seconds)) if row.contains("TIME_WAIT") => {
            format!("{row} {}\n", seconds.parse::<u32>().unwrap() - 7)
        }
        _ => format!("{line}\n"),
    });
    fs::write(&log, lines.collect::<String>()).unwrap();
    let report = compared(&directory);
    assert!(report.missed > 0, "{}", report.text(5));
    assert!(report.divergence_count() > 0, "{}", report.text(5));
}

#[test]
fn a_clock_that_is_set_back_is_no_divergence_in_any_file() {
    let mut first = i64::MAX;
    spoilt(
        |record| {
            first = first.min(record.nanos);
            true
        },
        |at| at,
    );
    for (after, back) in [(3, 5), (3, 30), (15, 5), (15, 3_600)] {
        // Between two listings, among packets.
        let at = first + after * SECOND + SECOND / 2;
        let moved = |nanos: i64| {
            if nanos < at {
                nanos
            } else {
                nanos - back * SECOND
            }
        };
        let report = compared(&spoilt(|_| true, moved));
        let text = report.text(5);
        assert_eq!(report.divergence_count(), 0, "{after} {back}\n{text}");
        assert!(report.skipped.of("clock set back") >= 3, "{text}");
    }
}
