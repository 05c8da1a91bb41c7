//! Invents conversations: plays clients and pods at once, mostly politely and sometimes not, and turns the rules meanwhile.
//!
//! What it does next depends on its seed and on what the node let through, so a run is repeatable as far as the kernel is.

use std::net::{Ipv4Addr, SocketAddrV4};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::config::{PacketConfig, SCHEDULERS, pick};
use crate::packet::{ACK, FIN, PSH, RST, SYN, Segment, URG};
use crate::step::{Action, Step};

/// The virtual service, as in the founding case.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 20, 79, 226), 31199);
/// The second virtual service on the same pods.
pub const SECOND_SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 20, 79, 227), 80);
/// How many pods there may be.
const PODS: usize = 4;
const WINDOW: u16 = 64240;

/// The address of a pod.
fn pod(index: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 27, 1, 10 + index as u8), 80)
}

/// One end of a TCP connection, as far as politeness needs it.
#[derive(Debug, Clone, Default)]
struct End {
    /// Next sequence number to send.
    next: u32,
    /// Next sequence number expected.
    expected: u32,
    syn_sent: bool,
    syn_seen: bool,
    fin_sent: bool,
    fin_seen: bool,
    reset: bool,
    /// Something came that has not been acknowledged.
    owes_ack: bool,
    /// The segment sent last, for retransmission.
    last: Option<Segment>,
}

impl End {
    fn open(&self) -> bool {
        self.syn_sent && self.syn_seen && !self.reset
    }

    fn finished(&self) -> bool {
        self.reset || (self.fin_sent && self.fin_seen)
    }

    /// Takes in a segment from the other end.
    fn receive(&mut self, segment: &Segment) {
        if segment.flags & RST != 0 {
            self.reset = true;
            return;
        }
        if segment.flags & SYN != 0 {
            self.syn_seen = true;
            self.expected = segment.seq.wrapping_add(1);
            self.owes_ack = true;
            return;
        }
        if segment.span() == 0 {
            return;
        }
        self.owes_ack = true;
        if segment.seq == self.expected {
            self.expected = self.expected.wrapping_add(segment.span());
            self.fin_seen |= segment.flags & FIN != 0;
        }
    }
}

/// A client tuple, its present conversation, and the pod that the node chose for it.
#[derive(Debug)]
struct Flow {
    client: SocketAddrV4,
    udp: bool,
    service: SocketAddrV4,
    near: End,
    /// The pod, the address under which it knows the client, and its end of the connection.
    far: Option<(SocketAddrV4, SocketAddrV4, End)>,
}

/// A destination as the rules have it now.
#[derive(Debug, Clone, Copy)]
struct Destination {
    pod: usize,
    weight: u32,
}

/// One virtual service and its destinations.
#[derive(Debug)]
struct Service {
    address: SocketAddrV4,
    udp: bool,
    /// Not deleted.
    exists: bool,
    destinations: Vec<Destination>,
}

impl Service {
    fn flag(&self) -> &'static str {
        if self.udp { "-u" } else { "-t" }
    }

    /// The command that makes it.
    fn add(&self, config: &PacketConfig) -> String {
        let (flag, address, scheduler) = (self.flag(), self.address, &config.scheduler);
        let mut add = format!("-A {flag} {address} -s {scheduler}");
        if let Some(flags) = &config.scheduler_flags {
            add.push_str(&format!(" -b {flags}"));
        }
        if let Some(timeout) = config.persistence {
            add.push_str(&format!(" -p {timeout}"));
        }
        add
    }
}

/// The generator.
#[derive(Debug)]
pub struct Generator {
    rng: ChaCha8Rng,
    config: PacketConfig,
    services: Vec<Service>,
    flows: Vec<Flow>,
    /// The flow whose packet was sent last: what the node sends next belongs to it.
    current: usize,
    /// Steps that are already decided.
    planned: Vec<Step>,
}

/// Which end of a flow sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Pod,
}

/// A polite thing to do next.
#[derive(Debug, Clone, Copy)]
enum Polite {
    Connect,
    Repeat,
    Accept,
    Acknowledge,
    Data,
    Finish,
    Reset,
}

