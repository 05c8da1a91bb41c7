//! The rollout lab: a scenario of the simulator's, played on a real kernel. Clients are real sockets in namespaces of their
//! own, pods are real listeners, and the control plane is the simulator's, which writes its real servers into the kernel.

mod clients;
mod companion;
mod counts;
mod dnat;
mod fitness;
mod network;
mod pods;
mod ports;
mod servers;
mod slots;
mod traffic;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use ipvs_model::kube::{PodId, ProxyAction, RolloutEvent};
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::Control;
use ipvs_sim::engine::streams::Streams;
use ipvs_sim::scenario::{DataPlane, DeadEnd, NewOwner, Phase, Scenario};
use serde::{Deserialize, Serialize};

use crate::clock::monotonic;
use crate::guest::{line, output};
use crate::job::Job;
pub use fitness::fit;

use companion::Companion;
use dnat::Dnat;
use network::Network;
use servers::Servers;
use traffic::Traffic;

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// Real servers and their entries are written down this often.
const SAMPLE: Span = Span::from_secs(30);

/// A rollout to play.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Play {
    /// The scenario, as TOML.
    pub scenario: String,
    /// Seed of everything that the lab draws: Poisson arrivals, random delays. The kernel's own choices do not follow it.
    pub seed: u64,
    /// A program to run on the node, with its arguments.
    pub with: Option<String>,
}

/// A span in the clock's unit.
const fn nanos(span: Span) -> i64 {
    span.0 as i64
}

/// What goes on outside of the sockets, with the moment at which it is due.
#[derive(Debug, Clone, Copy)]
enum Due {
    Control,
    Sample,
    Heir(PodId),
    Rules,
}

/// What balances on the node.
#[derive(Debug)]
enum Plane {
    Ipvs(Servers),
    Dnat(Dnat),
}

/// Node, network and control plane of a run.
struct Lab {
    scenario: Scenario,
    network: Network,
    control: Control,
    plane: Plane,
    /// Endpoints on their way to DNAT rules, in the order of time.
    rules: VecDeque<(Instant, Vec<Endpoint>)>,
    start: i64,
    notes: Vec<(f64, String)>,
    samples: Vec<String>,
    heirs: Vec<(Instant, PodId)>,
    next_sample: Instant,
}

/// Plays the rollout and writes its result.
pub fn run(job: &Job, play: &Play, out: &Path) -> Result<()> {
    let parsed = Scenario::parse(&play.scenario, "the job's scenario");
    let mut scenario = parsed
        .map_err(|found| anyhow!("{}", found.render(false)))?
        .scenario;
    let network = Network::set_up(&scenario)?;
    let plane = match scenario.node.mode {
        DataPlane::Iptables | DataPlane::Nftables => Plane::Dnat(Dnat::set_up(&scenario)?),
        _ => Plane::Ipvs(Servers::set_up(&scenario)?),
    };
    let control = Control::new(&scenario, Streams::new(play.seed));
    let mut lab = Lab {
        control,
        network,
        plane,
        rules: VecDeque::new(),
        start: 0,
        notes: Vec::new(),
        samples: Vec::new(),
        heirs: Vec::new(),
        next_sample: Instant::ZERO + SAMPLE,
        scenario: scenario.clone(),
    };
    let mut traffic = Traffic::new(&scenario, play.seed, &mut lab.network)?;
    lab.begin(&mut traffic)?;
    // Pods and clients have namespaces of their own, and the last one that was set up is still entered.
    lab.network.enter_node()?;
    let companion = play
        .with
        .as_deref()
        .map(|line| Companion::start(line, out))
        .transpose()?;
    lab.start = monotonic();
    traffic.start(lab.start);
    lab.play(&mut traffic)?;
    traffic.finish(&mut lab.network)?;
    lab.network.enter_node()?;
    if let Some(companion) = companion {
        let note = companion.finish()?;
        lab.note(scenario.duration.as_secs() as f64, note);
    }

    // The machines of this run were up for as long as the kernel was.
    let uptime = Phase::Fixed(Span(lab.start as u64));
    scenario.node.uptime = uptime;
    scenario.server.uptime = uptime;
    for client in &mut scenario.client {
        client.uptime = uptime;
    }
    let text = lab.report(job, play, &scenario, &traffic)?;
    std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))
}

