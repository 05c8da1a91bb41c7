//! The pods' processes.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use ipvs_model::kube::PodId;
use ipvs_sim::scenario::{Scenario, Side};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::nanos;
use super::network::Door;
use super::slots::{Key, Slots};
use super::traffic::{Kind, Timer, Watch};

/// What the pods of the service answer, byte by byte.
pub const OURS: u8 = b'!';
/// What another service answers that has got a pod's address.
pub const FOREIGN: u8 = b'#';

/// A listening socket.
#[derive(Debug)]
struct Listener {
    door: Door,
    /// `None` on an address that has a new owner.
    pod: Option<PodId>,
}

/// A connection.
#[derive(Debug)]
struct Served {
    stream: TcpStream,
    pod: Option<PodId>,
    table: usize,
    received: u32,
    requests: u32,
    served: u32,
}

/// A datagram that waits for its answer.
#[derive(Debug)]
struct Asked {
    listener: Key,
    peer: SocketAddr,
    table: usize,
}

/// What the processes do with a connection of a table of clients.
#[derive(Debug, Clone, Copy)]
struct Manners {
    request: u32,
    response: u32,
    requests: u32,
    closes: bool,
}

/// All processes.
#[derive(Debug)]
pub struct Pods {
    listeners: Slots<Listener>,
    served: Slots<Served>,
    asked: Slots<Asked>,
    manners: Vec<Manners>,
    tables: BTreeMap<std::net::IpAddr, usize>,
    service_time: ipvs_sim::scenario::Dist,
    idle: i64,
    draining: Vec<PodId>,
    /// Pods that drained and have no connection left.
    pub drained: Vec<PodId>,
}

impl Pods {
    /// No process yet.
    pub fn new(scenario: &Scenario) -> Self {
        let mut tables = BTreeMap::new();
        for (table, client) in scenario.client.iter().enumerate() {
            tables.extend(client.addresses().map(|address| (address.into(), table)));
        }
        let manners = scenario.client.iter().map(|client| Manners {
            request: client.request_bytes,
            response: client.response_bytes,
            requests: client.requests_per_connection,
            closes: client.closes_first == Side::Server,
        });
        Self {
            listeners: Slots::default(),
            served: Slots::default(),
            asked: Slots::default(),
            manners: manners.collect(),
            tables,
            service_time: scenario.server.service_time,
            idle: nanos(scenario.server.keep_alive_timeout),
            draining: Vec::new(),
            drained: Vec::new(),
        }
    }

    /// A process serves from now on.
    pub fn listen(&mut self, pod: Option<PodId>, door: Door, watch: &mut Watch) -> Result<()> {
        match &door {
            Door::Tcp(listener) => listener.set_nonblocking(true),
            Door::Udp(socket) => socket.set_nonblocking(true),
        }
        .context("cannot make a listener non-blocking")?;
        let key = self.listeners.next_key();
        match &door {
            Door::Tcp(listener) => watch.add(listener.as_fd(), Kind::Listener, key)?,
            Door::Udp(socket) => watch.add(socket.as_fd(), Kind::Listener, key)?,
        }
        self.listeners.insert(Listener { door, pod });
        Ok(())
    }

    /// A process stops listening and goes on with its connections; whether it has none.
    pub fn close_listener(&mut self, pod: PodId) -> bool {
        for key in self.listeners.keys(|listener| listener.pod == Some(pod)) {
            self.listeners.remove(key);
        }
        if self
            .served
            .keys(|served| served.pod == Some(pod))
            .is_empty()
        {
            return true;
        }
        self.draining.push(pod);
        false
    }

    /// A process ends.
    pub fn kill(&mut self, pod: PodId) {
        self.draining.retain(|draining| *draining != pod);
        for key in self.listeners.keys(|listener| listener.pod == Some(pod)) {
            self.listeners.remove(key);
        }
        for key in self.served.keys(|served| served.pod == Some(pod)) {
            self.served.remove(key);
        }
    }

