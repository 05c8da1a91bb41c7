//! What pictures of a run need beside its numbers: the port space, and failures by cause over time.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::engine::trace::RunTrace;
use crate::outcome::{Cause, RunSummary};
use crate::scenario::{Location, PortChoice, Scenario};

/// Version of this part of the JSON document.
const FORMAT: u32 = 1;
/// Rows of the port space.
const BINS: u32 = 40;

/// The part `pictures` of a run's JSON. The port space is empty unless the run was asked for pins; failures by second are
/// left out unless every one of them was kept.
pub fn pictures(scenario: &Scenario, summary: &RunSummary, trace: &RunTrace) -> Value {
    json!({
        "format": FORMAT,
        "port_space": port_space(scenario, trace),
        "failures_by_second": by_second(summary, trace),
    })
}

fn port_space(scenario: &Scenario, trace: &RunTrace) -> Value {
    let Some(client) = scenario.client.first() else {
        return Value::Null;
    };
    let (low, high) = match &client.port_choice {
        PortChoice::Fixed(ports) => (
            ports.iter().min().copied().unwrap_or(1),
            ports.iter().max().copied().unwrap_or(1),
        ),
        PortChoice::Connect | PortChoice::Bind | PortChoice::Pool(_) => client.tcp().local_ports,
    };
    let size = u32::from(high - low) + 1;
    let bins = BINS.min(size);
    let mut servers = Vec::new();
    let samples = trace.pins.iter().map(|sample| {
        let mut cells = BTreeMap::<(u32, usize), u32>::new();
        for (port, server) in sample
            .pins
            .iter()
            .filter(|(port, _)| (low..=high).contains(port))
        {
            let index = servers.iter().position(|known| known == server);
            let index = index.unwrap_or_else(|| {
                servers.push(*server);
                servers.len() - 1
            });
            let bin = u32::from(port - low) * bins / size;
            *cells.entry((bin, index)).or_default() += 1;
        }
        let cells = cells
            .iter()
            .map(|((bin, server), count)| json!([bin, server, count]));
        json!({ "at_ns": sample.at.0, "cells": cells.collect::<Vec<_>>() })
    });
    let samples = samples.collect::<Vec<_>>();
    json!({
        "client": match client.location {
            Location::Host => scenario.service.address.ip.to_string(),
            Location::Remote | Location::Pod => client.address.to_string(),
        },
        "low": low,
        "high": high,
        "bins": bins,
        "servers": servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "samples": samples,
    })
}

fn by_second(summary: &RunSummary, trace: &RunTrace) -> Value {
    let failures = trace
        .troubled
        .iter()
        .filter(|request| request.outcome.is_failure());
    let kept = failures.clone().count() as u64;
    if kept != summary.failed() {
        return Value::Null;
    }
    let mut seconds = BTreeMap::<u64, [u64; Cause::COUNT]>::new();
    for request in failures {
        seconds.entry(request.end.as_secs()).or_default()[request.cause.index()] += 1;
    }
    let seconds = seconds.into_iter().map(|(second, counts)| {
        let mut entry = Map::new();
        entry.insert("second".to_owned(), second.into());
        let counted = Cause::ALL.iter().filter(|cause| counts[cause.index()] > 0);
        entry.extend(counted.map(|cause| (cause.key().to_owned(), counts[cause.index()].into())));
        Value::Object(entry)
    });
    seconds.collect()
}
