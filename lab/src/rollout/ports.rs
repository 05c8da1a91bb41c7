//! How a client comes by its source port.
//!
//! The lab's kernels choose ports at random steps. For a client of 4.6 to 5.11 the lab plays the search itself: from a hint
//! on, two ports further each time, first the ports with the parity of the range's first, then the others; a port that
//! the kernel refuses is passed over (facts 6.2). It does so by making `ip_local_port_range` one port wide before each
//! connect(). bind() would not do: a socket that is bound to a port takes over a TIME_WAIT that connect() alone leaves
//! (`tcp_twsk_unique` without `twp`).

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use ipvs_model::segment::Proto;
use ipvs_sim::scenario::{Client, PortChoice};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::fitness::emulates_ports;

/// One host's way of choosing.
#[derive(Debug)]
pub enum Chooser {
    /// connect() chooses.
    Kernel,
    /// bind() to port 0 chooses.
    Bind,
    /// The application has a list.
    List(Vec<u16>, usize),
    /// The lab searches.
    Search(Search),
}

/// The search of 4.6 to 5.11 (`__inet_hash_connect`).
#[derive(Debug)]
pub struct Search {
    first: u16,
    last: u16,
    hint: u32,
    /// `net.ipv4.ip_local_port_range` of the host's namespace.
    range: File,
}

impl Search {
    fn open(&mut self, proto: Proto, to: SocketAddrV4) -> Opened {
        let size = (u32::from(self.last) - u32::from(self.first) + 1) & !1;
        let start = (self.hint % size) & !1;
        for parity in 0..2 {
            for step in (0..size).step_by(2) {
                let port = self.first + ((start + step) % size + parity) as u16;
                let only = format!("{port} {port}\n");
                if self.range.write_all_at(only.as_bytes(), 0).is_err() {
                    return Err(Errno::INVAL);
                }
                match dial(socket(proto)?, to) {
                    Err(Errno::ADDRNOTAVAIL) => {}
                    found => {
                        self.hint = self.hint.wrapping_add(step + 2);
                        return found;
                    }
                }
            }
        }
        Err(Errno::ADDRNOTAVAIL)
    }
}

/// A socket on its way, or why there is none.
pub type Opened = Result<OwnedFd, Errno>;

fn socket(proto: Proto) -> Opened {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let kind = match proto {
        Proto::Tcp => SocketType::STREAM,
        Proto::Udp => SocketType::DGRAM,
    };
    socket_with(AddressFamily::INET, kind, flags, None)
}

fn dial(socket: OwnedFd, to: SocketAddrV4) -> Opened {
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn dial_from(proto: Proto, port: u16, reuse: bool, to: SocketAddrV4) -> Opened {
    let socket = socket(proto)?;
    sockopt::set_socket_reuseaddr(&socket, reuse)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    dial(socket, to)
}

impl Chooser {
    /// As a table says; the hint of a search begins where the kernel's might. Runs in the host's namespace.
    pub fn of(table: &Client, hint: u32) -> Result<Self> {
        Ok(match &table.port_choice {
            PortChoice::Bind => Self::Bind,
            PortChoice::Fixed(ports) => Self::List(ports.clone(), 0),
            PortChoice::Connect if emulates_ports(table.behaviours()) => {
                let (first, last) = table.tcp().local_ports;
                let range = "/proc/sys/net/ipv4/ip_local_port_range";
                let range = File::options()
                    .write(true)
                    .open(range)
                    .with_context(|| format!("cannot open {range}"))?;
                Self::Search(Search {
                    first,
                    last,
                    hint,
                    range,
                })
            }
            PortChoice::Connect | PortChoice::Pool(_) => Self::Kernel,
        })
    }

    /// A socket that connects from the next port.
    pub fn open(&mut self, proto: Proto, to: SocketAddrV4) -> Opened {
        match self {
            Self::Kernel => dial(socket(proto)?, to),
            Self::Bind => dial_from(proto, 0, false, to),
            Self::List(ports, next) => {
                let port = ports[*next % ports.len()];
                *next += 1;
                dial_from(proto, port, true, to)
            }
            Self::Search(search) => search.open(proto, to),
        }
    }
}
