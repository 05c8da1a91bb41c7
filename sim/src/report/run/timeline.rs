//! The run second by second: how many requests were made, answered, failed and late, with what happened to the pods in
//! between. Stretches in which nothing was answered stand out; stretches in which nothing changes are folded.

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{NANOS_PER_SEC, Span};

use super::{Header, View, heading};
use crate::engine::trace::TimelineEvent;
use crate::outcome::{RunSummary, SecondCounts};
use crate::report::text::{Look, Tone, count_of, seconds, thousands};

/// From here on a service is called dead. Shorter gaps are those of one SYN repeated after 1 s: late, not dead.
pub const DEAD_MIN: Span = Span::from_secs(2);

/// Lines of counts that still are a screen; a coarser bucket is taken beyond it.
const ROWS_MAX: usize = 56;
/// Buckets to choose from, in seconds.
const BUCKETS_S: [u64; 12] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600];
/// Cells of the longest bar.
const BAR_CELLS: u64 = 40;
/// Lines that stay before and after a fold in a dead stretch.
const FOLD_KEEPS: (usize, usize) = (3, 2);
/// Event lines in one bucket; the rest are counted.
const EVENT_LINES_MAX: usize = 12;
/// Pods named in one event line.
const PODS_NAMED_MAX: usize = 4;

/// The first second after the run.
pub fn end_s(header: &Header, summary: &RunSummary) -> u64 {
    let duration = header.duration.0.div_ceil(NANOS_PER_SEC);
    duration.max(summary.timeline.len() as u64)
}

/// Stretches of whole seconds without an answer in which requests were made or failed, as first second and the second
/// after the last. None if the service was not dead for [`DEAD_MIN`] at any time.
pub fn dead_stretches(header: &Header, summary: &RunSummary) -> Vec<(u64, u64)> {
    if summary.longest_dead_ns < DEAD_MIN.0 {
        return Vec::new();
    }
    // After the end nobody asks: what fails then was asked before.
    let end = header.duration.0.div_ceil(NANOS_PER_SEC);
    let mut stretches = Vec::new();
    let mut open = None::<(u64, u64)>;
    for (second, counts) in (0..end).zip(&summary.timeline) {
        if counts.answered > 0 {
            stretches.extend(open.take());
        } else if counts.attempts > counts.ports_exhausted || counts.failed > 0 {
            // Seconds in which everybody waits belong to the stretch if trouble follows.
            open = Some((open.map_or(second, |(from, _)| from), second + 1));
        }
    }
    stretches.extend(open);
    stretches
}

/// A line of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    from_s: u64,
    until_s: u64,
    counts: SecondCounts,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing was asked.
    Idle,
    /// Nothing was counted yet.
    Warmup,
    /// All is well.
    Calm,
    /// Some failed, were late or got no port.
    Trouble,
    /// Nothing was answered.
    Dead,
}

/// A line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Row(Row),
    /// So many seconds like the row before.
    Same {
        seconds: u64,
        kind: Kind,
    },
    Event {
        nanos: u64,
        text: String,
    },
}

/// The timeline with its heading.
pub fn text(
    header: &Header,
    view: &View,
    summary: &RunSummary,
    events: &[TimelineEvent],
) -> String {
    let rows = choose(header, view, summary, events);
    let (bucket, lines) = rows;
    let scale = lines.iter().filter_map(|line| match line {
        Line::Row(row) => Some(total(&row.counts).div_ceil(row.until_s - row.from_s)),
        _ => None,
    });
    let scale = scale.max().unwrap_or(0).max(1);
    let with_ports = summary
        .timeline
        .iter()
        .any(|second| second.ports_exhausted > 0);
    let per = if bucket == 1 {
        String::new()
    } else {
        format!("a line is {bucket} s; ")
    };
    let legend = legend(view.look, summary, scale);
    let mut out = heading(
        view.look,
        "Timeline, requests a second",
        &format!("{per}{legend}"),
    );
    out.push_str(&table(view.look, &lines, scale, with_ports));
    out
}

/// The bucket asked for, or the finest with which the timeline stays on a screen.
fn choose(
    header: &Header,
    view: &View,
    summary: &RunSummary,
    events: &[TimelineEvent],
) -> (u64, Vec<Line>) {
    let lines = |bucket: u64, fold: bool| {
        let rows = rows(header, summary, bucket);
        let lines = fold_rows(&rows, events, fold);
        let is_row = |line: &&Line| !matches!(line, Line::Event { .. });
        (lines.iter().filter(is_row).count(), lines)
    };
    if let Some(bucket) = view.bucket_s {
        let bucket = bucket.max(1);
        return (bucket, lines(bucket, false).1);
    }
    for bucket in BUCKETS_S {
        for fold in [false, true] {
            let (length, lines) = lines(bucket, fold);
            if length <= ROWS_MAX {
                return (bucket, lines);
            }
        }
    }
    let coarsest = BUCKETS_S[BUCKETS_S.len() - 1];
    (coarsest, lines(coarsest, true).1)
}

