//! A socket: the compact record, and what leaves it.
//!
//! Faithful to: `tcp_v4_connect`, `tcp_connect`, `tcp_write_xmit`, `__tcp_close`, `tcp_send_active_reset`
//! (3.10 to 6.12).
//! Leaves out: congestion control and the peer's window (up to 64 000 bytes are under way, as one segment),
//! segmentation (offload does it late), Nagle. The round trip is taken to be short: the RTO of an open
//! connection is the minimum of 200 ms and one tick.

use super::rule::Rule;
use super::secret::{self, Secret};
use super::state::{Input, State};
use crate::kernel::{Behaviours, Gate};
use crate::segment::{Endpoint, Flags, IcmpKind, Options, Segment, Timestamps, Tuple};
use crate::sysctl::TcpSysctls;
use crate::time::{Clock, Instant, Jiffies};

/// The receive window that a socket advertises, in bytes: 502 units of 128, what Linux shows on small links.
pub const WINDOW: u32 = 502 << WSCALE;
/// The window scale that a socket offers.
pub const WSCALE: u8 = 7;
/// The most bytes that are under way unacknowledged, sent as one segment.
pub const IN_FLIGHT_MAX: u32 = 64_000;
/// `TCP_TIMEWAIT_LEN` in seconds.
pub const TIME_WAIT_SECS: u64 = 60;
/// `TCP_RTO_MAX` in seconds.
const RTO_MAX_SECS: u64 = 120;

/// The network stack of one network namespace: what its sockets have in common.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    /// The kernel.
    pub kernel: Behaviours,
    /// Its tick.
    pub clock: Clock,
    /// `net.ipv4.tcp_*`.
    pub sysctls: TcpSysctls,
    /// The kernel's secret.
    pub secret: Secret,
}

impl Stack {
    /// How many SYNs are repeated a second apart before the RTO doubles (`tcp_syn_linear_timeouts`).
    pub(super) const fn syn_linear(&self) -> u8 {
        if self.kernel.has(Gate::SynLinear) {
            self.sysctls.syn_linear_timeouts
        } else {
            0
        }
    }
}

/// A stack at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The moment.
    pub now: Instant,
    /// Whether `tcp_max_tw_buckets` sockets are in TIME_WAIT.
    pub tw_full: bool,
}

impl Ctx<'_> {
    /// The tick counter.
    pub const fn tick(&self) -> Jiffies {
        self.stack.clock.jiffies(self.now)
    }

    /// The tick at which a full socket's timer fires that is armed now for so many ticks.
    #[inline]
    pub(super) const fn fires(&self, ticks: u64) -> Jiffies {
        self.stack.clock.fires_after(self.tick(), ticks)
    }

    /// Ticks a second.
    pub(super) const fn hz(&self) -> u64 {
        self.stack.clock.hz() as u64
    }

    /// Whole seconds since boot.
    pub(super) const fn seconds(&self) -> u32 {
        secret::seconds(&self.stack.clock, self.now)
    }
}

/// Why a connection ended: what the application's next call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnError {
    /// ECONNREFUSED.
    Refused,
    /// ECONNRESET.
    Reset,
    /// EPIPE: a RST after the peer's FIN.
    BrokenPipe,
    /// EHOSTUNREACH, "No route to host".
    HostUnreachable,
    /// ENETUNREACH.
    NetUnreachable,
    /// ETIMEDOUT.
    TimedOut,
}

impl ConnError {
    /// The error of an ICMP message (`icmp_err_convert`; facts 6.8).
    pub const fn of(kind: IcmpKind) -> Self {
        match kind {
            IcmpKind::PortUnreachable => Self::Refused,
            IcmpKind::NetUnreachable => Self::NetUnreachable,
            IcmpKind::HostUnreachable | IcmpKind::AdminProhibited | IcmpKind::TtlExceeded => {
                Self::HostUnreachable
            }
        }
    }

