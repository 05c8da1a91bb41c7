//! The command line from outside: exit codes, standard output and standard error.

use std::path::PathBuf;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;

fn sim() -> Command {
    Command::cargo_bin("sim").unwrap()
}

fn scenario(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../scenarios")
        .join(name)
}

#[test]
fn good_scenarios_pass_the_check() {
    sim()
        .args(["scenario", "check"])
        .arg(scenario("founding-case.toml"))
        .arg(scenario("direct-return.toml"))
        .assert()
        .code(0)
        .stdout(contains("founding-case.toml: ok").and(contains("direct-return.toml: ok")));
}

#[test]
fn wrong_scenarios_exit_with_2_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrong.toml");
    std::fs::write(&path, "[node]\nkernal = \"5.4.30\"\n").unwrap();
    sim()
        .args(["scenario", "check"])
        .arg(&path)
        .assert()
        .code(2)
        .stdout(contains("wrong.toml:2:1").and(contains("did you mean `kernel`?")));
    let output = sim()
        .args(["scenario", "check", "--format", "json"])
        .arg(&path)
        .output()
        .unwrap();
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json[0]["ok"], false);
    assert_eq!(json[0]["diagnostics"][0]["line"], 2);
    assert_eq!(json[0]["diagnostics"][0]["code"], "unknown-key");
}

#[test]
fn a_missing_file_is_named() {
    sim()
        .args(["scenario", "show", "no-such-file.toml"])
        .assert()
        .code(2)
        .stderr(contains("no-such-file.toml"));
}

#[test]
fn show_takes_flags_and_writes_whole_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shown.toml");
    sim()
        .args([
            "scenario",
            "show",
            "--hz",
            "100",
            "--set",
            "node.hz=1000",
            "--rps=7",
            "-o",
        ])
        .arg(&path)
        .assert()
        .code(0)
        .stdout("");
    let shown = std::fs::read_to_string(&path).unwrap();
    assert!(shown.contains("\nhz = 1000\n"), "{shown}");
    assert!(
        shown.contains("\narrivals = { constant = { rate = 7 } }\n"),
        "{shown}"
    );
    sim()
        .args(["scenario", "check"])
        .arg(&path)
        .assert()
        .code(0);
}

#[test]
fn an_output_that_cannot_be_written_exits_with_7() {
    sim()
        .args(["scenario", "schema", "-o", "no/such/folder/schema.json"])
        .assert()
        .code(7)
        .stderr(contains("no/such/folder/schema.json"));
}

#[test]
fn wrong_usage_exits_with_2() {
    sim().args(["scenario", "chekc"]).assert().code(2);
    sim()
        .args(["scenario", "show", "--set", "node.hz"])
        .assert()
        .code(2)
        .stderr(contains("PATH=VALUE"));
    sim()
        .arg("kernels")
        .arg("linux")
        .assert()
        .code(2)
        .stderr(contains("uname -r"));
    sim()
        .arg("--help")
        .assert()
        .code(0)
        .stdout(contains("Exit codes"));
}

#[test]
fn kernels_tells_what_is_unknown() {
    sim()
        .args(["kernels", "4.18.0-305.el8"])
        .assert()
        .code(0)
        .stdout(
            contains("4.18.0-305.el8 with none: era C")
                .and(contains("with reuse-drops-confirmed: era D"))
                .and(contains("weight-zero-any-mode"))
                .and(contains("HZ  250")),
        );
    let output = sim()
        .args(["kernels", "6.12.117", "--format", "json"])
        .output()
        .unwrap();
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert_eq!(json["reuse_era"], "F");
    assert_eq!(json["behaviours"]["weight-zero-any-mode"], "yes");
    let output = sim()
        .args(["kernels", "--format", "json"])
        .output()
        .unwrap();
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert_eq!(
        json.as_array().unwrap().len(),
        ipvs_model::kernel::GATES.len()
    );
}

/// `sim scenario schema | head -1` is no failure.
#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script = format!(
        "{} scenario schema | true; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_sim")
    );
    let status = std::process::Command::new("bash")
        .args(["-c", &script])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

/// The founding case in small: few ports, few requests, the same rules.
const SMALL: [&str; 6] = ["--duration", "260s", "--ports", "40000-40399", "--rps", "4"];

fn founding(command: &str) -> Command {
    let mut sim = sim();
    sim.arg(command)
        .arg(scenario("founding-case.toml"))
        .args(SMALL);
    sim
}

