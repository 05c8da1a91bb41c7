//! One run as a line that checks itself: `CRC LENGTH POINT RUN {counts}`.
//!
//! CRC is CRC-32 (IEEE) of everything after `LENGTH `, as eight hexadecimal digits; LENGTH is that part's length in bytes
//! without the line's end. Counts that are zero are left out; equal seconds that follow each other are written once with
//! their number. The engine's own count of events is not a result and is not kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::outcome::{Cause, Outcome, RunSummary, SecondCounts};

/// A run read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The point, by its index.
    pub point: usize,
    /// The run's number in the whole sweep.
    pub run: u64,
    /// The counts; `events` is 0.
    pub summary: RunSummary,
}

/// The counts as they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    requests: u64,
    outcomes: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    causes: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    late: BTreeMap<String, u64>,
    dead_ns: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_failure_ns: Option<u64>,
    connections: u64,
    packets: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conditioned: Option<u64>,
    /// Number of equal seconds; attempts, answered, failed, without a port, late of each.
    seconds: Vec<[u64; 6]>,
}

/// Appends the line of a run, with its end.
pub fn encode(out: &mut String, point: usize, run: u64, summary: &RunSummary) {
    let written = Written {
        requests: summary.requests,
        outcomes: named(Outcome::ALL.map(Outcome::key), &summary.outcomes),
        causes: named(Cause::ALL.map(Cause::key), &summary.causes),
        late: named(Cause::ALL.map(Cause::key), &summary.delayed),
        dead_ns: summary.longest_dead_ns,
        first_failure_ns: summary.first_failure_ns,
        connections: summary.connections,
        packets: summary.packets,
        conditioned: summary.conditioned,
        seconds: packed(&summary.timeline),
    };
    // Integers, strings and their maps can always be written.
    let counts = serde_json::to_string(&written).unwrap_or_default();
    let body = format!("{point} {run} {counts}");
    let crc = crc32fast::hash(body.as_bytes());
    let _ = writeln!(out, "{crc:08x} {} {body}", body.len());
}

/// Point and run of a whole line with its end; none if it is not what [`encode`] wrote.
pub fn check(line: &str) -> Option<(usize, u64)> {
    let (point, run, _) = parts(line)?;
    Some((point, run))
}

/// Reads a line; none if it is not whole, or of another version with other counts.
pub fn decode(line: &str) -> Option<Record> {
    let (point, run, counts) = parts(line)?;
    let written: Written = serde_json::from_str(counts).ok()?;
    let mut summary = RunSummary {
        requests: written.requests,
        longest_dead_ns: written.dead_ns,
        first_failure_ns: written.first_failure_ns,
        connections: written.connections,
        packets: written.packets,
        conditioned: written.conditioned,
        timeline: unpacked(&written.seconds)?,
        ..RunSummary::default()
    };
    let outcomes = Outcome::ALL.map(Outcome::key);
    let causes = Cause::ALL.map(Cause::key);
    place(&mut summary.outcomes, &outcomes, &written.outcomes)?;
    place(&mut summary.causes, &causes, &written.causes)?;
    place(&mut summary.delayed, &causes, &written.late)?;
    Some(Record {
        point,
        run,
        summary,
    })
}

fn parts(line: &str) -> Option<(usize, u64, &str)> {
    let line = line.strip_suffix('\n')?;
    let (crc, rest) = line.split_once(' ')?;
    let (length, body) = rest.split_once(' ')?;
    let crc = (crc.len() == 8)
        .then(|| u32::from_str_radix(crc, 16).ok())
        .flatten()?;
    if length.parse() != Ok(body.len()) || crc32fast::hash(body.as_bytes()) != crc {
        return None;
    }
    let (point, rest) = body.split_once(' ')?;
    let (run, counts) = rest.split_once(' ')?;
    Some((point.parse().ok()?, run.parse().ok()?, counts))
}

fn named<const N: usize>(keys: [&str; N], counts: &[u64; N]) -> BTreeMap<String, u64> {
    let all = keys.into_iter().zip(counts);
    all.filter(|(_, count)| **count > 0)
        .map(|(key, count)| (key.to_owned(), *count))
        .collect()
}

fn place(into: &mut [u64], keys: &[&str], counts: &BTreeMap<String, u64>) -> Option<()> {
    for (name, count) in counts {
        *into.get_mut(keys.iter().position(|key| key == name)?)? = *count;
    }
    Some(())
}

fn packed(timeline: &[SecondCounts]) -> Vec<[u64; 6]> {
    let mut out: Vec<[u64; 6]> = Vec::new();
    for second in timeline {
        let counts = [
            second.attempts,
            second.answered,
            second.failed,
            second.ports_exhausted,
            second.delayed,
        ];
        match out.last_mut() {
            Some(last) if last[1..] == counts => last[0] += 1,
            _ => {
                let [a, b, c, d, e] = counts;
                out.push([1, a, b, c, d, e]);
            }
        }
    }
    out
}

/// More seconds than any scenario lasts are no timeline.
const SECONDS_MAX: u64 = 1 << 26;

fn unpacked(packed: &[[u64; 6]]) -> Option<Vec<SecondCounts>> {
    let mut timeline = Vec::new();
    for [number, attempts, answered, failed, ports_exhausted, delayed] in packed {
        if number.checked_add(timeline.len() as u64)? > SECONDS_MAX {
            return None;
        }
        let second = SecondCounts {
            attempts: *attempts,
            answered: *answered,
            failed: *failed,
            ports_exhausted: *ports_exhausted,
            delayed: *delayed,
        };
        timeline.resize(timeline.len() + usize::try_from(*number).ok()?, second);
    }
    Some(timeline)
}
