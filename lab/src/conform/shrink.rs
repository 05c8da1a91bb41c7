//! Reduces a recording that diverges to the few steps that matter, by delta debugging.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ipvs_sim::diff::Class;

use super::Recording;
use crate::config::PacketConfig;
use crate::host::Kernel;
use crate::step::{Action, Step, read_script};

/// Reduces a kept recording to a minimal sequence of steps that still diverges, and saves it as a capture.
#[derive(Debug, Args)]
pub struct Shrink {
    #[command(flatten)]
    which: crate::cli::Which,
    /// A directory that `conform` kept: with `config.toml` and `steps.jsonl`.
    kept: PathBuf,
    /// The capture to make.
    #[arg(long)]
    out: PathBuf,
    /// At most so many recordings.
    #[arg(long, default_value_t = 400)]
    tries: u32,
    /// Only look for this class (`verdict`, `ct-time`, ...) instead of that of the first divergence.
    #[arg(long)]
    class: Option<String>,
}

struct Shrinking<'a> {
    recording: Recording<'a>,
    class: Class,
    left: u32,
    directory: tempfile::TempDir,
}

impl Shrink {
    /// Runs until nothing can be left out.
    pub fn run(self) -> Result<()> {
        let kernel = Kernel::find(&self.which.kernel, self.which.hz)?;
        let text =
            std::fs::read_to_string(self.kept.join("config.toml")).context("no config.toml")?;
        let config: PacketConfig = toml::from_str(&text).context("config.toml")?;
        let steps = read_script(&self.kept.join("steps.jsonl"))?;
        let recording = Recording {
            kernel: &kernel,
            config,
            seed: 0,
            steps: 0,
            limit: Duration::from_secs(self.which.limit),
            made_by: String::new(),
        };
        let mut shrinking = Shrinking {
            recording,
            class: Class::Verdict,
            left: self.tries,
            directory: tempfile::Builder::new().prefix("ipvs-shrink.").tempdir()?,
        };
        let report = shrinking.try_steps(&steps)?;
        let wanted = |class: &Class| match &self.class {
            Some(name) => serde_json::to_value(class).is_ok_and(|value| value == name.as_str()),
            None => true,
        };
        let Some(first) = report.divergences.iter().find(|d| wanted(&d.class)) else {
            bail!(
                "the script by itself does not diverge: it depends on something random, or was fixed"
            );
        };
        shrinking.class = first.class;
        let steps = shrinking.reduce(steps)?;
        self.save(&mut shrinking, &steps)
    }

    fn save(&self, shrinking: &mut Shrinking, steps: &[Step]) -> Result<()> {
        std::fs::create_dir_all(&self.out)?;
        let script = self.out.join("steps.jsonl");
        write_script(&script, steps)?;
        let config = self.out.join("config.toml");
        std::fs::write(&config, toml::to_string(&shrinking.recording.config)?)?;
        let name = self.out.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("captures/regressions/{name}");
        shrinking.recording.made_by = format!(
            "ipvs-lab record --kernel {} --config {place}/config.toml --script {place}/steps.jsonl --lenient --fewer-listings",
            shrinking.recording.kernel.release
        );
        shrinking.recording.record(&self.out, Some(&script))?;
        let report = shrinking.recording.compare(&self.out)?;
        println!(
            "{} steps in {}\n{}",
            steps.len(),
            self.out.display(),
            report.text(1)
        );
        Ok(())
    }
}

impl Shrinking<'_> {
    fn try_steps(&mut self, steps: &[Step]) -> Result<ipvs_sim::diff::Report> {
        let script = self.directory.path().join("try.jsonl");
        write_script(&script, steps)?;
        let out = self.directory.path().join("try");
        self.recording.record(&out, Some(&script))?;
        self.recording.compare(&out)
    }

    fn diverges(&mut self, steps: &[Step]) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let class = self.class;
        self.try_steps(steps)
            .is_ok_and(|report| report.by_class.contains_key(&class))
    }

    /// Cuts the end, then leaves out ever smaller pieces; the time that they took stays.
    fn reduce(&mut self, mut steps: Vec<Step>) -> Result<Vec<Step>> {
        let (mut low, mut high) = (1, steps.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.diverges(&steps[..middle]) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        steps.truncate(high);
        for hold_time in [true, false] {
            let mut piece = steps.len().div_ceil(2);
            loop {
                let mut at = 0;
                while at < steps.len() {
                    let end = (at + piece).min(steps.len());
                    let fewer = without(&steps, at, end, hold_time);
                    if !fewer.is_empty() && self.diverges(&fewer) {
                        steps = fewer;
                    } else {
                        at = end;
                    }
                }
                eprintln!("{} steps left, {} tries left", steps.len(), self.left);
                if piece == 1 || self.left == 0 {
                    break;
                }
                piece = piece.div_ceil(2);
            }
        }
        self.shorten_waits(&mut steps);
        Ok(steps)
    }

    fn shorten_waits(&mut self, steps: &mut [Step]) {
        let marks = [1000, 1_000_000, 10_500_000, 61_000_000, 121_000_000];
        for at in 0..steps.len() {
            let long = steps[at].wait_us;
            for wait in marks.into_iter().filter(|wait| *wait < long) {
                steps[at].wait_us = wait;
                if self.diverges(steps) {
                    break;
                }
                steps[at].wait_us = long;
            }
        }
    }
}

/// The steps without some of them; their waits are added to the step that follows.
fn without(steps: &[Step], from: usize, to: usize, hold_time: bool) -> Vec<Step> {
    let mut left = steps[..from].to_vec();
    let waited: u64 = steps[from..to].iter().map(|step| step.wait_us).sum();
    let mut rest = steps[to..].to_vec();
    if let (Some(next), true) = (rest.first_mut(), hold_time) {
        next.wait_us += waited;
    }
    left.append(&mut rest);
    // A service must be there, or the listing has nothing.
    let rules = left
        .iter()
        .filter(|step| matches!(&step.action, Action::Ipvsadm { .. }));
    let verbs: BTreeSet<_> = rules
        .filter_map(|step| match &step.action {
            Action::Ipvsadm { arguments } => arguments.split_whitespace().next(),
            _ => None,
        })
        .collect();
    if verbs.contains("-A") {
        left
    } else {
        Vec::new()
    }
}

fn write_script(path: &Path, steps: &[Step]) -> Result<()> {
    let mut text = String::new();
    for step in steps {
        text.push_str(&serde_json::to_string(step)?);
        text.push('\n');
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
