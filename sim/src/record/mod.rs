//! `sim record`: a capture directory made on the node that runs IPVS, with no other tool.
//!
//! Three threads: one lists the tables at each interval, one looks for changed rules, one reads packets. All write
//! blocks that are whole or absent, share one limit of bytes, and stop together: at the end of the time, at the
//! limit, at a signal, at the first error. The manifest says `finished = true` only then; a capture that broke off
//! before is read as one whose last blocks may lack rows.
//!
//! Reading the tables is not quite free of effects: the kernel removes expired conntrack entries when they are listed.

mod clock;
mod control;
mod log;
mod netlink;
mod node;
mod packets;
mod rules;
mod select;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use control::Ended;
pub use select::Service;

use crate::capture::manifest::SNAPSHOT_TOLERANCE_S;
use crate::output;
use control::Control;
use log::Log;
use netlink::Conntrack;
use node::{Manifest, Proc};
use packets::Packets;
use rules::Rules;
use select::Selection;

/// After a round the recorder rests at least this many times as long as the round took.
const REST: u32 = 9;
/// Names of all files that a recording may have.
const FILES: [&str; 6] = [
    "manifest.toml",
    "ipvs-conn.log",
    "conntrack.log",
    "rules.log",
    "sysctl.log",
    "packets.pcap",
];

/// Where the conntrack table is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ConntrackFrom {
    /// Netlink; the file of /proc if the kernel refuses; none if there is neither.
    #[default]
    Auto,
    /// Netlink, which misses nothing and is quick; needs CAP_NET_ADMIN.
    Netlink,
    /// /proc/net/nf_conntrack.
    Proc,
    /// Not at all.
    Off,
}

/// What is to be recorded.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory for the capture.
    pub out: PathBuf,
    /// Time between two listings of the tables.
    pub every: Duration,
    /// Time between two looks at the rules.
    pub rules_every: Duration,
    /// How long.
    pub lasts: Duration,
    /// How many bytes at most.
    pub size_max: u64,
    /// Services; all if there are none.
    pub services: Vec<Service>,
    /// Record packets of the services.
    pub packets: bool,
    /// Where the conntrack table is taken from.
    pub conntrack: ConntrackFrom,
    /// The timer frequency, if the node does not tell.
    pub hz: Option<u32>,
    /// Overwrite an earlier recording.
    pub force: bool,
    /// A tree that looks like `/proc`.
    pub proc: Option<PathBuf>,
}

/// Why a recording failed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The node hides something from us.
    #[error(
        "{path}: {error}; run as root (a container needs the capabilities that docs/recording.md lists)"
    )]
    Forbidden {
        /// What.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is no IPVS.
    #[error(
        "{path} does not exist: no IPVS in this network namespace. Is the module ip_vs loaded, does kube-proxy run in IPVS mode, \
         and does the container use the host's network?"
    )]
    NoIpvs {
        /// The file that is not there.
        path: PathBuf,
    },
    /// Something of the node's cannot be read.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// What.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The capture cannot be written.
    #[error("{path} cannot be written: {error}")]
    Unwritable {
        /// What.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The directory is in use.
    #[error("{0}")]
    Refused(String),
}

impl RecordError {
    fn read(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            ErrorKind::PermissionDenied => Self::Forbidden { path, error },
            _ => Self::Unreadable { path, error },
        }
    }

    fn write(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        Self::Unwritable { path, error }
    }
}

/// What a recording was.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Why it ended.
    pub ended: Option<Ended>,
    /// How long it ran.
    pub ran: Duration,
    /// Listings of the IPVS table.
    pub rounds: u64,
    /// Entries in the last listing of each table.
    pub rows: [u64; 2],
    /// The longest time that a listing of each table took.
    pub longest: [Duration; 2],
    /// How often the rules were seen to change.
    pub rule_changes: u64,
    /// Packets written, and packets that the kernel had no room for.
    pub packets: Option<(u64, u64)>,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes of tables that the kernel handed out.
    pub read: u64,
    /// How often a sysctl was seen to change.
    pub sysctl_changes: u64,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Records until the time is over, the size is reached, or a signal comes.
