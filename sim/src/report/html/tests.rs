//! Drawings as bytes, and what must hold of every page.

use serde_json::json;

use super::*;
use crate::cli::report::watched;
use crate::scenario::{Document, Scenario};

fn small(toml: &str) -> Value {
    let scenario: Scenario = Document::parse(toml, "test")
        .unwrap()
        .resolve()
        .unwrap()
        .scenario;
    watched(
        &scenario,
        None,
        1,
        "sim report --seed 0x1 --out report.html".to_owned(),
    )
    .unwrap()
}

/// Two pods are replaced in two minutes; ports come round.
const ROLLOUT: &str = "duration = \"120s\"\nserver = { dead_end = \"reset\" }\n\
    client = [{ ports = 400, arrivals = { constant = { rate = 10 } } }]\n\
    rollout = { scripted = { at = \"50s\", old_die_at = \"70s\" } }\n";

fn sweep() -> Value {
    let point = |mode: &str, rps: &str, count: u64, low: f64, high: f64| {
        json!({
            "settings": { "conn-reuse-mode": mode, "rps": rps }, "runs": 20,
            "request_fails": { "count": count, "of": 1000, "interval": [low, high] },
            "rollout_has_failure": { "count": 20, "of": 20, "interval": [0.8, 1.0] },
            "worst": { "seed": "0x1" },
        })
    };
    json!({
        "format": 1, "command": "sweep", "scenario": { "name": "a <b>", "file": null, "set": [], "in_words": ["two pods"] },
        "axes": [{ "path": "conn-reuse-mode", "values": ["0", "1"] }, { "path": "rps", "values": ["50", "2000"] }],
        "root_seed": "0x1", "runs_per_point": 20,
        "points": [point("0", "50", 0, 0.0, 0.0005), point("0", "2000", 557, 0.4, 0.6), point("1", "50", 0, 0.0, 0.2), point("1", "2000", 5, 0.002, 0.02)],
    })
}

fn whatif() -> Value {
    let assessment = |share: f64| {
        let estimate =
            json!({ "count": 5, "of": 10, "share": share, "low": share / 2.0, "high": share });
        json!({
            "failure": estimate, "late": estimate, "any_failure": estimate, "no_port": estimate, "causes": [],
            "side": { "skew_milli": 1200, "ipvs_entries_max": 7, "conntrack_entries_max": 8 },
        })
    };
    json!({
        "format": 1, "scenario": "case", "file": "case.toml", "words": ["2 pods"], "root_seed": "0x1", "runs": 20,
        "today": assessment(0.5),
        "remedies": [{
            "id": "iptables", "title": "iptables mode", "settings": [], "result": assessment(0.0), "side": "rules grow with services",
            "failure": { "estimate": -0.5, "low": -0.6, "high": -0.4 }, "apply": [{ "on": "the cluster", "text": "mode: iptables" }],
        }],
        "left_out": [{ "id": "x", "title": "Cilium", "reason": "not here" }],
    })
}

fn diff() -> Value {
    json!({
        "format": 1, "capture": "captures/x", "counts": { "packets": 7, "divergences": 1 }, "scope": [], "notes": ["a note"],
        "divergences": [{ "at": "1", "class": "verdict", "subject": "s", "model": "m", "node": "<n>", "rule": "r" }],
        "findings": [{ "at": "2", "subject": "s", "text": "reused" }],
    })
}

fn why() -> Value {
    json!({
        "request": 1234, "client": "10.0.0.1:40000", "ended": "connect timed out", "why": "a reused port", "command": "sim why x.toml --connection 1234",
        "graph": "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 700 9\" role=\"img\"><title>why</title><defs><marker id=\"why-arrow\"/></defs></svg>",
        "links": [
            { "place": "kube_proxy", "at_ns": 150_000_000_000_u64, "what": "weight set to 0", "because": [] },
            { "place": "node", "at_ns": null, "what": "the SYN was kept", "rule": "SynKeptAtWeightZero", "source": { "function": "ip_vs_in" }, "cut": ["iptables"], "because": [0] },
        ],
    })
}

fn judged(threshold: &str, share: f64, verdict: &str) -> Value {
    json!({
        "threshold": threshold, "event": "requests fail", "limit": 0.01, "verdict": verdict, "runs_needed": null,
        "estimate": { "count": 5, "of": 10, "share": share, "low": share / 2.0, "high": share * 1.5 },
    })
}

