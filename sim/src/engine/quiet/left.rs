//! What connections of the shortest way left, as far as it is not written out: the entries in the node's tables, the pod's
//! socket in TIME_WAIT, and sequence numbers. It is a function of the moment of the SYN, of the pod, and of what both sides began
//! with; it is written out before anything else happens on the port, and the entries before anybody looks at the tables. Most
//! of it is forgotten before that. The collector of conntrack, which visits every entry, is told of those that it cannot see.

use std::collections::VecDeque;

use ipvs_model::ipvs::service::DestId;
use ipvs_model::node::{Forgetting, Node};
use ipvs_model::segment::{Endpoint, Tuple};
use ipvs_model::tcp::foreseen::{Begin, Past};
use ipvs_model::tcp::server::Phase;
use ipvs_model::tcp::socket::Socket;
use ipvs_model::time::{Instant, Jiffies, Span};

use super::super::hosts::{Host, Hosts};
use super::super::world::{Event, World};
use super::direct::Begun;
use super::{MARGIN, Quiet};

/// The latest connection of a port, or the latest one at a pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// When its SYN was at the node.
    pub syn: Instant,
    /// The numbers of client and pod: [`Client::number_at`](ipvs_model::tcp::client::Client::number_at).
    pub numbers: [u32; 2],
    /// The pod that it went to.
    pub place: u32,
    /// The real server, if the node's tables would have entries of the connection that are not written out.
    pub owed: Option<DestId>,
    /// Whether it was the request's second SYN.
    pub again: bool,
    /// Whether its conntrack entry, if it is written out, has its sequence numbers.
    pub settled: bool,
}

/// A connection whose entries are not written out, unless its port has been used again since.
#[derive(Clone, Copy, Debug)]
struct Owed {
    syn: Instant,
    host: u32,
    port: u16,
}

/// The ports of one host, from the first of its range on.
#[derive(Debug, Default)]
struct Ports {
    first: u16,
    left: Vec<Option<Left>>,
    /// The deadlines of the conntrack entries that are owed, as [`LeftBy::short`] tells them; 0 where none is. The collector visits
    /// them all, in an order that is not theirs.
    deadlines: Vec<u32>,
    /// Connections before the latest one that rest at other pods. Empty until there is one.
    older: Vec<Vec<Left>>,
}

impl Ports {
    /// The latest connection of a port, and the deadline that it owes.
    fn latest(&mut self, port: u16) -> Option<(&mut Option<Left>, &mut u32)> {
        let place = usize::from(port.checked_sub(self.first)?);
        Some((self.left.get_mut(place)?, self.deadlines.get_mut(place)?))
    }
}

/// The latest connections of all ports.
#[derive(Debug, Default)]
pub(super) struct LeftBy {
    hosts: Vec<Ports>,
    /// In the order of their SYNs.
    owed: VecDeque<Owed>,
    /// So long after a SYN the node's tables remember nothing of its connection.
    forgotten: Span,
    /// For so long both know it.
    kept: Span,
    /// When those that nobody remembers are taken out again.
    tidy: Instant,
    /// Where the chains of each host's ports begin in the conntrack table, in order. Empty if entries are written out at once.
    places: Vec<(usize, u32)>,
    /// A tick before all others.
    origin: Jiffies,
}

/// Where the chains of each host's ports begin in the conntrack table, in order; empty if entries must be written out at
/// once, because they might fill the table, or because the collector does not find every port by its place.
fn places(node: &Node, hosts: &Hosts) -> Vec<(usize, u32)> {
    let mut ports = 0;
    let mut places = Vec::new();
    for (host, (address, (low, high))) in hosts.port_ranges().enumerate() {
        ports += u64::from(high.saturating_sub(low)) + 1;
        match node
            .ct
            .place_of(ipvs_model::segment::Proto::Tcp, Endpoint::new(address, low))
        {
            Some(place) => places.push((place, host as u32)),
            None => return Vec::new(),
        }
    }
    places.sort_unstable();
    // A port may have two entries for a moment: one that it left and one that it makes.
    let most = 2 * ports + u64::from(MARGIN);
    if most >= u64::from(node.config().sysctls.ct.max) {
        places.clear();
    }
    places
}

