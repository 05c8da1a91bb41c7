//! What a node says about itself: release, sysctls, timer frequency, when it booted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use ipvs_model::kernel::Kernel;
use nix::sys::utsname::uname;

use super::clock;
use crate::capture::Stamp;

/// Sysctls that decide what the tables do, as folders and as beginnings of names under `/proc/sys`.
const SYSCTLS: [&str; 11] = [
    "net/ipv4/vs",
    "net/netfilter",
    "net/nf_conntrack_",
    "net/ipv4/tcp_",
    "net/ipv4/ip_local_",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/icmp_",
    "net/ipv4/conf/all",
    "net/core/somaxconn",
    "net/bridge",
];

/// Timer frequencies that kernels are built with.
const FREQUENCIES: [u32; 6] = [100, 250, 300, 1000, 24, 48];

/// Where the kernel shows itself.
#[derive(Clone, Debug)]
pub struct Proc {
    root: PathBuf,
}

/// How the timer frequency became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticks {
    /// Ticks a second.
    pub hz: u32,
    /// The tick counter when the monotonic clock stood at zero, if the node shows it.
    pub at_boot: Option<u64>,
    /// Where it was read.
    pub from: String,
}

impl Proc {
    /// `/proc`, or a tree that looks like it.
    pub fn new(root: Option<PathBuf>) -> Self {
        let root = root.unwrap_or_else(|| PathBuf::from("/proc"));
        Self { root }
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The real one, not a test's.
    pub fn is_real(&self) -> bool {
        self.root == Path::new("/proc")
    }

    /// The kernel: output of `uname -r`, with the stable release that it is built on where the machine tells it
    /// (`uname -v` on Debian, /proc/version_signature on Ubuntu).
    pub fn kernel(&self) -> String {
        let release = self.release();
        let banner = fs::read_to_string(self.file("sys/kernel/version"));
        let banner = banner.map(|version| format!("{release} {}", version.trim()));
        let signature = fs::read_to_string(self.file("version_signature"));
        let told = [signature, banner].into_iter().flatten();
        let told = told.filter_map(|text| text.parse::<Kernel>().ok());
        let mut told = told.filter(|kernel| kernel.stable.is_some() && kernel.release == release);
        told.next().map_or(release, |kernel| kernel.to_string())
    }

    /// Output of `uname -r`.
    fn release(&self) -> String {
        let told = fs::read_to_string(self.file("sys/kernel/osrelease"));
        match told {
            Ok(release) => release.trim().to_owned(),
            Err(_) => uname().map_or_else(
                |_| String::new(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
        }
    }

    /// The sysctls that matter, by their names in `sysctl -a`; and how many could not be read.
    pub fn sysctls(&self) -> (BTreeMap<String, String>, usize) {
        let mut values = BTreeMap::new();
        let mut unreadable = 0;
        let sys = self.file("sys");
        for wanted in SYSCTLS {
            let path = sys.join(wanted);
            if path.is_dir() {
                collect(&sys, &path, "", &mut values, &mut unreadable);
            } else if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
                collect(
                    &sys,
                    folder,
                    &name.to_string_lossy(),
                    &mut values,
                    &mut unreadable,
                );
            }
        }
        (values, unreadable)
    }

    /// The timer frequency, if the node tells: `timer_list` shows it as ticks against time; else the configuration of
    /// the kernel says it, if it is lying about.
    pub fn ticks(&self) -> Option<Ticks> {
        let shown = fs::read_to_string(self.file("timer_list")).ok();
        if let Some(ticks) = shown.as_deref().and_then(ticks_shown) {
            return Some(ticks);
        }
        if !self.is_real() {
            return None;
        }
        let release = self.release();
        let places = [
            format!("/boot/config-{release}"),
            format!("/lib/modules/{release}/config"),
            format!("/usr/lib/modules/{release}/config"),
            format!("/lib/modules/{release}/build/.config"),
        ];
        places.into_iter().find_map(|place| {
            let text = fs::read_to_string(&place).ok()?;
            let hz = text
                .lines()
                .find_map(|line| line.strip_prefix("CONFIG_HZ="))?;
            Some(Ticks {
                hz: hz.trim().parse().ok()?,
                at_boot: None,
                from: place,
            })
        })
    }
}

/// Reads the sysctls of a folder whose names begin with `prefix`.
fn collect(
    sys: &Path,
    folder: &Path,
    prefix: &str,
    values: &mut BTreeMap<String, String>,
    unreadable: &mut usize,
) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        if path.is_dir() {
            if prefix.is_empty() {
                collect(sys, &path, "", values, unreadable);
            }
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(value) => {
                let value = value.trim().replace(['\n', '\r'], " ");
                values.insert(key_of(sys, &path), value);
            }
            // Some can only be written, and secrets need more than root in a container has.
            Err(_) => *unreadable += 1,
        }
    }
}

