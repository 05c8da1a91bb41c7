//! A server pod: its listener, its sockets, and how it dies.
//!
//! Faithful to: `tcp_v4_rcv`, `tcp_conn_request`, `tcp_check_req`, `tcp_v4_syn_recv_sock`,
//! `inet_csk_listen_stop` (3.10 to 6.12), facts 7.1 to 7.4.
//! Leaves out: syncookies and the limit on half-open requests, `SO_REUSEPORT`.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use super::input::no_socket;
use super::rule::Rule;
use super::socket::{Ctx, Event, Outcome, Socket, Stack, flag, reset_for};
use super::state::{Input, State};
use super::timewait::{self, Verdict};
use crate::index::EndpointMap;
use crate::kernel::Gate;
use crate::segment::{Endpoint, Flags, IcmpKind, Segment, seq_after};
use crate::time::{Instant, Jiffies};

/// How far a pod's death has gone (facts 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Listens and accepts at once.
    Serving,
    /// Listens, but the process does not accept any more: connections pile up in the accept queue.
    NotAccepting,
    /// The listener is closed, the process lives: new SYNs get a RST, open connections are served.
    ListenerClosed,
    /// The process is gone, the kernel closes what it left.
    ProcessGone,
    /// The network namespace is gone, sockets and all: silence. What answers for the address now is
    /// [`super::deadend::DeadEnd`].
    NetnsGone,
}

impl Phase {
    /// Whether a SYN finds a listener.
    pub const fn listens(self) -> bool {
        matches!(self, Self::Serving | Self::NotAccepting)
    }
}

/// A pod with one listening port.
#[derive(Clone, Debug)]
pub struct Pod {
    stack: Stack,
    address: Endpoint,
    phase: Phase,
    backlog: u32,
    queue: VecDeque<Endpoint>,
    sockets: EndpointMap<Socket>,
    time_waits: u32,
}

impl Pod {
    /// A pod that serves on `address`. `listen` is listen(2)'s argument; `somaxconn` caps it.
    pub fn new(stack: Stack, address: Endpoint, listen: u32) -> Self {
        Self {
            stack,
            address,
            phase: Phase::Serving,
            backlog: listen.min(stack.sysctls.somaxconn),
            queue: VecDeque::new(),
            sockets: EndpointMap::default(),
            time_waits: 0,
        }
    }

    /// Gives the sockets towards one client's ports an array of their own: faster, not different.
    pub fn reserve(&mut self, ip: Ipv4Addr, ports: (u16, u16)) {
        self.sockets.reserve(ip, ports);
    }

    /// Address and port of the listener.
    pub const fn address(&self) -> Endpoint {
        self.address
    }

    /// The network stack.
    pub const fn stack(&self) -> &Stack {
        &self.stack
    }

    /// How many sockets are in TIME_WAIT, or in FIN_WAIT2 without a process.
    pub const fn time_waits(&self) -> u32 {
        self.time_waits
    }

