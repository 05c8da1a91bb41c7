//! The hashing schedulers: source hashing (sh) and Maglev hashing (mh).
//!
//! Faithful to: `ip_vs_sh.c` (256 buckets), `ip_vs_mh.c` (table of 4093, the default), 4.18 to 6.19.
//! Leaves out: other table sizes, which are a choice at kernel build.

use siphasher::sip::SipHasher13;

use super::sched::Flags;
use super::service::{DestId, Dests};
use crate::segment::Endpoint;

const SH_BUCKETS: usize = 256;
const MH_BUCKETS: usize = 4093;
const MH_BITS: u32 = 12;

/// The kernel's multiplicative hash: golden ratio of 2^32, top eight bits.
const fn hash_32_8(value: u32) -> usize {
    (value.wrapping_mul(0x61C8_8647) >> 24) as usize
}

/// What is hashed: the address, and the port if the flag says so.
const fn client_word(client: Endpoint, flags: Flags) -> u32 {
    client
        .ip
        .to_bits()
        .wrapping_add(if flags.port { client.port as u32 } else { 0 })
}

/// Source hashing. A weight-0 destination keeps one bucket a round, and clients in it are refused (trap 17).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShTable {
    buckets: Vec<DestId>,
}

impl ShTable {
    pub(super) fn rebuild(&mut self, list: &[DestId], dests: &Dests) {
        self.buckets.clear();
        if list.is_empty() {
            return;
        }
        let round = list
            .iter()
            .flat_map(|id| core::iter::repeat_n(*id, dests.get(*id).weight.max(1) as usize));
        self.buckets.extend(round.cycle().take(SH_BUCKETS));
    }

    pub(super) fn pick(&self, client: Endpoint, flags: Flags, dests: &Dests) -> Option<DestId> {
        let home = hash_32_8(client_word(client, flags));
        let usable = |bucket: usize| {
            self.buckets
                .get(bucket)
                .copied()
                .filter(|id| dests.get(*id).usable())
        };
        if let Some(dest) = usable(home) {
            return Some(dest);
        }
        if !flags.fallback {
            return None;
        }
        (0..SH_BUCKETS)
            .find_map(|offset| usable((home + (offset + home) % SH_BUCKETS) % SH_BUCKETS))
    }
}

/// Maglev hashing. Built from the last weight above 0, so a draining destination keeps its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MhTable {
    lookup: Vec<Option<DestId>>,
}

struct Permutation {
    dest: DestId,
    position: usize,
    skip: usize,
    turns: u32,
}

/// The kernel's 32-bit hash of one word: SipHash-1-3 on 64-bit machines, cut to 32 bits.
fn hsiphash(word: u32, key: u64) -> u32 {
    SipHasher13::new_with_keys(key, key).hash(&word.to_le_bytes()) as u32
}

const MH_KEY_1: u64 = 2_654_435_761;
const MH_KEY_2: u64 = 2_654_446_892;

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl MhTable {
    pub(super) fn rebuild(&mut self, list: &[DestId], dests: &Dests) {
        let weights = || list.iter().map(|id| dests.get(*id).last_weight);
        let divisor = weights().fold(0, gcd);
        if divisor == 0 {
            self.lookup.clear();
            return;
        }
        let largest = weights().max().unwrap_or(0) / divisor;
        let shift = (u32::BITS - largest.leading_zeros()).saturating_sub(MH_BITS);
        let mut rows = list
            .iter()
            .map(|&id| {
                let dest = dests.get(id);
                let word = dest
                    .addr
                    .ip
                    .to_bits()
                    .wrapping_add(u32::from(dest.addr.port));
                let turns = match (dest.last_weight / divisor) >> shift {
                    0 => u32::from(dest.last_weight != 0),
                    turns => turns,
                };
                Permutation {
                    dest: id,
                    position: hsiphash(word, MH_KEY_1) as usize % MH_BUCKETS,
                    skip: hsiphash(word, MH_KEY_2) as usize % (MH_BUCKETS - 1) + 1,
                    turns,
                }
            })
            .filter(|row| row.turns > 0)
            .collect::<Vec<_>>();
        self.lookup.clear();
        self.lookup.resize(MH_BUCKETS, None);
        let mut filled = 0;
        while filled < MH_BUCKETS {
            for row in &mut rows {
                for _ in 0..row.turns {
                    while self.lookup[row.position].is_some() {
                        row.position = (row.position + row.skip) % MH_BUCKETS;
                    }
                    self.lookup[row.position] = Some(row.dest);
                    filled += 1;
                    if filled == MH_BUCKETS {
                        return;
                    }
                }
            }
        }
    }

    pub(super) fn pick(&self, client: Endpoint, flags: Flags, dests: &Dests) -> Option<DestId> {
        let word = client_word(client, flags);
        let slot = |offset: usize| {
            let hashed = hsiphash(word.wrapping_add(offset as u32), MH_KEY_1);
            self.lookup
                .get(hashed as usize % MH_BUCKETS)
                .copied()
                .flatten()
        };
        let usable = |offset| slot(offset).filter(|id| dests.get(*id).usable());
        if let Some(dest) = usable(0) {
            return Some(dest);
        }
        if !flags.fallback {
            return None;
        }
        let home = hsiphash(word, MH_KEY_1) as usize % MH_BUCKETS;
        (0..MH_BUCKETS).find_map(|offset| usable((offset + home) % MH_BUCKETS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts 3.2: the hash is the top eight bits of the product.
    #[test]
    fn the_source_hash_is_deterministic() {
        assert_eq!(hash_32_8(0), 0);
        assert_eq!(hash_32_8(1), 0x61);
        let client = Endpoint::new(core::net::Ipv4Addr::new(10, 23, 31, 87), 40_000);
        let by_address = client_word(client, Flags::default());
        assert_eq!(by_address, 0x0A17_1F57);
        assert_ne!(
            by_address,
            client_word(
                client,
                Flags {
                    port: true,
                    fallback: false
                }
            )
        );
    }
}
