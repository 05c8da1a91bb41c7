//! Connections into numbers, client by client.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipvs_model::time::{NANOS_PER_SEC, Span};

use super::conns::{Conn, Flows};
use super::workers::{self, Loop};
use crate::scenario::Side;

/// Fewer connections than this give no rate.
pub const CONNS_MIN: usize = 5;
/// Fewer give no word on how they arrive.
const ARRIVALS_MIN: usize = 50;
/// How far back a single listing is trusted: ports that come round sooner would be missed.
const LOOK_BACK: Span = Span::from_secs(100);
/// Connections of so long are a heap whose order listings do not show.
const HEAP: Span = Span::from_millis(1_500);

/// How often connections begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Connections a second.
    pub per_s: f64,
    /// Connections that were counted.
    pub samples: usize,
    /// In this time.
    pub window: Span,
    /// Variance over mean of the counts a second: 0 at equal distances, 1 for Poisson; `None` with too few.
    pub dispersion: Option<f64>,
}

/// Smallest, 10 %, median, 90 % and largest of some times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    /// How many there were.
    pub count: usize,
    /// The smallest.
    pub min: Span,
    /// A tenth is below it.
    pub low: Span,
    /// The median.
    pub median: Span,
    /// A tenth is above it.
    pub high: Span,
    /// The largest.
    pub max: Span,
}

impl Quantiles {
    /// `None` of nothing.
    pub fn of(mut all: Vec<Span>) -> Option<Self> {
        all.sort();
        let at = |share: usize| {
            all.get((all.len().saturating_sub(1)) * share / 100)
                .copied()
        };
        Some(Self {
            count: all.len(),
            min: at(0)?,
            low: at(10)?,
            median: at(50)?,
            high: at(90)?,
            max: at(100)?,
        })
    }
}

/// In which order ports are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// One after the other of the same parity: connect() of 4.2 to 5.17.
    EvenSteps,
    /// One after the other.
    Steps,
    /// Of one parity, in small random steps: connect() since 5.18.
    EvenRandomSteps,
    /// At random: bind() to port 0, or an application's choice.
    Random,
    /// Too few to tell.
    Unknown,
}

/// What is seen of a client's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortFit {
    /// The lowest.
    pub low: u16,
    /// The highest.
    pub high: u16,
    /// Different ports.
    pub distinct: usize,
    /// Of these, even ones.
    pub even: usize,
    /// How they are taken.
    pub allocation: Allocation,
    /// Ports came round: all of them were seen.
    pub came_round: bool,
}

/// What is seen of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientFit {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its connections.
    pub conns: usize,
    /// How often they begin; `None` if too few, or the tables are filtered.
    pub rate: Option<Rate>,
    /// Its ports.
    pub ports: PortFit,
    /// First FINs of the server, and of the client.
    pub first_fins: (u64, u64),
    /// Time between two uses of a port.
    pub reuse: Option<Quantiles>,
    /// It calls in a closed loop; `None` if it does not, or that cannot be told.
    pub workers: Option<Loop>,
    /// From the first to the last packet of connections that ended.
    pub lifetime: Option<Quantiles>,
    /// Requests a connection, rounded; bytes of a request, of a response.
    pub requests: Option<(u32, u32, u32)>,
    /// From SYN to SYN-ACK, from SYN-ACK to ACK, from request to response, at the node.
    pub latencies: [Option<Quantiles>; 3],
}

/// All clients, the busiest first.
pub fn clients(flows: &Flows) -> Vec<ClientFit> {
    let mut by_address = BTreeMap::<Ipv4Addr, Vec<&Conn>>::new();
    for conn in &flows.conns {
        by_address.entry(conn.client.ip).or_default().push(conn);
    }
    let fits = by_address.into_iter();
    let mut fits = fits
        .map(|(address, conns)| client(address, &conns, flows))
        .collect::<Vec<_>>();
    fits.sort_by(|a, b| (b.conns, a.address).cmp(&(a.conns, b.address)));
    fits
}