    pub(super) const fn ctx(&self, now: Instant) -> Ctx<'_> {
        Ctx {
            stack: &self.stack,
            now,
            tw_full: self.time_waits >= self.stack.sysctls.max_tw_buckets,
        }
    }

    /// Files a socket in TIME_WAIT towards `peer`, which had none, or another in TIME_WAIT.
    pub fn enter_rest(&mut self, peer: Endpoint, socket: Socket) {
        let replaces = self.sockets.get(peer).is_some();
        self.sockets.insert(peer, socket);
        self.time_waits += u32::from(!replaces);
    }

    /// Takes out a socket in TIME_WAIT towards `peer`, if there is one: [`Pod::enter_rest`] can file it again.
    pub fn leave_rest(&mut self, peer: Endpoint) {
        if self
            .sockets
            .get(peer)
            .is_some_and(|socket| socket.state().is_time_wait())
        {
            self.sockets.remove(peer);
            self.time_waits -= 1;
        }
    }

    /// How far its death has gone.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The socket towards `peer`.
    #[inline]
    pub fn socket(&self, peer: Endpoint) -> Option<&Socket> {
        self.sockets.get(peer)
    }

    /// How many sockets exist, TIME_WAIT and half-open ones included.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether there is no socket but the listener.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// How many connections wait to be accepted.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The tick at which the timer of the socket towards `peer` fires.
    pub fn timer(&self, now: Instant, peer: Endpoint) -> Option<Jiffies> {
        self.socket(peer)?.timer(self.stack.clock.jiffies(now))
    }

    fn queue_full(&self) -> bool {
        self.queue.len() > self.backlog as usize
    }

    /// Does `act` to the socket towards `peer`, and keeps the books: a closed socket goes, TIME_WAITs count.
    fn with(
        &mut self,
        now: Instant,
        peer: Endpoint,
        act: impl FnOnce(&mut Socket, &Ctx<'_>) -> Outcome,
    ) -> Option<Outcome> {
        let ctx = Ctx {
            stack: &self.stack,
            now,
            tw_full: self.time_waits >= self.stack.sysctls.max_tw_buckets,
        };
        let socket = self.sockets.get_mut(peer)?;
        let before = u32::from(socket.state().is_time_wait());
        let timer = socket.raw_timer();
        let mut outcome = act(socket, &ctx);
        let after = u32::from(socket.state().is_time_wait());
        let closed = socket.state() == State::Closed;
        outcome.timer_moved = closed || socket.raw_timer() != timer;
        self.time_waits = self.time_waits + after - before;
        if closed {
            self.sockets.remove(peer);
        }
        Some(outcome)
    }

    /// A segment arrives from `segment.tuple.src`.
    pub fn on_segment(&mut self, now: Instant, segment: &Segment) -> Outcome {
        let peer = segment.tuple.src;
        if self.phase == Phase::NetnsGone {
            return Outcome::of(Rule::NetnsGone);
        }
        if segment.tuple.dst != self.address {
            return no_socket(segment);
        }
        match self.socket(peer).map(Socket::state) {
            None => self.at_listener(now, segment, None),
            Some(State::SynRecv) => self.at_request(now, segment),
            Some(State::TimeWait | State::OrphanFinWait2) => self.at_time_wait(now, segment),
            Some(_) => self
                .with(now, peer, |socket, ctx| socket.on_segment(ctx, segment))
                .unwrap_or_else(|| no_socket(segment)),
        }
    }

    /// No socket has the segment's four-tuple. `isn` comes from the TIME_WAIT that a SYN has reopened.
    fn at_listener(&mut self, now: Instant, segment: &Segment, isn: Option<u32>) -> Outcome {
        if !self.phase.listens() {
            return no_socket(segment);
        }
        let flags = segment.flags;
        if flags.has(Flags::ACK) || flags.has(Flags::RST) || !flags.has(Flags::SYN) {
            let answer = reset_for(segment).filter(|_| flags.has(Flags::ACK));
            return answer.map_or(Outcome::of(Rule::ListenerStray), |reset| {
                Outcome::sending(Rule::ListenerStray, reset)
            });
        }
        if flags.has(Flags::FIN) {
            return Outcome::of(Rule::ListenerStray);
        }
        if self.queue_full() {
            return Outcome::of(Rule::AcceptQueueFull);
        }
        let ctx = Ctx {
            stack: &self.stack,
            now,
            tw_full: false,
        };
        let request = Socket::request(&ctx, segment, isn);
        let rule = if isn.is_some() {
            Rule::TimeWaitReopened
        } else {
            Rule::SynAnswered
        };
        let mut outcome = Outcome::sending(rule, request.syn_ack(&ctx));
        outcome.timer_moved = true;
        self.sockets.insert(segment.tuple.src, request);
        outcome
    }

    fn at_time_wait(&mut self, now: Instant, segment: &Segment) -> Outcome {
        let peer = segment.tuple.src;
        let listens = self.phase.listens();
        let mut reopen = None;
        let outcome = self.with(now, peer, |socket, ctx| {
            match timewait::process(socket, ctx, segment) {
                (outcome, Verdict::Done) => outcome,
                (_, Verdict::Reopen(_)) if !listens => timewait::refuse_reopen(socket, ctx),
                (outcome, Verdict::Reopen(isn)) => {
                    reopen = Some(isn);
                    socket.go(Input::Reset);
                    outcome
                }
            }
        });
        match (reopen, outcome) {
            (Some(isn), _) => self.at_listener(now, segment, Some(isn)),
            (None, Some(outcome)) => outcome,
            (None, None) => no_socket(segment),
        }
    }

    /// A segment for a half-open request (`tcp_check_req`).
    fn at_request(&mut self, now: Instant, segment: &Segment) -> Outcome {
        let peer = segment.tuple.src;
        if !self.phase.listens() {
            self.sockets.remove(peer);
            return no_socket(segment);
        }
        let full = self.queue_full();
        let queued = self.phase == Phase::NotAccepting;
        let outcome = self
            .with(now, peer, |socket, ctx| {
                request_segment(socket, ctx, segment, full, queued)
            })
            .unwrap_or_else(|| no_socket(segment));
        if queued && outcome.events().contains(&Event::Accepted) {
            self.queue.push_back(peer);
        }
        outcome
    }

    /// The timer of the socket towards `peer` may be due.
    pub fn on_timer(&mut self, now: Instant, peer: Endpoint) -> Outcome {
        let half_open = self
            .socket(peer)
            .is_some_and(|socket| socket.state() == State::SynRecv);
        let listens = self.phase.listens();
        self.with(now, peer, |socket, ctx| {
            let outcome = socket.on_timer(ctx);
            let waits = half_open && socket.state() == State::SynRecv;
            if waits && !listens && outcome.rule != Rule::TimerIdle {
                socket.go(Input::Abort);
                return Outcome::telling(Rule::RequestExpired, Event::Closed);
            }
            outcome
        })
        .unwrap_or(Outcome::of(Rule::TimerIdle))
    }

    /// An ICMP error about a segment that this pod sent to `peer`.
    pub fn on_icmp(&mut self, now: Instant, peer: Endpoint, kind: IcmpKind) -> Outcome {
        self.with(now, peer, |socket, ctx| socket.on_icmp(ctx, kind, false))
            .unwrap_or(Outcome::of(Rule::IcmpIgnored))
    }

    /// The process accepts the oldest connection of the queue: its peer. Connections that have died in the
    /// queue are passed over.
    pub fn accept(&mut self) -> Option<Endpoint> {
        while let Some(peer) = self.queue.pop_front() {
            if let Some(socket) = self.sockets.get_mut(peer) {
                socket.set(flag::QUEUED, false);
                socket.read();
                return Some(peer);
            }
        }
        None
    }

    /// The process answers `peer` with `bytes`.
    pub fn send(&mut self, now: Instant, peer: Endpoint, bytes: u32) -> Outcome {
        self.with(now, peer, |socket, ctx| socket.send(ctx, bytes))
            .unwrap_or(Outcome::of(Rule::Send))
    }

    /// The process closes the connection to `peer`.
    pub fn close(&mut self, now: Instant, peer: Endpoint, linger_zero: bool) -> Outcome {
        self.with(now, peer, |socket, ctx| socket.close(ctx, linger_zero))
            .unwrap_or(Outcome::of(Rule::CloseOrphan))
    }

    /// The process stops accepting, but leaves its listener open. Nothing leaves.
    pub fn stop_accepting(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::NotAccepting;
        }
    }

    /// The process closes its listener: each connection in the accept queue gets a RST
    /// (`inet_csk_listen_stop`), oldest first.
    pub fn close_listener(&mut self, now: Instant) -> Vec<(Endpoint, Outcome)> {
        if !self.phase.listens() {
            return Vec::new();
        }
        self.phase = Phase::ListenerClosed;
        let queue = core::mem::take(&mut self.queue);
        queue
            .into_iter()
            .filter_map(|peer| {
                let outcome = self.with(now, peer, |socket, ctx| socket.close(ctx, true))?;
                Some((peer, outcome))
            })
            .collect()
    }

    /// The process ends: the listener closes, then every socket as by close(): FIN, or RST with unread data or
    /// with `linger_zero`. In the order of peers.
    pub fn exit(&mut self, now: Instant, linger_zero: bool) -> Vec<(Endpoint, Outcome)> {
        let mut outcomes = self.close_listener(now);
        if self.phase >= Phase::ProcessGone {
            return outcomes;
        }
        self.phase = Phase::ProcessGone;
        let mut peers: Vec<Endpoint> = self.sockets.values().map(Socket::remote).collect();
        peers.sort_unstable();
        for peer in peers {
            let held = self.socket(peer).is_some_and(|socket| {
                !socket.has(flag::ORPHAN) && socket.state() != State::SynRecv
            });
            if held
                && let Some(outcome) =
                    self.with(now, peer, |socket, ctx| socket.close(ctx, linger_zero))
            {
                outcomes.push((peer, outcome));
            }
        }
        outcomes
    }

    /// The sandbox is removed: every socket vanishes without a packet.
    pub fn destroy(&mut self) {
        self.phase = Phase::NetnsGone;
        self.queue.clear();
        self.sockets.clear();
        self.time_waits = 0;
    }
}

