//! Clients and servers in one loop: real sockets, one request of one byte a connection and one byte back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, getsockname, recv, send,
    socket_with, sockopt,
};

use super::SECOND;
use super::spec::{Arrivals, ClosesFirst, RolloutSpec};
use crate::clock::monotonic;
use crate::generator::SERVICE;

/// Where an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// SYN sent.
    Connecting,
    /// Request sent.
    Asking,
    /// Answered; the server is to close.
    Answered,
}

/// A client's connection.
#[derive(Debug)]
struct Attempt {
    socket: OwnedFd,
    start: i64,
    port: u16,
    stage: Stage,
    slow: bool,
}

/// A server's connection.
#[derive(Debug)]
struct Served {
    stream: TcpStream,
    pod: usize,
    answered: bool,
}

/// What started in one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    ok: u32,
    fail: u32,
    no_port: u32,
    slow: u32,
}

/// All connections and their counts.
#[derive(Debug)]
pub struct Traffic {
    spec: RolloutSpec,
    rng: ChaCha8Rng,
    start: i64,
    next: i64,
    number: u64,
    attempts: Vec<Attempt>,
    listeners: BTreeMap<usize, TcpListener>,
    served: Vec<Served>,
    seconds: BTreeMap<i64, Second>,
    failures: Vec<(i64, u16, String)>,
}

/// Whether a connection is over.
enum After {
    Keep,
    Close,
}

