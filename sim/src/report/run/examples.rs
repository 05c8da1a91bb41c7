//! A few requests that did not go well: when, from which port, to which real server, by which rule, and how long the
//! port had been idle.

use super::{View, heading};
use crate::engine::trace::TroubledRequest;
use crate::outcome::{Outcome, RunSummary};
use crate::report::text::{length, moment, thousands};

/// The examples; empty if none were asked for or kept.
pub fn text(view: &View, summary: &RunSummary, troubled: &[TroubledRequest]) -> String {
    let chosen = choose(troubled, view.failures);
    if chosen.is_empty() {
        return String::new();
    }
    let count = |is: fn(Outcome) -> bool| chosen.iter().filter(|r| is(r.outcome)).count() as u64;
    let kinds = [
        (count(Outcome::is_failure), summary.failed(), "that failed"),
        (
            count(|o| o == Outcome::Answered),
            summary.delayed_total(),
            "that were late",
        ),
        (
            count(|o| o == Outcome::PortsExhausted),
            summary.count(Outcome::PortsExhausted),
            "without a port",
        ),
    ];
    let remark = kinds.iter().filter(|(shown, ..)| *shown > 0);
    let remark = remark
        .map(|(shown, all, what)| format!("{} of {} {what}", thousands(*shown), thousands(*all)));
    let mut out = heading(
        view.look,
        "Examples",
        &remark.collect::<Vec<_>>().join(", "),
    );
    let arrow = view.look.pick("→", "->");
    for request in chosen {
        out.push_str(&example(request, arrow));
    }
    out
}

/// One of each kind first, failures before the rest; then more, spread over the run. In the order in which they ended.
pub(super) fn choose(troubled: &[TroubledRequest], wanted: usize) -> Vec<&TroubledRequest> {
    let mut kinds = Vec::new();
    let mut chosen = Vec::new();
    let is_failure = |place: &usize| troubled[*place].outcome.is_failure();
    let (failed, others): (Vec<_>, Vec<_>) = (0..troubled.len()).partition(is_failure);
    for place in failed.iter().chain(&others) {
        let kind = (troubled[*place].cause, troubled[*place].outcome);
        if chosen.len() < wanted && !kinds.contains(&kind) {
            kinds.push(kind);
            chosen.push(*place);
        }
    }
    for mut rest in [failed, others] {
        rest.retain(|place| !chosen.contains(place));
        let room = (wanted - chosen.len()).min(rest.len());
        chosen.extend((0..room).map(|index| rest[index * rest.len() / room]));
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|place| &troubled[place]).collect()
}

fn example(request: &TroubledRequest, arrow: &str) -> String {
    let took = request.end.since(request.start);
    let way = match (request.outcome, request.server) {
        (Outcome::PortsExhausted, _) => format!("{}, no port", request.client.ip),
        (_, Some(server)) => format!("{} {arrow} {server}", request.client),
        (_, None) => format!("{} {arrow} no real server", request.client),
    };
    let ended = match request.outcome {
        Outcome::Answered => "answered late",
        other => other.describe(),
    };
    let took = if took.0 == 0 {
        String::new()
    } else {
        format!(" after {}", length(took))
    };
    let idle = match request.port_idle {
        Some(idle) => format!("; the port had been idle for {}", length(idle)),
        None if request.client.port == 0 => String::new(),
        None => "; the port had not been used before".to_owned(),
    };
    let rule = match request.rule {
        "" => String::new(),
        rule => format!("      rule: {rule}\n"),
    };
    format!(
        "  {}  {way}  {ended}{took} (request {})\n      {}{idle}\n{rule}",
        moment(request.start),
        thousands(request.number),
        request.cause.describe(),
    )
}
