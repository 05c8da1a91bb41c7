//! Conformance: random conversations in a real kernel, compared with the model packet by packet and table by table.
//!
//! Each seed is a configuration and a conversation. A line of JSON a seed goes to a log, so that a run can be stopped and
//! continued, and several logs can be added up; what diverges is kept as a capture with its script.
#![expect(
    clippy::disallowed_types,
    reason = "a run is bounded in wall-clock minutes; no result depends on them"
)]

mod shrink;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use ipvs_sim::capture::Capture;
use ipvs_sim::diff::{Report, survey};
use serde::{Deserialize, Serialize};

use crate::config::{Masquerade, PacketConfig};
use crate::generator::draw_config;
use crate::host::Kernel;
use crate::job::{Job, PacketTask, Task};

pub use shrink::Shrink;

/// Runs many seeds and compares each recording with the model.
#[derive(Debug, Args)]
pub struct Conform {
    #[command(flatten)]
    which: crate::cli::Which,
    /// The seeds, FROM..TO without TO.
    #[arg(long, default_value = "1..1000000")]
    seeds: String,
    /// Steps of each seed.
    #[arg(long, default_value_t = 2000)]
    steps: u32,
    /// Stop after so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// Change a key of every drawn configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The log: a line a seed is added, and seeds that it has are passed over.
    #[arg(long)]
    log: PathBuf,
    /// Where recordings that diverge are kept, with configuration and script.
    #[arg(long)]
    keep: PathBuf,
    /// Stop at the first divergence.
    #[arg(long)]
    first: bool,
}

/// Adds up logs of `conform`.
#[derive(Debug, Args)]
pub struct Summary {
    /// The logs.
    #[arg(required = true)]
    logs: Vec<PathBuf>,
    /// Renew the tables of this document, between `<!-- counts -->` and the like, instead of printing them.
    #[arg(long)]
    doc: Option<PathBuf>,
}

/// One seed's line in the log.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    kernel: String,
    seed: u64,
    steps: u32,
    config: String,
    set: Vec<String>,
    /// What went wrong in the lab itself; then there are no counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(default)]
    packets: u64,
    #[serde(default)]
    verdicts: u64,
    #[serde(default)]
    listings: u64,
    #[serde(default)]
    entries: u64,
    /// Divergences by class.
    #[serde(default)]
    divergences: BTreeMap<String, u64>,
    #[serde(default)]
    not_checked: BTreeMap<String, u64>,
    #[serde(default)]
    coverage: BTreeMap<String, u64>,
}

/// What a recording was made of.
#[derive(Debug, Clone)]
pub(crate) struct Recording<'a> {
    kernel: &'a Kernel,
    config: PacketConfig,
    seed: u64,
    steps: u32,
    limit: Duration,
    made_by: String,
}

impl Recording<'_> {
    /// Records into a directory, by the generator or by a script.
    fn record(&self, out: &Path, script: Option<&Path>) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let task = PacketTask {
            config: self.config.clone(),
            seed: self.seed,
            steps: self.steps,
            script: script.map(Path::canonicalize).transpose()?,
            out: out.canonicalize()?,
            listings: false,
            keep_script: script.is_none(),
            lenient: true,
        };
        let job = Job {
            made_by: self.made_by.clone(),
            hz: self.kernel.hz,
            task: Task::Packets(task),
        };
        self.kernel.run(&job, self.limit)
    }

    /// Compares a recording with the model.
    fn compare(&self, directory: &Path) -> Result<Report> {
        let capture = Capture::open(directory)?;
        // The kernel tracks for whoever asks: a rule that matches on conntrack, or a nat table.
        let nat = self.config.masquerade != Masquerade::Off;
        let tracking = nat || self.config.track;
        let run = AssertUnwindSafe(|| survey(&capture, nat, tracking));
        match catch_unwind(run) {
            Ok(report) => Ok(report?),
            Err(_) => bail!("the model panicked"),
        }
    }
}

fn range(text: &str) -> Result<std::ops::Range<u64>> {
    let (from, to) = text.split_once("..").context("--seeds FROM..TO")?;
    Ok(from.trim().parse()?..to.trim().parse()?)
}

