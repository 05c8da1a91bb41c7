//! The keyed hashes of a network stack: port offsets, initial sequence numbers, timestamp offsets.
//!
//! Faithful to: `net/core/secure_seq.c` (siphash, 4.11 and later): the ISN is a hash of the four-tuple plus a
//! 64 ns clock; timestamp offsets per host pair, or per four-tuple; port offsets per (source, destination,
//! destination port), with the ten-second salt of 5.18.
//! Leaves out: MD5 instead of siphash before 4.11 (equally unpredictable), IPv6.

use core::hash::Hasher;
use core::net::Ipv4Addr;

use siphasher::sip::SipHasher24;

use crate::kernel::{Behaviours, Gate};
use crate::segment::Tuple;
use crate::time::{Clock, Instant, Jiffies};

/// What connect() knows before it has a source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The local address of the socket.
    pub saddr: Ipv4Addr,
    /// The remote address.
    pub daddr: Ipv4Addr,
    /// The remote port.
    pub dport: u16,
}

impl Destination {
    /// Whether it is the other one; the derived comparison goes byte by byte.
    #[inline]
    pub(super) const fn is(self, other: Self) -> bool {
        self.saddr.to_bits() == other.saddr.to_bits()
            && self.daddr.to_bits() == other.daddr.to_bits()
            && self.dport == other.dport
    }
}

/// The secret of one kernel (`net_secret`), drawn at boot, and the clocks that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secret {
    k0: u64,
    k1: u64,
    /// Wall-clock nanoseconds at the start of the run, as far as the ISN clock is concerned.
    wall_ns: u64,
}

impl Secret {
    /// The secret of the kernel that `seed` stands for. The same seed gives the same secret.
    pub fn from_seed(seed: u64) -> Self {
        let part = |n: u8| {
            let mut hasher = SipHasher24::new_with_keys(0x6e65_745f_7365_6372, u64::from(n));
            hasher.write_u64(seed);
            hasher.finish()
        };
        Self {
            k0: part(0),
            k1: part(1),
            wall_ns: part(2) >> 2,
        }
    }

    /// The hash of up to four words.
    fn words<const N: usize>(&self, words: [u32; N]) -> u64 {
        let mut bytes = [0; 16];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        SipHasher24::new_with_keys(self.k0, self.k1).hash(&bytes[..4 * N])
    }

    /// The offset of a destination's port sequence before 5.18 (`secure_ipv4_port_ephemeral`): 32 bits.
    pub fn port_offset(&self, to: Destination) -> u32 {
        self.words([to.saddr.to_bits(), to.daddr.to_bits(), u32::from(to.dport)]) as u32
    }

    /// The same since 5.18: 64 bits, drawn anew every ten seconds.
    pub fn salted_port_offset(&self, to: Destination, now: Jiffies, hz: u32) -> u64 {
        let salt = (now.0 / (10 * u64::from(hz))) as u32;
        self.words([
            to.saddr.to_bits(),
            to.daddr.to_bits(),
            u32::from(to.dport),
            salt,
        ])
    }

    /// The random content of a slot of `table_perturb` at boot.
    pub fn perturb(&self, slot: u32) -> u32 {
        self.words([0x7065_7274, slot]) as u32
    }

    /// The initial sequence number of a connection that opens at `now`, seen from `tuple.src`
    /// (`secure_tcp_seq`): for one four-tuple it advances by 15 625 000 a second.
    pub fn isn(&self, tuple: Tuple, now: Instant) -> u32 {
        self.isn_of(self.tuple_hash(tuple), now)
    }

    /// What a connection begins with, as [`Secret::isn`] and [`Secret::timestamp_offset`] tell: both are parts of one hash
    /// since they are per four-tuple.
    pub fn isn_and_offset(&self, kernel: Behaviours, tuple: Tuple, now: Instant) -> (u32, u32) {
        let (base, offset) = self.base_and_offset(kernel, tuple);
        (base.wrapping_add(self.number_at(now)), offset)
    }

    /// The part of the initial sequence number that the four-tuple decides, and the offset of its timestamps.
    pub fn base_and_offset(&self, kernel: Behaviours, tuple: Tuple) -> (u32, u32) {
        let hash = self.tuple_hash(tuple);
        let offset = if kernel.has(Gate::TsOffsetPerTuple) {
            (hash >> 32) as u32
        } else {
            self.timestamp_offset(kernel, tuple)
        };
        (hash as u32, offset)
    }

