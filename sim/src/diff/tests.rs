//! The comparison on recordings of real kernels.

use std::path::{Path, PathBuf};

use super::*;

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures")
}

fn recordings() -> Vec<PathBuf> {
    let within = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path())
    };
    let mut directories = within(captures())
        .chain(within(captures().join("kernels")))
        .filter(|path| path.join("manifest.toml").is_file())
        .collect::<Vec<_>>();
    directories.sort();
    directories
}

/// Every recording that is committed: not one packet and not one row differs, and little is left unchecked.
#[test]
fn recordings_of_kernels_agree_with_the_model() {
    let mut rules = std::collections::BTreeMap::<String, u64>::new();
    let (mut verdicts, mut entries) = (0, 0);
    for directory in recordings() {
        let report = diff(&Capture::open(&directory).unwrap()).unwrap();
        assert_eq!(
            report.divergence_count(),
            0,
            "{}\n{}",
            directory.display(),
            report.text(3)
        );
        verdicts += report.verdicts;
        entries += report.entries;
        let unchecked = report.not_checked.values().sum::<u64>();
        assert!(
            unchecked <= 25,
            "{}\n{}",
            directory.display(),
            report.text(0)
        );
        for (rule, count) in report.rules {
            *rules.entry(rule).or_default() += count;
        }
    }
    assert!(verdicts > 6_000 && entries > 60_000, "{verdicts} {entries}");
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

/// The founding log names the bug in words: which tuple reused its port, after how long, which rule kept the old
/// real server, and that rules and Endpoints already listed only the new pods.
#[test]
fn the_founding_log_names_the_bug() {
    let capture = Capture::open(&captures().join("founding-case/log.txt")).unwrap();
    let report = diff(&capture).unwrap();
    assert_eq!((report.divergence_count(), report.trajectories), (0, 3));
    let text = report.text(10);
    for words in [
        "TCP 10.23.31.87:58578 -> 10.20.79.226:31199",
        "a SYN reused the port 63-64 s after close: TIME_WAIT became SYN_RECV",
        "it kept the real server 10.27.1.249:80 (Ipvs(SynKeptAtWeightZero)",
        "conntrack went from TIME_WAIT to SYN_SENT",
        "went to 10.27.1.246:80, although rules and Endpoints list only the new pods 10.27.1.248, 10.27.1.249",
        "conn_reuse_mode=0 on a kernel without c95c07836fa4",
    ] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
}

/// What no sequence of packets can do is a divergence.
#[test]
fn an_impossible_trajectory_is_a_divergence() {
    let log = std::fs::read_to_string(captures().join("founding-case/log.txt")).unwrap();
    let impossible = [
        // SYNACK belongs to the flood defence, which is off.
        log.replace(
            "TCP 00:59  SYN_RECV    10.23.31.87:58578",
            "TCP 00:59  SYNACK      10.23.31.87:58578",
        ),
        // A deadline that moved without a packet.
        log.replace("TCP 00:58  TIME_WAIT", "TCP 00:40  TIME_WAIT"),
        // Conntrack does not reopen to a third pod while IPVS keeps the second.
        log.replace(
            "src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 mark",
            "src=10.27.1.248 dst=10.23.31.87 sport=80 dport=58578 mark",
        ),
    ];
    for text in impossible {
        assert_ne!(text, log);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.txt");
        std::fs::write(&path, text).unwrap();
        let report = diff(&Capture::open(&path).unwrap()).unwrap();
        assert!(report.divergence_count() > 0, "{}", report.text(9));
    }
}

/// A kernel that does not do what its name says is recognised by what it does.
#[test]
fn another_era_is_named() {
    let from = captures().join("kernels/linux-6.12.117-mode0-expire1-rr-ct1-seed120");
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    // 5.15.5 lacks the fix of weight 0 in every mode, which 5.15.6 has, and little else of 6.12.
    let manifest = directory.path().join("manifest.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("6.12.117", "5.15.5")).unwrap();
    let report = diff(&Capture::open(directory.path()).unwrap()).unwrap();
    assert!(report.divergence_count() > 0);
    let text = report.text(3);
    assert!(
        text.contains("this node behaves like one with `weight-zero-any-mode` (c95c07836fa4"),
        "{text}"
    );
}
