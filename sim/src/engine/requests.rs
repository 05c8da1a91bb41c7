//! Requests: how they begin, on which connection, and how they end.

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};

use super::load::{ConnState, Request};
use super::queue::Lane;
use super::story::What;
use super::world::{Event, World};
use crate::outcome::{Cause, Outcome};

impl World<'_> {
    /// A request arrives, and so do those after it until something else comes between them, or it is after `last`.
    pub(super) fn on_arrivals(&mut self, kind: u16, last: Instant) {
        loop {
            let load = &mut self.loads[usize::from(kind)];
            let series = load.series;
            if let Some(next) = load.next_arrival() {
                self.queue.hold(next);
            }
            self.begin(kind, 0);
            let Some(at) = self.queue.take_held(last) else {
                return self.queue.file_held(series, Event::Arrival(kind));
            };
            self.now = at;
            self.events += 1;
        }
    }

    /// A request starts: on an idle connection, or on a new one.
    pub(super) fn begin(&mut self, kind: u16, worker: u32) {
        if self.now >= self.loads[usize::from(kind)].stop {
            return;
        }
        self.catch_up();
        let load = &self.loads[usize::from(kind)];
        let number = self.begun;
        self.begun += 1;
        let closed_loop = matches!(
            self.scenario.client[usize::from(kind)].arrivals,
            crate::scenario::Arrivals::Closed(_)
        );
        let host = load.host(if closed_loop {
            u64::from(worker)
        } else {
            number
        });
        let counted = self.now >= Instant::ZERO + self.scenario.warmup;
        let (now, requests) = (self.now, self.manners[usize::from(kind)].requests);
        // Most need none: those of the shortest way.
        let request = |host| Request {
            worker,
            left: requests.saturating_sub(1),
            ..Request::new(number, kind, host, now, counted)
        };
        if self.udp.is_some() {
            let request = request(host);
            if !self.begin_datagram(request) {
                let client = Endpoint::new(self.hosts.get(host).address(), 0);
                self.observer.no_port(self.now, &request, client);
                self.next_of_worker(kind, worker);
            }
            return;
        }
        let Some(host) = self.towards_a_pod(host) else {
            return self.no_pod(request(host));
        };
        let idle = self.hosts.get(host).idle.pop();
        if let Some((port, left, server)) = idle {
            let mut request = request(host);
            (request.port, request.left, request.connected) = (port, left, Some(self.now));
            request.server = server;
            self.enter(request);
            self.ask(host, port);
            return;
        }
        self.release_ports(host);
        let opened = if self.may_go_directly(kind) {
            let port = self.hosts.get(host).choose(self.now);
            if let Some(port) = port
                && self.port_is_quiet(host, port)
            {
                return self.begin_directly(number, kind, host, counted, port);
            }
            let client = self.hosts.get(host);
            port.map(|port| client.client.connect_from(self.now, client.to, port))
        } else {
            match self.before_port(number, host, counted) {
                Some(port) => self.hosts.get(host).connect_from(self.now, port),
                None => self.hosts.get(host).connect(self.now),
            }
        };
        let mut request = request(host);
        let Some((id, outcome)) = opened else {
            let client = Endpoint::new(self.hosts.get(host).address(), 0);
            self.observer.no_port(self.now, &request, client);
            self.next_of_worker(kind, worker);
            return;
        };
        (request.port, request.opened) = (id.port(), true);
        self.write_out_port(host, id.port());
        self.got_port(number, id.port());
        request.port_idle = self
            .conns
            .get(host, id.port())
            .map(|conn| self.now.since(conn.ended))
            .filter(|idle| *idle > Span::ZERO);
        self.observer.connection();
        self.enter(request);
        self.client_did(host, id.port(), &outcome);
    }

    /// Registers a request, its connection and its timeouts; its slot and the number of its tenancy.
    pub(super) fn enter(&mut self, request: Request) -> (u32, u64) {
        self.observer.attempt(request.start, request.counted);
        if self.observer.stories.wanted() && request.counted {
            let (port, idle) = (request.port, request.port_idle);
            let what = match request.opened {
                true => What::Opened { port, idle },
                false => What::KeptAlive { port },
            };
            self.observer.stories.begin(request.number, self.now, what);
        }
        self.take_slot(request, |world, lane, event| {
            world.queue.send(world.now, lane, event);
        })
    }

    /// The same for one that is registered as begun; `file` files what gives it up.
    pub(super) fn take_slot(
        &mut self,
        request: Request,
        file: impl Fn(&mut Self, Lane, Event),
    ) -> (u32, u64) {
        let manners = self.manners[usize::from(request.kind)];
        let (slot, serial) = self.requests.insert(request);
        let conn = self.conns.get_or_insert(request.host, request.port, slot);
        conn.request = slot;
        if request.opened {
            conn.filed = ConnState::NOT_FILED;
        }
        if let Some(timeout) = manners.timeout {
            file(self, timeout, Event::GiveUp(slot, serial, false));
        }
        if let (Some(timeout), true) = (manners.connect_timeout, request.opened) {
            file(self, timeout, Event::GiveUp(slot, serial, true));
        }
        (slot, serial)
    }

    fn next_of_worker(&mut self, kind: u16, worker: u32) {
        if let Some(think) = self.loads[usize::from(kind)].think_time() {
            // A worker whose request ended at once must not spin at one moment for ever.
            let pause = think.max(Span::from_micros(100));
            self.queue.at(self.now + pause, Event::Worker(kind, worker));
        }
    }

    pub(super) fn give_up(&mut self, slot: u32, serial: u64, connecting: bool) {
        let Some(request) = self.requests.tenant(slot, serial) else {
            return;
        };
        if connecting && request.connected.is_some() {
            return;
        }
        let outcome = match request.connected {
            Some(_) => Outcome::ResponseTimeout,
            None if self.udp.is_some() => Outcome::ResponseTimeout,
            None => Outcome::ConnectTimeout,
        };
        let (host, port) = (request.host, request.port);
        let connecting = outcome == Outcome::ConnectTimeout;
        self.tell(host, port, What::GaveUp { connecting });
        self.end(slot, outcome);
        self.close_client(host, port);
    }

    /// A request ends.
    pub(super) fn end(&mut self, slot: u32, outcome: Outcome) {
        self.catch_up_to(self.now);
        let Some(mut request) = self.requests.remove(slot) else {
            return;
        };
        if outcome != Outcome::Answered && request.trouble.is_none() {
            request.trouble = Some(self.blame(&request));
        }
        if let Some(conn) = self.conns.get_mut(request.host, request.port) {
            (conn.request, conn.ended) = (ConnState::IDLE, self.now);
        }
        if let Some(udp) = &mut self.udp {
            udp.close(request.host, request.port);
        }
        let client = Endpoint::new(self.hosts.get(request.host).address(), request.port);
        self.observer.ended(self.now, &request, outcome, client);
        self.ended_probed(request.number, outcome);
        self.next_of_worker(request.kind, request.worker);
    }

    /// Why a request failed that no rule had marked.
    fn blame(&self, request: &Request) -> Cause {
        let dead = request
            .server
            .is_some_and(|server| self.pods.is_dead(server));
        match (request.wrong_service, request.connected, dead) {
            (true, ..) => Cause::AddressReassigned,
            (false, Some(_), true) => Cause::ConnectionCut,
            (false, None, true) => Cause::EndpointLag,
            (false, _, false) => Cause::Other,
        }
    }
}