#[test]
fn whatif_lists_tries_and_names_what_it_does_not_try() {
    sim()
        .args(["whatif", "--list"])
        .assert()
        .code(0)
        .stdout(contains("wider-ports").and(contains("conn_reuse_mode=1")));
    founding("whatif")
        .args([
            "--runs",
            "2",
            "--only",
            "iptables,no-affinity",
            "--set",
            "client.*.ports=1024-65535",
        ])
        .assert()
        .code(0)
        .stdout(
            contains("Today ")
                .and(contains("iptables"))
                .and(contains("own-1"))
                .and(contains(
                    "no-affinity  session affinity off: the service has none",
                )),
        );
    founding("whatif")
        .args(["--only", "wider-port"])
        .assert()
        .code(2)
        .stderr(contains("did you mean `wider-ports`?"));
    let output = founding("whatif")
        .args(["--runs", "1", "--only", "iptables", "--format", "json"])
        .output()
        .unwrap();
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["remedies"][0]["id"], "iptables");
}

#[test]
fn check_exits_with_0_3_and_4_and_writes_junit() {
    let dir = tempfile::tempdir().unwrap();
    let junit = dir.path().join("check.xml");
    founding("check")
        .args(["--max", "p(fail) < 1e-4", "--github", "--junit"])
        .arg(&junit)
        .assert()
        .code(3)
        .stdout(contains("FAIL").and(contains("::error file=").and(contains(",line="))));
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("failures=\"1\""), "{xml}");
    let quiet = ["--mode", "iptables", "--runs", "20"];
    founding("check")
        .args(quiet)
        .args(["--max", "p(fail) < 50 %", "--max", "dead < 100s"])
        .assert()
        .code(4);
    founding("check")
        .args(quiet)
        .args(["--max", "p(fail) < 50 %"])
        .assert()
        .code(0);
    founding("check")
        .args(quiet)
        .args(["--max", "p(fail) < 1e-4"])
        .assert()
        .code(4)
        .stderr(contains("undecided"));
    for (choice, code) in [("pass", 0), ("fail", 3)] {
        let mut sim = founding("check");
        sim.args(quiet)
            .args(["--max", "p(fail) < 1e-4", "--undecided", choice])
            .assert()
            .code(code);
    }
    founding("check")
        .args(quiet)
        .args(["--max", "p(fail) < 1e-4", "--rare", "25%"])
        .assert()
        .code(0);
    founding("check")
        .args(["--max", "p(fial) < 1"])
        .assert()
        .code(2)
        .stderr(contains("did you mean `fail`"));
}

#[test]
fn why_tells_draws_and_says_when_there_is_nothing() {
    founding("why").assert().code(0).stdout(
        contains("SynKeptAtWeightZero")
            .and(contains("c95c07836fa4"))
            .and(contains("rollout starts")),
    );
    for (format, begins) in [("svg", "<svg "), ("dot", "digraph "), ("json", "{")] {
        founding("why")
            .args(["--format", format])
            .assert()
            .code(0)
            .stdout(predicates::str::starts_with(begins));
    }
    founding("why")
        .args(["--mode", "iptables"])
        .assert()
        .code(8)
        .stderr(contains("no request failed"));
    founding("why")
        .args(["--connection", "99999999"])
        .assert()
        .code(8)
        .stderr(contains("no request 99999999"));
    founding("why")
        .args(["--cause", "endpoint-lgg"])
        .assert()
        .code(2)
        .stderr(contains("did you mean `endpoint_lag`?"));
}

#[test]
fn capacity_searches_and_draws_a_map() {
    founding("capacity")
        .args([
            "--max-failure",
            "1%",
            "--between",
            "1..4",
            "--max-runs",
            "5",
            "--rare",
            "60%",
        ])
        .assert()
        .code(0)
        .stdout(contains("p(fail) < 0.01 is ").and(contains("Tried: requests/s")));
    founding("capacity")
        .args([
            "--max-failure",
            "1%",
            "--between",
            "1..4",
            "--max-runs",
            "1",
            "--rare",
            "1",
        ])
        .args(["--map", "ports", "--map-between", "100..400", "--ascii"])
        .assert()
        .code(0)
        .stdout(contains("ports down, rate across").and(contains("xxx")));
    sim()
        .arg("capacity")
        .assert()
        .code(2)
        .stderr(contains("--max-failure 1e-4"));
    sim()
        .args(["capacity", "--max-failure", "0"])
        .assert()
        .code(2)
        .stderr(contains("above 0"));
}

#[test]
fn explain_has_topics_and_finds_near_ones() {
    sim()
        .arg("explain")
        .assert()
        .code(0)
        .stdout(contains("time-wait").and(contains("conn-reuse-mode")));
    sim()
        .args(["explain", "conn_reuse_mode"])
        .assert()
        .code(0)
        .stdout(contains("net.ipv4.vs.conn_reuse_mode").and(contains("Source:")));
    sim()
        .args(["explain", "time-wiat"])
        .assert()
        .code(8)
        .stderr(contains("did you mean `time-wait`?"));
    sim()
        .args(["explain", "early_drop_of_what"])
        .assert()
        .code(8)
        .stderr(contains("there are:"));
}
