//! The program as the guest's first process: mounts, tools, and the end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::job::{Job, Task};

/// Open files of the guest: the kernel's `fs.nr_open`.
const FILES_MAX: u64 = 1 << 20;

/// Runs the job and powers the guest off. What went wrong is written beside the job.
pub fn run(path: &Path) -> ! {
    let verdict = match init()
        .and_then(|()| Job::read(path))
        .and_then(|job| work(&job))
    {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    if let Err(error) = std::fs::write(path.with_extension("verdict"), &verdict) {
        eprintln!("{verdict}\ncannot write the verdict: {error}");
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    std::process::exit(1)
}

fn work(job: &Job) -> Result<()> {
    match &job.task {
        Task::Packets(task) => crate::play::run(job, task),
        Task::Rollout { play, out } => crate::rollout::run(job, play, out),
    }
}

fn init() -> Result<()> {
    // Clients that wait long for the dead have thousands of sockets.
    let files = Rlimit {
        current: Some(FILES_MAX),
        maximum: Some(FILES_MAX),
    };
    setrlimit(Resource::Nofile, files).context("cannot have so many files")?;
    let none = None::<&std::ffi::CStr>;
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("devtmpfs", "/dev"),
    ] {
        mount(kind, place, kind, MountFlags::empty(), none)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    let tun = Path::new("/dev/net/tun");
    if !tun.exists() {
        std::fs::create_dir_all("/dev/net").context("cannot make /dev/net")?;
        let mode = Mode::from_raw_mode(0o600);
        let device = rustix::fs::makedev(10, 200);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tun,
            FileType::CharacterDevice,
            mode,
            device,
        )
        .context("cannot make /dev/net/tun")?;
    }
    tool("ip", ["link", "set", "lo", "up"])
}

/// Runs a tool of the host's; an error carries what it said.
pub fn tool<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    output(name, arguments).map(drop)
}

/// Runs a tool and returns what it printed.
pub fn output<S: AsRef<OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("XTABLES_LOCKFILE", "/run/xtables.lock");
    let done = command
        .output()
        .with_context(|| format!("cannot run {name} in the guest"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!(
            "`{name} {}` failed in the guest: {}",
            arguments.join(" "),
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a tool with its arguments in one string.
pub fn line(name: &str, arguments: &str) -> Result<()> {
    tool(name, arguments.split_whitespace())
}

/// The file of a sysctl.
pub fn sysctl_file(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

/// `sysctl -w`.
pub fn set_sysctl(key: &str, value: impl ToString) -> Result<()> {
    let value = value.to_string();
    std::fs::write(sysctl_file(key), &value)
        .with_context(|| format!("the kernel does not take {key} = {value}"))
}

/// Reads the sysctls under a prefix into a map.
pub fn read_sysctls(
    prefix: &str,
    into: &mut std::collections::BTreeMap<String, String>,
) -> Result<()> {
    let path = sysctl_file(prefix);
    let path = Path::new(&path);
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {prefix}"))? {
            let name = entry?.file_name();
            read_sysctls(&format!("{prefix}.{}", name.to_string_lossy()), into)?;
        }
    } else if let Ok(value) = std::fs::read_to_string(path) {
        // Some are write-only or need more than we have: they are left out.
        into.insert(prefix.to_owned(), value.trim().to_owned());
    }
    Ok(())
}