fn rows(header: &Header, summary: &RunSummary, bucket: u64) -> Vec<Row> {
    let end = end_s(header, summary);
    let dead = dead_stretches(header, summary);
    let starts = (0..end.div_ceil(bucket)).map(|index| index * bucket);
    starts
        .map(|from| {
            let until = (from + bucket).min(end);
            let mut counts = SecondCounts::default();
            for second in summary
                .timeline
                .iter()
                .take(until as usize)
                .skip(from as usize)
            {
                counts.attempts += second.attempts;
                counts.answered += second.answered;
                counts.failed += second.failed;
                counts.ports_exhausted += second.ports_exhausted;
                counts.delayed += second.delayed;
            }
            let is_dead = dead.iter().any(|(a, b)| *a < until && from < *b);
            let in_warmup = until * NANOS_PER_SEC <= header.warmup.0;
            let kind = match counts {
                _ if counts.answered == 0 && is_dead => Kind::Dead,
                _ if counts == SecondCounts::default() && in_warmup => Kind::Warmup,
                _ if counts == SecondCounts::default() => Kind::Idle,
                _ if counts.failed + counts.ports_exhausted + counts.delayed == 0 => Kind::Calm,
                _ => Kind::Trouble,
            };
            Row {
                from_s: from,
                until_s: until,
                counts,
                kind,
            }
        })
        .collect()
}

/// Rows with the events after the row of their moment; stretches of like rows folded.
fn fold_rows(rows: &[Row], events: &[TimelineEvent], fold_trouble: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut events = events;
    let mut rest = rows;
    let mut shown = None;
    while let Some(first) = rest.first() {
        // An event breaks a stretch only for its own line, if nothing has changed by it.
        let like = shown.filter(|shown| alike(shown, first));
        let anchor = like.unwrap_or(*first);
        let event_at = events.first().map_or(u64::MAX, |event| event.at.0);
        let same = rest.iter().take_while(|row| alike(&anchor, row)).count();
        // The row in which something happens ends the stretch, so that the event stands at its place.
        let whole = |row: &&Row| row.until_s * NANOS_PER_SEC <= event_at;
        let before = rest[..same].iter().take_while(whole).count();
        let length = same.min(before + 1);
        fold(&rest[..length], like.is_some(), fold_trouble, &mut lines);
        shown = Some(anchor);
        rest = &rest[length..];
        let until = rest
            .first()
            .map_or(u64::MAX, |row| row.from_s * NANOS_PER_SEC);
        let here = events.partition_point(|event| event.at.0 < until);
        event_lines(&events[..here], &mut lines);
        events = &events[here..];
    }
    lines
}

/// Adds a stretch of like rows, folded if that saves lines. `goes_on`: the row that they are like has been shown.
fn fold(run: &[Row], goes_on: bool, fold_trouble: bool, lines: &mut Vec<Line>) {
    let (head, tail) = match run[0].kind {
        Kind::Dead if fold_trouble => FOLD_KEEPS,
        Kind::Trouble if fold_trouble => (usize::from(!goes_on), 0),
        Kind::Dead | Kind::Trouble => (run.len(), 0),
        Kind::Idle | Kind::Warmup | Kind::Calm => (usize::from(!goes_on), 0),
    };
    let folded = run.len().saturating_sub(head + tail);
    if folded < 2 {
        lines.extend(run.iter().map(|row| Line::Row(*row)));
        return;
    }
    let (first, last) = (&run[..head], &run[head + folded..]);
    let seconds = |row: &Row| row.until_s - row.from_s;
    lines.extend(first.iter().map(|row| Line::Row(*row)));
    lines.push(Line::Same {
        seconds: run[head..head + folded].iter().map(seconds).sum(),
        kind: run[0].kind,
    });
    lines.extend(last.iter().map(|row| Line::Row(*row)));
}