/// `tcp_check_req`, in the order of its tests. `full` is the accept queue's state, `queued` says that nobody
/// accepts at once.
fn request_segment(
    socket: &mut Socket,
    ctx: &Ctx<'_>,
    segment: &Segment,
    full: bool,
    queued: bool,
) -> Outcome {
    let flags = segment.flags;
    let (rst, ack) = (flags.has(Flags::RST), flags.has(Flags::ACK));
    let first = segment.seq == socket.rcv_nxt.wrapping_sub(1);
    let paws = socket.ts_recent != 0
        && segment
            .options
            .timestamps
            .is_some_and(|stamps| seq_after(socket.ts_recent, stamps.val));
    if first && flags.is_plain_syn() && !rst && !paws {
        if timewait::oow_limited(socket, ctx) {
            return Outcome::of(Rule::ChallengeLimited);
        }
        socket.arm_request(ctx);
        return Outcome::sending(Rule::RequestSynAgain, socket.syn_ack(ctx));
    }
    if ack && !rst && segment.ack != socket.snd_nxt {
        return reset_for(segment).map_or(Outcome::of(Rule::RequestBadAck), |reset| {
            Outcome::sending(Rule::RequestBadAck, reset)
        });
    }
    if paws || !timewait::in_window(segment, socket.rcv_nxt) {
        if rst || timewait::oow_limited(socket, ctx) {
            return Outcome::of(Rule::ChallengeLimited);
        }
        return Outcome::sending(Rule::RequestOutOfWindow, socket.ack(ctx));
    }
    let exact = segment.seq == socket.rcv_nxt;
    if rst && !exact && ctx.stack.kernel.has(Gate::RequestResetExact) {
        return Outcome::sending(Rule::RequestChallenge, socket.ack(ctx));
    }
    let syn = flags.has(Flags::SYN) && !first;
    if rst || syn {
        let mut outcome = Outcome::of(Rule::RequestReset);
        if let Some(reset) = reset_for(segment) {
            outcome.send(reset);
        }
        socket.go(Input::Reset);
        outcome.tell(Event::Closed);
        return outcome;
    }
    if !ack {
        return Outcome::of(Rule::NoFlags);
    }
    if full {
        if !ctx.stack.sysctls.abort_on_overflow {
            return Outcome::of(Rule::AcceptOverflow);
        }
        let mut outcome = Outcome::of(Rule::AcceptOverflowReset);
        if let Some(reset) = reset_for(segment) {
            outcome.send(reset);
        }
        socket.go(Input::Abort);
        outcome.tell(Event::Closed);
        return outcome;
    }
    socket.accepted(ctx, segment, queued)
}

#[cfg(test)]
mod tests;
