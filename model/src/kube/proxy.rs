//! kube-proxy on one node: from wanted endpoints to real servers.
//!
//! Faithful to: `syncProxyRules`, `syncEndpoint` and `GracefulTerminationManager` of the IPVS proxier, 1.11 to 1.30
//! (facts, kube-proxy 3). Every netlink call is a step of its own with its own delay, so that the moments between
//! them exist: old and new real servers both at weight 1, a returning real server deleted and not yet added.
//! Leaves out: deleted virtual services (1.12 to 1.15 drained them), iptables and ipset, the clean-up of UDP conntrack
//! (that is [`super::stale_udp`]), the time that a check of the graceful list takes.
//!
//! Contract: call [`Proxy::poll`] at the moment that [`Proxy::next`] names. Whatever a poll does happens at its
//! `now`.

use std::collections::{BTreeSet, VecDeque};

use rand::{Rng, RngExt};

use super::runner::Runner;
use super::server::{
    ProxyRule, ServerEvent, ServerState, ServerStep, ServiceProto, Transition, WaitFor, transition,
};
use super::version::ProxyGate;
use crate::segment::Endpoint;
use crate::time::{Instant, Span};

mod io;

pub use io::{
    ProxyAction, ProxyConfig, ProxyIo, ProxyLatency, ProxyLog, RealServer, RealServers, ServiceRef,
};

/// One virtual service.
#[derive(Clone, Debug)]
struct Service {
    proto: ServiceProto,
    /// The latest endpoints that the watch brought.
    known: Vec<Endpoint>,
    /// The endpoints that the current sync works with, in the order of their text.
    wanted: Vec<Endpoint>,
}

/// One step of a sync.
#[derive(Clone, Copy, Debug)]
enum PassStep {
    /// List the service's real servers and plan its steps.
    Visit(ServiceRef),
    /// A wanted endpoint; its weight when the list was read, and how often the first sync resets it.
    Want(ServiceRef, Endpoint, Option<u32>, u32),
    /// A real server that the list had and the service does not want.
    Unwant(ServiceRef, Endpoint),
    /// One step of a transition.
    Do(ServiceRef, Endpoint, ServerStep, ProxyRule),
    /// The sync ends.
    End,
}

/// A sync under way.
#[derive(Clone, Debug)]
struct Pass {
    steps: VecDeque<PassStep>,
    at: Instant,
}

/// Whether kube-proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Down,
    /// Started; the first sync begins when the lists have been received.
    Starting(Instant),
    Up,
}

/// kube-proxy in IPVS mode on one node.
#[derive(Clone, Debug)]
pub struct Proxy {
    config: ProxyConfig,
    services: Vec<Service>,
    graceful: BTreeSet<(ServiceRef, Endpoint)>,
    arrivals: VecDeque<(Instant, ServiceRef, Vec<Endpoint>)>,
    runner: Runner,
    pass: Option<Pass>,
    check_at: Instant,
    life: Life,
    first_sync: bool,
}

impl Proxy {
    /// A kube-proxy that has not been started.
    pub fn new(config: ProxyConfig) -> Self {
        Self {
            config,
            services: Vec::new(),
            graceful: BTreeSet::new(),
            arrivals: VecDeque::new(),
            runner: Runner::new(
                config.min_sync,
                config.sync_period,
                Instant::ZERO,
                Instant::NEVER,
            ),
            pass: None,
            check_at: Instant::NEVER,
            life: Life::Down,
            first_sync: true,
        }
    }

    /// A kube-proxy that has been running for long: its next check of the graceful list is at `check_at`, its next
    /// periodic sync at `period_at`. Both follow from its start, which has nothing to do with any rollout.
    pub fn running(config: ProxyConfig, check_at: Instant, period_at: Instant) -> Self {
        Self {
            runner: Runner::new(
                config.min_sync,
                config.sync_period,
                Instant::ZERO,
                period_at,
            ),
            check_at,
            life: Life::Up,
            first_sync: false,
            ..Self::new(config)
        }
    }