impl Generator {
    /// A generator for one run. The first steps set up the services.
    pub fn new(config: PacketConfig, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut services = vec![(SERVICE, false)];
        if config.second_service {
            services.push((SECOND_SERVICE, false));
        }
        if config.udp {
            services.push((SERVICE, true));
        }
        // A scheduler or a template that looks at client addresses needs several of them.
        let by_address =
            config.persistence.is_some() || matches!(config.scheduler.as_str(), "sh" | "mh" | "dh");
        let clients: u8 = if by_address { 4 } else { 2 };
        let ports = config.tuples / u16::from(clients);
        let mut flows = Vec::new();
        for host in 0..clients {
            for port in 0..ports {
                flows.push(Flow {
                    client: SocketAddrV4::new(
                        Ipv4Addr::new(10, 23, 31, 87 + host),
                        40000 + 2 * port,
                    ),
                    udp: config.udp && port == ports - 1,
                    service: SERVICE,
                    near: End::default(),
                    far: None,
                });
            }
        }
        let mut planned = Vec::new();
        let mut say = |arguments: String| {
            planned.push(Step {
                wait_us: 1000,
                action: Action::Ipvsadm { arguments },
            });
        };
        if let Some([tcp, fin, udp]) = config.timeouts {
            say(format!("--set {tcp} {fin} {udp}"));
        }
        let initial = rng.random_range(1..=3);
        let mut made = Vec::new();
        for (address, udp) in services {
            let mut service = Service {
                address,
                udp,
                exists: true,
                destinations: Vec::new(),
            };
            say(service.add(&config));
            for index in 0..initial {
                let weight = if config.weights {
                    rng.random_range(1..=3)
                } else {
                    1
                };
                say(format!(
                    "-a {} {address} -r {} -m -w {weight}",
                    service.flag(),
                    pod(index)
                ));
                service
                    .destinations
                    .push(Destination { pod: index, weight });
            }
            made.push(service);
        }
        planned.reverse();
        Self {
            rng,
            config,
            services: made,
            flows,
            current: 0,
            planned,
        }
    }

    /// The next step.
    pub fn next(&mut self) -> Step {
        if let Some(step) = self.planned.pop() {
            return step;
        }
        let wait_us = self.wait();
        // A service that refuses everybody has little to tell: it gets a destination again before long.
        let starved = self
            .services
            .iter()
            .position(|s| s.destinations.iter().all(|d| d.weight == 0));
        if let Some(at) = starved
            && self.rng.random_bool(0.25)
        {
            return Step {
                wait_us,
                action: self.turn_rules(at),
            };
        }
        let action = match self.rng.random_range(0..100) {
            0..8 => {
                let at = self.rng.random_range(0..self.services.len());
                self.turn_rules(at)
            }
            8..11 => Action::Look,
            n if n < 11 + self.config.disturbance => self.disturb(),
            _ => self.proceed(),
        };
        Step { wait_us, action }
    }

    /// What the node sent towards the clients.
    pub fn seen_by_client(&mut self, segment: &Segment) {
        let found = self
            .flows
            .iter_mut()
            .find(|f| f.client == segment.dst && f.udp == segment.udp && f.service == segment.src);
        if let Some(flow) = found {
            flow.near.receive(segment);
        }
    }

    /// What the node sent towards the pods.
    pub fn seen_by_pod(&mut self, segment: &Segment) {
        let flow = &mut self.flows[self.current];
        if flow.udp != segment.udp {
            return;
        }
        let known = matches!(&flow.far, Some((pod, peer, end))
            if *pod == segment.dst && *peer == segment.src && !(end.finished() && segment.flags & SYN != 0));
        if !known {
            let end = End {
                next: self.rng.random(),
                ..End::default()
            };
            flow.far = Some((segment.dst, segment.src, end));
        }
        if let Some((_, _, end)) = &mut flow.far {
            end.receive(segment);
        }
    }

