//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use ipvs_sim::scenario::Document;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::PacketConfig;
use crate::conform::{Conform, Shrink, Summary};
use crate::generator::draw_config;
use crate::host::Kernel;
use crate::job::{Job, PacketTask, Task};
use crate::rollout::{Play, fit};

/// Drives a real Linux kernel in virtual time and records what its tables do.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run random or scripted packets through a kernel and record a capture directory.
    Record(Record),
    /// Run a whole rollout with real clients and pods, and count what the clients see.
    Rollout(Rollout),
    /// Compare many random recordings with the model; endless, unless told otherwise.
    Conform(Conform),
    /// Reduce a recording that diverges to the steps that matter.
    Shrink(Shrink),
    /// Add up what `conform` logged: counts and coverage.
    Summary(Summary),
}

/// Which kernel.
#[derive(Debug, Args)]
pub struct Which {
    /// A series (6.12), a release (6.12.117) or the path of a kernel that `lab/kernel` built.
    #[arg(long)]
    pub kernel: String,
    /// Timer frequency of the kernel.
    #[arg(long, default_value_t = 250)]
    pub hz: u32,
    /// Give up after this many seconds of host time.
    #[arg(long, default_value_t = 600)]
    pub limit: u64,
}

#[derive(Debug, Args)]
struct Record {
    #[command(flatten)]
    which: Which,
    /// Seed of the conversations (and of --draw).
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many steps to generate.
    #[arg(long, default_value_t = 300)]
    steps: u32,
    /// Run this script (JSON, one step a line) instead of generating steps.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Draw the configuration from the seed; otherwise it is kube-proxy's on a current kernel.
    #[arg(long)]
    draw: bool,
    /// A TOML file with the configuration.
    #[arg(long, conflicts_with = "draw")]
    config: Option<PathBuf>,
    /// Change a key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Record the listing of the rules only when it changed, not after every step.
    #[arg(long)]
    fewer_listings: bool,
    /// Go on when the kernel refuses a rule of the script.
    #[arg(long)]
    lenient: bool,
    /// Write the steps as a script beside the capture (steps.jsonl).
    #[arg(long)]
    keep_script: bool,
    /// The capture directory to make.
    #[arg(long, required_unless_present_any = ["into", "show"])]
    out: Option<PathBuf>,
    /// Make the capture directory here, with a name that says what is in it.
    #[arg(long, conflicts_with = "out")]
    into: Option<PathBuf>,
    /// Print the configuration and do nothing.
    #[arg(long)]
    show: bool,
}

#[derive(Debug, Args)]
struct Rollout {
    #[command(flatten)]
    which: Which,
    /// The scenario: a file as `sim run` takes it.
    scenario: PathBuf,
    /// Change a field, as with `sim run`; may be repeated.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Seed of what the lab draws: Poisson arrivals, random delays. The kernel's own choices do not follow it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this program on the node beside the rollout: its path and arguments in one string, without quoting. It is interrupted
    /// (SIGINT) at the end; what it prints goes beside the result, as RESULT.with.
    #[arg(long, value_name = "PROGRAM ARGS")]
    with: Option<String>,
    /// The file for the result.
    #[arg(long)]
    out: PathBuf,
}

/// Does what the command line says.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Record(record) => record.run(),
        Command::Rollout(rollout) => rollout.run(),
        Command::Conform(conform) => conform.run(),
        Command::Shrink(shrink) => shrink.run(),
        Command::Summary(summary) => summary.run(),
    }
}

/// The command, as a person would type it in the checkout; the place of the output does not belong to it.
fn made_by() -> String {
    let mut words = vec!["ipvs-lab".to_owned()];
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        if word == "--out" || word == "--into" {
            arguments.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

impl Record {
    fn run(self) -> Result<()> {
        let base = match &self.config {
            Some(path) => read_toml(path)?,
            None if self.draw => draw_config(self.seed),
            None => PacketConfig::default(),
        };
        let config: PacketConfig = apply(&base, &self.set)?;
        config.check()?;
        if self.show {
            print!("{}", toml::to_string(&config)?);
            return Ok(());
        }
        let kernel = Kernel::find(&self.which.kernel, self.which.hz)?;
        let out = match (self.out, self.into) {
            (Some(out), _) => out,
            (None, Some(into)) => {
                let hz = if kernel.hz == 250 {
                    String::new()
                } else {
                    format!("hz{}-", kernel.hz)
                };
                into.join(format!(
                    "linux-{}-{hz}{}",
                    kernel.release,
                    config.name(self.seed)
                ))
            }
            (None, None) => bail!("where to? Give --out or --into"),
        };
        std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        let task = PacketTask {
            config,
            seed: self.seed,
            steps: self.steps,
            script: self
                .script
                .map(|path| path.canonicalize().context("no script"))
                .transpose()?,
            out: out.canonicalize()?,
            listings: !self.fewer_listings,
            keep_script: self.keep_script,
            lenient: self.lenient,
        };
        let job = Job {
            made_by: made_by(),
            hz: kernel.hz,
            task: Task::Packets(task),
        };
        kernel.run(&job, Duration::from_secs(self.which.limit))?;
        println!("{}", out.display());
        Ok(())
    }
}

impl Rollout {
    fn run(self) -> Result<()> {
        let words = |found: ipvs_sim::diag::Diagnostics| anyhow!("{}", found.render(false));
        let mut document = Document::load(&self.scenario).map_err(words)?;
        for change in &self.set {
            let (path, value) = change
                .split_once('=')
                .with_context(|| format!("--set {change}: no PATH=VALUE"))?;
            document.set(path.trim(), value.trim()).map_err(words)?;
        }
        let kernel = Kernel::find(&self.which.kernel, self.which.hz)?;
        let scenario = fit(document, &kernel)?;
        std::fs::write(&self.out, "")
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        let out = self.out.canonicalize()?;
        let play = Play {
            scenario: scenario.to_toml(),
            seed: self.seed,
            with: self.with,
        };
        let task = Task::Rollout {
            play,
            out: out.clone(),
        };
        let job = Job {
            made_by: made_by(),
            hz: kernel.hz,
            task,
        };
        if let Err(error) = kernel.run(&job, Duration::from_secs(self.which.limit)) {
            let _ = std::fs::remove_file(&out);
            return Err(error);
        }
        println!("{}", self.out.display());
        Ok(())
    }
}

fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// Changes keys of a configuration by name. A value that is no TOML value is taken as a string.
pub fn apply<T: Serialize + DeserializeOwned>(base: &T, changes: &[String]) -> Result<T> {
    let mut table = toml::Table::try_from(base).context("cannot change the configuration")?;
    for change in changes {
        let (key, value) = change
            .split_once('=')
            .with_context(|| format!("--set {change}: no KEY=VALUE"))?;
        let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
        table.insert(key.trim().to_owned(), value);
    }
    table.try_into().context("after --set")
}
