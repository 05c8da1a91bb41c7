//! A client host: one network namespace that opens connections.
//!
//! Faithful to: `tcp_v4_connect` with `__inet_hash_connect` and `__inet_check_established`, bind(2) as far as
//! facts 6.2 have it, `tcp_v4_err`.
//! Leaves out: several local addresses behind one bind to 0.0.0.0, `SO_REUSEPORT`, `ip_autobind_reuse`.
//!
//! The port search itself belongs to the kernel ([`PortChooser`]): several clients of a node share it.

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use super::bitmap::{PortBitmap, PortCounts};
use super::input::no_socket;
use super::ports::{Destination, PortChooser, PortRange, Usable};
use super::rule::Rule;
use super::socket::{Ctx, Outcome, Socket, Stack};
use super::state::State;
use super::timewait;
use crate::index::PortMap;
use crate::segment::{Endpoint, IcmpError, Segment};
use crate::time::{Instant, Jiffies};

/// How an application chooses its source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// connect() without bind(), or bind() with `IP_BIND_ADDRESS_NO_PORT`: the search of facts 6.1.
    Unbound,
    /// bind() to port 0 before connect().
    BindAny {
        /// `SO_REUSEADDR`.
        reuse_addr: bool,
    },
    /// bind() to this port before connect().
    BindPort {
        /// The port, 1 to 65535.
        port: u16,
        /// `SO_REUSEADDR`.
        reuse_addr: bool,
    },
}

/// Why there is no connection, not even an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPort {
    /// EADDRNOTAVAIL from connect(): no port of the range is free for this destination.
    AddressNotAvailable,
    /// EADDRINUSE from bind().
    AddressInUse,
}

/// A connection of a [`Client`], by destination and source port. Reused when the port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    dest: u32,
    port: u16,
}

impl ConnId {
    /// The source port.
    pub const fn port(self) -> u16 {
        self.port
    }
}

/// The source ports towards one destination.
#[derive(Clone, Debug)]
pub(super) struct Ports {
    to: Destination,
    /// In use, or in a TIME_WAIT that connect() can never take over.
    busy: PortBitmap,
    /// How many of them are in the range that connect() searches.
    busy_in_range: u32,
    /// In a TIME_WAIT that connect() may take over after a while.
    pub(super) waiting: PortBitmap,
    pub(super) sockets: PortMap<Socket>,
}

impl Ports {
    #[inline]
    pub(super) fn occupy(&mut self, port: u16, range: Option<PortRange>) {
        let counts = range.is_some_and(|range| range.contains(port));
        self.busy_in_range += u32::from(self.busy.insert(port) && counts);
    }

    #[inline]
    pub(super) fn vacate(&mut self, port: u16, range: Option<PortRange>) {
        let counts = range.is_some_and(|range| range.contains(port));
        self.busy_in_range -= u32::from(self.busy.remove(port) && counts);
    }
}

/// The sockets of a client's network namespace.
#[derive(Clone, Debug)]
pub struct Client {
    stack: Stack,
    pub(super) ports: Vec<Ports>,
    index: HashMap<Destination, u32, FxBuildHasher>,
    /// Reserved ports, and those that a bind() has made its own.
    excluded: PortBitmap,
    reserved: PortBitmap,
    /// Sockets a port, kept once somebody binds.
    counts: Option<PortCounts>,
    time_waits: u32,
}

impl Client {
    /// A namespace without sockets. `reserved` are `ip_local_reserved_ports`.
    pub fn new(stack: Stack, reserved: &[u16]) -> Self {
        let mut excluded = PortBitmap::new();
        for &port in reserved {
            excluded.insert(port);
        }
        Self {
            stack,
            ports: Vec::new(),
            index: HashMap::default(),
            reserved: excluded.clone(),
            excluded,
            counts: None,
            time_waits: 0,
        }
    }

    /// The network stack.
    pub const fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The socket of a connection, if it still exists.
    #[inline]
    pub fn socket(&self, id: ConnId) -> Option<&Socket> {
        self.ports[id.dest as usize].sockets.get(id.port)
    }

    /// How many sockets exist, TIME_WAIT included.
    pub fn len(&self) -> usize {
        self.ports.iter().map(|ports| ports.sockets.len()).sum()
    }