/// Whether a row says nothing that `first` does not say.
fn alike(first: &Row, row: &Row) -> bool {
    if first.kind != row.kind || first.until_s - first.from_s != row.until_s - row.from_s {
        return false;
    }
    let columns = |counts: &SecondCounts| {
        [
            counts.attempts,
            counts.answered,
            counts.failed,
            counts.ports_exhausted,
            counts.delayed,
        ]
    };
    let pairs = columns(&first.counts).into_iter().zip(columns(&row.counts));
    pairs.into_iter().all(|(a, b)| {
        let (low, high) = (a.min(b), a.max(b));
        // Calm arrivals may be random: three standard deviations of a Poisson count, and no less than a tenth.
        let near = if first.kind == Kind::Calm {
            let difference = high - low;
            difference <= high / 10 || difference.saturating_mul(difference) <= 9 * high
        } else {
            high - low <= high / 4
        };
        near && (low > 0) == (high > 0)
    })
}

/// Events as lines, one for each millisecond in which something happened.
fn event_lines(events: &[TimelineEvent], lines: &mut Vec<Line>) {
    let moments = events.chunk_by(|a, b| a.at.0 / 1_000_000 == b.at.0 / 1_000_000);
    let moments = moments.collect::<Vec<_>>();
    for moment in moments.iter().take(EVENT_LINES_MAX) {
        let text = event_text(moment);
        lines.push(Line::Event {
            nanos: moment[0].at.0,
            text,
        });
    }
    if let Some(rest) = moments.get(EVENT_LINES_MAX..)
        && let Some(first) = rest.first()
    {
        let count = rest.iter().map(|moment| moment.len()).sum::<usize>();
        let more = count_of(count as u64, "more event", "more events");
        let text = format!("and {more} (--format json has them all)");
        lines.push(Line::Event {
            nanos: first[0].at.0,
            text,
        });
    }
}

/// What happened at a moment: pods to which the same happened share a part, and so do happenings of the same pods.
fn event_text(events: &[TimelineEvent]) -> String {
    let mut by_what = Vec::<(&str, Vec<Endpoint>)>::new();
    for event in events {
        let known = by_what.iter_mut().find(|(what, _)| *what == event.what);
        match known {
            Some((_, pods)) => pods.extend(event.pod),
            None => by_what.push((&event.what, event.pod.into_iter().collect())),
        }
    }
    let mut by_pods = Vec::<(Vec<&str>, Vec<Endpoint>)>::new();
    for (what, pods) in by_what {
        let known = by_pods
            .iter_mut()
            .find(|(_, known)| !pods.is_empty() && *known == pods);
        match known {
            Some((whats, _)) => whats.push(what),
            None => by_pods.push((vec![what], pods)),
        }
    }
    let parts = by_pods.iter().map(|(whats, pods)| {
        let mut names = pods
            .iter()
            .take(PODS_NAMED_MAX)
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        if pods.len() > PODS_NAMED_MAX {
            names.push(format!("and {} more", pods.len() - PODS_NAMED_MAX));
        }
        let colon = if names.is_empty() { "" } else { ": " };
        format!("{}{colon}{}", whats.join(", "), names.join(", "))
    });
    parts.collect::<Vec<_>>().join("; ")
}

const fn total(counts: &SecondCounts) -> u64 {
    counts.answered + counts.failed + counts.ports_exhausted
}

/// Signs of a bar: answered, answered late, failed, no port.
const fn signs(look: Look) -> [&'static str; 4] {
    if look.unicode {
        ["█", "▓", "×", "○"]
    } else {
        ["#", "+", "x", "o"]
    }
}

const TONES: [Option<Tone>; 4] = [None, Some(Tone::Warn), Some(Tone::Bad), Some(Tone::Warn)];

fn legend(look: Look, summary: &RunSummary, scale: u64) -> String {
    let mut sums = SecondCounts::default();
    for second in &summary.timeline {
        sums.delayed += second.delayed;
        sums.failed += second.failed;
        sums.ports_exhausted += second.ports_exhausted;
    }
    let shown = [
        true,
        sums.delayed > 0,
        sums.failed > 0,
        sums.ports_exhausted > 0,
    ];
    let words = ["answered", "answered late", "failed", "no free port"];
    let parts = signs(look)
        .into_iter()
        .zip(words)
        .zip(shown)
        .filter(|(_, shown)| *shown);
    let parts = parts
        .map(|((sign, word), _)| format!("{sign} {word}"))
        .collect::<Vec<_>>();
    let when = match sums.failed {
        0 => "",
        _ => "; a failure counts when the client gives up",
    };
    format!(
        "{}; full bar {}/s{when}",
        parts.join("  "),
        thousands(scale)
    )
}

