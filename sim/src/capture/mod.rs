//! Readers of what nodes print, and of capture directories made of it.
//!
//! [`Capture::open`] takes a directory (`manifest.toml`, `packets.pcap`, `ipvs-conn.log`, `conntrack.log`,
//! `rules.log`, `sysctl.log`, `pods.log`, `sysctl.txt`) or the single mixed log of the founding case, and
//! [`Capture::events`] gives what they hold in the order of time. Everything streams: a packet, a block or a
//! round is in memory at a time. No input makes a reader panic; damage is an error with file, line and
//! reason; what is foreign to the model is counted by name in [`Skipped`] and never guessed at.

pub mod blocks;
pub mod conntrack;
mod events;
pub mod ipvs_conn;
pub mod ipvsadm;
pub mod kubectl;
pub mod lines;
pub mod manifest;
pub mod mixed;
pub mod packet;
pub mod pcap;
mod place;
pub mod write;

pub use conntrack::{ConntrackChange, ConntrackEvent, ConntrackLine};
pub use events::Events;
pub use ipvs_conn::{IpvsConnLine, StateName};
pub use ipvsadm::{Forward, ListedDest, ListedService, RuleCommand, ServiceArgs, ServiceId};
pub use kubectl::{Endpoints, PodLine};
pub use manifest::{Manifest, Vantage};
pub use packet::{Content, Packet, Way};
pub use place::{Parsed, Place, ReadError, Skipped, SkippedRow, Stamp};

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A listing of a table at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<T> {
    /// Its rows in the order of the listing.
    pub rows: Vec<T>,
    /// Every entry of the table is a row. If not, a missing row says nothing.
    pub complete: bool,
}

impl<T> Table<T> {
    /// A table whose missing rows say nothing.
    pub const fn partial() -> Self {
        Self {
            rows: Vec::new(),
            complete: false,
        }
    }
}

/// What a block of the rules log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesBlock {
    /// Commands as they were run, with their lines.
    pub commands: Vec<(u64, RuleCommand)>,
    /// The whole state as `ipvsadm -Sn` dumped it.
    pub dump: Option<Vec<RuleCommand>>,
    /// The whole state as `ipvsadm -Ln` listed it.
    pub listing: Option<Vec<ListedService>>,
    /// Every line was understood, so what a dump or a listing lacks is not there.
    pub complete: bool,
}

/// One thing that a capture shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A packet.
    Packet(Packet),
    /// The IPVS connection table.
    Ipvs(Table<IpvsConnLine>),
    /// The conntrack table.
    Conntrack(Table<ConntrackLine>),
    /// One change of the conntrack table.
    ConntrackEvent(ConntrackEvent),
    /// Rules, as commands or as a state.
    Rules(RulesBlock),
    /// Sysctls as they are from now on, and `net.netfilter.nf_conntrack_count` as it was.
    Sysctls(Vec<(String, String)>),
    /// Pods.
    Pods(Vec<PodLine>),
    /// Endpoints objects.
    Endpoints(Vec<Endpoints>),
}

impl Body {
    /// What it is, for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Packet(_) => "packet",
            Self::Ipvs(_) => "IPVS entries",
            Self::Conntrack(_) => "conntrack entries",
            Self::ConntrackEvent(_) => "conntrack event",
            Self::Rules(_) => "rules",
            Self::Sysctls(_) => "sysctls",
            Self::Pods(_) => "pods",
            Self::Endpoints(_) => "endpoints",
        }
    }
}

/// One thing that a capture shows, when, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Stamp,
    /// In which file.
    pub file: Arc<str>,
    /// Where in it.
    pub place: Place,
    /// The node's clock was set back before this: no time span across it means anything.
    pub stepped_back: bool,
    /// What.
    pub body: Body,
}