impl LeftBy {
    /// Nothing yet; both of the node's tables know a connection for the time `kept` after its SYN, and none after `forgotten`.
    pub(super) fn new(node: &Node, hosts: &Hosts, kept: Span, forgotten: Span) -> Self {
        Self {
            forgotten,
            kept,
            origin: Jiffies(node.ipvs.clock().jiffies(Instant::ZERO).0 - 1),
            places: places(node, hosts),
            ..Self::default()
        }
    }

    /// Whether entries may wait to be written out.
    pub(super) fn may_wait(&self) -> bool {
        !self.places.is_empty()
    }

    /// The node's tables would have entries of a request's connection, whose SYN is there now, to the real server, that of
    /// conntrack until a deadline: they wait to be written out.
    pub(super) fn owe(&mut self, now: Instant, of: &Begun, dest: DestId, deadline: Jiffies) {
        let deadline = self.short(deadline);
        if let Some((Some(left), owed)) = self.latest(of.host, of.port) {
            left.owed = Some(dest);
            *owed = deadline;
        }
        if !self.may_wait() {
            return;
        }
        if now >= self.tidy {
            while let Some(front) = self.owed.front()
                && front.syn + self.forgotten < now
            {
                self.owed.pop_front();
            }
            self.tidy = now + Span::from_secs(1);
        }
        self.owed.push_back(Owed {
            syn: now,
            host: of.host,
            port: of.port,
        });
    }

    /// A deadline in half as many bytes; the last one that there is for all after it.
    fn short(&self, deadline: Jiffies) -> u32 {
        u32::try_from(deadline.0.saturating_sub(self.origin.0)).unwrap_or(u32::MAX)
    }

    /// Whether the node's tables remember nothing of a connection by now, however it went.
    pub(super) fn is_over(&self, left: &Left, now: Instant) -> bool {
        left.syn + self.forgotten < now
    }

    /// Whether both of the node's tables surely know a connection by now, however it went.
    pub(super) fn is_kept(&self, left: &Left, now: Instant) -> bool {
        left.syn + self.kept > now
    }

    /// The entries of a port's latest connection are written out, or nobody remembers them.
    pub(super) fn paid(&mut self, host: u32, port: u16) {
        if let Some((Some(left), deadline)) = self.latest(host, port) {
            left.owed = None;
            *deadline = 0;
        }
    }

    fn latest(&mut self, host: u32, port: u16) -> Option<(&mut Option<Left>, &mut u32)> {
        self.hosts.get_mut(host as usize)?.latest(port)
    }

    fn get_mut(&mut self, host: u32, port: u16) -> Option<&mut Left> {
        self.latest(host, port)?.0.as_mut()
    }

    /// The latest connection of a port, if it went the shortest way and is not written out.
    pub(super) fn get(&self, host: u32, port: u16) -> Option<&Left> {
        let ports = self.hosts.get(host as usize)?;
        let place = usize::from(port.checked_sub(ports.first)?);
        ports.left.get(place)?.as_ref()
    }

    /// What a port's latest connection at a pod left there that is not in the pod's table.
    pub(super) fn at_pod(&self, host: u32, port: u16, place: u32) -> Option<&Left> {
        let ports = self.hosts.get(host as usize)?;
        let at = usize::from(port.checked_sub(ports.first)?);
        let latest = ports.left.get(at)?.as_ref();
        match latest {
            Some(latest) if latest.place == place => Some(latest),
            _ => {
                let mut older = ports.older.get(at)?.iter();
                older.find(|left| left.place == place)
            }
        }
    }

