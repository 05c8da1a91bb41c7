//! The addresses that pods get, and when a released one comes back.
//!
//! Faithful to: host-local IPAM, which goes round its range, and cloud plug-ins that reuse a released address once a
//! cool-down has passed (30 s by default in the AWS VPC CNI); facts, kube-proxy 6.
//! Leaves out: ranges per node, warm pools, addresses requested by name.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use crate::time::{Instant, Span};

/// Which free address the next pod gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reuse {
    /// The next one of the range, going round.
    #[default]
    RoundRobin,
    /// The one released longest ago whose cool-down has passed, before any that was never used.
    Released,
}

/// A range of addresses.
#[derive(Clone, Debug)]
pub struct AddressPool {
    first: u32,
    size: u32,
    /// Offset at which the next search begins.
    cursor: u32,
    reuse: Reuse,
    cooldown: Span,
    used: BTreeSet<u32>,
    /// In the order of their release.
    cooling: VecDeque<(Instant, u32)>,
}

impl AddressPool {
    /// `size` addresses from `first` on (cut off at 255.255.255.255); a released one rests for `cooldown`.
    pub fn new(first: Ipv4Addr, size: u32, reuse: Reuse, cooldown: Span) -> Self {
        let first = first.to_bits();
        Self {
            first,
            size: size.min(u32::MAX - first),
            cursor: 0,
            reuse,
            cooldown,
            used: BTreeSet::new(),
            cooling: VecDeque::new(),
        }
    }

    /// Takes an address that belongs to somebody else out of the pool. Addresses outside of it are ignored.
    pub fn reserve(&mut self, ip: Ipv4Addr) {
        let offset = ip.to_bits().wrapping_sub(self.first);
        if offset < self.size {
            self.used.insert(offset);
        }
    }

    /// An address for a pod; `None` if all are in use or cooling.
    pub fn allocate(&mut self, now: Instant) -> Option<Ipv4Addr> {
        let ready = |released: Instant| released + self.cooldown <= now;
        let offset = match (self.reuse, self.cooling.front()) {
            (Reuse::Released, Some((at, offset))) if ready(*at) => *offset,
            _ => (0..self.size)
                .map(|step| (self.cursor + step) % self.size)
                .find(|offset| {
                    let rests = |(at, cooling): &(Instant, u32)| cooling == offset && !ready(*at);
                    !self.used.contains(offset) && !self.cooling.iter().any(rests)
                })?,
        };
        self.cooling.retain(|(_, cooling)| *cooling != offset);
        self.used.insert(offset);
        self.cursor = (offset + 1) % self.size;
        Some(Ipv4Addr::from_bits(self.first + offset))
    }

    /// Gives an address back. Addresses that are not in use are ignored.
    pub fn release(&mut self, ip: Ipv4Addr, now: Instant) {
        let offset = ip.to_bits().wrapping_sub(self.first);
        if self.used.remove(&offset) {
            self.cooling.push_back((now, offset));
        }
    }

    /// When the next cooling address becomes free.
    pub fn next_free(&self) -> Option<Instant> {
        self.cooling
            .front()
            .map(|(released, _)| *released + self.cooldown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 27, 1, 245);

    fn last(ip: Option<Ipv4Addr>) -> Option<u8> {
        ip.map(|ip| ip.octets()[3])
    }

    #[test]
    fn round_robin_takes_a_released_address_only_after_going_round() {
        let mut pool = AddressPool::new(FIRST, 4, Reuse::RoundRobin, Span::from_secs(30));
        let now = Instant::from_secs(0);
        let first = pool.allocate(now).unwrap();
        pool.release(first, now);
        let got: Vec<_> = (0..3).map(|_| last(pool.allocate(now))).collect();
        assert_eq!(got, [Some(246), Some(247), Some(248)]);
        assert_eq!(pool.allocate(Instant::from_secs(29)), None);
        assert_eq!(pool.next_free(), Some(Instant::from_secs(30)));
        assert_eq!(last(pool.allocate(Instant::from_secs(30))), Some(245));
    }

    /// F12: an address can belong to another pod 30 s after its release, long before any table has forgotten it.
    #[test]
    fn a_released_address_is_preferred_once_it_has_cooled_down() {
        let mut pool = AddressPool::new(FIRST, 100, Reuse::Released, Span::from_secs(30));
        let first = pool.allocate(Instant::ZERO).unwrap();
        pool.release(first, Instant::from_secs(10));
        assert_eq!(last(pool.allocate(Instant::from_secs(39))), Some(246));
        assert_eq!(last(pool.allocate(Instant::from_secs(40))), Some(245));
        assert_eq!(last(pool.allocate(Instant::from_secs(40))), Some(247));
    }

    #[test]
    fn an_empty_pool_and_a_foreign_address_do_no_harm() {
        let mut pool = AddressPool::new(FIRST, 0, Reuse::RoundRobin, Span::ZERO);
        assert_eq!(pool.allocate(Instant::ZERO), None);
        pool.release(Ipv4Addr::new(1, 2, 3, 4), Instant::ZERO);
        assert_eq!(pool.next_free(), None);
        let mut top = AddressPool::new(Ipv4Addr::BROADCAST, 10, Reuse::Released, Span::ZERO);
        assert_eq!(top.allocate(Instant::ZERO), None);
    }
}
