//! Real servers over time, as `ipvsadm -Ln` would have shown them: weight, ActiveConn, InActConn, and how many SYNs each
//! got since the line above.

use std::collections::{BTreeMap, BTreeSet};

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};

use super::{Header, heading};
use crate::engine::trace::{RunTrace, ServerSample};
use crate::report::text::{Align, Look, columns, seconds, thousands};

/// Real servers side by side; more go into further tables.
const SERVERS_ACROSS_MAX: usize = 4;
/// More real servers than this are added up by what they are to the service.
const SERVERS_MAX: usize = 8;
/// Lines a table, if not more are needed to show every change of a weight.
const LINES_MAX: usize = 24;
/// Lines at which no weight changed stay this far from others.
const APART_MIN: Span = Span::from_secs(1);

/// What one line shows of one real server.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    weight: Option<u32>,
    active: u32,
    inactive: u32,
    /// Since the line above.
    syns: u64,
}

/// A moment with all real servers sampled at it.
type Moment<'a> = (Instant, &'a [ServerSample]);

/// The tables with their heading; empty if nothing was sampled.
pub fn text(header: &Header, look: Look, trace: &RunTrace) -> String {
    if trace.servers.is_empty() {
        return String::new();
    }
    let moments = trace.servers.chunk_by(|a, b| a.at == b.at);
    let moments = moments
        .map(|samples| (samples[0].at, samples))
        .collect::<Vec<_>>();
    let shown = shown(&moments, trace);
    // In the order of their first appearance: old pods before new ones.
    let mut servers = Vec::new();
    for sample in &trace.servers {
        if sample.weight.is_some() && !servers.contains(&sample.server) {
            servers.push(sample.server);
        }
    }
    let remark = if header.ipvs {
        "weight, ActiveConn, InActConn; SYNs since the line above; - not in the service"
    } else {
        "SYNs since the line above; - not in the service"
    };
    if servers.len() > SERVERS_MAX {
        let title = format!("Real servers, {} added up", servers.len());
        let remark = "ActiveConn, InActConn; SYNs since the line above (--format json has each)";
        let lines = sums(header.ipvs, &moments, &shown);
        return format!("{}{lines}", heading(look, &title, remark));
    }
    let mut out = heading(look, "Real servers", remark);
    for group in servers.chunks(SERVERS_ACROSS_MAX) {
        out.push_str(&table(header.ipvs, group, &moments, &shown));
    }
    out
}

/// The moments that get a line: every change of a weight, the first and the last, what happened to pods, and as many
/// of the others as fit, evenly.
fn shown(moments: &[Moment], trace: &RunTrace) -> Vec<bool> {
    let weights = |moment: &Moment| {
        moment
            .1
            .iter()
            .map(|sample| (sample.server, sample.weight))
            .collect::<Vec<_>>()
    };
    let mut shown = vec![false; moments.len()];
    let mut before = Vec::new();
    for (index, moment) in moments.iter().enumerate() {
        let now = weights(moment);
        shown[index] = now != before;
        before = now;
    }
    if let Some(last) = shown.last_mut() {
        *last = true;
    }
    let happened = trace
        .events
        .iter()
        .map(|event| event.at)
        .collect::<BTreeSet<_>>();
    for at_events in [true, false] {
        let room = LINES_MAX.saturating_sub(shown.iter().filter(|shown| **shown).count());
        let mut taken = (0..moments.len())
            .filter(|i| shown[*i])
            .map(|i| moments[i].0)
            .collect::<Vec<_>>();
        let places = (0..moments.len()).filter(|index| {
            let at = moments[*index].0;
            let apart = |other: &Instant| at.since(*other).max(other.since(at)) >= APART_MIN;
            let takes = happened.contains(&at) == at_events && taken.iter().all(apart);
            taken.extend(takes.then_some(at));
            takes
        });
        let places = places.collect::<Vec<_>>();
        spread(&places, room).for_each(|index| shown[index] = true);
    }
    shown
}

/// At most `room` of `places`, evenly spread.
fn spread(places: &[usize], room: usize) -> impl Iterator<Item = usize> {
    let step = places.len().div_ceil(room.max(1)).max(1);
    places.iter().copied().step_by(step).take(room)
}

