//! Clients and pods in one loop over real sockets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use ipvs_model::kube::PodId;
use ipvs_sim::engine::streams::{Purpose, Streams, draw};
use ipvs_sim::scenario::{Dist, Scenario};
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::clients::Clients;
use super::counts::Counts;
use super::network::{Door, Network};
use super::pods::Pods;
use super::slots::Key;
use super::{SECOND, nanos};
use crate::clock::monotonic;

/// After the load ends, requests may still be open for this long.
const TAIL: i64 = 300 * SECOND;
/// So many sockets are looked at in one go.
const BATCH: usize = 256;

/// What waits for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The next arrival of a table.
    Arrival(usize),
    /// A worker of a table begins its next request.
    Worker(usize, u32),
    /// The application gives up this request of a connection; whether only if it is not connected.
    GiveUp(Key, u64, bool),
    /// A datagram may have to be sent again: of which request, and how often at most.
    Again(Key, u64, u32),
    /// A connection's response is ready.
    Respond(Key),
    /// A datagram's answer is ready.
    Reply(Key),
    /// A connection has been idle since so many responses.
    Idle(Key, u32),
}

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client's.
    Client = 0,
    /// A pod's that listens.
    Listener = 1,
    /// A pod's connection.
    Served = 2,
}

/// Sockets and moments that are waited for, and what the applications draw.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    timers: BinaryHeap<Reverse<(i64, u64)>>,
    filed: Vec<Option<Timer>>,
    free: Vec<usize>,
    sequence: u64,
    now: i64,
    /// Nanoseconds between two of the kernel's ticks.
    tick: i64,
    rng: ChaCha8Rng,
}

fn data(kind: Kind, key: Key) -> EventData {
    EventData::new_u64((kind as u64) << 62 | u64::from(key.serial) << 32 | u64::from(key.slot))
}

impl Watch {
    fn new(seed: u64, hz: u32) -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).context("no epoll")?,
            timers: BinaryHeap::new(),
            filed: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            now: 0,
            tick: SECOND / i64::from(hz),
            rng: Streams::new(seed).stream(Purpose::Arrivals, 0),
        })
    }

    fn register(&mut self, fd: BorrowedFd<'_>, data: EventData, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, data, flags).context("cannot watch a socket")
    }

    /// Waits for a socket to have something to read.
    pub fn add(&mut self, fd: BorrowedFd<'_>, kind: Kind, key: Key) -> Result<()> {
        self.register(fd, data(kind, key), EventFlags::IN)
    }

    /// Waits for a client's socket to be connected.
    pub fn add_connecting(&mut self, fd: BorrowedFd<'_>, key: Key) -> Result<()> {
        self.register(fd, data(Kind::Client, key), EventFlags::OUT)
    }

    /// From now on a client's socket is waited for to have something to read.
    pub fn connected(&mut self, fd: BorrowedFd<'_>, key: Key) -> Result<()> {
        epoll::modify(&self.epoll, fd, data(Kind::Client, key), EventFlags::IN)
            .context("cannot watch a socket")
    }

    /// Files a moment. Those of one moment come in the order of filing.
    pub fn at(&mut self, at: i64, timer: Timer) {
        let place = self.free.pop().unwrap_or(self.filed.len());
        if place == self.filed.len() {
            self.filed.push(None);
        }
        self.filed[place] = Some(timer);
        self.sequence += 1;
        // The number keeps the order; its low bits say where the timer is.
        self.timers
            .push(Reverse((at, self.sequence << 24 | place as u64)));
    }

    /// Files a moment so many nanoseconds from now. The kernel wakes a process at ticks only (no high-resolution timers): what
    /// happens in the microseconds after one counts as happening at it, or every wait would be a tick too long.
    pub fn after(&mut self, nanos: i64, timer: Timer) {
        self.at(self.now - self.now.rem_euclid(self.tick) + nanos, timer);
    }

    /// The moment of this round.
    pub const fn now(&self) -> i64 {
        self.now
    }

    fn next(&self) -> Option<i64> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn pop(&mut self) -> Option<(i64, Timer)> {
        let Reverse((at, number)) = self.timers.pop()?;
        let place = (number & 0xff_ffff) as usize;
        self.free.push(place);
        self.filed[place].take().map(|timer| (at, timer))
    }

    /// A draw, in nanoseconds.
    pub fn draw(&mut self, dist: &Dist) -> i64 {
        nanos(draw(&mut self.rng, dist))
    }

    /// An exponential time with this mean, both in nanoseconds.
    pub fn exponential(&mut self, mean: f64) -> i64 {
        let uniform: f64 = self.rng.random();
        (-libm::log(1.0 - uniform) * mean) as i64
    }

    /// Where a search for ports begins.
    pub fn hint(&mut self) -> u32 {
        self.rng.next_u32()
    }
}

