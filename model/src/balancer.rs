//! A load balancer in front of the node: which source address and port the node sees.
//!
//! Faithful to: what every layer-4 balancer with full NAT does: each connection gets an address and a port of the
//! balancer's own, no two at a time the same, and answers go back through it. So all clients behind it share its ports, and a
//! port comes round as fast as they all together open connections.
//! Leaves out: what differs from product to product and is not published: the order in which ports are taken (the
//! caller says), how long a closed connection holds its port (the caller says), health checks, idle timeouts, balancing
//! over several nodes.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use hashbrown::{HashMap, HashSet};
use rand::{Rng, RngExt};
use rustc_hash::FxBuildHasher;

use crate::segment::{Endpoint, Flags, Segment, Tuple};
use crate::time::{Instant, Span};

/// In which order a balancer takes its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortOrder {
    /// Round and round.
    Sequential,
    /// Any that is free.
    Random,
}

/// The addresses and ports that connections get.
#[derive(Clone, Copy, Debug)]
pub struct SourcePool {
    /// The first address.
    pub first: Ipv4Addr,
    /// How many addresses follow one another, at least 1.
    pub count: u32,
    /// First and last port.
    pub ports: (u16, u16),
    /// In which order they are taken; sequentially port by port, each on all addresses.
    pub order: PortOrder,
    /// How long a closed connection holds its port.
    pub hold: Span,
}

impl SourcePool {
    const fn size(&self) -> u64 {
        self.count as u64 * (self.ports.1 as u64 - self.ports.0 as u64 + 1)
    }

    fn at(&self, place: u64) -> Endpoint {
        let count = u64::from(self.count);
        let ip = Ipv4Addr::from_bits(self.first.to_bits().wrapping_add((place % count) as u32));
        Endpoint::new(ip, self.ports.0 + (place / count) as u16)
    }
}

/// A connection through the balancer.
#[derive(Clone, Copy, Debug)]
struct Flow {
    source: Endpoint,
    /// A FIN of the client, of the server.
    fins: [bool; 2],
    closed: bool,
}

/// The balancer.
#[derive(Clone, Debug)]
pub struct LoadBalancer {
    virt: Endpoint,
    node: Endpoint,
    pool: Option<SourcePool>,
    flows: HashMap<Tuple, Flow, FxBuildHasher>,
    /// From the tuple of the node's answers to that of the client's packets.
    back: HashMap<Tuple, Tuple, FxBuildHasher>,
    busy: HashSet<Endpoint, FxBuildHasher>,
    /// Closed connections in the order in which they free their ports.
    closing: VecDeque<(Instant, Endpoint)>,
    next: u64,
}

impl LoadBalancer {
    /// A balancer at `virt` in front of the service's port on the node. Without a pool the client's address is kept.
    pub fn new(virt: Endpoint, node: Endpoint, pool: Option<SourcePool>) -> Self {
        Self {
            virt,
            node,
            pool,
            flows: HashMap::default(),
            back: HashMap::default(),
            busy: HashSet::default(),
            closing: VecDeque::new(),
            next: 0,
        }
    }

    /// The address that clients call.
    pub const fn address(&self) -> Endpoint {
        self.virt
    }

    /// A client's packet as the node gets it; `None` if no port is free for it, or it is not the balancer's.
    pub fn inward(
        &mut self,
        now: Instant,
        segment: &Segment,
        rng: &mut impl Rng,
    ) -> Option<Segment> {
        if segment.tuple.dst != self.virt {
            return None;
        }
        self.free(now);
        let mut out = *segment;
        out.tuple.dst = self.node;
        let Some(pool) = self.pool else {
            return Some(out);
        };
        let syn = segment.flags.is_plain_syn();
        let known = self
            .flows
            .get(&segment.tuple)
            .filter(|flow| !(syn && flow.closed));
        let source = match known {
            Some(flow) => flow.source,
            None => self.open(&pool, segment.tuple, rng)?,
        };
        out.tuple.src = source;
        self.note(now, &segment.tuple, segment.flags, 0);
        Some(out)
    }

    /// An answer of the node as the client gets it; `None` if it is not the balancer's.
    pub fn outward(&mut self, now: Instant, segment: &Segment) -> Option<Segment> {
        if segment.tuple.src != self.node {
            return None;
        }
        let mut out = *segment;
        out.tuple.src = self.virt;
        if self.pool.is_none() {
            return Some(out);
        }
        let client = *self.back.get(&segment.tuple)?;
        out.tuple.dst = client.src;
        self.note(now, &client, segment.flags, 1);
        Some(out)
    }

    /// The client's tuple of one that the node knows, if it came through the balancer.
    pub fn client_of(&self, at_node: Tuple) -> Option<Tuple> {
        if at_node.dst != self.node {
            return None;
        }
        match self.pool {
            None => Some(Tuple {
                dst: self.virt,
                ..at_node
            }),
            Some(_) => self.back.get(&at_node.reversed()).copied(),
        }
    }