    /// What strerror(3) says.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Refused => "Connection refused",
            Self::Reset => "Connection reset by peer",
            Self::BrokenPipe => "Broken pipe",
            Self::HostUnreachable => "No route to host",
            Self::NetUnreachable => "Network is unreachable",
            Self::TimedOut => "Connection timed out",
        }
    }
}

/// What an application learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// connect() succeeded.
    Connected,
    /// A connection is in the accept queue.
    Accepted,
    /// So many new bytes can be read.
    Data(u32),
    /// The peer has sent its last byte.
    PeerClosed,
    /// The socket is gone in good order; a client's port is free again.
    Closed,
    /// The socket is gone with an error; a client's port is free again.
    Failed(ConnError),
}

/// What a socket did: the rule, up to four segments, up to four events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The rule that decided.
    pub rule: Rule,
    /// Whether the socket's timer was armed, moved or stopped, or the socket is gone; kept by client and pod.
    pub timer_moved: bool,
    segments: [Segment; 4],
    segment_count: u8,
    events: [Event; 4],
    event_count: u8,
}

impl Outcome {
    /// Nothing but the rule.
    #[inline]
    pub const fn of(rule: Rule) -> Self {
        // Places without a segment or event hold nothing but zeros, which are written fastest.
        const NOWHERE: Endpoint = Endpoint::new(core::net::Ipv4Addr::UNSPECIFIED, 0);
        const NOTHING: Segment = Segment {
            window: 0,
            ..Segment::new(Tuple::tcp(NOWHERE, NOWHERE), Flags(0))
        };
        Self {
            rule,
            timer_moved: false,
            segments: [NOTHING; 4],
            segment_count: 0,
            events: [Event::Connected; 4],
            event_count: 0,
        }
    }

    /// With one more segment.
    pub(super) fn send(&mut self, segment: Segment) {
        self.segments[usize::from(self.segment_count)] = segment;
        self.segment_count += 1;
    }

    /// With one more event.
    pub(super) fn tell(&mut self, event: Event) {
        self.events[usize::from(self.event_count)] = event;
        self.event_count += 1;
    }

    /// With one segment.
    pub(super) fn sending(rule: Rule, segment: Segment) -> Self {
        let mut outcome = Self::of(rule);
        outcome.send(segment);
        outcome
    }

    /// With one event.
    pub(super) fn telling(rule: Rule, event: Event) -> Self {
        let mut outcome = Self::of(rule);
        outcome.tell(event);
        outcome
    }

    /// The segments that leave, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..usize::from(self.segment_count)]
    }

    /// What the application learns, in order.
    pub fn events(&self) -> &[Event] {
        &self.events[..usize::from(self.event_count)]
    }
}

/// Flag bits of a socket.
pub(super) mod flag {
    /// A timer is armed.
    pub const TIMER: u16 = 1;
    /// Both sides send timestamps.
    pub const TIMESTAMPS: u16 = 2;
    /// No process holds the socket.
    pub const ORPHAN: u16 = 4;
    /// The last byte before `write_seq` is a FIN.
    pub const FIN: u16 = 8;
    /// Bytes have arrived that the application has not read.
    pub const UNREAD: u16 = 16;
    /// Retransmission is going on: an acknowledgement sends the next piece at once.
    pub const LOSS: u16 = 32;
    /// An acknowledgement is owed; the timer is that of the delayed ACK.
    pub const ACK_OWED: u16 = 64;
    /// The server has not accepted the connection yet.
    pub const QUEUED: u16 = 128;
    /// FIN_WAIT2 without a process that waits as a full socket (`inet_csk_reset_keepalive_timer`).
    pub const FULL_FIN_WAIT2: u16 = 256;
}

