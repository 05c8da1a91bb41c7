//! The addresses of pods that are gone, and what answers for them.

use ipvs_model::segment::{Segment, Tuple};
use ipvs_model::tcp::deadend::{Answer, DeadEnd as Model, Neighbour};
use ipvs_model::time::{Clock, Instant};
use rand::rngs::ChaCha8Rng;
use std::net::Ipv4Addr;

use super::streams::{Purpose, Streams};
use crate::scenario::{DeadEnd, NewOwner, Scenario};

#[derive(Debug)]
struct Address {
    ip: Ipv4Addr,
    since: Instant,
    filed: Instant,
    model: Model,
}

/// All addresses that are gone.
#[derive(Debug)]
pub struct DeadEnds {
    kind: DeadEnd,
    clock: Clock,
    rng: ChaCha8Rng,
    all: Vec<Address>,
}

impl DeadEnds {
    /// None yet; `clock` is the node's, which asks for neighbours.
    pub fn new(scenario: &Scenario, clock: Clock, streams: Streams) -> Self {
        Self {
            kind: scenario.server.dead_end,
            clock,
            rng: streams.stream(Purpose::Node, 1),
            all: Vec::new(),
        }
    }

    /// An address goes.
    pub fn bury(&mut self, ip: Ipv4Addr, now: Instant) {
        let model = match self.kind {
            // The node's own route answers for these, before anything is sent: `Node::set_unreachable`.
            DeadEnd::Blackhole | DeadEnd::Unreachable | DeadEnd::Reassigned(_) => Model::Blackhole,
            DeadEnd::ArpFailure => {
                // The neighbour was confirmed by the pod's last packets.
                let reachable = Neighbour::random_reachable(&self.clock, &mut self.rng);
                Model::ArpFailure(Neighbour::reachable(&self.clock, now, reachable))
            }
            DeadEnd::Reset => Model::Reset,
        };
        self.revive(ip);
        self.all.push(Address {
            ip,
            since: now,
            filed: Instant::NEVER,
            model,
        });
    }

    /// An address has an owner again.
    pub fn revive(&mut self, ip: Ipv4Addr) {
        self.all.retain(|address| address.ip != ip);
    }

    /// Where an address stands, if it is gone.
    pub fn place(&self, ip: Ipv4Addr) -> Option<u32> {
        self.all
            .iter()
            .position(|address| address.ip == ip)
            .map(|at| at as u32)
    }

    /// A packet for the address at a place.
    pub fn on_segment(&mut self, place: u32, now: Instant, segment: &Segment) -> Answer {
        let address = &mut self.all[place as usize];
        if let DeadEnd::Reassigned(new) = self.kind
            && now.since(address.since) >= new.after
        {
            let listening = new.port == NewOwner::Open;
            return Model::Reassigned { listening }.on_segment(now, &self.clock, segment);
        }
        address.model.on_segment(now, &self.clock, segment)
    }

    /// The moment at which the address at a place has something to do, if no event waits for it yet.
    pub fn file(&mut self, place: u32) -> Option<Instant> {
        let address = &mut self.all[place as usize];
        let at = self.clock.instant(address.model.timer()?);
        if at >= address.filed {
            return None;
        }
        address.filed = at;
        Some(at)
    }

    /// The timer of the address at a place; the packets for which the node now sends ICMP host unreachable.
    pub fn on_timer(&mut self, place: u32, now: Instant) -> Vec<Tuple> {
        let Some(address) = self.all.get_mut(place as usize) else {
            return Vec::new();
        };
        address.filed = Instant::NEVER;
        address.model.on_timer(now, &self.clock)
    }
}
