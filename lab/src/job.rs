//! What the host asks of the guest: written to a file by the one, read by the other.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::config::PacketConfig;
use crate::rollout::Play;

/// The environment variable with the path of the job; the kernel hands it from its command line to init.
pub const VARIABLE: &str = "IPVS_LAB_JOB";

/// One run of the guest.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The command that asked for it.
    pub made_by: String,
    /// Timer frequency of the kernel.
    pub hz: u32,
    /// What to do.
    pub task: Task,
}

/// What a guest can do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The packet lab.
    Packets(PacketTask),
    /// The rollout lab.
    Rollout {
        /// What to play.
        play: Play,
        /// The file for the result.
        out: PathBuf,
    },
}

/// A run of the packet lab.
#[derive(Debug, Serialize, Deserialize)]
pub struct PacketTask {
    /// The node.
    pub config: PacketConfig,
    /// Seed of the generator.
    pub seed: u64,
    /// Steps to generate.
    pub steps: u32,
    /// A script to run instead of generating.
    pub script: Option<PathBuf>,
    /// The capture directory.
    pub out: PathBuf,
    /// Record a listing of the rules after every step, not only after a change.
    pub listings: bool,
    /// Write the steps as a script beside the capture.
    pub keep_script: bool,
    /// A rule that the kernel refuses does not end the run: a shrunk script may have such.
    pub lenient: bool,
}

impl Job {
    /// Writes the job.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).context("cannot write down the job")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a job.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the job {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a job", path.display()))
    }
}
