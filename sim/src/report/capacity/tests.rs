use super::*;
use crate::experiment::check::{Judged, Verdict};
use crate::experiment::whatif::Estimate;

fn probe(value: u64, verdict: Verdict, count: u64) -> Probe {
    Probe {
        value,
        judged: Judged {
            threshold: "p(fail) < 1 %".to_owned(),
            event: "a request fails".to_owned(),
            limit: 0.01,
            estimate: Estimate {
                count,
                of: 10_000,
                share: Some(count as f64 / 10_000.0),
                low: count as f64 / 12_000.0,
                high: count as f64 / 8_000.0,
            },
            verdict,
            runs_needed: None,
        },
        runs: 20,
    }
}

fn found() -> Capacity {
    Capacity {
        format: 1,
        quantity: "rate".to_owned(),
        what: "requests/s of each client table".to_owned(),
        sought: Sought::Largest,
        target: "p(fail) < 1 %".to_owned(),
        rare: 0.25,
        keeps: Some(110),
        breaks: Some(118),
        exceptions: vec![1_200],
        probes: vec![
            probe(1, Verdict::PassButForRare, 0),
            probe(110, Verdict::Pass, 30),
            probe(114, Verdict::Undecided, 90),
            probe(118, Verdict::Broken, 400),
            probe(1_200, Verdict::Pass, 0),
        ],
        cut_short: false,
        root_seed: "0x1".to_owned(),
    }
}

#[test]
fn the_answer_is_an_interval_and_exceptions_are_named() {
    let quantity = Quantity::parse("rate", None, None).expect("named");
    let view = View {
        again: "mine.toml".to_owned(),
        ..View::default()
    };
    let text = text(&found(), &quantity, &view);
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, {
        insta::assert_snapshot!("capacity_text", text);
    });
}

#[test]
fn a_map_shows_keeps_breaks_undecided_and_what_there_was_no_time_for() {
    let cells = vec![
        vec![
            Some(probe(1, Verdict::Pass, 0)),
            Some(probe(2, Verdict::Broken, 4_000)),
        ],
        vec![Some(probe(1, Verdict::Undecided, 90)), None],
    ];
    let map_ = Map {
        target: "p(fail) < 1 %".to_owned(),
        rare: 0.25,
        rows: "ports".to_owned(),
        row_values: vec![1_000, 28_232],
        columns: "rate".to_owned(),
        column_values: vec![1, 2],
        cells,
    };
    let text = map(&map_, &View::default());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[3], " 1,000  +++  xxx", "{text}");
    assert_eq!(lines[4], "28,232  ~~~     ", "{text}");
}
