//! How many ICMP errors a machine sends.
//!
//! Faithful to: `icmpv4_xrlim_allow` with `inet_peer_xrlim_allow` (a token bucket a peer), `icmp_global_allow`
//! and `icmp_global_consume` (one for the machine), `ip_error` (`net/ipv4/route.c`), 3.18 to 6.12, in ticks.
//! Leaves out: the expiry of peers (an expired one begins with a full bucket, as an idle one has), the
//! sharing of the machine's bucket by all network namespaces before 6.12.
//!
//! Seen by a user as: with six tokens at hand and one a second, the first six refused connections fail at
//! once and then one a second does; every other attempt hears nothing. A token is spent for a SYN whose error
//! the client merely remembers (its connect() holds the socket at that instant), too: then only every
//! *second* second shows a failure, as in the recording of 5.7.14.

use core::net::Ipv4Addr;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::kernel::{Behaviours, Gate};
use crate::sysctl::IcmpSysctls;
use crate::time::{Clock, Instant};

/// `XRLIM_BURST_FACTOR`.
const BURST: u64 = 6;
/// `ip_rt_error_burst` in units of `ip_rt_error_cost`.
const ROUTE_ERROR_BURST: u64 = 5;

/// Whether an ICMP error leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpVerdict {
    /// It leaves.
    Sent,
    /// The machine's allowance is used up (`icmp_msgs_per_sec`).
    GlobalLimit,
    /// The peer's allowance is used up (`icmp_ratelimit`).
    PeerLimit,
    /// The allowance of route errors is used up, which is the peer's too (`ip_rt_error_cost`).
    RouteErrorLimit,
}

/// Why the machine sends an error: who asks decides which allowances are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpCause {
    /// IPVS has no destination or no route, or a neighbour does not answer: `icmp_send` is called directly.
    Direct,
    /// A packet that is merely forwarded meets an `unreachable` route: `ip_error` takes a token of the peer
    /// before `icmp_send` takes another one.
    ForwardingRoute,
}

/// `rate_tokens` and `rate_last` of a peer, in ticks.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u64,
    last: u64,
}