/// Clients, pods, and what they wait for.
#[derive(Debug)]
pub struct Traffic {
    watch: Watch,
    clients: Clients,
    pods: Pods,
}

impl Traffic {
    /// Nothing runs yet.
    pub fn new(scenario: &Scenario, seed: u64, network: &mut Network) -> Result<Self> {
        let mut watch = Watch::new(seed, scenario.node.hz.0)?;
        Ok(Self {
            clients: Clients::new(scenario, network, &mut watch)?,
            pods: Pods::new(scenario),
            watch,
        })
    }

    /// The load begins.
    pub fn start(&mut self, at: i64) {
        self.watch.now = at;
        self.clients.start(at, &mut self.watch);
    }

    /// A pod serves from now on.
    pub fn listen(&mut self, pod: PodId, door: Door) -> Result<()> {
        self.pods.listen(Some(pod), door, &mut self.watch)
    }

    /// Another service serves from now on.
    pub fn listen_elsewhere(&mut self, door: Door) -> Result<()> {
        self.pods.listen(None, door, &mut self.watch)
    }

    /// A pod stops listening; whether it has no connection.
    pub fn close_listener(&mut self, pod: PodId) -> Result<bool> {
        Ok(self.pods.close_listener(pod))
    }

    /// A pod's process ends.
    pub fn kill(&mut self, pod: PodId) -> Result<()> {
        self.pods.kill(pod);
        Ok(())
    }

    /// What the clients saw.
    pub const fn counts(&self) -> &Counts {
        &self.clients.counts
    }

    /// Lets clients and pods work until then, or until a pod has drained, which is returned.
    pub fn run_until(&mut self, end: i64, network: &mut Network) -> Result<Option<PodId>> {
        loop {
            self.watch.now = monotonic();
            if let Some(pod) = self.pods.drained.pop() {
                return Ok(Some(pod));
            }
            if self.watch.now >= end {
                return Ok(None);
            }
            while self
                .watch
                .next()
                .is_some_and(|at| at <= self.watch.now && at < end)
            {
                if let Some((at, timer)) = self.watch.pop() {
                    self.fire(at, timer, network)?;
                }
            }
            let next = self.watch.next().unwrap_or(end).min(end);
            self.wait(next)?;
        }
    }

    /// No new requests; waits until every one is over.
    pub fn finish(&mut self, network: &mut Network) -> Result<()> {
        self.clients.stop();
        let end = monotonic() + TAIL;
        while self.clients.any_open() && monotonic() < end {
            let step = monotonic() + SECOND / 4;
            self.run_until(step, network)?;
        }
        Ok(())
    }

    fn fire(&mut self, at: i64, timer: Timer, network: &mut Network) -> Result<()> {
        let watch = &mut self.watch;
        match timer {
            Timer::Arrival(table) => self.clients.arrival(table, at, network, watch)?,
            Timer::Worker(table, worker) => {
                self.clients.begin(table, worker, at, network, watch)?;
            }
            Timer::GiveUp(key, number, connecting) => {
                self.clients.give_up(key, number, connecting, watch);
            }
            Timer::Again(key, number, left) => self.clients.again(key, number, left, watch),
            Timer::Respond(key) => self.pods.respond(key, watch),
            Timer::Reply(key) => self.pods.reply(key),
            Timer::Idle(key, count) => self.pods.idle(key, count),
        }
        Ok(())
    }

    /// Waits for sockets, at most until then, and serves those that are ready.
    fn wait(&mut self, until: i64) -> Result<()> {
        let left = (until - monotonic()).max(0);
        let timeout = Timespec {
            tv_sec: left / SECOND,
            tv_nsec: left % SECOND,
        };
        let mut fds = [PollFd::from_borrowed_fd(
            self.watch.epoll.as_fd(),
            PollFlags::IN,
        )];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("cannot wait for sockets"),
        }
        let mut events = Vec::with_capacity(BATCH);
        epoll::wait(
            &self.watch.epoll,
            spare_capacity(&mut events),
            Some(&Timespec::default()),
        )
        .context("cannot ask for sockets")?;
        self.watch.now = monotonic();
        for event in events {
            let word = event.data.u64();
            let key = Key {
                slot: word as u32,
                serial: (word >> 32) as u32 & 0x3fff_ffff,
            };
            match word >> 62 {
                0 => self.clients.advance(key, &mut self.watch)?,
                1 => self.pods.knock(key, &mut self.watch)?,
                _ => self.pods.read(key, &mut self.watch),
            }
        }
        Ok(())
    }
}
