use std::fs;

use k8s_openapi::api::batch::v1::Job;

use super::super::tests::args;
use super::*;
use crate::cli::interrupt::Interrupt;
use crate::cli::sweep;

fn emitted(words: &[&str]) -> Result<String, CommonError> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut args = args(words);
    let path = folder.path().join("out");
    args.out = Some(path.clone());
    let never = |_: &crate::scenario::Scenario, _| unreachable!("nothing runs");
    sweep::run(args, &never, &Interrupt::default())?;
    Ok(fs::read_to_string(path).expect("a file"))
}

macro_rules! assert_file {
    ($name:literal, $value:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
            filters => [
                (r"sim-[0-9a-f]{10}", "sim-NAME"),
                (r#"version: "\d+\.\d+\.\d+""#, "version: VERSION"),
            ],
        }, { insta::assert_snapshot!($name, $value) });
    };
}

#[test]
fn kubernetes_gets_an_indexed_job_with_volume_and_merge() {
    let folder = tempfile::tempdir().expect("a folder");
    let scenario = folder.path().join("mine.toml");
    fs::write(&scenario, "schema = 1\nname = \"no\"\n").expect("written");
    let scenario = scenario.display().to_string();
    let words = [
        "--scenario",
        &scenario,
        "--rps",
        "500..1000 step 500",
        "--runs",
        "640",
        "--emit",
        "kubernetes",
        "--shards",
        "64",
        "--image",
        "example/sim:1",
    ];
    assert_file!("emit_kubernetes", emitted(&words).expect("emitted"));
}

/// The types read back what was written: nothing was lost or turned into something else on the way (`no` into false).
#[test]
fn what_is_written_for_kubernetes_is_read_back_by_its_types() {
    let text = emitted(&[
        "--rps",
        "5",
        "--runs",
        "9",
        "--emit",
        "kubernetes",
        "--shards",
        "3",
    ])
    .expect("emitted");
    let jobs: Vec<Job> = text
        .split("---\n")
        .filter(|part| part.contains("kind: Job"))
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{error}\n{part}")))
        .collect();
    let spec = jobs[0].spec.as_ref().expect("a spec");
    assert_eq!(spec.completions, Some(3));
    assert_eq!(spec.completion_mode.as_deref(), Some("Indexed"));
    let pod = spec.template.spec.as_ref().expect("a pod");
    let args = pod.containers[0].args.as_ref().expect("arguments");
    let line = args.join(" ");
    assert_eq!(
        line,
        "sweep --rps 5 --seed 0x1 --runs 9 --dir /results --shard auto --shards 3 --threads 1"
    );
    assert_eq!(jobs[1].spec.as_ref().expect("a spec").suspend, Some(true));
}

#[test]
fn slurm_gets_a_script_for_an_array_from_zero() {
    let words = [
        "--rps",
        "500..1000 step 500",
        "--runs",
        "640",
        "--emit",
        "slurm",
        "--shards",
        "64",
        "--dir",
        "/shared/my sweep",
    ];
    assert_file!("emit_slurm", emitted(&words).expect("emitted"));
}

#[test]
fn what_cannot_be_divided_is_refused() {
    for (words, expected) in [
        (&["--runs", "9", "--emit", "kubernetes"][..], "--shards N"),
        (&["--emit", "kubernetes", "--shards", "3"], "--runs N"),
        (
            &["--runs", "9", "--emit", "slurm", "--shards", "3"],
            "--dir",
        ),
        (
            &["--runs", "9", "--emit", "slurm", "--shards", "0"],
            "--shards N",
        ),
    ] {
        let error = emitted(words).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