fn table(look: Look, lines: &[Line], scale: u64, with_ports: bool) -> String {
    let mut titles = vec!["t [s]", "made", "answered", "failed", "late"];
    if with_ports {
        titles.push("no port");
    }
    let cells = lines
        .iter()
        .map(|line| match line {
            Line::Row(row) => row_cells(look, row, with_ports),
            _ => Vec::new(),
        })
        .collect::<Vec<_>>();
    let mut widths = titles.iter().map(|title| title.len()).collect::<Vec<_>>();
    for row in &cells {
        for (width, (_, cell)) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths[0] = widths[0].max(7);
    let mut out = String::new();
    for (title, width) in titles.iter().zip(&widths) {
        out.push_str(&format!("  {title:>width$}"));
    }
    out.push('\n');
    for (line, cells) in lines.iter().zip(&cells) {
        match line {
            Line::Row(row) => {
                for ((tone, cell), width) in cells.iter().zip(&widths) {
                    let blanks = " ".repeat(2 + width - cell.chars().count());
                    out.push_str(&blanks);
                    out.push_str(&tone.map_or_else(|| cell.clone(), |tone| look.paint(tone, cell)));
                }
                let bar = bar(look, row, scale);
                if !bar.is_empty() {
                    out.push_str("  ");
                    out.push_str(&bar);
                }
            }
            Line::Same { .. } => out.push_str(&same(look, line, widths[0])),
            Line::Event { nanos, text } => {
                let at = format!("  {:>width$}", seconds(*nanos, 3), width = widths[0]);
                let sign = look.pick("◆", "*");
                out.push_str(&look.paint(Tone::Event, &format!("{at}  {sign} {text}")));
            }
        }
        out.push('\n');
    }
    out
}

fn row_cells(look: Look, row: &Row, with_ports: bool) -> Vec<(Option<Tone>, String)> {
    let counts = &row.counts;
    let none = look.pick("·", ".");
    let rate = |count| rate(count, row.until_s - row.from_s);
    let quiet = |tone, count| match count {
        0 => (Some(Tone::Dim), none.to_owned()),
        _ => (Some(tone), rate(count)),
    };
    let answered = (row.kind == Kind::Dead).then_some(Tone::Bad);
    let mut cells = vec![
        (None, row.from_s.to_string()),
        (None, rate(counts.attempts)),
        (answered, rate(counts.answered)),
        quiet(Tone::Bad, counts.failed),
        quiet(Tone::Warn, counts.delayed),
    ];
    if with_ports {
        cells.push(quiet(Tone::Warn, counts.ports_exhausted));
    }
    cells
}

/// A count as a rate: whole numbers from 10 a second on, one decimal below.
fn rate(count: u64, secs: u64) -> String {
    if count.is_multiple_of(secs) {
        return thousands(count / secs);
    }
    if count / secs >= 10 {
        return thousands((count + secs / 2) / secs);
    }
    let tenths = (count * 10 + secs / 2) / secs;
    if tenths == 0 {
        "<0.1".to_owned()
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

fn bar(look: Look, row: &Row, scale: u64) -> String {
    let counts = &row.counts;
    let full = scale * (row.until_s - row.from_s);
    // What is rare and bad is seen even if it is less than half a cell.
    let cells = |count: u64| match count {
        0 => 0,
        _ => ((count * BAR_CELLS + full / 2) / full).clamp(1, BAR_CELLS),
    };
    let [late, failed, no_port] =
        [counts.delayed, counts.failed, counts.ports_exhausted].map(cells);
    let on_time = cells(counts.answered - counts.delayed.min(counts.answered));
    let on_time = on_time.min(BAR_CELLS.saturating_sub(late + failed + no_port));
    let mut out = String::new();
    for ((sign, cells), tone) in signs(look)
        .into_iter()
        .zip([on_time, late, failed, no_port])
        .zip(TONES)
    {
        let part = sign.repeat(cells as usize);
        out.push_str(&tone.map_or_else(|| part.clone(), |tone| look.paint(tone, &part)));
    }
    let remark = match row.kind {
        Kind::Dead => "QPS = 0",
        Kind::Warmup => "warm-up, not counted",
        Kind::Idle => "no load",
        Kind::Calm | Kind::Trouble => return out,
    };
    let tone = if row.kind == Kind::Dead {
        Tone::Bad
    } else {
        Tone::Dim
    };
    if !out.is_empty() {
        out.push(' ');
    }
    out.push_str(&look.paint(tone, remark));
    out
}

fn same(look: Look, line: &Line, width: usize) -> String {
    let Line::Same { seconds, kind } = line else {
        return String::new();
    };
    let sign = look.pick("⋮", ":");
    let about = if *kind == Kind::Calm { "about " } else { "" };
    let dead = if *kind == Kind::Dead { ", QPS = 0" } else { "" };
    let text = format!(
        "  {sign:>width$}  {} s {about}the same{dead}",
        thousands(*seconds)
    );
    look.paint(Tone::Dim, &text)
}
