use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;

use super::*;
use crate::experiment::seeds::SplitMix64;
use crate::outcome::{Cause, Outcome};
use crate::scenario::Arrivals;

#[derive(Parser)]
struct Probe {
    #[command(flatten)]
    args: Args,
}

pub(super) fn args(words: &[&str]) -> Args {
    Probe::try_parse_from(["sweep"].iter().chain(words))
        .unwrap_or_else(|e| panic!("{e}"))
        .args
}

/// Not the engine: rollouts with made-up counts that depend on the settings and the seed, to test the way from
/// flags to bytes. In mode 0 about a third of the requests fail and the service is dead for 40 s; in mode 1 some
/// connect late. Above 470 requests/s ports run out.
pub(super) fn made_up(scenario: &Scenario, seed: u64) -> Result<RunSummary, RunError> {
    let mut rng = SplitMix64::new(seed);
    let rate = match &scenario.client[0].arrivals {
        Arrivals::Constant(rate) | Arrivals::Poisson(rate) => rate.rate as u64,
        Arrivals::Closed(_) => return Err(RunError("no closed loop here".to_owned())),
    };
    let ports = scenario.client[0]
        .ports
        .0
        .map_or(28_232, |ports| u64::from(ports.count()));
    let requests = rate * 10;
    let reuse_one = scenario
        .node_sysctl_overrides()
        .iter()
        .any(|(_, value)| value == "1");
    let mut run = RunSummary {
        requests,
        connections: requests,
        packets: requests * 10,
        ..Default::default()
    };
    let no_port = requests.saturating_sub(ports / 6);
    let mut answered = requests - no_port;
    if reuse_one {
        let late = answered / 500 + rng.below(5);
        run.delayed[Cause::SynDroppedOnReuse.index()] = late.min(answered);
    } else {
        let failed = answered * (28 + rng.below(6)) / 100;
        answered -= failed;
        run.outcomes[Outcome::ConnectTimeout.index()] = failed - failed / 50;
        run.outcomes[Outcome::Refused.index()] = failed / 50;
        run.causes[Cause::PinnedToDrained.index()] = failed - failed / 50;
        run.causes[Cause::PinnedToDeleted.index()] = failed / 50;
        run.longest_dead_ns = (38 + rng.below(6)) * 1_000_000_000;
    }
    run.outcomes[Outcome::Answered.index()] = answered;
    run.outcomes[Outcome::PortsExhausted.index()] = no_port;
    Ok(run)
}

/// What `sim sweep` writes.
fn output(words: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    let mut args = args(words);
    args.out = Some(path.clone());
    let code = run(args, &made_up, &Interrupt::default()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(code, Exit::OK);
    std::fs::read_to_string(path).expect("a result")
}

/// The error of `sim sweep`, its exit code, and that it was found before any run and left no file.
fn refused(words: &[&str]) -> (u8, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut args = args(words);
    if args.out.is_none() {
        args.out = Some(folder.path().join("out"));
    }
    let runs = AtomicU64::new(0);
    let counted = |scenario: &Scenario, seed| {
        runs.fetch_add(1, Ordering::Relaxed);
        made_up(scenario, seed)
    };
    let error = run(args, &counted, &Interrupt::default()).expect_err("refused");
    assert_eq!(runs.load(Ordering::Relaxed), 0, "{error}");
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        0,
        "{error}"
    );
    (error.code(), error.to_string())
}

macro_rules! assert_screen {
    ($name:literal, $value:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $value) });
    };
}

#[test]
fn by_default_both_reuse_modes_are_compared_on_the_founding_case() {
    let screen = output(&["--ports", "28232", "--rps", "400", "--budget", "none"]);
    assert_screen!("sweep_screen", screen);
}

#[test]
fn many_points_make_a_table_and_a_map() {
    let words = [
        "--ports",
        "2000,20000",
        "--rps",
        "100..300 step 100",
        "--runs",
        "25",
    ];
    assert_screen!("sweep_table", output(&words));
}

