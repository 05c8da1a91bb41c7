//! The rollout over time: requests a second, and below, on the same axis, what happens to each pod.

use std::fmt::Write as _;

use serde_json::Value;

use super::read::{at, list, seconds, text, whole};
use super::run::Servers;
use super::{figure, key};
use crate::outcome::Cause;
use crate::report::text::thousands;
use crate::svg::{Anchor, Svg, escape, n, step};

/// Left edge of the plot: before it stand labels.
pub(super) const LEFT: f64 = 130.0;
/// Right edge.
pub(super) const RIGHT: f64 = 752.0;
const WIDTH: f64 = 760.0;
/// Bars of the rate.
const BARS: u64 = 210;
/// Lanes; a larger Deployment shows its first and last pods.
const LANES_MAX: usize = 24;

/// The axis of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub end: f64,
}

impl Time {
    pub(super) fn of(run: &Value) -> Self {
        let end = seconds(run, "duration_ns")
            .max(list(run, "timeline").len() as f64)
            .max(1.0);
        Self { end }
    }

    pub(super) fn x(self, at: f64) -> f64 {
        LEFT + (at / self.end).clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    /// Ticks and their labels at `y`, lines up to `top`.
    pub(super) fn draw(self, svg: &mut Svg, top: f64, y: f64) {
        let step = step(self.end, 8.0);
        let mut at = 0.0;
        while at <= self.end {
            let x = self.x(at);
            svg.line((x, top), (x, y), "grid");
            let anchor = if at + step > self.end && self.x(at) > RIGHT - 20.0 {
                Anchor::End
            } else {
                Anchor::Middle
            };
            svg.text(x, y + 16.0, anchor, "dim small", &format!("{} s", n(at)));
            at += step;
        }
        svg.line((LEFT, y), (RIGHT, y), "axis");
    }
}

pub(super) fn figures(id: &str, run: &Value, servers: &Servers, command: &str) -> String {
    let time = Time::of(run);
    let (rate_height, lane) = (190.0, 26.0);
    let shown = shown_servers(servers);
    let lanes_top = rate_height + 66.0;
    let height = lanes_top + shown.len() as f64 * lane + 40.0;
    let mut svg = Svg::new(WIDTH, height);
    let words = rate(&mut svg, run, time, rate_height);
    marks(
        &mut svg,
        run,
        time,
        14.0,
        lanes_top + shown.len() as f64 * lane,
    );
    lanes(&mut svg, run, servers, &shown, time, (lanes_top, lane));
    let drawing = svg.finish(
        &format!("{id}-time"),
        "Requests a second, and the pods below",
        &words,
    );
    let mut entries = vec![("ok", "answered"), ("bad hatched", "failed")];
    if whole(run, "outcomes.ports_exhausted") > 0 {
        entries.push(("none", "no free port"));
    }
    if whole(run, "late") > 0 {
        entries.insert(1, ("late", "answered late (first SYN lost)"));
    }
    entries.push(("new1", "pod in service (each has its colour)"));
    entries.push(("old0 hatched", "weight 0 or deleted, still running"));
    entries.push((
        "none",
        "thin: its address is gone, entries still lead there",
    ));
    let caption = format!(
        "Above: what became of the requests that ended in each moment, and as a line how many were made. Below: the pods, on the same axis of time. {}",
        failures_note(run)
    );
    let mut out = key(&entries);
    out.push_str(&figure(&drawing, &caption, command));
    if has_causes(run) {
        out.push_str(&by_cause(id, run, time, command));
    }
    out.push_str(&numbers(run));
    out
}

fn failures_note(run: &Value) -> String {
    let dead = list(run, "dead_stretches_s");
    match dead.first() {
        Some(first) => {
            let from = first.get(0).and_then(Value::as_u64).unwrap_or(0);
            let to = dead
                .last()
                .and_then(|last| last.get(1))
                .and_then(Value::as_u64)
                .unwrap_or(0);
            format!("Shaded: requests were made and none was answered ({from} s to {to} s).")
        }
        None => String::new(),
    }
}

struct Bar {
    answered: u64,
    late: u64,
    failed: u64,
    no_port: u64,
    made: u64,
}

fn bars(run: &Value) -> (u64, Vec<Bar>) {
    let seconds = list(run, "timeline");
    let width = (seconds.len() as u64).div_ceil(BARS).max(1);
    let chunks = seconds.chunks(usize::try_from(width).unwrap_or(1));
    let bars = chunks.map(|chunk| {
        let sum = |key: &str| chunk.iter().map(|second| whole(second, key)).sum::<u64>();
        Bar {
            answered: sum("answered"),
            late: sum("late"),
            failed: sum("failed"),
            no_port: sum("ports_exhausted"),
            made: sum("attempts"),
        }
    });
    (width, bars.collect())
}

/// The rate; returns it in words.
fn rate(svg: &mut Svg, run: &Value, time: Time, height: f64) -> String {
    let (width, bars) = bars(run);
    let per_s = |count: u64| count as f64 / width as f64;
    let top = bars
        .iter()
        .map(|b| (b.answered + b.failed + b.no_port).max(b.made))
        .max()
        .unwrap_or(1);
    let top = per_s(top).max(1.0);
    let unit = step(top, 4.0);
    let scale = (top / unit).ceil() * unit;
    let base = 18.0 + height;
    let y = |value: f64| base - value / scale * height;
    for stretch in list(run, "dead_stretches_s") {
        let end = |index: usize| stretch.get(index).and_then(Value::as_f64).unwrap_or(0.0);
        let (from, to) = (time.x(end(0)), time.x(end(1)));
        svg.rect(from, 18.0, to - from, height, "band");
    }
    let mut tick = 0.0;
    while tick <= scale + unit / 2.0 {
        svg.line((LEFT, y(tick)), (RIGHT, y(tick)), "grid");
        svg.text(
            LEFT - 8.0,
            y(tick) + 4.0,
            Anchor::End,
            "dim small",
            &thousands(tick as u64),
        );
        tick += unit;
    }
    svg.text(LEFT - 8.0, 10.0, Anchor::End, "dim small", "requests/s");
    let mut made = String::new();
    let mut paths = [const { String::new() }; 4];
    for (index, bar) in bars.iter().enumerate() {
        let (x0, x1) = (
            time.x(index as f64 * width as f64),
            time.x((index + 1) as f64 * width as f64),
        );
        let good = bar.answered - bar.late.min(bar.answered);
        let parts = [good, bar.late, bar.failed, bar.no_port];
        let mut below = 0.0;
        for (path, part) in paths.iter_mut().zip(parts) {
            let value = per_s(part);
            if value > 0.0 {
                let (bottom, over) = (y(below), y(below + value));
                let _ = write!(
                    path,
                    "M{} {}H{}V{}H{}Z",
                    n(x0),
                    n(bottom),
                    n(x1),
                    n(over),
                    n(x0)
                );
                below += value;
            }
        }
        let line = y(per_s(bar.made));
        let move_to = if index == 0 { "M" } else { "L" };
        let _ = write!(made, "{move_to}{} {}L{} {}", n(x0), n(line), n(x1), n(line));
    }
    let [good, late, failed, no_port] = &paths;
    svg.path(good, "ok");
    svg.path(late, "late");
    svg.path(failed, "bad");
    svg.path(failed, "hatch");
    svg.path(no_port, "none");
    svg.path(&made, "made");
    time.draw(svg, 18.0, base);
    format!(
        "{} requests in {} s: {} answered, {} failed, {} without a free port. Longest time without an answer: {} s.",
        thousands(whole(run, "requests")),
        n(time.end),
        thousands(whole(run, "outcomes.answered")),
        thousands(whole(run, "failed")),
        thousands(whole(run, "outcomes.ports_exhausted")),
        n(seconds(run, "longest_dead_ns"))
    )
}

/// Begin and end of the rollout.
fn marks(svg: &mut Svg, run: &Value, time: Time, top: f64, bottom: f64) {
    let mut last_x = f64::NEG_INFINITY;
    for event in list(run, "events") {
        let what = text(event, "what");
        if what == "rollout started" || what == "rollout complete" {
            let x = time.x(seconds(event, "at_ns"));
            svg.line((x, top), (x, bottom), "mark");
            let (anchor, dx) = if what.ends_with("started") {
                (Anchor::End, -4.0)
            } else {
                (Anchor::Start, 4.0)
            };
            if x - last_x > 2.0 || anchor == Anchor::Start {
                svg.text(x + dx, top - 3.0, anchor, "small strong", what);
            }
            last_x = x;
        }
    }
}

fn shown_servers(servers: &Servers) -> Vec<usize> {
    let count = servers.all.len();
    if count <= LANES_MAX {
        return (0..count).collect();
    }
    let half = LANES_MAX / 2;
    (0..half).chain(count - half..count).collect()
}

/// A lane for each pod: in service, draining, dead.
fn lanes(
    svg: &mut Svg,
    run: &Value,
    servers: &Servers,
    shown: &[usize],
    time: Time,
    (top, lane): (f64, f64),
) {
    svg.text(0.0, top - 8.0, Anchor::Start, "small strong", "pods");
    for (row, index) in shown.iter().enumerate() {
        let (server, _, class) = &servers.all[*index];
        let y = top + row as f64 * lane;
        svg.text(0.0, y + 14.0, Anchor::Start, "mono", server);
        let gone = list(run, "events")
            .iter()
            .find(|event| text(event, "pod") == server && text(event, "what") == "address gone")
            .map(|event| seconds(event, "at_ns"));
        let dead = gone.unwrap_or(f64::INFINITY);
        // From sample to sample: the weight holds until the next one.
        let samples = list(run, "servers")
            .iter()
            .filter(|sample| text(sample, "server") == server);
        let samples = samples.map(|s| {
            (
                seconds(s, "at_ns"),
                at(s, "weight").and_then(Value::as_u64),
                whole(s, "active") + whole(s, "inactive"),
            )
        });
        let samples = samples.collect::<Vec<_>>();
        let every = list(run, "servers")
            .iter()
            .map(|s| seconds(s, "at_ns"))
            .find(|at| *at > 0.0)
            .unwrap_or(5.0);
        let mut spans: Vec<(f64, f64, Lane)> = Vec::new();
        for (from, weight, entries) in &samples {
            let to = (from + every).min(time.end);
            let mut add = |from: f64, to: f64, kind: Lane| {
                if to <= from {
                    return;
                }
                match spans.last_mut() {
                    Some((_, end, last)) if *last == kind && (*end - from).abs() < every / 2.0 => {
                        *end = to
                    }
                    _ => spans.push((from, to, kind)),
                }
            };
            match weight {
                Some(weight) if *weight > 0 => add(*from, to, Lane::Serving),
                _ if *entries == 0 && weight.is_none() => {}
                _ => {
                    add(*from, to.min(dead.max(*from)), Lane::Draining);
                    add(from.max(dead.min(to)), to, Lane::Dead);
                }
            }
        }
        for (from, to, kind) in spans {
            let (x0, x1) = (time.x(from), time.x(to));
            let words = format!("{server}, {} s to {} s: {}", n(from), n(to), kind.words());
            match kind {
                Lane::Serving => svg.told(x0, y + 3.0, (x1 - x0, 15.0), class, &words),
                Lane::Draining => {
                    svg.told(x0, y + 3.0, (x1 - x0, 15.0), class, &words);
                    svg.rect(x0, y + 3.0, x1 - x0, 15.0, "hatch");
                }
                Lane::Dead => svg.told(x0, y + 7.0, (x1 - x0, 7.0), "none", &words),
            }
        }
    }
    let bottom = top + shown.len() as f64 * lane;
    svg.line((LEFT, bottom), (RIGHT, bottom), "axis");
    let mut at = 0.0;
    let unit = step(time.end, 8.0);
    while at <= time.end {
        svg.text(
            time.x(at),
            bottom + 16.0,
            Anchor::Middle,
            "dim small",
            &format!("{} s", n(at)),
        );
        at += unit;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Serving,
    Draining,
    Dead,
}

impl Lane {
    const fn words(self) -> &'static str {
        match self {
            Self::Serving => "in service",
            Self::Draining => "weight 0 or deleted, entries live on",
            Self::Dead => "address gone, entries still lead to it",
        }
    }
}

fn has_causes(run: &Value) -> bool {
    !list(run, "pictures.failures_by_second").is_empty()
}

/// Failures by cause over time.
fn by_cause(id: &str, run: &Value, time: Time, command: &str) -> String {
    let entries = list(run, "pictures.failures_by_second");
    let mut causes = Cause::ALL
        .iter()
        .filter(|cause| entries.iter().any(|entry| whole(entry, cause.key()) > 0))
        .collect::<Vec<_>>();
    causes.truncate(6);
    let width = (time.end / BARS as f64).ceil().max(1.0);
    let bins = (time.end / width).ceil() as usize;
    let count = |cause: &Cause| {
        let mut counts = vec![0_u64; bins];
        for entry in entries {
            let bin = (whole(entry, "second") as f64 / width) as usize;
            if let Some(slot) = counts.get_mut(bin) {
                *slot += whole(entry, cause.key());
            }
        }
        counts
    };
    let lane = 62.0;
    let mut svg = Svg::new(WIDTH, causes.len() as f64 * lane + 30.0);
    let mut words = Vec::new();
    for (row, cause) in causes.iter().enumerate() {
        let counts = count(cause);
        let most = counts.iter().max().copied().unwrap_or(1).max(1) as f64;
        let base = (row + 1) as f64 * lane - 4.0;
        let total = counts.iter().sum::<u64>();
        svg.text(
            0.0,
            base - 46.0,
            Anchor::Start,
            "small",
            &format!("{} ({})", cause.describe(), thousands(total)),
        );
        let mut path = String::new();
        for (bin, value) in counts.iter().enumerate().filter(|(_, value)| **value > 0) {
            let (x0, x1) = (time.x(bin as f64 * width), time.x((bin + 1) as f64 * width));
            let over = base - *value as f64 / most * 36.0;
            let _ = write!(
                path,
                "M{} {}H{}V{}H{}Z",
                n(x0),
                n(base),
                n(x1),
                n(over),
                n(x0)
            );
        }
        svg.path(&path, "bad");
        svg.line((LEFT, base), (RIGHT, base), "axis");
        svg.text(
            LEFT - 8.0,
            base - 30.0,
            Anchor::End,
            "dim small",
            &format!("{}/s", thousands((most / width) as u64)),
        );
        let first = counts.iter().position(|count| *count > 0).unwrap_or(0) as f64 * width;
        let last = (counts.iter().rposition(|count| *count > 0).unwrap_or(0) + 1) as f64 * width;
        words.push(format!(
            "{}: {} between {} s and {} s",
            cause.describe(),
            thousands(total),
            n(first),
            n(last)
        ));
    }
    time.draw(&mut svg, 18.0, causes.len() as f64 * lane);
    let drawing = svg.finish(
        &format!("{id}-causes-time"),
        "Failures by cause over time",
        &words.join("; "),
    );
    format!(
        "<h3>Failures by cause, over time</h3>\n{}",
        figure(
            &drawing,
            "Each cause has a scale of its own; the number beside it is its highest rate.",
            command
        )
    )
}

/// The timeline as numbers, for who cannot see it.
fn numbers(run: &Value) -> String {
    let seconds = list(run, "timeline");
    let width = seconds.len().div_ceil(24).max(1);
    let rows = seconds.chunks(width).enumerate().map(|(index, chunk)| {
        let sum = |key: &str| thousands(chunk.iter().map(|second| whole(second, key)).sum());
        vec![
            format!("{} s", index * width),
            sum("attempts"),
            sum("answered"),
            sum("failed"),
            sum("late"),
            sum("ports_exhausted"),
        ]
    });
    let rows = rows.collect::<Vec<_>>();
    let head = ["from", "made", "answered", "failed", "late", "no free port"];
    let events = list(run, "events").iter().map(|event| {
        let pod = text(event, "pod");
        vec![
            format!("{:.3} s", whole(event, "at_ns") as f64 / 1e9),
            escape(text(event, "what")),
            escape(pod),
        ]
    });
    let events = super::table(&["at", "what", "pod"], &[0], &events.collect::<Vec<_>>());
    format!(
        "<details><summary>The timeline as numbers ({width} s a row), and all events</summary>\n{}{events}</details>\n",
        super::table(&head, &[0, 1, 2, 3, 4, 5], &rows)
    )
}
