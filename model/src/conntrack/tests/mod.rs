//! Tests of conntrack, written as traces of packets.

mod graph;
mod nat;
mod table;
mod tcp;
mod udp;

use rand::rand_core::{Infallible, TryRng};

use super::*;
use crate::kernel::Kernel;
use crate::segment::Flags;
use crate::time::{Instant, Span, TimerEra};
use core::net::Ipv4Addr;

pub(super) const SYN: Flags = Flags::SYN;
pub(super) const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
pub(super) const ACK: Flags = Flags::ACK;
pub(super) const FIN: Flags = Flags::FIN.with(Flags::ACK);
pub(super) const RST: Flags = Flags::RST;

pub(super) fn endpoint(text: &str) -> Endpoint {
    text.parse().expect("an endpoint")
}

pub(super) fn client() -> Endpoint {
    endpoint("10.0.0.1:40000")
}

pub(super) fn service() -> Endpoint {
    endpoint("10.96.0.1:80")
}

pub(super) fn pod() -> Endpoint {
    endpoint("10.244.1.2:8080")
}

pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

pub(super) fn behaviours(release: &str) -> Behaviours {
    release.parse::<Kernel>().expect("a release").behaviours()
}

/// Hands out what the test says, then zeroes; counts the draws.
#[derive(Default)]
pub(super) struct Draws {
    pub(super) script: Vec<u16>,
    pub(super) drawn: usize,
}

impl TryRng for Draws {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let value = self.script.get(self.drawn).copied().unwrap_or(0);
        self.drawn += 1;
        Ok(u32::from(value) << 16)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("NAT draws 32 bits")
    }

    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Infallible> {
        unreachable!("NAT draws 32 bits")
    }
}

/// One node, one client and one pod, with the sequence numbers of both ends.
pub(super) struct Net {
    pub(super) ct: Conntrack,
    pub(super) sysctls: CtSysctls,
    pub(super) clock: Clock,
    pub(super) now: Instant,
    pub(super) policy: SourceNat,
    pub(super) draws: Draws,
}

impl Net {
    pub(super) fn new(release: &str) -> Self {
        let kernel = behaviours(release);
        let clock = Clock::new(250, kernel.timer_era(), Span::ZERO);
        Self {
            ct: Conntrack::new(clock, kernel),
            sysctls: CtSysctls::default(),
            clock,
            now: Instant::from_secs(100),
            policy: SourceNat::Inactive,
            draws: Draws::default(),
        }
    }

    pub(super) fn tick(&self) -> Jiffies {
        self.clock.jiffies(self.now)
    }

    pub(super) fn wait(&mut self, secs: u64) {
        self.now += Span::from_secs(secs);
    }

    pub(super) fn incoming(&mut self, seg: &Segment) -> Incoming {
        self.ct.incoming(self.tick(), seg, &self.sysctls)
    }

    /// A segment of the client to the service, forwarded to the pod. Its rule.
    pub(super) fn client(&mut self, flags: Flags, seq: u32, ack: u32) -> CtRule {
        self.client_from(client(), flags, seq, ack)
    }

    pub(super) fn client_from(&mut self, from: Endpoint, f: Flags, seq: u32, ack: u32) -> CtRule {
        let mut seg = Segment::new(Tuple::tcp(from, service()), f);
        (seg.seq, seg.ack) = (seq, ack);
        self.forward(&seg, pod())
    }

    /// Conntrack, IPVS's choice of `to`, source NAT, confirm.
    pub(super) fn forward(&mut self, seg: &Segment, to: Endpoint) -> CtRule {
        let (ct, rule) = match self.incoming(seg) {
            Incoming::Tracked(ct, rule) => (ct, rule),
            Incoming::Untracked(rule) | Incoming::Dropped(rule) => return rule,
        };
        self.ct.alter_reply_source(ct, to);
        let tick = self.tick();
        self.ct.source_nat(tick, ct, self.policy, &mut self.draws);
        match self.ct.confirm(tick, ct) {
            Ok(()) => rule,
            Err(clash) => clash,
        }
    }

    /// A segment of the pod to the client. Its rule.
    pub(super) fn pod(&mut self, flags: Flags, seq: u32, ack: u32) -> CtRule {
        let mut seg = Segment::new(Tuple::tcp(pod(), client()), flags);
        (seg.seq, seg.ack) = (seq, ack);
        self.pod_sends(&seg)
    }

    pub(super) fn pod_sends(&mut self, seg: &Segment) -> CtRule {
        match self.incoming(seg) {
            Incoming::Tracked(ct, rule) => {
                let tick = self.tick();
                self.ct.source_nat(tick, ct, self.policy, &mut self.draws);
                assert_eq!(self.ct.confirm(tick, ct), Ok(()));
                rule
            }
            Incoming::Untracked(rule) | Incoming::Dropped(rule) => rule,
        }
    }

    /// State and remaining seconds of the client's entry; `None` if there is none.
    pub(super) fn state(&mut self) -> Option<(CtState, u64)> {
        let now = self.tick();
        let ct = self.ct.find(now, &Tuple::tcp(client(), service()))?;
        let entry = self.ct.entry(ct.slot);
        let left = now.until(entry.deadline) / 250;
        Some((entry.tcp()?.state, left))
    }

    pub(super) fn status(&mut self) -> Status {
        let now = self.tick();
        let tuple = Tuple::tcp(client(), service());
        let ct = self.ct.find(now, &tuple).expect("an entry");
        self.ct.entry(ct.slot).status
    }

    /// The handshake: client ISN 100, pod ISN 500.
    pub(super) fn establish(&mut self) {
        assert_eq!(self.client(SYN, 100, 0), CtRule::NewSyn);
        assert_eq!(self.pod(SYN_ACK, 500, 101), CtRule::InWindow);
        assert_eq!(self.client(ACK, 101, 501), CtRule::InWindow);
        assert_eq!(self.state(), Some((CtState::Established, 432_000)));
    }
}
