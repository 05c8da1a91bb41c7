//! The port space as a picture: time to the right, the client's ports upwards, each coloured by the real server that the
//! IPVS table sends it to. After a rollout one sees which ports still lead to pods that are gone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::read::{list, seconds, text, whole};
use super::run::Servers;
use super::timeline::{LEFT, RIGHT, Time};
use super::{figure, key};
use crate::report::text::thousands;
use crate::svg::{Anchor, Svg, escape, n, step};

const TOP: f64 = 18.0;
const HEIGHT: f64 = 320.0;

pub(super) fn figures(
    id: &str,
    run: &Value,
    space: &Value,
    servers: &Servers,
    command: &str,
) -> String {
    let time = Time::of(run);
    let names = list(space, "servers")
        .iter()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>();
    let samples = list(space, "samples");
    let (low, high, bins) = (
        whole(space, "low"),
        whole(space, "high"),
        whole(space, "bins").max(1),
    );
    let per_bin = (high - low + 1) as f64 / bins as f64;
    let every = samples.get(1).map_or(time.end, |second| {
        seconds(second, "at_ns") - seconds(&samples[0], "at_ns")
    });
    let mut svg = Svg::new(760.0, TOP + HEIGHT + 40.0);
    svg.rect(LEFT, TOP, RIGHT - LEFT, HEIGHT, "faint");
    // One path for each server. A row is divided by the shares of its ports, and full where as many have an entry as ever have
    // in a row: connect() takes every second port first, so half of them would be empty for no reason that matters here.
    let mut paths = BTreeMap::<(bool, &str), String>::new();
    let row = HEIGHT / bins as f64;
    let full = fullest(samples);
    let gone_at = |name: &&str| {
        let mut events = list(run, "events")
            .iter()
            .filter(|event| text(event, "pod") == *name && text(event, "what") == "address gone");
        events
            .next()
            .map_or(f64::INFINITY, |event| seconds(event, "at_ns"))
    };
    let gone = names.iter().map(gone_at).collect::<Vec<_>>();
    let mut old_now = Vec::new();
    for sample in samples {
        let at = seconds(sample, "at_ns");
        let (x0, x1) = (time.x(at), time.x((at + every).min(time.end)));
        let mut filled = BTreeMap::<u64, f64>::new();
        let mut old = 0;
        for cell in list(sample, "cells") {
            let part = |index: usize| cell.get(index).and_then(Value::as_u64).unwrap_or(0);
            let (bin, count) = (part(0), part(2));
            let index = usize::try_from(part(1)).unwrap_or(usize::MAX);
            let Some(name) = names.get(index) else {
                continue;
            };
            if servers.is_old(name) {
                old += count;
            }
            let share = count as f64 / full;
            let begin = filled.entry(bin).or_insert(0.0);
            let bottom = TOP + HEIGHT - bin as f64 * row - *begin * row;
            *begin += share;
            if share * row >= 0.05 {
                let path = paths
                    .entry((gone[index] <= at, servers.class(name)))
                    .or_default();
                let _ = write!(
                    path,
                    "M{} {}H{}V{}H{}Z",
                    n(x0),
                    n(bottom),
                    n(x1),
                    n(bottom - share * row),
                    n(x0)
                );
            }
        }
        old_now.push((at, old));
    }
    for ((is_gone, class), path) in &paths {
        svg.path(path, class);
        if *is_gone {
            svg.path(path, "hatch");
        }
    }
    let size = (high - low + 1) as f64;
    let unit = step(size, 6.0);
    let mut port = (low as f64 / unit).ceil() * unit;
    while port <= high as f64 {
        let y = TOP + HEIGHT - (port - low as f64) / size * HEIGHT;
        svg.line((LEFT - 4.0, y), (LEFT, y), "axis");
        svg.text(LEFT - 8.0, y + 4.0, Anchor::End, "dim small", &n(port));
        port += unit;
    }
    svg.text(LEFT - 8.0, 10.0, Anchor::End, "dim small", "port");
    for event in list(run, "events") {
        if text(event, "what") == "rollout started" || text(event, "what") == "rollout complete" {
            let x = time.x(seconds(event, "at_ns"));
            svg.line((x, TOP - 4.0), (x, TOP + HEIGHT), "mark");
            let (anchor, dx) = if text(event, "what").ends_with("started") {
                (Anchor::End, -4.0)
            } else {
                (Anchor::Start, 4.0)
            };
            svg.text(x + dx, 11.0, anchor, "small strong", text(event, "what"));
        }
    }
    time.draw(&mut svg, TOP + HEIGHT, TOP + HEIGHT);
    let most = old_now.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let last = old_now.last().map_or(0, |(_, count)| *count);
    let words = format!(
        "{} ports from {low} to {high} in {bins} rows. Up to {} of them lead to old pods; at the end {}.",
        thousands(high - low + 1),
        thousands(most),
        thousands(last)
    );
    let drawing = svg.finish(
        &format!("{id}-ports"),
        "The client's ports over time, coloured by their real server",
        &words,
    );
    let entries = servers.all.iter().map(|(server, old, class)| {
        (
            class.clone(),
            format!("{server}{}", if *old { " (old)" } else { "" }),
        )
    });
    let entries = entries.collect::<Vec<_>>();
    let mut entries = entries
        .iter()
        .map(|(class, words)| (class.as_str(), words.as_str()))
        .collect::<Vec<_>>();
    entries.truncate(16);
    entries.push(("none hatched", "hatched: that pod's address is gone"));
    entries.push(("faint", "no entry: the next connection is scheduled anew"));
    let caption = format!(
        "Ports of {}. Each row holds {} of them and is full where {} have an entry, the most that ever have. {words}",
        escape(text(space, "client")),
        thousands(per_bin.round() as u64),
        thousands(full as u64)
    );
    let mut out = key(&entries);
    out.push_str(&figure(&drawing, &caption, command));
    out
}

/// The most ports of a row that have an entry at a moment.
fn fullest(samples: &[Value]) -> f64 {
    let rows = samples.iter().flat_map(|sample| {
        let mut rows = BTreeMap::<u64, u64>::new();
        for cell in list(sample, "cells") {
            let part = |index: usize| cell.get(index).and_then(Value::as_u64).unwrap_or(0);
            *rows.entry(part(0)).or_default() += part(2);
        }
        rows.into_values().collect::<Vec<_>>()
    });
    rows.max().unwrap_or(1).max(1) as f64
}
