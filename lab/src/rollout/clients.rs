//! The clients' applications.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use ipvs_model::segment::Proto;
use ipvs_sim::outcome::{DELAYED_AFTER, Outcome};
use ipvs_sim::scenario::{Arrivals, Dist, PortChoice, Scenario, Side};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, getsockname, recv, send, sockopt};

use super::counts::Counts;
use super::network::Network;
use super::pods::FOREIGN;
use super::ports::Chooser;
use super::slots::{Key, Slots};
use super::traffic::{Kind, Timer, Watch};
use super::{SECOND, nanos};

/// A worker whose request ended at once begins the next one so much later, as in the simulator.
const PAUSE: i64 = 100_000;

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Request {
    start: i64,
    worker: u32,
    received: u32,
    late: bool,
    number: u64,
}

/// A connection.
#[derive(Debug)]
struct Conn {
    socket: OwnedFd,
    table: usize,
    host: usize,
    port: u16,
    connecting: bool,
    /// Requests that it will still serve after this one.
    left: u32,
    /// One of a pool, which is never closed.
    stays: bool,
    request: Option<Request>,
}

/// A table of the scenario.
#[derive(Debug)]
struct Table {
    arrivals: Arrivals,
    first_host: usize,
    hosts: usize,
    begin: i64,
    stop: i64,
    last: i64,
    begun: u64,
    /// The hosts make requests in turn.
    turn: u64,
    timeout: Option<i64>,
    connect_timeout: Option<i64>,
    /// Of datagrams: how often one is sent again, and after which time.
    again: (u32, i64),
    requests: u32,
    request_bytes: u32,
    response_bytes: u32,
    closes: bool,
}

/// A host: how it chooses ports, its idle connections, the latest last, and sockets that stay open and are used in turn.
#[derive(Debug)]
struct Host {
    chooser: Chooser,
    idle: Vec<Key>,
    pool: Vec<Option<Key>>,
    turn: usize,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    proto: Proto,
    service: SocketAddrV4,
    tables: Vec<Table>,
    hosts: Vec<Host>,
    conns: Slots<Conn>,
    requests: u64,
    open: u64,
    stopped: bool,
    /// What they saw.
    pub counts: Counts,
}

impl Clients {
    /// Nobody has begun.
    pub fn new(scenario: &Scenario, network: &mut Network, watch: &mut Watch) -> Result<Self> {
        let (mut tables, mut hosts) = (Vec::new(), Vec::new());
        for client in &scenario.client {
            tables.push(Table {
                arrivals: client.arrivals,
                first_host: hosts.len(),
                hosts: client.count as usize,
                begin: nanos(client.start),
                stop: nanos(client.stop.unwrap_or(scenario.duration)),
                last: 0,
                begun: 0,
                turn: 0,
                timeout: client.timeout.map(nanos),
                connect_timeout: client.connect_timeout.map(nanos),
                again: (client.udp.retries, nanos(client.udp.retry_after)),
                requests: client.requests_per_connection,
                request_bytes: client.request_bytes,
                response_bytes: client.response_bytes,
                closes: client.closes_first == Side::Client,
            });
            for _ in 0..client.count {
                network.enter_client(hosts.len())?;
                let chooser = Chooser::of(client, watch.hint())?;
                hosts.push(Host {
                    chooser,
                    idle: Vec::new(),
                    pool: match client.port_choice {
                        PortChoice::Pool(size) => vec![None; usize::from(size)],
                        _ => Vec::new(),
                    },
                    turn: 0,
                });
            }
        }
        network.enter_node()?;
        let service = scenario.service.address;
        Ok(Self {
            proto: scenario.service.protocol,
            service: SocketAddrV4::new(service.ip, service.port),
            tables,
            hosts,
            conns: Slots::default(),
            requests: 0,
            open: 0,
            stopped: false,
            counts: Counts::default(),
        })
    }

    /// The load begins at this moment.
    pub fn start(&mut self, at: i64, watch: &mut Watch) {
        self.counts.start = at;
        for (number, table) in self.tables.iter_mut().enumerate() {
            table.begin += at;
            table.stop += at;
            table.last = table.begin;
            if let Arrivals::Closed(closed) = table.arrivals {
                for worker in 0..closed.concurrency {
                    watch.at(table.begin, Timer::Worker(number, worker));
                }
            } else if let Some(next) = table.next(watch) {
                watch.at(next, Timer::Arrival(number));
            }
        }
    }

    /// No new requests; whether any is open.
    pub fn stop(&mut self) -> bool {
        self.stopped = true;
        self.open > 0
    }

    /// Whether any request is open.
    pub fn any_open(&self) -> bool {
        self.open > 0
    }

