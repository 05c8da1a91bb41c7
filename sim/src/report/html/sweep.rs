//! A sweep: heat maps with the safe region, and every point with its interval.

use std::fmt::Write as _;

use serde_json::Value;

use super::heat::{self, Cell, Safety};
use super::read::{at, list, text, whole};
use super::{Input, Section, estimated, figure, percent, sentences, shares, table};
use crate::report::text::thousands;
use crate::svg::{Anchor, Svg, escape};

/// Maps, one for each combination of the other axes.
const MAPS_MAX: usize = 8;

struct Axis {
    path: String,
    values: Vec<String>,
}

struct Point<'v> {
    settings: Vec<String>,
    value: &'v Value,
}

pub(super) fn section(id: &str, input: &Input, safe_below: f64) -> Section {
    let sweep = &input.value;
    let axes = list(sweep, "axes").iter().map(|axis| Axis {
        path: text(axis, "path").to_owned(),
        values: sentences(axis, "values"),
    });
    let axes = axes.collect::<Vec<_>>();
    let points = list(sweep, "points").iter().map(|point| Point {
        settings: axes
            .iter()
            .map(|axis| {
                at(point, "settings")
                    .and_then(|s| s.get(&axis.path))
                    .and_then(Value::as_str)
                    .unwrap_or("")
                    .to_owned()
            })
            .collect(),
        value: point,
    });
    let points = points.collect::<Vec<_>>();
    let name = text(sweep, "scenario.name");
    let command = command(sweep, &axes);
    let mut body = String::new();
    let _ = writeln!(body, "<h2>A sweep: {}</h2>", escape(name));
    let _ = writeln!(
        body,
        "<p class=\"dim\">{}</p>",
        escape(&sentences(sweep, "scenario.in_words").join("; "))
    );
    let _ = writeln!(
        body,
        "<p>{} rollouts at each of {} points, root seed {}. Intervals hold with 95 % each; their unit is the rollout.</p>",
        thousands(whole(sweep, "runs_per_point")),
        points.len(),
        escape(text(sweep, "root_seed"))
    );
    body.push_str(&maps(id, &axes, &points, safe_below, &command));
    body.push_str("<h3>Every point</h3>\n");
    body.push_str(&bars(id, &axes, &points, safe_below, &command));
    body.push_str(&rows(&axes, &points, safe_below));
    let _ = writeln!(body, "<pre>{}</pre>", escape(&command));
    Section {
        title: format!("{name}: {} settings", points.len()),
        body,
    }
}

fn interval(value: &Value, path: &str, safe_below: f64) -> Option<Cell> {
    let found = at(value, path)?;
    let of = whole(found, "of");
    let end = |index: usize| {
        found
            .get("interval")
            .and_then(|i| i.get(index))
            .and_then(Value::as_f64)
    };
    let interval = (end(0)?, end(1)?);
    Some(Cell {
        share: whole(found, "count") as f64 / of.max(1) as f64,
        interval,
        safety: Safety::of(interval, safe_below),
    })
}

/// The command that repeats the sweep, as far as the result tells.
fn command(sweep: &Value, axes: &[Axis]) -> String {
    let mut words = vec!["sim sweep".to_owned()];
    let file = text(sweep, "scenario.file");
    if !file.is_empty() {
        words.push(format!("--scenario {file}"));
    }
    for set in list(sweep, "scenario.set") {
        match set {
            Value::String(text) => words.push(format!("--set '{text}'")),
            other => words.push(format!(
                "--set '{}={}'",
                text(other, "path"),
                text(other, "value")
            )),
        }
    }
    for axis in axes {
        let values = axis.values.join(",");
        // A path has dots; short names are flags of their own.
        words.push(if axis.path.contains('.') {
            format!("--vary '{}={values}'", axis.path)
        } else {
            format!("--{} {values}", axis.path)
        });
    }
    words.push(format!(
        "--runs {} --seed {}",
        whole(sweep, "runs_per_point"),
        text(sweep, "root_seed")
    ));
    words.join(" ")
}

