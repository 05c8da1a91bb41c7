//! A node's recording into a scenario: what was measured, from how many samples, and what had to be assumed.
//!
//! Two passes over the capture. [`scan`] finds the services, their rules and their real servers; then connections are
//! put together, from packets if there are any ([`packets`]), else from what the tables show of them ([`tables`]).
//! [`estimate`] turns connections into numbers, [`write`] the numbers into a scenario whose every value has a note.
//! Leaves out: UDP, clients whose packets were not seen at the node, several services at once, closed loops whose workers
//! pause at random.

mod combine;
mod conns;
mod estimate;
mod evidence;
mod packets;
mod scan;
mod tables;
mod workers;
mod write;

#[cfg(test)]
mod tests;

pub use combine::combine;
pub use conns::{Conn, Flows, Reuse};
pub use estimate::{Allocation, ClientFit, PortFit, Quantiles, Rate};
pub use evidence::{DeadEvidence, KeptEvidence};
pub use workers::Loop;

use ipvs_model::segment::Endpoint;

use crate::capture::{Capture, ReadError, Vantage};
use crate::scenario::Scenario;
use crate::scenario::annotate::Provenance;

/// What to fit, where a recording leaves a choice.
#[derive(Clone, Debug)]
pub struct Options {
    /// The virtual service; without it, the one with the most connections.
    pub service: Option<Endpoint>,
    /// Clients that get a table of their own, the busiest first.
    pub clients_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            service: None,
            clients_max: 16,
        }
    }
}

/// What a recording says.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The scenario; what was not measured is the default.
    pub scenario: Scenario,
    /// Where each value came from.
    pub notes: Provenance,
    /// The clients, the busiest first, those left out included.
    pub clients: Vec<ClientFit>,
    /// What answered for pods that are gone.
    pub dead: DeadEvidence,
    /// What became of reused ports.
    pub kept: KeptEvidence,
    /// What a reader must know that belongs to no value.
    pub remarks: Vec<String>,
}

/// Why nothing can be fitted.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The capture cannot be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// The capture does not show what a fit needs; the text says what to record.
    #[error("{0}")]
    Empty(String),
}

/// Fits a scenario to a capture.
///
/// # Errors
/// If the capture cannot be read, or shows no connection of a service.
pub fn fit(capture: &Capture, options: &Options) -> Result<Fitted, FitError> {
    let scan = scan::scan(capture)?;
    let service = scan.choose(options.service)?;
    let has_packets = capture.files.packets.is_some() && capture.manifest.vantage != Vantage::Pod;
    let mut from_tables = tables::flows(capture, service)?;
    let mut dead = DeadEvidence::default();
    let mut flows = None;
    if has_packets {
        let found = packets::flows(capture, &scan, service, &mut dead)?;
        if !found.conns.is_empty() {
            flows = Some(found);
        }
    }
    let kept = evidence::kept(&from_tables.conns, &scan, service);
    evidence::dead_in_tables(&from_tables, &scan, service, &mut dead);
    let flows = flows.unwrap_or_else(|| std::mem::take(&mut from_tables.flows));
    if flows.conns.is_empty() {
        return Err(FitError::Empty(format!(
            "the capture shows no connection of {service}: record for longer, while clients call it (`sim record --service \
             {service} --packets --for 5m`)"
        )));
    }
    let clients = estimate::clients(&flows);
    Ok(write::write(write::Found {
        capture,
        scan: &scan,
        service,
        flows: &flows,
        source_nat: from_tables.source_nat,
        clients,
        dead,
        kept,
        clients_max: options.clients_max,
    }))
}