impl Bucket {
    /// Fills up to `burst` costs, takes one `cost` if there is enough.
    fn take(&mut self, now: u64, cost: u64, burst: u64) -> bool {
        self.tokens = (self.tokens + now - self.last).min(burst * cost);
        self.last = now;
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

/// The allowances of one machine.
#[derive(Clone, Debug)]
pub struct IcmpLimiter {
    clock: Clock,
    sysctls: IcmpSysctls,
    random: bool,
    peer_first: bool,
    credit: i64,
    stamp: u64,
    peers: HashMap<Ipv4Addr, Bucket, FxBuildHasher>,
}

impl IcmpLimiter {
    /// Full allowances.
    pub fn new(kernel: Behaviours, clock: Clock, sysctls: IcmpSysctls) -> Self {
        Self {
            clock,
            sysctls,
            random: kernel.has(Gate::IcmpRandomCredit),
            peer_first: kernel.has(Gate::IcmpPeerFirst),
            credit: 0,
            stamp: 0,
            peers: HashMap::default(),
        }
    }

    /// Whether an error towards `peer`, the sender of the packet that caused it, leaves at `now`. Errors that
    /// leave by the loopback device, and packets that came by it, are not limited: do not ask for them.
    pub fn allow(
        &mut self,
        now: Instant,
        peer: Ipv4Addr,
        cause: IcmpCause,
        rng: &mut impl rand::Rng,
    ) -> IcmpVerdict {
        let now = self.clock.jiffies(now).0;
        let hz = u64::from(self.clock.hz());
        let cost = u64::from(self.sysctls.ratelimit_ms) * hz / 1000;
        let bucket = self.peers.entry(peer).or_insert(Bucket {
            tokens: 0,
            last: now - 60 * hz,
        });
        if cause == IcmpCause::ForwardingRoute && !bucket.take(now, hz, ROUTE_ERROR_BURST) {
            return IcmpVerdict::RouteErrorLimit;
        }
        if !self.global_allows(now, rng) {
            return IcmpVerdict::GlobalLimit;
        }
        let Some(bucket) = self.peers.get_mut(&peer) else {
            return IcmpVerdict::PeerLimit;
        };
        if !bucket.take(now, cost, BURST) {
            return IcmpVerdict::PeerLimit;
        }
        if self.peer_first {
            self.credit -= i64::from(below_three(rng));
        }
        IcmpVerdict::Sent
    }

    fn global_allows(&mut self, now: u64, rng: &mut impl rand::Rng) -> bool {
        if self.credit > 0 && self.peer_first {
            return true;
        }
        let hz = u64::from(self.clock.hz());
        let delta = (now - self.stamp).min(hz);
        let mut increment = 0;
        if delta >= hz / 50 {
            increment = i64::from(self.sysctls.msgs_per_sec) * delta as i64 / hz as i64;
            if increment > 0 {
                self.stamp = now;
            }
        }
        let burst = i64::from(self.sysctls.msgs_burst);
        if self.peer_first {
            if increment > 0 {
                self.credit = (self.credit + increment).min(burst);
            }
            return increment > 0;
        }
        self.credit = (self.credit + increment).min(burst);
        if self.credit <= 0 {
            return false;
        }
        self.credit -= 1;
        if self.random {
            self.credit = (self.credit - i64::from(below_three(rng))).max(0);
        }
        true
    }
}

/// `get_random_u32_below(3)`.
fn below_three(rng: &mut impl rand::Rng) -> u32 {
    loop {
        let word = rng.next_u32();
        if word != u32::MAX {
            return word % 3;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::time::Span;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    fn limiter(release: &str, hz: u32) -> IcmpLimiter {
        let kernel = release.parse::<Kernel>().unwrap().behaviours();
        let clock = Clock::new(hz, kernel.timer_era(), Span::from_secs(500));
        IcmpLimiter::new(kernel, clock, IcmpSysctls::default())
    }

    fn sent(limiter: &mut IcmpLimiter, cause: IcmpCause, times_ms: &[u64]) -> Vec<u64> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        times_ms
            .iter()
            .copied()
            .filter(|&ms| {
                let now = Instant::from_millis(ms);
                limiter.allow(now, Ipv4Addr::new(10, 0, 0, 1), cause, &mut rng) == IcmpVerdict::Sent
            })
            .collect()
    }

    /// Facts 1.9 and trap 18: six at once, then one a second; at 100 a second some 1 % are told.
    #[test]
    fn six_at_once_and_then_one_a_second() {
        for release in ["5.7.14", "5.15.16", "6.12.117"] {
            let times: Vec<u64> = (0..10_000).step_by(10).collect();
            let told = sent(&mut limiter(release, 1000), IcmpCause::Direct, &times);
            assert_eq!(
                told,
                [
                    0, 10, 20, 30, 40, 50, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000
                ],
                "{release}"
            );
        }
    }

    /// A forwarding router takes two tokens for an error, and one for none: under load it falls silent.
    #[test]
    fn a_forwarding_router_falls_silent_under_load() {
        let times: Vec<u64> = (0..60_000).step_by(100).collect();
        let told = sent(
            &mut limiter("6.12.117", 250),
            IcmpCause::ForwardingRoute,
            &times,
        );
        assert_eq!(told, [0, 100]);
        let slow: Vec<u64> = (0..20).map(|n| n * 2_000).collect();
        let told = sent(
            &mut limiter("6.12.117", 250),
            IcmpCause::ForwardingRoute,
            &slow,
        );
        assert_eq!(
            told, slow,
            "one packet in two seconds is answered each time"
        );
    }

    /// Facts 1.9: the machine's own limit, 50 at once and 1000 a second (half of it if credits are random).
    #[test]
    fn the_machine_has_a_limit_of_its_own() {
        for (release, told) in [
            ("5.7.14", 50..=50),
            ("5.15.16", 17..=40),
            ("6.12.117", 35..=80),
        ] {
            let mut limiter = limiter(release, 250);
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let at_once = (0..2000_u32)
                .filter(|&n| {
                    let peer = Ipv4Addr::from_bits(0x0a00_0000 + n);
                    limiter.allow(Instant::ZERO, peer, IcmpCause::Direct, &mut rng)
                        == IcmpVerdict::Sent
                })
                .count();
            assert!(told.contains(&at_once), "{release}: {at_once}");
        }
    }

    /// What the peer's limit suppresses costs the machine's allowance before 6.12, and nothing after.
    #[test]
    fn suppressed_errors_cost_the_machine_before_6_12() {
        let other = |release| {
            let mut limiter = limiter(release, 250);
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut ask = |last| {
                let peer = Ipv4Addr::new(10, 0, 0, last);
                limiter.allow(Instant::ZERO, peer, IcmpCause::Direct, &mut rng)
            };
            for _ in 0..100 {
                ask(1);
            }
            ask(2)
        };
        assert_eq!(other("5.7.14"), IcmpVerdict::GlobalLimit);
        assert_eq!(other("6.12.117"), IcmpVerdict::Sent);
    }

    #[test]
    fn a_ratelimit_of_zero_is_none() {
        let mut limiter = limiter("6.12.117", 250);
        limiter.sysctls.ratelimit_ms = 0;
        let times: Vec<u64> = (0..40).map(|n| n * 100).collect();
        assert_eq!(sent(&mut limiter, IcmpCause::Direct, &times).len(), 40);
    }
}
