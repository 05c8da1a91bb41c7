//! Connections out of packets, as the node saw them before and after translation.

use std::collections::BTreeMap;

use ipvs_model::segment::{Endpoint, Flags, Proto, Segment};
use ipvs_model::time::Span;

use super::FitError;
use super::conns::{Conn, Flows, Reuse};
use super::evidence::DeadEvidence;
use super::scan::Scan;
use crate::capture::{Body, Capture, Content, Stamp};
use crate::scenario::Side;

/// Puts connections together. What became of SYNs to pods goes to `dead`.
pub fn flows(
    capture: &Capture,
    scan: &Scan,
    service: Endpoint,
    dead: &mut DeadEvidence,
) -> Result<Flows, FitError> {
    let mut builder = Builder {
        service,
        port: scan.target_port(service),
        conns: Vec::new(),
        open: BTreeMap::new(),
        by_isn: BTreeMap::new(),
        span: None,
    };
    let mut events = capture.events()?;
    while let Some(event) = events.next_event()? {
        let Body::Packet(packet) = event.body else {
            continue;
        };
        match packet.content {
            Content::Segment { segment, .. } if segment.tuple.proto == Proto::Tcp => {
                builder.segment(event.at, &segment, dead);
            }
            Content::Icmp { error, .. } => {
                // The client, or the node on the pod's side: both name the connection's client port.
                let about = error.about;
                let client = [about.src, about.dst]
                    .into_iter()
                    .find(|end| builder.open.contains_key(end));
                if let Some(index) = client.and_then(|client| builder.open.get(&client)).copied() {
                    let conn = builder.conns[index].conn;
                    if !conn.answered && conn.began {
                        dead.icmp(index, event.at.since(conn.start));
                    }
                }
            }
            _ => {}
        }
    }
    let (from, to) = builder.span.unwrap_or_default();
    dead.settle(builder.conns.iter().map(|open| &open.conn), to);
    Ok(Flows {
        conns: builder.conns.into_iter().map(|open| open.conn).collect(),
        exact: true,
        complete: true,
        from,
        to,
    })
}

/// A connection and what is needed to follow it.
#[derive(Clone, Copy, Debug)]
struct Open {
    conn: Conn,
    isn: u32,
    syn_ack: Option<Stamp>,
    /// The end of the client's data, so that repeated segments count once.
    client_next: u32,
    server_next: Option<u32>,
    /// The last data came from the client: what follows from it is the same request.
    in_request: bool,
    first_request: Option<Stamp>,
    fins: [bool; 2],
}

struct Builder {
    service: Endpoint,
    port: Option<u16>,
    conns: Vec<Open>,
    /// The latest connection of a client's port.
    open: BTreeMap<Endpoint, usize>,
    by_isn: BTreeMap<u32, usize>,
    span: Option<(Stamp, Stamp)>,
}

impl Builder {
    fn segment(&mut self, at: Stamp, segment: &Segment, dead: &mut DeadEvidence) {
        let tuple = segment.tuple;
        if tuple.dst == self.service {
            self.saw(at);
            self.client_sent(at, segment);
        } else if tuple.src == self.service {
            self.saw(at);
            self.server_sent(at, segment, dead);
        } else if self.port == Some(tuple.dst.port) && segment.flags.is_plain_syn() {
            // After translation: the sequence number tells whose it is, the address which real server.
            if let Some(index) = self.by_isn.get(&segment.seq).copied() {
                let conn = &mut self.conns[index].conn;
                if conn.real.is_none() {
                    conn.real = Some(tuple.dst);
                }
            }
        }
    }

    fn saw(&mut self, at: Stamp) {
        self.span = Some(match self.span {
            Some((first, last)) => (first.min(at), last.max(at)),
            None => (at, at),
        });
    }

