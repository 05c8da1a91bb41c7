//! The TCP machine as a graph: edges found by running the real transition function.
//!
//! For checks and pictures: every edge is what `tcp_packet` does with one in-window segment on a record in a
//! given state, not what the table says.

use super::entry::{Dir, Seen, Status, TcpState};
use super::rule::CtRule;
use super::table::{CtState, FlagClass};
use super::tcp::{TcpEnv, TcpVerdict, tcp_new, tcp_packet};
use crate::kernel::Behaviours;
use crate::segment::{Endpoint, Segment, Tuple};
use crate::sysctl::CtSysctls;
use core::net::Ipv4Addr;

/// What an entry had seen before the segment, as far as the outcome depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// A FIN had been seen (`CLOSE_INIT`).
    pub fin_seen: bool,
    /// The last noted segment.
    pub last: Option<(Dir, FlagClass)>,
    /// A reply had been seen.
    pub replied: bool,
    /// The entry is assured.
    pub assured: bool,
}

/// Where a segment leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The entry is then in this state and lives this many seconds; `None` keeps the deadline.
    State(CtState, Option<u32>),
    /// The entry is deleted.
    Deleted,
    /// The entry is deleted and the segment begins a new one.
    Reopened,
    /// The segment gets no entry; the state stays.
    Invalid,
}

/// One edge of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// State before.
    pub from: CtState,
    /// Direction of the segment.
    pub dir: Dir,
    /// Class of the segment.
    pub class: FlagClass,
    /// What follows.
    pub next: Next,
    /// The rule that decided.
    pub rule: CtRule,
}

/// The outcome of one segment on a record in state `from`.
pub fn edge(
    kernel: Behaviours,
    from: CtState,
    dir: Dir,
    class: FlagClass,
    history: History,
) -> Edge {
    let sysctls = CtSysctls {
        be_liberal: true,
        ..CtSysctls::default()
    };
    let env = TcpEnv {
        sysctls: &sysctls,
        kernel,
        hz: 250,
        remaining: 0,
    };
    let (mut tcp, mut status) = record(from, history);
    let seg = segment(dir, class);
    if from == CtState::None {
        match tcp_new(&seg, &env) {
            Ok((fresh, _)) if dir == Dir::Original => tcp = fresh,
            Ok(_) => {}
            Err(rule) => {
                return Edge {
                    from,
                    dir,
                    class,
                    next: Next::Invalid,
                    rule,
                };
            }
        }
    }
    let (next, rule) = match tcp_packet(&mut tcp, &mut status, dir, &seg, &env) {
        TcpVerdict::Accept { rule, timeout } => (Next::State(tcp.state, timeout), rule),
        TcpVerdict::AcceptAndDelete(rule) => (Next::Deleted, rule),
        TcpVerdict::Invalid { rule, .. } => (Next::Invalid, rule),
        TcpVerdict::Reopen => (Next::Reopened, CtRule::Reopened),
    };
    Edge {
        from,
        dir,
        class,
        next,
        rule,
    }
}

/// Every state, direction and flag class with the same history.
pub fn edges(kernel: Behaviours, history: History) -> Vec<Edge> {
    let mut all = Vec::with_capacity(120);
    for from in CtState::ALL {
        for dir in [Dir::Original, Dir::Reply] {
            for class in FlagClass::ALL {
                all.push(edge(kernel, from, dir, class, history));
            }
        }
    }
    all
}

fn record(state: CtState, history: History) -> (TcpState, Status) {
    let seen = Seen {
        end: 1000,
        max_end: 66_535,
        max_window: 65_535,
        flags: if history.fin_seen {
            Seen::CLOSE_INIT
        } else {
            0
        },
        ..Seen::default()
    };
    let (last_dir, last_class) = history.last.unwrap_or_default();
    let tcp = TcpState {
        seen: [seen; 2],
        state,
        last_dir,
        last_class,
        last_end: 1,
        last_window: u16::MAX,
        ..TcpState::default()
    };
    let mut status = Status::default();
    status.set(Status::CONFIRMED);
    if history.replied {
        status.set(Status::SEEN_REPLY);
    }
    if history.assured {
        status.set(Status::ASSURED);
    }
    (tcp, status)
}

fn segment(dir: Dir, class: FlagClass) -> Segment {
    let client = Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 40000);
    let server = Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 80);
    let tuple = Tuple::tcp(client, server);
    let tuple = match dir {
        Dir::Original => tuple,
        Dir::Reply => tuple.reversed(),
    };
    let mut seg = Segment::new(tuple, class.example());
    seg.seq = 1000;
    seg.ack = 1000;
    seg
}