    /// The moment of an arrival.
    pub fn arrival(
        &mut self,
        table: usize,
        at: i64,
        network: &mut Network,
        watch: &mut Watch,
    ) -> Result<()> {
        if let Some(next) = self.tables[table].next(watch) {
            watch.at(next, Timer::Arrival(table));
        }
        self.begin(table, 0, at, network, watch)
    }

    /// A request begins: on an idle connection, or on a new one.
    pub fn begin(
        &mut self,
        table: usize,
        worker: u32,
        start: i64,
        network: &mut Network,
        watch: &mut Watch,
    ) -> Result<()> {
        let rules = &mut self.tables[table];
        if self.stopped || start >= rules.stop {
            return Ok(());
        }
        let turn = match rules.arrivals {
            Arrivals::Closed(_) => u64::from(worker),
            _ => rules.turn,
        };
        rules.turn += 1;
        let host = rules.first_host + (turn % rules.hosts as u64) as usize;
        let requests = rules.requests;
        self.requests += 1;
        self.open += 1;
        let request = Request {
            start,
            worker,
            received: 0,
            late: false,
            number: self.requests,
        };
        while let Some(key) = self.hosts[host].idle.pop() {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.request = Some(request);
                self.patience(key, table, request, false, watch);
                self.ask(key, watch);
                return Ok(());
            }
        }
        let place = self.hosts[host].next_of_pool();
        if let Some(key) = place.and_then(|place| self.hosts[host].pool[place])
            && let Some(conn) = self.conns.get_mut(key)
        {
            conn.request = Some(request);
            self.patience(key, table, request, false, watch);
            self.ask(key, watch);
            return Ok(());
        }
        network.enter_client(host)?;
        let socket = match self.hosts[host].chooser.open(self.proto, self.service) {
            Ok(socket) => socket,
            Err(error) => {
                let outcome = match error {
                    Errno::ADDRNOTAVAIL | Errno::ADDRINUSE | Errno::AGAIN => {
                        Outcome::PortsExhausted
                    }
                    other => connect_error(other),
                };
                self.ended(table, 0, request, outcome, watch);
                return Ok(());
            }
        };
        let name = getsockname(&socket).context("a socket without a name")?;
        let port = std::net::SocketAddr::try_from(name).map_or(0, |name| name.port());
        let key = self.conns.next_key();
        let connecting = self.proto == Proto::Tcp;
        if connecting {
            watch.add_connecting(socket.as_fd(), key)?;
        } else {
            watch.add(socket.as_fd(), Kind::Client, key)?;
        }
        if let Some(place) = place {
            self.hosts[host].pool[place] = Some(key);
        }
        self.conns.insert(Conn {
            socket,
            table,
            host,
            port,
            connecting,
            left: requests - 1,
            stays: place.is_some(),
            request: Some(request),
        });
        self.patience(key, table, request, connecting, watch);
        if !connecting {
            self.ask(key, watch);
        }
        Ok(())
    }

    /// Files the moments at which the application gives up.
    fn patience(&self, key: Key, table: usize, request: Request, opened: bool, watch: &mut Watch) {
        let rules = &self.tables[table];
        if let Some(timeout) = rules.timeout {
            watch.at(
                request.start + timeout,
                Timer::GiveUp(key, request.number, false),
            );
        }
        if self.proto == Proto::Udp && rules.again.0 > 0 {
            let at = request.start + rules.again.1;
            watch.at(at, Timer::Again(key, request.number, rules.again.0));
        }
        if let (Some(timeout), true) = (rules.connect_timeout, opened) {
            watch.at(
                request.start + timeout,
                Timer::GiveUp(key, request.number, true),
            );
        }
    }

    /// The application gives up, unless the request is over.
    pub fn give_up(&mut self, key: Key, number: u64, only_connecting: bool, watch: &mut Watch) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let current = conn.request.is_some_and(|request| request.number == number);
        if !current || (only_connecting && !conn.connecting) {
            return;
        }
        let outcome = if conn.connecting {
            Outcome::ConnectTimeout
        } else {
            Outcome::ResponseTimeout
        };
        self.drop_conn(key, outcome, watch);
    }

    /// A datagram without an answer is sent again, at most so many times.
    pub fn again(&mut self, key: Key, number: u64, left: u32, watch: &mut Watch) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.request.is_none_or(|request| request.number != number) {
            return;
        }
        if left > 1 {
            let after = self.tables[conn.table].again.1;
            watch.after(after, Timer::Again(key, number, left - 1));
        }
        self.ask(key, watch);
    }

    /// Something happened to a connection.
    pub fn advance(&mut self, key: Key, watch: &mut Watch) -> Result<()> {
        let Some(conn) = self.conns.get_mut(key) else {
            return Ok(());
        };
        if conn.connecting {
            match sockopt::socket_error(&conn.socket) {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => {
                    self.drop_conn(key, connect_error(error), watch);
                    return Ok(());
                }
            }
            conn.connecting = false;
            if let Some(request) = &mut conn.request {
                request.late = watch.now() - request.start > nanos(DELAYED_AFTER);
            }
            watch.connected(conn.socket.as_fd(), key)?;
            self.ask(key, watch);
            return Ok(());
        }
        let mut bytes = [0; 65_536];
        match recv(&conn.socket, &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) if self.proto == Proto::Tcp => self.drop_conn(key, Outcome::Reset, watch),
            Ok((length, _)) => self.got(key, &bytes[..length.min(bytes.len())], watch),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                let outcome = match error {
                    Errno::TIMEDOUT => Outcome::ResponseTimeout,
                    Errno::HOSTUNREACH | Errno::NETUNREACH => Outcome::HostUnreachable,
                    Errno::CONNREFUSED => Outcome::Refused,
                    _ => Outcome::Reset,
                };
                self.drop_conn(key, outcome, watch);
            }
        }
        Ok(())
    }

    fn got(&mut self, key: Key, bytes: &[u8], watch: &mut Watch) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(request) = &mut conn.request else {
            return;
        };
        if bytes.contains(&FOREIGN) {
            return self.drop_conn(key, Outcome::WrongService, watch);
        }
        request.received += bytes.len() as u32;
        let rules = &self.tables[conn.table];
        if request.received < rules.response_bytes {
            return;
        }
        let (table, host, port, request) = (conn.table, conn.host, conn.port, *request);
        conn.request = None;
        let closes = rules.closes || self.proto == Proto::Udp;
        if conn.stays {
            // Of a pool: the next turn will come.
        } else if conn.left > 0 {
            conn.left -= 1;
            self.hosts[host].idle.push(key);
        } else if closes {
            self.conns.remove(key);
        }
        self.ended(table, port, request, Outcome::Answered, watch);
    }

    /// Sends the request.
    fn ask(&mut self, key: Key, watch: &mut Watch) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let bytes = vec![b'?'; self.tables[conn.table].request_bytes as usize];
        if let Err(error) = send(&conn.socket, &bytes, SendFlags::NOSIGNAL) {
            let outcome = match error {
                Errno::HOSTUNREACH | Errno::NETUNREACH => Outcome::HostUnreachable,
                Errno::CONNREFUSED => Outcome::Refused,
                _ => Outcome::Reset,
            };
            self.drop_conn(key, outcome, watch);
        }
    }

    /// Closes a connection; a request that waits on it has failed.
    fn drop_conn(&mut self, key: Key, outcome: Outcome, watch: &mut Watch) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let (table, port, request, stays) =
            (conn.table, conn.port, conn.request.take(), conn.stays);
        if !stays {
            self.conns.remove(key);
        }
        if let Some(request) = request {
            self.ended(table, port, request, outcome, watch);
        }
    }

    fn ended(
        &mut self,
        table: usize,
        port: u16,
        request: Request,
        outcome: Outcome,
        watch: &mut Watch,
    ) {
        self.open -= 1;
        self.counts
            .ended(request.start, port, outcome, request.late);
        if let Arrivals::Closed(closed) = self.tables[table].arrivals {
            let think = match closed.think_time {
                Dist::Constant(time) => nanos(time),
                other => watch.draw(&other),
            };
            // Only a worker whose request took no time must be held up; to the kernel's tick, as it happens.
            let pause = if watch.now() - request.start < PAUSE {
                PAUSE
            } else {
                0
            };
            watch.after(think.max(pause), Timer::Worker(table, request.worker));
        }
    }
}

impl Host {
    /// The place of the socket whose turn it is.
    fn next_of_pool(&mut self) -> Option<usize> {
        let place = self.turn.checked_rem(self.pool.len())?;
        self.turn += 1;
        Some(place)
    }
}

impl Table {
    /// The moment of the next arrival of an open loop.
    fn next(&mut self, watch: &mut Watch) -> Option<i64> {
        let at = match self.arrivals {
            Arrivals::Constant(rate) => {
                self.begin + (self.begun as f64 / rate.rate * SECOND as f64) as i64
            }
            Arrivals::Poisson(rate) => self.last + watch.exponential(SECOND as f64 / rate.rate),
            Arrivals::Closed(_) => return None,
        };
        self.begun += 1;
        self.last = at;
        (at < self.stop).then_some(at)
    }
}

/// How an error of connect() counts.
fn connect_error(error: Errno) -> Outcome {
    match error {
        Errno::CONNREFUSED => Outcome::Refused,
        Errno::HOSTUNREACH | Errno::NETUNREACH => Outcome::HostUnreachable,
        Errno::TIMEDOUT => Outcome::ConnectTimeout,
        _ => Outcome::Reset,
    }
}