///
/// # Errors
/// If the node cannot be read or the capture not be written. What was recorded before stays readable.
pub fn record(plan: &Plan) -> Result<Summary, RecordError> {
    let proc = Proc::new(plan.proc.clone());
    let ipvs = proc.file("net/ip_vs_conn");
    if let Err(error) = fs::metadata(&ipvs) {
        return Err(match error.kind() {
            ErrorKind::NotFound => RecordError::NoIpvs { path: ipvs },
            _ => RecordError::read(&ipvs, error),
        });
    }
    prepare(&plan.out, plan.force)?;
    let start = clock::monotonic();
    let control = Control::new(plan.lasts, plan.size_max)
        .map_err(|error| RecordError::read("signals".as_ref(), error))?;
    let selection = Selection::new(plan.services.clone());
    let (manifest, unreadable) = Manifest::of(&proc, plan.hz);
    let hz = manifest.ticks.as_ref().map(|ticks| ticks.hz);
    let log = Log::create(&plan.out, "rules.log", &control)?;
    let rules = Mutex::new(Rules::new(
        proc.file("net/ip_vs"),
        log,
        selection.clone(),
        hz,
    ));
    let mut rounds = Rounds::set_up(plan, &proc, &selection, &control, &rules, manifest)?;
    if unreadable > 0 {
        let note = format!("{unreadable} sysctls could not be read");
        rounds.summary.notes.push(note);
    }
    // Before the packets: the kernel's filter needs the ports of the real servers.
    locked(&rules).look(false)?;
    let mut packets = match plan.packets {
        true => Some(Packets::open(&plan.out, &selection, &control)?),
        false => None,
    };
    let results = std::thread::scope(|scope| {
        let control = &control;
        let reading = packets.as_mut();
        let reading = reading.map(|p| scope.spawn(|| ending(control, p.run())));
        let watching =
            scope.spawn(|| ending(control, rules::watch(&rules, plan.rules_every, control)));
        let rounds = ending(control, rounds.run());
        [rounds, joined(watching), reading.map_or(Ok(()), joined)]
    });
    let ended = control.ended().unwrap_or(Ended::Failed);
    let failed = results.into_iter().find_map(Result::err);
    rounds.summary.ran = clock::monotonic() - start;
    rounds.finish(ended, packets.as_ref(), failed.is_none())?;
    match failed {
        Some(error) => Err(error),
        None => Ok(rounds.summary),
    }
}

/// Ends the recording if a part of it fails.
fn ending(control: &Control, result: Result<(), RecordError>) -> Result<(), RecordError> {
    if result.is_err() {
        control.end(Ended::Failed);
    }
    result
}

