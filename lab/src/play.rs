//! The packet lab inside the guest: two tun devices, steps, and every table after every step.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tappers::{Interface, Tun};

use crate::clock::{Instant, Phase, monotonic, sleep_to_tick};
use crate::config::Masquerade;
use crate::generator::{Generator, SECOND_SERVICE, SERVICE};
use crate::guest::{line, output, read_sysctls, set_sysctl, sysctl_file};
use crate::job::{Job, PacketTask};
use crate::netlink::Rules;
use crate::packet::Segment;
use crate::recorder::{Manifest, Recorder};
use crate::step::{Action, Step, read_script};

/// How many entries conntrack has, with those that have expired and wait for the collector: before each packet it is
/// read, because nothing else tells whether the collector has come by.
const COUNT: &str = "net.netfilter.nf_conntrack_count";

/// Runs the task and leaves a capture directory.
pub fn run(job: &Job, task: &PacketTask) -> Result<()> {
    task.config.check()?;
    let mut devices = set_up(task)?;
    let rules = Rules::open()?;
    let tables = Tables::open()?;
    let phase = Phase::measure(job.hz)?;
    let mut recorder = Recorder::create(&task.out)?;
    let manifest = manifest(job, phase)?;
    let mut kept = None;
    if task.keep_script {
        let path = task.out.join("steps.jsonl");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        kept = Some(BufWriter::new(file));
    }
    let mut generator = Generator::new(task.config.clone(), task.seed);
    let script = task.script.as_deref().map(read_script).transpose()?;
    let steps = script.as_ref().map_or(task.steps as usize, Vec::len);
    let mut listing = String::new();
    for number in 0..steps {
        let step = match &script {
            Some(script) => script[number].clone(),
            None => generator.next(),
        };
        if let Some(file) = &mut kept {
            serde_json::to_writer(&mut *file, &step).context("cannot keep the script")?;
            file.write_all(b"\n")?;
        }
        devices.wait(step.wait_us, phase.tick, &mut recorder, &mut generator)?;
        let interfaces = (&rules, &tables);
        perform(&step, &mut devices, &mut recorder, interfaces, task.lenient)
            .with_context(|| format!("in step {}", number + 1))?;
        devices.drain(&mut recorder, &mut generator)?;
        look(&tables, &mut recorder, &mut listing, job, task)?;
    }
    compare_listing(&listing)?;
    if let Some(mut file) = kept {
        file.flush()?;
    }
    recorder.finish(&manifest)
}

/// The two sides of the node.
struct Devices {
    clients: Tun,
    pods: Tun,
}

fn device(name: &str, address: &str) -> Result<Tun> {
    let interface = Interface::new(name).with_context(|| format!("{name} is no device name"))?;
    let mut tun = Tun::new_named(interface).with_context(|| format!("cannot make {name}"))?;
    tun.set_nonblocking(true)
        .context("cannot make the device non-blocking")?;
    line("ip", &format!("address add {address} dev {name}"))?;
    line("ip", &format!("link set {name} up"))?;
    Ok(tun)
}

/// Devices, sysctls and iptables rules.
fn set_up(task: &PacketTask) -> Result<Devices> {
    let config = &task.config;
    for key in ["all", "default"] {
        set_sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), 0)?;
    }
    set_sysctl("net.ipv4.ip_forward", 1)?;
    let clients = device("clients", "10.23.31.1/24")?;
    let pods = device("pods", "10.27.1.1/24")?;
    line("ip", "link add kube-ipvs0 type dummy")?;
    for service in [SERVICE, SECOND_SERVICE] {
        line(
            "ip",
            &format!("address add {}/32 dev kube-ipvs0", service.ip()),
        )?;
    }
    line("ip", "link set kube-ipvs0 up")?;
    if config.track {
        line(
            "iptables-legacy",
            "-w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        )?;
    }
    let random = match config.masquerade {
        Masquerade::Off => None,
        Masquerade::Plain => Some(""),
        Masquerade::RandomFully => Some(" --random-fully"),
    };
    if let Some(random) = random {
        let rule = format!("-w -t nat -A POSTROUTING -o pods -j MASQUERADE{random}");
        line("iptables-legacy", &rule)?;
    }
    for (key, value) in [
        ("net.ipv4.vs.conntrack", u32::from(config.conntrack)),
        ("net.ipv4.vs.conn_reuse_mode", config.conn_reuse_mode.into()),
        (
            "net.ipv4.vs.expire_nodest_conn",
            config.expire_nodest_conn.into(),
        ),
        (
            "net.ipv4.vs.expire_quiescent_template",
            config.expire_quiescent_template.into(),
        ),
        ("net.ipv4.vs.sloppy_tcp", config.sloppy_tcp.into()),
        ("net.ipv4.vs.secure_tcp", config.secure_tcp.into()),
        (
            "net.netfilter.nf_conntrack_tcp_loose",
            config.tcp_loose.into(),
        ),
        (
            "net.netfilter.nf_conntrack_tcp_be_liberal",
            config.be_liberal.into(),
        ),
    ] {
        set_sysctl(key, value)?;
    }
    if let Some(limit) = config.conntrack_max {
        set_sysctl("net.netfilter.nf_conntrack_max", limit)?;
    }
    Ok(Devices { clients, pods })
}

