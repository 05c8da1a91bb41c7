//! From a port or an endpoint to a slot: arrays for what is known beforehand, a hash for the rest.
//!
//! Records stand in slots that are used again, the last freed first, so that few of them are warm at a time; an
//! index holds slots only. The kernel's own hash is not observable: only chains per client endpoint are, because
//! lookups in both directions hash the client's address and port (`ip_vs_conn_hashkey`).

use core::net::Ipv4Addr;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::segment::{Endpoint, Proto};

/// No slot.
pub const NONE: u32 = u32::MAX;

/// The array of one address's ports, as a stretch of all heads.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    /// Where its heads begin.
    start: usize,
    first_port: u16,
    /// How many ports; 0 for an address without an array.
    ports: u32,
}

/// Addresses that follow each other, with the arrays of their ports.
#[derive(Clone, Debug)]
struct Block {
    proto: Proto,
    first: u32,
    ranges: Vec<Range>,
}

/// Addresses that are further apart than this stand in different blocks.
const GAP_MAX: u32 = 256;
/// So many blocks are looked at before the hash; addresses beyond have no array.
const BLOCKS_MAX: usize = 4;

/// Heads of chains for the ports of some addresses, in arrays. An empty chain has the head [`NONE`].
#[derive(Clone, Debug, Default)]
pub struct PortArrays {
    blocks: Vec<Block>,
    heads: Vec<u32>,
}

impl PortArrays {
    /// Reserves an array for one address's ports, both ends included.
    ///
    /// Nothing happens if the address has an array, or lies far from those that have one and there are too many
    /// already.
    pub fn reserve(&mut self, proto: Proto, ip: Ipv4Addr, ports: (u16, u16)) {
        let ip = ip.to_bits();
        let near = |block: &Block| {
            let last = block.first + block.ranges.len() as u32 - 1;
            block.proto == proto
                && ip >= block.first.saturating_sub(GAP_MAX)
                && ip <= last.saturating_add(GAP_MAX)
        };
        let at = match self.blocks.iter().position(near) {
            Some(at) => at,
            None if self.blocks.len() == BLOCKS_MAX => return,
            None => {
                self.blocks.push(Block {
                    proto,
                    first: ip,
                    ranges: vec![Range::default()],
                });
                self.blocks.len() - 1
            }
        };
        let block = &mut self.blocks[at];
        if ip < block.first {
            let before = (block.first - ip) as usize;
            block
                .ranges
                .splice(0..0, core::iter::repeat_n(Range::default(), before));
            block.first = ip;
        }
        let place = (ip - block.first) as usize;
        if block.ranges.len() <= place {
            block.ranges.resize(place + 1, Range::default());
        }
        if block.ranges[place].ports > 0 {
            return;
        }
        let count = u32::from(ports.1.saturating_sub(ports.0)) + 1;
        block.ranges[place] = Range {
            start: self.heads.len(),
            first_port: ports.0,
            ports: count,
        };
        self.heads.resize(self.heads.len() + count as usize, NONE);
    }

    /// How many heads there are, in use or not.
    #[inline]
    pub fn places(&self) -> usize {
        self.heads.len()
    }

    /// Where the head of an endpoint's chain stands; `None` for one without an array.
    #[inline]
    pub fn at(&self, proto: Proto, client: Endpoint) -> Option<usize> {
        let ip = client.ip.to_bits();
        for block in &self.blocks {
            let place = ip.wrapping_sub(block.first) as usize;
            if let Some(range) = block.ranges.get(place)
                && block.proto == proto
            {
                let offset = u32::from(client.port).wrapping_sub(u32::from(range.first_port));
                return (offset < range.ports).then_some(range.start + offset as usize);
            }
        }
        None
    }

    /// The head at a place that [`PortArrays::at`] told.
    #[inline]
    pub fn head(&self, at: usize) -> u32 {
        self.heads[at]
    }

    /// Sets the head at a place that [`PortArrays::at`] told; [`NONE`] empties the chain.
    #[inline]
    pub fn set_head(&mut self, at: usize, head: u32) {
        self.heads[at] = head;
    }
}

/// Heads of chains by client endpoint. An absent endpoint has the head [`NONE`].
#[derive(Clone, Debug, Default)]
pub struct EndpointIndex {
    arrays: PortArrays,
    sparse: HashMap<u64, u32, FxBuildHasher>,
}

impl EndpointIndex {
    /// Reserves an array for one client's ports, both ends included. Later look-ups of them need no hash.
    ///
    /// Nothing happens if the address has an array, or lies far from those that have one; an endpoint that is in
    /// the index already must not come under an array.
    pub fn reserve(&mut self, proto: Proto, ip: Ipv4Addr, ports: (u16, u16)) {
        self.arrays.reserve(proto, ip, ports);
    }

