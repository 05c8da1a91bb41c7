//! The shortest way of the quiet path: a request that is decided when it begins, and taken to its end when its SYN reaches
//! the node. It has no socket, no segment and no slot among the open requests; its port is held, the node's tables get their
//! entries, and its answer waits in a queue of its own.
//!
//! A port of which no table knows anything needs not even a SYN: the scheduler is asked, and the tables' entries are written
//! as all packets leave them. On any other port the SYN is made and the node's rules decide on it; where they decide
//! anything but "forward to a pod that serves", the connection gets its socket after all and goes on packet by packet.

use std::collections::VecDeque;

use ipvs_model::ipvs::service::DestId;
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};

use super::super::load::ConnState;
use super::super::queue::Turn;
use super::super::world::{Event, Leg, World};
use super::{ClientEnd, Healthy, Kind, MARGIN, Quiet};
use crate::outcome::Cause;

/// A request that has no answer in sight yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) number: u64,
    pub(super) start: Instant,
    pub(super) host: u32,
    pub(super) port: u16,
    pub(super) kind: u16,
    pub(super) counted: bool,
    pub(super) port_idle: Option<Span>,
    /// The turn of the timer that would send its SYN again.
    pub(super) turn: Turn,
    /// When its SYN was sent again, and why the first one was dropped.
    pub(super) again: Option<(Instant, Cause)>,
}

/// All that the node's decision on a SYN depends on that finds the entries of a healthy connection that is over, as long as the
/// control plane does not act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Precedent {
    pub(super) dest: DestId,
    pub(super) kind: u16,
    /// Whether the connection that is over came of its second SYN.
    pub(super) left_again: bool,
    pub(super) again: bool,
}

/// What the node's tables would have of a port whose entries are not written out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owes {
    /// All that they know is written out.
    Nothing,
    /// Nothing any more.
    Forgotten,
    /// Both entries of a healthy connection.
    Both(Precedent),
    /// Something else, or packets may still come to the port.
    Unclear,
}

/// What became of such a SYN.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    /// It went to the real server of the entry, whose pod serves; nothing was left of the connection before.
    Stays(Endpoint, u32),
    /// It was dropped, and nothing is left of the entries at the next tick.
    Dropped(Cause),
}

/// An answer that a client will have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) at: Instant,
    pub(super) start: Instant,
    pub(super) host: u32,
    pub(super) port: u16,
    pub(super) counted: bool,
    pub(super) cause: Option<Cause>,
}

/// Requests that go the shortest way, from their beginning to the release of their port.
#[derive(Debug, Default)]
pub(super) struct Direct {
    pub(super) begun: Vec<Begun>,
    free: Vec<u32>,
    /// By kind of client, and so in the order of time.
    pub(super) answers: Vec<VecDeque<Answer>>,
    /// The first of them is not before this.
    pub(super) next_answer: Instant,
    /// By host: when a port is free again. In the order of time.
    leases: Vec<VecDeque<(Instant, u16)>>,
    /// Pods that the scheduler may choose, by address; `None` if that must be looked up anew, no pod if one of them is not well.
    pub(super) servers: Option<Vec<(Endpoint, u32)>>,
    /// What became of SYNs since the control plane acted last.
    precedents: Vec<(Precedent, Known)>,
    /// Requests whose first SYN was dropped and whose second one is not sent yet.
    pub(super) resending: u32,
}

impl Direct {
    /// No request yet, for so many kinds of clients.
    pub(super) fn new(kinds: usize) -> Self {
        Self {
            answers: vec![VecDeque::new(); kinds],
            next_answer: Instant::NEVER,
            ..Self::default()
        }
    }

    /// The control plane acts: which pods serve must be looked up anew.
    pub(super) fn look_again(&mut self) {
        self.servers = None;
        self.precedents.clear();
    }

    /// Notes what became of a SYN; the first one like it counts.
    pub(super) fn learn(&mut self, like: Precedent, known: Known) {
        if self.precedent(&like).is_none() {
            self.precedents.push((like, known));
        }
    }

    /// What became of a SYN like this one.
    pub(super) fn precedent(&self, like: &Precedent) -> Option<Known> {
        let mut known = self.precedents.iter();
        known.find(|(one, _)| one == like).map(|(_, known)| *known)
    }

    /// The place of a request where it waits; it gets one if it has none.
    pub(super) fn place(&mut self, place: Option<u32>, begun: &Begun) -> u32 {
        let place = place.or_else(|| self.free.pop());
        match place {
            Some(place) => {
                self.begun[place as usize] = *begun;
                place
            }
            None => {
                self.begun.push(*begun);
                self.begun.len() as u32 - 1
            }
        }
    }

