//! The comparison on recordings of real kernels.

use std::path::{Path, PathBuf};

use super::*;

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures")
}

fn recordings() -> Vec<PathBuf> {
    let mut directories = std::fs::read_dir(captures().join("kernels"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>();
    directories.sort();
    directories
}

/// Three kernels, all modes, three schedulers: not one packet and not one row differs, and nearly nothing is left
/// unchecked.
#[test]
fn recordings_of_kernels_agree_with_the_model() {
    let mut rules = std::collections::BTreeMap::<String, u64>::new();
    for directory in recordings() {
        let report = diff(&Capture::open(&directory).unwrap()).unwrap();
        assert_eq!(
            report.divergence_count(),
            0,
            "{}\n{}",
            directory.display(),
            report.text(3)
        );
        assert!(
            report.verdicts > 150 && report.entries > 1_000,
            "{}",
            report.text(0)
        );
        let unchecked = report.not_checked.values().sum::<u64>();
        assert!(
            unchecked <= 6,
            "{}\n{}",
            directory.display(),
            report.text(0)
        );
        for (rule, count) in report.rules {
            *rules.entry(rule).or_default() += count;
        }
    }
    // What these recordings exercise; a reader that lost packets would lose some of them.
    for rule in [
        "Ipvs(Scheduled)",
        "Ipvs(SynKept)",
        "Ipvs(SynKeptAtWeightZero)",
        "Ipvs(RescheduledReuse)",
        "Ipvs(RescheduledWeightZero)",
        "Ipvs(DroppedReuse)",
        "Ipvs(Translated)",
        "Ipvs(NotSchedulable)",
        "Ipvs(NoEntryOutward)",
    ] {
        assert!(rules.contains_key(rule), "{rule} of {rules:?}");
    }
}
