//! A capture against the model: verdicts, tables, trajectories.
//!
//! The model runs beside the node: every packet that enters and every rule that changes goes in; what the node did
//! with the packet, and both tables at each listing, are compared with what the model says. After a divergence the
//! model takes over what the node shows, so that one fault is reported once.

mod ahead;
pub mod coverage;
mod phase;
mod replay;
pub mod report;
mod rules;
mod setup;
mod tables;
mod trajectory;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

pub use report::{Class, Divergence, Explanation, Finding, Report};

use ipvs_model::kernel::GATES;
use ipvs_model::time::{Clock, Span};

use crate::capture::{Capture, ReadError};
use ahead::Ahead;
use replay::Replay;
use setup::Setup;

/// Runs at most so often to find where the node's timer ticks lie.
const PASSES_MAX: u32 = 12;

/// Compares a capture with the model.
///
/// # Errors
/// If the capture cannot be read.
pub fn diff(capture: &Capture) -> Result<Report, ReadError> {
    let (setup, clock, mut report) = compare(capture)?;
    if let (Some(setup), Some(clock)) = (setup, clock)
        && report.divergence_count() > 0
    {
        explain(capture, &setup, clock, &mut report)?;
    }
    report.skipped.absorb(&capture.skipped);
    Ok(report)
}

/// Compares one of many recordings of the lab, and counts which cells of which tables it exercised. No explanation is
/// searched for. `nat`: the node has a nat table. `tracking`: something on the node tracks connections.
///
/// # Errors
/// If the capture cannot be read, or holds nothing.
pub fn survey(capture: &Capture, nat: bool, tracking: bool) -> Result<Report, ReadError> {
    let Some(first) = capture.events()?.next_event()? else {
        let file = std::sync::Arc::from("packets.pcap");
        let reason = "the capture holds nothing";
        return Err(ReadError::new(&file, crate::capture::Place::File, reason));
    };
    let mut setup = Setup::of(capture, first.at)?;
    (setup.nat, setup.tracking, setup.coverage) = (nat, tracking, true);
    let (_, mut report) = fit_grid(capture, &setup)?;
    report.skipped.absorb(&capture.skipped);
    Ok(report)
}

/// The comparison without a search for explanations.
fn compare(capture: &Capture) -> Result<(Option<Setup>, Option<Clock>, Report), ReadError> {
    let Some(first) = capture.events()?.next_event()? else {
        let mut report = Report::default();
        report.scope.push("the capture holds nothing".to_owned());
        return Ok((None, None, report));
    };
    let mut setup = Setup::of(capture, first.at)?;
    if capture.files.packets.is_none() {
        let mut report = trajectory::diff(capture, &setup)?;
        report
            .scope
            .push("no packets: listings are joined by what must have happened between".to_owned());
        if capture.manifest.kernel.is_none() {
            report.scope.push(
                "the log names neither kernel nor sysctls: 4.19 with kube-proxy's settings of 2020 is assumed"
                    .to_owned(),
            );
        }
        return Ok((None, None, report));
    }
    let (clock, report) = fit(capture, &mut setup)?;
    Ok((Some(setup), Some(clock), report))
}

/// Runs with one grid of ticks after the other until what was seen of timers agrees with it, and with or without
/// a nat table, and with or without anything that tracks connections (vs.conntrack by itself does not): no capture
/// mentions either.
fn fit(capture: &Capture, setup: &mut Setup) -> Result<(Clock, Report), ReadError> {
    let mut best = fit_grid(capture, setup)?;
    if best.1.divergence_count() > 0 {
        let mut other = setup.clone();
        other.nat = !setup.nat;
        let found = fit_grid(capture, &other)?;
        if found.1.divergence_count() < best.1.divergence_count() {
            *setup = other;
            best = found;
            best.1.notes.push(
                "this node has no nat table: where source ports collide it drops instead of choosing others"
                    .to_owned(),
            );
        }
    }
    if best.1.divergence_count() > 0 && setup.tracking {
        let mut other = setup.clone();
        (other.nat, other.tracking) = (false, false);
        let found = fit_grid(capture, &other)?;
        if found.1.divergence_count() < best.1.divergence_count() {
            *setup = other;
            best = found;
            let note = "nothing on this node tracks connections: no rule asks for it";
            best.1.notes.push(note.to_owned());
        }
    }
    Ok(best)
}

fn fit_grid(capture: &Capture, setup: &Setup) -> Result<(Clock, Report), ReadError> {
    let era = setup.behaviours.timer_era();
    let mut clock = phase::first_guess(setup.hz, era, setup.uptime);
    let mut best = None::<(u64, usize, Clock, Report)>;
    let (mut note, mut width) = (String::new(), None);
    for _ in 0..PASSES_MAX {
        let (report, evidence) = run(capture, setup, clock)?;
        let wrong = evidence.iter().filter(|e| !e.agrees(&clock)).count();
        let key = (report.divergence_count(), wrong);
        if best
            .as_ref()
            .is_none_or(|(left, worse, ..)| key < (*left, *worse))
        {
            note = format!(
                "timers: {} of {} observations agree with the tick grid in use{}",
                evidence.len() - wrong,
                evidence.len(),
                width.map_or_else(String::new, |width: Span| format!(
                    ", which they place to within {:.3} s",
                    width.as_secs_f64()
                )),
            );
            best = Some((key.0, key.1, clock, report));
        }
        if wrong == 0 {
            break;
        }
        let found = phase::fit(setup.hz, era, setup.uptime, &evidence);
        if found.clock == clock {
            break;
        }
        clock = found.clock;
        width = Some(found.uncertainty);
    }
    let (_, _, clock, mut report) = best.expect("there is at least one pass");
    report.notes.push(note);
    Ok((clock, report))
}

fn run(
    capture: &Capture,
    setup: &Setup,
    clock: Clock,
) -> Result<(Report, Vec<phase::Evidence>), ReadError> {
    let mut ahead = Ahead::new(capture.events()?, capture.manifest.transit);
    let mut replay = Replay::new(setup, clock);
    replay.run(&mut ahead)?;
    let mut report = replay.report;
    report.skipped = ahead.events().skipped();
    report.notes.push(format!(
        "a packet took at most {} µs through the node",
        ahead.transit_max.0 / 1_000
    ));
    Ok((report, replay.evidence))
}

/// Runs again with each behaviour of the kernel and each setting of IPVS changed: which change leaves fewer
/// divergences?
fn explain(
    capture: &Capture,
    setup: &Setup,
    clock: Clock,
    report: &mut Report,
) -> Result<(), ReadError> {
    let total = report.divergence_count();
    let first = report
        .divergences
        .first()
        .map(|d| (d.at, d.subject.clone()));
    let mut found = Vec::new();
    for row in GATES {
        let has = setup.behaviours.has(row.gate);
        let mut other = setup.clone();
        other.behaviours = setup.behaviours.with(row.gate, !has);
        let (with, _) = run(capture, &other, clock)?;
        let left = with.divergence_count();
        if left < total {
            let verb = if has { "without" } else { "with" };
            let still = with
                .divergences
                .iter()
                .any(|d| Some((d.at, d.subject.clone())) == first);
            found.push(Explanation {
                text: format!(
                    "this node behaves like one {verb} `{}` ({}): {}",
                    row.name,
                    row.source,
                    row.summary.trim()
                ),
                left,
                explains_first: !still,
            });
        }
    }
    found.sort_by_key(|explanation| explanation.left);
    found.truncate(5);
    report.explanations = found;
    Ok(())
}
