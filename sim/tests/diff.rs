//! `sim diff` as people run it.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;

fn sim() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("sim"))
}

fn captures(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../captures")
        .join(name)
}

const RECORDING: &str = "kernels/linux-5.7.14-mode0-expire1-rr-ct1-seed100";

#[test]
fn agreement_exits_0_and_says_what_was_compared() {
    sim()
        .args(["diff"])
        .arg(captures(RECORDING))
        .assert()
        .code(0)
        .stdout(contains("no divergence"))
        .stdout(contains("verdicts compared"));
}

#[test]
fn the_founding_log_exits_0_with_its_finding() {
    sim()
        .arg("diff")
        .arg(captures("founding-case"))
        .assert()
        .code(0)
        .stdout(contains("63-64 s after close"));
}

#[test]
fn a_divergence_exits_5_with_circumstances_and_explanation() {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(captures(RECORDING)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let manifest = directory.path().join("manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("conn_reuse_mode\" = 0", "conn_reuse_mode\" = 1"),
    )
    .unwrap();
    sim()
        .arg("diff")
        .arg(directory.path())
        .assert()
        .code(5)
        .stdout(contains("  model: "))
        .stdout(contains("  rule:  "))
        .stdout(contains("as if net.ipv4.vs.conn_reuse_mode were 0: 0 of"));
    let output = sim()
        .args(["diff", "--format", "json"])
        .arg(directory.path())
        .assert()
        .code(5)
        .get_output()
        .stdout
        .clone();
    let json: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(json["format"], 1);
    assert!(json["counts"]["divergences"].as_u64().unwrap() > 0);
    assert!(json["counts"]["verdicts_compared"].as_u64().unwrap() > 100);
    assert!(json["divergences"][0]["before"].is_array());
    assert!(json["explanations"][0]["explains_first"].as_bool().unwrap());
}

#[test]
fn an_unreadable_capture_exits_6_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    sim()
        .arg("diff")
        .arg(directory.path())
        .assert()
        .code(6)
        .stderr(contains("manifest.toml"));
    fs::write(
        directory.path().join("manifest.toml"),
        "schema = 1\nkernel = \"6.1.0\"\nhz = \"fast\"\n",
    )
    .unwrap();
    sim()
        .arg("diff")
        .arg(directory.path())
        .assert()
        .code(6)
        .stderr(contains("manifest.toml:3: `hz` must be a whole number"));
    fs::write(
        directory.path().join("manifest.toml"),
        "schema = 1\nkernel = \"6.1.0\"\n",
    )
    .unwrap();
    fs::write(directory.path().join("ipvs-conn.log"), "nonsense\n").unwrap();
    sim()
        .arg("diff")
        .arg(directory.path())
        .assert()
        .code(6)
        .stderr(contains("ipvs-conn.log:1: expected a block header"));
}

/// A recording of 5.7.14 whose manifest names only a distribution's build of 5.7: compared as each kernel that it can be, it agrees as
/// the one without the fixes alone.
#[test]
fn a_release_that_leaves_fixes_open_is_told_by_the_recording() {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(captures(RECORDING)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let manifest = directory.path().join("manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains("kernel = \"5.7.14\""));
    let text = text.replace("kernel = \"5.7.14\"", "kernel = \"5.7.0-17-generic\"");
    fs::write(&manifest, text).unwrap();
    sim()
        .arg("diff")
        .arg(directory.path())
        .assert()
        .code(0)
        .stdout(contains("5.7.0-17-generic with none: agrees"))
        .stdout(contains("5.7.0-17-generic with weight-zero-any-mode: "))
        .stdout(contains("weight-zero-any-mode: agrees").not());
}
