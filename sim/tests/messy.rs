//! Recordings as real nodes give them: packets are missing. What cannot be checked is named; the node is not blamed for it.

use std::fs;
use std::path::{Path, PathBuf};

use ipvs_sim::capture::Capture;
use ipvs_sim::diff::{Report, diff};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

/// A recording of `sim record` under a rollout, to be spoilt.
fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../captures/regressions/two-neighbours-fail-together")
}

/// A copy of the recording without the packets that are not to be kept.
fn spoilt(mut keeps: impl FnMut() -> bool) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(recording()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if path.extension().is_some_and(|end| end == "pcap") {
            bytes = spoilt_packets(&bytes, &mut keeps);
        }
        fs::write(directory.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    directory
}

fn spoilt_packets(file: &[u8], keeps: &mut impl FnMut() -> bool) -> Vec<u8> {
    let (mut out, mut at) = (file[..24].to_vec(), 24);
    while at < file.len() {
        let length = u32::from_le_bytes(file[at + 8..at + 12].try_into().unwrap());
        let end = at + 16 + length as usize;
        if keeps() {
            out.extend(&file[at..end]);
        }
        at = end;
    }
    out
}

fn compared(directory: &TempDir) -> Report {
    diff(&Capture::open(directory.path()).unwrap()).unwrap()
}

/// The recording with a share of its packets left out by chance.
fn without(share: f64, seed: u64) -> TempDir {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    spoilt(|| !rng.random_bool(share))
}

#[test]
fn packets_that_are_missing_are_no_divergence() {
    let whole = compared(&without(0.0, 0));
    assert_eq!((whole.divergence_count(), whole.missed), (0, 0));
    for share in [0.01, 0.2] {
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