    /// The latest connection of a port becomes an older one, for the next one goes to the pod at a place; what it is to be
    /// remembered of at all had its SYN at `since` or later.
    pub(super) fn make_older(&mut self, host: u32, port: u16, place: u32, since: Instant) {
        let Some(ports) = self.hosts.get_mut(host as usize) else {
            return;
        };
        let at = usize::from(port.saturating_sub(ports.first));
        let Some(Some(latest)) = ports.left.get(at) else {
            return;
        };
        let stays = latest.place != place && latest.syn >= since;
        if ports.older.is_empty() {
            if !stays {
                return;
            }
            ports.older = vec![Vec::new(); ports.left.len()];
        }
        let older = &mut ports.older[at];
        let mut one = 0;
        while let Some(left) = older.get(one) {
            if left.place == place || left.syn < since {
                older.swap_remove(one);
            } else {
                one += 1;
            }
        }
        if stays {
            older.push(*latest);
        }
    }

    fn take_older(&mut self, host: u32, port: u16) -> Vec<Left> {
        let Some(ports) = self.hosts.get_mut(host as usize) else {
            return Vec::new();
        };
        let at = usize::from(port.saturating_sub(ports.first));
        ports
            .older
            .get_mut(at)
            .map(core::mem::take)
            .unwrap_or_default()
    }

    pub(super) fn set(&mut self, host: &Host, number: u32, port: u16, left: Left) {
        let number = number as usize;
        if self.hosts.len() <= number {
            self.hosts.resize_with(number + 1, Ports::default);
        }
        let ports = &mut self.hosts[number];
        if ports.left.is_empty() {
            let (low, high) = host.client.stack().sysctls.local_ports;
            ports.first = low;
            ports.left = vec![None; usize::from(high.saturating_sub(low)) + 1];
            ports.deadlines = vec![0; ports.left.len()];
        }
        if let Some(latest) = ports.latest(port) {
            (*latest.0, *latest.1) = (Some(left), 0);
        }
    }

    fn clear(&mut self, host: u32, port: u16) {
        if let Some(latest) = self.latest(host, port) {
            (*latest.0, *latest.1) = (None, 0);
        }
    }
}

impl Quiet {
    /// When the node's tables forget connections of a kind.
    pub(super) fn forgetting(&self, node: &Node, kind: u16, again: bool) -> Option<Forgetting<'_>> {
        let healthy = self.healthy_of(kind, again)?;
        Some(node.forgetting(&healthy.foreseen()))
    }
}

