//! Cilium's kube-proxy replacement, one packet at a time: a service entry for each client tuple in a BPF map.
//!
//! Seen from outside: the entry of a closed connection stays, with its backend, for hours; what a SYN on it does depends
//! on the release. This is the path of traffic from outside the cluster, and of pods where socket load balancing is
//! off or only in the host's namespace.
//!
//! Faithful to: `lb4_local`, `__ct_lookup`, `ct_update_timeout` (trees of about 1.13 and after 1.19; facts
//! kube-proxy.md 7) behind the gates of [`super::CiliumGate`]; as in the kernel's map, a lookup does not look at an
//! entry's lifetime: the collector ends it. Session affinity as `__lb4_affinity_backend_id` of those trees has it: it is asked when there is no
//! entry, by the client's address, and names any backend that the service still knows, one that terminates included (#27096; the
//! issue is closed, the release that ends it is not known, so all releases do it here).
//! Leaves out: Maglev, source NAT for backends on other nodes (so: direct server return or backends on
//! the node), fragments, policy, a full map, backends that several services share (#27726), the collector's adaptive
//! interval, maintenance and quarantine states. Read, and not observed.

use core::net::Ipv4Addr;

use hashbrown::HashMap;
use rand::{Rng, RngExt};
use rustc_hash::FxBuildHasher;

use super::cilium_version::{CiliumBehaviours, CiliumGate};
use crate::ipvs::service::ServiceKey;
use crate::segment::{Endpoint, Flags, Proto, Segment, Tuple};
use crate::time::{Instant, Span};

/// Seconds between two reports of a flow without a new flag (`CT_REPORT_INTERVAL`).
const REPORT_INTERVAL: u64 = 5;

/// Whether new connections may go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// They may.
    Active,
    /// The endpoint terminates: only what is already there.
    Terminating,
}

/// Why a packet went where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CiliumRule {
    /// No entry: a backend was chosen at random.
    Chosen,
    /// The packet follows its entry.
    Followed,
    /// A SYN found an entry and went to its active backend.
    Kept,
    /// A SYN found an entry and went to its backend, although that terminates.
    KeptInactive,
    /// A SYN found the entry of a closed connection: chosen anew.
    RechosenClosed,
    /// A SYN found an entry whose backend terminates: chosen anew.
    RechosenInactive,
    /// The entry's backend is gone from the map: chosen anew.
    RechosenDeleted,
    /// No entry: the client's affinity named the backend.
    ByAffinity,
    /// No entry: the client's affinity named a backend that terminates.
    ByAffinityInactive,
    /// The service has no active backend: dropped.
    NoBackend,
    /// A backend's packet gets the service's address.
    Translated,
}

impl CiliumRule {
    /// Whether a backend was chosen by it.
    pub const fn chooses(self) -> bool {
        matches!(
            self,
            Self::Chosen
                | Self::ByAffinity
                | Self::ByAffinityInactive
                | Self::RechosenClosed
                | Self::RechosenInactive
                | Self::RechosenDeleted
        )
    }

    /// One sentence on what the rule does.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Chosen => "no service entry: a backend was chosen at random",
            Self::Followed => "the packet follows its service entry",
            Self::Kept => {
                "the SYN found a service entry of its tuple and went to the entry's backend"
            }
            Self::KeptInactive => {
                "the SYN found a service entry of its tuple and went to the entry's backend, although it terminates"
            }
            Self::RechosenClosed => "the service entry was closed: a backend was chosen anew",
            Self::RechosenInactive => "the entry's backend terminates: another was chosen",
            Self::RechosenDeleted => "the entry's backend is gone: another was chosen",
            Self::ByAffinity => "no service entry: the client's session affinity named the backend",
            Self::ByAffinityInactive => {
                "no service entry: the client's session affinity named the backend, although it terminates"
            }
            Self::NoBackend => "the service has no active backend: dropped",
            Self::Translated => "the backend's packet follows its entry",
        }
    }
}

/// How Cilium is set up.
#[derive(Clone, Copy, Debug)]
pub struct CiliumConfig {
    /// What the release does.
    pub behaviours: CiliumBehaviours,
    /// `bpf-ct-timeout-service-tcp`: 21600 s in the releases of 2022, 8000 s now.
    pub service_tcp: Span,
    /// `bpf-ct-timeout-service-any`: 60 s.
    pub service_other: Span,
    /// `bpf-ct-timeout-service-tcp-grace`: 60 s.
    pub grace: Span,
    /// Time between two runs of the collector.
    pub gc_interval: Span,
    /// Session affinity by client address: how long after its last use a client's backend is remembered.
    pub affinity: Option<Span>,
}

