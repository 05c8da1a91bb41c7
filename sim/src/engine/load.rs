//! The load: when requests start, which client host makes them, and what each of them is waiting for.

use ipvs_model::index::PortMap;
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, NANOS_PER_SEC, Span};
use rand::rngs::ChaCha8Rng;

use super::queue::{Lane, Queue, Turn};
use super::streams::{Purpose, Streams, draw, exponential};
use crate::outcome::Cause;
use crate::scenario::{Arrivals, Client as ClientKind, Dist, Side};

/// A request that has not ended.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Number in the run, from 0.
    pub number: u64,
    /// The kind of client.
    pub kind: u16,
    /// The host, by its place among all hosts.
    pub host: u32,
    /// The worker of a closed loop.
    pub worker: u32,
    /// When it began.
    pub start: Instant,
    /// Whether it counts: it began after the warm-up.
    pub counted: bool,
    /// Local port.
    pub port: u16,
    /// When connect() succeeded.
    pub connected: Option<Instant>,
    /// Whether this request had to open the connection.
    pub opened: bool,
    /// Bytes of the answer that have arrived.
    pub received: u32,
    /// Requests that this connection will still serve after this one.
    pub left: u32,
    /// What has gone wrong so far.
    pub trouble: Option<Cause>,
    /// The real server that the latest SYN went to.
    pub server: Option<Endpoint>,
    /// The rule that decided on the first SYN.
    pub rule: &'static str,
    /// Time since the port's last connection ended, when this one began.
    pub port_idle: Option<Span>,
    /// Whether another workload answered.
    pub wrong_service: bool,
    /// Tells a slot's tenants apart.
    pub serial: u64,
}

impl Request {
    /// A request that begins at `start`, without a connection yet.
    pub const fn new(number: u64, kind: u16, host: u32, start: Instant, counted: bool) -> Self {
        Self {
            number,
            kind,
            host,
            worker: 0,
            start,
            counted,
            port: 0,
            connected: None,
            opened: false,
            received: 0,
            left: 0,
            trouble: None,
            server: None,
            rule: "",
            port_idle: None,
            wrong_service: false,
            serial: 0,
        }
    }
}

/// A source of requests: one `[[client]]` table.
#[derive(Debug)]
pub struct Load {
    /// The first of its hosts among all hosts.
    pub first_host: u32,
    /// How many hosts it has.
    pub hosts: u32,
    /// When it ends.
    pub stop: Instant,
    /// Where the next arrival waits.
    pub series: Lane,
    arrivals: Arrivals,
    start: Instant,
    begun: u64,
    rng: ChaCha8Rng,
    think: ChaCha8Rng,
    last: Instant,
}

impl Load {
    /// The load of a table; `kind` is its place among the tables.
    pub fn new(
        kind: u16,
        table: &ClientKind,
        first_host: u32,
        end: Instant,
        series: Lane,
        streams: Streams,
    ) -> Self {
        let start = Instant::ZERO + table.start;
        let stop = table
            .stop
            .map_or(end, |stop| (Instant::ZERO + stop).min(end));
        Self {
            first_host,
            hosts: table.count,
            stop,
            series,
            arrivals: table.arrivals,
            start,
            begun: 0,
            rng: streams.stream(Purpose::Arrivals, u32::from(kind)),
            think: streams.stream(Purpose::Think, u32::from(kind)),
            last: start,
        }
    }

    /// The moments at which requests start by themselves at the beginning: the first arrival of an open loop, or one
    /// for each worker of a closed one.
    pub fn initial(&mut self) -> Vec<(Instant, u32)> {
        match self.arrivals {
            Arrivals::Constant(_) | Arrivals::Poisson(_) => {
                self.next_arrival().map(|at| (at, 0)).into_iter().collect()
            }
            Arrivals::Closed(closed) => (0..closed.concurrency)
                .map(|worker| (self.start, worker))
                .collect(),
        }
    }

    /// The next arrival of an open loop; `None` for a closed one, and at the end of the load.
    pub fn next_arrival(&mut self) -> Option<Instant> {
        let at = match self.arrivals {
            Arrivals::Constant(rate) => {
                let nanos = self.begun as f64 * NANOS_PER_SEC as f64 / rate.rate;
                self.start + Span(nanos as u64)
            }
            Arrivals::Poisson(rate) => {
                let mean = Span((NANOS_PER_SEC as f64 / rate.rate) as u64);
                self.last + exponential(&mut self.rng, mean)
            }
            Arrivals::Closed(_) => return None,
        };
        self.begun += 1;
        self.last = at;
        (at < self.stop).then_some(at)
    }

    /// Whether workers start the next request when one ends, and after which time.
    pub fn think_time(&mut self) -> Option<Span> {
        match self.arrivals {
            Arrivals::Closed(closed) => Some(draw(&mut self.think, &closed.think_time)),
            _ => None,
        }
    }