impl Lab {
    /// The pods of the start, with their real servers.
    fn begin(&mut self, traffic: &mut Traffic) -> Result<()> {
        while self.control.next_rollout() == Some(Instant::ZERO) {
            let Some(event) = self.control.poll_rollout(Instant::ZERO) else {
                break;
            };
            if let RolloutEvent::EndpointsPublished { endpoints } = &event {
                let wanted = self.control.wanted(endpoints).active;
                if let Plane::Dnat(rules) = &self.plane {
                    self.network.enter_node()?;
                    rules.replace(&wanted)?;
                    continue;
                }
                self.control
                    .endpoints_changed(Instant::ZERO, wanted, Span::ZERO);
            } else {
                self.happen(Instant::ZERO, event, traffic)?;
            }
        }
        let Plane::Ipvs(servers) = &mut self.plane else {
            return Ok(());
        };
        drop(self.control.poll_proxy_on(Instant::ZERO, servers, true));
        servers.check()
    }

    /// Everything until the end of the load.
    fn play(&mut self, traffic: &mut Traffic) -> Result<()> {
        let end = Instant::ZERO + self.scenario.duration;
        loop {
            let (at, due) = self.next();
            if at > end {
                return traffic
                    .run_until(self.clock(end), &mut self.network)
                    .map(drop);
            }
            if let Some(pod) = traffic.run_until(self.clock(at), &mut self.network)? {
                let now = Instant::ZERO + Span((monotonic() - self.start) as u64);
                self.control.drained(now, pod);
                continue;
            }
            match due {
                Due::Control => self.control_plane(at, traffic)?,
                Due::Sample => {
                    self.sample(at)?;
                    self.next_sample += SAMPLE;
                }
                Due::Rules => {
                    if let (Some((_, endpoints)), Plane::Dnat(rules)) =
                        (self.rules.pop_front(), &self.plane)
                    {
                        self.network.enter_node()?;
                        rules.replace(&endpoints)?;
                        let list: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
                        self.note(seconds(at), format!("rules list {}", list.join(" ")));
                    }
                }
                Due::Heir(pod) => {
                    self.heirs.retain(|(_, waiting)| *waiting != pod);
                    let open = matches!(self.scenario.server.dead_end,
                        DeadEnd::Reassigned(new) if new.port == NewOwner::Open);
                    let listener = self.network.inherit(pod, open)?;
                    self.note(seconds(at), format!("{pod}: its address has a new owner"));
                    if let Some(listener) = listener {
                        traffic.listen_elsewhere(listener)?;
                    }
                }
            }
        }
    }

    fn next(&self) -> (Instant, Due) {
        let mut next = (self.next_sample, Due::Sample);
        let proxy = match self.plane {
            Plane::Ipvs(_) => self.control.next_proxy(),
            Plane::Dnat(_) => None,
        };
        if let Some((at, _)) = self.rules.front()
            && *at < next.0
        {
            next = (*at, Due::Rules);
        }
        let control = [self.control.next_rollout(), proxy];
        for at in control.into_iter().flatten() {
            if at <= next.0 {
                next = (at, Due::Control);
            }
        }
        for (at, pod) in &self.heirs {
            if *at < next.0 {
                next = (*at, Due::Heir(*pod));
            }
        }
        next
    }

    /// A moment of the run on the kernel's clock.
    fn clock(&self, at: Instant) -> i64 {
        self.start + nanos(at.since(Instant::ZERO))
    }