#[test]
fn json_holds_counts_and_intervals() {
    let json = output(&[
        "--rps",
        "2000",
        "--conn-reuse-mode",
        "0",
        "--runs",
        "30",
        "--format",
        "json",
    ]);
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(value["format"], 2);
    assert_eq!(value["root_seed"], "0x0000000000000001");
    let failure = &value["points"][0]["request_fails"];
    let interval = |end: usize| failure["interval"][end].as_f64().expect("a number");
    let share =
        failure["count"].as_f64().expect("a number") / failure["of"].as_f64().expect("a number");
    assert!(interval(0) < share && share < interval(1), "{failure}");
    let (version, dummy) = (env!("CARGO_PKG_VERSION"), "VERSION");
    assert_screen!(
        "sweep_json",
        json.replace(&format!("\"{version}\""), &format!("\"{dummy}\""))
    );
}

#[test]
fn csv_has_a_line_for_each_point() {
    let csv = output(&["--rps", "100,200", "--runs", "20", "--format", "csv"]);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let head = reader.headers().expect("a head").clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 4);
    let cell = |row: &csv::StringRecord, name: &str| {
        let place = head
            .iter()
            .position(|cell| cell == name)
            .unwrap_or_else(|| panic!("{name}"));
        row[place].to_owned()
    };
    assert_eq!(cell(&rows[1], "rps"), "100");
    assert_eq!(cell(&rows[1], "conn-reuse-mode"), "1");
    assert_eq!(cell(&rows[1], "request_fails_count"), "0");
    assert_eq!(cell(&rows[2], "request_fails_of"), "40000");
    let sum = |row: &csv::StringRecord, prefix: &str| -> u64 {
        let cells = head
            .iter()
            .zip(row)
            .filter(|(name, _)| name.starts_with(prefix));
        cells
            .map(|(_, cell)| cell.parse::<u64>().expect("a count"))
            .sum()
    };
    for row in &rows {
        assert_eq!(sum(row, "outcome_").to_string(), cell(row, "requests"));
        assert_eq!(
            sum(row, "cause_").to_string(),
            cell(row, "request_fails_count")
        );
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    for format in ["text", "json", "csv"] {
        let words = |threads| {
            [
                "--rps",
                "100,200,300",
                "--runs",
                "33",
                "--format",
                format,
                "--threads",
                threads,
            ]
        };
        assert_eq!(output(&words("1")), output(&words("8")), "{format}");
    }
}