    /// Whether an endpoint has an array.
    #[inline]
    pub fn is_dense(&self, proto: Proto, client: Endpoint) -> bool {
        self.arrays.at(proto, client).is_some()
    }

    const fn key(proto: Proto, client: Endpoint) -> u64 {
        client.key() | ((proto.number() as u64) << 48)
    }

    /// The head of an endpoint's chain.
    #[inline]
    pub fn head(&self, proto: Proto, client: Endpoint) -> u32 {
        match self.arrays.at(proto, client) {
            Some(at) => self.arrays.head(at),
            None if self.sparse.is_empty() => NONE,
            None => self.sparse_head(proto, client),
        }
    }

    #[cold]
    fn sparse_head(&self, proto: Proto, client: Endpoint) -> u32 {
        let found = self.sparse.get(&Self::key(proto, client));
        found.copied().unwrap_or(NONE)
    }

    /// Sets the head of an endpoint's chain; [`NONE`] empties it.
    #[inline]
    pub fn set_head(&mut self, proto: Proto, client: Endpoint, head: u32) {
        match self.arrays.at(proto, client) {
            Some(at) => self.arrays.set_head(at, head),
            None => self.set_sparse_head(proto, client, head),
        }
    }

    #[cold]
    fn set_sparse_head(&mut self, proto: Proto, client: Endpoint, head: u32) {
        if head == NONE {
            self.sparse.remove(&Self::key(proto, client));
        } else {
            self.sparse.insert(Self::key(proto, client), head);
        }
    }

    /// Every slot in the index, in no order that may matter.
    fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self
            .arrays
            .heads
            .iter()
            .chain(self.sparse.values())
            .copied();
        all.filter(|slot| *slot != NONE)
    }

    fn clear(&mut self) {
        self.arrays.heads.fill(NONE);
        self.sparse.clear();
    }
}

/// Records in slots, with the slots that are free.
#[derive(Clone, Debug)]
struct Slots<T> {
    all: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Copy> Slots<T> {
    fn take(&mut self, record: T) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.all[slot as usize] = record;
                slot
            }
            None => {
                self.all.push(record);
                self.all.len() as u32 - 1
            }
        }
    }

    fn give_back(&mut self, slot: u32) -> T {
        self.free.push(slot);
        self.all[slot as usize]
    }

    fn len(&self) -> usize {
        self.all.len() - self.free.len()
    }

    fn get(&self, slot: u32) -> Option<&T> {
        self.all.get(slot as usize)
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.all.get_mut(slot as usize)
    }
}

/// Ports of a page.
const PAGE: usize = 256;

/// One record for each of some ports. Memory grows with the records, and by a kilobyte for each stretch of 256 ports
/// that was ever used.
#[derive(Clone, Debug)]
pub struct PortMap<T> {
    pages: Vec<Option<Box<[u32; PAGE]>>>,
    slots: Slots<T>,
}

impl<T> Default for PortMap<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            slots: Slots::default(),
        }
    }
}

impl<T: Copy> PortMap<T> {
    /// How many ports have a record.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no port has a record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn slot(&self, port: u16) -> u32 {
        match self.pages.get(usize::from(port) / PAGE) {
            Some(Some(page)) => page[usize::from(port) % PAGE],
            _ => NONE,
        }
    }

    /// The record of a port.
    #[inline]
    pub fn get(&self, port: u16) -> Option<&T> {
        self.slots.get(self.slot(port))
    }

    /// The record of a port.
    #[inline]
    pub fn get_mut(&mut self, port: u16) -> Option<&mut T> {
        self.slots.get_mut(self.slot(port))
    }

    /// The record of a port, which is this one if there is none.
    pub fn get_or_insert(&mut self, port: u16, record: T) -> &mut T {
        let mut slot = self.slot(port);
        if slot == NONE {
            slot = self.slots.take(record);
            let number = usize::from(port) / PAGE;
            if self.pages.len() <= number {
                self.pages.resize(number + 1, None);
            }
            let page = self.pages[number].get_or_insert_with(|| Box::new([NONE; PAGE]));
            page[usize::from(port) % PAGE] = slot;
        }
        &mut self.slots.all[slot as usize]
    }

    /// Takes the record of a port out.
    pub fn remove(&mut self, port: u16) -> Option<T> {
        let slot = self.slot(port);
        if slot == NONE {
            return None;
        }
        if let Some(Some(page)) = self.pages.get_mut(usize::from(port) / PAGE) {
            page[usize::from(port) % PAGE] = NONE;
        }
        Some(self.slots.give_back(slot))
    }

    /// The ports that have a record, in their order.
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        let used = |number: usize, page: &[u32; PAGE], offset: usize| {
            (page[offset] != NONE).then_some((number * PAGE + offset) as u16)
        };
        self.pages
            .iter()
            .enumerate()
            .flat_map(move |(number, page)| {
                let page = page.as_deref();
                (0..PAGE).filter_map(move |offset| used(number, page?, offset))
            })
    }
}

