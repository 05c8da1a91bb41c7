//! Connections as a recording shows them.

use ipvs_model::segment::Endpoint;
use ipvs_model::time::Span;

use crate::capture::Stamp;
use crate::scenario::Side;

/// How a connection's port was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// From the end of the port's last connection to the SYN of this one.
    pub idle: Span,
    /// The real server of the connection before, if known.
    pub real_before: Option<Endpoint>,
}

/// One connection of a client to the service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conn {
    /// The client.
    pub client: Endpoint,
    /// The real server, if seen.
    pub real: Option<Endpoint>,
    /// When it began, or was first seen.
    pub start: Stamp,
    /// It began during the recording.
    pub began: bool,
    /// When its last FIN or its reset came.
    pub end: Option<Stamp>,
    /// When the client was done with it: its own FIN, or a reset.
    pub let_go: Option<Stamp>,
    /// Who sent the first FIN.
    pub first_fin: Option<Side>,
    /// The server answered the SYN.
    pub answered: bool,
    /// SYNs after the first.
    pub repeats: u32,
    /// From the SYN to the SYN-ACK, at the node.
    pub to_server: Option<Span>,
    /// From the SYN-ACK to the client's ACK, at the node.
    pub to_client: Option<Span>,
    /// Requests: bursts of data from the client.
    pub requests: u32,
    /// Bytes of all requests.
    pub request_bytes: u64,
    /// Bytes of all responses.
    pub response_bytes: u64,
    /// From the first request to the first byte of its response, at the node.
    pub service_time: Option<Span>,
    /// The port's use before this one.
    pub reuse: Option<Reuse>,
}

impl Conn {
    /// A connection of which nothing is known but that it is there.
    pub const fn new(client: Endpoint, start: Stamp) -> Self {
        Self {
            client,
            real: None,
            start,
            began: false,
            end: None,
            let_go: None,
            first_fin: None,
            answered: false,
            repeats: 0,
            to_server: None,
            to_client: None,
            requests: 0,
            request_bytes: 0,
            response_bytes: 0,
            service_time: None,
            reuse: None,
        }
    }
}

/// The connections of a recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flows {
    /// In the order of their starts.
    pub conns: Vec<Conn>,
    /// Starts and ends are times of packets, not of listings.
    pub exact: bool,
    /// Every connection of the time between is there, so that a rate can be counted.
    pub complete: bool,
    /// Begin of the time that was watched.
    pub from: Stamp,
    /// Its end.
    pub to: Stamp,
}
