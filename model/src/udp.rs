//! The source ports of UDP sockets in one network namespace.
//!
//! Faithful to: `udp_lib_get_port` (3.10 to 6.12): an unbound socket gets a random port of the range at its first
//! send or connect; if it is busy, the search jumps on by a random odd stride. Closing frees a port at once: UDP has no
//! TIME_WAIT.
//! Leaves out: reserved ports, SO_REUSEPORT, the stride's dependence on the size of the hash table.

use rand::Rng;

use crate::tcp::bitmap::PortBitmap;

/// Busy ports, and the range that the kernel draws from.
#[derive(Clone, Debug)]
pub struct UdpPorts {
    low: u16,
    high: u16,
    busy: PortBitmap,
    /// Busy ports within the range.
    inside: u32,
}

impl UdpPorts {
    /// No socket yet; ports are drawn from `low..=high` (net.ipv4.ip_local_port_range).
    pub fn new((low, high): (u16, u16)) -> Self {
        Self {
            low,
            high,
            busy: PortBitmap::new(),
            inside: 0,
        }
    }

    const fn holds(&self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }

    /// How many sockets there are, at most 65536.
    pub const fn len(&self) -> u32 {
        self.busy.len()
    }

    /// Whether no socket is open.
    pub const fn is_empty(&self) -> bool {
        self.busy.is_empty()
    }

    /// A port for a new socket; `None` (EAGAIN) if all ports of the range are busy.
    pub fn draw(&mut self, rng: &mut impl Rng) -> Option<u16> {
        let size = u32::from(self.high - self.low) + 1;
        if self.inside == size {
            return None;
        }
        let random = rng.next_u32();
        let first = (u64::from(random) * u64::from(size)) >> 32;
        let mut port = self.low + first as u16;
        while !self.holds(port) || self.busy.contains(port) {
            port = port.wrapping_add(random as u16 | 1);
        }
        self.bind(port);
        Some(port)
    }

    /// Binds a socket to a port of the application's choice; whether it was free (EADDRINUSE if not).
    pub fn bind(&mut self, port: u16) -> bool {
        let fresh = self.busy.insert(port);
        self.inside += u32::from(fresh && self.holds(port));
        fresh
    }

    /// A socket is closed.
    pub fn close(&mut self, port: u16) {
        let was = self.busy.remove(port);
        self.inside -= u32::from(was && self.holds(port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    #[test]
    fn every_port_is_drawn_once_and_then_none() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut ports = UdpPorts::new((65_000, u16::MAX));
        let mut seen: Vec<u16> = std::iter::from_fn(|| ports.draw(&mut rng)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (65_000..=u16::MAX).collect::<Vec<_>>());
        assert_eq!(ports.draw(&mut rng), None);
        ports.close(65_300);
        assert_eq!(ports.draw(&mut rng), Some(65_300));
    }

    #[test]
    fn ports_are_drawn_evenly() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut ports = UdpPorts::new((32_768, 32_799));
        let mut counts = [0_u32; 32];
        for _ in 0..32_000 {
            let port = ports.draw(&mut rng).unwrap();
            counts[usize::from(port - 32_768)] += 1;
            ports.close(port);
        }
        // 1000 each; five standard deviations of a binomial are 156.
        assert!(
            counts.iter().all(|count| count.abs_diff(1_000) < 156),
            "{counts:?}"
        );
    }

    #[test]
    fn a_bound_port_outside_the_range_takes_none_of_its_ports() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut ports = UdpPorts::new((40_000, 40_000));
        assert!(ports.bind(53) && !ports.bind(53));
        assert_eq!(ports.draw(&mut rng), Some(40_000));
        assert_eq!((ports.draw(&mut rng), ports.len()), (None, 2));
    }
}