    /// How long to wait before the next step: mostly a moment, sometimes until about a timeout.
    fn wait(&mut self) -> u64 {
        let rng = &mut self.rng;
        let ms = match rng.random_range(0..1000) {
            0..720 => rng.random_range(1..10),
            720..850 => rng.random_range(10..1200),
            850..920 => rng.random_range(1200..12_000),
            // Around the timeouts of CLOSE, SYN_RECV and TIME_WAIT, and the late firing of the timer wheel.
            920..960 => {
                *pick(rng, &[10_000, 30_000, 60_000, 120_000]) + rng.random_range(0..3000) - 500
            }
            960..993 => rng.random_range(12_000..125_000),
            993..997 => rng.random_range(125_000..320_000),
            _ => 900_000 + rng.random_range(0..20_000) - 1000,
        };
        ms * 1000 + rng.random_range(0..1000)
    }

    /// The next thing some conversation would do by itself.
    fn proceed(&mut self) -> Action {
        // Mostly go on with the same conversation, or none would ever come to its end.
        if self.rng.random_bool(0.4) {
            self.current = self.rng.random_range(0..self.flows.len());
        }
        let flow = &self.flows[self.current];
        if flow.udp {
            let pod = flow.far.is_some() && self.rng.random_bool(0.5);
            return self.datagram(if pod { Side::Pod } else { Side::Client });
        }
        let mut choices: Vec<(u32, Side, Polite)> = Vec::new();
        let near = &flow.near;
        if !near.syn_sent || near.finished() {
            choices.push((10, Side::Client, Polite::Connect));
        } else if !near.syn_seen {
            choices.push((3, Side::Client, Polite::Repeat));
            choices.push((1, Side::Client, Polite::Connect));
        }
        if near.owes_ack && near.syn_sent {
            choices.push((30, Side::Client, Polite::Acknowledge));
        }
        if near.open() && !near.fin_sent {
            choices.push((6, Side::Client, Polite::Data));
            choices.push((
                if near.fin_seen { 20 } else { 4 },
                Side::Client,
                Polite::Finish,
            ));
            choices.push((1, Side::Client, Polite::Reset));
        }
        if let Some((_, _, far)) = &flow.far {
            if far.syn_seen && !far.syn_sent && !far.reset {
                choices.push((40, Side::Pod, Polite::Accept));
                choices.push((4, Side::Pod, Polite::Reset));
            } else if !far.syn_seen && !far.reset {
                // A segment out of nowhere: a pod answers with a reset.
                choices.push((20, Side::Pod, Polite::Reset));
            }
            if far.owes_ack && far.syn_sent {
                choices.push((20, Side::Pod, Polite::Acknowledge));
            }
            if far.open() && !far.fin_sent {
                choices.push((6, Side::Pod, Polite::Data));
                choices.push((if far.fin_seen { 20 } else { 4 }, Side::Pod, Polite::Finish));
                choices.push((1, Side::Pod, Polite::Reset));
            }
        }
        let total: u32 = choices.iter().map(|(weight, _, _)| weight).sum();
        if total == 0 {
            return self.connect();
        }
        let mut at = self.rng.random_range(0..total);
        for (weight, side, what) in choices {
            if at < weight {
                return self.act(side, what);
            }
            at -= weight;
        }
        Action::Look
    }

    fn act(&mut self, side: Side, what: Polite) -> Action {
        let payload = self.rng.random_range(1..=4);
        match what {
            Polite::Connect => self.connect(),
            Polite::Repeat => self.repeat(side),
            Polite::Accept => self.send(side, SYN | ACK, 0),
            Polite::Acknowledge => self.send(side, ACK, 0),
            Polite::Data => self.send(side, ACK | PSH, payload),
            Polite::Finish => self.send(side, FIN | ACK, 0),
            Polite::Reset => {
                let bare = match side {
                    Side::Client => false,
                    Side::Pod => self.rng.random_bool(0.2),
                };
                self.send(side, if bare { RST } else { RST | ACK }, 0)
            }
        }
    }

    /// A new connection on the current flow's tuple, whatever was there before.
    fn connect(&mut self) -> Action {
        let second = self.config.second_service && self.rng.random_bool(0.4);
        let flow = &mut self.flows[self.current];
        flow.service = if second && !flow.udp {
            SECOND_SERVICE
        } else {
            SERVICE
        };
        if flow.udp {
            return self.datagram(Side::Client);
        }
        // Mostly later in sequence space than the connection before, as clocked initial numbers are.
        let isn = if self.rng.random_bool(0.85) {
            flow.near
                .next
                .wrapping_add(self.rng.random_range(100_000..90_000_000))
        } else {
            self.rng.random()
        };
        flow.near = End {
            next: isn,
            ..End::default()
        };
        self.send(Side::Client, SYN, 0)
    }