/// `net/ipv4/conf/eth0.100/x` is `net.ipv4.conf.eth0/100.x`, as `sysctl` prints it.
fn key_of(sys: &Path, path: &Path) -> String {
    let mut key = String::new();
    for part in path.strip_prefix(sys).unwrap_or(path).components() {
        if !key.is_empty() {
            key.push('.');
        }
        let part = part.as_os_str().to_string_lossy();
        key.push_str(&part.replace('.', "/"));
    }
    key
}

/// Ticks against nanoseconds, as `/proc/timer_list` has them. The counter begins 300 seconds before its lower 32
/// bits overflow, which makes the frequency the one number that fits.
fn ticks_shown(text: &str) -> Option<Ticks> {
    let now = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("now at ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    })?;
    let jiffies = text.lines().find_map(|line| {
        line.trim()
            .strip_prefix("jiffies: ")?
            .trim()
            .parse::<u64>()
            .ok()
    })?;
    for hz in FREQUENCIES {
        let start = (1_u64 << 32) - 300 * u64::from(hz);
        let run = u64::try_from(u128::from(now) * u128::from(hz) / 1_000_000_000).ok()?;
        // Early boot may lose or gain some ticks.
        if jiffies.abs_diff(start + run) <= u64::from(hz) {
            return Some(Ticks {
                hz,
                at_boot: jiffies.checked_sub(run),
                from: "/proc/timer_list".to_owned(),
            });
        }
    }
    None
}

/// The manifest of a recording.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Output of `uname -r`.
    pub release: String,
    /// Timer frequency.
    pub ticks: Option<Ticks>,
    /// Wall clock minus monotonic clock.
    pub boot: Stamp,
    /// Sysctls at the beginning.
    pub sysctls: BTreeMap<String, String>,
    /// What the recorder says of itself.
    pub recorder: Vec<(&'static str, String)>,
    /// Tolerance of listed times in seconds, if listings took long.
    pub tolerance_s: f64,
}

impl Manifest {
    /// What can be told at the beginning.
    pub fn of(proc: &Proc, hz: Option<u32>) -> (Self, usize) {
        let (sysctls, unreadable) = proc.sysctls();
        let told = |hz| Ticks {
            hz,
            at_boot: None,
            from: "--hz".to_owned(),
        };
        let ticks = match hz {
            Some(hz) => Some(
                proc.ticks()
                    .filter(|t| t.hz == hz)
                    .unwrap_or_else(|| told(hz)),
            ),
            None => proc.ticks(),
        };
        let manifest = Self {
            release: proc.kernel(),
            ticks,
            boot: clock::boot(),
            sysctls,
            recorder: Vec::new(),
            tolerance_s: crate::capture::manifest::SNAPSHOT_TOLERANCE_S,
        };
        (manifest, unreadable)
    }

    /// Its text. `finished`: the recording ended in order, so each file's last block is whole.
    pub fn text(&self, finished: bool) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut out = String::from("schema = 1\n");
        let _ = writeln!(
            out,
            "kernel = {}\nvantage = \"node\"",
            quoted(&self.release)
        );
        if let Some(ticks) = &self.ticks {
            let _ = writeln!(out, "hz = {}", ticks.hz);
        }
        let nanos = self.boot.0;
        let _ = writeln!(
            out,
            "boot_time_s = \"{}.{:09}\"\nsnapshot_tolerance = {:.3}",
            nanos / 1_000_000_000,
            nanos % 1_000_000_000,
            self.tolerance_s
        );
        let _ = writeln!(out, "\n[recorder]\nfinished = {finished}");
        if let Some(ticks) = &self.ticks {
            let _ = writeln!(out, "hz_from = {}", quoted(&ticks.from));
            if let Some(at_boot) = ticks.at_boot {
                let _ = writeln!(out, "jiffies_at_boot = \"{at_boot}\"");
            }
        }
        for (key, value) in &self.recorder {
            let _ = writeln!(out, "{key} = {}", quoted(value));
        }
        out.push_str("\n[sysctl]\n");
        for (key, value) in &self.sysctls {
            let _ = writeln!(out, "{} = {}", quoted(key), quoted(value));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_list_tells_frequency_and_phase() {
        let shown = |now: u64, jiffies: u64| {
            format!(
                "Timer List Version: v0.9\nnow at {now} nsecs\n\ncpu: 0\njiffies: {jiffies}\n\n"
            )
        };
        let at = |hz: u64, now: u64| {
            let ticks = u128::from(now) * u128::from(hz) / 1_000_000_000;
            (1 << 32) - 300 * hz + u64::try_from(ticks).unwrap()
        };
        for hz in [100, 250, 300, 1000] {
            for now in [1_500_000_000, 86_400_000_000_000, 31_536_000_000_000_000] {
                let ticks = ticks_shown(&shown(now, at(hz, now) + 2)).unwrap();
                assert_eq!(u64::from(ticks.hz), hz, "{now}");
                assert_eq!(ticks.at_boot, Some((1 << 32) - 300 * hz + 2));
            }
        }
        assert_eq!(ticks_shown(&shown(86_400_000_000_000, 77)), None);
        assert_eq!(ticks_shown("nothing\n"), None);
    }

    #[test]
    fn keys_are_those_of_the_tool() {
        let sys = Path::new("/proc/sys");
        let path = sys.join("net/ipv4/conf/eth0.100/forwarding");
        assert_eq!(key_of(sys, &path), "net.ipv4.conf.eth0/100.forwarding");
    }

    #[test]
    fn the_stable_level_is_recorded_where_the_machine_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("sys/kernel");
        fs::create_dir_all(&kernel).unwrap();
        let proc = Proc::new(Some(dir.path().to_owned()));
        fs::write(kernel.join("osrelease"), "6.1.0-18-amd64\n").unwrap();
        assert_eq!(proc.kernel(), "6.1.0-18-amd64");
        let banner = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)\n";
        fs::write(kernel.join("version"), banner).unwrap();
        assert_eq!(proc.kernel(), "6.1.0-18-amd64 (stable 6.1.76)");
        fs::write(kernel.join("osrelease"), "5.4.0-91-generic\n").unwrap();
        fs::write(
            kernel.join("version"),
            "#102-Ubuntu SMP Fri Nov 5 16:31:28 UTC 2021\n",
        )
        .unwrap();
        assert_eq!(proc.kernel(), "5.4.0-91-generic");
        let signature = "Ubuntu 5.4.0-91.102-generic 5.4.151\n";
        fs::write(dir.path().join("version_signature"), signature).unwrap();
        assert_eq!(proc.kernel(), "5.4.0-91-generic (stable 5.4.151)");
        fs::write(kernel.join("osrelease"), "6.12.117\n").unwrap();
        assert_eq!(proc.kernel(), "6.12.117", "another kernel's signature");
    }

    #[test]
    fn a_manifest_reads_back() {
        use crate::capture::{self, Skipped};
        let dir = tempfile::tempdir().unwrap();
        let vs = dir.path().join("sys/net/ipv4/vs");
        fs::create_dir_all(&vs).unwrap();
        fs::write(vs.join("conn_reuse_mode"), "0\n").unwrap();
        fs::write(
            dir.path().join("sys/net/ipv4/ip_local_port_range"),
            "32768\t60999\n",
        )
        .unwrap();
        fs::write(dir.path().join("sys/net/ipv4/other"), "1\n").unwrap();
        let proc = Proc::new(Some(dir.path().to_owned()));
        let (mut manifest, unreadable) = Manifest::of(&proc, Some(1000));
        manifest.release = "6.1.0-18-amd64".to_owned();
        manifest
            .recorder
            .push(("packets", "a \"quoted\" word".to_owned()));
        assert_eq!((manifest.sysctls.len(), unreadable), (2, 0));
        for finished in [true, false] {
            let mut skipped = Skipped::default();
            let text = manifest.text(finished);
            let read = capture::Manifest::parse(&"manifest.toml".into(), &text, &mut skipped);
            let read = read.unwrap();
            assert!(skipped.is_empty(), "{skipped:?}");
            assert_eq!((read.hz, read.finished), (Some(1000), finished));
            assert_eq!(read.sysctl["net.ipv4.vs.conn_reuse_mode"], "0");
            assert_eq!(read.boot.unwrap(), manifest.boot);
        }
    }
}
