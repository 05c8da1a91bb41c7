//! A client and a pod on a wire, for tests: no node between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::client::{Client, ConnId, NoPort, Source};
use super::ports::{Destination, PortChooser};
use super::secret::Secret;
use super::server::Pod;
use super::socket::{Event, Outcome, Stack};
use crate::kernel::Kernel;
use crate::segment::{Endpoint, Segment};
use crate::sysctl::TcpSysctls;
use crate::time::{Clock, Instant, Span};

/// A stack of a kernel release, HZ 250.
pub fn stack(release: &str, seed: u64) -> Stack {
    stack_hz(release, seed, 250)
}

pub fn stack_hz(release: &str, seed: u64, hz: u32) -> Stack {
    let kernel = release.parse::<Kernel>().unwrap().behaviours();
    Stack {
        kernel,
        clock: Clock::new(hz, kernel.timer_era(), Span::from_secs(1000)),
        sysctls: TcpSysctls::of(kernel),
        secret: Secret::from_seed(seed),
    }
}

pub fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

pub const CLIENT: &str = "10.0.0.1:0";
pub const SERVER: &str = "10.0.0.2:80";

pub fn destination() -> Destination {
    Destination {
        saddr: endpoint(CLIENT).ip,
        daddr: endpoint(SERVER).ip,
        dport: 80,
    }
}

/// What the applications do.
#[derive(Clone, Copy, Debug)]
pub struct App {
    pub request: u32,
    pub answer: u32,
    pub server_first: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    ToPod(Segment),
    ToClient(Segment),
    ClientTimer(ConnId),
    PodTimer(Endpoint),
}

pub struct Wire {
    pub client: Client,
    pub pod: Pod,
    pub chooser: PortChooser,
    pub rng: ChaCha8Rng,
    pub now: Instant,
    pub app: App,
    /// The numbers of the segments that are lost, in the order of sending.
    pub lost: Vec<u32>,
    /// No segment arrives at the pod from here on.
    pub blackhole: bool,
    pub log: Vec<String>,
    pub events: Vec<(Instant, Event)>,
    sent: u32,
    order: u64,
    queue: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    work: Vec<What>,
}

impl Wire {
    pub fn new(client: &str, server: &str) -> Self {
        Self::with(stack(client, 1), stack(server, 2))
    }

    pub fn with(client: Stack, server: Stack) -> Self {
        Self {
            chooser: PortChooser::new(client.kernel, client.clock, client.secret),
            client: Client::new(client, &[]),
            pod: Pod::new(server, endpoint(SERVER), 511),
            rng: ChaCha8Rng::seed_from_u64(3),
            now: Instant::ZERO,
            app: App {
                request: 1,
                answer: 1,
                server_first: false,
            },
            lost: Vec::new(),
            blackhole: false,
            log: Vec::new(),
            events: Vec::new(),
            sent: 0,
            order: 0,
            queue: BinaryHeap::new(),
            work: Vec::new(),
        }
    }

