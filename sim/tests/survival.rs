//! Long work survives: a sweep that is killed, interrupted, divided or stopped by a full disk ends with the bytes of one
//! that was not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A rollout in small, with failures in one of the two reuse modes; a few milliseconds each.
const SCENARIO: &str = r#"
schema = 1
duration = "75s"
[kube_proxy]
first_check = "60s"
[[client]]
ports = "32768-33767"
arrivals = { constant = { rate = 30 } }
[rollout.deployment]
start = "30s"
pre_stop = "2s"
"#;

const RUNS: &str = "30";

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("small.toml"), SCENARIO).expect("written");
        Self { folder }
    }

    fn sim(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
        command.args(words).current_dir(self.folder.path());
        command
    }

    fn sweep(&self, words: &[&str]) -> Command {
        let base = [
            "sweep",
            "--scenario",
            "small.toml",
            "--runs",
            RUNS,
            "--format",
            "json",
        ];
        self.sim(&[&base, words].concat())
    }

    fn log(&self, dir: &str) -> Vec<u8> {
        fs::read(self.path(dir).join("runs.log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }
}

/// Its standard output, if it went well.
fn good(command: &mut Command) -> Vec<u8> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("started");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    stdout
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process"))
}

/// A splitmix generator: instants that look random and are the same in every run of the test.
struct Instants(u64);

impl Instants {
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos((z ^ (z >> 31)) % nanos)
    }
}

/// How long a whole sweep takes here, so that the instants lie within it.
fn duration_of(command: &mut Command) -> Duration {
    #[expect(
        clippy::disallowed_types,
        reason = "chooses the instants at which the test kills; no result depends on it"
    )]
    let start = std::time::Instant::now();
    good(command);
    start.elapsed()
}

#[test]
fn a_sweep_killed_at_fifty_instants_ends_with_the_same_bytes() {
    let bench = Bench::new();
    let lasts = duration_of(&mut bench.sweep(&["--dir", "whole"]));
    let expected = good(&mut bench.sweep(&[]));
    let whole = bench.log("whole");
    let mut instants = Instants(50);
    let (mut killed, mut finished, mut partial) = (0, 0, 0);
    let mut place = 0;
    while killed < 50 {
        assert!(killed + finished < 1_000, "only {killed} were caught alive");
        let dir = format!("work-{place}");
        let mut child = start(&mut bench.sweep(&["--dir", &dir]));
        // A third of the time: each folder is killed several times before it is complete.
        std::thread::sleep(instants.below(lasts / 3));
        let alive = child.try_wait().expect("a child").is_none();
        child.kill().expect("killed");
        let status = child.wait().expect("ended");
        if alive && !status.success() {
            killed += 1;
        } else {
            finished += 1;
        }
        let log = bench.log(&dir);
        partial += u32::from(!log.is_empty() && log.len() < whole.len());
        if log.len() >= whole.len() || killed % 10 == 0 {
            assert_eq!(good(&mut bench.sweep(&["--dir", &dir])), expected);
            assert!(bench.log(&dir) == whole, "{dir}: the logs differ");
            place += 1;
        }
    }
    assert!(
        partial > 0,
        "no kill fell between the first and the last result"
    );
}

#[test]
fn ctrl_c_leaves_a_sweep_that_goes_on() {
    let bench = Bench::new();
    let expected = good(&mut bench.sweep(&[]));
    let mut interrupted = 0;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = signal.as_str();
        let mut child = start(&mut bench.sweep(&["--dir", dir, "--threads", "1"]));
        // As soon as there is a result, however slow the machine.
        while bench.log(dir).is_empty() && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(pid(&child), signal).expect("signalled");
        let output = child.wait_with_output().expect("ended");
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(130) {
            interrupted += 1;
            let again = format!("sim sweep --resume {dir}");
            assert!(text.contains(&again), "{text}");
        }
        let resumed = good(&mut bench.sim(&["sweep", "--resume", dir, "--format", "json"]));
        assert_eq!(resumed, expected);
    }
    assert!(interrupted > 0, "both sweeps were faster than the signal");
}

/// A limit on the size of files stands for a disk that is full.
#[test]
fn a_full_disk_keeps_what_was_done() {
    let bench = Bench::new();
    let expected = good(&mut bench.sweep(&[]));
    let sim = env!("CARGO_BIN_EXE_sim");
    let script = format!(
        "trap '' XFSZ; ulimit -f 16; exec {sim} sweep --scenario small.toml --runs {RUNS} --format json --dir work"
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(bench.folder.path());
    let output = shell.output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(text.contains("sim sweep --resume work"), "{text}");
    let kept = bench.log("work");
    assert!(
        !kept.is_empty() && kept.ends_with(b"\n"),
        "whole lines stay"
    );
    let resumed = good(&mut bench.sim(&["sweep", "--resume", "work", "--format", "json"]));
    assert_eq!(resumed, expected);
    assert!(bench.log("work").starts_with(&kept));
}

#[test]
fn threads_and_shards_give_the_same_bytes() {
    let bench = Bench::new();
    let expected = good(&mut bench.sweep(&["--threads", "1"]));
    for threads in ["2", "8"] {
        assert_eq!(good(&mut bench.sweep(&["--threads", threads])), expected);
    }
    for of in [1_u32, 7, 64] {
        let dir = format!("shards-{of}");
        for index in 1..=of {
            let shard = format!("{index}/{of}");
            good(&mut bench.sweep(&["--dir", &dir, "--shard", &shard]));
        }
        let merged = good(&mut bench.sim(&["merge", &dir, "--format", "json"]));
        assert_eq!(merged, expected, "{of} shards");
    }
}

#[test]
fn a_shard_takes_its_number_from_the_environment() {
    let bench = Bench::new();
    let mut command = bench.sweep(&["--dir", "work", "--shard", "auto", "--shards", "2"]);
    let output = command
        .env("JOB_COMPLETION_INDEX", "1")
        .output()
        .expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("shard 2/2, from JOB_COMPLETION_INDEX=1"),
        "{text}"
    );
    assert!(bench.path("work/shard-2-of-2/manifest.json").is_file());
    let merged = bench.sim(&["merge", "work"]).output().expect("started");
    assert_eq!(merged.status.code(), Some(4));
    let text = String::from_utf8_lossy(&merged.stderr);
    assert!(text.contains("--shard 1/2"), "{text}");
}