/// The files that a capture directory may hold besides its manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// `packets.pcap` or `packets.pcapng`.
    pub packets: Option<PathBuf>,
    /// `ipvs-conn.log`.
    pub ipvs: Option<PathBuf>,
    /// `conntrack.log`.
    pub conntrack: Option<PathBuf>,
    /// `rules.log`.
    pub rules: Option<PathBuf>,
    /// `sysctl.log`.
    pub sysctls: Option<PathBuf>,
    /// `pods.log`.
    pub pods: Option<PathBuf>,
    /// The single mixed log, if the capture is that.
    pub mixed: Option<PathBuf>,
}

/// A capture: what it says of the node, and the files it has.
#[derive(Clone, Debug)]
pub struct Capture {
    /// What is known of the node.
    pub manifest: Manifest,
    /// The files that are there.
    pub files: Files,
    /// What was left aside when the manifest was read.
    pub skipped: Skipped,
}

impl Capture {
    /// Opens a capture directory or a mixed log.
    ///
    /// # Errors
    /// If there is neither, or the manifest cannot be understood.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let name = file_name(path);
        let kind = fs::metadata(path).map_err(|error| {
            ReadError::new(&name, Place::File, format!("cannot be opened: {error}"))
        })?;
        if !kind.is_dir() {
            return Self::open_mixed(path, &name);
        }
        let manifest_path = path.join("manifest.toml");
        let mut skipped = Skipped::default();
        let mut manifest = match read_text(&manifest_path) {
            Ok(text) => Manifest::parse(&file_name(&manifest_path), &text, &mut skipped)?,
            Err(_) if path.join("log.txt").is_file() => {
                return Self::open_mixed(&path.join("log.txt"), &file_name(&path.join("log.txt")));
            }
            Err(error) => return Err(error),
        };
        let present = |name: &str| Some(path.join(name)).filter(|file| file.is_file());
        if let Some(sysctl) = present("sysctl.txt") {
            let file = file_name(&sysctl);
            let mut values = manifest::parse_sysctls(&file, &read_text(&sysctl)?, &mut skipped);
            values.append(&mut manifest.sysctl);
            manifest.sysctl = values;
            manifest.sysctls(&file)?;
        }
        let files = Files {
            packets: present("packets.pcap").or_else(|| present("packets.pcapng")),
            ipvs: present("ipvs-conn.log"),
            conntrack: present("conntrack.log"),
            rules: present("rules.log"),
            sysctls: present("sysctl.log"),
            pods: present("pods.log"),
            mixed: None,
        };
        Ok(Self {
            manifest,
            files,
            skipped,
        })
    }

    fn open_mixed(path: &Path, name: &Arc<str>) -> Result<Self, ReadError> {
        let mut first = [0; 4];
        let known = fs::File::open(path).and_then(|mut file| {
            use std::io::Read;
            file.read(&mut first)
        });
        let magic = u32::from_le_bytes(first);
        let packets = [0xa1b2_c3d4_u32, pcap::MAGIC_NANOS, 0x0a0d_0d0a];
        if known.is_ok_and(|read| read == 4)
            && packets
                .iter()
                .any(|known| magic == *known || magic.swap_bytes() == *known)
        {
            let reason =
                "is a packet file: put it as packets.pcap into a directory with a manifest.toml";
            return Err(ReadError::new(name, Place::File, reason));
        }
        Ok(Self {
            manifest: Manifest::default(),
            files: Files {
                mixed: Some(path.to_owned()),
                ..Files::default()
            },
            skipped: Skipped::default(),
        })
    }

    /// What the capture shows, from its beginning, in the order of time. May be called again to read anew.
    ///
    /// # Errors
    /// If a file cannot be opened.
    pub fn events(&self) -> Result<Events, ReadError> {
        Events::open(&self.files, self.manifest.finished)
    }
}

/// A file's name as messages give it.
fn file_name(path: &Path) -> Arc<str> {
    Arc::from(path.to_string_lossy())
}

fn read_text(path: &Path) -> Result<String, ReadError> {
    let bytes = fs::read(path).map_err(|error| {
        let reason = format!("cannot be read: {error}");
        ReadError::new(&file_name(path), Place::File, reason)
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