    /// Sends a segment that the end believes in, and remembers it.
    fn send(&mut self, side: Side, flags: u8, len: u16) -> Action {
        let options = self.config.tcp_options;
        let flow = &mut self.flows[self.current];
        let (src, dst, end) = match (side, &mut flow.far) {
            (Side::Client, _) => (flow.client, flow.service, &mut flow.near),
            (Side::Pod, Some((pod, peer, end))) => (*pod, *peer, end),
            (Side::Pod, None) => return Action::Look,
        };
        let segment = Segment {
            src,
            dst,
            udp: false,
            len,
            flags,
            seq: end.next,
            ack: if flags & ACK != 0 { end.expected } else { 0 },
            win: if flags & RST != 0 { 0 } else { WINDOW },
            options: options && flags & SYN != 0,
        };
        end.next = end.next.wrapping_add(segment.span());
        end.syn_sent |= flags & SYN != 0;
        end.fin_sent |= flags & FIN != 0;
        end.reset |= flags & RST != 0;
        end.owes_ack &= flags & ACK == 0;
        end.last = Some(segment.clone());
        wrap(side, segment)
    }

    /// Sends the end's last segment again.
    fn repeat(&mut self, side: Side) -> Action {
        let flow = &self.flows[self.current];
        let last = match (side, &flow.far) {
            (Side::Client, _) => flow.near.last.clone(),
            (Side::Pod, Some((_, _, end))) => end.last.clone(),
            (Side::Pod, None) => None,
        };
        match last {
            Some(segment) => wrap(side, segment),
            None => self.connect(),
        }
    }

    fn datagram(&mut self, side: Side) -> Action {
        let len = self.rng.random_range(1..=4);
        let flow = &self.flows[self.current];
        let (src, dst) = match (side, &flow.far) {
            (Side::Pod, Some((pod, peer, _))) => (*pod, *peer),
            _ => (flow.client, flow.service),
        };
        let side = if src == flow.client {
            Side::Client
        } else {
            Side::Pod
        };
        let (seq, ack) = (0, 0);
        wrap(
            side,
            Segment {
                src,
                dst,
                udp: true,
                len,
                flags: 0,
                seq,
                ack,
                win: 0,
                options: false,
            },
        )
    }

    /// Something impolite: a segment that no end would send now.
    fn disturb(&mut self) -> Action {
        self.current = self.rng.random_range(0..self.flows.len());
        let side = if self.flows[self.current].far.is_some() && self.rng.random_bool(0.45) {
            Side::Pod
        } else {
            Side::Client
        };
        if self.flows[self.current].udp {
            return self.datagram(side);
        }
        // Under secure_tcp segments without a meaning have columns of their own to fill.
        if self.config.secure_tcp > 0 && self.rng.random_bool(0.08) {
            let flags = *pick(&mut self.rng, &[0, 0, PSH, URG]);
            return self.stray(side, flags, 0, 0);
        }
        match self.rng.random_range(0..100) {
            // The tuple is reused whatever its state.
            0..22 => self.connect(),
            22..40 => self.repeat(side),
            // Right numbers, wrong moment; the end's own state does not change.
            40..62 => {
                let flags = *pick(
                    &mut self.rng,
                    &[
                        ACK,
                        ACK,
                        ACK | FIN,
                        ACK | FIN,
                        RST,
                        RST | ACK,
                        SYN | ACK,
                        SYN,
                        FIN,
                        ACK | PSH,
                    ],
                );
                self.stray(side, flags, 0, 0)
            }
            // A segment from elsewhere in sequence space.
            62..88 => {
                let flags = *pick(
                    &mut self.rng,
                    &[ACK, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK, ACK | PSH],
                );
                let far: &[i32] = &[-1, 1, -3, 3, -70_000, 70_000, 1_000_000_000, -1_000_000_000];
                let seq = *pick(&mut self.rng, far);
                let ack = if self.rng.random_bool(0.4) {
                    *pick(&mut self.rng, far)
                } else {
                    0
                };
                self.stray(side, flags, seq, ack)
            }
            // Combinations of flags that make no sense.
            88..92 => {
                let flags = *pick(
                    &mut self.rng,
                    &[
                        0,
                        SYN | FIN,
                        SYN | RST,
                        FIN | RST,
                        PSH,
                        URG,
                        SYN | FIN | ACK,
                        FIN | PSH | URG,
                    ],
                );
                self.stray(side, flags, 0, 0)
            }
            // Both ends finish at once.
            92..96 => {
                let both = matches!(&self.flows[self.current],
                    Flow { near, far: Some((_, _, far)), .. }
                        if near.open() && far.open() && !near.fin_sent && !far.fin_sent);
                if !both {
                    return self.proceed();
                }
                let first = self.send(Side::Client, FIN | ACK, 0);
                let action = self.send(Side::Pod, FIN | ACK, 0);
                self.planned.push(Step {
                    wait_us: 1000,
                    action,
                });
                first
            }
            // Zero window.
            _ => match self.stray(side, ACK, 0, 0) {
                Action::Client(segment) => Action::Client(Segment { win: 0, ..segment }),
                Action::Pod(segment) => Action::Pod(Segment { win: 0, ..segment }),
                other => other,
            },
        }
    }