fn check() -> Value {
    json!({
        "kind": "check", "again": "sim check --max 'p(fail) < 1 %' --runs 5 --seed 0x1", "format": 1,
        "thresholds": [judged("p(fail) < 1 %", 0.5, "broken"), judged("p(late) < 1 %", 0.0, "pass"), judged("dead < 10s", 0.01, "undecided")],
        "causes": [{ "key": "pinned_to_drained", "what": "a <cause>", "count": 7 }], "runs": 5, "stopped": "count", "root_seed": "0x1",
    })
}

fn capacity() -> Value {
    let probe = |value: u64, share: f64, verdict: &str| json!({ "value": value, "judged": judged("p(fail) < 1 %", share, verdict), "runs": 5 });
    json!({
        "kind": "capacity", "again": "sim capacity --max-failure 0.01", "format": 1, "quantity": "rate", "what": "requests a second",
        "sought": "largest", "target": "p(fail) < 1 %", "rare": 0.25, "keeps": 100, "breaks": 120, "exceptions": [500], "cut_short": true,
        "probes": [probe(100, 0.0, "pass_but_for_rare"), probe(120, 0.3, "broken"), probe(500, 0.0, "pass")], "root_seed": "0x1",
    })
}

fn map() -> Value {
    let probe = |value: u64, share: f64, verdict: &str| json!({ "value": value, "judged": judged("p(fail) < 1 %", share, verdict), "runs": 5 });
    json!({
        "kind": "capacity-map", "again": "sim capacity --map ports", "rows": "ports", "row_values": [1000, 28232], "columns": "rate",
        "column_values": [10, 200], "target": "p(fail) < 1 %", "rare": 0.25,
        "cells": [[probe(10, 0.0, "pass"), probe(200, 0.4, "broken")], [probe(10, 0.01, "undecided"), null]],
    })
}

fn advice() -> Value {
    json!({
        "kind": "advice", "again": "sim advise captures/x", "format": 1, "headline": "nearly all fails", "whatif": whatif(),
        "watched": { "chain": why() }, "measured": { "node.address": "of the packets" }, "read": {}, "derived": {},
        "assumed": { "server.kernel": "<the node's>" }, "remarks": ["few connections"], "scenario": "",
    })
}

fn input(value: Value) -> Input {
    Input {
        name: "result <1>.json".to_owned(),
        value,
    }
}

fn options() -> Options {
    Options {
        title: None,
        safe_below: 0.001,
    }
}