    fn control_plane(&mut self, now: Instant, traffic: &mut Traffic) -> Result<()> {
        while let Some(event) = self.control.poll_rollout(now) {
            self.happen(now, event, traffic)?;
        }
        if let Plane::Ipvs(servers) = &mut self.plane
            && self.control.next_proxy().is_some_and(|at| at <= now)
        {
            self.network.enter_node()?;
            let log: Vec<_> = self.control.poll_proxy_on(now, servers, false).collect();
            servers.check()?;
            for entry in log {
                if matches!(
                    entry.action,
                    ProxyAction::Added | ProxyAction::WeightSet(_) | ProxyAction::Deleted
                ) {
                    self.note(seconds(now), format!("kube-proxy: {entry}"));
                }
            }
        }
        Ok(())
    }

    /// The same as the simulator's engine does at each event.
    fn happen(&mut self, now: Instant, event: RolloutEvent, traffic: &mut Traffic) -> Result<()> {
        match event {
            RolloutEvent::AddressAssigned { pod, ip } => {
                self.network.assign(pod, ip)?;
            }
            RolloutEvent::Listening { pod } => {
                let door = self.network.listen(pod)?;
                traffic.listen(pod, door)?;
            }
            RolloutEvent::ListenerClosed { pod } => {
                self.note(seconds(now), format!("{pod}: listener closed"));
                if traffic.close_listener(pod)? {
                    self.control.drained(now, pod);
                }
            }
            RolloutEvent::ProcessExited { pod, .. } => {
                self.note(seconds(now), format!("{pod}: process gone"));
                traffic.kill(pod)?;
            }
            RolloutEvent::AddressGone { pod, ip } => {
                self.note(seconds(now), format!("{pod}: address {ip} gone"));
                self.network.bury(pod, &self.scenario.server.dead_end)?;
                if let DeadEnd::Reassigned(new) = self.scenario.server.dead_end {
                    self.heirs.push((now + new.after, pod));
                }
            }
            RolloutEvent::EndpointsPublished { endpoints } => {
                let wanted = self.control.wanted(&endpoints).active;
                let watch = self.control.draw_sync_latency();
                if let Plane::Dnat(_) = self.plane {
                    // A later change does not overtake an earlier one.
                    let last = self.rules.back().map_or(now, |(at, _)| *at);
                    self.rules.push_back(((now + watch).max(last), wanted));
                } else {
                    self.control.endpoints_changed(now, wanted, watch);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn sample(&mut self, at: Instant) -> Result<()> {
        let Plane::Ipvs(servers) = &self.plane else {
            return Ok(());
        };
        self.network.enter_node()?;
        for server in servers.listed()? {
            self.samples.push(format!(
                "E {} {} weight {} active {} inactive {}",
                at.as_secs(),
                server.addr,
                server.weight,
                server.active,
                server.inactive
            ));
        }
        Ok(())
    }

    fn note(&mut self, at: f64, what: String) {
        self.notes.push((at, what));
    }

    fn report(
        &self,
        job: &Job,
        play: &Play,
        scenario: &Scenario,
        traffic: &Traffic,
    ) -> Result<String> {
        let mut text = String::new();
        writeln!(text, "# {}", job.made_by)?;
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        writeln!(text, "# kernel {release} HZ {} seed {}", job.hz, play.seed)?;
        // Defaults as well: what was played must not change when a default does.
        for row in scenario.to_toml().lines() {
            let field = row.strip_prefix("# ").filter(|field| is_field(field));
            if !row.starts_with('#') || field.is_some() {
                writeln!(text, "{}", format!("| {}", field.unwrap_or(row)).trim_end())?;
            }
        }
        for (at, note) in &self.notes {
            writeln!(text, "# {at:.4} {note}")?;
        }
        for sample in &self.samples {
            writeln!(text, "{sample}")?;
        }
        traffic.counts().report(&mut text)?;
        if let Ok(listing) = output("ipvsadm", ["-Ln", "--nosort"]) {
            for row in listing.lines() {
                writeln!(text, "# end {}", row.trim_end())?;
            }
        }
        Ok(text)
    }
}

/// Whether a line of a scenario is `name = value`.
fn is_field(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

fn seconds(at: Instant) -> f64 {
    at.since(Instant::ZERO).0 as f64 / SECOND as f64
}

/// Runs `ip` with arguments in one string.
fn ip(arguments: &str) -> Result<()> {
    line("ip", arguments)
}