fn table(ipvs: bool, servers: &[Endpoint], moments: &[Moment], shown: &[bool]) -> String {
    let names = servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut rows = Vec::new();
    let mut cells = BTreeMap::<Endpoint, Cell>::new();
    for ((at, samples), shown) in moments.iter().zip(shown) {
        for cell in cells.values_mut() {
            // Who is not sampled is gone, entries and all.
            *cell = Cell {
                syns: cell.syns,
                ..Cell::default()
            };
        }
        for sample in *samples {
            let cell = cells.entry(sample.server).or_default();
            cell.weight = sample.weight;
            cell.active = sample.active;
            cell.inactive = sample.inactive;
            cell.syns += u64::from(sample.syns);
        }
        if !shown {
            continue;
        }
        let mut row = vec![seconds(at.0, 1)];
        for server in servers {
            let cell = cells.entry(*server).or_default();
            row.extend(cell_texts(ipvs, cell));
            cell.syns = 0;
        }
        rows.push(row);
    }
    let titles: &[&str] = if ipvs {
        &["w", "act", "inact", "SYNs"]
    } else {
        &["in", "SYNs"]
    };
    with_titles(titles, &names, rows)
}

/// Real servers added up: those that take connections, those that are drained, those that are deleted.
fn sums(ipvs: bool, moments: &[Moment], shown: &[bool]) -> String {
    let names: &[&str] = if ipvs {
        &["with a weight", "weight 0", "deleted"]
    } else {
        &["in the rules"]
    };
    let mut syns = [0_u64; 3];
    let mut rows = Vec::new();
    for ((at, samples), shown) in moments.iter().zip(shown) {
        let mut groups = [Group::default(); 3];
        for sample in *samples {
            let place = match sample.weight {
                Some(weight) if weight > 0 => 0,
                Some(_) => 1,
                None => 2,
            };
            syns[place] += u64::from(sample.syns);
            let group = &mut groups[place];
            group.servers += 1;
            group.active += u64::from(sample.active);
            group.inactive += u64::from(sample.inactive);
        }
        if !shown {
            continue;
        }
        let mut row = vec![seconds(at.0, 1)];
        for (group, syns) in groups.iter().zip(&mut syns).take(names.len()) {
            let counts = [group.servers, group.active, group.inactive, *syns];
            let is_empty = counts == [0; 4];
            let texts = counts.map(|count| {
                if is_empty {
                    String::new()
                } else {
                    thousands(count)
                }
            });
            match ipvs {
                true => row.extend(texts),
                false => row.extend([texts[0].clone(), texts[3].clone()]),
            }
            *syns = 0;
        }
        rows.push(row);
    }
    let titles: &[&str] = if ipvs {
        &["n", "act", "inact", "SYNs"]
    } else {
        &["n", "SYNs"]
    };
    let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
    with_titles(titles, &names, rows)
}

/// What a line shows of a group of real servers.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    servers: u64,
    active: u64,
    inactive: u64,
}

/// The columns of one real server. One that was deleted may still get SYNs through entries that kept it.
fn cell_texts(ipvs: bool, cell: &Cell) -> Vec<String> {
    let syns = match (cell.syns, cell.weight) {
        (0, None) => String::new(),
        (syns, _) => thousands(syns),
    };
    let weight = cell
        .weight
        .map_or_else(|| "-".to_owned(), |weight| weight.to_string());
    if !ipvs {
        return vec![
            if cell.weight.is_some() {
                "yes".to_owned()
            } else {
                weight
            },
            syns,
        ];
    }
    let entries = |count: u32| match (count, cell.weight) {
        (0, None) => String::new(),
        _ => thousands(u64::from(count)),
    };
    vec![weight, entries(cell.active), entries(cell.inactive), syns]
}

/// Adds the line of real servers, each above its columns, and the line of column titles.
fn with_titles(titles: &[&str], names: &[String], rows: Vec<Vec<String>>) -> String {
    let mut all = vec![vec!["t [s]".to_owned()]];
    all[0].extend(
        names
            .iter()
            .flat_map(|_| titles.iter().map(ToString::to_string)),
    );
    all.extend(rows);
    // A name is wider than the columns of an idle pod: the first of its columns takes the rest.
    let width = |rows: &[Vec<String>], column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let mut top = format!("  {}", " ".repeat(width(&all, 0)));
    for (index, name) in names.iter().enumerate() {
        let first = 1 + index * titles.len();
        let widths = (first..first + titles.len()).map(|column| width(&all, column));
        let across = widths.sum::<usize>() + 2 * (titles.len() - 1);
        let pad = name.len().saturating_sub(across);
        // One pad for all rows: cells are aligned to the widest. The bar keeps the real servers apart.
        let first_width = width(&all, first);
        for row in &mut all {
            row[first] = format!("| {:>width$}", row[first], width = first_width + pad);
        }
        top.push_str(&format!("  | {name:<across$}", across = across + pad));
    }
    let aligns = vec![Align::Right; all[0].len()];
    format!("{}\n{}", top.trim_end(), columns("  ", &aligns, &all))
}