/// `bpf-ct-timeout-regular-tcp-syn`.
const SYN_TIMEOUT: u64 = 60;
/// `bpf-ct-timeout-regular-tcp-fin`.
const CLOSE_TIMEOUT: u64 = 10;

/// A service entry; times in seconds.
#[derive(Clone, Copy, Debug)]
struct Flow {
    backend: Endpoint,
    until: u64,
    /// The last packet that was worth a report (`last_tx_report`).
    reported: u64,
    /// Flags seen so far: SYN, FIN, RST.
    flags: u8,
    seen_non_syn: bool,
    closing: bool,
    /// Both closing bits: no packet renews it.
    dead: bool,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CiliumVerdict {
    /// It goes on like this.
    Forward(Segment, CiliumRule),
    /// Dropped.
    Drop(CiliumRule),
    /// Not a service's.
    Pass,
}

/// The maps.
#[derive(Clone, Debug)]
pub struct Cilium {
    config: CiliumConfig,
    services: Vec<(ServiceKey, Vec<(Endpoint, BackendState)>)>,
    flows: HashMap<Tuple, Flow, FxBuildHasher>,
    /// From a backend's answer to the service's address, and until when.
    replies: HashMap<Tuple, (Endpoint, u64), FxBuildHasher>,
    /// The backend that a client of a service used last, and in which second.
    affinity: HashMap<(ServiceKey, Ipv4Addr), (Endpoint, u64), FxBuildHasher>,
    gc_at: Instant,
}

impl Cilium {
    /// Empty maps; the collector runs for the first time after one interval.
    pub fn new(config: CiliumConfig) -> Self {
        Self {
            config,
            services: Vec::new(),
            flows: HashMap::default(),
            replies: HashMap::default(),
            affinity: HashMap::default(),
            gc_at: Instant::ZERO + config.gc_interval,
        }
    }

    /// Replaces the backends of a service. Releases that forget a terminating backend at once do so here.
    pub fn set_backends(&mut self, key: ServiceKey, mut backends: Vec<(Endpoint, BackendState)>) {
        if !self.config.behaviours.has(CiliumGate::KeepsTerminating) {
            backends.retain(|(_, state)| *state == BackendState::Active);
        }
        match self
            .services
            .iter_mut()
            .find(|(service, _)| *service == key)
        {
            Some((_, old)) => *old = backends,
            None => self.services.push((key, backends)),
        }
    }

    /// The backends of a service.
    pub fn backends(&self, key: ServiceKey) -> &[(Endpoint, BackendState)] {
        self.services
            .iter()
            .find(|(service, _)| *service == key)
            .map_or(&[], |(_, backends)| backends)
    }

    /// How many service entries there are, expired ones included.
    pub fn entries(&self) -> usize {
        self.flows.len()
    }

    fn collect(&mut self, now: Instant) {
        while self.gc_at <= now {
            let seconds = self.gc_at.as_secs();
            self.flows.retain(|_, flow| flow.until > seconds);
            self.replies.retain(|_, (_, until)| *until > seconds);
            self.gc_at += self.config.gc_interval;
        }
    }

    /// A packet of either side.
    pub fn packet(&mut self, now: Instant, segment: &Segment, rng: &mut impl Rng) -> CiliumVerdict {
        self.collect(now);
        let tuple = segment.tuple;
        let key = ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
        let seconds = now.as_secs();
        let Some(service) = self
            .services
            .iter()
            .position(|(service, _)| *service == key)
        else {
            return self.reply(seconds, segment);
        };
        let (backend, rule) = self.choose(seconds, service, segment, rng);
        let Some(backend) = backend else {
            return CiliumVerdict::Drop(rule);
        };
        if self.config.affinity.is_some() {
            self.affinity
                .insert((key, tuple.src.ip), (backend, seconds));
        }
        let mut out = *segment;
        out.tuple.dst = backend;
        let until = seconds + self.config.service_tcp.as_secs();
        self.replies
            .insert(out.tuple.reversed(), (tuple.dst, until));
        CiliumVerdict::Forward(out, rule)
    }

    fn reply(&mut self, now: u64, segment: &Segment) -> CiliumVerdict {
        let lifetime = self.config.service_tcp.as_secs();
        let Some((virt, until)) = self.replies.get_mut(&segment.tuple) else {
            return CiliumVerdict::Pass;
        };
        *until = now + lifetime;
        let mut out = *segment;
        out.tuple.src = *virt;
        CiliumVerdict::Forward(out, CiliumRule::Translated)
    }