#[test]
fn runs_repeat_the_bytes_of_a_sweep_that_time_stopped() {
    let slow = |scenario: &Scenario, seed| {
        std::thread::sleep(Duration::from_millis(2));
        made_up(scenario, seed)
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    let mut first = args(&[
        "--rps",
        "100",
        "--precision",
        "0.1%",
        "--budget",
        "100ms",
        "--format",
        "json",
    ]);
    first.out = Some(path.clone());
    run(first, &slow, &Interrupt::default()).expect("runs");
    let stopped = std::fs::read_to_string(path).expect("a result");
    let value: serde_json::Value = serde_json::from_str(&stopped).expect("JSON");
    assert_eq!(value["stopped"]["by"], "budget");
    let runs = value["runs_per_point"].to_string();
    let words = [
        "--rps",
        "100",
        "--precision",
        "0.1%",
        "--runs",
        &runs,
        "--format",
        "json",
    ];
    assert_eq!(output(&words), stopped);
}

#[test]
fn the_reuse_mode_is_not_added_where_something_decides_it() {
    let paths = |words: &[&str]| {
        let prepared = Prepared::of(keep::recipe(&args(words)).expect("good")).expect("good");
        prepared
            .grid
            .axes()
            .iter()
            .map(|axis| axis.path.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&["--rps", "5"]), ["rps", "conn-reuse-mode"]);
    assert_eq!(
        paths(&["--conn-reuse-mode", "2", "--rps", "5"]),
        ["conn-reuse-mode", "rps"]
    );
    assert_eq!(paths(&["--mode", "iptables"]), ["mode"]);
    assert_eq!(
        paths(&["--set", "node.mode=iptables"]),
        Vec::<String>::new()
    );
    let key = "node.sysctl.net.ipv4.vs.conn_reuse_mode";
    assert_eq!(paths(&["--set", &format!("{key}=1")]), Vec::<String>::new());
    assert_eq!(paths(&["--vary", &format!("{key}=0,1,2")]), [key]);
}

#[test]
fn bad_input_is_refused_before_anything_runs() {
    let cases: &[(&[&str], &str)] = &[
        (&["--rps", "0"], "0"),
        (&["--rps", "nan"], "nan"),
        (&["--rps", "-5"], "-5"),
        (&["--ports", "0-100000"], "0-100000"),
        (&["--ports", "60999-32768"], "60999-32768"),
        (&["--kernel", "five"], "five"),
        (&["--conn-reuse-mode", "on"], "on"),
        (&["--closes-first", "nobody"], "nobody"),
        (&["--rps", ""], "an item is empty"),
        (&["--rps", "1..x"], "not a number"),
        (&["--vary", "node.hz"], "PATH=VALUES"),
        (&["--vary", "node.nonsense=1,2"], "nonsense"),
        (&["--set", "client.0.nonsense=1"], "nonsense"),
        (
            &["--rps", "1..1000", "--ports", "1..1000"],
            "too many points",
        ),
        (&["--rps", "1,1"], "listed twice"),
        (
            &["--ports", "5", "--vary", "client.*.ports=6,7"],
            "given twice",
        ),
        (&["--scenario", "no/such.toml"], "no/such.toml"),
    ];
    for (words, expected) in cases {
        let (code, message) = refused(words);
        assert_eq!(code, Exit::USAGE, "{words:?}: {message}");
        assert!(message.contains(expected), "{words:?}: {message}");
    }
}

#[test]
fn bad_flags_are_refused_by_the_parser() {
    for words in [
        ["--precision", "0"],
        ["--precision", "NaN"],
        ["--precision", "-3%"],
        ["--budget", "10"],
        ["--runs", "0"],
        ["--max-runs", "0"],
        ["--threads", "0"],
        ["--seed", "0xfffffffffffffffff"],
        ["--format", "xml"],
    ] {
        let error = Probe::try_parse_from(["sweep"].iter().chain(&words))
            .err()
            .expect("refused");
        assert_eq!(error.exit_code(), 2, "{words:?}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_found_first() {
    let (code, message) = refused(&["--out", "/no/such/folder/result.json"]);
    assert_eq!(code, Exit::OUTPUT_UNWRITABLE, "{message}");
    assert!(message.contains("/no/such/folder"), "{message}");
}

#[test]
fn a_run_that_fails_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    std::fs::write(&path, "an older result").expect("written");
    let mut args = args(&["--concurrency", "5"]);
    args.out = Some(path.clone());
    let error = run(args, &made_up, &Interrupt::default()).expect_err("no closed loop");
    assert!(error.to_string().contains("seed 0x"), "{error}");
    assert_eq!(
        std::fs::read_to_string(&path).expect("still there"),
        "an older result"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        1
    );
}

#[test]
fn seeds_and_precision_are_read_in_both_forms() {
    assert_eq!(seed("0xff"), seed("255"));
    assert_eq!(precision("20%"), precision("0.2"));
    assert_eq!(budget("none").map(|budget| budget.0), Ok(None));
    assert_eq!(
        budget("1m 30s").map(|budget| budget.0),
        Ok(Some(Duration::from_secs(90)))
    );
}

/// A release that leaves open which fixes the kernel has takes a point for each possibility; a clear one takes one.
#[test]
fn a_release_that_leaves_fixes_open_is_every_kernel_that_it_can_be() {
    let rows = |words: &[&str]| {
        let always = ["--runs", "1", "--conn-reuse-mode", "0", "--format", "csv"];
        let csv = output(&[&always, words].concat());
        csv.lines().count() - 1
    };
    assert_eq!(rows(&["--kernel", "4.19.57"]), 1);
    assert_eq!(rows(&["--kernel", "4.19.57,5.4.0-1051-gke"]), 4);
    assert_eq!(rows(&["--set", "node.kernel=4.18.0-305.el8"]), 4);
    assert_eq!(rows(&["--kernel", "4.18.0-305.el8 with none"]), 1);
    assert_eq!(rows(&["--client-kernel", "4.18.0-305.el8"]), 2);
    let both = ["--kernel", "5.10.x", "--client-kernel", "5.10.x"];
    assert_eq!(rows(&both), 4);
    let decided = [
        "--kernel",
        "5.10.x",
        "--vary",
        "node.assume_backports=true,false",
    ];
    assert_eq!(rows(&decided), 2);
}
