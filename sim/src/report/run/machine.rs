//! The same results for machines: one JSON document, and CSV of seconds or of requests.
//!
//! Times are whole nanoseconds in JSON and decimal seconds in CSV; seeds are strings, because readers that take numbers
//! for doubles lose digits of some.

use serde_json::{Value, json};

use super::{Header, examples, headline, possible, tables, timeline};
use crate::engine::trace::{Attempt, RunTrace};
use crate::outcome::{Cause, Outcome, RunSummary, SecondCounts};
use crate::report::text::seconds;

/// Version of the JSON document; grows whenever a field is added, removed or changes its meaning.
pub const FORMAT: u32 = 2;

/// Everything that the text shows, and the whole timeline, as JSON. `failures` limits the requests in it, `matching`
/// the lines of tables.
pub fn json(
    header: &Header,
    failures: usize,
    matching: Option<&str>,
    summary: &RunSummary,
    trace: &RunTrace,
) -> Value {
    let verdict = headline::sentences(header, summary);
    let verdict = verdict
        .into_iter()
        .map(|(_, sentence)| sentence)
        .collect::<Vec<_>>();
    let outcomes = Outcome::ALL
        .iter()
        .map(|o| (o.key().to_owned(), summary.count(*o).into()));
    let causes = |counts: &[u64; Cause::COUNT]| {
        let causes = Cause::ALL.iter();
        causes
            .map(|c| (c.key().to_owned(), counts[c.index()].into()))
            .collect::<serde_json::Map<_, _>>()
    };
    let dead = timeline::dead_stretches(header, summary);
    json!({
        "format": FORMAT,
        "kind": "run",
        "version": env!("CARGO_PKG_VERSION"),
        "command": header.command,
        "scenario": {
            "name": header.name,
            "file": header.file,
            "facts": header.facts.iter().map(|(k, v)| (k.clone(), v.clone().into()))
                .collect::<serde_json::Map<String, Value>>(),
        },
        "seed": header.seed.to_string(),
        "duration_ns": header.duration.0,
        "warmup_ns": header.warmup.0,
        "verdict": verdict,
        "requests": summary.requests,
        "failed": summary.failed(),
        "decided": summary.decided(),
        "late": summary.delayed_total(),
        "possible_kernels": possible::json(&header.possible),
        "outcomes": outcomes.collect::<serde_json::Map<_, _>>(),
        "causes_of_failure": causes(&summary.causes),
        "causes_of_late_connects": causes(&summary.delayed),
        "first_failure_ns": summary.first_failure_ns,
        "longest_dead_ns": summary.longest_dead_ns,
        "dead_stretches_s": dead.iter().map(|(from, until)| json!([from, until])).collect::<Vec<_>>(),
        "connections": summary.connections,
        "packets": summary.packets,
        "events_simulated": summary.events,
        "timeline": timeline_json(header, summary),
        "events": events_json(trace),
        "servers": servers_json(trace),
        "examples": examples_json(failures, trace),
        "tables": tables_json(matching, trace),
    })
}

fn timeline_json(header: &Header, summary: &RunSummary) -> Value {
    let seconds = every_second(header, summary);
    seconds
        .map(|(second, counts)| {
            json!({
                "second": second,
                "attempts": counts.attempts,
                "answered": counts.answered,
                "failed": counts.failed,
                "ports_exhausted": counts.ports_exhausted,
                "late": counts.delayed,
            })
        })
        .collect()
}

fn events_json(trace: &RunTrace) -> Value {
    let events = trace.events.iter();
    events
        .map(|event| {
            json!({
                "at_ns": event.at.0,
                "pod": event.pod.map(|pod| pod.to_string()),
                "what": event.what,
            })
        })
        .collect()
}

fn servers_json(trace: &RunTrace) -> Value {
    let samples = trace.servers.iter();
    samples
        .map(|sample| {
            json!({
                "at_ns": sample.at.0,
                "server": sample.server.to_string(),
                "weight": sample.weight,
                "active": sample.active,
                "inactive": sample.inactive,
                "syns": sample.syns,
            })
        })
        .collect()
}