/// A connection at one end. 64 bytes, of any state but LISTEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) state: State,
    pub(super) retransmits: u8,
    /// All retransmissions since the SYN, for linear SYN timeouts.
    pub(super) backoff: u8,
    pub(super) soft_error: Option<ConnError>,
    pub(super) flags: u16,
    /// The wheel level of the timer.
    pub(super) level: u8,
    pub(super) snd_una: u32,
    pub(super) snd_nxt: u32,
    /// The end of what the application has written, the FIN included.
    pub(super) write_seq: u32,
    /// The next number that is expected.
    pub(super) rcv_nxt: u32,
    pub(super) ts_recent: u32,
    /// Seconds since boot when `ts_recent` was taken; 0 if the peer sends no timestamps.
    pub(super) ts_recent_stamp: u32,
    pub(super) ts_offset: u32,
    /// The low bits of the tick of the last acknowledgement of a bad segment, 0 for never.
    pub(super) last_oow_ack: u32,
    /// The low bits of the tick at which the timer fires.
    pub(super) timer: u32,
    /// Milliseconds: when the SYN or the first retransmission left; in TIME_WAIT, when that began.
    pub(super) retrans_stamp: u32,
    /// Ticks.
    pub(super) rto: u32,
}

const _: () = assert!(size_of::<Socket>() == 64);

impl Socket {
    /// The state.
    pub const fn state(&self) -> State {
        self.state
    }

    /// This side's address and port.
    pub const fn local(&self) -> Endpoint {
        self.local
    }

    /// The peer's address and port.
    pub const fn remote(&self) -> Endpoint {
        self.remote
    }

    /// The tuple of the segments that leave.
    pub const fn tuple(&self) -> Tuple {
        Tuple::tcp(self.local, self.remote)
    }

    /// The ICMP error that was remembered but did not end the connection. getsockopt(SO_ERROR) returns it.
    pub const fn soft_error(&self) -> Option<ConnError> {
        self.soft_error
    }

    /// How often the oldest segment that is not acknowledged was sent again.
    pub const fn retransmits(&self) -> u8 {
        self.retransmits
    }

    /// The tick at which the socket's timer fires, if one is armed. `now` is within 2^31 ticks of it.
    pub const fn timer(&self, now: Jiffies) -> Option<Jiffies> {
        if self.flags & flag::TIMER == 0 {
            return None;
        }
        let distance = self.timer.wrapping_sub(now.0 as u32) as i32;
        Some(Jiffies(now.0.saturating_add_signed(distance as i64)))
    }

    /// What tells one arming of the timer from another.
    pub(super) const fn raw_timer(&self) -> Option<u32> {
        if self.flags & flag::TIMER == 0 {
            None
        } else {
            Some(self.timer)
        }
    }

    /// The wheel level of the timer, 0 to 8. Of the timers of one tick the kernel runs those of the highest level
    /// first, and of one level those armed last first (`collect_expired_timers`, `hlist_add_head`).
    pub const fn timer_level(&self) -> u8 {
        self.level
    }

    pub(super) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// Takes the transition of the table. An impossible one is a bug of this crate.
    pub(super) fn go(&mut self, input: Input) {
        let next = self.state.after(input);
        debug_assert!(next.is_some(), "{input:?} cannot happen in {}", self.state);
        self.state = next.unwrap_or(State::Closed);
        if self.state == State::Closed {
            self.set(flag::TIMER, false);
        }
    }

    /// Arms the timer `ticks` from now; it fires when this kernel's timers fire.
    pub(super) const fn arm(&mut self, ctx: &Ctx<'_>, ticks: u64) {
        self.timer = ctx.fires(ticks).0 as u32;
        self.level = match ctx.stack.clock.lateness_max(ticks) {
            0 => 0,
            granule => granule.trailing_zeros() as u8 / 3,
        };
        self.flags |= flag::TIMER;
    }

    pub(super) const fn disarm(&mut self) {
        self.flags &= !(flag::TIMER | flag::ACK_OWED);
    }

