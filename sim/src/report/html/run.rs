//! One rollout: the verdict, the timeline, the port space, why requests failed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::read::{at, list, text, whole};
use super::{Input, Section, facts, figure, percent, ports, sentences, table, timeline};
use crate::outcome::{Cause, Outcome};
use crate::report::text::thousands;
use crate::svg::{Anchor, Svg, escape};

pub(super) fn section(id: &str, input: &Input) -> Section {
    let run = &input.value;
    let name = text(run, "scenario.name");
    let mut body = String::new();
    let _ = writeln!(body, "<h2>One rollout: {}</h2>", escape(name));
    let failed = whole(run, "failed");
    for (index, sentence) in sentences(run, "verdict").iter().enumerate() {
        let class = match (index, failed) {
            (0, 0) => " class=\"lead verdict-ok\"",
            (0, _) => " class=\"lead verdict-bad\"",
            _ => "",
        };
        let _ = writeln!(body, "<p{class}>{}</p>", escape(sentence));
    }
    let command = text(run, "command");
    let servers = Servers::of(run);
    body.push_str("<h3>The rollout, second by second</h3>\n");
    body.push_str(&timeline::figures(id, run, &servers, command));
    if let Some(space) =
        at(run, "pictures.port_space").filter(|space| !list(space, "samples").is_empty())
    {
        body.push_str("<h3>The port space: which server each port is pinned to</h3>\n");
        body.push_str(&ports::figures(id, run, space, &servers, command));
    }
    if failed > 0 || whole(run, "late") > 0 {
        body.push_str("<h3>Why requests failed</h3>\n");
        body.push_str(&causes(id, run, command));
    }
    for (number, chain) in list(run, "chains").iter().enumerate() {
        let own = text(chain, "command");
        body.push_str(&super::why::chain(&format!("{id}-why{number}"), chain, own));
    }
    body.push_str(&outcomes(run));
    body.push_str(&examples(run, command));
    body.push_str("<h3>What was simulated</h3>\n");
    let mut pairs = vec![
        ("from".to_owned(), input.name.clone()),
        ("seed".to_owned(), text(run, "seed").to_owned()),
    ];
    if let Some(Value::Object(map)) = at(run, "scenario.facts") {
        pairs.extend(
            map.iter()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or("").to_owned())),
        );
    }
    body.push_str(&facts(&pairs));
    let _ = writeln!(body, "<pre>{}</pre>", escape(command));
    Section {
        title: match failed {
            0 => format!("{name}: no request failed"),
            _ => format!(
                "{name}: {} of requests failed",
                percent(failed as f64 / whole(run, "decided").max(1) as f64)
            ),
        },
        body,
    }
}

/// The real servers of a run: which of them are old, and their colours.
pub(super) struct Servers {
    /// Address, whether it was there at the start, and its class.
    pub all: Vec<(String, bool, String)>,
}

/// Colours of each generation.
const COLOURS: usize = 4;

impl Servers {
    fn of(run: &Value) -> Self {
        let mut first = BTreeMap::<&str, u64>::new();
        for sample in list(run, "servers") {
            let at = whole(sample, "at_ns");
            let seen = first.entry(text(sample, "server")).or_insert(at);
            *seen = (*seen).min(at);
        }
        let begin = first.values().min().copied().unwrap_or(0);
        let mut all = first
            .into_iter()
            .map(|(server, at)| (server.to_owned(), at <= begin))
            .collect::<Vec<_>>();
        // By address as numbers: .9 comes before .10.
        all.sort_by_key(|(server, old)| (!old, address_key(server)));
        let mut counts = [0_usize; 2];
        let all = all.into_iter().map(|(server, old)| {
            let count = &mut counts[usize::from(old)];
            let class = format!("{}{}", if old { "old" } else { "new" }, *count % COLOURS);
            *count += 1;
            (server, old, class)
        });
        Self { all: all.collect() }
    }

    pub(super) fn class(&self, server: &str) -> &str {
        self.all
            .iter()
            .find(|(name, ..)| name == server)
            .map_or("none", |(_, _, class)| class)
    }