impl World<'_> {
    /// What client and pod began a connection with.
    pub(super) fn begins(&self, host: u32, port: u16, left: &Left) -> Option<(Begin, Begin)> {
        let client = self.hosts.peek(host);
        let own = client.client.begin_with(left.numbers[0], client.to, port);
        let peer = Endpoint::new(client.to.saddr, port);
        let pod = self.pods.each().nth(left.place as usize)?.pod.as_ref()?;
        Some((own, pod.begin_with(left.numbers[1], peer)))
    }

    /// Gives the conntrack entry of a port's latest connection its sequence numbers.
    pub(super) fn settle_left(&mut self, quiet: &mut Quiet, host: u32, port: u16) {
        let Some(left) = quiet.left.get(host, port).copied() else {
            return;
        };
        let client = self.hosts.peek(host);
        let Some(healthy) = quiet.healthy_of(client.kind, left.again) else {
            return;
        };
        if left.settled {
            return;
        }
        let Some((own, theirs)) = self.begins(host, port, &left) else {
            return;
        };
        let last = self.node.ipvs.clock().jiffies(left.syn + healthy.last);
        let peer = Endpoint::new(client.to.saddr, port);
        let tuple = Tuple::tcp(peer, self.key.addr);
        let isns = [own.isn, theirs.isn];
        self.node.ct.settle(&tuple, &healthy.ct, isns, last);
        if let Some(left) = quiet.left.get_mut(host, port) {
            left.settled = true;
        }
    }

    /// The socket that a connection of a port left at a pod, as of `at`; `None` if it is over or gone.
    pub(super) fn left_at_pod(
        &self,
        quiet: &Quiet,
        (host, port): (u32, u16),
        left: &Left,
        at: Instant,
    ) -> Option<Socket> {
        let client = self.hosts.peek(host);
        let kind = quiet.kinds[usize::from(client.kind)].as_ref()?;
        let (resting, _) = kind.healthy.pod.as_ref()?;
        if left.syn + quiet.forgotten < at {
            return None;
        }
        let pod = self.pods.each().nth(left.place as usize)?.pod.as_ref()?;
        if pod.phase() == Phase::NetnsGone {
            return None;
        }
        let (own, theirs) = self.begins(host, port, left)?;
        let age = quiet.client_node + quiet.node_pod;
        let rested = left.syn + resting.after;
        let peer = Endpoint::new(client.to.saddr, port);
        let socket = pod.resting(rested, peer, &resting.rest, (theirs, own), age);
        let tick = pod.stack().clock.jiffies(at);
        socket
            .timer(tick)
            .is_some_and(|over| over > tick)
            .then_some(socket)
    }

    /// What the SYN of a request meets at a pod of the port's earlier use, if that is not in the pod's table.
    pub(super) fn past_at_pod(
        &self,
        quiet: &Quiet,
        (host, port): (u32, u16),
        place: u32,
        (start, sent): (Instant, Instant),
    ) -> Option<Past> {
        let client = self.hosts.peek(host);
        let kind = quiet.kinds[usize::from(client.kind)].as_ref()?;
        let pod = self.pods.each().nth(place as usize)?.pod.as_ref()?;
        let (Some((resting, _)), Some(left)) =
            (&kind.healthy.pod, quiet.left.at_pod(host, port, place))
        else {
            return Some(Past::Over);
        };
        let at = self.now + quiet.node_pod;
        if left.syn + quiet.forgotten < at {
            return Some(Past::Over);
        }
        let client = &client.client;
        let syn = client.numbered_syn(sent, client.number_at(start));
        let rest = (left.syn + resting.after, &resting.rest);
        let [own, theirs] = left.numbers;
        let age = quiet.client_node + quiet.node_pod;
        Some(pod.past(at, &syn, rest, (theirs, own), age))
    }

    /// Writes out the entries of a port's latest connection in the node's tables.
    pub(super) fn pay(&mut self, quiet: &mut Quiet, host: u32, port: u16) {
        let Some(left) = quiet.left.get(host, port).copied() else {
            return;
        };
        let Some(dest) = left.owed else { return };
        quiet.left.paid(host, port);
        let client = self.hosts.peek(host);
        let Some(healthy) = quiet.healthy_of(client.kind, left.again) else {
            return;
        };
        let tuple = Tuple::tcp(Endpoint::new(client.to.saddr, port), self.key.addr);
        let foreseen = healthy.foreseen();
        self.node
            .enter_foreseen(self.now, left.syn, &tuple, dest, &foreseen);
        if let Some(left) = quiet.left.get_mut(host, port) {
            left.settled = false;
        }
    }

    /// The same for all ports, before anybody looks at the tables or changes what they lead to.
    pub(in crate::engine) fn pay_all(&mut self) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        while let Some(Owed { syn, host, port }) = quiet.left.owed.pop_front() {
            if quiet
                .left
                .get(host, port)
                .is_some_and(|left| left.syn == syn)
            {
                self.pay(&mut quiet, host, port);
            }
        }
        self.quiet = Some(quiet);
    }

    /// A packet comes to the node: if the collector of conntrack is due, it runs now, and is told of entries that are not
    /// written out.
    pub(in crate::engine) fn collect_if_due(&mut self) {
        if let Some(mut quiet) = self.quiet.take() {
            self.collect_beside(&mut quiet);
            self.quiet = Some(quiet);
        }
    }

    /// The same for a packet of the quiet path.
    pub(super) fn collect_beside(&mut self, quiet: &mut Quiet) {
        if quiet.left.owed.is_empty() || quiet.scan_is_after(&self.node, self.now) {
            return;
        }
        let tick = self.node.ipvs.clock().jiffies(self.now);
        // No connection is remembered that began before this.
        let oldest = Instant(self.now.0.saturating_sub(quiet.left.forgotten.0 + 1));
        let (hosts, left) = (&self.hosts, &quiet.left);
        let kinds = (0..quiet.kinds.len()).map(|kind| {
            let both = [false, true].map(|again| {
                let forgetting = quiet.forgetting(&self.node, kind as u16, again)?;
                let since = match forgetting.of(oldest).ipvs > tick {
                    true => oldest,
                    false => forgetting.known_since(tick, oldest, self.now),
                };
                Some((since, forgetting))
            });
            // The deadlines before which no connection is remembered, and after which each is.
            let first = both.iter().flatten();
            let first = first.map(|(since, forgetting)| left.short(forgetting.ct_deadline(*since)));
            let bounds = first.fold((u32::MAX, 0), |(low, high), at| (low.min(at), high.max(at)));
            (both, bounds)
        });
        let kinds = kinds.collect::<Vec<_>>();
        let (mut known, mut first, mut next) = (None, 0, 0);
        self.node.collect_beside(self.now, &mut |place| {
            if place < first || place >= next {
                let at = left.places.partition_point(|(start, _)| *start <= place);
                let (start, host) = left.places.get(at.checked_sub(1)?)?;
                (first, next) = (*start, left.places.get(at).map_or(usize::MAX, |to| to.0));
                let kind = usize::from(hosts.peek(*host).kind);
                known = left.hosts.get(*host as usize).zip(kinds.get(kind));
            }
            let (ports, (forgetting, (low, high))) = known?;
            let deadline = *ports.deadlines.get(place - first)?;
            if deadline < *low {
                return None;
            }
            if deadline > *high && deadline < u32::MAX {
                return Some(left.origin + u64::from(deadline));
            }
            // In the tick of the first one that is remembered its moment tells.
            let left = ports.left.get(place - first)?.as_ref()?;
            left.owed?;
            let (since, forgetting) = forgetting[usize::from(left.again)].as_ref()?;
            (left.syn >= *since).then(|| forgetting.ct_deadline(left.syn))
        });
    }

    /// Writes out what a port's connections left.
    pub(super) fn write_out(&mut self, quiet: &mut Quiet, host: u32, port: u16) {
        self.pay(quiet, host, port);
        self.settle_left(quiet, host, port);
        let Some(latest) = quiet.left.get(host, port).copied() else {
            return;
        };
        quiet.left.clear(host, port);
        for older in quiet.left.take_older(host, port) {
            self.write_socket(quiet, (host, port), &older);
        }
        self.write_socket(quiet, (host, port), &latest);
    }

    /// Writes out the socket that a connection left at its pod.
    fn write_socket(&mut self, quiet: &Quiet, (host, port): (u32, u16), left: &Left) {
        let Some(socket) = self.left_at_pod(quiet, (host, port), left, self.now) else {
            return;
        };
        let client = self.hosts.peek(host);
        let peer = Endpoint::new(client.to.saddr, port);
        let kind = quiet.kinds[usize::from(client.kind)].as_ref();
        let Some((resting, known)) = kind.and_then(|kind| kind.healthy.pod.as_ref()) else {
            return;
        };
        let at = left.syn + resting.after;
        let fires = self.pods.enter_rest(left.place, peer, at, socket, *known);
        if let Some(fires) = fires {
            self.queue.at(fires, Event::PodTimer(left.place, peer));
        }
    }

    /// The same, before a connection goes another way.
    pub(in crate::engine) fn write_out_port(&mut self, host: u32, port: u16) {
        let Some(mut quiet) = self.quiet.take() else {
            return;
        };
        if quiet.left.get(host, port).is_some() {
            self.write_out(&mut quiet, host, port);
        }
        self.quiet = Some(quiet);
    }
}
