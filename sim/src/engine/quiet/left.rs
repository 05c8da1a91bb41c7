//! What connections of the shortest way left, as far as it is not written out: the pod's socket in TIME_WAIT, and sequence
//! numbers. It is a function of the moment of the SYN, of the pod, and of what both sides began with; it is written out before
//! anything else happens on the port.

use ipvs_model::segment::{Endpoint, Tuple};
use ipvs_model::tcp::foreseen::Begin;
use ipvs_model::tcp::server::Phase;
use ipvs_model::tcp::socket::Socket;
use ipvs_model::time::Instant;

use super::super::hosts::Host;
use super::super::world::{Event, World};
use super::Quiet;

/// The latest connection of a port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// When its SYN was at the node.
    pub syn: Instant,
    /// The pod that has its socket, not written out; `u32::MAX` for none.
    pub place: u32,
    /// What client and pod began with; `None` if the conntrack entry has no sequence numbers yet.
    pub begins: Option<(Begin, Begin)>,
}

/// The ports of one host, from the first of its range on.
#[derive(Debug, Default)]
struct Ports {
    first: u16,
    left: Vec<Option<Left>>,
}

/// The latest connections of all ports.
#[derive(Debug, Default)]
pub(super) struct LeftBy {
    hosts: Vec<Ports>,
}

impl LeftBy {
    /// The latest connection of a port, if it went the shortest way and is not written out.
    pub(super) fn get(&self, host: u32, port: u16) -> Option<&Left> {
        let ports = self.hosts.get(host as usize)?;
        let place = usize::from(port.checked_sub(ports.first)?);
        ports.left.get(place)?.as_ref()
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
        }
        if let Some(place) = ports.left.get_mut(usize::from(port - ports.first)) {
            *place = Some(left);
        }
    }

    fn clear(&mut self, host: u32, port: u16) {
        if let Some(ports) = self.hosts.get_mut(host as usize)
            && let Some(place) = ports
                .left
                .get_mut(usize::from(port.saturating_sub(ports.first)))
        {
            *place = None;
        }
    }
}

impl World<'_> {
    /// Gives the conntrack entry of a port's latest connection its sequence numbers.
    pub(super) fn settle_left(&mut self, quiet: &mut Quiet, host: u32, port: u16) {
        let Some(left) = quiet.left.get(host, port).copied() else {
            return;
        };
        let client = self.hosts.peek(host);
        let Some(kind) = quiet.kinds[usize::from(client.kind)].as_ref() else {
            return;
        };
        if left.begins.is_some() {
            return;
        }
        let own = client
            .client
            .begin(Instant(left.syn.0 - quiet.client_node.0), client.to, port);
        let peer = Endpoint::new(client.to.saddr, port);
        let pod = self.pods.each().nth(left.place as usize);
        let theirs = pod.and_then(|host| host.pod.as_ref());
        let theirs = theirs.map(|pod| pod.begin(left.syn + quiet.node_pod, peer));
        let Some(theirs) = theirs else { return };
        let last = self.node.ipvs.clock().jiffies(left.syn + kind.healthy.last);
        let tuple = Tuple::tcp(peer, self.key.addr);
        let isns = [own.isn, theirs.isn];
        self.node.ct.settle(&tuple, &kind.healthy.ct, isns, last);
        let left = Left {
            begins: Some((own, theirs)),
            ..left
        };
        quiet.left.set(self.hosts.peek(host), host, port, left);
    }

    /// The socket that a port's latest connection left at a pod, as of `at`; `None` if it is over, gone, or written out.
    pub(super) fn left_at_pod(
        &self,
        quiet: &Quiet,
        host: u32,
        peer: Endpoint,
        left: &Left,
        at: Instant,
    ) -> Option<Socket> {
        let kind = usize::from(self.hosts.peek(host).kind);
        let (resting, _) = quiet.kinds[kind].as_ref()?.healthy.pod.as_ref()?;
        let (own, theirs) = left.begins?;
        let pod = self.pods.each().nth(left.place as usize)?.pod.as_ref()?;
        if pod.phase() == Phase::NetnsGone {
            return None;
        }
        let age = quiet.client_node + quiet.node_pod;
        let rested = left.syn + resting.after;
        let socket = pod.resting(rested, peer, &resting.rest, (theirs, own), age);
        let tick = pod.stack().clock.jiffies(at);
        socket
            .timer(tick)
            .is_some_and(|over| over > tick)
            .then_some(socket)
    }

    /// Writes out what a port's latest connection left.
    pub(super) fn write_out(&mut self, quiet: &mut Quiet, host: u32, port: u16) {
        self.settle_left(quiet, host, port);
        let Some(left) = quiet.left.get(host, port).copied() else {
            return;
        };
        quiet.left.clear(host, port);
        let client = self.hosts.peek(host);
        let peer = Endpoint::new(client.to.saddr, port);
        let kind = usize::from(client.kind);
        if self
            .left_at_pod(quiet, host, peer, &left, self.now)
            .is_none()
        {
            return;
        }
        let Some(kind) = &quiet.kinds[kind] else {
            return;
        };
        let (Some((resting, known)), Some((own, theirs))) = (&kind.healthy.pod, left.begins) else {
            return;
        };
        let age = quiet.client_node + quiet.node_pod;
        let at = left.syn + resting.after;
        let rest = (&resting.rest, own, theirs);
        let fires = self
            .pods
            .rest_quietly(left.place, peer, at, rest, *known, age);
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
