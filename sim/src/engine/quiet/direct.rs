//! The shortest way of the quiet path: a request that is decided when it begins, and taken to its end when its SYN reaches
//! the node. It has no socket, no segment and no slot among the open requests; its port is held, the node's tables get their
//! entries, and its answer waits in a queue of its own.
//!
//! A port of which no table knows anything needs not even a SYN: the scheduler is asked, and the tables' entries are written
//! as all packets leave them. On any other port the SYN is made and the node's rules decide on it; where they decide
//! anything but "forward to a pod that serves", the connection gets its socket after all and goes on packet by packet.

use std::collections::VecDeque;

use ipvs_model::node::{Decision, Foreseen};
use ipvs_model::segment::{Endpoint, Segment, Tuple};
use ipvs_model::tcp::foreseen::Begin;
use ipvs_model::time::{Instant, Span};

use super::super::load::Request;
use super::super::world::{Event, Leg, World};
use super::left::Left;
use super::{ClientEnd, Kind, MARGIN, Quiet};

/// A request whose SYN is on its way to the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    number: u64,
    start: Instant,
    host: u32,
    port: u16,
    kind: u16,
    counted: bool,
    port_idle: Option<Span>,
}

/// An answer that a client will have.
#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Instant,
    host: u32,
    port: u16,
}

/// Requests that go the shortest way, from their beginning to the release of their port.
#[derive(Debug, Default)]
pub(super) struct Direct {
    begun: VecDeque<Begun>,
    /// By kind of client, and so in the order of time.
    answers: Vec<VecDeque<Answer>>,
    /// By host: when a port is free again. In the order of time.
    leases: Vec<VecDeque<(Instant, u16)>>,
    /// Pods that the scheduler may choose, by address; `None` if that must be looked up anew, no pod if one of them is not well.
    servers: Option<Vec<(Endpoint, u32)>>,
}

impl Direct {
    /// No request yet, for so many kinds of clients.
    pub(super) fn new(kinds: usize) -> Self {
        Self {
            answers: vec![VecDeque::new(); kinds],
            ..Self::default()
        }
    }

    /// The control plane acts: which pods serve must be looked up anew.
    pub(super) fn look_again(&mut self) {
        self.servers = None;
    }

    fn lease(&mut self, host: u32, until: Instant, port: u16) {
        let host = host as usize;
        if self.leases.len() <= host {
            self.leases.resize_with(host + 1, VecDeque::new);
        }
        self.leases[host].push_back((until, port));
    }
}

impl Quiet {
    /// Whether something that happened at `at` comes before an arrival at `now`: those of one moment are in the order of
    /// their scheduling, which their distance tells.
    fn before_arrival(&self, at: Instant, now: Instant) -> bool {
        at < now || (at == now && self.ends_first)
    }
}