    /// The host of the request with this number (of an open loop) or of this worker.
    #[inline]
    pub const fn host(&self, number: u64) -> u32 {
        // Most tables have one host, and a division takes long.
        if self.hosts == 1 {
            return self.first_host;
        }
        self.first_host + (number % self.hosts as u64) as u32
    }
}

/// What a connection of a kind of client does, as the event loop needs it.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Bytes of a request.
    pub request_bytes: u32,
    /// Bytes of a response.
    pub response_bytes: u32,
    /// Requests on one connection.
    pub requests: u32,
    /// Who sends the first FIN.
    pub closes_first: Side,
    /// The application gives up a request after this lane's time.
    pub timeout: Option<Lane>,
    /// The application gives up a connect after this lane's time.
    pub connect_timeout: Option<Lane>,
}

impl Manners {
    /// The manners of a table.
    pub fn of<E>(table: &ClientKind, queue: &mut Queue<E>) -> Self {
        Self {
            request_bytes: table.request_bytes,
            response_bytes: table.response_bytes,
            requests: table.requests_per_connection,
            closes_first: table.closes_first,
            timeout: table.timeout.map(|timeout| queue.lane(timeout)),
            connect_timeout: table.connect_timeout.map(|timeout| queue.lane(timeout)),
        }
    }
}

/// Open requests in slots.
#[derive(Debug, Default)]
pub struct Requests {
    slots: Vec<Option<Request>>,
    free: Vec<u32>,
    serial: u64,
    /// Open requests that were counted.
    open: u64,
}

impl Requests {
    /// Stores a request and numbers its tenancy.
    pub fn insert(&mut self, mut request: Request) -> (u32, u64) {
        self.serial += 1;
        request.serial = self.serial;
        self.open += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(request);
                slot
            }
            None => {
                self.slots.push(Some(request));
                self.slots.len() as u32 - 1
            }
        };
        (slot, self.serial)
    }

    /// The request in a slot.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Request> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The request in a slot, if it is still the tenant of this number.
    pub fn tenant(&mut self, slot: u32, serial: u64) -> Option<&mut Request> {
        self.get_mut(slot)
            .filter(|request| request.serial == serial)
    }

    /// Takes a request out.
    pub fn remove(&mut self, slot: u32) -> Option<Request> {
        let request = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        self.open -= 1;
        Some(request)
    }

    /// Whether any request is open.
    pub const fn any_open(&self) -> bool {
        self.open > 0
    }
}

/// What the engine keeps of a connection beside its socket: the request that uses it, and its filed timer.
#[derive(Clone, Copy, Debug)]
pub struct ConnState {
    /// Slot of the request, [`ConnState::IDLE`] if none waits on it.
    pub request: u32,
    /// The moment for which a timer event waits in the queue, and its turn: an event with another turn is that of an earlier use
    /// of the port.
    pub filed: (Instant, Turn),
    /// When the connection was last of use to a request.
    pub ended: Instant,
}

impl ConnState {
    /// No request.
    pub const IDLE: u32 = u32::MAX;
    /// No timer event.
    pub const NOT_FILED: (Instant, Turn) = (Instant::NEVER, Turn::NONE);

    /// A connection of a request, without a timer.
    pub const fn new(request: u32) -> Self {
        Self {
            request,
            filed: Self::NOT_FILED,
            ended: Instant::ZERO,
        }
    }
}

/// Connections by host and port.
#[derive(Debug, Default)]
pub struct Conns {
    hosts: Vec<PortMap<ConnState>>,
}

impl Conns {
    /// What is kept of a connection.
    pub fn get(&self, host: u32, port: u16) -> Option<&ConnState> {
        self.hosts.get(host as usize)?.get(port)
    }

    /// What is kept of a connection.
    pub fn get_mut(&mut self, host: u32, port: u16) -> Option<&mut ConnState> {
        self.hosts.get_mut(host as usize)?.get_mut(port)
    }

    /// What is kept of a connection; if nothing is, that `request` uses it.
    pub fn get_or_insert(&mut self, host: u32, port: u16, request: u32) -> &mut ConnState {
        let host = host as usize;
        if self.hosts.len() <= host {
            self.hosts.resize_with(host + 1, PortMap::default);
        }
        self.hosts[host].get_or_insert(port, ConnState::new(request))
    }

    /// Forgets a connection.
    pub fn remove(&mut self, host: u32, port: u16) {
        if let Some(ports) = self.hosts.get_mut(host as usize) {
            ports.remove(port);
        }
    }
}

/// A draw from a distribution on a stream of its own, or the constant without a draw.
pub fn sample(dist: &Dist, rng: &mut ChaCha8Rng) -> Span {
    match dist {
        Dist::Constant(span) => *span,
        _ => draw(rng, dist),
    }
}