    /// The part of the initial sequence number that the moment decides.
    pub const fn number_at(&self, now: Instant) -> u32 {
        ((self.wall_ns.wrapping_add(now.0)) >> 6) as u32
    }

    const fn isn_of(&self, hash: u64, now: Instant) -> u32 {
        (hash as u32).wrapping_add(self.number_at(now))
    }

    /// The offset of the timestamps that `tuple.src` sends (`secure_tcp_ts_off`).
    pub fn timestamp_offset(&self, kernel: Behaviours, tuple: Tuple) -> u32 {
        if kernel.has(Gate::TsOffsetPerTuple) {
            (self.tuple_hash(tuple) >> 32) as u32
        } else if kernel.has(Gate::TsOffsetRandom) {
            self.words([tuple.src.ip.to_bits(), tuple.dst.ip.to_bits()]) as u32
        } else {
            0
        }
    }

    fn tuple_hash(&self, tuple: Tuple) -> u64 {
        let ports = u32::from(tuple.src.port) << 16 | u32::from(tuple.dst.port);
        self.words([tuple.src.ip.to_bits(), tuple.dst.ip.to_bits(), ports])
    }
}

/// Whole seconds since boot (`ktime_get_seconds`): the coarse clock of TIME_WAIT reuse and of PAWS.
pub const fn seconds(clock: &Clock, now: Instant) -> u32 {
    let ticks = clock.jiffies(now).0 - Clock::initial_jiffies(clock.hz());
    // A division of words takes half as long, and for 49 days it is enough.
    if ticks <= u32::MAX as u64 {
        return ticks as u32 / clock.hz();
    }
    (ticks / clock.hz() as u64) as u32
}

/// The timestamp clock: milliseconds, before a connection's offset is added.
pub const fn millis(now: Instant) -> u32 {
    (now.0 / 1_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Endpoint;
    use crate::time::{Span, TimerEra};

    fn tuple(port: u16) -> Tuple {
        Tuple::tcp(
            Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), port),
            Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 80),
        )
    }

    /// Facts 6.6: 15 625 000 a second for one four-tuple, 137 s until it compares as older.
    #[test]
    fn the_isn_of_one_tuple_advances_with_its_clock() {
        let secret = Secret::from_seed(1);
        let at = |secs| secret.isn(tuple(40000), Instant::from_secs(secs));
        assert_eq!(at(11).wrapping_sub(at(10)), 15_625_000);
        assert!(crate::segment::seq_after(at(137), at(0)));
        assert!(crate::segment::seq_before(at(138), at(0)));
        assert_ne!(
            at(10),
            secret.isn(tuple(40002), Instant::from_secs(10)),
            "another port, another offset"
        );
    }

    /// Gate 30: per host pair from 4.11, per four-tuple in the patched stables, none before.
    #[test]
    fn timestamp_offsets_follow_the_kernel() {
        let secret = Secret::from_seed(2);
        let offset = |release: &str, port| {
            let kernel = release
                .parse::<crate::kernel::Kernel>()
                .unwrap()
                .behaviours();
            secret.timestamp_offset(kernel, tuple(port))
        };
        assert_eq!(offset("4.9.115", 1), 0);
        assert_eq!(offset("5.7.14", 1), offset("5.7.14", 2));
        assert_ne!(offset("5.7.14", 1), 0);
        assert_ne!(offset("6.12.117", 1), offset("6.12.117", 2));
    }

    #[test]
    fn the_salt_changes_every_ten_seconds() {
        let (secret, clock) = (
            Secret::from_seed(3),
            Clock::new(250, TimerEra::Wheel, Span::ZERO),
        );
        let to = Destination {
            saddr: Ipv4Addr::new(10, 0, 0, 1),
            daddr: Ipv4Addr::new(10, 0, 0, 2),
            dport: 80,
        };
        let hashes: std::collections::BTreeSet<u64> = (0..100)
            .map(|s| secret.salted_port_offset(to, clock.jiffies(Instant::from_secs(s)), 250))
            .collect();
        assert!((10..=11).contains(&hashes.len()), "{}", hashes.len());
        assert_eq!(seconds(&clock, Instant::from_millis(1999)), 1);
    }
}
