//! The lines of `ipvsadm -Ln`.

use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto};

use super::command::service_id;
use super::{Forward, ServiceArgs};
use crate::capture::ipvs_conn::is_ipv6;
use crate::capture::place::Parsed;

/// A service as listed, with its destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedService {
    /// What the service's own line says.
    pub service: ServiceArgs,
    /// Its destinations in the order of the listing, which is the order of the kernel's list.
    pub dests: Vec<ListedDest>,
}

/// A destination as listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedDest {
    /// The real server.
    pub real: Endpoint,
    /// Forwarding method.
    pub forward: Forward,
    /// Weight.
    pub weight: u32,
    /// Entries in an active state.
    pub active: u32,
    /// The other entries.
    pub inactive: u32,
}

/// One line of the listing: a service, or a destination of the service above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListLine {
    /// `TCP  10.20.81.251:80 rr persistent 10800`
    Service(ServiceArgs),
    /// `-> 10.27.1.248:80  Masq  1  0  0`
    Dest(ListedDest),
    /// A service that the model has no place for: the destinations after it are not its neighbour's.
    ForeignService(&'static str),
}

/// Reads one line of `ipvsadm -Ln`.
pub fn parse_list_line(line: &str) -> Parsed<ListLine> {
    let words = line.split_ascii_whitespace().collect::<Vec<_>>();
    match &words[..] {
        [] | ["--"] | ["IP", "Virtual", "Server", ..] | ["Prot", ..] => Parsed::Heading,
        ["->", "RemoteAddress:Port", ..] => Parsed::Heading,
        ["->", real, rest @ ..] => dest(real, rest),
        ["TCP", at, rest @ ..] => service(Proto::Tcp, at, rest),
        ["UDP", at, rest @ ..] => service(Proto::Udp, at, rest),
        ["SCTP", ..] => foreign("IPVS service of SCTP"),
        ["FWM", ..] => foreign("IPVS service of a firewall mark"),
        _ => Parsed::Unknown("no line of ipvsadm -Ln, -Sn or an ipvsadm command"),
    }
}

const fn foreign(why: &'static str) -> Parsed<ListLine> {
    Parsed::Item(ListLine::ForeignService(why))
}

fn service(proto: Proto, at: &str, rest: &[&str]) -> Parsed<ListLine> {
    if is_ipv6(at) {
        return foreign("IPv6");
    }
    let id = match service_id(proto, at) {
        Ok(id) => id,
        Err(Parsed::Foreign(why)) => return Parsed::Foreign(why),
        Err(_) => return Parsed::Unknown("names instead of numeric addresses (list with -n)"),
    };
    let [scheduler, flags @ ..] = rest else {
        return Parsed::Unknown("no scheduler after the service");
    };
    let mut args = ServiceArgs {
        id,
        scheduler: (*scheduler).to_owned(),
        persistent_s: None,
        netmask: None,
        flags: Vec::new(),
        one_packet: false,
    };
    let mut flags = flags;
    while let [flag, after @ ..] = flags {
        flags = after;
        match (*flag, after) {
            ("persistent", [seconds, after @ ..]) => {
                args.persistent_s = seconds.parse().ok();
                if args.persistent_s.is_none() {
                    return Parsed::Unknown("a persistence timeout that is none");
                }
                flags = after;
            }
            ("mask", [mask, after @ ..]) => {
                args.netmask = mask.parse::<Ipv4Addr>().ok();
                flags = after;
            }
            ("pe", [_, after @ ..]) => flags = after,
            ("ops", _) => args.one_packet = true,
            (list, _) => {
                let list = list.trim_matches(['(', ')']).split(',');
                args.flags
                    .extend(list.filter(|f| !f.is_empty()).map(str::to_owned));
            }
        }
    }
    Parsed::Item(ListLine::Service(args))
}

fn dest(real: &str, rest: &[&str]) -> Parsed<ListLine> {
    if is_ipv6(real) {
        return Parsed::Foreign("IPv6");
    }
    let Ok(real) = real.parse() else {
        return Parsed::Unknown("names instead of numeric addresses (list with -n)");
    };
    let [forward, numbers @ ..] = rest else {
        return Parsed::Unknown("no forwarding method after the real server");
    };
    let forward = match *forward {
        "Masq" => Forward::Masq,
        "Route" => Forward::Route,
        "Tunnel" => Forward::Tunnel,
        "Local" => Forward::Local,
        _ => return Parsed::Unknown("another listing than plain ipvsadm -Ln"),
    };
    let numbers = numbers.iter().map(|n| n.parse().ok()).collect::<Vec<_>>();
    let [Some(weight), Some(active), Some(inactive)] = numbers[..] else {
        return Parsed::Unknown("another listing than plain ipvsadm -Ln");
    };
    Parsed::Item(ListLine::Dest(ListedDest {
        real,
        forward,
        weight,
        active,
        inactive,
    }))
}

impl ListedService {
    /// Puts the lines of one listing together. Destinations without a service before them, as grep may leave
    /// them, are dropped; the number of those is the second part. Those of a foreign service are its own.
    pub fn collect(lines: impl IntoIterator<Item = ListLine>) -> (Vec<Self>, usize) {
        let mut services = Vec::<Self>::new();
        let mut orphans = 0;
        // Whose the next destinations are: nobody's, a foreign service's, or those of the last service.
        let mut owner = None;
        for line in lines {
            match line {
                ListLine::Service(service) => {
                    owner = Some(true);
                    services.push(Self {
                        service,
                        dests: Vec::new(),
                    });
                }
                ListLine::ForeignService(_) => owner = Some(false),
                ListLine::Dest(dest) => match (owner, services.last_mut()) {
                    (Some(true), Some(service)) => service.dests.push(dest),
                    (Some(false), _) => {}
                    _ => orphans += 1,
                },
            }
        }
        (services, orphans)
    }
}