    pub(super) const fn blank(local: Endpoint, remote: Endpoint, state: State, hz: u64) -> Self {
        Self {
            local,
            remote,
            state,
            retransmits: 0,
            backoff: 0,
            soft_error: None,
            flags: 0,
            level: 0,
            snd_una: 0,
            snd_nxt: 0,
            write_seq: 0,
            rcv_nxt: 0,
            ts_recent: 0,
            ts_recent_stamp: 0,
            ts_offset: 0,
            last_oow_ack: 0,
            timer: 0,
            retrans_stamp: 0,
            rto: Self::first_rto(hz) as u32,
        }
    }

    /// The retransmission timeout before anything was measured, in ticks: 1 s (`TCP_TIMEOUT_INIT`).
    pub(super) const fn first_rto(hz: u64) -> u64 {
        hz
    }

    /// connect(): the socket in SYN_SENT and its SYN. `taken_over` is the TIME_WAIT socket of the same
    /// four-tuple that the port search allowed to take (facts 6.3).
    pub fn connect(
        ctx: &Ctx<'_>,
        local: Endpoint,
        remote: Endpoint,
        taken_over: Option<&Self>,
    ) -> (Self, Outcome) {
        let socket = Self::in_syn_sent(ctx, local, remote, taken_over);
        let rule = if taken_over.is_some() {
            Rule::TimeWaitTakenOver
        } else {
            Rule::Connect
        };
        (socket, Outcome::sending(rule, socket.syn(ctx)))
    }

    /// The socket that connect() makes, its SYN sent.
    pub(super) fn in_syn_sent(
        ctx: &Ctx<'_>,
        local: Endpoint,
        remote: Endpoint,
        taken_over: Option<&Self>,
    ) -> Self {
        let mut socket = Self::blank(local, remote, State::Closed, ctx.hz());
        let tuple = socket.tuple();
        let secret = &ctx.stack.secret;
        let (fresh_isn, ts_offset) = secret.isn_and_offset(ctx.stack.kernel, tuple, ctx.now);
        let isn = match taken_over {
            Some(old) => {
                socket.ts_recent = old.ts_recent;
                socket.ts_recent_stamp = old.ts_recent_stamp;
                super::timewait::next_isn(old)
            }
            None => fresh_isn,
        };
        if ctx.stack.sysctls.timestamps {
            socket.ts_offset = ts_offset;
        }
        socket.snd_una = isn;
        socket.snd_nxt = isn.wrapping_add(1);
        socket.write_seq = socket.snd_nxt;
        socket.retrans_stamp = secret::millis(ctx.now);
        socket.go(Input::Connect);
        socket.arm(ctx, u64::from(socket.rto));
        socket
    }

    /// The request socket that a SYN makes, without its SYN-ACK. `isn` is given if the SYN came through a
    /// TIME_WAIT socket.
    pub(super) fn request(ctx: &Ctx<'_>, syn: &Segment, isn: Option<u32>) -> Self {
        let mut socket = Self::blank(syn.tuple.dst, syn.tuple.src, State::Listen, ctx.hz());
        let tuple = socket.tuple();
        let secret = &ctx.stack.secret;
        let (fresh_isn, ts_offset) = secret.isn_and_offset(ctx.stack.kernel, tuple, ctx.now);
        let isn = isn.unwrap_or(fresh_isn);
        if let (Some(stamps), true) = (syn.options.timestamps, ctx.stack.sysctls.timestamps) {
            socket.set(flag::TIMESTAMPS, true);
            socket.ts_recent = stamps.val;
            socket.ts_recent_stamp = ctx.seconds().max(1);
            socket.ts_offset = ts_offset;
        }
        socket.snd_una = isn;
        socket.snd_nxt = isn.wrapping_add(1);
        socket.write_seq = socket.snd_nxt;
        socket.rcv_nxt = syn.seq.wrapping_add(1);
        socket.go(Input::Syn);
        socket.arm(ctx, ctx.hz());
        socket
    }

