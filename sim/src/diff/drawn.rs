//! What source NAT drew.

use ipvs_model::conntrack::SourceNat;
use ipvs_model::segment::{Endpoint, Segment};
use rand::rand_core::{Infallible, TryRng};

use super::ahead::Seen;

/// The node's draw of a source port, as the packet that left shows it: NAT's choice is random, so what it drew is
/// an input. Whether it had to draw at all is the model's to say.
#[derive(Clone, Copy)]
pub(super) struct Drawn {
    left: Option<Endpoint>,
}

impl Drawn {
    pub(super) const fn of(seen: Seen) -> Self {
        let left = match seen {
            Seen::Left(left) => Some(left.tuple.src),
            _ => None,
        };
        Self { left }
    }

    /// The rule of source NAT that the packet met: no capture holds the rules, but the address tells.
    pub(super) fn policy(self, segment: &Segment, inward: bool, otherwise: SourceNat) -> SourceNat {
        match self.left {
            Some(left) if inward && left.ip != segment.tuple.src.ip => SourceNat::Masquerade {
                ip: left.ip,
                random: left.port != segment.tuple.src.port,
            },
            _ => otherwise,
        }
    }
}

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let port = self.left.map_or(1024, |left| left.port);
        // Privileged ports are drawn from ranges of their own (`nf_nat_l4proto_unique_tuple`).
        let first = match port {
            0..512 => 1,
            512..1024 => 600,
            1024.. => 1024,
        };
        Ok(u32::from(port.wrapping_sub(first)) << 16)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.try_next_u32().map(|word| u64::from(word) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0);
        Ok(())
    }
}
