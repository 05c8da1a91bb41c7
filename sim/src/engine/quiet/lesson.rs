//! The healthy connection, learnt by playing one packet by packet.

use ipvs_model::conntrack;
use ipvs_model::ipvs::state::State as EntryState;
use ipvs_model::segment::Endpoint;
use ipvs_model::tcp::client::ConnId;
use ipvs_model::tcp::foreseen::{Begin, Rest};
use ipvs_model::tcp::state::State;
use ipvs_model::time::{Instant, Span};

use super::super::hosts::Peer;
use super::super::trace::TraceOptions;
use super::super::world::{Event, World};
use super::{ClientEnd, Healthy, Resting};
use crate::outcome::Outcome;
use crate::scenario::{
    Arrivals, Client as ClientTable, OrKernel, Ports, Rate, Rollout, Scenario, Steady,
};

/// A SYN is sent again after less than this.
const RESENT: Span = Span::from_millis(1_200);

impl Healthy {
    /// What three small worlds agree on, whose clocks have other phases. `lost`: the first SYN does not reach the node. A connection that takes another way when its
    /// packets fall on other ticks is not known.
    pub(super) fn known(
        scenario: &Scenario,
        kind: usize,
        seed: u64,
        ways: [Span; 3],
        lost: bool,
    ) -> Option<Self> {
        let [first, second, third] =
            [0, 1, 2].map(|n| Self::learn(scenario, kind, seed.wrapping_add(n), ways, lost));
        let first = first?;
        (Some(&first) == second.as_ref() && Some(&first) == third.as_ref()).then_some(first)
    }

    /// Plays one connection of a kind of client on the packet path, with one pod and nobody else.
    fn learn(
        scenario: &Scenario,
        kind: usize,
        seed: u64,
        ways: [Span; 3],
        lost: bool,
    ) -> Option<Self> {
        let [client_node, node_pod, service] = ways;
        let round = client_node + client_node + node_pod + node_pod;
        let again = if lost { RESENT } else { Span::ZERO };
        let limit = again + service + round + round + round + round + Span::from_millis(100);
        let mut alone = scenario.clone();
        alone.duration = limit + Span::from_secs(1);
        alone.warmup = Span::ZERO;
        alone.rollout = Rollout::None(Steady { pods: 1 });
        // One connection needs no table of all ports.
        let (low, high) = scenario.client[kind].tcp().local_ports;
        let ports = Ports {
            low,
            high: high.min(low.saturating_add(1)),
        };
        let table = ClientTable {
            count: 1,
            ports: OrKernel(Some(ports)),
            start: Span::ZERO,
            stop: Some(Span::from_millis(1)),
            arrivals: Arrivals::Constant(Rate { rate: 1.0 }),
            ..scenario.client[kind].clone()
        };
        // The application's patience must outlast the connection.
        let patient = [table.timeout, table.connect_timeout];
        if patient
            .into_iter()
            .flatten()
            .any(|timeout| timeout <= limit)
        {
            return None;
        }
        alone.client = vec![table];
        let options = TraceOptions {
            no_quiet: true,
            ..TraceOptions::default()
        };
        let world = World::new(&alone, seed, &options).ok()?;
        Lesson::new(world, lost).learn(Instant::ZERO + limit, node_pod)
    }
}

/// One connection in a world of its own, and what was seen of it so far.
struct Lesson<'a> {
    world: World<'a>,
    /// The next packet at the node is lost.
    lost: bool,
    client: Option<(ConnId, Endpoint, Begin, State)>,
    pod_state: Option<State>,
    pod_begin: Option<Begin>,
    /// Packets at the node, with the entry's state and lifetime after each.
    packets: Vec<(Instant, EntryState, u32)>,
    connected: Option<Instant>,
    answered: Option<Instant>,
    client_changed: Instant,
    pod_changed: Instant,
}

impl<'a> Lesson<'a> {
    const fn new(world: World<'a>, lost: bool) -> Self {
        Self {
            world,
            lost,
            client: None,
            pod_state: None,
            pod_begin: None,
            packets: Vec::new(),
            connected: None,
            answered: None,
            client_changed: Instant::ZERO,
            pod_changed: Instant::ZERO,
        }
    }

    fn learn(mut self, limit: Instant, node_pod: Span) -> Option<Healthy> {
        while let Some((at, event)) = self.world.queue.pop(limit) {
            self.world.now = at;
            if self.lost && matches!(event, Event::AtNode(_)) {
                self.lost = false;
                continue;
            }
            self.world.handle(event);
            self.look(node_pod);
        }
        self.sum_up()
    }