    fn close(&mut self, key: Key) {
        let Some(gone) = self.served.remove(key) else {
            return;
        };
        if let Some(pod) = gone.pod
            && self.draining.contains(&pod)
            && self
                .served
                .keys(|served| served.pod == Some(pod))
                .is_empty()
        {
            self.draining.retain(|draining| *draining != pod);
            self.drained.push(pod);
        }
    }

    /// Somebody knocks.
    pub fn knock(&mut self, key: Key, watch: &mut Watch) -> Result<()> {
        let Some(listener) = self.listeners.get_mut(key) else {
            return Ok(());
        };
        let pod = listener.pod;
        match &listener.door {
            Door::Tcp(door) => {
                while let Ok((stream, peer)) = TcpListener::accept(door) {
                    stream
                        .set_nonblocking(true)
                        .context("cannot make a socket non-blocking")?;
                    let place = self.served.next_key();
                    watch.add(stream.as_fd(), Kind::Served, place)?;
                    self.served.insert(Served {
                        stream,
                        pod,
                        table: self.tables.get(&peer.ip()).copied().unwrap_or(0),
                        received: 0,
                        requests: 0,
                        served: 0,
                    });
                }
            }
            Door::Udp(door) => {
                let mut bytes = [0; 65_536];
                while let Ok((_, peer)) = UdpSocket::recv_from(door, &mut bytes) {
                    let table = self.tables.get(&peer.ip()).copied().unwrap_or(0);
                    let place = self.asked.insert(Asked {
                        listener: key,
                        peer,
                        table,
                    });
                    let after = watch.draw(&self.service_time);
                    watch.after(after, Timer::Reply(place));
                }
            }
        }
        Ok(())
    }

    /// A connection has something to read.
    pub fn read(&mut self, key: Key, watch: &mut Watch) {
        let Some(served) = self.served.get_mut(key) else {
            return;
        };
        let mut bytes = [0; 65_536];
        match recv(&served.stream, &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) => self.close(key),
            Ok((length, _)) => {
                served.received += length as u32;
                let wanted = self.manners[served.table].request;
                while served.received >= wanted {
                    served.received -= wanted;
                    served.requests += 1;
                    let after = watch.draw(&self.service_time);
                    watch.after(after, Timer::Respond(key));
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(key),
        }
    }

    /// A response is ready.
    pub fn respond(&mut self, key: Key, watch: &mut Watch) {
        let Some(served) = self.served.get_mut(key) else {
            return;
        };
        let manners = self.manners[served.table];
        let byte = if served.pod.is_some() { OURS } else { FOREIGN };
        let bytes = vec![byte; manners.response as usize];
        if send(&served.stream, &bytes, SendFlags::NOSIGNAL).is_err() {
            return self.close(key);
        }
        served.served += 1;
        if served.served < manners.requests {
            let count = served.served;
            watch.after(self.idle, Timer::Idle(key, count));
        } else if manners.closes {
            self.close(key);
        }
    }

    /// A datagram's answer is ready.
    pub fn reply(&mut self, key: Key) {
        let Some(asked) = self.asked.remove(key) else {
            return;
        };
        if let Some(listener) = self.listeners.get_mut(asked.listener)
            && let Door::Udp(socket) = &listener.door
        {
            let byte = if listener.pod.is_some() {
                OURS
            } else {
                FOREIGN
            };
            let bytes = vec![byte; self.manners[asked.table].response as usize];
            // What the client's kernel says to it comes as an error of the next call: nothing is lost by it.
            let _ = socket.send_to(&bytes, asked.peer);
        }
    }

    /// A kept-alive connection may have been idle for too long.
    pub fn idle(&mut self, key: Key, count: u32) {
        let idle = self
            .served
            .get_mut(key)
            .is_some_and(|served| served.served == count && served.requests == count);
        if idle {
            self.close(key);
        }
    }
}
