//! What the field cases share: scenarios by name, runs, what to read out of them, and their lines in
//! docs/field-cases.md.

use std::path::PathBuf;
use std::sync::Mutex;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::{Attempt, ServerSample, TraceOptions};
use ipvs_sim::engine::{RunResult, run};
use ipvs_sim::outcome::Outcome;
use ipvs_sim::scenario::{Arrivals, Rate, Scenario};

/// The even ports of 32768-60999: what connect() prefers.
pub const EVEN_PORTS: u32 = 14_116;

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scenarios/field")
}

pub fn load(name: &str) -> Scenario {
    let path = folder().join(format!("{name}.toml"));
    let loaded = Scenario::load(&path);
    loaded
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .scenario
}

pub fn on_kernel(mut scenario: Scenario, release: &str) -> Scenario {
    scenario.node.kernel = release.parse().unwrap();
    scenario
}

pub fn with(mut scenario: Scenario, sysctl: &str, value: u32) -> Scenario {
    let key = format!("net.{sysctl}");
    scenario.node.sysctl.0.retain(|(name, _)| *name != key);
    scenario.node.sysctl.0.push((key, value.to_string()));
    scenario
}

pub fn mode(scenario: Scenario, mode: u32) -> Scenario {
    with(scenario, "ipv4.vs.conn_reuse_mode", mode)
}

/// One request every so often.
pub fn every(mut scenario: Scenario, seconds: f64) -> Scenario {
    let rate = 1.0 / seconds;
    scenario.client[0].arrivals = Arrivals::Constant(Rate { rate });
    scenario
}

pub fn play(scenario: &Scenario) -> RunResult {
    let options = TraceOptions {
        sample_every: Some(Span::from_secs(1)),
        requests_max: usize::MAX,
        attempts: true,
        tables_at: vec![Instant::from_secs(119), Instant::from_secs(180)],
        ..TraceOptions::default()
    };
    let result = run(scenario, 1, &options).unwrap();
    assert_eq!(
        result.summary.outcomes.iter().sum::<u64>(),
        result.summary.requests
    );
    result
}

/// When something first happened to a pod or real server.
pub fn when(result: &RunResult, pod: Option<Endpoint>, what: &str) -> Option<Instant> {
    let mut events = result.trace.events.iter();
    events
        .find(|event| event.what == what && (pod.is_none() || event.pod == pod))
        .map(|event| event.at)
}

/// When something last happened.
pub fn last(result: &RunResult, what: &str) -> Instant {
    let events = result.trace.events.iter().rev();
    let found = events
        .filter(|event| event.what == what)
        .map(|event| event.at)
        .next();
    found.unwrap_or_else(|| panic!("never: {what}"))
}

pub fn begun(result: &RunResult, from: Instant, to: Instant) -> impl Iterator<Item = &Attempt> {
    let attempts = result.trace.attempts.iter();
    attempts.filter(move |attempt| attempt.start >= from && attempt.start < to)
}

pub fn share(attempts: &[&Attempt], is: impl Fn(&Attempt) -> bool) -> f64 {
    attempts.iter().filter(|attempt| is(attempt)).count() as f64 / attempts.len() as f64
}

pub fn outcomes(result: &RunResult) -> Vec<Outcome> {
    let mut attempts: Vec<&Attempt> = result.trace.attempts.iter().collect();
    attempts.sort_by_key(|attempt| attempt.start);
    attempts.iter().map(|attempt| attempt.outcome).collect()
}

pub fn samples(result: &RunResult, from: u64, to: u64) -> impl Iterator<Item = &ServerSample> {
    let range = Instant::from_secs(from)..Instant::from_secs(to);
    let servers = result.trace.servers.iter();
    servers.filter(move |sample| range.contains(&sample.at))
}

pub fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

static DOCUMENT: Mutex<()> = Mutex::new(());
/// What stands between the head of the table and its lines.
const SEPARATOR: &str = "|---|---|---|---|\n";

fn document() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/field-cases.md")
}

/// Keys of cases in their order: `F2.1` before `F13.2`, kubernetes' issues (`#71114.1`) by number after both, then those of
/// other projects (`moby#31117.1`).
fn order(line: &str) -> (bool, u32, u32, String) {
    let key = line
        .trim_start_matches("| ")
        .split(' ')
        .next()
        .unwrap_or_default();
    let (case, row) = key.split_once('.').unwrap_or((key, "0"));
    let number = |text: &str| {
        let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.parse().unwrap_or(u32::MAX)
    };
    let elsewhere = !case.starts_with(['F', '#']);
    (elsewhere, number(case), number(row), key.to_owned())
}

/// The line of the table in docs/field-cases.md that says what a report states and what the model shows. It must stand
/// there as it is; with UPDATE_DOCS set it is written.
pub fn line(key: &str, stated: &str, predicted: &str, verdict: &str) {
    let line = format!("| {key} | {stated} | {predicted} | {verdict} |");
    let _one_at_a_time = DOCUMENT.lock();
    let text = std::fs::read_to_string(document()).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_none() {
        assert!(
            text.lines().any(|shown| shown == line),
            "docs/field-cases.md lacks the line\n{line}\nUPDATE_DOCS=1 cargo test -p ipvs-sim --test field_cases"
        );
        return;
    }
    let is_row = |line: &&str| line.starts_with("| ");
    let (head, rest) = text.split_once(SEPARATOR).expect("no table");
    let same = |other: &&str| other.starts_with(&format!("| {key} |"));
    let mut rows: Vec<&str> = rest
        .lines()
        .filter(is_row)
        .filter(|row| !same(row))
        .collect();
    rows.push(&line);
    rows.sort_by_key(|row| order(row));
    let tail = rest.lines().filter(|line| !is_row(line));
    let rows: String = rows
        .into_iter()
        .chain(tail)
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(document(), format!("{head}{SEPARATOR}{rows}")).unwrap();
}

/// A share in per cent.
pub fn per_cent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
