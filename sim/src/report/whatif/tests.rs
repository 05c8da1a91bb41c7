//! The report on comparisons of short rollouts: what it says is what the result holds.

use super::*;
use crate::experiment::clock::Stopwatch;
use crate::experiment::rows::Plan;
use crate::experiment::whatif::{Ran, Selection, plan, run};
use std::time::Duration;

struct Still;

impl Stopwatch for Still {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

fn compared() -> WhatIf {
    let mut document = crate::scenario::Document::default();
    for (path, value) in [
        ("duration", "260s"),
        ("client.0.ports", "40000-40399"),
        ("client.0.arrivals", "{ constant = { rate = 4 } }"),
    ] {
        document.set(path, value).expect("a field");
    }
    let selection = Selection {
        only: [
            "wider-ports",
            "reuse-mode-1",
            "kernel-fix",
            "pre-stop",
            "no-affinity",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Selection::default()
    };
    let comparison = plan(&document, &selection).expect("good");
    let twelve = Plan {
        exact_runs: Some(12),
        ..Plan::default()
    };
    run(
        &comparison,
        None,
        &twelve,
        &Still,
        &Ran::once,
        &mut |_, _| {},
    )
    .expect("runs")
}

#[test]
fn the_screen_says_what_to_change_and_at_which_price() {
    let view = View {
        look: Look {
            unicode: true,
            colour: false,
        },
        ..View::default()
    };
    let text = text(&compared(), &view);
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, {
        insta::assert_snapshot!("whatif_screen", text);
    });
    assert!(
        text.lines().all(|line| line.chars().count() <= 150),
        "{text}"
    );
}
