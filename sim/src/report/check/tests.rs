use super::*;
use crate::experiment::rows::Stopped;
use crate::experiment::whatif::{CauseCount, Estimate};

fn judged(threshold: &str, verdict: Verdict, count: u64) -> Judged {
    Judged {
        threshold: threshold.to_owned(),
        event: "a request fails".to_owned(),
        limit: 1e-4,
        estimate: Estimate {
            count,
            of: 1_000,
            share: Some(count as f64 / 1_000.0),
            low: count as f64 / 2_000.0,
            high: 0.9,
        },
        verdict,
        runs_needed: (verdict == Verdict::Undecided).then_some(40_960),
    }
}

fn result() -> Check {
    Check {
        format: 1,
        thresholds: vec![
            judged("p(fail) < 1e-4", Verdict::Broken, 300),
            judged("p(late) < 1 %", Verdict::Pass, 0),
            judged("dead < 10s", Verdict::Undecided, 0),
        ],
        causes: vec![CauseCount {
            key: "pinned_to_drained",
            what: "a reused port met an entry",
            count: 300,
        }],
        runs: 20,
        stopped: Stopped::Enough,
        root_seed: "0x1".to_owned(),
    }
}

fn view() -> View {
    View {
        place: Some(Place {
            file: "my,case.toml".to_owned(),
            line: 12,
        }),
        again: "my,case.toml --rps 50".to_owned(),
        ..View::default()
    }
}

#[test]
fn people_read_the_verdict_first() {
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, {
        insta::assert_snapshot!("check_text", text(&result(), &view()));
    });
}

#[test]
fn junit_counts_a_broken_threshold_as_failure_and_an_undecided_one_as_error() {
    let xml = junit(&result(), &view()).expect("writable");
    assert!(xml.contains("tests=\"3\" "), "{xml}");
    assert!(
        xml.contains("failures=\"1\"") && xml.contains("errors=\"1\""),
        "{xml}"
    );
    assert!(xml.contains("name=\"p(fail) &lt; 1e-4\""), "{xml}");
    assert!(xml.contains("line=\"12\""), "{xml}");
    // The same bytes again: no time, no random name.
    assert_eq!(xml, junit(&result(), &view()).expect("writable"));
    assert!(!xml.contains("timestamp") && !xml.contains("uuid"), "{xml}");
}

#[test]
fn annotations_point_into_the_file_and_escape_what_they_must() {
    let lines = annotations(&result(), &view());
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with(
            "::error file=my%2Ccase.toml,line=12,title=sim check::p(fail) < 1e-4 is broken: "
        ),
        "{}",
        lines[0]
    );
    assert!(lines[0].contains("30.0 %25"), "{}", lines[0]);
    assert!(lines[1].starts_with("::warning "), "{}", lines[1]);
}

#[test]
fn fields_to_point_at_exist() {
    let scenario = crate::scenario::schema::json_schema().to_string();
    for cause in crate::outcome::Cause::ALL {
        for field in fields_of(Some(cause.key())) {
            let last = field.strip_prefix("node.sysctl.").map_or_else(
                || field.rsplit('.').next().unwrap_or_default(),
                |_| "sysctl",
            );
            assert!(scenario.contains(&format!("\"{last}\"")), "{field}");
        }
    }
}
