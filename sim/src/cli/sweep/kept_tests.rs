//! Sweeps that are kept, stopped, divided and merged, with made-up rollouts.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use super::tests::{args, made_up};
use super::*;
use crate::cli::merge;
use crate::experiment::store::LOG;

/// Two points; the precision asked for is reached at different looks.
const SWEEP: [&str; 6] = ["--rps", "400", "--ports", "9000", "--format", "json"];

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn args(&self, words: &[&str]) -> Args {
        let mut args = args(&[&SWEEP, words].concat());
        args.out = Some(self.path("out"));
        args
    }

    fn sweep(&self, args: Args) -> String {
        let code = run(args, &made_up, &Interrupt::default());
        assert_eq!(code.unwrap_or_else(|error| panic!("{error}")), Exit::OK);
        self.result()
    }

    fn result(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap_or_default()
    }

    fn merge(&self, dirs: &[&str], partial: bool) -> Result<String, CommonError> {
        let _ = fs::remove_file(self.path("out"));
        merge::run(merge::Args {
            dirs: dirs.iter().map(|dir| self.path(dir)).collect(),
            partial,
            format: Format::Json,
            out: Some(self.path("out")),
        })?;
        Ok(self.result())
    }

    fn kept(&self, dir: &str, words: &[&str]) -> Args {
        let mut args = self.args(words);
        args.dir = Some(self.path(dir));
        args
    }

    fn shard(&self, dir: &str, words: &[&str], index: u64, of: u64) {
        let mut args = self.kept(dir, words);
        args.shard = Some(Shard::Given(Share::new(index, of).expect("a shard")));
        run(args, &made_up, &Interrupt::default()).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn keeping_results_does_not_change_them() {
    let bench = Bench::new();
    let plain = bench.sweep(bench.args(&["--runs", "33"]));
    assert_eq!(bench.sweep(bench.kept("work", &["--runs", "33"])), plain);
    // All is known: nothing runs again.
    let nothing = |_: &Scenario, _| Err(RunError("not again".to_owned()));
    let again = bench.kept("work", &["--runs", "33"]);
    run(again, &nothing, &Interrupt::default()).expect("known");
    assert_eq!(bench.result(), plain);
    // Merging one whole sweep is reading it.
    assert_eq!(bench.merge(&["work"], false).expect("whole"), plain);
}

#[test]
fn shards_of_any_number_merge_to_the_bytes_of_the_whole() {
    let bench = Bench::new();
    for words in [["--runs", "70"], ["--max-runs", "90"]] {
        let plain = bench.sweep(bench.args(&[&words[..], &["--budget", "none"]].concat()));
        for of in [1, 7, 64] {
            let dir = format!("{}-{of}", words[1]);
            for index in (0..of).rev() {
                bench.shard(&dir, &words, index, of);
            }
            let merged = bench.merge(&[&dir], false);
            assert_eq!(merged.expect("complete"), plain, "{words:?} {of}");
        }
    }
}

#[test]
fn shards_of_different_divisions_complete_each_other() {
    let bench = Bench::new();
    let words = ["--runs", "30"];
    let plain = bench.sweep(bench.args(&words));
    bench.shard("one", &words, 0, 2);
    bench.shard("other", &words, 1, 4);
    bench.shard("other", &words, 3, 4);
    // Twice the same, from another division.
    bench.shard("other", &words, 2, 3);
    let merged = bench.merge(&["one", "other"], false);
    assert_eq!(merged.expect("complete"), plain);
}

#[test]
fn missing_shards_are_named_with_what_runs_them() {
    let bench = Bench::new();
    let words = ["--runs", "12"];
    for index in [0, 1, 3] {
        bench.shard("work", &words, index, 5);
    }
    // Shard 2 of 5 stopped early: its last line is torn.
    let log = bench.path("work/shard-2-of-5").join(LOG);
    let bytes = fs::read(&log).expect("a log");
    fs::write(&log, &bytes[..bytes.len() - 3]).expect("torn");

    let error = bench
        .merge(&["work"], false)
        .expect_err("shards are missing");
    assert_eq!(error.code(), Exit::UNDECIDED);
    let text = error.to_string();
    let place = bench.path("work").display().to_string();
    for expected in [
        "3 of 5 shards",
        "shard 2/5: 5 of 6 rollouts",
        "shard 3/5: missing",
        "shard 5/5: missing",
        &format!("sim sweep --rps 400 --ports 9000 --seed 0x1 --runs 12 --dir {place} --shard 3/5"),
        "indexes 1,2,4",
        "--array=1,2,4",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    // What is there, up to the first that is missing: runs 0 and 1.
    let partial = bench.merge(&["work"], true).expect("a part");
    assert_eq!(partial, bench.sweep(bench.args(&["--runs", "2"])));

    for index in [1, 2, 4] {
        bench.shard("work", &words, index, 5);
    }
    let merged = bench.merge(&["work"], false).expect("complete");
    assert_eq!(merged, bench.sweep(bench.args(&words)));
}

#[test]
fn results_of_different_sweeps_are_not_merged() {
    let bench = Bench::new();
    bench.shard("work", &["--runs", "8"], 0, 2);
    bench.shard("work", &["--runs", "9"], 1, 2);
    let error = bench.merge(&["work"], false).expect_err("two numbers");
    assert!(error.to_string().contains("--runs"), "{error}");
    bench.shard("seeds", &["--runs", "8"], 0, 2);
    bench.shard("seeds", &["--runs", "8", "--seed", "2"], 1, 2);
    let error = bench.merge(&["seeds"], false).expect_err("two seeds");
    assert!(error.to_string().contains("seed"), "{error}");
    fs::create_dir(bench.path("empty")).expect("a folder");
    let error = bench.merge(&["empty"], false).expect_err("nothing there");
    assert_eq!(error.code(), Exit::NOTHING_MATCHED);
}

#[test]
fn a_contradiction_between_shards_is_found() {
    let bench = Bench::new();
    bench.shard("work", &["--runs", "8"], 0, 2);
    bench.shard("other", &["--runs", "8"], 0, 2);
    let log = bench.path("other/shard-1-of-2").join(LOG);
    let text = fs::read_to_string(&log).expect("a log");
    let first = text.lines().next().expect("a line");
    let body = first.splitn(3, ' ').nth(2).expect("a body");
    let body = body.replace("\"requests\":4000", "\"requests\":4001");
    assert!(!first.ends_with(&body));
    let forged = format!(
        "{:08x} {} {body}",
        crc32fast::hash(body.as_bytes()),
        body.len()
    );
    fs::write(&log, text.replace(first, &forged)).expect("written");
    let error = bench
        .merge(&["work", "other"], false)
        .expect_err("a contradiction");
    assert!(
        error.to_string().contains("different results of run 0"),
        "{error}"
    );
}

#[test]
fn an_interrupted_sweep_goes_on_to_the_same_bytes() {
    let bench = Bench::new();
    let words = ["--runs", "40"];
    let plain = bench.sweep(bench.args(&words));
    bench.sweep(bench.kept("whole", &words));
    let mut stops = 0;
    for after in [0, 1, 5, 17, 40] {
        let (interrupt, runs) = (Interrupt::default(), AtomicU64::new(0));
        let stopping = |scenario: &Scenario, seed| {
            if runs.fetch_add(1, Ordering::Relaxed) == after {
                interrupt.ask();
            }
            made_up(scenario, seed)
        };
        let _ = fs::remove_file(bench.path("out"));
        let code = run(bench.kept("work", &words), &stopping, &interrupt).expect("ends well");
        if code == Exit::INTERRUPTED {
            assert_eq!(bench.result(), "", "a stopped sweep prints no result");
            stops += 1;
        }
    }
    assert!(stops >= 4, "{stops}");
    let mut resumed = args(&["--format", "json"]);
    resumed.resume = Some(bench.path("work"));
    resumed.out = Some(bench.path("out"));
    assert_eq!(bench.sweep(resumed), plain);
    let log = |dir: &str| fs::read(bench.path(dir).join(LOG)).expect("a log");
    assert!(log("work") == log("whole"), "the logs differ");
}

#[test]
fn an_interrupt_without_a_folder_reports_what_is_there() {
    let bench = Bench::new();
    let (interrupt, runs) = (Interrupt::default(), AtomicU64::new(0));
    let stopping = |scenario: &Scenario, seed| {
        if runs.fetch_add(1, Ordering::Relaxed) == 9 {
            interrupt.ask();
        }
        made_up(scenario, seed)
    };
    let mut args = bench.args(&["--runs", "40"]);
    args.threads = Some(1);
    let code = run(args, &stopping, &interrupt).expect("ends well");
    assert_eq!(code, Exit::INTERRUPTED);
    let value: serde_json::Value = serde_json::from_str(&bench.result()).expect("JSON");
    assert_eq!(value["runs_per_point"], 5);
}

#[test]
fn more_precision_goes_on_with_what_is_there() {
    let bench = Bench::new();
    bench.sweep(bench.kept("work", &["--runs", "10"]));
    let mut more = args(&["--format", "json", "--runs", "25"]);
    more.resume = Some(bench.path("work"));
    more.out = Some(bench.path("out"));
    let runs = AtomicU64::new(0);
    let counted = |scenario: &Scenario, seed| {
        runs.fetch_add(1, Ordering::Relaxed);
        made_up(scenario, seed)
    };
    run(more, &counted, &Interrupt::default()).expect("goes on");
    assert_eq!(runs.load(Ordering::Relaxed), 30);
    let resumed = bench.result();
    assert_eq!(resumed, bench.sweep(bench.args(&["--runs", "25"])));
}

#[test]
fn a_folder_with_another_sweep_is_refused() {
    let bench = Bench::new();
    bench.sweep(bench.kept("work", &["--runs", "4"]));
    let other = bench.kept("work", &["--runs", "4", "--seed", "7"]);
    let error = run(other, &made_up, &Interrupt::default()).expect_err("another seed");
    assert_eq!(error.code(), Exit::USAGE);
    assert!(error.to_string().contains("another sweep"), "{error}");
    let mut nothing = args(&[]);
    nothing.resume = Some(bench.path("nothing"));
    let error = run(nothing, &made_up, &Interrupt::default()).expect_err("no sweep");
    assert!(error.to_string().contains("no sweep to go on"), "{error}");
}

#[test]
fn a_shard_needs_a_limit_that_does_not_depend_on_the_others() {
    let bench = Bench::new();
    let mut args = bench.kept("work", &[]);
    args.shard = Some(Shard::Given(Share::new(0, 2).expect("a shard")));
    let error = run(args, &made_up, &Interrupt::default()).expect_err("no limit");
    assert!(error.to_string().contains("--runs N"), "{error}");
}
