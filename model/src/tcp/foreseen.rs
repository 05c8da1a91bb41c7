//! Segments of a connection that are known to come, taken at once: what they leave of a socket.
//!
//! Nothing is decided here. The socket in TIME_WAIT that a connection alike left is moved to this one's addresses,
//! numbers and clocks; its timer is armed by the rule of TIME_WAIT.

use super::client::{Client, ConnId};
use super::rule::Rule;
use super::secret::{self, Destination};
use super::server::{Phase, Pod};
use super::socket::{Ctx, Outcome, Socket, Stack, flag};
use super::state::{Input, State};
use super::timewait::{self, Verdict};
use crate::segment::{Endpoint, Segment, Tuple};
use crate::time::{Instant, Span};

/// What one side chose for a connection: where its numbers and its timestamps begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Initial sequence number.
    pub isn: u32,
    /// Offset of its timestamps.
    pub ts_offset: u32,
}

impl Begin {
    /// What the side of a tuple's source begins with, if its connection has a number ([`Client::number_at`],
    /// [`Pod::number_at`]).
    fn with(stack: &Stack, tuple: Tuple, number: u32) -> Self {
        let (base, offset) = stack.secret.base_and_offset(stack.kernel, tuple);
        Self {
            isn: base.wrapping_add(number),
            ts_offset: if stack.sysctls.timestamps { offset } else { 0 },
        }
    }

    /// The same as if nothing but the number decided.
    const fn numbered(number: u32) -> Self {
        Self {
            isn: number,
            ts_offset: 0,
        }
    }

    /// What a socket in SYN_SENT chose.
    pub const fn of(socket: &Socket) -> Self {
        Self {
            isn: socket.snd_una,
            ts_offset: socket.ts_offset,
        }
    }
}

const NOWHERE: Endpoint = Endpoint::new(core::net::Ipv4Addr::UNSPECIFIED, 0);

/// What a new SYN meets of its port's earlier connection at a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing any more.
    Over,
    /// A socket in TIME_WAIT that makes room for a connection with this number.
    Reopens(u32),
    /// A socket that answers by itself.
    InTheWay,
}

/// A socket in TIME_WAIT, as if both sides' sequence numbers had begun at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    socket: Socket,
}

impl Rest {
    /// What was left of a socket. `None` if it is not in TIME_WAIT.
    pub fn of(socket: &Socket, own: Begin, peer: Begin) -> Option<Self> {
        if socket.state != State::TimeWait {
            return None;
        }
        let socket = Socket {
            local: NOWHERE,
            remote: NOWHERE,
            ts_recent: 0,
            ts_recent_stamp: 0,
            ts_offset: 0,
            last_oow_ack: 0,
            timer: 0,
            level: 0,
            retrans_stamp: 0,
            ..*socket
        };
        Some(Self {
            socket: moved(socket, own.isn.wrapping_neg(), peer.isn.wrapping_neg()),
        })
    }

    /// The socket of another connection that came to TIME_WAIT by a segment which its peer had sent `age` ago.
    fn socket(&self, ctx: &Ctx<'_>, tuple: Tuple, own: Begin, peer: Begin, age: Span) -> Socket {
        let mut socket = moved(self.socket, own.isn, peer.isn);
        (socket.local, socket.remote) = (tuple.src, tuple.dst);
        socket.ts_offset = own.ts_offset;
        if socket.has(flag::TIMESTAMPS) {
            socket.ts_recent = secret::millis(ctx.now - age).wrapping_add(peer.ts_offset);
            socket.ts_recent_stamp = ctx.seconds().max(1);
        }
        timewait::rest(&mut socket, ctx);
        socket
    }
}

/// When a socket of a stack is gone that comes to TIME_WAIT at `at` and hears nothing more.
#[inline]
pub fn rest_ends(stack: &Stack, at: Instant) -> Instant {
    let ctx = Ctx {
        stack,
        now: at,
        tw_full: false,
    };
    stack.clock.instant(timewait::ends(&ctx))
}