    /// The backend of a packet to a service, with the entry's update (`lb4_local`).
    fn choose(
        &mut self,
        now: u64,
        service: usize,
        segment: &Segment,
        rng: &mut impl Rng,
    ) -> (Option<Endpoint>, CiliumRule) {
        let tcp = segment.tuple.proto == Proto::Tcp;
        let syn = tcp && segment.flags.has(Flags::SYN);
        let found = self.look_up(now, segment, syn);
        let backends = &self.services[service].1;
        let state = |backend: Endpoint| {
            backends
                .iter()
                .find(|(known, _)| *known == backend)
                .map(|(_, state)| *state)
        };
        let behaviours = self.config.behaviours;
        let rule = match found {
            Looked::None => CiliumRule::Chosen,
            Looked::Closed => CiliumRule::RechosenClosed,
            Looked::Entry(backend) => match state(backend) {
                Some(BackendState::Active) if syn => return (Some(backend), CiliumRule::Kept),
                Some(BackendState::Active) => return (Some(backend), CiliumRule::Followed),
                Some(BackendState::Terminating)
                    if syn && behaviours.has(CiliumGate::LeavesInactive) =>
                {
                    CiliumRule::RechosenInactive
                }
                Some(BackendState::Terminating) if syn || !tcp => {
                    return (Some(backend), CiliumRule::KeptInactive);
                }
                Some(BackendState::Terminating) => return (Some(backend), CiliumRule::Followed),
                None => CiliumRule::RechosenDeleted,
            },
        };
        if matches!(rule, CiliumRule::Chosen | CiliumRule::RechosenClosed)
            && let Some((backend, state)) = self.remembered(now, service, segment.tuple.src.ip)
        {
            let rule = match state {
                BackendState::Active => CiliumRule::ByAffinity,
                BackendState::Terminating => CiliumRule::ByAffinityInactive,
            };
            self.enter(now, segment, backend, rule, syn);
            return (Some(backend), rule);
        }
        let backends = &self.services[service].1;
        let active = backends
            .iter()
            .filter(|(_, state)| *state == BackendState::Active);
        let count = active.clone().count();
        if count == 0 {
            return (None, CiliumRule::NoBackend);
        }
        let chosen = active
            .clone()
            .nth(rng.random_range(0..count))
            .map(|(backend, _)| *backend);
        if let Some(backend) = chosen {
            self.enter(now, segment, backend, rule, syn);
        }
        (chosen, rule)
    }

    /// The backend that a client's affinity names, if the service knows it.
    fn remembered(
        &self,
        now: u64,
        service: usize,
        client: Ipv4Addr,
    ) -> Option<(Endpoint, BackendState)> {
        let timeout = self.config.affinity?.as_secs();
        let (key, backends) = &self.services[service];
        let (backend, used) = self.affinity.get(&(*key, client))?;
        if used + timeout <= now {
            return None;
        }
        let known = backends.iter().find(|(known, _)| known == backend);
        known.copied()
    }

    /// Writes the choice: into the entry that is there, or as a new one.
    fn enter(
        &mut self,
        now: u64,
        segment: &Segment,
        backend: Endpoint,
        rule: CiliumRule,
        syn: bool,
    ) {
        let updates = matches!(
            rule,
            CiliumRule::RechosenDeleted | CiliumRule::RechosenInactive
        );
        if let (Some(flow), true) = (self.flows.get_mut(&segment.tuple), updates) {
            flow.backend = backend;
            return;
        }
        let lifetime = match (segment.tuple.proto, syn) {
            (Proto::Tcp, true) => SYN_TIMEOUT,
            (Proto::Tcp, false) => self.config.service_tcp.as_secs(),
            (Proto::Udp, _) => self.config.service_other.as_secs(),
        };
        let flow = Flow {
            backend,
            until: now + lifetime,
            reported: now,
            flags: interesting(segment.flags),
            seen_non_syn: !syn,
            closing: false,
            dead: false,
        };
        self.flows.insert(segment.tuple, flow);
    }