fn client(address: Ipv4Addr, conns: &[&Conn], flows: &Flows) -> ClientFit {
    let fins = |side| conns.iter().filter(|c| c.first_fin == Some(side)).count() as u64;
    let spans = |of: fn(&Conn) -> Option<Span>| {
        Quantiles::of(conns.iter().filter_map(|conn| of(conn)).collect())
    };
    let ended = conns
        .iter()
        .filter(|c| flows.exact && c.began && c.answered);
    let lifetime = ended.filter_map(|c| Some(c.end?.since(c.start)));
    ClientFit {
        address,
        conns: conns.len(),
        rate: rate(conns, flows),
        workers: workers::closed_loop(conns, flows),
        ports: ports(conns, flows),
        first_fins: (fins(Side::Server), fins(Side::Client)),
        reuse: spans(|conn| conn.reuse.map(|reuse| reuse.idle)),
        lifetime: Quantiles::of(lifetime.collect()),
        requests: requests(conns),
        latencies: [
            spans(|conn| conn.to_server),
            spans(|conn| conn.to_client),
            spans(|conn| conn.service_time),
        ],
    }
}

/// Connections that began while somebody watched, over that time.
fn rate(conns: &[&Conn], flows: &Flows) -> Option<Rate> {
    if !flows.complete {
        return None;
    }
    // A listing shows the past, too: with one, or with few, that is all there is.
    let watched = flows.to.since(flows.from);
    let (from, to) = if !flows.exact && watched < Span::from_secs(20) {
        let youngest_reuse = conns.iter().filter_map(|conn| Some(conn.reuse?.idle)).min();
        let back = LOOK_BACK.min(youngest_reuse.unwrap_or(LOOK_BACK));
        (flows.to.0.saturating_sub(back.0), flows.to.0)
    } else {
        (flows.from.0, flows.to.0)
    };
    let mut starts = conns.iter().filter(|c| c.began).map(|c| c.start.0);
    let mut starts = starts
        .by_ref()
        .filter(|at| (from..=to).contains(at))
        .collect::<Vec<_>>();
    starts.sort_unstable();
    let (first, last) = (*starts.first()?, *starts.last()?);
    if starts.len() < CONNS_MIN {
        return None;
    }
    let samples = starts.len();
    let (per_s, window) = if flows.exact {
        // From the first to the last: the ends of the recording belong to nobody.
        let window = (last - first).max(1);
        (
            (samples - 1) as f64 * NANOS_PER_SEC as f64 / window as f64,
            window,
        )
    } else {
        let window = (to - from).max(1);
        (
            samples as f64 * NANOS_PER_SEC as f64 / window as f64,
            window,
        )
    };
    Some(Rate {
        per_s,
        samples,
        window: Span(window),
        dispersion: dispersion(&starts),
    })
}

/// Variance over mean of counts in bins of a few connections each.
fn dispersion(starts: &[u64]) -> Option<f64> {
    let (first, last) = (*starts.first()?, *starts.last()?);
    if starts.len() < ARRIVALS_MIN || last == first {
        return None;
    }
    // Bins of whole seconds, since listings round to them, with four connections or more.
    let mean_gap = (last - first) / starts.len() as u64;
    let width = (mean_gap * 4).div_ceil(NANOS_PER_SEC).max(1) * NANOS_PER_SEC;
    let bins = (last - first) / width;
    if bins < 8 {
        return None;
    }
    let mut counts = vec![0_u64; usize::try_from(bins).ok()?];
    for at in starts {
        if let Some(count) = counts.get_mut(usize::try_from((at - first) / width).ok()?) {
            *count += 1;
        }
    }
    let n = counts.len() as f64;
    let mean = counts.iter().sum::<u64>() as f64 / n;
    let square = |count: &u64| (*count as f64 - mean) * (*count as f64 - mean);
    let variance = counts.iter().map(square).sum::<f64>() / (n - 1.0);
    Some(variance / mean)
}