/// The socket with its own numbers and its peer's ahead by so much, modulo 2^32.
const fn moved(mut socket: Socket, own: u32, peer: u32) -> Socket {
    socket.snd_una = socket.snd_una.wrapping_add(own);
    socket.snd_nxt = socket.snd_nxt.wrapping_add(own);
    socket.write_seq = socket.write_seq.wrapping_add(own);
    socket.rcv_nxt = socket.rcv_nxt.wrapping_add(peer);
    socket
}

impl Client {
    /// Takes a port that [`Client::choose`] gave for a connection whose way is known: it has no socket, and nobody will miss it.
    #[inline]
    pub fn hold(&mut self, to: Destination, port: u16) {
        let (dest, range) = (self.dest(to), self.range().ok());
        self.ports[dest as usize].occupy(port, range);
    }

    /// The connection of a held port is over: the port is free.
    #[inline]
    pub fn release(&mut self, to: Destination, port: u16) {
        let (dest, range) = (self.dest(to), self.range().ok());
        self.ports[dest as usize].vacate(port, range);
    }

    /// Whether a port has a socket, of any state.
    #[inline]
    pub fn has_socket(&mut self, to: Destination, port: u16) -> bool {
        let dest = self.dest(to);
        self.ports[dest as usize].sockets.get(port).is_some()
    }

    /// Whether a port towards `to` is in a TIME_WAIT that connect() may take over some time.
    pub fn may_take_over(&mut self, to: Destination) -> bool {
        let dest = self.dest(to);
        !self.ports[dest as usize].waiting.is_empty()
    }

    /// The socket that connect() at `start` makes.
    fn begun(&self, start: Instant, to: Destination, port: u16) -> Socket {
        let local = Endpoint::new(to.saddr, port);
        let remote = Endpoint::new(to.daddr, to.dport);
        Socket::in_syn_sent(&self.ctx(start), local, remote, None)
    }

    /// The number of a connection that is opened at `start`: its initial sequence number, but for the part that its port
    /// decides.
    pub fn number_at(&self, start: Instant) -> u32 {
        self.stack().secret.number_at(start)
    }

    /// What a connection from `port` with a number begins with.
    pub fn begin_with(&self, number: u32, to: Destination, port: u16) -> Begin {
        let local = Endpoint::new(to.saddr, port);
        let remote = Endpoint::new(to.daddr, to.dport);
        Begin::with(self.stack(), Tuple::tcp(local, remote), number)
    }

    /// A SYN that is sent at `sent` by a connection with a number, as far as neither its port nor its addresses decide: all
    /// rules of TIME_WAIT look at the differences between two connections of one port only.
    pub fn numbered_syn(&self, sent: Instant, number: u32) -> Segment {
        let ctx = self.ctx(sent);
        let mut socket = Socket::blank(NOWHERE, NOWHERE, State::SynSent, ctx.hz());
        socket.snd_una = number;
        socket.syn(&ctx)
    }

    /// When the SYN of a connection is sent again that is opened at `start`, if no answer comes.
    pub fn sends_again(&self, start: Instant) -> Instant {
        let ctx = self.ctx(start);
        let again = ctx.fires(Socket::first_rto(ctx.hz()));
        self.stack().clock.instant(again)
    }

    /// Its SYN, with what it begins with.
    pub fn first_syn(&self, start: Instant, to: Destination, port: u16) -> (Segment, Begin) {
        let socket = self.begun(start, to, port);
        (socket.syn(&self.ctx(start)), Begin::of(&socket))
    }

    /// The SYN that it sends again at that moment.
    pub fn second_syn(
        &self,
        start: Instant,
        again: Instant,
        to: Destination,
        port: u16,
    ) -> Option<(Segment, Begin)> {
        let mut socket = self.begun(start, to, port);
        let outcome = socket.on_timer(&self.ctx(again));
        let syn = outcome.segments().first().copied();
        syn.map(|syn| (syn, Begin::of(&socket)))
    }

    /// The connection of a held port gets its socket after all, in SYN_SENT since `start`.
    pub fn connect_held(&mut self, start: Instant, to: Destination, port: u16) {
        let socket = self.begun(start, to, port);
        let dest = self.dest(to);
        self.ports[dest as usize]
            .sockets
            .get_or_insert(port, socket);
    }

