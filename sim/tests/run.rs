//! `sim run` as people and scripts use it.

use std::io::Read as _;
use std::process::Stdio;

use assert_cmd::Command;
use predicates::prelude::*;
use serde_json::Value;

/// The founding case, cut off two minutes after its rollout began.
const SHORT: [&str; 3] = ["run", "--duration", "270s"];

fn sim(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
    command.args(flags);
    for name in ["LC_ALL", "LC_CTYPE", "LANG", "NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
}

fn short(flags: &[&str]) -> Command {
    let mut command = sim(&SHORT);
    command.args(flags);
    command
}

fn stdout(command: &mut Command) -> String {
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

#[test]
fn the_founding_case_shows_its_dead_service_and_the_reason() {
    let assert = short(&[]).assert().success();
    let output = assert.get_output();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.contains("requests failed"), "{first}");
    for words in [
        "The service was dead",
        "QPS = 0",
        "a reused port met an entry of a real server at weight 0",
        "weight set to 0: 10.27.1.24",
        "no file given: the founding case, built in",
        "--conn-reuse-mode 1",
    ] {
        assert!(text.contains(words), "{words:?} is missing in\n{text}");
    }
    assert!(text.is_ascii(), "no locale says UTF-8");
    let speed = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(speed.ends_with("times real time\n"), "{speed}");
    assert_eq!(speed.lines().count(), 1, "{speed}");
}

#[test]
fn what_is_drawn_follows_the_terminal() {
    let utf8 = stdout(short(&[]).env("LANG", "C.UTF-8"));
    assert!(utf8.contains('█') && !utf8.contains('\u{1b}'));
    let ascii = stdout(short(&["--ascii"]).env("LANG", "C.UTF-8"));
    assert!(ascii.is_ascii());
    let forced = stdout(short(&[]).env("CLICOLOR_FORCE", "1"));
    assert!(forced.contains('\u{1b}'));
    let refused = stdout(short(&[]).env("NO_COLOR", "1"));
    assert!(!refused.contains('\u{1b}'));
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_seed_another_run() {
    let json = |seed: &str| stdout(&mut short(&["--format", "json", "--seed", seed]));
    let first = json("32570");
    assert_eq!(first, json("0x7f3a"));
    assert_ne!(first, json("2"));
    let document = serde_json::from_str::<Value>(&first).unwrap();
    assert_eq!(document["seed"], "32570");
    assert_eq!(document["format"], 2);
}

#[test]
fn all_formats_count_the_same() {
    let json = stdout(&mut short(&["--format", "json", "--failures", "0"]));
    let json = serde_json::from_str::<Value>(&json).unwrap();
    let attempts = stdout(&mut short(&["--attempts"]));
    let requests = json["requests"].as_u64().unwrap();
    assert_eq!(attempts.lines().count() as u64, requests + 1);
    let failed = attempts.lines().filter(|line| {
        line.contains("timeout") || line.contains("refused") || line.contains("reset")
    });
    assert_eq!(failed.count() as u64, json["failed"].as_u64().unwrap());

    let csv = stdout(&mut short(&["--format", "csv"]));
    let column = |index: usize| {
        let lines = csv.lines().skip(1);
        lines
            .map(|line| line.split(',').nth(index).unwrap().parse::<u64>().unwrap())
            .sum::<u64>()
    };
    assert_eq!(column(1), requests);
    assert_eq!(column(2), json["outcomes"]["answered"].as_u64().unwrap());
    assert_eq!(column(3), json["failed"].as_u64().unwrap());
}

#[test]
fn tables_are_shown_in_the_words_of_the_node_and_filtered() {
    let text = stdout(&mut short(&[
        "--tables-at",
        "200s",
        "--match",
        "10.27.1.245",
        "--failures",
        "0",
    ]));
    let tables = text.split_once("Tables at 200.000 s").unwrap().1;
    assert!(
        tables.contains("$ ipvsadm -Lnc\nIPVS connection entries\n"),
        "{text}"
    );
    let entries = tables
        .lines()
        .filter(|line| line.starts_with("TCP ") && line.contains(":31199 1"));
    let entries = entries.collect::<Vec<_>>();
    assert!(!entries.is_empty());
    assert!(
        entries.iter().all(|line| line.contains(" 10.27.1.245:80")),
        "{entries:?}"
    );
    assert!(tables.contains("ipv4     2 tcp      6 "), "{text}");
}

#[test]
fn a_file_is_written_whole_and_the_screen_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.csv");
    let path = path.to_str().unwrap();
    short(&["--format", "csv", "--out", path])
        .assert()
        .success()
        .stdout("");
    let written = std::fs::read_to_string(path).unwrap();
    assert!(written.starts_with("second,attempts,answered,failed,ports_exhausted,late,events\n"));
}

#[test]
fn what_cannot_be_done_is_said_before_the_run() {
    let cases: [(&[&str], i32, &str); 6] = [
        (
            &["--out", "/no/such/folder/x.json"],
            7,
            "/no/such/folder/x.json",
        ),
        (&["no-such-file.toml"], 2, "no-such-file.toml"),
        (&["--set", "node.hertz=250"], 2, "hertz"),
        (&["--rps", "0"], 2, "rate"),
        (&["--tables-at", "300s"], 2, "ends after 270s"),
        (&["--match", "10.0.0.1"], 2, "--tables-at"),
    ];
    for (flags, code, words) in cases {
        short(flags)
            .assert()
            .code(code)
            .stdout("")
            .stderr(predicate::str::contains(words));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    // Longer than a pipe holds, so that the writer notices.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["run", "--duration", "160s", "--attempts"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 100]).unwrap();
    drop(pipe);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