    fn push(&mut self, at: Instant, what: What) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, self.work.len())));
        self.work.push(what);
    }

    pub fn connect(&mut self) -> Result<ConnId, NoPort> {
        self.connect_from(Source::Unbound)
    }

    pub fn connect_from(&mut self, source: Source) -> Result<ConnId, NoPort> {
        let (id, outcome) = self.client.connect(
            self.now,
            destination(),
            source,
            &mut self.chooser,
            &mut self.rng,
        )?;
        self.client_did(id, &outcome);
        Ok(id)
    }

    fn line(&mut self, who: &str, segment: &Segment, lost: bool) {
        let at = (self.now.0 + 500_000) / 1_000_000;
        let lost = if lost { " lost" } else { "" };
        let line = format!(
            "{}.{:03} {who} [{}]{}{lost}",
            at / 1000,
            at % 1000,
            segment.flags,
            if segment.len > 0 {
                format!(" {}", segment.len)
            } else {
                String::new()
            },
        );
        self.log.push(line);
    }

    fn transmit(&mut self, segment: &Segment, to_pod: bool) {
        self.sent += 1;
        let lost = self.lost.contains(&self.sent) || to_pod && self.blackhole;
        self.line(if to_pod { ">" } else { "<" }, segment, lost);
        if !lost {
            let at = self.now + Span::from_micros(100);
            let what = if to_pod {
                What::ToPod(*segment)
            } else {
                What::ToClient(*segment)
            };
            self.push(at, what);
        }
    }

    pub fn client_did(&mut self, id: ConnId, outcome: &Outcome) {
        for segment in outcome.segments() {
            self.transmit(segment, true);
        }
        for &event in outcome.events() {
            self.events.push((self.now, event));
            self.client_app(id, event);
        }
        if let Some(tick) = self.client.timer(self.now, id) {
            let at = self.client.stack().clock.instant(tick);
            self.push(at.max(self.now), What::ClientTimer(id));
        }
    }

    fn client_app(&mut self, id: ConnId, event: Event) {
        let outcome = match event {
            Event::Connected => self.client.send(self.now, id, self.app.request),
            Event::Data(_) if !self.app.server_first => self.client.close(self.now, id, false),
            Event::PeerClosed => self.client.close(self.now, id, false),
            _ => return,
        };
        self.client_did(id, &outcome);
    }

    pub fn pod_did(&mut self, peer: Endpoint, outcome: &Outcome) {
        for segment in outcome.segments() {
            self.transmit(segment, false);
        }
        for &event in outcome.events() {
            self.pod_app(peer, event);
        }
        if let Some(tick) = self.pod.timer(self.now, peer) {
            let at = self.client.stack().clock.instant(tick);
            self.push(at.max(self.now), What::PodTimer(peer));
        }
    }

    fn pod_app(&mut self, peer: Endpoint, event: Event) {
        match event {
            Event::Data(_) if self.pod.phase() == super::server::Phase::Serving => {
                let outcome = self.pod.send(self.now, peer, self.app.answer);
                self.pod_did(peer, &outcome);
                if self.app.server_first {
                    let outcome = self.pod.close(self.now, peer, false);
                    self.pod_did(peer, &outcome);
                }
            }
            Event::PeerClosed => {
                let outcome = self.pod.close(self.now, peer, false);
                self.pod_did(peer, &outcome);
            }
            _ => {}
        }
    }

    /// Works until `until`, or to the end. Returns how many things happened.
    pub fn run(&mut self, until: Instant) -> u32 {
        let mut steps = 0;
        while let Some(&Reverse((at, _, what))) = self.queue.peek() {
            if at > until {
                break;
            }
            self.queue.pop();
            self.now = at;
            steps += 1;
            assert!(steps < 1_000_000, "packets forever");
            match self.work[what] {
                What::ToPod(segment) => {
                    let outcome = self.pod.on_segment(self.now, &segment);
                    self.pod_did(segment.tuple.src, &outcome);
                }
                What::ToClient(segment) => {
                    let (id, outcome) = self.client.on_segment(self.now, &segment);
                    if let Some(id) = id {
                        self.client_did(id, &outcome);
                    } else {
                        for segment in outcome.segments() {
                            self.transmit(segment, true);
                        }
                    }
                }
                What::ClientTimer(id) => {
                    let outcome = self.client.on_timer(self.now, id);
                    self.client_did(id, &outcome);
                }
                What::PodTimer(peer) => {
                    let outcome = self.pod.on_timer(self.now, peer);
                    self.pod_did(peer, &outcome);
                }
            }
        }
        if until != Instant::NEVER {
            self.now = until;
        }
        steps
    }

    /// Works for `secs` more seconds.
    pub fn run_for(&mut self, secs: u64) -> u32 {
        self.run(self.now + Span::from_secs(secs))
    }

    pub fn take_log(&mut self) -> Vec<String> {
        core::mem::take(&mut self.log)
    }
}
