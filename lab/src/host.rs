//! The host's side: finds a kernel, boots it with a job, waits.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::job::{Job, VARIABLE};

/// The guest's wall clock when it boots: the same in every run.
const START: u64 = 1_700_000_000_000_000_000;

/// A kernel binary.
#[derive(Debug)]
pub struct Kernel {
    /// The binary.
    pub path: PathBuf,
    /// Its release, as far as its file name tells.
    pub release: String,
    /// Its timer frequency.
    pub hz: u32,
}

fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("sim-lab"))
}

impl Kernel {
    /// A path, a release (`6.12.117`) or a series (`6.12`, the newest of which is taken) in the cache of `lab/kernel`.
    pub fn find(name: &str, hz: u32) -> Result<Self> {
        let path = Path::new(name);
        let path = if path.is_file() {
            path.to_owned()
        } else {
            Self::cached(name, hz)?
        };
        let stem = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let release = stem.strip_prefix("linux-").unwrap_or(&stem);
        let release = release.split("-hz").next().unwrap_or(release).to_owned();
        let mut config = path.clone().into_os_string();
        config.push(".config");
        let text = std::fs::read_to_string(&config)
            .with_context(|| format!("no configuration {} beside the kernel", config.display()))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("CONFIG_HZ="));
        let hz = line
            .and_then(|hz| hz.parse().ok())
            .context("the configuration has no HZ")?;
        Ok(Self {
            path: path.canonicalize()?,
            release,
            hz,
        })
    }

    fn cached(name: &str, hz: u32) -> Result<PathBuf> {
        let cache = cache()?;
        let suffix = if hz == 250 {
            String::new()
        } else {
            format!("-hz{hz}")
        };
        let numbers = |release: &str| -> Vec<u32> {
            release.split('.').map(|n| n.parse().unwrap_or(0)).collect()
        };
        let found = std::fs::read_dir(&cache)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let file = entry.ok()?.file_name().into_string().ok()?;
                let release = file.strip_prefix("linux-")?.strip_suffix(&suffix)?;
                let plain = release.chars().all(|c| c.is_ascii_digit() || c == '.');
                let wanted = release == name || release.starts_with(&format!("{name}."));
                (plain && wanted).then(|| release.to_owned())
            });
        match found.max_by_key(|release| numbers(release)) {
            Some(release) => Ok(cache.join(format!("linux-{release}{suffix}"))),
            None => bail!(
                "no kernel {name} with HZ={hz} in {}: build one with `lab/kernel --hz {hz} {name}`",
                cache.display()
            ),
        }
    }

    /// Boots the kernel with a job and waits for its end, at most `limit` of host time.
    pub fn run(&self, job: &Job, limit: Duration) -> Result<()> {
        let directory = tempfile::Builder::new()
            .prefix("ipvs-lab.")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let path = directory.path().join("job.json");
        job.write(&path)?;
        let console = directory.path().join("console");
        let init = std::env::current_exe().context("where is this program?")?;
        let output = File::create(&console).context("cannot write the console")?;
        let mut guest = Command::new(&self.path)
            .args([
                "time-travel=inf-cpu",
                "mem=256M",
                "root=/dev/root",
                "rootfstype=hostfs",
            ])
            .args([
                "rootflags=/",
                "rw",
                "con=null",
                "con0=fd:0,fd:1",
                "quiet",
                "panic=-1",
            ])
            .arg(format!("time-travel-start={START}"))
            .arg(format!("umid=ipvs-lab-{}", std::process::id()))
            .arg(format!("init={}", init.display()))
            .arg(format!("{VARIABLE}={}", path.display()))
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        let mut waited = Duration::ZERO;
        let pause = Duration::from_millis(20);
        let status = loop {
            if let Some(status) = guest.try_wait().context("lost the guest")? {
                break status;
            }
            if waited > limit {
                guest.kill().context("cannot stop the guest")?;
                guest.wait()?;
                bail!(
                    "the guest did not end within {} s{}",
                    limit.as_secs(),
                    tail(&console)
                );
            }
            std::thread::sleep(pause);
            waited += pause;
        };
        match std::fs::read_to_string(path.with_extension("verdict")) {
            Ok(verdict) if verdict == "done" => Ok(()),
            Ok(verdict) => bail!("{verdict}"),
            Err(_) => bail!(
                "the guest ended without a word ({status}){}",
                tail(&console)
            ),
        }
    }
}

fn tail(console: &Path) -> String {
    let text = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(20);
    format!("; its console ends with:\n{}", lines[from..].join("\n"))
}