    /// Whether there is no socket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sockets are in TIME_WAIT, or in FIN_WAIT2 without a process.
    pub const fn time_waits(&self) -> u32 {
        self.time_waits
    }

    /// How many source ports towards `to` are taken, TIME_WAIT included.
    pub fn ports_taken(&self, to: Destination) -> u32 {
        self.known(to).map_or(0, |at| {
            let ports = &self.ports[at as usize];
            ports.busy.len() + ports.waiting.len()
        })
    }

    /// The tick at which a connection's timer fires.
    pub fn timer(&self, now: Instant, id: ConnId) -> Option<Jiffies> {
        self.socket(id)?.timer(self.stack.clock.jiffies(now))
    }

    pub(super) const fn ctx(&self, now: Instant) -> Ctx<'_> {
        Ctx {
            stack: &self.stack,
            now,
            tw_full: self.time_waits >= self.stack.sysctls.max_tw_buckets,
        }
    }

    /// The place of a destination that was connected to before. Most clients have one.
    #[inline]
    fn known(&self, to: Destination) -> Option<u32> {
        match self.ports.first() {
            Some(first) if first.to.is(to) => Some(0),
            _ => self.index.get(&to).copied(),
        }
    }

    #[inline]
    pub(super) fn dest(&mut self, to: Destination) -> u32 {
        match self.known(to) {
            Some(at) => at,
            None => self.add_dest(to),
        }
    }

    #[cold]
    fn add_dest(&mut self, to: Destination) -> u32 {
        let at = self.ports.len() as u32;
        self.ports.push(Ports {
            to,
            busy: PortBitmap::new(),
            busy_in_range: 0,
            waiting: PortBitmap::new(),
            sockets: PortMap::default(),
        });
        self.index.insert(to, at);
        at
    }

    /// connect() from the address `to.saddr`. The outcome holds the SYN.
    ///
    /// # Errors
    /// If no source port is to be had; then nothing has changed.
    pub fn connect(
        &mut self,
        now: Instant,
        to: Destination,
        source: Source,
        chooser: &mut PortChooser,
        rng: &mut impl rand::Rng,
    ) -> Result<(ConnId, Outcome), NoPort> {
        let dest = self.dest(to);
        let (port, bound) = match source {
            Source::Unbound => (self.search(now, dest, chooser, rng)?, false),
            Source::BindAny { reuse_addr } => (self.bind_any(reuse_addr, chooser, rng)?, true),
            Source::BindPort { port, reuse_addr } => {
                self.bind_port(ConnId { dest, port }, now, reuse_addr)?;
                (port, true)
            }
        };
        Ok(self.open(now, ConnId { dest, port }, bound))
    }

    /// The port that connect() without bind() takes at `now`. It must be used: the kernel's hint has moved on.
    ///
    /// # Errors
    /// If no source port is to be had; then nothing has changed.
    pub fn choose(
        &mut self,
        now: Instant,
        to: Destination,
        chooser: &mut PortChooser,
        rng: &mut impl rand::Rng,
    ) -> Result<u16, NoPort> {
        let dest = self.dest(to);
        self.search(now, dest, chooser, rng)
    }

    /// connect() from a port that [`Client::choose`] gave. The outcome holds the SYN.
    pub fn connect_from(&mut self, now: Instant, to: Destination, port: u16) -> (ConnId, Outcome) {
        let dest = self.dest(to);
        self.open(now, ConnId { dest, port }, false)
    }

    /// connect() from a usable port; `bound`: bind() has made it the application's own.
    fn open(&mut self, now: Instant, id: ConnId, bound: bool) -> (ConnId, Outcome) {
        let ConnId { dest, port } = id;
        let to = self.ports[dest as usize].to;
        let old = self.ports[dest as usize].sockets.remove(port);
        if old.is_some() {
            self.time_waits -= 1;
        }
        let local = Endpoint::new(to.saddr, port);
        let remote = Endpoint::new(to.daddr, to.dport);
        let (socket, mut outcome) = Socket::connect(&self.ctx(now), local, remote, old.as_ref());
        outcome.timer_moved = true;
        let range = self.range().ok();
        let ports = &mut self.ports[dest as usize];
        ports.sockets.get_or_insert(port, socket);
        ports.waiting.remove(port);
        ports.occupy(port, range);
        if let Some(counts) = &mut self.counts
            && old.is_none()
        {
            counts.add(port);
        }
        if bound {
            self.excluded.insert(port);
        }
        (id, outcome)
    }

    #[inline]
    pub(super) fn range(&self) -> Result<PortRange, NoPort> {
        let (low, high) = self.stack.sysctls.local_ports;
        PortRange::new(low, high).ok_or(NoPort::AddressNotAvailable)
    }

    fn search(
        &self,
        now: Instant,
        dest: u32,
        chooser: &mut PortChooser,
        rng: &mut impl rand::Rng,
    ) -> Result<u16, NoPort> {
        let (ctx, range) = (self.ctx(now), self.range()?);
        let ports = &self.ports[dest as usize];
        // No search finds anything, and a search that finds nothing leaves no trace.
        if ports.busy_in_range == range.size() {
            return Err(NoPort::AddressNotAvailable);
        }
        let reusable = |port| {
            self.socket(ConnId { dest, port })
                .is_none_or(|old| timewait::reusable(old, &ctx, false))
        };
        let usable = Usable {
            busy: Some(&ports.busy),
            excluded: (!self.excluded.is_empty()).then_some(&self.excluded),
            waiting: (!ports.waiting.is_empty()).then_some((&ports.waiting, reusable)),
        };
        chooser
            .choose(ports.to, range, now, rng, &usable)
            .map(|choice| choice.port)
            .ok_or(NoPort::AddressNotAvailable)
    }

    /// The sockets a port, counted from now on.
    fn counts(&mut self) -> &PortCounts {
        let ports = &self.ports;
        self.counts.get_or_insert_with(|| {
            let mut counts = PortCounts::default();
            for port in ports.iter().flat_map(|ports| ports.sockets.ports()) {
                counts.add(port);
            }
            counts
        })
    }

    /// bind() to port 0. Any socket on a port is in its way; connections of this client share one address.
    fn bind_any(
        &mut self,
        reuse_addr: bool,
        chooser: &PortChooser,
        rng: &mut impl rand::Rng,
    ) -> Result<u16, NoPort> {
        let range = self.range()?;
        self.counts();
        let usable: Usable<'_, fn(u16) -> bool> = Usable {
            busy: self.counts.as_ref().map(PortCounts::used),
            excluded: Some(&self.reserved),
            waiting: None,
        };
        chooser
            .find_open_port(range, reuse_addr, rng, &usable)
            .ok_or(NoPort::AddressInUse)
    }

    /// How many of how many equally likely draws give bind() to port 0 this port at the moment: see
    /// [`PortChooser::starts_leading_to`].
    pub fn starts_leading_to(&mut self, chooser: &PortChooser, port: u16) -> Option<(u32, u32)> {
        let range = self.range().ok()?;
        self.counts();
        let usable: Usable<'_, fn(u16) -> bool> = Usable {
            busy: self.counts.as_ref().map(PortCounts::used),
            excluded: Some(&self.reserved),
            waiting: None,
        };
        chooser.starts_leading_to(range, &usable, port)
    }

    /// bind() to one port and the test of the four-tuple at connect(): a TIME_WAIT of a connection with
    /// timestamps is taken over whatever tcp_tw_reuse says (facts 6.2).
    fn bind_port(&mut self, id: ConnId, now: Instant, reuse_addr: bool) -> Result<(), NoPort> {
        if self.counts().used().contains(id.port) && !reuse_addr {
            return Err(NoPort::AddressInUse);
        }
        let ctx = self.ctx(now);
        match self.socket(id) {
            Some(old) if !timewait::reusable(old, &ctx, true) => Err(NoPort::AddressNotAvailable),
            _ => Ok(()),
        }
    }

    /// Does `act` to a connection, and keeps the books.
    pub(super) fn with(
        &mut self,
        now: Instant,
        id: ConnId,
        act: impl FnOnce(&mut Socket, &Ctx<'_>) -> Outcome,
    ) -> Option<Outcome> {
        let ctx = Ctx {
            stack: &self.stack,
            now,
            tw_full: self.time_waits >= self.stack.sysctls.max_tw_buckets,
        };
        let range = self.range().ok();
        let ports = self.ports.get_mut(id.dest as usize)?;
        let socket = ports.sockets.get_mut(id.port)?;
        let before = socket.state().is_time_wait();
        let timer = socket.raw_timer();
        let mut outcome = act(socket, &ctx);
        let state = socket.state();
        outcome.timer_moved = socket.raw_timer() != timer || state == State::Closed;
        if state.is_time_wait() != before {
            if state.is_time_wait() {
                self.time_waits += 1;
                if timewait::ever_reusable(socket, &ctx) {
                    ports.vacate(id.port, range);
                    ports.waiting.insert(id.port);
                }
            } else {
                self.time_waits -= 1;
            }
        }
        if state == State::Closed {
            self.forget(id);
        }
        Some(outcome)
    }

    fn forget(&mut self, id: ConnId) {
        let range = self.range().ok();
        let ports = &mut self.ports[id.dest as usize];
        ports.sockets.remove(id.port);
        ports.vacate(id.port, range);
        ports.waiting.remove(id.port);
        if let Some(counts) = &mut self.counts {
            counts.sub(id.port);
            if !counts.used().contains(id.port) && !self.reserved.contains(id.port) {
                self.excluded.remove(id.port);
            }
        }
    }

    /// The connection that a segment towards this client belongs to.
    pub fn find(&self, local: Endpoint, remote: Endpoint) -> Option<ConnId> {
        let to = Destination {
            saddr: local.ip,
            daddr: remote.ip,
            dport: remote.port,
        };
        let id = ConnId {
            dest: self.known(to)?,
            port: local.port,
        };
        self.socket(id).map(|_| id)
    }

    /// A segment arrives. Without a socket for it a RST leaves.
    pub fn on_segment(&mut self, now: Instant, segment: &Segment) -> (Option<ConnId>, Outcome) {
        let id = self.find(segment.tuple.dst, segment.tuple.src);
        let outcome =
            id.and_then(|id| self.with(now, id, |socket, ctx| socket.on_segment(ctx, segment)));
        (id, outcome.unwrap_or_else(|| no_socket(segment)))
    }

    /// An ICMP error arrives about a segment that this client sent; see [`Socket::on_icmp`] for `owned`.
    pub fn on_icmp(
        &mut self,
        now: Instant,
        error: &IcmpError,
        owned: bool,
    ) -> (Option<ConnId>, Outcome) {
        let id = self.find(error.about.src, error.about.dst);
        let outcome = id.and_then(|id| {
            self.with(now, id, |socket, ctx| {
                socket.on_icmp(ctx, error.kind, owned)
            })
        });
        (id, outcome.unwrap_or(Outcome::of(Rule::IcmpIgnored)))
    }

    /// The timer of a connection may be due.
    pub fn on_timer(&mut self, now: Instant, id: ConnId) -> Outcome {
        self.with(now, id, |socket, ctx| socket.on_timer(ctx))
            .unwrap_or(Outcome::of(Rule::TimerIdle))
    }

    /// The application writes `bytes`.
    pub fn send(&mut self, now: Instant, id: ConnId, bytes: u32) -> Outcome {
        self.with(now, id, |socket, ctx| socket.send(ctx, bytes))
            .unwrap_or(Outcome::of(Rule::Send))
    }

    /// The application closes; see [`Socket::close`]. This is also its own timeout: in SYN_SENT nothing leaves
    /// and the port is free at once.
    pub fn close(&mut self, now: Instant, id: ConnId, linger_zero: bool) -> Outcome {
        self.with(now, id, |socket, ctx| socket.close(ctx, linger_zero))
            .unwrap_or(Outcome::of(Rule::CloseOrphan))
    }

    /// The application sends its FIN but goes on reading.
    pub fn shutdown(&mut self, now: Instant, id: ConnId) -> Outcome {
        self.with(now, id, |socket, ctx| socket.shutdown(ctx))
            .unwrap_or(Outcome::of(Rule::CloseOrphan))
    }
}

#[cfg(test)]
mod tests;