    /// A segment near what the end would send, which the end forgets at once.
    fn stray(&mut self, side: Side, flags: u8, seq: i32, ack: i32) -> Action {
        let len = if flags & (PSH | RST | SYN) == PSH {
            self.rng.random_range(0..=3)
        } else {
            0
        };
        let options = self.config.tcp_options && flags & SYN != 0;
        let flow = &self.flows[self.current];
        let (src, dst, end) = match (side, &flow.far) {
            (Side::Pod, Some((pod, peer, end))) => (*pod, *peer, end),
            _ => (flow.client, flow.service, &flow.near),
        };
        let acknowledged = end.expected.wrapping_add_signed(ack);
        let segment = Segment {
            src,
            dst,
            udp: false,
            len,
            flags,
            seq: end.next.wrapping_add_signed(seq),
            ack: if flags & ACK != 0 { acknowledged } else { 0 },
            win: WINDOW,
            options,
        };
        wrap(
            if src == flow.client {
                Side::Client
            } else {
                Side::Pod
            },
            segment,
        )
    }

    /// Changes a sysctl or the timeouts while connections live.
    fn retune(&mut self) -> Action {
        let rng = &mut self.rng;
        let (key, values): (&str, &[u32]) = match rng.random_range(0..12) {
            0..3 => ("vs.conn_reuse_mode", &[0, 1, 2, 3]),
            3..5 => ("vs.expire_nodest_conn", &[0, 1]),
            5 => ("vs.expire_quiescent_template", &[0, 1]),
            6 => ("vs.conntrack", &[0, 1]),
            7 => ("vs.sloppy_tcp", &[0, 0, 1]),
            8 => ("vs.secure_tcp", &[0, 3]),
            9 => {
                let seconds = [
                    *pick(rng, &[0, 200, 900]),
                    *pick(rng, &[0, 40, 120]),
                    *pick(rng, &[0, 100, 300]),
                ];
                let [tcp, fin, udp] = seconds;
                let arguments = format!("--set {tcp} {fin} {udp}");
                return Action::Ipvsadm { arguments };
            }
            10 => ("netfilter.nf_conntrack_tcp_loose", &[0, 1, 1]),
            _ => ("netfilter.nf_conntrack_tcp_be_liberal", &[0, 0, 1]),
        };
        let value = pick(rng, values).to_string();
        let prefix = if key.starts_with("vs") {
            "net.ipv4."
        } else {
            "net."
        };
        let key = format!("{prefix}{key}");
        if key.ends_with("secure_tcp") && value == "0" {
            // States that only the flood defence has meet the plain tables now, segments without a meaning among others.
            for _ in 0..4 {
                self.current = self.rng.random_range(0..self.flows.len());
                if !self.flows[self.current].udp {
                    let action = self.stray(Side::Client, 0, 0, 0);
                    let wait_us = 1000;
                    self.planned.push(Step { wait_us, action });
                }
            }
        }
        Action::Sysctl { key, value }
    }