fn examples_json(failures: usize, trace: &RunTrace) -> Value {
    let chosen = examples::choose(&trace.troubled, failures);
    chosen
        .into_iter()
        .map(|request| {
            json!({
                "number": request.number,
                "start_ns": request.start.0,
                "end_ns": request.end.0,
                "client": request.client.to_string(),
                "outcome": request.outcome.key(),
                "cause": request.cause.key(),
                "server": request.server.map(|server| server.to_string()),
                "rule": request.rule,
                "port_idle_ns": request.port_idle.map(|idle| idle.0),
            })
        })
        .collect()
}

fn tables_json(matching: Option<&str>, trace: &RunTrace) -> Value {
    let tables = trace.tables.iter();
    tables
        .map(|tables| tables::filtered(tables, matching))
        .map(|tables| {
            json!({
                "at_ns": tables.at.0,
                "ipvsadm_ln": tables.services,
                "ipvsadm_lnc": tables.connections,
                "nf_conntrack": tables.conntrack,
            })
        })
        .collect()
}

/// The timeline up to the end of the run, quiet seconds included.
fn every_second<'a>(
    header: &Header,
    summary: &'a RunSummary,
) -> impl Iterator<Item = (u64, SecondCounts)> + use<'a> {
    let quiet = std::iter::repeat(SecondCounts::default());
    let counts = summary.timeline.iter().copied().chain(quiet);
    (0..timeline::end_s(header, summary)).zip(counts)
}

/// The timeline, a line a second, with what happened in it.
pub fn timeline_csv(header: &Header, summary: &RunSummary, trace: &RunTrace) -> String {
    let mut out = Csv::new(&[
        "second",
        "attempts",
        "answered",
        "failed",
        "ports_exhausted",
        "late",
        "events",
    ]);
    let mut events = trace.events.as_slice();
    for (second, counts) in every_second(header, summary) {
        let here = events.partition_point(|event| event.at.as_secs() <= second);
        let words = events[..here].iter().map(|event| match event.pod {
            Some(pod) => format!("{} {}", event.what, pod),
            None => event.what.clone(),
        });
        let words = words.collect::<Vec<_>>().join("; ");
        events = &events[here..];
        let numbers = [
            second,
            counts.attempts,
            counts.answered,
            counts.failed,
            counts.ports_exhausted,
            counts.delayed,
        ];
        out.line(numbers.iter().map(ToString::to_string).chain([words]));
    }
    out.finish()
}

/// Every request, a line each, in the order in which they ended.
pub fn attempts_csv(attempts: &[Attempt]) -> String {
    let mut out = Csv::new(&["start_s", "end_s", "port", "outcome", "connect_s"]);
    for attempt in attempts {
        let port = if attempt.port == 0 {
            String::new()
        } else {
            attempt.port.to_string()
        };
        out.line([
            seconds(attempt.start.0, 9),
            seconds(attempt.end.0, 9),
            port,
            attempt.outcome.key().to_owned(),
            attempt
                .connect
                .map_or_else(String::new, |connect| seconds(connect.0, 9)),
        ]);
    }
    out.finish()
}

/// CSV in memory.
struct Csv(csv::Writer<Vec<u8>>);

impl Csv {
    fn new(titles: &[&str]) -> Self {
        let mut csv = Self(csv::Writer::from_writer(Vec::new()));
        csv.line(titles.iter().map(ToString::to_string));
        csv
    }

    fn line(&mut self, fields: impl IntoIterator<Item = String>) {
        // All lines of a table have the same number of fields, and memory does not fail.
        self.0
            .write_record(fields)
            .expect("fields as in the title line");
    }

    fn finish(self) -> String {
        let bytes = self.0.into_inner().expect("writing to memory cannot fail");
        String::from_utf8(bytes).expect("made of strings")
    }
}