    /// Notes what the last event changed.
    fn look(&mut self, node_pod: Span) {
        let world = &mut self.world;
        let now = world.now;
        if world.packets > self.packets.len() as u64
            && let Some((_, entry)) = world.node.ipvs.table().iter().next()
        {
            self.packets
                .push((now, entry.state(), entry.timeout_ticks()));
            let peer = entry.client();
            if self.client.is_none() {
                let host = world.hosts.get(0);
                let id = host.client.find(peer, world.key.addr);
                self.client = id.and_then(|id| {
                    let socket = host.client.socket(id)?;
                    Some((id, peer, Begin::of(socket), socket.state()))
                });
                let pod = &world.pods.get(0).pod;
                self.pod_begin = pod.as_ref().map(|pod| pod.begin(now + node_pod, peer));
            }
        }
        if let Some((id, peer, _, before)) = &mut self.client {
            let socket = world.hosts.get(0).client.socket(*id);
            let state = socket.map_or(State::Closed, |socket| socket.state());
            if state != *before {
                (*before, self.client_changed) = (state, now);
            }
            let pod = world.pods.get(0).pod.as_ref();
            let state = pod
                .and_then(|pod| pod.socket(*peer))
                .map(|socket| socket.state());
            if state != self.pod_state {
                (self.pod_state, self.pod_changed) = (state, now);
            }
        }
        match world.requests.get_mut(0) {
            Some(request) => self.connected = request.connected,
            None if !self.packets.is_empty() => {
                self.answered.get_or_insert(now);
            }
            None => {}
        }
    }

    /// The healthy connection, if this was one: answered, and at rest.
    fn sum_up(mut self) -> Option<Healthy> {
        let world = &mut self.world;
        let (id, peer, own, client_state) = self.client?;
        let theirs = self.pod_begin?;
        let (syn, state, _) = *self.packets.first()?;
        let (last, _, _) = *self.packets.last()?;
        let answered = self.answered?;
        let counts = world.observer.so_far();
        if counts.count(Outcome::Answered) != 1 || world.packets != self.packets.len() as u64 {
            return None;
        }
        let clock = *world.node.ipvs.clock();
        let (_, entry) = world.node.ipvs.table().iter().next()?;
        if state != EntryState::Sr || !entry.keeps_conntrack() {
            return None;
        }
        let (_, ct) = world.node.ct.iter().next()?;
        let ct = conntrack::Foreseen::of(ct, [own.isn, theirs.isn], clock.jiffies(last))?;
        let after = |at: Instant| at.since(syn);
        let client = match (client_state, world.hosts.get(0).client.socket(id)) {
            (_, None) => ClientEnd::Closes(after(self.client_changed)),
            (_, Some(socket)) => ClientEnd::Rests(Resting {
                after: after(self.client_changed),
                rest: Rest::of(socket, own, theirs)?,
            }),
        };
        let host = world.pods.get(0);
        let socket = host.pod.as_ref().and_then(|pod| pod.socket(peer)).copied();
        let pod = match (socket, host.peers.get(peer).copied()) {
            (None, None) => None,
            (Some(socket), Some(known)) => {
                let filed = Instant::NEVER;
                let rest = Rest::of(&socket, theirs, own)?;
                let after = after(self.pod_changed);
                Some((Resting { after, rest }, Peer { filed, ..known }))
            }
            _ => return None,
        };
        let to = world.hosts.get(0).to;
        let taken_over = world.hosts.get(0).client.may_take_over(to);
        let over = last.max(self.client_changed).max(self.pod_changed);
        Some(Healthy {
            steps: tail(&self.packets[1..], syn),
            packets: self.packets.len() as u64 - 1,
            last: after(last),
            ct,
            connected: after(self.connected?),
            answered: after(answered),
            client,
            taken_over,
            pod,
            over: after(over.max(answered)),
        })
    }
}

/// The packets that still matter to the entry's timer: those since its lifetime last changed, and one before. Each packet
/// arms it anew, and a timer keeps its place in its bucket only if the packet before had put it there.
fn tail(packets: &[(Instant, EntryState, u32)], syn: Instant) -> Vec<(Span, EntryState)> {
    let last = packets.last().map(|packet| packet.2);
    let others = packets.iter().rposition(|packet| Some(packet.2) != last);
    let steps = packets[others.unwrap_or(0)..].iter();
    steps
        .map(|(at, state, _)| (at.since(syn), *state))
        .collect()
}
