//! Which real server each of a client's ports is pinned to, at a moment: what a picture of the port space is made of.

use std::net::Ipv4Addr;

use ipvs_model::ipvs::Ipvs;
use ipvs_model::segment::Endpoint;
use ipvs_model::time::Instant;

/// A client's ports that have an entry, at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// When.
    pub at: Instant,
    /// Port and real server, by port.
    pub pins: Vec<(u16, Endpoint)>,
}

/// Looks through the table: entries of `client` to the service at `virt`, templates excepted.
pub(super) fn look(ipvs: &Ipvs, at: Instant, client: Ipv4Addr, virt: Endpoint) -> Pins {
    let own = ipvs.table().iter().filter(|(_, entry)| {
        entry.client().ip == client && entry.virt() == virt && !entry.is_template()
    });
    let mut pins = own
        .map(|(_, entry)| (entry.client().port, ipvs.dests().get(entry.dest()).addr))
        .collect::<Vec<_>>();
    pins.sort_unstable();
    Pins { at, pins }
}
