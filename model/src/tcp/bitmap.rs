//! A set of ports that finds its next free member fast, however full it is.
//!
//! Sixty-five thousand bits in 1024 words, and for each parity a summary of 16 words that says which of them
//! still have a free port. A scan of the kernel that walks ten thousand busy ports one by one becomes a
//! handful of word operations here, with the same answer.

/// Which ports a scan visits, seen from its first port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Every port.
    One,
    /// Every second port: those of the first port's parity.
    Two,
}

impl Step {
    /// The distance between two ports of the scan.
    pub const fn ports(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// The bits of a word whose ports are even; a word starts at a multiple of 64.
const EVEN: u64 = 0x5555_5555_5555_5555;
/// Those of each parity.
const PARITIES: [u64; 2] = [EVEN, !EVEN];
const WORDS: usize = 1024;
const SUMMARY: usize = WORDS / 64;

/// A set of busy ports, 0 to 65535. 8.5 KiB.
#[derive(Clone)]
pub struct PortBitmap {
    busy: Box<[u64; WORDS]>,
    /// Bit w of parity p is set if word w has a free port of parity p.
    free: [[u64; SUMMARY]; 2],
    count: u32,
}

impl Default for PortBitmap {
    fn default() -> Self {
        Self {
            busy: Box::new([0; WORDS]),
            free: [[u64::MAX; SUMMARY]; 2],
            count: 0,
        }
    }
}

impl core::fmt::Debug for PortBitmap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PortBitmap({} busy)", self.count)
    }
}

impl PortBitmap {
    /// The empty set: every port is free.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many ports are busy, 0 to 65536.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether every port is free.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `port` is busy.
    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        self.busy[usize::from(port >> 6)] >> (port & 63) & 1 != 0
    }

    /// Makes `port` busy. Returns whether it was free.
    #[inline]
    pub fn insert(&mut self, port: u16) -> bool {
        let (word, bit) = (usize::from(port >> 6), 1 << (port & 63));
        if self.busy[word] & bit != 0 {
            return false;
        }
        self.busy[word] |= bit;
        self.count += 1;
        let parity = usize::from(port & 1);
        if !self.busy[word] & PARITIES[parity] == 0 {
            self.free[parity][word / 64] &= !(1 << (word % 64));
        }
        true
    }

    /// Makes `port` free. Returns whether it was busy.
    #[inline]
    pub fn remove(&mut self, port: u16) -> bool {
        let (word, bit) = (usize::from(port >> 6), 1 << (port & 63));
        if self.busy[word] & bit == 0 {
            return false;
        }
        self.busy[word] &= !bit;
        self.count -= 1;
        self.free[usize::from(port & 1)][word / 64] |= 1 << (word % 64);
        true
    }

    /// The first free port in `from..to` (`to` at most 65536) that a scan with `step` from `from` visits.
    #[inline]
    pub fn next_free(&self, from: u32, to: u32, step: Step) -> Option<u16> {
        if from >= to {
            return None;
        }
        let mask = match step {
            Step::One => u64::MAX,
            Step::Two => PARITIES[(from & 1) as usize],
        };
        let first = (from / 64) as usize;
        let here = !self.busy[first] & mask & (u64::MAX << (from % 64));
        let word = if here != 0 {
            first
        } else {
            self.next_word(first + 1, mask)?
        };
        let free = if word == first {
            here
        } else {
            !self.busy[word] & mask
        };
        let port = word as u32 * 64 + free.trailing_zeros();
        (port < to).then_some(port as u16)
    }

    /// The first word at or after `word` with a free port that `mask` selects.
    fn next_word(&self, word: usize, mask: u64) -> Option<usize> {
        let summary = |at: usize| {
            let mut bits = 0;
            if mask & EVEN != 0 {
                bits |= self.free[0][at];
            }
            if mask & !EVEN != 0 {
                bits |= self.free[1][at];
            }
            bits
        };
        let start = word / 64;
        (start..SUMMARY).find_map(|at| {
            let skipped = if at == start { word % 64 } else { 0 };
            let bits = summary(at) & (u64::MAX << skipped);
            (bits != 0).then(|| at * 64 + bits.trailing_zeros() as usize)
        })
    }
}

/// The ports that some socket of a network namespace uses, whatever its destination: what bind(2) looks at.
#[derive(Clone, Debug)]
pub struct PortCounts {
    counts: Box<[u32]>,
    used: PortBitmap,
}

impl Default for PortCounts {
    fn default() -> Self {
        Self {
            counts: vec![0; 1 << 16].into_boxed_slice(),
            used: PortBitmap::new(),
        }
    }
}

impl PortCounts {
    /// One more socket on `port`.
    pub fn add(&mut self, port: u16) {
        self.counts[usize::from(port)] += 1;
        self.used.insert(port);
    }

    /// One socket less on `port`; does nothing if there is none.
    pub fn sub(&mut self, port: u16) {
        let count = &mut self.counts[usize::from(port)];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.used.remove(port);
        }
    }

    /// The ports with at least one socket.
    pub const fn used(&self) -> &PortBitmap {
        &self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(busy: &[u16], from: u32, to: u32, step: Step) -> Option<u16> {
        (from..to)
            .step_by(step.ports() as usize)
            .map(|port| port as u16)
            .find(|port| !busy.contains(port))
    }

    #[test]
    fn a_full_map_has_no_free_port_and_an_emptied_one_has() {
        let mut map = PortBitmap::new();
        for port in 0..=u16::MAX {
            assert!(map.insert(port));
        }
        assert_eq!(map.len(), 65536);
        assert_eq!(map.next_free(0, 65536, Step::One), None);
        assert!(!map.insert(7) && map.remove(60999) && !map.remove(60999));
        assert_eq!(map.next_free(0, 65536, Step::One), Some(60999));
        assert_eq!(map.next_free(0, 65536, Step::Two), None);
        assert_eq!(map.next_free(1, 65536, Step::Two), Some(60999));
        assert_eq!(map.next_free(1, 60999, Step::Two), None);
    }

    #[test]
    fn counts_follow_sockets() {
        let mut counts = PortCounts::default();
        counts.add(80);
        counts.add(80);
        counts.sub(80);
        assert!(counts.used().contains(80));
        counts.sub(80);
        counts.sub(80);
        assert!(counts.used().is_empty());
    }

    proptest! {
        #[test]
        fn the_bitmap_finds_what_a_linear_scan_finds(
            busy in proptest::collection::btree_set(100u16..700, 0..590),
            gone in proptest::collection::vec(100u16..700, 0..50),
            from in 90u32..710, length in 0u32..600, even in any::<bool>(),
        ) {
            let mut map = PortBitmap::new();
            for &port in &busy {
                map.insert(port);
            }
            let mut left: Vec<u16> = busy.iter().copied().collect();
            for port in gone {
                map.remove(port);
                left.retain(|&busy| busy != port);
            }
            let step = if even { Step::Two } else { Step::One };
            prop_assert_eq!(map.len() as usize, left.len());
            prop_assert_eq!(map.next_free(from, from + length, step), naive(&left, from, from + length, step));
        }
    }
}