fn ports(conns: &[&Conn], flows: &Flows) -> PortFit {
    let mut distinct = conns
        .iter()
        .map(|conn| conn.client.port)
        .collect::<Vec<_>>();
    distinct.sort_unstable();
    distinct.dedup();
    let even = distinct.iter().filter(|port| *port % 2 == 0).count();
    let came_round =
        conns.iter().filter(|conn| conn.reuse.is_some()).count() * 10 >= distinct.len();
    let mut fit = PortFit {
        low: distinct.first().copied().unwrap_or(0),
        high: distinct.last().copied().unwrap_or(0),
        distinct: distinct.len(),
        even,
        allocation: Allocation::Unknown,
        came_round,
    };
    fit.allocation = allocation(conns, flows, &fit);
    fit
}

/// Which parity is preferred tells who chooses (facts 6.1 and 6.2: connect() takes that of the range's low end first, which
/// is even on every kernel's own range, bind() the other); steps tell the kernel. Where only listings tell, connections of
/// the same second are a heap without an order: then the gaps in the sorted heap tell whether it was filled in steps.
fn allocation(conns: &[&Conn], flows: &Flows, fit: &PortFit) -> Allocation {
    let began = conns.iter().filter(|conn| conn.began).collect::<Vec<_>>();
    if began.len() < 20 {
        return Allocation::Unknown;
    }
    let mut steps = Vec::new();
    let gap = |a: u16, b: u16| i32::from(b) - i32::from(a);
    if flows.exact {
        let pairs = began.windows(2);
        steps.extend(pairs.map(|pair| gap(pair[0].client.port, pair[1].client.port)));
    } else {
        let mut rest = &began[..];
        while let Some(first) = rest.first() {
            let together = |conn: &&&&Conn| conn.start.since(first.start) < HEAP;
            let count = rest.iter().take_while(together).count();
            let (heap, later) = rest.split_at(count.max(1));
            let mut ports = heap.iter().map(|conn| conn.client.port).collect::<Vec<_>>();
            ports.sort_unstable();
            ports.dedup();
            steps.extend(ports.windows(2).map(|pair| gap(pair[0], pair[1])));
            rest = later;
        }
    }
    if steps.len() < 10 {
        return Allocation::Unknown;
    }
    let share = |is: &dyn Fn(i32) -> bool| {
        steps.iter().filter(|step| is(**step)).count() * 100 / steps.len()
    };
    let mostly_odd = fit.even * 20 <= fit.distinct;
    let mostly_even = fit.even * 20 >= fit.distinct * 19;
    if share(&|step| step == 1) >= 70 {
        Allocation::Steps
    } else if mostly_odd {
        Allocation::Random
    } else if share(&|step| step == 2) >= 70 {
        Allocation::EvenSteps
    } else if mostly_even && share(&|step| (1..=16).contains(&step)) >= 70 {
        Allocation::EvenRandomSteps
    } else {
        Allocation::Random
    }
}

fn requests(conns: &[&Conn]) -> Option<(u32, u32, u32)> {
    let whole = conns
        .iter()
        .filter(|conn| conn.began && conn.end.is_some() && conn.requests > 0);
    let (mut count, mut requests, mut sent, mut got) = (0_u64, 0_u64, 0_u64, 0_u64);
    for conn in whole {
        count += 1;
        requests += u64::from(conn.requests);
        sent += conn.request_bytes;
        got += conn.response_bytes;
    }
    if count == 0 {
        return None;
    }
    let each = |total: u64, by: u64| u32::try_from((total + by / 2) / by).unwrap_or(u32::MAX);
    Some((
        each(requests, count).max(1),
        each(sent, requests).max(1),
        each(got, requests).max(1),
    ))
}