/// What must hold of every page: nothing from elsewhere, no script, every drawing named, ids once.
fn sound(page: &str) {
    for outside in [
        "<script",
        "http:",
        "https:",
        "src=",
        "@import",
        "javascript:",
        "//cdn",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(
        page.matches("href=").count(),
        page.matches("href=\"#").count() + 1,
        "only places on the page, and no icon"
    );
    let drawings = page.matches("role=\"img\"").count();
    // The causal graphs, of another maker, have a title only.
    let ours = page.matches("role=\"img\" aria-labelledby=").count();
    let (titles, descriptions) = (
        page.matches("<title").count(),
        page.matches("<desc id=").count(),
    );
    assert!(
        titles > drawings && ours >= 5 && descriptions == ours,
        "{drawings} drawings, {ours} ours, {titles} titles, {descriptions} descriptions"
    );
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
    let mut ids = page
        .split(" id=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect::<Vec<_>>();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(count, ids.len(), "an id stands twice");
    for name in [
        "svg", "section", "table", "figure", "details", "ul", "dl", "p",
    ] {
        let opened =
            page.matches(&format!("<{name} ")).count() + page.matches(&format!("<{name}>")).count();
        assert_eq!(
            opened,
            page.matches(&format!("</{name}>")).count(),
            "{name}"
        );
    }
}

#[test]
fn every_kind_of_result_makes_a_sound_page_with_its_command() {
    let run = small(ROLLOUT);
    let values = [
        run,
        sweep(),
        whatif(),
        diff(),
        why(),
        check(),
        capacity(),
        map(),
        advice(),
    ];
    let all = values.map(input);
    let kinds = [
        Kind::Run,
        Kind::Sweep,
        Kind::WhatIf,
        Kind::Diff,
        Kind::Why,
        Kind::Check,
        Kind::Capacity,
        Kind::Map,
        Kind::Advice,
    ];
    assert_eq!(
        all.each_ref().map(|input| Kind::of(&input.value)),
        kinds.map(Some)
    );
    let page = page(&all, &options());
    sound(&page);
    for command in [
        "sim report --seed 0x1 --out report.html",
        "sim sweep --conn-reuse-mode 0,1 --rps 50,2000 --runs 20 --seed 0x1",
        "sim whatif case.toml --runs 20 --seed 0x1",
        "sim diff captures/x",
        "sim why x.toml --connection 1234",
        "sim check --max &#39;p(fail) &lt; 1 %&#39; --runs 5 --seed 0x1",
        "sim capacity --max-failure 0.01",
        "sim capacity --map ports",
        "sim advise captures/x",
    ] {
        assert!(page.contains(command), "{command}");
    }
    // What comes from a file stays text.
    assert!(page.contains("a &lt;b&gt;") && !page.contains("a <b>") && page.contains("&lt;n&gt;"));
    for words in [
        "below 0.1 %: surely at 1 settings, undecided at 1, surely not at 2.",
        "p(fail) &lt; 1 %: surely at 1 settings, undecided at 1, surely not at 1.",
        "1 of 3 broken.",
        "the limit lies between",
    ] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn what_is_no_result_is_known() {
    for value in [
        json!({}),
        json!([]),
        json!({ "command": "walk" }),
        json!(null),
    ] {
        assert_eq!(Kind::of(&value), None, "{value}");
    }
}

/// The same run gives the same bytes; another seed gives others.
#[test]
fn pages_are_the_same_bytes_every_time() {
    let once = || page(&[input(small(ROLLOUT))], &options());
    assert_eq!(once(), once());
}

#[test]
fn old_pods_are_seen_in_the_port_space_after_they_are_gone() {
    // Silence: an RST would close the entry, and ten seconds later the port would be free.
    let run = small(&ROLLOUT.replace("reset", "blackhole"));
    let space = &run["pictures"]["port_space"];
    let names = list(space, "servers")
        .iter()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>();
    // Every port was taken before the rollout, so the new pods get none.
    let old = |index: u64| ["10.27.1.245:80", "10.27.1.246:80"].contains(&names[index as usize]);
    let old_at = |second: u64| {
        let samples = list(space, "samples").iter();
        let sample = samples
            .into_iter()
            .find(|s| read::whole(s, "at_ns") == second * 1_000_000_000)
            .unwrap();
        let cells = list(sample, "cells").iter();
        let old = cells.filter(|cell| old(cell[1].as_u64().unwrap()));
        old.map(|cell| cell[2].as_u64().unwrap()).sum::<u64>()
    };
    // 200 even ports at ten a second: every one is used again after 20 s, and mode 0 keeps its server.
    assert_eq!(old_at(40), 200);
    assert_eq!(old_at(100), 200, "long after they are gone");
    let failures = list(&run, "pictures.failures_by_second");
    let told = failures
        .iter()
        .map(|entry| read::whole(entry, "pinned_to_drained"))
        .sum::<u64>();
    assert_eq!(
        told,
        run["causes_of_failure"]["pinned_to_drained"]
            .as_u64()
            .unwrap()
    );
}

fn drawings(page: &str) -> String {
    let parts = page.split("<svg viewBox=\"0 0 7").skip(1);
    parts
        .map(|part| {
            format!(
                "<svg viewBox=\"0 0 7{}</svg>\n",
                part.split("</svg>").next().unwrap()
            )
        })
        .collect()
}

#[test]
fn drawings_are_as_they_were_reviewed() {
    let text = drawings(&page(
        &[sweep(), whatif(), why(), check(), capacity(), map()].map(input),
        &options(),
    ));
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, { insta::assert_snapshot!("html-drawings", text) });
    let run = small(
        "duration = \"20s\"\nclient = [{ ports = 20, arrivals = { constant = { rate = 2 } } }]\nrollout = { scripted = { at = \"5s\", old_die_at = \"8s\" } }\n",
    );
    let text = drawings(&page(&[input(run)], &options()));
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, { insta::assert_snapshot!("html-run", text) });
}