    /// A connection in SYN_SENT rests in TIME_WAIT from `at` on, by a segment which its peer had sent `age` before.
    pub fn foresee_rest(&mut self, at: Instant, id: ConnId, rest: &Rest, peer: Begin, age: Span) {
        self.with(at, id, |socket, ctx| {
            *socket = rest.socket(ctx, socket.tuple(), Begin::of(socket), peer, age);
            Outcome::of(Rule::Close)
        });
    }

    /// A connection that was left in SYN_SENT has come to its end at `at`, in good order.
    pub fn foresee_end(&mut self, at: Instant, id: ConnId) {
        self.with(at, id, |socket, _| {
            socket.go(Input::Close);
            Outcome::of(Rule::Close)
        });
    }
}

impl Pod {
    /// What this pod chooses for a connection of `peer` whose SYN comes at `at`.
    pub fn begin(&self, at: Instant, peer: Endpoint) -> Begin {
        self.begin_with(self.number_at(at), peer)
    }

    /// The number of a connection whose SYN comes at `at`: its initial sequence number, but for the part that its peer decides.
    pub fn number_at(&self, at: Instant) -> u32 {
        self.stack().secret.number_at(at)
    }

    /// What this pod chooses for a connection of `peer` with a number.
    pub fn begin_with(&self, number: u32, peer: Endpoint) -> Begin {
        Begin::with(self.stack(), Tuple::tcp(self.address(), peer), number)
    }

    /// What a [`Client::numbered_syn`] that comes at `at` meets of a connection with the numbers `own` and `theirs` that rests
    /// since `rested`, by a segment which the peer had sent `age` before.
    pub fn past(
        &self,
        at: Instant,
        syn: &Segment,
        (rested, rest): (Instant, &Rest),
        (own, theirs): (u32, u32),
        age: Span,
    ) -> Past {
        let (own, theirs) = (Begin::numbered(own), Begin::numbered(theirs));
        let mut old = rest.socket(&self.ctx(rested), syn.tuple, own, theirs, age);
        let tick = self.stack().clock.jiffies(at);
        if old.timer(tick).is_none_or(|over| over <= tick) {
            return Past::Over;
        }
        match timewait::process(&mut old, &self.ctx(at), syn) {
            (_, Verdict::Reopen(number)) => Past::Reopens(number),
            (_, Verdict::Done) => Past::InTheWay,
        }
    }

    /// The same for the connection that a forwarded SYN opens when it comes at `at`. `None` if it opens none, or not at
    /// once: nobody listens, or the socket of the port's last use is in its way. One in TIME_WAIT makes room by its own
    /// rule.
    pub fn expect(&self, at: Instant, syn: &Segment) -> Option<Begin> {
        self.expect_after(at, syn, self.socket(syn.tuple.src))
    }

    /// The same if `old` were the socket of the port's last use.
    pub fn expect_after(&self, at: Instant, syn: &Segment, old: Option<&Socket>) -> Option<Begin> {
        if self.phase() != Phase::Serving {
            return None;
        }
        let mut begin = self.begin(at, syn.tuple.src);
        if let Some(old) = old {
            let tick = self.stack().clock.jiffies(at);
            if old.state != State::TimeWait || old.timer(tick)? <= tick {
                return None;
            }
            let mut old = *old;
            match timewait::process(&mut old, &self.ctx(at), syn) {
                (_, Verdict::Reopen(isn)) => begin.isn = isn,
                (_, Verdict::Done) => return None,
            }
        }
        Some(begin)
    }

    /// The socket of a connection of `peer` that rests in TIME_WAIT since `at`, by a segment which the peer had sent `age`
    /// before; nothing is kept.
    pub fn resting(
        &self,
        at: Instant,
        peer: Endpoint,
        rest: &Rest,
        (own, theirs): (Begin, Begin),
        age: Span,
    ) -> Socket {
        let tuple = Tuple::tcp(self.address(), peer);
        rest.socket(&self.ctx(at), tuple, own, theirs, age)
    }
}