    pub(super) fn is_old(&self, server: &str) -> bool {
        self.all.iter().any(|(name, old, _)| name == server && *old)
    }
}

fn address_key(server: &str) -> (u32, u16) {
    let endpoint = server.parse::<ipvs_model::segment::Endpoint>();
    endpoint.map_or((u32::MAX, 0), |e| (e.ip.to_bits(), e.port))
}

/// Bars of causes.
fn causes(id: &str, run: &Value, command: &str) -> String {
    let counts = |path: &str, late: bool| {
        Cause::ALL
            .iter()
            .map(|cause| {
                (
                    cause.describe(),
                    whole(run, &format!("{path}.{}", cause.key())),
                    late,
                )
            })
            .filter(|(_, count, _)| *count > 0)
            .collect::<Vec<_>>()
    };
    let mut all = counts("causes_of_failure", false);
    all.extend(counts("causes_of_late_connects", true));
    all.sort_by_key(|(_, count, late)| (*late, std::cmp::Reverse(*count)));
    let most = all.iter().map(|(_, count, _)| *count).max().unwrap_or(1) as f64;
    let height = 40.0;
    let mut svg = Svg::new(760.0, all.len() as f64 * height + 8.0);
    let mut words = Vec::new();
    for (row, (what, count, late)) in all.iter().enumerate() {
        let y = row as f64 * height;
        let label = match late {
            true => format!("late: {what}"),
            false => (*what).to_owned(),
        };
        svg.text(0.0, y + 14.0, Anchor::Start, "", &label);
        let width = (*count as f64 / most * 640.0).max(1.0);
        svg.rect(
            0.0,
            y + 20.0,
            width,
            12.0,
            if *late { "late" } else { "bad" },
        );
        if !late {
            svg.rect(0.0, y + 20.0, width, 12.0, "hatch");
        }
        svg.text(
            width + 8.0,
            y + 31.0,
            Anchor::Start,
            "dim",
            &thousands(*count),
        );
        words.push(format!("{label}: {}", thousands(*count)));
    }
    let drawing = svg.finish(
        &format!("{id}-causes"),
        "Causes of failed and late requests",
        &words.join("; "),
    );
    figure(
        &drawing,
        "Failed and late requests by cause. <code>sim why</code> shows the chain of one of them.",
        command,
    )
}

fn outcomes(run: &Value) -> String {
    let total = whole(run, "requests").max(1) as f64;
    let rows = Outcome::ALL.iter().filter_map(|outcome| {
        let count = whole(run, &format!("outcomes.{}", outcome.key()));
        (count > 0).then(|| {
            vec![
                escape(outcome.describe()),
                thousands(count),
                percent(count as f64 / total),
            ]
        })
    });
    let rows = rows.collect::<Vec<_>>();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<h3>What the clients saw</h3>\n{}",
        table(&["outcome", "requests", "share"], &[1, 2], &rows)
    )
}

/// Requests that went wrong, one after the other.
fn examples(run: &Value, command: &str) -> String {
    let examples = list(run, "examples");
    if examples.is_empty() {
        return String::new();
    }
    let rows = examples.iter().map(|example| {
        let cause = Cause::ALL
            .iter()
            .find(|cause| cause.key() == text(example, "cause"));
        let idle = at(example, "port_idle_ns").and_then(Value::as_u64);
        vec![
            format!("{:.3} s", whole(example, "start_ns") as f64 / 1e9),
            escape(text(example, "client")),
            escape(text(example, "server")),
            idle.map_or_else(
                || "first use".to_owned(),
                |idle| format!("{:.1} s", idle as f64 / 1e9),
            ),
            escape(cause.map_or("", |cause| cause.describe())),
            escape(text(example, "rule")),
        ]
    });
    let head = [
        "began",
        "client",
        "its SYN went to",
        "port last used before",
        "cause",
        "the node's rule",
    ];
    let rows = rows.collect::<Vec<_>>();
    format!(
        "<h3>Some of them</h3>\n{}<details><summary>Make this table again</summary><pre>{}</pre></details>\n",
        table(&head, &[0, 3], &rows),
        escape(command)
    )
}
