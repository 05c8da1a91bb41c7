//! What runs give, to the bit: one digest of counts and timeline, and one of everything that an observed run keeps, for
//! each scenario of `tests/digests/` and two seeds.
//!
//! A change of speed must leave all of them alone. A change of the model's behaviour moves those that it concerns:
//! `UPDATE_DIGESTS=1 cargo test -p ipvs-sim --test digests` writes them anew, and the diff tells which and by how many
//! requests. `events` stands beside the digests and not in them, because it measures the engine's work, here on the
//! packet path. Every run is played with the quiet path and without it.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};
use std::path::{Path, PathBuf};

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::{RunTrace, TraceOptions};
use ipvs_sim::engine::{self, RunResult};
use ipvs_sim::outcome::{Outcome, RunSummary};
use ipvs_sim::scenario::Scenario;

const SEEDS: [u64; 2] = [1, 0x7f3a];

/// 64 bits of FNV-1a: enough to notice a change, and the same on every machine.
struct Fnv(u64);

impl std::fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        Ok(())
    }
}

fn digest(parts: &[&dyn Debug]) -> u64 {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for part in parts {
        write!(hash, "{part:?};").unwrap();
    }
    hash.0
}

/// Every count of a run but the engine's own events, in a fixed order.
fn of_counts(summary: &RunSummary) -> u64 {
    digest(&[
        &summary.requests,
        &summary.outcomes,
        &summary.causes,
        &summary.delayed,
        &summary.longest_dead_ns,
        &summary.first_failure_ns,
        &summary.timeline,
        &summary.connections,
        &summary.packets,
    ])
}

/// An event without its kind, which says the same as its words.
#[derive(Debug)]
#[expect(dead_code, reason = "read by its Debug form only")]
struct TimelineEvent<'a> {
    at: Instant,
    pod: Option<Endpoint>,
    what: &'a str,
}

fn of_trace(trace: &RunTrace) -> u64 {
    let events = trace.events.iter().map(|event| TimelineEvent {
        at: event.at,
        pod: event.pod,
        what: &event.what,
    });
    let events: Vec<_> = events.collect();
    digest(&[
        &trace.servers,
        &events,
        &trace.tables,
        &trace.troubled,
        &trace.attempts,
    ])
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/digests")
}

fn run(scenario: &Scenario, seed: u64, options: &TraceOptions) -> RunResult {
    engine::run(scenario, seed, options).unwrap_or_else(|error| panic!("{error}"))
}

/// One line: name, seed, digest of the counts, digest of the trace, and some counts for people.
fn line(name: &str, scenario: &Scenario, seed: u64) -> String {
    let plain = TraceOptions {
        no_quiet: true,
        ..TraceOptions::default()
    };
    let plain = run(scenario, seed, &plain);
    let half = Span(scenario.duration.0 / 2);
    let options = TraceOptions {
        sample_every: Some(Span::from_secs(5)),
        tables_at: vec![Instant::ZERO + half, Instant::ZERO + scenario.duration],
        requests_max: 100_000,
        attempts: true,
        ..TraceOptions::default()
    };
    let observed = run(scenario, seed, &options);
    let (counts, again) = (of_counts(&plain.summary), of_counts(&observed.summary));
    assert_eq!(counts, again, "{name} {seed:#x}: observing changes the run");
    let packets = TraceOptions {
        no_quiet: true,
        ..options
    };
    let packets = run(scenario, seed, &packets);
    assert_eq!(
        (of_counts(&packets.summary), of_trace(&packets.trace)),
        (counts, of_trace(&observed.trace)),
        "{name} {seed:#x}: the quiet path changes the run"
    );
    let summary = &plain.summary;
    format!(
        "{name} {seed:#x} {counts:016x} {:016x} requests {} answered {} failed {} no-port {} packets {} events {}\n",
        of_trace(&observed.trace),
        summary.requests,
        summary.count(Outcome::Answered),
        summary.failed(),
        summary.count(Outcome::PortsExhausted),
        summary.packets,
        summary.events,
    )
}

#[test]
fn every_run_gives_what_it_gave() {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            files.insert(path);
        }
    }
    let mut found = String::new();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let loaded = Scenario::load(&path).unwrap_or_else(|errors| panic!("{name}: {errors}"));
        for seed in SEEDS {
            found.push_str(&line(&name, &loaded.scenario, seed));
        }
    }
    let golden = folder().join("digests.txt");
    if std::env::var_os("UPDATE_DIGESTS").is_some() {
        std::fs::write(&golden, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        found == expected,
        "runs differ from tests/digests/digests.txt; if they should, UPDATE_DIGESTS=1 renews it\n\
         expected:\n{expected}\nfound:\n{found}"
    );
}