fn joined(
    thread: std::thread::ScopedJoinHandle<'_, Result<(), RecordError>>,
) -> Result<(), RecordError> {
    // A panic is a bug: it goes on here.
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the directory, or makes sure that nothing in it is lost.
fn prepare(out: &Path, force: bool) -> Result<(), RecordError> {
    let unwritable = |error| RecordError::write(out, error);
    fs::create_dir_all(out).map_err(unwritable)?;
    let entries = fs::read_dir(out).map_err(unwritable)?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names = names.collect::<Vec<_>>();
    if let Some(name) = names.first()
        && !force
    {
        return Err(RecordError::Refused(format!(
            "{} is not empty (it has {name}): choose another directory, or --force to replace the recording in it",
            out.display()
        )));
    }
    for name in names.iter().filter(|name| FILES.contains(&name.as_str())) {
        fs::remove_file(out.join(name)).map_err(unwritable)?;
    }
    Ok(())
}

/// Where conntrack entries come from.
enum Source {
    Netlink(Conntrack),
    File(PathBuf),
}

impl Source {
    /// The source that the plan asks for, or the best there is; notes say what a person should know of it.
    fn choose(
        plan: &Plan,
        proc: &Proc,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, RecordError> {
        let wanted = plan.conntrack;
        let file = proc.file("net/nf_conntrack");
        if wanted == ConntrackFrom::Off {
            return Ok(None);
        }
        let try_netlink =
            wanted == ConntrackFrom::Netlink || (wanted == ConntrackFrom::Auto && proc.is_real());
        if try_netlink {
            match Conntrack::open() {
                Ok(netlink) => return Ok(Some(Self::Netlink(netlink))),
                Err(error) if wanted == ConntrackFrom::Netlink => {
                    let path = "the conntrack table over netlink".as_ref();
                    return Err(RecordError::read(path, error));
                }
                Err(error) => {
                    notes.push(format!("conntrack over netlink is not possible: {error}"))
                }
            }
        }
        match fs::File::open(&file) {
            Ok(_) => Ok(Some(Self::File(file))),
            Err(error) if error.kind() == ErrorKind::NotFound && wanted == ConntrackFrom::Auto => {
                notes.push(format!(
                    "no conntrack table: {} does not exist (compiled out, or nothing is tracked). If the node tracks \
                     connections, run `conntrack -E -o timestamp > {}` beside this, or `conntrack -L` at intervals",
                    file.display(),
                    plan.out.join("conntrack.log").display()
                ));
                Ok(None)
            }
            Err(error) => Err(RecordError::read(&file, error)),
        }
    }

    const fn name(source: Option<&Self>) -> &'static str {
        match source {
            Some(Self::Netlink(_)) => "netlink",
            Some(Self::File(_)) => "/proc/net/nf_conntrack",
            None => "none",
        }
    }
}

/// The listings at each interval.
struct Rounds<'c> {
    plan: &'c Plan,
    proc: &'c Proc,
    selection: &'c Selection,
    control: &'c Control,
    rules: &'c Mutex<Rules<'c>>,
    manifest: Manifest,
    ipvs: Log<'c>,
    conntrack: Option<(Source, Log<'c>)>,
    sysctl_log: Log<'c>,
    sysctls: BTreeMap<String, String>,
    /// Listings that were given up.
    cut: u64,
    summary: Summary,
}

impl<'c> Rounds<'c> {
    fn set_up(
        plan: &'c Plan,
        proc: &'c Proc,
        selection: &'c Selection,
        control: &'c Control,
        rules: &'c Mutex<Rules<'c>>,
        mut manifest: Manifest,
    ) -> Result<Self, RecordError> {
        let mut notes = Vec::new();
        if manifest.ticks.is_none() {
            let note = "the timer frequency is not known (a container hides /proc/timer_list): say it with --hz; \
                        `grep CONFIG_HZ= /boot/config-$(uname -r)` tells";
            notes.push(note.to_owned());
        }
        let source = Source::choose(plan, proc, &mut notes)?;
        let services = plan.services.iter().map(ToString::to_string);
        manifest.recorder = vec![
            (
                "made_by",
                format!("sim record {}", env!("CARGO_PKG_VERSION")),
            ),
            ("conntrack", Source::name(source.as_ref()).to_owned()),
            ("rules", "/proc/net/ip_vs".to_owned()),
            ("services", services.collect::<Vec<_>>().join(" ")),
        ];
        let create = |name| Log::create(&plan.out, name, control);
        let conntrack = match source {
            Some(source) => Some((source, create("conntrack.log")?)),
            None => None,
        };
        let rounds = Self {
            plan,
            proc,
            selection,
            control,
            rules,
            ipvs: create("ipvs-conn.log")?,
            conntrack,
            sysctl_log: create("sysctl.log")?,
            sysctls: manifest.sysctls.clone(),
            cut: 0,
            manifest,
            summary: Summary {
                notes,
                ..Summary::default()
            },
        };
        rounds.write_manifest(false)?;
        Ok(rounds)
    }

    fn run(&mut self) -> Result<(), RecordError> {
        loop {
            let start = clock::monotonic();
            self.round()?;
            let end = clock::monotonic();
            let next = (start + self.plan.every).max(end + (end - start) * REST);
            if !self.control.wait_until(next) {
                return Ok(());
            }
        }
    }

    /// The IPVS table, the rules with their counters right after it, the conntrack table, sysctls that changed.
    fn round(&mut self) -> Result<(), RecordError> {
        let (control, selection) = (self.control, self.selection);
        let everything = selection.is_everything();
        let wants = |line: &[u8]| selection.wants_conn(line);
        let wanted: Option<table::Wanted<'_>> = (!everything).then_some(&wants);
        let listed = table::list(
            &self.proc.file("net/ip_vs_conn"),
            &mut self.ipvs,
            wanted,
            control,
            |at| {
                // Only the first listing sets it.
                let _ = control.packets_from.compare_exchange(
                    0,
                    at.0,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
            },
        )?;
        self.note_listed(0, &listed);
        self.summary.rounds += 1;
        locked(self.rules).look(true)?;
        if let Some((source, log)) = &mut self.conntrack {
            let listed = match source {
                Source::Netlink(netlink) => netlink.list(log, selection, control)?,
                Source::File(path) => {
                    let wants = |line: &[u8]| selection.wants_conntrack(line);
                    let wanted: Option<table::Wanted<'_>> = (!everything).then_some(&wants);
                    table::list(path, log, wanted, control, |_| {})?
                }
            };
            self.note_listed(1, &listed);
        }
        self.look_at_sysctls()
    }

    fn note_listed(&mut self, which: usize, listed: &table::Listed) {
        self.summary.rows[which] = listed.rows;
        self.summary.longest[which] = self.summary.longest[which].max(listed.took);
        self.summary.read += listed.bytes;
        self.cut += u64::from(listed.cut);
    }

    fn look_at_sysctls(&mut self) -> Result<(), RecordError> {
        let at = clock::wall();
        let (now, _) = self.proc.sysctls();
        let mut text = String::new();
        for (key, value) in &now {
            // The number of entries is under the same folder as the settings.
            if self.sysctls.get(key) != Some(value) && !key.ends_with("nf_conntrack_count") {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        self.summary.sysctl_changes += 1;
        self.sysctls = now;
        self.sysctl_log.begin(at)?;
        self.sysctl_log.write(text.as_bytes())?;
        self.sysctl_log.end()
    }

    /// Closes the capture. `orderly`: nothing failed, so each file's last block is whole.
    fn finish(
        &mut self,
        ended: Ended,
        packets: Option<&Packets<'_>>,
        orderly: bool,
    ) -> Result<(), RecordError> {
        let summary = &mut self.summary;
        summary.ended = Some(ended);
        let mut sizes = vec![self.ipvs.size(), self.sysctl_log.size()];
        sizes.extend(self.conntrack.iter().map(|(_, log)| log.size()));
        {
            let rules = locked(self.rules);
            sizes.push(rules.size());
            summary.rule_changes = rules.changes;
            if rules.flags_unknown {
                summary.notes.push(
                    "a service uses the scheduler sh or mh, whose flags only ipvsadm shows, and there is none: it is recorded \
                     as if it had no flags"
                        .to_owned(),
                );
            }
        }
        if let Some(packets) = packets {
            sizes.push(packets.size());
            summary.packets = Some((packets.written, packets.lost));
        }
        summary.bytes = sizes.into_iter().sum();
        if self.cut > 0 {
            summary.notes.push(format!(
                "{} listings took longer than ten seconds and were given up: this table is too long for the kernel to list \
                 through /proc; they lack rows",
                self.cut
            ));
        }
        if summary.sysctl_changes > 0 {
            summary.notes.push(
                "sysctls changed during the recording (sysctl.log); the manifest has those of its beginning".to_owned(),
            );
        }
        let longest = summary.longest.into_iter().max().unwrap_or_default();
        // A listing that took long shows entries of any moment of it.
        self.manifest.tolerance_s = SNAPSHOT_TOLERANCE_S + longest.as_secs_f64();
        let told = [
            ("ended", ended.words().to_owned()),
            ("rounds", summary.rounds.to_string()),
            ("longest_listing_s", format!("{:.6}", longest.as_secs_f64())),
        ];
        self.manifest.recorder.extend(told);
        if let Some((written, lost)) = self.summary.packets {
            let told = format!("{written} written, {lost} lost");
            self.manifest.recorder.push(("packets", told));
        }
        self.write_manifest(orderly)
    }

    /// All of the manifest or the one before, at any moment.
    fn write_manifest(&self, finished: bool) -> Result<(), RecordError> {
        let path = self.plan.out.join("manifest.toml");
        let text = self.manifest.text(finished);
        output::write(Some(&path), text.as_bytes()).map_err(|error| match error {
            output::OutputError::Unwritable { reason, .. } => RecordError::write(&path, reason),
            output::OutputError::BrokenPipe => {
                RecordError::write(&path, ErrorKind::BrokenPipe.into())
            }
        })
    }
}
