//! A program that runs on the node beside a rollout: a recorder, say.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The program, running.
#[derive(Debug)]
pub struct Companion {
    line: String,
    child: Child,
}

impl Companion {
    /// Starts it in the namespace of the caller. What it prints goes beside the result.
    pub fn start(line: &str, out: &Path) -> Result<Self> {
        let mut words = line.split_whitespace();
        let program = words.next().context("--with names no program")?;
        let mut said = out.as_os_str().to_owned();
        said.push(".with");
        let said = File::create(&said).context("cannot write beside the result")?;
        let child = Command::new(program)
            .args(words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stderr(said.try_clone()?)
            .stdout(said)
            .spawn()
            .with_context(|| format!("cannot start {program} in the guest"))?;
        Ok(Self {
            line: line.to_owned(),
            child,
        })
    }

    /// Interrupts it, unless it has ended, and waits; words for the report.
    pub fn finish(mut self) -> Result<String> {
        if self.child.try_wait()?.is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, Signal::INT)
                .context("cannot interrupt the program beside the rollout")?;
        }
        let status = self.child.wait()?;
        ensure!(
            matches!(status.code(), Some(0 | 130)),
            "`{}` failed beside the rollout: {status}",
            self.line
        );
        Ok(format!("beside it ran: {}", self.line))
    }
}