    pub(super) fn lease(&mut self, host: u32, until: Instant, port: u16) {
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

    /// The healthy connection that a request will have.
    pub(super) fn healthy(&self, begun: &Begun) -> Option<&Healthy> {
        self.healthy_of(begun.kind, begun.again.is_some())
    }

    /// The healthy connection of a kind of client, from the first SYN or from the second one.
    pub(super) fn healthy_of(&self, kind: u16, again: bool) -> Option<&Healthy> {
        let kind = self.kinds[usize::from(kind)].as_ref()?;
        if again {
            kind.resent.as_ref()
        } else {
            Some(&kind.healthy)
        }
    }

    /// How long after its second SYN nothing more happens to a connection.
    pub(super) fn over_again(&self, kind: u16) -> Span {
        let kind = self.kinds[usize::from(kind)].as_ref();
        let resent = kind.and_then(|kind| kind.resent.as_ref());
        resent.map_or(Span(u64::MAX), |resent| resent.over)
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
        let room = self.node.config().sysctls.ct.max;
        over < quiet.end
            && quiet.scan_is_after(&self.node, over)
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

    /// A request of a kind of client goes the shortest way from a host's port that was chosen for it.
    pub(in crate::engine) fn begin_directly(
        &mut self,
        number: u64,
        kind: u16,
        host: u32,
        counted: bool,
        port: u16,
    ) {
        let now = self.now;
        self.observer.attempt(now, counted);
        self.observer.connection();
        // Told of requests that are listed one by one.
        let listed = self.observer.options().requests_max > 0;
        let conn = listed.then(|| self.conns.get(host, port)).flatten();
        let idle = conn.map(|conn| now.since(conn.ended));
        let client = self.hosts.get(host);
        client.client.hold(client.to, port);
        let Some(quiet) = &mut self.quiet else { return };
        quiet.open += 1;
        let begun = Begun {
            turn: self.queue.turn(),
            number,
            start: now,
            host,
            port,
            kind,
            counted,
            port_idle: idle.filter(|idle| *idle > Span::ZERO),
            again: None,
        };
        self.sends_syn(&begun, None);
    }

    /// The SYN of a request leaves the client; `place` is that of the request if it has one.
    fn sends_syn(&mut self, begun: &Begun, place: Option<u32>) {
        // Nothing else happens while most SYNs are on their way.
        if self.passes_time_to_node() {
            return self.syn_at_node(begun, place);
        }
        let Some(quiet) = &mut self.quiet else { return };
        let place = quiet.direct.place(place, begun);
        self.travel(Leg::ClientNode, Event::QuietSyn(place));
    }

    /// The SYN of a request reaches the node.
    pub(in crate::engine) fn quiet_syn(&mut self, place: u32) {
        let Some(quiet) = &self.quiet else { return };
        let begun = quiet.direct.begun[place as usize];
        self.syn_at_node(&begun, Some(place));
    }

    /// The same; `place` is that of the request if it has one.
    #[inline]
    fn syn_at_node(&mut self, begun: &Begun, place: Option<u32>) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        let waits = match self.passes(&mut quiet, begun, place) {
            Some(waits) => waits,
            None => self.passes_known(&mut quiet, begun, place),
        };
        if let Some(place) = place
            && !waits
        {
            quiet.direct.free.push(place);
        }
        self.quiet = Some(quiet);
    }

    /// The first SYN of a request was dropped, and it is sent again.
    pub(in crate::engine) fn quiet_resend(&mut self, place: u32) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        quiet.direct.resending -= 1;
        let begun = quiet.direct.begun[place as usize];
        let over = self.now + quiet.client_node + quiet.over_again(begun.kind);
        if over < quiet.end && self.next_control() > over {
            let turn = self.queue.turn();
            self.quiet = Some(quiet);
            return self.sends_syn(&Begun { turn, ..begun }, Some(place));
        }
        quiet.direct.free.push(place);
        let Begun { host, port, .. } = begun;
        self.gets_socket(&mut quiet, &begun);
        self.quiet = Some(quiet);
        if let Some(conn) = self.conns.get_mut(host, port) {
            conn.filed = (self.now, begun.turn);
        }
        self.on_client_timer(host, port, begun.turn);
    }

    /// Whether a request that has no place among those that are open will send its SYN again.
    pub(in crate::engine) fn quiet_waits(&self) -> bool {
        let quiet = self.quiet.as_ref();
        quiet.is_some_and(|quiet| quiet.direct.resending > 0)
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
        while due(quiet, quiet.direct.next_answer) {
            let fronts = quiet.direct.answers.iter().enumerate();
            let fronts = fronts.filter_map(|(kind, answers)| Some((answers.front()?.at, kind)));
            let Some((at, number)) = fronts.min() else {
                quiet.direct.next_answer = Instant::NEVER;
                return;
            };
            quiet.direct.next_answer = at;
            if !due(quiet, at) {
                return;
            }
            let Some(answer) = quiet.direct.answers[number].pop_front() else {
                return;
            };
            quiet.open -= 1;
            let Some(kind) = &quiet.kinds[number] else {
                continue;
            };
            let connected = Instant(at.0 - kind.healthy.answered.0) + kind.healthy.connected;
            if answer.counted {
                let connect = connected.since(answer.start);
                let what = (answer.start, answer.port);
                self.observer.answered(at, what, connect, answer.cause);
            }
            if self.observer.options().requests_max > 0 {
                let Answer { host, port, .. } = answer;
                let conn = self.conns.get_or_insert(host, port, ConnState::IDLE);
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
    pub(super) fn healthy_servers(&self) -> Vec<(Endpoint, u32)> {
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