fn manifest(job: &Job, phase: Phase) -> Result<Manifest> {
    let mut sysctl = BTreeMap::new();
    for prefix in [
        "net.ipv4.vs",
        "net.netfilter",
        "net.ipv4.ip_forward",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.icmp_ratelimit",
        "net.ipv4.icmp_ratemask",
        "net.ipv4.icmp_msgs_per_sec",
        "net.ipv4.icmp_msgs_burst",
    ] {
        read_sysctls(prefix, &mut sysctl)?;
    }
    sysctl.retain(|key, _| !key.starts_with("net.netfilter.nf_log"));
    let boot = Instant(phase.boot);
    Ok(Manifest {
        schema: 1,
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        vantage: "node",
        hz: job.hz,
        // The lab reads what came out before anything else happens, and each reading of the clock takes a microsecond.
        transit_us: 500,
        made_by: job.made_by.clone(),
        boot_time_s: format!("{}.{:09}", boot.seconds(), boot.0.rem_euclid(1_000_000_000)),
        jiffies_at_boot: phase.jiffies.to_string(),
        sysctl,
    })
}

impl Devices {
    /// Lets virtual time pass, recording what the node sends by itself meanwhile. Ends well inside a tick, so that
    /// nobody has to guess whether a packet came before or after it.
    fn wait(
        &mut self,
        micros: u64,
        tick: i64,
        recorder: &mut Recorder,
        generator: &mut Generator,
    ) -> Result<()> {
        let end = monotonic() + micros.max(1000) as i64 * 1000;
        loop {
            let left = end - monotonic();
            if left <= 0 {
                break;
            }
            let left = Timespec {
                tv_sec: left / 1_000_000_000,
                tv_nsec: left % 1_000_000_000,
            };
            let mut fds = [
                PollFd::from_borrowed_fd(self.clients.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.pods.as_fd(), PollFlags::IN),
            ];
            if poll(&mut fds, Some(&left)).context("cannot wait")? > 0 {
                self.drain(recorder, generator)?;
            }
        }
        let into = monotonic().rem_euclid(tick);
        if into < tick / 8 || into > tick / 8 * 5 {
            sleep_to_tick(tick, tick / 4);
            self.drain(recorder, generator)?;
        }
        Ok(())
    }

    /// Reads what the node has sent, first to the pods, then to the clients.
    fn drain(&mut self, recorder: &mut Recorder, generator: &mut Generator) -> Result<()> {
        let mut buffer = [0; 2048];
        for pods in [true, false] {
            let tun = if pods { &self.pods } else { &self.clients };
            loop {
                let length = match tun.recv(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("cannot read from the node"),
                };
                recorder.packet(Instant::now(), &buffer[..length])?;
                if let Some(segment) = Segment::parse(&buffer[..length]) {
                    if pods {
                        generator.seen_by_pod(&segment);
                    } else {
                        generator.seen_by_client(&segment);
                    }
                }
            }
        }
        Ok(())
    }
}

fn perform(
    step: &Step,
    devices: &mut Devices,
    recorder: &mut Recorder,
    (rules, tables): (&Rules, &Tables),
    lenient: bool,
) -> Result<()> {
    let (tun, segment) = match &step.action {
        Action::Client(segment) => (&devices.clients, segment),
        Action::Pod(segment) => (&devices.pods, segment),
        Action::Ipvsadm { arguments } => {
            recorder.rules(Instant::now(), &format!("ipvsadm {arguments}"))?;
            return match rules.run(arguments) {
                Err(_) if lenient => Ok(()),
                done => done,
            };
        }
        Action::Sysctl { key, value } => {
            recorder.sysctl(Instant::now(), key, value)?;
            return set_sysctl(key, value);
        }
        Action::Look => return Ok(()),
    };
    let bytes = segment.to_bytes();
    let count = read_all(&tables.count)?;
    recorder.sysctl(Instant::now(), COUNT, count.trim())?;
    recorder.packet(Instant::now(), &bytes)?;
    tun.send(&bytes)
        .context("the node does not take the packet")?;
    Ok(())
}

