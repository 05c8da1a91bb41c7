//! A capture against the model: verdicts, tables, trajectories.
//!
//! The model runs beside the node: every packet that enters and every rule that changes goes in; what the node did
//! with the packet, and both tables at each listing, are compared with what the model says. After a divergence the
//! model takes over what the node shows, so that one fault is reported once.

mod ahead;
pub mod coverage;
mod crowd;
mod ct_tables;
mod dead;
mod doubt;
mod drawn;
mod judge;
mod missed;
mod phase;
mod replay;
pub mod report;
mod rules;
mod setup;
mod sysctls;
mod tables;
mod trajectory;
mod verdict;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod scenes;
#[cfg(test)]
mod tests;

pub use report::{Class, Divergence, Explanation, Finding, Report};

use ipvs_model::kernel::GATES;
use ipvs_model::time::{Clock, Span};

use crate::capture::{Capture, ReadError, Stamp, Vantage};
use ahead::Ahead;
use replay::Replay;
use setup::Setup;

/// Runs at most so often to find where the node's timer ticks lie.
const PASSES_MAX: u32 = 12;

/// Divergences, the first ones, for which an explanation is searched.
const EXPLAINED_MAX: usize = 20;

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
    if capture.manifest.vantage != Vantage::Node {
        let mut report = Report::default();
        report.scope.push(
            "packets seen at a client or in a pod: what the node did with them cannot be told, nothing was compared"
                .to_owned(),
        );
        return Ok((None, None, report));
    }
    let (mut clock, mut report) = fit(capture, &mut setup)?;
    if report.missed > 0 && report.divergence_count() > 0 {
        setup.lossy = true;
        (clock, report) = fit(capture, &mut setup)?;
    }
    if report.missed > 0 {
        let note = "this capture missed packets: that one is not in it proves nothing";
        report.notes.push(note.to_owned());
    }
    Ok((Some(setup), Some(clock), report))
}

/// Fits what no capture mentions: whether the node has a nat table, and whether anything tracks connections.
fn fit(capture: &Capture, setup: &mut Setup) -> Result<(Clock, Report), ReadError> {
    let mut best = fit_grid(capture, setup)?;
    // What the node has besides IPVS, no capture says: only if it does not fit, others are tried.
    let variants = [(false, true), (true, false), (false, false)];
    for (nat, tracking) in variants {
        if best.1.divergence_count() == 0 {
            break;
        }
        if !tracking && best.1.tracked > 0 {
            // A listing shows that connections of its services are tracked.
            continue;
        }
        let other = Setup {
            nat,
            tracking,
            ..setup.clone()
        };
        let found = fit_grid(capture, &other)?;
        if found.1.divergence_count() < best.1.divergence_count() {
            *setup = other;
            best = found;
        }
    }
    if !setup.nat {
        let note = "this node has no nat table: where source ports collide it drops instead of choosing others";
        best.1.notes.push(note.to_owned());
    }
    if !setup.tracking {
        let note = "nothing on this node asks for conntrack: packets are not tracked";
        best.1.notes.push(note.to_owned());
    }
    Ok(best)
}

/// Runs with one grid of ticks after the other until what was seen of timers agrees with it.
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
        // The lab says where its ticks lie.
        if wrong == 0 || setup.exact {
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

/// One run of the model beside the capture, up to `until`.
fn run_until(
    capture: &Capture,
    setup: &Setup,
    clock: Clock,
    until: Option<Stamp>,
) -> Result<(Report, Vec<phase::Evidence>), ReadError> {
    let mut ahead = Ahead::new(capture.events()?, capture.manifest.transit);
    let mut replay = Replay::new(setup, clock);
    replay.run(&mut ahead, until)?;
    let mut report = replay.report;
    report.skipped = ahead.events().skipped();
    if report.packets > 0 {
        report.notes.push(format!(
            "a packet took at most {} µs through the node",
            ahead.transit_max.0 / 1_000
        ));
    }
    Ok((report, replay.evidence))
}

fn run(
    capture: &Capture,
    setup: &Setup,
    clock: Clock,
) -> Result<(Report, Vec<phase::Evidence>), ReadError> {
    run_until(capture, setup, clock, None)
}

/// A node that differs from the manifest in one behaviour of its kernel or one setting, with that in words.
fn variants(setup: &Setup) -> Vec<(String, Setup)> {
    let mut all = Vec::new();
    for row in GATES {
        let has = setup.behaviours.has(row.gate);
        let mut other = setup.clone();
        other.behaviours = setup.behaviours.with(row.gate, !has);
        let verb = if has { "without" } else { "with" };
        let text = format!(
            "this node behaves like one {verb} `{}` ({}): {}",
            row.name,
            row.source,
            row.summary.trim()
        );
        all.push((text, other));
    }
    let vs = &setup.sysctls.vs;
    let settings = [
        ("conn_reuse_mode", u8::from(vs.conn_reuse_mode == 0)),
        ("expire_nodest_conn", u8::from(!vs.expire_nodest_conn)),
        ("conntrack", u8::from(!vs.conntrack)),
        (
            "expire_quiescent_template",
            u8::from(!vs.expire_quiescent_template),
        ),
        ("sloppy_tcp", u8::from(!vs.sloppy_tcp)),
        ("secure_tcp", if vs.secure_tcp == 3 { 0 } else { 3 }),
    ];
    for (name, value) in settings {
        let mut other = setup.clone();
        let key = format!("net.ipv4.vs.{name}");
        if other.sysctls.set(&key, &value.to_string()) == Ok(true) {
            all.push((format!("this node behaves as if {key} were {value}"), other));
        }
    }
    all
}

/// Runs again with each behaviour of the kernel and each setting of IPVS changed: which change leaves fewer of
/// the first divergences?
fn explain(
    capture: &Capture,
    setup: &Setup,
    clock: Clock,
    report: &mut Report,
) -> Result<(), ReadError> {
    let Some(first) = report
        .divergences
        .first()
        .map(|d| (d.at, d.subject.clone()))
    else {
        return Ok(());
    };
    let last = report.divergences.len().min(EXPLAINED_MAX) - 1;
    let until = Some(report.divergences[last].at);
    let total = run_until(capture, setup, clock, until)?
        .0
        .divergence_count();
    let mut found = Vec::new();
    for (text, other) in variants(setup) {
        let (with, _) = run_until(capture, &other, clock, until)?;
        let left = with.divergence_count();
        if left < total {
            let still = with
                .divergences
                .iter()
                .any(|d| (d.at, &d.subject) == (first.0, &first.1));
            found.push(Explanation {
                text,
                left,
                of: total,
                explains_first: !still,
            });
        }
    }
    found.sort_by_key(|explanation| explanation.left);
    found.truncate(5);
    report.explanations = found;
    Ok(())
}