impl Conform {
    /// Runs until the seeds or the minutes are used up.
    pub fn run(self) -> Result<()> {
        let kernel = Kernel::find(&self.which.kernel, self.which.hz)?;
        let started = Instant::now();
        let done: BTreeSet<u64> = read_log(&self.log)?
            .iter()
            .filter(|line| {
                line.kernel == kernel.release && line.steps == self.steps && line.set == self.set
            })
            .map(|line| line.seed)
            .collect();
        let file = OpenOptions::new().create(true).append(true).open(&self.log);
        let mut log = file.with_context(|| format!("cannot write {}", self.log.display()))?;
        for seed in range(&self.seeds)? {
            if done.contains(&seed) {
                continue;
            }
            if self
                .minutes
                .is_some_and(|m| started.elapsed() >= Duration::from_secs(60 * m))
            {
                break;
            }
            let line = self.seed(&kernel, seed)?;
            serde_json::to_writer(&mut log, &line)?;
            log.write_all(b"\n")?;
            if !line.divergences.is_empty() || line.failed.is_some() {
                println!(
                    "seed {seed} ({}): {:?} {:?}",
                    line.config, line.divergences, line.failed
                );
                if self.first {
                    bail!("seed {seed} diverges");
                }
            }
        }
        let lines = read_log(&self.log)?;
        print!("{}", summary::text(&lines, false));
        Ok(())
    }

    fn seed(&self, kernel: &Kernel, seed: u64) -> Result<Line> {
        let config: PacketConfig = crate::cli::apply(&draw_config(seed), &self.set)?;
        config.check()?;
        let set = self
            .set
            .iter()
            .map(|set| format!(" --set {set}"))
            .collect::<String>();
        let recording = Recording {
            kernel,
            config,
            seed,
            steps: self.steps,
            limit: Duration::from_secs(self.which.limit),
            made_by: format!(
                "ipvs-lab record --kernel {} --draw --seed {seed} --steps {} --fewer-listings{set}",
                kernel.release, self.steps
            ),
        };
        let mut line = Line {
            kernel: kernel.release.clone(),
            seed,
            steps: self.steps,
            config: recording.config.name(seed),
            set: self.set.clone(),
            failed: None,
            packets: 0,
            verdicts: 0,
            listings: 0,
            entries: 0,
            divergences: BTreeMap::new(),
            not_checked: BTreeMap::new(),
            coverage: BTreeMap::new(),
        };
        let directory = tempfile::Builder::new().prefix("ipvs-conform.").tempdir()?;
        let name = format!("linux-{}-{}", kernel.release, line.config);
        if let Err(error) = recording.record(directory.path(), None) {
            line.failed = Some(format!("{error:#}"));
            return Ok(line);
        }
        let report = match recording.compare(directory.path()) {
            Ok(report) => report,
            Err(error) => {
                let text = format!("{error:#}");
                self.keep(&recording, directory.path(), &name, &text)?;
                line.failed = Some(text);
                return Ok(line);
            }
        };
        let named =
            |(class, count): (&ipvs_sim::diff::Class, &u64)| (class.name().to_owned(), *count);
        line.divergences = report.by_class.iter().map(named).collect();
        let counted = |(why, count): (&&'static str, &u64)| ((*why).to_owned(), *count);
        line.not_checked = report.not_checked.iter().map(counted).collect();
        (line.packets, line.verdicts) = (report.packets, report.verdicts);
        (line.listings, line.entries) = (report.snapshots, report.entries);
        if report.divergence_count() > 0 {
            self.keep(&recording, directory.path(), &name, &report.text(20))?;
        }
        line.coverage = report.coverage.unwrap_or_default();
        Ok(line)
    }

    fn keep(&self, recording: &Recording, from: &Path, name: &str, report: &str) -> Result<()> {
        let to = self.keep.join(name);
        std::fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        std::fs::write(to.join("config.toml"), toml::to_string(&recording.config)?)?;
        std::fs::write(to.join("report.txt"), report)?;
        Ok(())
    }
}

impl Summary {
    /// Prints the tables, or puts them into a document.
    pub fn run(self) -> Result<()> {
        let mut lines = Vec::new();
        for log in &self.logs {
            lines.append(&mut read_log(log)?);
        }
        match &self.doc {
            None => print!("{}", summary::text(&lines, true)),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                std::fs::write(path, summary::renew(&text, &lines)?)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// The lines of a log; the last one may be incomplete after a run that was killed.
fn read_log(path: &Path) -> Result<Vec<Line>> {
    let Ok(file) = File::open(path) else {
        return Ok(Vec::new());
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).lines() {
        if let Ok(line) = serde_json::from_str(&line?) {
            lines.push(line);
        }
    }
    Ok(lines)
}