/// One record for each of some endpoints of TCP.
#[derive(Clone, Debug)]
pub struct EndpointMap<T> {
    index: EndpointIndex,
    slots: Slots<T>,
}

impl<T> Default for EndpointMap<T> {
    fn default() -> Self {
        Self {
            index: EndpointIndex::default(),
            slots: Slots::default(),
        }
    }
}

impl<T: Copy> EndpointMap<T> {
    /// Reserves an array for one address's ports, both ends included.
    pub fn reserve(&mut self, ip: Ipv4Addr, ports: (u16, u16)) {
        self.index.reserve(Proto::Tcp, ip, ports);
    }

    /// How many endpoints have a record.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no endpoint has a record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record of an endpoint.
    #[inline]
    pub fn get(&self, at: Endpoint) -> Option<&T> {
        self.slots.get(self.index.head(Proto::Tcp, at))
    }

    /// The record of an endpoint.
    #[inline]
    pub fn get_mut(&mut self, at: Endpoint) -> Option<&mut T> {
        self.slots.get_mut(self.index.head(Proto::Tcp, at))
    }

    /// The record of an endpoint, which is this one if there is none.
    pub fn get_or_insert(&mut self, at: Endpoint, record: T) -> &mut T {
        let mut slot = self.index.head(Proto::Tcp, at);
        if slot == NONE {
            slot = self.slots.take(record);
            self.index.set_head(Proto::Tcp, at, slot);
        }
        &mut self.slots.all[slot as usize]
    }

    /// Gives an endpoint this record, whether or not it had one.
    pub fn insert(&mut self, at: Endpoint, record: T) {
        *self.get_or_insert(at, record) = record;
    }

    /// Takes the record of an endpoint out.
    pub fn remove(&mut self, at: Endpoint) -> Option<T> {
        let slot = self.index.head(Proto::Tcp, at);
        if slot == NONE {
            return None;
        }
        self.index.set_head(Proto::Tcp, at, NONE);
        Some(self.slots.give_back(slot))
    }

    /// Every record, in no order that may matter.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.index.slots().filter_map(|slot| self.slots.get(slot))
    }

    /// Takes every record out. Arrays that were reserved stay.
    pub fn clear(&mut self) {
        self.index.clear();
        self.slots = Slots::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Both maps give back what a tree gives back, with reserved arrays and without.
        #[test]
        fn maps_are_maps(
            steps in prop::collection::vec((0u8..4, 250u16..800, 0u8..3), 0..300),
            reserved in any::<bool>(),
        ) {
            let (mut ports, mut endpoints) = (PortMap::default(), EndpointMap::default());
            let (mut by_port, mut by_endpoint) = (BTreeMap::new(), BTreeMap::new());
            if reserved {
                endpoints.reserve(Ipv4Addr::new(10, 0, 0, 1), (300, 600));
            }
            for (number, (what, port, host)) in steps.into_iter().enumerate() {
                let at = Endpoint::new(Ipv4Addr::new(10, 0, 0, host), port);
                match what {
                    0 => {
                        prop_assert_eq!(ports.remove(port), by_port.remove(&port));
                        prop_assert_eq!(endpoints.remove(at), by_endpoint.remove(&at));
                    }
                    1 => {
                        endpoints.insert(at, number);
                        by_endpoint.insert(at, number);
                    }
                    _ => {
                        let expected = *by_port.entry(port).or_insert(number);
                        prop_assert_eq!(*ports.get_or_insert(port, number), expected);
                        let expected = *by_endpoint.entry(at).or_insert(number);
                        prop_assert_eq!(*endpoints.get_or_insert(at, number), expected);
                    }
                }
                prop_assert_eq!(ports.get(port), by_port.get(&port));
                prop_assert_eq!(endpoints.get(at), by_endpoint.get(&at));
            }
            prop_assert_eq!(ports.len(), by_port.len());
            prop_assert!(ports.ports().eq(by_port.keys().copied()));
            let mut values: Vec<_> = endpoints.values().copied().collect();
            values.sort_unstable();
            let mut expected: Vec<_> = by_endpoint.into_values().collect();
            expected.sort_unstable();
            prop_assert_eq!(values, expected);
            endpoints.clear();
            prop_assert!(endpoints.is_empty() && endpoints.values().next().is_none());
        }
    }
}