    fn client_sent(&mut self, at: Stamp, segment: &Segment) {
        let client = segment.tuple.src;
        let latest = self.open.get(&client).copied();
        if segment.flags.is_plain_syn() {
            match latest {
                // The same SYN again: repeated, or seen on a second interface.
                Some(index)
                    if self.conns[index].isn == segment.seq && self.conns[index].conn.began =>
                {
                    let conn = &mut self.conns[index].conn;
                    if at.since(conn.start) >= Span::from_millis(500) {
                        conn.repeats += 1;
                    }
                }
                _ => self.begin(at, segment, latest),
            }
            return;
        }
        let index = latest.unwrap_or_else(|| self.adopt(at, client));
        let open = &mut self.conns[index];
        if segment.flags.has(Flags::RST) {
            open.conn.end.get_or_insert(at);
            open.conn.let_go.get_or_insert(at);
            return;
        }
        if let Some(syn_ack) = open.syn_ack
            && open.conn.to_client.is_none()
            && segment.flags.has(Flags::ACK)
        {
            open.conn.to_client = Some(at.since(syn_ack));
        }
        if segment.len > 0 && ipvs_model::segment::seq_after(segment.end_seq(), open.client_next) {
            open.client_next = segment.end_seq();
            open.conn.request_bytes += u64::from(segment.len);
            if !open.in_request {
                open.conn.requests += 1;
                open.in_request = true;
            }
            open.first_request.get_or_insert(at);
        }
        if segment.flags.has(Flags::FIN) {
            open.fin(at, Side::Client);
        }
    }

    fn server_sent(&mut self, at: Stamp, segment: &Segment, dead: &mut DeadEvidence) {
        let client = segment.tuple.dst;
        let index = match self.open.get(&client) {
            Some(index) => *index,
            None => self.adopt(at, client),
        };
        let open = &mut self.conns[index];
        if segment.flags.has(Flags::RST) {
            if open.conn.began && !open.conn.answered {
                dead.reset(index);
            }
            open.conn.end.get_or_insert(at);
            open.conn.let_go.get_or_insert(at);
            return;
        }
        if segment.flags.has(Flags::SYN) {
            if open.syn_ack.is_none() && open.conn.began {
                open.syn_ack = Some(at);
                // A repeated SYN's answer measures the repetition, not the way.
                open.conn.to_server = (open.conn.repeats == 0).then(|| at.since(open.conn.start));
            }
            open.conn.answered = true;
            return;
        }
        let after = |next: Option<u32>| {
            next.is_none_or(|next| ipvs_model::segment::seq_after(segment.end_seq(), next))
        };
        if segment.len > 0 && after(open.server_next) {
            open.server_next = Some(segment.end_seq());
            open.conn.response_bytes += u64::from(segment.len);
            open.in_request = false;
            if let (None, Some(request)) = (open.conn.service_time, open.first_request) {
                open.conn.service_time = Some(at.since(request));
            }
        }
        if segment.flags.has(Flags::FIN) {
            open.fin(at, Side::Server);
        }
    }

    fn begin(&mut self, at: Stamp, segment: &Segment, latest: Option<usize>) {
        let client = segment.tuple.src;
        let mut conn = Conn::new(client, at);
        conn.began = true;
        conn.reuse = latest
            .map(|index| self.conns[index].conn)
            .and_then(|before| {
                Some(Reuse {
                    idle: at.since(before.end?),
                    real_before: before.real,
                })
            });
        self.by_isn.insert(segment.seq, self.conns.len());
        self.push(conn, segment.seq);
    }

    /// A connection that was open before the recording.
    fn adopt(&mut self, at: Stamp, client: Endpoint) -> usize {
        let mut conn = Conn::new(client, at);
        conn.answered = true;
        self.push(conn, 0)
    }

    fn push(&mut self, conn: Conn, isn: u32) -> usize {
        let index = self.conns.len();
        self.open.insert(conn.client, index);
        self.conns.push(Open {
            conn,
            isn,
            syn_ack: None,
            client_next: isn.wrapping_add(1),
            server_next: None,
            in_request: false,
            first_request: None,
            fins: [false; 2],
        });
        index
    }
}

impl Open {
    fn fin(&mut self, at: Stamp, side: Side) {
        let index = usize::from(side == Side::Server);
        if self.fins[index] {
            return;
        }
        self.fins[index] = true;
        if !self.fins[1 - index] {
            self.conn.first_fin = Some(side);
        }
        self.conn.end = Some(at);
        if side == Side::Client {
            self.conn.let_go.get_or_insert(at);
        }
    }
}
