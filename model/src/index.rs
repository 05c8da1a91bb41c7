//! From an endpoint to the head of its chain: an array for the clients that are known beforehand, a hash for the rest.
//!
//! The kernel's own hash is not observable: only chains per client endpoint are, because lookups in both
//! directions hash the client's address and port (`ip_vs_conn_hashkey`).

use core::net::Ipv4Addr;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::segment::{Endpoint, Proto};

/// No slot.
pub const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct DenseRange {
    ip: Ipv4Addr,
    proto: Proto,
    first_port: u16,
    heads: Vec<u32>,
}

/// Heads of chains by client endpoint. An absent endpoint has the head [`NONE`].
#[derive(Clone, Debug, Default)]
pub struct EndpointIndex {
    dense: Vec<DenseRange>,
    sparse: HashMap<u64, u32, FxBuildHasher>,
}

impl EndpointIndex {
    /// Reserves an array for one client's ports, both ends included. Later look-ups of them need no hash.
    pub fn reserve(&mut self, proto: Proto, ip: Ipv4Addr, ports: (u16, u16)) {
        let heads = vec![NONE; usize::from(ports.1.saturating_sub(ports.0)) + 1];
        self.dense.push(DenseRange {
            ip,
            proto,
            first_port: ports.0,
            heads,
        });
        self.dense.sort_by_key(|range| (range.ip, range.proto));
    }

    fn dense_at(&self, proto: Proto, client: Endpoint) -> Option<(usize, usize)> {
        let at = match self.dense.len() {
            0 => return None,
            1..=4 => self
                .dense
                .iter()
                .position(|range| range.ip == client.ip && range.proto == proto)?,
            _ => self
                .dense
                .binary_search_by_key(&(client.ip, proto), |range| (range.ip, range.proto))
                .ok()?,
        };
        let range = &self.dense[at];
        let offset = usize::from(client.port.checked_sub(range.first_port)?);
        (offset < range.heads.len()).then_some((at, offset))
    }

    const fn key(proto: Proto, client: Endpoint) -> u64 {
        client.key() | ((proto.number() as u64) << 48)
    }

    /// The head of an endpoint's chain.
    #[inline]
    pub fn head(&self, proto: Proto, client: Endpoint) -> u32 {
        if let Some((at, offset)) = self.dense_at(proto, client) {
            return self.dense[at].heads[offset];
        }
        self.sparse
            .get(&Self::key(proto, client))
            .copied()
            .unwrap_or(NONE)
    }

    /// Sets the head of an endpoint's chain; [`NONE`] empties it.
    #[inline]
    pub fn set_head(&mut self, proto: Proto, client: Endpoint, head: u32) {
        if let Some((at, offset)) = self.dense_at(proto, client) {
            self.dense[at].heads[offset] = head;
        } else if head == NONE {
            self.sparse.remove(&Self::key(proto, client));
        } else {
            self.sparse.insert(Self::key(proto, client), head);
        }
    }
}