    /// The SYN.
    pub(super) fn syn(&self, ctx: &Ctx<'_>) -> Segment {
        let timestamps = ctx.stack.sysctls.timestamps.then(|| Timestamps {
            val: secret::millis(ctx.now).wrapping_add(self.ts_offset),
            ecr: self.ts_recent,
        });
        Segment {
            seq: self.snd_una,
            window: 64_240,
            options: Options {
                wscale: Some(WSCALE),
                sack_ok: true,
                sack_right: None,
                timestamps,
            },
            ..Segment::new(self.tuple(), Flags::SYN)
        }
    }

    /// The SYN-ACK of a request.
    pub(super) fn syn_ack(&self, ctx: &Ctx<'_>) -> Segment {
        Segment {
            seq: self.snd_una,
            ack: self.rcv_nxt,
            window: 65_160,
            options: Options {
                wscale: Some(WSCALE),
                sack_ok: true,
                ..self.segment(ctx, Flags::ACK, 0, 0).options
            },
            ..Segment::new(self.tuple(), Flags::SYN.with(Flags::ACK))
        }
    }

    /// A segment of an open connection.
    pub(super) fn segment(&self, ctx: &Ctx<'_>, flags: Flags, seq: u32, len: u32) -> Segment {
        let timestamps = self.has(flag::TIMESTAMPS).then(|| Timestamps {
            val: secret::millis(ctx.now).wrapping_add(self.ts_offset),
            ecr: self.ts_recent,
        });
        Segment {
            seq,
            ack: self.rcv_nxt,
            window: (WINDOW >> WSCALE) as u16,
            len: len as u16,
            options: Options {
                timestamps,
                ..Options::default()
            },
            ..Segment::new(self.tuple(), flags)
        }
    }

    /// A bare acknowledgement.
    pub(super) fn ack(&self, ctx: &Ctx<'_>) -> Segment {
        self.segment(ctx, Flags::ACK, self.snd_nxt, 0)
    }

    /// The RST of an open connection that is given up (`tcp_send_active_reset`).
    pub(super) fn reset(&self, ctx: &Ctx<'_>) -> Segment {
        self.segment(ctx, Flags::RST.with(Flags::ACK), self.snd_nxt, 0)
    }

    /// The piece that begins at `from`: data as far as it may be under way, or the FIN. `None` if everything
    /// was sent or nothing more may be.
    fn piece(&self, ctx: &Ctx<'_>, from: u32) -> Option<Segment> {
        if from == self.write_seq {
            return None;
        }
        let data_end = self.write_seq.wrapping_sub(u32::from(self.has(flag::FIN)));
        if from == data_end {
            return Some(self.segment(ctx, Flags::FIN.with(Flags::ACK), from, 0));
        }
        let room = self.snd_una.wrapping_add(IN_FLIGHT_MAX).wrapping_sub(from);
        let data = data_end.wrapping_sub(from).min(room);
        (data > 0).then(|| self.segment(ctx, Flags::PSH.with(Flags::ACK), from, data))
    }

    /// Sends what may be sent: one piece of data, one FIN.
    pub(super) fn output(&mut self, ctx: &Ctx<'_>, outcome: &mut Outcome) {
        let idle = self.snd_una == self.snd_nxt;
        let mut sent = false;
        for _ in 0..2 {
            let Some(segment) = self.piece(ctx, self.snd_nxt) else {
                break;
            };
            if segment.flags.has(Flags::FIN) && self.window_is_shut(ctx) {
                break;
            }
            self.snd_nxt = segment.end_seq();
            outcome.send(segment);
            sent = true;
        }
        if sent {
            self.set(flag::ACK_OWED, false);
            if idle {
                self.arm(ctx, u64::from(self.rto));
            }
        }
    }

    /// Whether a FIN has to wait: after a timeout the congestion window is one segment, and what is sent again fills it
    /// (`tcp_cwnd_test`).
    fn window_is_shut(&self, ctx: &Ctx<'_>) -> bool {
        self.has(flag::LOSS)
            && self.snd_una != self.snd_nxt
            && ctx.stack.kernel.has(Gate::FinWaitsForWindow)
    }