    /// Deletes a service, which comes back by and by, or gives it another scheduler or persistence.
    fn rebuild(&mut self, at: usize) -> Action {
        let service = &mut self.services[at];
        let (flag, address) = (service.flag(), service.address);
        if self.rng.random_bool(0.4) {
            service.exists = false;
            service.destinations.clear();
            let arguments = format!("-D {flag} {address}");
            return Action::Ipvsadm { arguments };
        }
        let scheduler = *pick(&mut self.rng, &SCHEDULERS[..8]);
        let mut arguments = format!("-E {flag} {address} -s {scheduler}");
        if let Some(timeout) = *pick(
            &mut self.rng,
            &[self.config.persistence, None, Some(20), Some(90)],
        ) {
            arguments.push_str(&format!(" -p {timeout}"));
        }
        Action::Ipvsadm { arguments }
    }

    /// Adds, reweights, drains or deletes a destination. A rollout does it in this order; chance does not.
    fn turn_rules(&mut self, at: usize) -> Action {
        if !self.services[at].exists {
            self.services[at].exists = true;
            let arguments = self.services[at].add(&self.config);
            return Action::Ipvsadm { arguments };
        }
        if self.config.retuning && self.rng.random_bool(0.25) {
            return self.retune();
        }
        if self.config.rebuilding && self.rng.random_bool(0.15) {
            return self.rebuild(at);
        }
        let top = if self.config.weights { 3 } else { 1 };
        let rng = &mut self.rng;
        let service = &mut self.services[at];
        let absent: Vec<usize> = (0..PODS)
            .filter(|index| service.destinations.iter().all(|d| d.pod != *index))
            .collect();
        let present = service.destinations.len();
        let (flag, address) = (service.flag(), service.address);
        let arguments = match rng.random_range(0..100) {
            n if !absent.is_empty() && (present == 0 || n < 30) => {
                let index = *pick(rng, &absent);
                let weight = rng.random_range(1..=top);
                service
                    .destinations
                    .push(Destination { pod: index, weight });
                format!("-a {flag} {address} -r {} -m -w {weight}", pod(index))
            }
            n if n < 75 => {
                let chosen = rng.random_range(0..present);
                let destination = &mut service.destinations[chosen];
                destination.weight = match destination.weight {
                    0 => rng.random_range(1..=top),
                    _ if rng.random_bool(0.6) => 0,
                    _ => rng.random_range(0..=top),
                };
                let Destination { pod: index, weight } = *destination;
                format!("-e {flag} {address} -r {} -m -w {weight}", pod(index))
            }
            _ => {
                // Drained ones first, as kube-proxy would.
                let chosen = service
                    .destinations
                    .iter()
                    .position(|d| d.weight == 0)
                    .unwrap_or_else(|| rng.random_range(0..present));
                let Destination { pod: index, .. } = service.destinations.remove(chosen);
                // Often it comes back soon, while the node still keeps it in its trash.
                if rng.random_bool(0.3) {
                    let weight = rng.random_range(1..=top);
                    service
                        .destinations
                        .push(Destination { pod: index, weight });
                    let again = format!("-a {flag} {address} -r {} -m -w {weight}", pod(index));
                    let wait_us = *pick(rng, &[1000, 3000, 20_000, 2_000_000, 61_000_000]);
                    let action = Action::Ipvsadm { arguments: again };
                    self.planned.push(Step { wait_us, action });
                }
                format!("-d {flag} {address} -r {}", pod(index))
            }
        };
        Action::Ipvsadm { arguments }
    }
}

fn wrap(side: Side, segment: Segment) -> Action {
    match side {
        Side::Client => Action::Client(segment),
        Side::Pod => Action::Pod(segment),
    }
}

/// A generator of its own for the configuration, so that it does not move with the number of draws made here.
pub fn draw_config(seed: u64) -> PacketConfig {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1);
    PacketConfig::draw(&mut rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_says_the_same() {
        let run = |seed| {
            let mut generator = Generator::new(draw_config(seed), seed);
            (0..200).map(|_| generator.next()).collect::<Vec<_>>()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn every_drawn_configuration_is_legal() {
        for seed in 0..500 {
            draw_config(seed).check().unwrap();
        }
    }
}