    fn open(&mut self, pool: &SourcePool, client: Tuple, rng: &mut impl Rng) -> Option<Endpoint> {
        let size = pool.size();
        if self.busy.len() as u64 >= size {
            return None;
        }
        let mut place = match pool.order {
            PortOrder::Sequential => self.next,
            PortOrder::Random => rng.random_range(0..size),
        };
        while self.busy.contains(&pool.at(place)) {
            place = (place + 1) % size;
        }
        self.next = (place + 1) % size;
        let source = pool.at(place);
        self.busy.insert(source);
        let flow = Flow {
            source,
            fins: [false; 2],
            closed: false,
        };
        self.flows.insert(client, flow);
        let answer = Tuple {
            proto: client.proto,
            src: self.node,
            dst: source,
        };
        self.back.insert(answer, client);
        Some(source)
    }

    /// Closes a connection after the FINs of both sides, or a RST of either.
    fn note(&mut self, now: Instant, client: &Tuple, flags: Flags, side: usize) {
        let Some((flow, pool)) = self.flows.get_mut(client).zip(self.pool) else {
            return;
        };
        flow.fins[side] |= flags.has(Flags::FIN);
        let over = flags.has(Flags::RST) || flow.fins == [true; 2];
        if over && !flow.closed {
            flow.closed = true;
            self.closing.push_back((now + pool.hold, flow.source));
        }
    }

    fn free(&mut self, now: Instant) {
        while let Some((at, source)) = self.closing.front()
            && *at <= now
        {
            self.busy.remove(source);
            self.closing.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    fn at(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    fn balancer(ports: (u16, u16), order: PortOrder) -> LoadBalancer {
        let pool = SourcePool {
            first: Ipv4Addr::new(100, 97, 0, 1),
            count: 2,
            ports,
            order,
            hold: Span::from_secs(10),
        };
        LoadBalancer::new(at("10.0.0.1:80"), at("10.20.0.1:31000"), Some(pool))
    }

    fn from(client: &str, flags: Flags) -> Segment {
        Segment::new(Tuple::tcp(at(client), at("10.0.0.1:80")), flags)
    }

    /// Two clients with the same port get two sources, and their answers find back.
    #[test]
    fn clients_share_the_pool_and_answers_find_back() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut lb = balancer((1024, 2047), PortOrder::Sequential);
        let now = Instant::ZERO;
        for (client, source) in [
            ("10.1.0.1:40000", "100.97.0.1:1024"),
            ("10.1.0.2:40000", "100.97.0.2:1024"),
            ("10.1.0.3:40000", "100.97.0.1:1025"),
        ] {
            let out = lb.inward(now, &from(client, Flags::SYN), &mut rng).unwrap();
            assert_eq!(out.tuple, Tuple::tcp(at(source), at("10.20.0.1:31000")));
            let again = lb.inward(now, &from(client, Flags::ACK), &mut rng).unwrap();
            assert_eq!(again.tuple, out.tuple);
            let answer = Segment::new(out.tuple.reversed(), Flags::ACK);
            let back = lb.outward(now, &answer).unwrap();
            assert_eq!(back.tuple, from(client, Flags::ACK).tuple.reversed());
            assert_eq!(
                lb.client_of(out.tuple),
                Some(from(client, Flags::ACK).tuple)
            );
        }
    }

    /// A closed connection's port is free after the hold, and not before; without a free port the SYN is lost.
    #[test]
    fn a_port_is_held_and_then_taken_again() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for order in [PortOrder::Sequential, PortOrder::Random] {
            let mut lb = balancer((1024, 1024), order);
            let mut syn = |lb: &mut LoadBalancer, client: &str, secs| {
                let now = Instant::from_secs(secs);
                lb.inward(now, &from(client, Flags::SYN), &mut rng)
                    .map(|out| out.tuple.src)
            };
            let first = syn(&mut lb, "10.1.0.1:1", 0).unwrap();
            let second = syn(&mut lb, "10.1.0.1:2", 0).unwrap();
            assert_ne!(first, second);
            assert_eq!(syn(&mut lb, "10.1.0.1:3", 0), None);
            let reset = Segment::new(Tuple::tcp(at("10.20.0.1:31000"), first), Flags::RST);
            assert!(lb.outward(Instant::from_secs(1), &reset).is_some());
            assert_eq!(syn(&mut lb, "10.1.0.1:3", 10), None);
            assert_eq!(syn(&mut lb, "10.1.0.1:3", 11), Some(first));
        }
    }

    #[test]
    fn a_kept_client_is_seen_as_it_is() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut lb = LoadBalancer::new(at("10.0.0.1:80"), at("10.20.0.1:31000"), None);
        let syn = from("10.1.0.1:40000", Flags::SYN);
        let out = lb.inward(Instant::ZERO, &syn, &mut rng).unwrap();
        assert_eq!(
            out.tuple,
            Tuple::tcp(at("10.1.0.1:40000"), at("10.20.0.1:31000"))
        );
        let answer = Segment::new(out.tuple.reversed(), Flags::ACK);
        assert_eq!(
            lb.outward(Instant::ZERO, &answer).unwrap().tuple,
            syn.tuple.reversed()
        );
    }
}