impl Traffic {
    /// No connection yet.
    pub fn new(spec: &RolloutSpec) -> Self {
        Self {
            spec: spec.clone(),
            rng: ChaCha8Rng::seed_from_u64(spec.seed),
            start: 0,
            next: 0,
            number: 0,
            attempts: Vec::new(),
            listeners: BTreeMap::new(),
            served: Vec::new(),
            seconds: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// A pod serves from now on.
    pub fn listen(&mut self, pod: usize, listener: TcpListener) -> Result<()> {
        listener
            .set_nonblocking(true)
            .context("cannot make a listener non-blocking")?;
        self.listeners.insert(pod, listener);
        Ok(())
    }

    /// A pod's process ends.
    pub fn kill(&mut self, pod: usize) {
        self.listeners.remove(&pod);
        self.served.retain(|served| served.pod != pod);
    }

    /// The clients start.
    pub fn start(&mut self, at: i64) {
        self.start = at;
        self.next = at;
    }

    /// Lets clients and servers work until then.
    pub fn run_until(&mut self, end: i64) -> Result<()> {
        self.work(end, true)
    }

    /// No new connections; waits until every attempt is over.
    pub fn finish(&mut self) -> Result<()> {
        let end = monotonic() + (self.spec.app_timeout_s * SECOND as f64) as i64 + SECOND;
        self.work(end, false)
    }

    fn work(&mut self, end: i64, starting: bool) -> Result<()> {
        let patience = (self.spec.app_timeout_s * SECOND as f64) as i64;
        loop {
            let now = monotonic();
            if now >= end || (!starting && self.attempts.is_empty()) {
                return Ok(());
            }
            while starting && self.next <= now {
                self.begin(self.next)?;
                self.number += 1;
                self.next = match self.spec.arrivals {
                    Arrivals::Const => {
                        self.start + (self.number as f64 / self.spec.rate * SECOND as f64) as i64
                    }
                    Arrivals::Poisson => {
                        let uniform: f64 = self.rng.random();
                        let gap = -libm::log(1.0 - uniform) / self.spec.rate;
                        self.next + (gap * SECOND as f64) as i64
                    }
                };
            }
            let mut deadline = end;
            if starting {
                deadline = deadline.min(self.next);
            }
            // Attempts are in order of their start.
            if let Some(first) = self.attempts.first() {
                deadline = deadline.min(first.start + patience);
            }
            let left = (deadline - monotonic()).max(0);
            self.poll(Timespec {
                tv_sec: left / SECOND,
                tv_nsec: left % SECOND,
            })?;
            let now = monotonic();
            while self
                .attempts
                .first()
                .is_some_and(|first| first.start + patience <= now)
            {
                let late = self.attempts.remove(0);
                if late.stage == Stage::Answered {
                    self.answered(&late);
                } else {
                    let stage = if late.stage == Stage::Connecting {
                        1
                    } else {
                        2
                    };
                    self.failed(late.start, late.port, format!("timeout st{stage}"));
                }
            }
        }
    }

    /// Waits for sockets and serves those that are ready.
    fn poll(&mut self, timeout: Timespec) -> Result<()> {
        let mut fds = Vec::new();
        for attempt in &self.attempts {
            let connecting = attempt.stage == Stage::Connecting;
            let wanted = if connecting {
                PollFlags::OUT
            } else {
                PollFlags::IN
            };
            fds.push(PollFd::from_borrowed_fd(attempt.socket.as_fd(), wanted));
        }
        for listener in self.listeners.values() {
            fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
        }
        for served in &self.served {
            fds.push(PollFd::from_borrowed_fd(
                served.stream.as_fd(),
                PollFlags::IN,
            ));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("cannot wait for sockets"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (clients, rest) = ready.split_at(self.attempts.len());
        let (listening, serving) = rest.split_at(self.listeners.len());

        let mut served = std::mem::take(&mut self.served);
        let mut flags = serving.iter();
        let server_closes = self.spec.closes_first == ClosesFirst::Server;
        served.retain_mut(|s| {
            !flags.next().copied().unwrap_or(false) || matches!(s.serve(server_closes), After::Keep)
        });
        for ((pod, listener), _) in self.listeners.iter().zip(listening).filter(|(_, r)| **r) {
            while let Ok((stream, _)) = listener.accept() {
                stream
                    .set_nonblocking(true)
                    .context("cannot make a socket non-blocking")?;
                served.push(Served {
                    stream,
                    pod: *pod,
                    answered: false,
                });
            }
        }
        self.served = served;

        let clients = clients.to_vec();
        for (mut attempt, ready) in std::mem::take(&mut self.attempts).into_iter().zip(clients) {
            if !ready || matches!(self.advance(&mut attempt), After::Keep) {
                self.attempts.push(attempt);
            }
        }
        Ok(())
    }

    /// A client connects.
    fn begin(&mut self, start: i64) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .context("cannot make a client's socket")?;
        match connect(&socket, &SERVICE) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(Errno::ADDRNOTAVAIL) => {
                self.second(start).no_port += 1;
                return Ok(());
            }
            Err(error) => {
                self.failed(start, 0, words(error));
                return Ok(());
            }
        }
        let name = getsockname(&socket).context("a socket without a name")?;
        let port = std::net::SocketAddr::try_from(name).map_or(0, |name| name.port());
        let stage = Stage::Connecting;
        self.attempts.push(Attempt {
            socket,
            start,
            port,
            stage,
            slow: false,
        });
        Ok(())
    }

    /// Something happened to a client's connection.
    fn advance(&mut self, attempt: &mut Attempt) -> After {
        let step = || -> Result<Stage, Errno> {
            let mut byte = [0; 1];
            match attempt.stage {
                Stage::Connecting => {
                    sockopt::socket_error(&attempt.socket)??;
                    send(&attempt.socket, b"?", SendFlags::NOSIGNAL)?;
                    Ok(Stage::Asking)
                }
                Stage::Asking => match recv(&attempt.socket, &mut byte, RecvFlags::empty())?.0 {
                    0 => Err(Errno::CONNRESET),
                    _ => Ok(Stage::Answered),
                },
                // Whatever comes after the answer, a reset included, is the end.
                Stage::Answered => Ok(Stage::Answered),
            }
        };
        match (attempt.stage, step()) {
            (Stage::Answered, _) => {
                self.answered(attempt);
                After::Close
            }
            (_, Ok(Stage::Answered)) if self.spec.closes_first == ClosesFirst::Client => {
                self.answered(attempt);
                After::Close
            }
            (before, Ok(stage)) => {
                if before == Stage::Connecting {
                    let took = monotonic() - attempt.start;
                    attempt.slow = took as f64 > self.spec.slow_s * SECOND as f64;
                }
                attempt.stage = stage;
                After::Keep
            }
            (_, Err(Errno::AGAIN)) => After::Keep,
            (_, Err(error)) => {
                self.failed(attempt.start, attempt.port, words(error));
                After::Close
            }
        }
    }

    fn second(&mut self, start: i64) -> &mut Second {
        self.seconds
            .entry((start - self.start) / SECOND)
            .or_default()
    }

    fn answered(&mut self, attempt: &Attempt) {
        let second = self.second(attempt.start);
        second.ok += 1;
        second.slow += u32::from(attempt.slow);
    }

    fn failed(&mut self, start: i64, port: u16, error: String) {
        self.second(start).fail += 1;
        self.failures.push((start - self.start, port, error));
    }

    /// The counts: failures, seconds, total.
    pub fn report(&self, text: &mut String) -> Result<()> {
        for (start, port, error) in &self.failures {
            writeln!(
                text,
                "F {:.4} {port} {error}",
                *start as f64 / SECOND as f64
            )?;
        }
        let mut total = Second::default();
        for (second, n) in &self.seconds {
            let Second {
                ok,
                fail,
                no_port,
                slow,
            } = n;
            writeln!(
                text,
                "S {second} ok {ok} fail {fail} eaddr {no_port} slow {slow}"
            )?;
            total.ok += ok;
            total.fail += fail;
            total.no_port += no_port;
            total.slow += slow;
        }
        let Second {
            ok,
            fail,
            no_port,
            slow,
        } = total;
        writeln!(
            text,
            "TOTAL ok {ok} fail {fail} eaddrnotavail {no_port} slow {slow}"
        )?;
        Ok(())
    }
}

impl Served {
    /// Reads the request and answers, or notices that the client is gone.
    fn serve(&mut self, server_closes: bool) -> After {
        let mut byte = [0; 1];
        match recv(&self.stream, &mut byte, RecvFlags::empty()) {
            Ok((1.., _)) if !self.answered => {
                if send(&self.stream, b"!", SendFlags::NOSIGNAL).is_err() || server_closes {
                    return After::Close;
                }
                self.answered = true;
                After::Keep
            }
            Ok((1.., _)) | Err(Errno::AGAIN) => After::Keep,
            Ok((0, _)) | Err(_) => After::Close,
        }
    }
}

/// The C library's words for an error.
fn words(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
