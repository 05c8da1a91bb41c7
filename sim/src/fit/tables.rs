//! Connections out of listings of the IPVS table: a row that counts down in TIME_WAIT tells when its connection ended,
//! so each listing shows the last two minutes, as far as ports have not come round.

use std::collections::BTreeMap;

use ipvs_model::ipvs::state::State;
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::time::Span;

use super::FitError;
use super::conns::{Conn, Flows, Reuse};
use crate::capture::{Body, Capture, IpvsConnLine, Stamp};
use crate::scenario::{Masquerade, Side};

/// Two ends of connections that are further apart are two connections: listings round to seconds, and are taken late.
const APART: Span = Span::from_millis(2_500);
/// Half of the second to which listings round.
const HALF: Span = Span::from_millis(500);

/// What the tables show.
#[derive(Clone, Debug, Default)]
pub struct FromTables {
    /// Connections.
    pub flows: Flows,
    /// The same, for who wants to look at them while the flows are taken.
    pub conns: Vec<Conn>,
    /// Source NAT, from conntrack's reply tuples, with the number of entries that show it.
    pub source_nat: Option<(Masquerade, u64)>,
    /// Entries in SYN_RECV, unanswered for so long, with their real server.
    pub half_open: Vec<(Endpoint, Span)>,
    /// Listings of the table.
    pub listings: u64,
}

/// A row as it was last seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    index: usize,
    state: State,
    listing: u64,
}

/// Follows the rows of a service through all listings.
pub fn flows(capture: &Capture, service: Endpoint) -> Result<FromTables, FitError> {
    let mut found = FromTables::default();
    let mut rows = BTreeMap::<Endpoint, Seen>::new();
    let mut times = None::<(Stamp, Stamp)>;
    let mut complete = true;
    let mut nat = [0_u64; 3];
    let mut events = capture.events()?;
    while let Some(event) = events.next_event()? {
        let at = event.at;
        match event.body {
            Body::Ipvs(table) => {
                complete &= table.complete;
                found.listings += 1;
                times = Some(match times {
                    Some((first, _)) => (first, at),
                    None => (at, at),
                });
                let first = found.listings == 1;
                for row in table.rows.iter().filter(|row| {
                    row.proto == Proto::Tcp && row.virt == service && !row.is_template()
                }) {
                    found.row(at, row, first, &mut rows);
                }
            }
            Body::Conntrack(table) => {
                for entry in table.rows.iter().filter(|row| row.orig.dst == service) {
                    let (client, seen_by_pod) = (entry.orig.src, entry.reply.dst);
                    let kind = if seen_by_pod.ip == client.ip {
                        0
                    } else if seen_by_pod.port == client.port {
                        1
                    } else {
                        2
                    };
                    nat[kind] += 1;
                }
            }
            _ => {}
        }
    }
    let all = nat.iter().sum::<u64>();
    if all > 0 {
        // A few other ports are collisions, which plain MASQUERADE resolves too.
        let kind = if nat[0] * 2 > all {
            Masquerade::None
        } else if nat[2] * 2 > all {
            Masquerade::RandomFully
        } else {
            Masquerade::Masquerade
        };
        found.source_nat = Some((kind, all));
    }
    let (from, to) = times.unwrap_or_default();
    found.conns.sort_by_key(|conn| (conn.start, conn.client));
    found.flows = Flows {
        conns: found.conns.clone(),
        exact: false,
        complete: complete && found.listings > 0,
        from,
        to,
    };
    Ok(found)
}

impl FromTables {
    fn row(
        &mut self,
        at: Stamp,
        row: &IpvsConnLine,
        first: bool,
        rows: &mut BTreeMap<Endpoint, Seen>,
    ) {
        let Some(state) = State::from_name(row.state.name()) else {
            return;
        };
        let last_packet = last_packet(at, row, state);
        let closed = matches!(state, State::Tw | State::Cl)
            .then_some(last_packet)
            .flatten();
        let before = rows.get(&row.client).copied();
        let is_new = before.is_none_or(|before| {
            let conn = &self.conns[before.index];
            let was_closed = matches!(before.state, State::Tw | State::Cl);
            match (was_closed, closed) {
                // It ended, and ended again, later: there was another connection between.
                (true, Some(closed)) => conn.end.is_some_and(|end| closed.since(end) > APART),
                (true, None) => true,
                // An entry that was gone in between is another connection.
                (false, _) => before.listing + 1 < self.listings && conn.real != Some(row.dest),
            }
        });
        let index = if is_new {
            let began_at = match (state, closed) {
                (State::Sr, _) => last_packet,
                (_, closed) => closed,
            };
            let mut conn = Conn::new(row.client, began_at.unwrap_or(at));
            conn.began = !first || began_at.is_some();
            conn.real = Some(row.dest);
            conn.reuse = before.and_then(|before| {
                let before = self.conns[before.index];
                Some(Reuse {
                    idle: conn.start.since(before.end?),
                    real_before: before.real,
                })
            });
            self.conns.push(conn);
            self.conns.len() - 1
        } else {
            before.map_or(0, |before| before.index)
        };
        let conn = &mut self.conns[index];
        match state {
            State::Fw => {
                conn.first_fin = Some(Side::Server);
            }
            State::Cw => {
                conn.first_fin = Some(Side::Client);
            }
            State::Sr => {
                let waited = last_packet.map_or(Span::ZERO, |syn| at.since(syn));
                self.half_open.push((row.dest, waited));
            }
            _ => {}
        }
        let conn = &mut self.conns[index];
        conn.answered |= matches!(state, State::Es | State::Fw | State::Cw | State::Tw);
        if closed.is_some() && conn.end.is_none() {
            conn.end = closed;
        }
        rows.insert(
            row.client,
            Seen {
                index,
                state,
                listing: self.listings,
            },
        );
    }
}

/// When the last packet of an entry came: its state's timeout, less what is left of it. `None` if the timeout was set to
/// another value, so that it does not tell.
fn last_packet(at: Stamp, row: &IpvsConnLine, state: State) -> Option<Stamp> {
    let total = state.timeout_s();
    let gone = Span::from_secs(total.checked_sub(row.expires_s)?.into());
    let gone = gone.0.saturating_sub(HALF.0);
    at.0.checked_sub(gone).map(Stamp)
}