    /// Finds the packet's entry and renews it (`__ct_lookup` in the direction of a service).
    fn look_up(&mut self, now: u64, segment: &Segment, syn: bool) -> Looked {
        let config = self.config;
        let Some(flow) = self.flows.get_mut(&segment.tuple) else {
            return Looked::None;
        };
        let grace_over = flow.reported + config.grace.as_secs() <= now;
        if config.behaviours.has(CiliumGate::RebalancesClosed) && syn && flow.closing && grace_over
        {
            return Looked::Closed;
        }
        if segment.tuple.proto == Proto::Udp {
            flow.until = now + config.service_other.as_secs();
            return Looked::Entry(flow.backend);
        }
        if !flow.dead {
            flow.renew(now, segment.flags, syn, &config);
        }
        if segment.flags.has(Flags::FIN) || segment.flags.has(Flags::RST) {
            flow.closing = true;
            if config.behaviours.has(CiliumGate::ReopensAnew) {
                flow.dead = true;
                flow.until = now + CLOSE_TIMEOUT;
            }
        } else if syn && flow.closing {
            if config.behaviours.has(CiliumGate::ReopensAnew) {
                return Looked::Closed;
            }
            flow.closing = false;
        }
        Looked::Entry(flow.backend)
    }
}

/// What a lookup finds.
enum Looked {
    None,
    /// An entry that does not count any more.
    Closed,
    Entry(Endpoint),
}

/// SYN, FIN and RST: the flags whose first sight is worth a report.
fn interesting(flags: Flags) -> u8 {
    flags.0 & Flags::SYN.with(Flags::FIN).with(Flags::RST).0
}

impl Flow {
    fn renew(&mut self, now: u64, flags: Flags, syn: bool, config: &CiliumConfig) {
        self.seen_non_syn |= !syn;
        let lifetime = if self.seen_non_syn {
            config.service_tcp.as_secs()
        } else {
            SYN_TIMEOUT
        };
        self.until = now + lifetime;
        let seen = self.flags | interesting(flags);
        if seen != self.flags || self.reported + REPORT_INTERVAL < now {
            (self.flags, self.reported) = (seen, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Version;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    struct Bed {
        cilium: Cilium,
        rng: ChaCha8Rng,
        now: Instant,
    }

    fn at(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    const OLD: &str = "10.0.1.1:80";
    const NEW: &str = "10.0.1.2:80";

    fn key() -> ServiceKey {
        ServiceKey {
            proto: Proto::Tcp,
            addr: at("10.96.0.1:80"),
        }
    }

    impl Bed {
        fn new(minor: u16) -> Self {
            let config = CiliumConfig {
                behaviours: CiliumBehaviours::of(Version(1, minor, 0)),
                service_tcp: Span::from_secs(21_600),
                service_other: Span::from_secs(60),
                grace: Span::from_secs(60),
                gc_interval: Span::from_secs(300),
                affinity: None,
            };
            let mut bed = Self {
                cilium: Cilium::new(config),
                rng: ChaCha8Rng::seed_from_u64(1),
                now: Instant::from_secs(1),
            };
            bed.backends(&[(OLD, BackendState::Active)]);
            bed
        }

        fn backends(&mut self, all: &[(&str, BackendState)]) {
            let all = all.iter().map(|(text, state)| (at(text), *state)).collect();
            self.cilium.set_backends(key(), all);
        }

        fn send(&mut self, flags: Flags) -> (Option<Endpoint>, CiliumRule) {
            let tuple = Tuple::tcp(at("10.0.9.9:40000"), key().addr);
            match self
                .cilium
                .packet(self.now, &Segment::new(tuple, flags), &mut self.rng)
            {
                CiliumVerdict::Forward(out, rule) => (Some(out.tuple.dst), rule),
                CiliumVerdict::Drop(rule) => (None, rule),
                CiliumVerdict::Pass => panic!("not the service's"),
            }
        }

        /// A whole connection to the only backend; then its replacement, in the state given, and some seconds.
        fn closed_then(&mut self, old: Option<BackendState>, seconds: u64) {
            assert_eq!(self.send(Flags::SYN), (Some(at(OLD)), CiliumRule::Chosen));
            self.send(Flags::ACK);
            self.send(Flags::FIN.with(Flags::ACK));
            self.send(Flags::ACK);
            let mut all = vec![(NEW, BackendState::Active)];
            all.extend(old.map(|state| (OLD, state)));
            self.backends(&all);
            self.now += Span::from_secs(seconds);
        }
    }

    /// F21 and #20382: before #19451 and #20407 a reused port stays with its backend, hours later, while it terminates.
    #[test]
    fn before_1_12_a_reused_port_stays_with_a_terminating_backend() {
        let mut bed = Bed::new(11);
        bed.closed_then(Some(BackendState::Terminating), 3_600);
        assert_eq!(
            bed.send(Flags::SYN),
            (Some(at(OLD)), CiliumRule::KeptInactive)
        );
        // The backend's deletion ends it.
        bed.backends(&[(NEW, BackendState::Active)]);
        assert_eq!(
            bed.send(Flags::SYN),
            (Some(at(NEW)), CiliumRule::RechosenDeleted)
        );
    }

    /// #20407: at once, and without moving what is established.
    #[test]
    fn from_1_12_a_syn_leaves_a_terminating_backend() {
        let mut bed = Bed::new(12);
        bed.closed_then(Some(BackendState::Terminating), 1);
        assert_eq!(
            bed.send(Flags::SYN),
            (Some(at(NEW)), CiliumRule::RechosenInactive)
        );
        let mut bed = Bed::new(12);
        bed.send(Flags::SYN);
        bed.send(Flags::ACK);
        bed.backends(&[
            (OLD, BackendState::Terminating),
            (NEW, BackendState::Active),
        ]);
        assert_eq!(bed.send(Flags::ACK), (Some(at(OLD)), CiliumRule::Followed));
    }

    /// #19451: the grace period counts from the last report, the FIN.
    #[test]
    fn a_closed_entry_is_kept_for_the_grace_period() {
        for (minor, seconds, rule) in [
            (11, 300, CiliumRule::Kept),
            (12, 59, CiliumRule::Kept),
            (12, 60, CiliumRule::RechosenClosed),
            (19, 1, CiliumRule::RechosenClosed),
        ] {
            let mut bed = Bed::new(minor);
            bed.closed_then(Some(BackendState::Active), seconds);
            assert_eq!(bed.send(Flags::SYN).1, rule, "1.{minor} after {seconds} s");
        }
    }

    /// #27096: new connections of a client with affinity go to its backend while that terminates, in any release; to another once it is
    /// deleted, or after the timeout.
    #[test]
    fn affinity_names_a_terminating_backend() {
        for (old, seconds, rule) in [
            (
                Some(BackendState::Terminating),
                5,
                CiliumRule::ByAffinityInactive,
            ),
            (Some(BackendState::Active), 5, CiliumRule::ByAffinity),
            (Some(BackendState::Terminating), 900, CiliumRule::Chosen),
            (None, 5, CiliumRule::Chosen),
        ] {
            let mut bed = Bed::new(14);
            bed.cilium.config.affinity = Some(Span::from_secs(900));
            bed.closed_then(old, seconds);
            let tuple = Tuple::tcp(at("10.0.9.9:40001"), key().addr);
            let syn = Segment::new(tuple, Flags::SYN);
            let verdict = bed.cilium.packet(bed.now, &syn, &mut bed.rng);
            let CiliumVerdict::Forward(_, found) = verdict else {
                panic!("{verdict:?}");
            };
            assert_eq!(found, rule, "{old:?} after {seconds} s");
        }
    }

    /// The collector, and not the lookup, ends an entry: 60 s after a lonely SYN it is still there.
    #[test]
    fn an_expired_entry_counts_until_it_is_collected() {
        let mut bed = Bed::new(12);
        bed.send(Flags::SYN);
        bed.now = Instant::from_secs(200);
        assert_eq!(bed.send(Flags::SYN).1, CiliumRule::Kept);
        bed.now = Instant::from_secs(601);
        assert_eq!(bed.send(Flags::SYN).1, CiliumRule::Chosen);
        assert_eq!(bed.cilium.entries(), 1);
    }

    #[test]
    fn before_1_11_a_terminating_backend_is_forgotten_with_its_connections() {
        let mut bed = Bed::new(10);
        bed.send(Flags::SYN);
        bed.backends(&[
            (OLD, BackendState::Terminating),
            (NEW, BackendState::Active),
        ]);
        assert_eq!(
            bed.send(Flags::ACK),
            (Some(at(NEW)), CiliumRule::RechosenDeleted)
        );
        bed.backends(&[]);
        assert_eq!(bed.send(Flags::ACK), (None, CiliumRule::NoBackend));
    }

    #[test]
    fn answers_get_the_services_address() {
        let mut bed = Bed::new(12);
        bed.send(Flags::SYN);
        let answer = Segment::new(Tuple::tcp(at(OLD), at("10.0.9.9:40000")), Flags::ACK);
        let verdict = bed.cilium.packet(bed.now, &answer, &mut bed.rng);
        let CiliumVerdict::Forward(out, CiliumRule::Translated) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(out.tuple.src, key().addr);
        let stray = Segment::new(Tuple::tcp(at(OLD), at("10.0.9.9:40001")), Flags::ACK);
        assert_eq!(
            bed.cilium.packet(bed.now, &stray, &mut bed.rng),
            CiliumVerdict::Pass
        );
    }
}