    /// Adds a virtual service without endpoints.
    ///
    /// # Panics
    /// With more than 65536 services.
    pub fn add_service(&mut self, proto: ServiceProto) -> ServiceRef {
        let index = u16::try_from(self.services.len()).expect("at most 65536 virtual services");
        self.services.push(Service {
            proto,
            known: Vec::new(),
            wanted: Vec::new(),
        });
        ServiceRef(index)
    }

    /// The endpoints that kube-proxy knows of, as the watch brought them.
    pub fn known(&self, service: ServiceRef) -> &[Endpoint] {
        self.services
            .get(usize::from(service.0))
            .map_or(&[], |service| &service.known)
    }

    /// Whether a real server is in the graceful list.
    pub fn is_draining(&self, service: ServiceRef, server: Endpoint) -> bool {
        self.graceful.contains(&(service, server))
    }

    /// How many real servers are in the graceful list.
    pub fn draining(&self) -> usize {
        self.graceful.len()
    }

    /// Whether a sync is under way.
    pub const fn is_syncing(&self) -> bool {
        self.pass.is_some()
    }

    /// Whether nothing that is due at `now` can change a real server or asks how many connections one has: no endpoints have
    /// arrived, nothing drains, and the next sync finds everything as it is wanted.
    pub fn changes_nothing(&self, now: Instant, servers: &dyn RealServers) -> bool {
        let idle = self.life == Life::Up
            && self.pass.is_none()
            && !self.first_sync
            && self.graceful.is_empty()
            && self.arrivals.front().is_none_or(|arrival| arrival.0 > now);
        let as_wanted = |(index, service): (usize, &Service)| {
            let listed = servers.list(ServiceRef(index as u16));
            let wanted = listed.iter().all(|server| {
                let state = ServerState::of(Some(server.weight), false);
                let row = transition(state, ServerEvent::Wanted, self.config.behaviours);
                service.known.contains(&server.addr) && row.is_none_or(|row| row.3.is_empty())
            });
            let is_listed = |addr: &Endpoint| listed.iter().any(|server| server.addr == *addr);
            wanted && service.known.iter().all(is_listed)
        };
        idle && self.services.iter().enumerate().all(as_wanted)
    }

