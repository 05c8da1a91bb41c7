//! One step of a packet script, and the script file: JSON, one step a line.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::packet::Segment;

/// What the lab does after having waited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// A packet from the clients' side enters the node.
    Client(Segment),
    /// A packet from the pods' side enters the node.
    Pod(Segment),
    /// An `ipvsadm` command, without the word `ipvsadm`.
    Ipvsadm {
        /// Its arguments, separated by spaces.
        arguments: String,
    },
    /// A sysctl is written.
    Sysctl {
        /// As in `sysctl -w`: `net.ipv4.vs.conn_reuse_mode`.
        key: String,
        /// The new value.
        value: String,
    },
    /// Nothing: only time passes and the tables are read.
    Look,
}

/// A wait in virtual time, then an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Microseconds to wait first; the lab waits at least a millisecond.
    pub wait_us: u64,
    /// What to do then.
    #[serde(flatten)]
    pub action: Action,
}

/// Reads a script: one JSON step a line; empty lines and lines that start with `#` are skipped.
pub fn read_script(path: &Path) -> Result<Vec<Step>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the script {}", path.display()))?;
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}:{}: not a step", path.display(), number + 1))
        })
        .collect()
}