impl World<'_> {
    /// Whether a request that begins now may go the shortest way, whatever its port.
    pub(in crate::engine) fn may_go_directly(&mut self, kind: u16) -> bool {
        let now = self.now;
        let Some(quiet) = &mut self.quiet else {
            return false;
        };
        let Some(Some(Kind {
            healthy,
            direct: true,
            ..
        })) = quiet.kinds.get(usize::from(kind))
        else {
            return false;
        };
        let over = now + quiet.client_node + healthy.over;
        let next_gc = self.node.ct.next_gc();
        if quiet.gc.0 != next_gc {
            quiet.gc = (next_gc, self.node.ipvs.clock().instant(next_gc));
        }
        let room = self.node.config().sysctls.ct.max;
        over < quiet.end
            && over < quiet.gc.1
            && now >= quiet.from
            && quiet.open < MARGIN
            && self.node.ct.count().saturating_add(MARGIN) < room
            && self.next_control() > over
    }

    /// Whether nobody is in the way of a connection from a port that was chosen for it.
    pub(in crate::engine) fn port_is_quiet(&mut self, host: u32, port: u16) -> bool {
        let Some(quiet) = &mut self.quiet else {
            return false;
        };
        let client = self.hosts.get(host);
        let to = client.to;
        let Some(Some(kind)) = quiet.kinds.get(usize::from(client.kind)) else {
            return false;
        };
        let left = quiet.left.get(host, port);
        let past =
            left.is_none_or(|left| left.syn + kind.healthy.over < self.now + quiet.client_node);
        past && quiet.settled(host, port, self.now) && !client.client.has_socket(to, port)
    }

    /// A request goes the shortest way from a port that was chosen for it.
    pub(in crate::engine) fn begin_directly(&mut self, request: &Request, port: u16) {
        let (now, host) = (self.now, request.host);
        self.observer.attempt(request);
        self.observer.connection();
        let ended = self.conns.get(host, port).map(|conn| conn.ended);
        let idle = ended.map(|ended| now.since(ended));
        let client = self.hosts.get(host);
        client.client.hold(client.to, port);
        let Some(quiet) = &mut self.quiet else { return };
        quiet.open += 1;
        quiet.direct.begun.push_back(Begun {
            number: request.number,
            start: now,
            host,
            port,
            kind: request.kind,
            counted: request.counted,
            port_idle: idle.filter(|idle| *idle > Span::ZERO),
        });
        self.travel(Leg::ClientNode, Event::QuietSyn);
    }

    /// The SYN of the request that began first reaches the node.
    pub(in crate::engine) fn quiet_syn(&mut self) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        if let Some(begun) = quiet.direct.begun.pop_front()
            && !self.passes_unknown(&mut quiet, &begun)
        {
            self.passes_known(&mut quiet, &begun);
        }
        self.quiet = Some(quiet);
    }

    /// Whether a connection can still go quietly whose SYN is at the node now.
    fn is_undisturbed(&mut self, quiet: &Quiet, kind: &Kind) -> bool {
        let over = self.now + kind.healthy.over;
        self.now >= quiet.from && over < quiet.gc.1 && self.next_control() > over
    }

    /// Takes a connection from a port of which no table knows anything to its end; whether it did.
    fn passes_unknown(&mut self, quiet: &mut Quiet, begun: &Begun) -> bool {
        let now = self.now;
        let Some(kind) = &quiet.kinds[usize::from(begun.kind)] else {
            return false;
        };
        let healthy = &kind.healthy;
        if quiet.touched(begun.host, begun.port) != 0 || !self.is_undisturbed(quiet, kind) {
            return false;
        }
        let client = self.hosts.peek(begun.host);
        let tuple = Tuple::tcp(Endpoint::new(client.to.saddr, begun.port), self.key.addr);
        if healthy.pod.is_some() {
            let left = quiet.left.get(begun.host, begun.port);
            let mut pods = self.pods.each().filter_map(|host| host.pod.as_ref());
            if left.is_some_and(|left| left.syn + quiet.forgotten >= now)
                || pods.any(|pod| pod.socket(tuple.src).is_some())
            {
                return false;
            }
        }
        if quiet.direct.servers.is_none() {
            quiet.direct.servers = Some(self.healthy_servers());
        }
        let servers = quiet.direct.servers.as_deref().unwrap_or_default();
        if servers.is_empty() {
            return false;
        }
        let foreseen = Foreseen {
            steps: &healthy.steps,
            ct: &healthy.ct,
            last: healthy.last,
        };
        let Some(to) = self.node.foresee(now, &tuple, &foreseen) else {
            return false;
        };
        let place = servers.iter().find(|(address, _)| *address == to);
        self.observer.syn(to);
        self.note_packets(1);
        let left = Left {
            syn: now,
            place: place.map_or(u32::MAX, |(_, place)| *place),
            begins: None,
        };
        quiet
            .left
            .set(self.hosts.peek(begun.host), begun.host, begun.port, left);
        self.passed(quiet, begun);
        true
    }

    /// Lets the node decide on the SYN of a connection, and takes it to its end if it goes to a pod that serves; else it goes on
    /// packet by packet.
    fn passes_known(&mut self, quiet: &mut Quiet, begun: &Begun) {
        self.settle_left(quiet, begun.host, begun.port);
        let client = self.hosts.peek(begun.host);
        let (syn, own) = client.client.first_syn(begun.start, client.to, begun.port);
        let decision = self.node.packet(self.now, &syn, &mut self.node_rng);
        self.note_packets(1);
        if self.takes_up(quiet, begun, &syn, &decision, own).is_some() {
            if let Some(server) = self.server_of(&decision) {
                self.observer.syn(server);
            }
            self.passed(quiet, begun);
        } else {
            self.goes_on_by_packets(quiet, begun, &syn, &decision);
        }
    }

    /// Leaves what the packets after the SYN will leave, if nothing is in their way.
    fn takes_up(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        syn: &Segment,
        decision: &Decision,
        own: Begin,
    ) -> Option<()> {
        let now = self.now;
        let kind = quiet.kinds[usize::from(begun.kind)].as_ref()?;
        if !self.is_undisturbed(quiet, kind) {
            return None;
        }
        let healthy = &kind.healthy;
        let (entry, ct, out) = self.forwarded_quietly(syn, decision)?;
        let place = self.pods.at(out.tuple.dst.ip)?;
        let at = now + quiet.node_pod;
        let peer = syn.tuple.src;
        // A socket that is not written out stands for one in the pod's table.
        let left = quiet.left.get(begun.host, begun.port).copied();
        let old = left.and_then(|left| self.left_at_pod(quiet, begun.host, peer, &left, at));
        let here = old.filter(|_| left.is_some_and(|left| left.place == place));
        let rests = healthy.pod.is_some();
        let theirs = self
            .pods
            .expect_quiet(place, at, &out, rests, here.as_ref())?;
        // Nothing is in the way. What an earlier use left at another pod stays there.
        if old.is_some() && here.is_none() {
            self.write_out(quiet, begun.host, begun.port);
        }
        let healthy = &quiet.kinds[usize::from(begun.kind)].as_ref()?.healthy;
        self.foresee_at_node(healthy, entry, ct, [own.isn, theirs.isn]);
        let mut left = Left {
            syn: now,
            place,
            begins: Some((own, theirs)),
        };
        if let Some((resting, known)) = &healthy.pod
            && self.pods.get(place).peers.get(peer).is_some()
        {
            // One that was written out is replaced.
            let at = now + resting.after;
            let age = quiet.client_node + quiet.node_pod;
            let rest = (&resting.rest, own, theirs);
            let fires = self.pods.rest_quietly(place, peer, at, rest, *known, age);
            if let Some(fires) = fires {
                self.queue.at(fires, Event::PodTimer(place, peer));
            }
            left.place = u32::MAX;
        }
        quiet
            .left
            .set(self.hosts.peek(begun.host), begun.host, begun.port, left);
        Some(())
    }

    /// What happens to a connection after its SYN has passed: packets, its answer, and the end of its port.
    fn passed(&mut self, quiet: &mut Quiet, begun: &Begun) {
        let now = self.now;
        let Some(kind) = &quiet.kinds[usize::from(begun.kind)] else {
            return;
        };
        let healthy = &kind.healthy;
        self.note_packets(healthy.packets);
        quiet.direct.answers[usize::from(begun.kind)].push_back(Answer {
            at: now + healthy.answered,
            host: begun.host,
            port: begun.port,
        });
        let until = match &healthy.client {
            ClientEnd::Closes(after) => now + *after,
            ClientEnd::Rests(resting) => {
                let stack = self.hosts.peek(begun.host).client.stack();
                resting.rest.ends(stack, now + resting.after)
            }
        };
        quiet.direct.lease(begun.host, until, begun.port);
    }

    /// A connection goes on by packets, as if it had begun so; the node has decided on its SYN.
    fn goes_on_by_packets(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        syn: &Segment,
        decision: &Decision,
    ) {
        let &Begun {
            start, host, port, ..
        } = begun;
        self.write_out(quiet, host, port);
        quiet.open -= 1;
        quiet.touch(host, port, self.now);
        let client = self.hosts.get(host);
        client.client.connect_held(start, client.to, port);
        let manners = self.manners[usize::from(begun.kind)];
        let request = Request {
            port,
            opened: true,
            port_idle: begun.port_idle,
            ..Request::new(begun.number, begun.kind, host, start, begun.counted)
        };
        self.take_slot(request, |world, lane, event| {
            world.queue.at(start + lane.delay(), event);
        });
        debug_assert_eq!(
            manners.requests, 1,
            "else the connection would not be alike"
        );
        self.file_client_timer(host, port);
        self.note_syn(syn, decision);
        self.follow(*decision, syn.tuple);
    }

    /// Everything of the shortest way that has happened before a request begins now, in the order of time.
    pub(in crate::engine) fn catch_up(&mut self) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        let now = self.now;
        self.tell_answers(&mut quiet, |quiet, at| quiet.before_arrival(at, now));
        self.quiet = Some(quiet);
    }

    /// Everything of the shortest way that has happened until now, or until the end.
    pub(in crate::engine) fn catch_up_to(&mut self, until: Instant) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        self.tell_answers(&mut quiet, |_, at| at <= until);
        self.quiet = Some(quiet);
    }

    fn tell_answers(&mut self, quiet: &mut Quiet, due: impl Fn(&Quiet, Instant) -> bool) {
        loop {
            let fronts = quiet.direct.answers.iter().enumerate();
            let fronts = fronts.filter_map(|(kind, answers)| Some((answers.front()?.at, kind)));
            let Some((at, number)) = fronts.min().filter(|(at, _)| due(quiet, *at)) else {
                return;
            };
            let Some(answer) = quiet.direct.answers[number].pop_front() else {
                return;
            };
            quiet.open -= 1;
            let Some(kind) = &quiet.kinds[number] else {
                continue;
            };
            let start = Instant(at.0 - kind.healthy.answered.0 - quiet.client_node.0);
            let counted = start >= Instant::ZERO + self.scenario.warmup;
            self.observer
                .answered(at, start, answer.port, kind.healthy.connected, counted);
            if self.observer.options().requests_max > 0 {
                let conns = &mut self.conns;
                let conn = conns.get_or_insert(
                    answer.host,
                    answer.port,
                    super::super::load::ConnState::IDLE,
                );
                conn.ended = at;
            }
        }
    }

    /// Frees the ports of a host whose connections were over before a request begins now.
    pub(in crate::engine) fn release_ports(&mut self, host: u32) {
        let Some(quiet) = &mut self.quiet else { return };
        let now = self.now;
        let ends_first = quiet.ends_first;
        let Some(leases) = quiet.direct.leases.get_mut(host as usize) else {
            return;
        };
        let client = self.hosts.get(host);
        let rests = quiet.kinds[usize::from(client.kind)]
            .as_ref()
            .is_some_and(|kind| matches!(kind.healthy.client, ClientEnd::Rests(_)));
        while let Some((until, port)) = leases.front().copied() {
            if until > now || (until == now && !rests && !ends_first) {
                return;
            }
            client.client.release(client.to, port);
            leases.pop_front();
        }
    }

    /// The same for all hosts, for those who look.
    pub(in crate::engine) fn release_all_ports(&mut self) {
        let hosts = self
            .quiet
            .as_ref()
            .map_or(0, |quiet| quiet.direct.leases.len());
        for host in 0..hosts as u32 {
            self.release_ports(host);
        }
    }

    /// The pods that the scheduler may choose; none if one of them does not serve as a matter of course, or if any pod is
    /// about to stop.
    fn healthy_servers(&self) -> Vec<(Endpoint, u32)> {
        let mut servers = Vec::new();
        for server in self.node.ipvs.real_servers(self.key) {
            if server.weight == 0 {
                continue;
            }
            let place = self.pods.at(server.addr.ip);
            let place = place.filter(|place| self.pods.serves(*place, server.addr));
            match place {
                Some(place) if self.dead_ends.place(server.addr.ip).is_none() => {
                    servers.push((server.addr, place));
                }
                _ => return Vec::new(),
            }
        }
        if self.pods.each().any(|host| host.draining) {
            servers.clear();
        }
        servers
    }
}