    /// When to poll next; `None` if kube-proxy does not run.
    pub fn next(&self) -> Option<Instant> {
        let work = match self.life {
            Life::Down => return None,
            Life::Starting(at) => Some(at),
            Life::Up => self
                .pass
                .as_ref()
                .map_or_else(|| self.runner.next(), |pass| Some(pass.at)),
        };
        let arrival = self.arrivals.front().map(|arrival| arrival.0);
        [work, arrival, Some(self.check_at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// The endpoints of a service changed at `now`; kube-proxy hears of it `watch` later, and never out of order.
    pub fn endpoints_changed(
        &mut self,
        now: Instant,
        service: ServiceRef,
        set: Vec<Endpoint>,
        watch: Span,
    ) {
        let last = self
            .arrivals
            .back()
            .map_or(Instant::ZERO, |arrival| arrival.0);
        self.arrivals
            .push_back((last.max(now + watch), service, set));
    }

    /// kube-proxy starts, or starts again: the graceful list is lost; releases before 1.15 also delete or drain
    /// every real server; the check runs at once, the first sync when the lists have been received.
    pub fn restart(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        for key in self.graceful.clone() {
            let (state, _) = self.look(key.0, key.1, true, io.ipvs);
            if let Some(row) = transition(state, ServerEvent::Restart, self.config.behaviours) {
                self.execute_row(now, key, row, row.5, io);
            }
        }
        self.pass = None;
        self.first_sync = true;
        let config = self.config;
        self.runner = Runner::new(
            config.min_sync,
            config.sync_period,
            now,
            now + config.sync_period,
        );
        if config.behaviours.has(ProxyGate::GracefulTermination) {
            if !config.behaviours.has(ProxyGate::StartKeepsServers) {
                self.clear_all(now, io);
            }
            self.check_at = now;
        }
        self.life = Life::Starting(now + (io.draw)(ProxyLatency::Received));
    }

    /// kube-proxy stops. What it does not do any more is all that changes.
    pub fn stop(&mut self) {
        self.life = Life::Down;
        self.pass = None;
    }

    /// Does what is due at `now`.
    pub fn poll(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        if self.life == Life::Down {
            return;
        }
        if self.check_at <= now {
            self.check(now, io);
            self.check_at = now + self.config.check_interval;
        }
        while self
            .arrivals
            .front()
            .is_some_and(|arrival| arrival.0 <= now)
        {
            self.take_arrival(now);
        }
        if let Life::Starting(at) = self.life
            && at <= now
        {
            // A fresh list holds what any watch event still on its way would bring.
            while !self.arrivals.is_empty() {
                self.take_arrival(now);
            }
            self.life = Life::Up;
            self.runner.request(now);
        }
        while self.life == Life::Up {
            if let Some(pass) = &self.pass {
                if pass.at > now {
                    break;
                }
                self.advance(now, io);
            } else if self.runner.next().is_some_and(|at| at <= now) {
                if self.runner.try_start(now) {
                    self.begin(now, io);
                }
            } else {
                break;
            }
        }
    }

    /// A whole sync at one instant, for the set-up of a node and for tests. A sync under way is finished first.
    pub fn sync_now(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        while self.pass.is_some() {
            self.advance(now, io);
        }
        while !self.arrivals.is_empty() {
            self.take_arrival(now);
        }
        self.life = Life::Up;
        self.runner.force_start();
        self.begin(now, io);
        while self.pass.is_some() {
            self.advance(now, io);
        }
    }

    fn take_arrival(&mut self, now: Instant) {
        if let Some((_, service, set)) = self.arrivals.pop_front()
            && let Some(service) = self.services.get_mut(usize::from(service.0))
        {
            service.known = set;
            self.runner.request(now);
        }
    }

    /// Starts a sync: takes over what is known and fixes the order of the services, a Go map's.
    fn begin(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        let mut order = Vec::with_capacity(self.services.len());
        for (index, service) in self.services.iter_mut().enumerate() {
            service.wanted.clone_from(&service.known);
            service.wanted.sort_by_cached_key(ToString::to_string);
            service.wanted.dedup();
            order.push(ServiceRef(index as u16));
        }
        shuffle(&mut order, io.rng);
        let mut steps: VecDeque<_> = order.into_iter().map(PassStep::Visit).collect();
        steps.push_back(PassStep::End);
        let at = now + Self::before(&steps, io);
        self.pass = Some(Pass { steps, at });
    }

    /// The delay before the next step of a sync.
    fn before(steps: &VecDeque<PassStep>, io: &mut ProxyIo<'_>) -> Span {
        match steps.front() {
            Some(PassStep::Visit(_)) => (io.draw)(ProxyLatency::BeforeService),
            Some(PassStep::End) => (io.draw)(ProxyLatency::AfterServices),
            _ => Span::ZERO,
        }
    }

    /// One step of the sync under way.
    fn advance(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        let Some(mut pass) = self.pass.take() else {
            return;
        };
        let mut wait = Span::ZERO;
        match pass.steps.pop_front() {
            Some(PassStep::Visit(service)) => self.plan(service, &mut pass.steps, io),
            Some(PassStep::Want(service, server, weight, resets)) => {
                self.want(now, (service, server), weight, resets, &mut pass.steps, io);
            }
            Some(PassStep::Unwant(service, server)) => {
                if let Some(row) = self.unwant(service, server, io.ipvs) {
                    Self::queue((service, server), row, 1, &mut pass.steps);
                }
            }
            Some(PassStep::Do(service, server, step, rule)) => {
                let accepted = self.execute(now, (service, server), step, rule, io);
                if !accepted {
                    let rest = |next: &PassStep| matches!(next, PassStep::Do(s, e, ..) if (*s, *e) == (service, server));
                    while pass.steps.front().is_some_and(rest) {
                        pass.steps.pop_front();
                    }
                }
                if !matches!(step, ServerStep::List | ServerStep::Unlist) {
                    wait = (io.draw)(ProxyLatency::Call);
                }
            }
            Some(PassStep::End) | None => {
                self.first_sync = false;
                self.runner.finished(now);
                return;
            }
        }
        pass.at = now + wait + Self::before(&pass.steps, io);
        self.pass = Some(pass);
    }

    /// Lists a service's real servers; queues the wanted ones in the order of their text, then the others in the
    /// random order of a Go map.
    fn plan(&self, service: ServiceRef, steps: &mut VecDeque<PassStep>, io: &mut ProxyIo<'_>) {
        let listed = io.ipvs.list(service);
        let wanted = &self.services[usize::from(service.0)].wanted;
        let resets = listed.iter().filter(|server| server.weight != 1).count() as u32;
        let reset = self.first_sync && self.config.behaviours.has(ProxyGate::FirstSyncResetsWeight);
        let mut others: Vec<_> = listed
            .iter()
            .map(|server| server.addr)
            .filter(|addr| !wanted.contains(addr))
            .collect();
        shuffle(&mut others, io.rng);
        for addr in others.into_iter().rev() {
            steps.push_front(PassStep::Unwant(service, addr));
        }
        for addr in wanted.iter().rev() {
            let weight = listed
                .iter()
                .find(|server| server.addr == *addr)
                .map(|server| server.weight);
            let resets = if reset { resets } else { 0 };
            steps.push_front(PassStep::Want(service, *addr, weight, resets));
        }
    }

    /// A wanted endpoint's transition. Its presence is what the list said when the service's turn came; whether it
    /// drains is asked now.
    fn want(
        &self,
        now: Instant,
        key: (ServiceRef, Endpoint),
        weight: Option<u32>,
        resets: u32,
        steps: &mut VecDeque<PassStep>,
        io: &mut ProxyIo<'_>,
    ) {
        let draining = self.graceful.contains(&key);
        let state = ServerState::of(weight, draining);
        let event = if resets > 0 && !draining {
            ServerEvent::WantedReset
        } else {
            ServerEvent::Wanted
        };
        let Some(row) = transition(state, event, self.config.behaviours) else {
            return;
        };
        if row.5 == ProxyRule::StaysStranded {
            io.log.push(kept(now, key, row.5));
        }
        Self::queue(
            key,
            row,
            if event == ServerEvent::WantedReset {
                resets.max(1)
            } else {
                1
            },
            steps,
        );
    }

    /// The transition of a real server that is not wanted; `None` if it is gone meanwhile.
    fn unwant(
        &self,
        service: ServiceRef,
        server: Endpoint,
        ipvs: &dyn RealServers,
    ) -> Option<&'static Transition> {
        let draining = self.graceful.contains(&(service, server));
        let (state, idle) = self.look(service, server, draining, ipvs);
        let event = if idle {
            ServerEvent::UnwantedIdle
        } else {
            ServerEvent::UnwantedBusy
        };
        transition(state, event, self.config.behaviours)
    }

    /// A real server's state now, and whether its connections allow its deletion.
    fn look(
        &self,
        service: ServiceRef,
        server: Endpoint,
        draining: bool,
        ipvs: &dyn RealServers,
    ) -> (ServerState, bool) {
        let proto = self.services[usize::from(service.0)].proto;
        let wait = WaitFor::of(self.config.behaviours, proto);
        let found = ipvs
            .list(service)
            .into_iter()
            .find(|real| real.addr == server);
        let state = ServerState::of(found.map(|real| real.weight), draining);
        (
            state,
            found.is_none_or(|real| wait.idle(real.active, real.inactive)),
        )
    }

    /// Puts a row's steps before the others; the single step of a weight reset `times` times.
    fn queue(
        key: (ServiceRef, Endpoint),
        row: &Transition,
        times: u32,
        steps: &mut VecDeque<PassStep>,
    ) {
        let times = if row.3 == [ServerStep::WeightOne] {
            times
        } else {
            1
        };
        for _ in 0..times {
            for step in row.3.iter().rev() {
                steps.push_front(PassStep::Do(key.0, key.1, *step, row.5));
            }
        }
    }

    /// Does one step and logs it.
    fn execute(
        &mut self,
        now: Instant,
        key: (ServiceRef, Endpoint),
        step: ServerStep,
        rule: ProxyRule,
        io: &mut ProxyIo<'_>,
    ) -> bool {
        let (service, server) = key;
        let (action, accepted) = match step {
            ServerStep::Add => (ProxyAction::Added, io.ipvs.add(service, server, 1)),
            ServerStep::WeightOne => (
                ProxyAction::WeightSet(1),
                io.ipvs.set_weight(service, server, 1),
            ),
            ServerStep::WeightZero => (
                ProxyAction::WeightSet(0),
                io.ipvs.set_weight(service, server, 0),
            ),
            ServerStep::Delete => (ProxyAction::Deleted, io.ipvs.delete(service, server)),
            ServerStep::List => (ProxyAction::Listed, self.graceful.insert(key)),
            ServerStep::Unlist => (ProxyAction::Unlisted, self.graceful.remove(&key)),
        };
        io.log.push(ProxyLog {
            at: now,
            service,
            server,
            action,
            rule,
            accepted,
        });
        accepted
    }

    /// Does a whole row at once, until the kernel refuses a step.
    fn execute_row(
        &mut self,
        now: Instant,
        key: (ServiceRef, Endpoint),
        row: &Transition,
        rule: ProxyRule,
        io: &mut ProxyIo<'_>,
    ) {
        for step in row.3 {
            if !self.execute(now, key, *step, rule, io) {
                return;
            }
        }
    }

    /// The check of the graceful list, in the random order of a Go map.
    fn check(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        let mut keys: Vec<_> = self.graceful.iter().copied().collect();
        shuffle(&mut keys, io.rng);
        for key in keys {
            let (state, idle) = self.look(key.0, key.1, true, io.ipvs);
            let event = if idle {
                ServerEvent::CheckIdle
            } else {
                ServerEvent::CheckBusy
            };
            let Some(row) = transition(state, event, self.config.behaviours) else {
                continue;
            };
            if row.3.is_empty() {
                io.log.push(kept(now, key, row.5));
            }
            self.execute_row(now, key, row, row.5, io);
        }
    }

    /// The start of releases before 1.15: every real server is deleted or drained.
    fn clear_all(&mut self, now: Instant, io: &mut ProxyIo<'_>) {
        for index in 0..self.services.len() {
            let service = ServiceRef(index as u16);
            for server in io.ipvs.list(service) {
                if let Some(row) = self.unwant(service, server.addr, io.ipvs) {
                    self.execute_row(now, (service, server.addr), row, ProxyRule::StartClears, io);
                }
            }
        }
    }
}

/// A log entry for a real server that is left as it is.
const fn kept(at: Instant, key: (ServiceRef, Endpoint), rule: ProxyRule) -> ProxyLog {
    ProxyLog {
        at,
        service: key.0,
        server: key.1,
        action: ProxyAction::Kept,
        rule,
        accepted: true,
    }
}

/// Fisher-Yates, written out so that the draws stay the same whatever the generator's crate does.
fn shuffle<T>(items: &mut [T], rng: &mut dyn Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.random_range(0..=last));
    }
}

#[cfg(test)]
mod tests;