fn maps(id: &str, axes: &[Axis], points: &[Point<'_>], safe_below: f64, command: &str) -> String {
    let is_number = |axis: &&Axis| axis.values.len() > 1;
    let varied = axes
        .iter()
        .enumerate()
        .filter(|(_, axis)| is_number(axis))
        .map(|(index, _)| index)
        .collect::<Vec<_>>();
    // The two axes with the most values make the map.
    let mut by_length = varied.clone();
    by_length.sort_by_key(|index| (std::cmp::Reverse(axes[*index].values.len()), *index));
    let [across, down, ..] = by_length[..] else {
        return String::new();
    };
    let mut combinations = Vec::<Vec<String>>::new();
    let others = |point: &Point<'_>| {
        let rest = point
            .settings
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != across && *index != down);
        rest.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    for point in points {
        let other = others(point);
        if !combinations.contains(&other) {
            combinations.push(other);
        }
    }
    let mut out = String::from("<h3>Where it is safe</h3>\n");
    let target = format!("below {}", percent(safe_below));
    out.push_str(&heat::legend(&target));
    for (number, other) in combinations.iter().take(MAPS_MAX).enumerate() {
        let named = axes
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != across && *index != down);
        let named = named
            .zip(other)
            .map(|((_, axis), value)| format!("{} {value}", axis.path))
            .collect::<Vec<_>>()
            .join(", ");
        let title = if named.is_empty() {
            "A request fails".to_owned()
        } else {
            format!("A request fails, with {named}")
        };
        let cell = |row: usize, column: usize| {
            let wanted = |point: &&Point<'_>| {
                point.settings[down] == axes[down].values[row]
                    && point.settings[across] == axes[across].values[column]
                    && others(point) == *other
            };
            let found = points.iter().find(wanted)?.value;
            interval(found, "request_fails", safe_below)
        };
        let drawing = heat::draw(
            &format!("{id}-map{number}"),
            &title,
            (&axes[down].path, &axes[across].path),
            &axes[down].values,
            &axes[across].values,
            cell,
            &target,
        );
        out.push_str(&figure(&drawing, &escape(&title), command));
    }
    if combinations.len() > MAPS_MAX {
        let _ = writeln!(
            out,
            "<p class=\"dim\">{} more maps are left out; the table has all points.</p>",
            combinations.len() - MAPS_MAX
        );
    }
    out
}

fn label(axes: &[Axis], point: &Point<'_>) -> String {
    let named = axes.iter().zip(&point.settings);
    let named = named
        .map(|(axis, value)| format!("{} {value}", axis.path))
        .collect::<Vec<_>>();
    if named.is_empty() {
        "the scenario".to_owned()
    } else {
        named.join(", ")
    }
}

/// Shares with their intervals, as bars.
fn bars(id: &str, axes: &[Axis], points: &[Point<'_>], safe_below: f64, command: &str) -> String {
    if points.len() > 40 {
        return String::new();
    }
    let row = 40.0;
    let mut svg = Svg::new(760.0, points.len() as f64 * row + 30.0);
    let x = shares::place;
    let bottom = points.len() as f64 * row + 6.0;
    shares::axis(&mut svg, bottom);
    if safe_below > 0.002 {
        svg.line((x(safe_below), 0.0), (x(safe_below), bottom), "mark");
    }
    let mut words = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let Some(found) = interval(point.value, "request_fails", safe_below) else {
            continue;
        };
        let y = index as f64 * row;
        let name = label(axes, point);
        let (low, high) = found.interval;
        let told = format!(
            "{} [{}, {}]",
            percent(found.share),
            percent(low),
            percent(high)
        );
        svg.text(
            4.0,
            y + 14.0,
            Anchor::Start,
            "small",
            &format!("{name}: {told}"),
        );
        svg.rect(0.0, y + 19.0, x(found.share).max(1.0), 12.0, "bad");
        svg.rect(0.0, y + 19.0, x(found.share), 12.0, "hatch");
        svg.line(
            (x(low), y + 25.0),
            (x(high).max(x(low) + 1.0), y + 25.0),
            "ci",
        );
        words.push(format!("{name}: {told}"));
    }
    let drawing = svg.finish(
        &format!("{id}-bars"),
        "The share of requests that fail at each point",
        &words.join("; "),
    );
    figure(
        &drawing,
        "A request fails: the share, and as a line its 95 % interval.",
        command,
    )
}

fn rows(axes: &[Axis], points: &[Point<'_>], safe_below: f64) -> String {
    let told = |value: &Value, path: &str| {
        interval(value, path, safe_below).map_or_else(String::new, |cell| {
            estimated(&percent(cell.share), cell.interval)
        })
    };
    let rows = points.iter().map(|point| {
        let value = point.value;
        let worst = match text(value, "worst.seed") {
            "" => String::new(),
            seed => format!(
                "<br><span class=\"dim\">worst run: seed {}</span>",
                escape(seed)
            ),
        };
        vec![
            format!("{}{worst}", escape(&label(axes, point))),
            told(value, "request_fails"),
            told(value, "rollout_has_failure"),
            told(value, "rollout_dead_over_10_s"),
            told(value, "request_connects_late"),
            told(value, "request_finds_no_port"),
        ]
    });
    let head = [
        "settings",
        "a request fails",
        "any failure in a rollout",
        "dead for over 10 s",
        "connects late",
        "no free port",
    ];
    table(&head, &[1, 2, 3, 4, 5], &rows.collect::<Vec<_>>())
}
