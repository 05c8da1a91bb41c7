//! Writes a capture directory: packets, tables, rules, manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock::Instant;

/// `LINKTYPE_RAW`: packets start with their IP header.
const LINKTYPE_RAW: u32 = 101;

/// The files of a capture directory, open for writing.
#[derive(Debug)]
pub struct Recorder {
    directory: PathBuf,
    packets: BufWriter<File>,
    ipvs: BufWriter<File>,
    conntrack: BufWriter<File>,
    rules: BufWriter<File>,
    sysctls: BufWriter<File>,
}

/// `manifest.toml`.
#[derive(Debug, Serialize)]
pub struct Manifest {
    /// Version of the capture format.
    pub schema: u32,
    /// `uname -r`.
    pub kernel: String,
    /// Where the packets were seen.
    pub vantage: &'static str,
    /// Timer frequency.
    pub hz: u32,
    /// A packet that the node sends on has left it by then, in microseconds.
    pub transit_us: u32,
    /// The command that made the capture.
    #[serde(rename = "made-by")]
    pub made_by: String,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, in seconds with nine decimals.
    pub boot_time_s: String,
    /// The 64-bit jiffies counter of that moment, extrapolated: jiffies now = this + floor((now - boot) * hz).
    pub jiffies_at_boot: String,
    /// Every sysctl that matters to the tables, read when the run began.
    pub sysctl: BTreeMap<String, String>,
}

fn create(directory: &Path, name: &str) -> Result<BufWriter<File>> {
    let path = directory.join(name);
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 18, file))
}

impl Recorder {
    /// Makes the directory and its files.
    pub fn create(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let mut packets = create(directory, "packets.pcap")?;
        packets.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
        packets.write_all(&[2, 0, 4, 0])?;
        for word in [0, 0, 65535, LINKTYPE_RAW] {
            packets.write_all(&word.to_le_bytes())?;
        }
        Ok(Self {
            packets,
            ipvs: create(directory, "ipvs-conn.log")?,
            conntrack: create(directory, "conntrack.log")?,
            rules: create(directory, "rules.log")?,
            sysctls: create(directory, "sysctl.log")?,
            directory: directory.to_owned(),
        })
    }

    /// A packet that entered or left the node at this time.
    pub fn packet(&mut self, at: Instant, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u32;
        for word in [at.seconds() as u32, at.micros(), length, length] {
            self.packets.write_all(&word.to_le_bytes())?;
        }
        self.packets.write_all(bytes)?;
        Ok(())
    }

    /// The text of `/proc/net/ip_vs_conn`.
    pub fn ipvs(&mut self, at: Instant, text: &str) -> Result<()> {
        block(&mut self.ipvs, at, text)
    }

    /// The text of `/proc/net/nf_conntrack`.
    pub fn conntrack(&mut self, at: Instant, text: &str) -> Result<()> {
        block(&mut self.conntrack, at, text)
    }

    /// An `ipvsadm` command as it was run, or a listing.
    pub fn rules(&mut self, at: Instant, text: &str) -> Result<()> {
        block(&mut self.rules, at, text)
    }

    /// A sysctl as it is from now on, or a reading of one.
    pub fn sysctl(&mut self, at: Instant, key: &str, value: &str) -> Result<()> {
        block(&mut self.sysctls, at, &format!("{key} = {value}"))
    }

    /// Writes the manifest, which is what makes the directory a capture, and closes the files.
    pub fn finish(mut self, manifest: &Manifest) -> Result<()> {
        for file in [
            &mut self.packets,
            &mut self.ipvs,
            &mut self.conntrack,
            &mut self.rules,
            &mut self.sysctls,
        ] {
            file.flush().context("cannot finish the recording")?;
        }
        let path = self.directory.join("manifest.toml");
        let text = toml::to_string(manifest).context("cannot write the manifest")?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn block(file: &mut impl Write, at: Instant, text: &str) -> Result<()> {
    writeln!(file, "@ {}.{:06}", at.seconds(), at.micros())?;
    file.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        file.write_all(b"\n")?;
    }
    Ok(())
}