/// The kernel's tables, open: a step would cost twice as much if it opened them.
struct Tables {
    ipvs: File,
    conntrack: File,
    rules: File,
    count: File,
}

impl Tables {
    fn open() -> Result<Self> {
        let open = |path: &str| File::open(path).with_context(|| format!("cannot open {path}"));
        Ok(Self {
            ipvs: open("/proc/net/ip_vs_conn")?,
            conntrack: open("/proc/net/nf_conntrack")?,
            rules: open("/proc/net/ip_vs")?,
            count: open(&sysctl_file(COUNT))?,
        })
    }
}

/// Records the tables.
fn look(
    tables: &Tables,
    recorder: &mut Recorder,
    listing: &mut String,
    job: &Job,
    task: &PacketTask,
) -> Result<()> {
    let read = |table: &File| -> Result<(Instant, String)> {
        let at = Instant::now();
        Ok((at, read_all(table)?))
    };
    let (at, text) = read(&tables.ipvs)?;
    recorder.ipvs(at, &text)?;
    let (at, text) = read(&tables.conntrack)?;
    recorder.conntrack(at, &text)?;
    let (at, text) = read(&tables.rules)?;
    let flags = task.config.shown_flags();
    let text = listing_of(&text, job.hz, flags.as_deref())?;
    if task.listings || text != *listing {
        recorder.rules(at, &text)?;
    }
    *listing = text;
    Ok(())
}

/// Reads a table from its beginning with as few reads as possible. The kernel finds its place again by counting entries, and
/// listing conntrack removes the expired ones on the way: a reader that comes in small steps misses live entries behind them.
fn read_all(table: &File) -> Result<String> {
    let mut text = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match table.read_at(&mut buffer, text.len() as u64) {
            Ok(0) => return Ok(String::from_utf8(text)?),
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) => return Err(error).context("cannot read a table of the kernel"),
        }
    }
}

/// Writes `/proc/net/ip_vs` as `ipvsadm -Ln` does, so that no process has to run after every step. The order is the kernel's
/// (as with `ipvsadm -Ln --nosort`), and so is the unit of the persistence timeout there: ticks.
/// Scheduler flags are not shown there at all, so they come from the configuration.
fn listing_of(proc: &str, hz: u32, flags: Option<&str>) -> Result<String> {
    let mut text = String::new();
    let endpoint = |hex: &str| -> Result<String> {
        let (ip, port) = hex
            .split_once(':')
            .with_context(|| format!("no address: {hex}"))?;
        let ip = std::net::Ipv4Addr::from(u32::from_str_radix(ip, 16)?);
        Ok(format!("{ip}:{}", u16::from_str_radix(port, 16)?))
    };
    for row in proc.lines() {
        let words: Vec<_> = row.split_whitespace().collect();
        match words[..] {
            ["TCP" | "UDP", address, ref rest @ ..] => {
                text.push_str(&format!("{}  {} ", words[0], endpoint(address)?));
                let mut rest = rest.iter().copied().peekable();
                let mut parts: Vec<String> = rest.next().map(str::to_owned).into_iter().collect();
                while let Some(word) = rest.next() {
                    match word {
                        "persistent" => {
                            let timeout: u32 = rest.next().unwrap_or("0").parse()?;
                            parts.push(format!("persistent {}", timeout / hz));
                            let mask = rest.next_if(|mask| mask.len() == 8);
                            if let Some(mask) = mask.filter(|mask| *mask != "FFFFFFFF") {
                                let mask = std::net::Ipv4Addr::from(u32::from_str_radix(mask, 16)?);
                                parts.push(format!("mask {mask}"));
                            }
                        }
                        other => parts.push(other.to_owned()),
                    }
                }
                if let Some(flags) = flags {
                    parts.insert(1, format!("({flags})"));
                }
                text.push_str(&parts.join(" "));
            }
            ["->", address, method, weight, active, inactive]
                if address.contains(':') && method != "Forward" =>
            {
                let address = endpoint(address)?;
                text.push_str(&format!(
                    "  -> {address:<28} {method:<7} {weight:<6} {active:<10} {inactive:<10}"
                ));
            }
            ["->", ..] => text
                .push_str("  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn"),
            _ => text.push_str(row.trim_end()),
        }
        text.push('\n');
    }
    Ok(text)
}

/// The listings were formatted here: the real tool has to agree with the last one.
fn compare_listing(ours: &str) -> Result<()> {
    let theirs = output("ipvsadm", ["-Ln", "--nosort"])?;
    let squeeze = |text: &str| -> Vec<String> {
        text.lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    if squeeze(ours) != squeeze(&theirs) {
        bail!("our listing differs from `ipvsadm -Ln --nosort`:\n{ours}\n{theirs}");
    }
    Ok(())
}
