//! The rollout lab: real clients, real pods, a controller that plays kube-proxy, and a count of what the clients see.

mod companion;
mod controller;
mod network;
mod spec;
mod traffic;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::clock::monotonic;
use crate::guest::{line, output};
use crate::job::Job;
pub use spec::RolloutSpec;

use companion::Companion;
use controller::Controller;
use network::Network;
use traffic::Traffic;

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// Runs the rollout and writes its result.
pub fn run(job: &Job, spec: &RolloutSpec, with: Option<&str>, out: &Path) -> Result<()> {
    spec.check()?;
    let mut network = Network::set_up(spec)?;
    let mut controller = Controller::set_up(spec, &network)?;
    let mut traffic = Traffic::new(spec);
    for pod in 0..spec.old_pods + spec.new_pods {
        traffic.listen(pod, network.listener(pod)?)?;
    }
    let companion = with.map(|line| Companion::start(line, out)).transpose()?;
    network.enter_client()?;
    let start = monotonic();
    traffic.start(start);
    // What the controller and the cluster do, in order of time.
    let mut plan = vec![
        (spec.rollout_at_s, Event::Rollout),
        (spec.death_at_s, Event::Death),
    ];
    let mut check = spec.check_from_s;
    while check <= spec.duration_s {
        plan.push((check, Event::Check));
        check += spec.check_every_s;
    }
    plan.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (at, event) in plan {
        if at > spec.duration_s {
            break;
        }
        traffic.run_until(start + (at * SECOND as f64) as i64)?;
        match event {
            Event::Rollout => network.in_node(|_| controller.roll_out(at))?,
            Event::Check => network.in_node(|_| controller.check(at))?,
            Event::Death => {
                for pod in 0..spec.old_pods {
                    let before = !matches!(spec.dead_end, spec::DeadEnd::Reset);
                    if before {
                        network.kill(pod, spec.dead_end)?;
                    }
                    traffic.kill(pod);
                }
                controller.note(at, &format!("old pods die: {}", spec.dead_end.words()));
            }
        }
    }
    traffic.run_until(start + (spec.duration_s * SECOND as f64) as i64)?;
    traffic.finish()?;
    if let Some(companion) = companion {
        let note = companion.finish()?;
        controller.note(spec.duration_s, &note);
    }

    let mut text = String::new();
    writeln!(text, "# {}", job.made_by)?;
    let release = rustix::system::uname();
    writeln!(
        text,
        "# kernel {} HZ {}",
        release.release().to_string_lossy(),
        job.hz
    )?;
    for row in toml::to_string(spec)
        .context("cannot print the rollout")?
        .lines()
    {
        writeln!(text, "# {row}")?;
    }
    for (at, note) in &controller.notes {
        writeln!(text, "# {at:.4} {note}")?;
    }
    traffic.report(&mut text)?;
    if let Ok(listing) = network.in_node(|_| output("ipvsadm", ["-Ln", "--nosort"])) {
        for row in listing.lines() {
            writeln!(text, "# end {}", row.trim_end())?;
        }
    }
    std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Rollout,
    Death,
    Check,
}

/// Runs `ip` with arguments in one string.
fn ip(arguments: &str) -> Result<()> {
    line("ip", arguments)
}
