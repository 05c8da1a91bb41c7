//! A few requests that did not go well: when, from which port, to which real server, by which rule, and how long the
//! port had been idle.

use super::{View, heading};
use crate::engine::trace::TroubledRequest;
use crate::outcome::{Outcome, RunSummary};
use crate::report::text::{count_of, length, moment, thousands};

/// The examples; empty if none were asked for or kept.
pub fn text(view: &View, summary: &RunSummary, troubled: &[TroubledRequest]) -> String {
    let chosen = choose(troubled, view.failures);
    if chosen.is_empty() {
        return String::new();
    }
    let failed = chosen
        .iter()
        .filter(|request| request.outcome.is_failure())
        .count() as u64;
    let others = chosen.len() as u64 - failed;
    let mut remark = Vec::new();
    if failed > 0 {
        remark.push(format!(
            "{} of {} that failed",
            thousands(failed),
            thousands(summary.failed())
        ));
    }
    if others > 0 {
        remark.push(count_of(
            others,
            "other that was late or had no port",
            "others that were late or had no port",
        ));
    }
    let mut out = heading(view.look, "Examples", &remark.join(", "));
    let arrow = view.look.pick("→", "->");
    for request in chosen {
        out.push_str(&example(request, arrow));
    }
    out
}

/// One of each kind first, failures before the rest, then the earliest; shown in the order in which they ended.
pub(super) fn choose(troubled: &[TroubledRequest], wanted: usize) -> Vec<&TroubledRequest> {
    let mut kinds = Vec::new();
    let mut ranked = troubled
        .iter()
        .enumerate()
        .map(|(place, request)| {
            let kind = (request.cause, request.outcome);
            let is_known = kinds.contains(&kind);
            if !is_known {
                kinds.push(kind);
            }
            // First one failure of each kind, then one late request of each kind, then more of the same.
            (is_known, !request.outcome.is_failure(), place)
        })
        .collect::<Vec<_>>();
    ranked.sort_unstable();
    ranked.truncate(wanted);
    ranked.sort_unstable_by_key(|(_, _, place)| *place);
    ranked
        .into_iter()
        .map(|(_, _, place)| &troubled[place])
        .collect()
}

fn example(request: &TroubledRequest, arrow: &str) -> String {
    let took = length(request.end.since(request.start));
    let way = match (request.outcome, request.server) {
        (Outcome::PortsExhausted, _) => format!("{}, no port", request.client.ip),
        (_, Some(server)) => format!("{} {arrow} {server}", request.client),
        (_, None) => format!("{} {arrow} no real server", request.client),
    };
    let idle = match request.port_idle {
        Some(idle) => format!("; the port had been idle for {}", length(idle)),
        None if request.client.port == 0 => String::new(),
        None => "; the port had not been used before".to_owned(),
    };
    let ended = match request.outcome {
        Outcome::Answered => "answered late",
        other => other.describe(),
    };
    let rule = if request.rule.is_empty() {
        "none"
    } else {
        request.rule
    };
    format!(
        "  {}  {way}  {ended} after {took} (request {})\n      {}\n      rule: {rule}{idle}\n",
        moment(request.start),
        thousands(request.number),
        request.cause.describe(),
    )
}