    /// The first unacknowledged piece once more.
    pub(super) fn again(&self, ctx: &Ctx<'_>) -> Option<Segment> {
        let mut first = self.piece(ctx, self.snd_una)?;
        let unacked = self.snd_nxt.wrapping_sub(self.snd_una);
        if u32::from(first.len) > unacked {
            first.len = unacked as u16;
        }
        Some(first)
    }

    /// The application writes `bytes` (1 or more). Nothing happens if this side is closed.
    pub fn send(&mut self, ctx: &Ctx<'_>, bytes: u32) -> Outcome {
        let mut outcome = Outcome::of(Rule::Send);
        if matches!(self.state, State::Established | State::CloseWait) && !self.has(flag::FIN) {
            self.write_seq = self.write_seq.wrapping_add(bytes);
            self.output(ctx, &mut outcome);
        }
        outcome
    }

    /// The application closes the socket (`__tcp_close`). With `linger_zero` (`SO_LINGER` of 0 s), or with
    /// unread data, a RST leaves; before the connection is open nothing does; else a FIN.
    pub fn close(&mut self, ctx: &Ctx<'_>, linger_zero: bool) -> Outcome {
        self.set(flag::ORPHAN, true);
        let open = !matches!(
            self.state,
            State::Closed
                | State::SynSent
                | State::TimeWait
                | State::OrphanFinWait2
                | State::Closing
                | State::LastAck
        );
        match self.state {
            State::SynSent => {
                self.go(Input::Close);
                Outcome::telling(Rule::CloseUnconnected, Event::Closed)
            }
            _ if open && (self.has(flag::UNREAD) || linger_zero) => {
                let mut outcome = Outcome::sending(Rule::CloseReset, self.reset(ctx));
                self.go(Input::Abort);
                outcome.tell(Event::Closed);
                outcome
            }
            State::Established | State::CloseWait => self.finish(ctx),
            State::FinWait2 => {
                let mut outcome = Outcome::of(Rule::CloseOrphan);
                super::timewait::orphan(self, ctx, &mut outcome);
                outcome
            }
            _ => Outcome::of(Rule::CloseOrphan),
        }
    }

    /// The application sends its FIN but goes on reading (`shutdown(SHUT_WR)`).
    pub fn shutdown(&mut self, ctx: &Ctx<'_>) -> Outcome {
        match self.state {
            State::Established | State::CloseWait => self.finish(ctx),
            _ => Outcome::of(Rule::CloseOrphan),
        }
    }

    fn finish(&mut self, ctx: &Ctx<'_>) -> Outcome {
        let mut outcome = Outcome::of(Rule::Close);
        self.write_seq = self.write_seq.wrapping_add(1);
        self.set(flag::FIN, true);
        self.go(Input::Close);
        self.output(ctx, &mut outcome);
        outcome
    }

    /// The application has read everything.
    pub const fn read(&mut self) {
        self.set(flag::UNREAD, false);
    }

    /// The longest RTO, in ticks.
    pub(super) const fn rto_max(ctx: &Ctx<'_>) -> u64 {
        RTO_MAX_SECS * ctx.hz()
    }
}

/// The RST that answers a segment for which there is no socket (`tcp_v4_send_reset`); none for a RST.
pub fn reset_for(segment: &Segment) -> Option<Segment> {
    if segment.flags.has(Flags::RST) {
        return None;
    }
    let tuple = segment.tuple.reversed();
    let answer = if segment.flags.has(Flags::ACK) {
        Segment {
            seq: segment.ack,
            ..Segment::new(tuple, Flags::RST)
        }
    } else {
        Segment {
            ack: segment.end_seq(),
            ..Segment::new(tuple, Flags::RST.with(Flags::ACK))
        }
    };
    Some(Segment {
        window: 0,
        ..answer
    })
}
