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
        .args(["kernels", "5.4.0-91-generic"])
        .assert()
        .code(0)
        .stdout(
            contains("era C")
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
