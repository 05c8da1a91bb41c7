//! Random streams: one for each purpose, so that a change in one place does not reshuffle the others.

use ipvs_model::time::Span;
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1, StandardNormal};

use crate::scenario::Dist;

/// What a stream is for. The numbers are part of what a seed means: never change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Uptime of the node and phase of kube-proxy's check.
    Phases = 1,
    /// When requests start.
    Arrivals = 2,
    /// The client kernels: port choice, initial sequence numbers.
    ClientKernel = 3,
    /// Network latencies.
    Network = 4,
    /// Service times.
    Service = 5,
    /// Latencies of the rollout.
    Rollout = 6,
    /// kube-proxy: order of deletions, latencies.
    Proxy = 7,
    /// The node: NAT ports, choice of endpoint in iptables mode.
    Node = 8,
    /// The pods' kernels.
    PodKernel = 9,
    /// Think times of closed-loop workers.
    Think = 10,
    /// Ports of UDP sockets.
    ClientPorts = 11,
    /// Ports of a load balancer.
    Balancer = 12,
}

/// Makes the streams of one run.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// The streams of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The stream of a purpose and an entity (a client host, a pod, 0 if there is one only).
    pub fn stream(self, purpose: Purpose, entity: u32) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream((u64::from(purpose as u8) << 32) | u64::from(entity));
        rng
    }
}

/// Nanoseconds of a positive real number, rounded and capped at a century.
fn nanos(value: f64) -> Span {
    const CENTURY_NS: f64 = 3.2e18;
    Span(value.clamp(0.0, CENTURY_NS) as u64)
}

/// An exponential time with a mean.
pub fn exponential(rng: &mut impl Rng, mean: Span) -> Span {
    let unit: f64 = Exp1.sample(rng);
    nanos(unit * mean.0 as f64)
}

/// A draw from a distribution.
pub fn draw(rng: &mut impl Rng, dist: &Dist) -> Span {
    match *dist {
        Dist::Constant(span) => span,
        Dist::Uniform(low, high) => Span(rng.random_range(low.0..=high.0)),
        Dist::Exponential(mean) => exponential(rng, mean),
        Dist::LogNormal { median, sigma } => {
            let normal: f64 = StandardNormal.sample(rng);
            nanos(median.0 as f64 * libm::exp(sigma * normal))
        }
    }
}
