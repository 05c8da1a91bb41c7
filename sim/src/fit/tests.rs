//! Recordings with known inputs, fitted back.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipvs_model::segment::{Flags, Segment, Tuple};
use ipvs_model::time::{Instant, Span};

use super::*;
use crate::capture::{Stamp, write as files};
use crate::engine::{self, trace::TraceOptions};
use crate::import::{self, Ask};
use crate::scenario::annotate::{self, Origin};
use crate::scenario::{
    Arrivals, DataPlane, DeadEnd, Document, Masquerade, PortChoice, Rollout, Scheduler, Side,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fitted(path: &Path) -> Result<Fitted, FitError> {
    fit(&Capture::open(path).unwrap(), &Options::default())
}

/// The scenario survives being written and read, which is what `sim scenario check` does.
fn read_back(fitted: &Fitted) -> String {
    let text = annotate::to_toml(&fitted.scenario, &fitted.notes, &fitted.remarks);
    let back = Scenario::parse(&text, "fitted").unwrap_or_else(|e| panic!("{text}\n{e}"));
    assert_eq!(back.scenario, fitted.scenario, "{text}");
    text
}

fn rate(fitted: &Fitted, client: usize) -> (f64, &'static str) {
    match &fitted.scenario.client[client].arrivals {
        Arrivals::Constant(rate) => (rate.rate, "constant"),
        Arrivals::Poisson(rate) => (rate.rate, "poisson"),
        Arrivals::Closed(_) => panic!("no recording shows a closed loop"),
    }
}

fn near(found: f64, truth: f64, share: f64) -> bool {
    (found - truth).abs() <= truth * share
}

/// From the founding log alone: the service, the scheduler of its twin, whom the pods see, mode 0 from SYNs to pods that
/// are in no rule, and the rate from the port that came round.
#[test]
fn the_founding_log_tells_more_than_it_seems() {
    let found = fitted(&root().join("captures/founding-case")).unwrap();
    let text = read_back(&found);
    let scenario = &found.scenario;
    assert_eq!(scenario.service.address.to_string(), "10.20.79.226:31199");
    assert_eq!(scenario.service.target_port, 80);
    assert_eq!(scenario.kube_proxy.scheduler, Scheduler::Rr);
    assert_eq!(scenario.kube_proxy.masquerade, Masquerade::None);
    assert_eq!(scenario.node.mode, DataPlane::Ipvs);
    assert_eq!(
        scenario.node.sysctl.0,
        [("net.ipv4.vs.conn_reuse_mode".to_owned(), "0".to_owned())]
    );
    assert_eq!(found.kept.to_drained, 3, "{:?}", found.kept);
    assert_eq!(scenario.server.old_address, Ipv4Addr::new(10, 27, 1, 248));
    assert_eq!(scenario.server.dead_end, DeadEnd::Blackhole);
    assert_eq!(
        found.notes.get("server.dead_end").unwrap().origin,
        Origin::Derived
    );
    let [client] = &scenario.client[..] else {
        panic!("{text}");
    };
    assert_eq!(client.address, Ipv4Addr::new(10, 23, 31, 87));
    // 62 to 64 s (facts, founding case: 17:57:22 to 17:58:26, give or take a second) and 14,116 even ports.
    let (per_s, _) = rate(&found, 0);
    assert!(
        (14_116.0 / 65.0..=14_116.0 / 61.0).contains(&per_s),
        "{text}"
    );
    assert_eq!(
        found.notes.get("client.0.arrivals").unwrap().origin,
        Origin::Derived
    );
    assert_eq!(
        found.notes.get("node.kernel").unwrap().origin,
        Origin::Assumed
    );
    assert!(
        matches!(scenario.rollout, Rollout::Deployment(d) if d.replicas == 2),
        "{text}"
    );
    assert!(
        text.contains("100.97.130.6"),
        "who is left out is named: {text}"
    );
}

#[test]
fn objects_of_the_cluster_go_over_a_fit_and_measured_values_stay() {
    let found = fitted(&root().join("captures/founding-case")).unwrap();
    let path = root().join("scenarios/founding-case.k8s.yaml");
    let source = crate::diag::Source {
        name: "founding-case.k8s.yaml".to_owned(),
        text: fs::read_to_string(path).unwrap(),
    };
    let ask = Ask {
        address: Some(found.scenario.service.address),
        ..Ask::default()
    };
    let (imported, warnings) = import::import(vec![source], &ask).unwrap();
    assert!(warnings.is_empty(), "{warnings}");
    let both = combine(found, &imported);
    let text = read_back(&both);
    let scenario = &both.scenario;
    let Rollout::Deployment(rollout) = scenario.rollout else {
        panic!("{text}");
    };
    assert_eq!(
        (rollout.replicas, rollout.pre_stop),
        (2, Span::from_secs(20))
    );
    assert_eq!(rollout.readiness.failure_threshold, 5);
    assert_eq!(scenario.name, "vts-test");
    assert_eq!(
        scenario.node.sysctl.0.len(),
        1,
        "the node is the recording's"
    );
    assert_eq!(
        both.notes.get("kube_proxy.masquerade").unwrap().origin,
        Origin::Measured
    );
    assert!(
        !text.contains("made up"),
        "the pods are in the rules: {text}"
    );
}

/// Writes the tables of a run, a listing a second, as `sim record` would have.
fn recorded_run(toml: &str, from_s: u64, listings: u64) -> (tempfile::TempDir, Scenario) {
    let scenario = Document::parse(toml, "test")
        .unwrap()
        .resolve()
        .unwrap()
        .scenario;
    let options = TraceOptions {
        tables_at: (0..listings)
            .map(|n| Instant::ZERO + Span::from_secs(from_s + n))
            .collect(),
        ..TraceOptions::default()
    };
    let run = engine::run(&scenario, 7, &options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut ipvs, mut conntrack, mut rules) = (String::new(), String::new(), String::new());
    for tables in &run.trace.tables {
        let head = format!("@ {}\n", Stamp(1_700_000_000_000_000_000 + tables.at.0));
        let _ = write!(ipvs, "{head}{}", tables.connections);
        let _ = write!(conntrack, "{head}{}", tables.conntrack);
        let _ = write!(rules, "{head}{}", tables.services);
    }
    let mut manifest = format!(
        "schema = 1\nkernel = \"{}\"\nhz = {}\n\n[sysctl]\n",
        scenario.node.kernel.release, scenario.node.hz.0
    );
    let sysctls = engine::node_sysctls(&scenario).unwrap();
    let _ = writeln!(
        manifest,
        "\"net.ipv4.vs.conn_reuse_mode\" = {}",
        sysctls.vs.conn_reuse_mode
    );
    let _ = writeln!(
        manifest,
        "\"net.ipv4.vs.conntrack\" = {}",
        u8::from(sysctls.vs.conntrack)
    );
    let _ = writeln!(
        manifest,
        "\"net.ipv4.vs.expire_nodest_conn\" = {}",
        u8::from(sysctls.vs.expire_nodest_conn)
    );
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    put("manifest.toml", &manifest);
    put("ipvs-conn.log", &ipvs);
    put("conntrack.log", &conntrack);
    put("rules.log", &rules);
    (dir, scenario)
}

#[test]
fn tables_of_a_run_are_fitted_back() {
    struct Case {
        toml: &'static str,
        kind: &'static str,
        rates: &'static [f64],
        ports: &'static str,
        choice: PortChoice,
    }
    let cases = [
        // A port comes round after 25 s: who closes first is told by that.
        Case {
            toml: "duration = \"150s\"\nrollout = { none = { pods = 3 } }\nkube_proxy = { scheduler = \"wlc\", masquerade = \"none\" }\n\
                   client = [{ ports = 1000, arrivals = { constant = { rate = 40 } } }]\n",
            kind: "constant",
            rates: &[40.0],
            ports: "32768-33767",
            choice: PortChoice::Connect,
        },
        // Random arrivals, ports of bind() over the whole range, two hosts, masquerading, mode 1.
        Case {
            toml: "duration = \"150s\"\nrollout = { none = { pods = 2 } }\nkube_proxy = { scheduler = \"rr\", masquerade = \"masquerade\" }\n\
                   node = { kernel = \"5.15.6\", sysctl = { \"net.ipv4.vs.conn_reuse_mode\" = 1 } }\n\
                   client = [{ address = \"10.23.31.90\", port_choice = \"bind\", arrivals = { poisson = { rate = 60 } } }, \
                   { address = \"10.23.31.80\", port_choice = \"bind\", arrivals = { poisson = { rate = 30 } } }]\n",
            kind: "poisson",
            rates: &[60.0, 30.0],
            ports: "32768-60999",
            choice: PortChoice::Bind,
        },
    ];
    for case in cases {
        let (dir, truth) = recorded_run(case.toml, 100, 41);
        let found = fitted(dir.path()).unwrap();
        let text = read_back(&found);
        let scenario = &found.scenario;
        assert_eq!(scenario.node.kernel, truth.node.kernel, "{text}");
        assert_eq!(
            scenario.kube_proxy.scheduler, truth.kube_proxy.scheduler,
            "{text}"
        );
        assert_eq!(
            scenario.kube_proxy.masquerade, truth.kube_proxy.masquerade,
            "{text}"
        );
        assert_eq!(
            engine::node_sysctls(scenario),
            engine::node_sysctls(&truth),
            "{text}"
        );
        assert_eq!(
            scenario.server.old_address, truth.server.old_address,
            "{text}"
        );
        assert_eq!(
            scenario.rollout.old_pods(),
            truth.rollout.old_pods(),
            "{text}"
        );
        assert_eq!(scenario.client.len(), case.rates.len(), "{text}");
        for (index, truth_rate) in case.rates.iter().enumerate() {
            let (per_s, kind) = rate(&found, index);
            // 40 s of Poisson arrivals at 30/s are known to 1.96 / sqrt(1200), 5.7 %.
            let within = if case.kind == "poisson" { 0.057 } else { 0.02 };
            assert!(
                near(per_s, *truth_rate, within),
                "{per_s} for {truth_rate}: {text}"
            );
            assert_eq!(kind, case.kind, "{text}");
            let ports = scenario.client[index].ports.0.unwrap();
            assert_eq!(
                format!("{}-{}", ports.low, ports.high),
                case.ports,
                "{text}"
            );
            assert_eq!(scenario.client[index].port_choice, case.choice, "{text}");
            assert_eq!(scenario.client[index].closes_first, Side::Server, "{text}");
        }
    }
}

/// A single listing shows the last two minutes, too.
#[test]
fn one_listing_is_enough_for_a_rate() {
    let toml = "duration = \"150s\"\nrollout = { none = { pods = 2 } }\nclient = [{ arrivals = { constant = { rate = 30 } } }]\n";
    let (dir, _) = recorded_run(toml, 140, 1);
    let found = fitted(dir.path()).unwrap();
    let (per_s, _) = rate(&found, 0);
    assert!(near(per_s, 30.0, 0.03), "{per_s}");
}

/// Packets as a node sees them, before and after translation.
struct Pcap {
    bytes: Vec<(u64, Vec<u8>)>,
}

const START_US: u64 = 1_700_000_000_000_000;
const CLIENT_MS: u64 = 2;
const POD_MS: u64 = 1;
const WORK_MS: u64 = 5;

impl Pcap {
    fn put(&mut self, at_us: u64, ends: (&str, &str), flags: Flags, numbers: (u32, u32), len: u16) {
        let (src, dst) = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
        let mut segment = Segment::new(Tuple::tcp(src, dst), flags);
        (segment.seq, segment.ack, segment.len) = (numbers.0, numbers.1, len);
        self.bytes.push((at_us, files::ipv4_bytes(&segment, 64, 1)));
    }

    /// One connection that begins at `at_ms`; `None` for a pod that does not answer.
    fn connection(&mut self, at_ms: u64, client: &str, pod: Option<&str>, first: Side) {
        self.working(at_ms, client, pod, first, WORK_MS);
    }

    /// The same with the time that the pod takes for its answer, to the moment when the client lets go of it.
    fn working(
        &mut self,
        at_ms: u64,
        client: &str,
        pod: Option<&str>,
        first: Side,
        work_ms: u64,
    ) -> u64 {
        let virt = "10.20.79.226:31199";
        let us = |ms: u64| START_US + (at_ms + ms) * 1_000;
        let ack = Flags::ACK;
        let isn = u32::try_from(at_ms * 7).unwrap();
        let real = pod.unwrap_or("10.27.1.12:80");
        let (up, down) = ((client, virt), (virt, client));
        self.put(us(0), up, Flags::SYN, (isn, 0), 0);
        self.put(us(0) + 20, (client, real), Flags::SYN, (isn, 0), 0);
        if pod.is_none() {
            self.put(us(1_000), up, Flags::SYN, (isn, 0), 0);
            return at_ms;
        }
        let server = isn.wrapping_add(1_000_000);
        let answered = 2 * POD_MS;
        self.put(
            us(answered),
            down,
            Flags::SYN.with(ack),
            (server, isn + 1),
            0,
        );
        let open = answered + 2 * CLIENT_MS;
        self.put(us(open), up, ack, (isn + 1, server + 1), 0);
        self.put(us(open), up, ack, (isn + 1, server + 1), 80);
        let done = open + 2 * POD_MS + work_ms;
        self.put(us(done), down, ack, (server + 1, isn + 81), 850);
        let fin = Flags::FIN.with(ack);
        let (a, b) = (isn + 81, server + 851);
        let later = done + 2 * CLIENT_MS;
        match first {
            Side::Server => {
                self.put(us(done), down, fin, (b, a), 0);
                self.put(us(later), up, fin, (a, b + 1), 0);
            }
            Side::Client => {
                self.put(us(later), up, fin, (a, b), 0);
                self.put(us(later + 2 * POD_MS), down, fin, (b, a + 1), 0);
            }
        }
        at_ms + later
    }

    fn save(mut self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.bytes.sort_by_key(|(at, _)| *at);
        let mut out = Vec::new();
        files::pcap_header(&mut out).unwrap();
        for (at, packet) in &self.bytes {
            files::pcap_packet(&mut out, Stamp(at * 1_000), packet).unwrap();
        }
        fs::write(dir.path().join("packets.pcap"), out).unwrap();
        let rules = format!(
            "@ {}\nIP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
             TCP  10.20.79.226:31199 rr\n  -> 10.27.1.10:80                Masq    1      0          0\n  -> 10.27.1.11:80                Masq    1      0          0\n",
            Stamp(START_US * 1_000)
        );
        fs::write(dir.path().join("rules.log"), rules).unwrap();
        fs::write(
            dir.path().join("manifest.toml"),
            "schema = 1\nkernel = \"6.12.117\"\n",
        )
        .unwrap();
        dir
    }
}

#[test]
fn packets_tell_rate_closing_latencies_and_what_answers_for_the_dead() {
    let mut pcap = Pcap { bytes: Vec::new() };
    // The server closes first, 25 a second, every second port in turn.
    for n in 0..500_u64 {
        let port = 32_768 + 2 * n;
        let pod = if n % 2 == 0 {
            "10.27.1.10:80"
        } else {
            "10.27.1.11:80"
        };
        pcap.connection(
            n * 40,
            &format!("10.23.31.87:{port}"),
            Some(pod),
            Side::Server,
        );
    }
    // Another, which closes first itself: ten ports, each again after two seconds; and a few that nobody answers.
    for n in 0..100_u64 {
        let port = 40_000 + n % 10;
        pcap.connection(
            3 + n * 200,
            &format!("10.23.31.99:{port}"),
            Some("10.27.1.10:80"),
            Side::Client,
        );
    }
    for n in 0..4_u64 {
        pcap.connection(
            5 + n * 100,
            &format!("10.23.31.87:{}", 50_001 + 2 * n),
            None,
            Side::Server,
        );
    }
    let dir = pcap.save();
    let found = fitted(dir.path()).unwrap();
    let text = read_back(&found);
    let [first, second] = &found.scenario.client[..] else {
        panic!("{text}");
    };
    assert!(near(rate(&found, 0).0, 504.0 / 19.96, 0.01), "{text}");
    assert!(near(rate(&found, 1).0, 5.0, 0.01), "{text}");
    assert_eq!(
        (first.closes_first, second.closes_first),
        (Side::Server, Side::Client),
        "{text}"
    );
    assert_eq!(
        (
            first.port_choice.clone(),
            first.request_bytes,
            first.response_bytes
        ),
        (PortChoice::Connect, 80, 850)
    );
    assert_eq!(found.scenario.server.dead_end, DeadEnd::Blackhole, "{text}");
    assert_eq!(
        (found.dead.silent, found.dead.packets()),
        (4, 4),
        "{:?}",
        found.dead
    );
    let ms = |span: Span| crate::scenario::Dist::Constant(span);
    assert_eq!(
        found.scenario.network.client_node,
        ms(Span::from_millis(CLIENT_MS)),
        "{text}"
    );
    assert_eq!(
        found.scenario.network.node_pod,
        ms(Span::from_millis(POD_MS)),
        "{text}"
    );
    assert_eq!(
        found.scenario.server.service_time,
        ms(Span::from_millis(WORK_MS)),
        "{text}"
    );
    let reuse = found
        .clients
        .iter()
        .find(|c| c.address.octets()[3] == 99)
        .unwrap()
        .reuse
        .unwrap();
    assert_eq!(reuse.count, 90, "{reuse:?}");
    assert!(reuse.max < Span::from_secs(2), "{reuse:?}");
}

/// Three workers, each of which opens its next connection when its last one has ended.
#[test]
fn a_closed_loop_is_told_from_packets() {
    let looped = |pause_ms: u64| {
        let mut pcap = Pcap { bytes: Vec::new() };
        for worker in 0..3_u64 {
            let mut at = worker * 7;
            for n in 0..100_u64 {
                let client = format!("10.23.31.87:{}", 32_768 + 2 * (3 * n + worker));
                let work = 5 + n * (worker + 3) % 17;
                let pod = Some("10.27.1.10:80");
                at = pcap.working(at, &client, pod, Side::Server, work) + pause_ms;
            }
        }
        let dir = pcap.save();
        let found = fitted(dir.path()).unwrap();
        (found.scenario.client[0].arrivals, read_back(&found))
    };
    for pause_ms in [0, 40] {
        let (arrivals, text) = looped(pause_ms);
        let Arrivals::Closed(found) = arrivals else {
            panic!("{text}");
        };
        assert_eq!(found.concurrency, 3, "{text}");
        let pause = crate::scenario::Dist::Constant(Span::from_millis(pause_ms));
        assert_eq!(found.think_time, pause, "{text}");
    }
}

/// Every recording of the lab is fitted, or says why not; kernel, scheduler and sysctls are those of its manifest.
#[test]
fn recordings_of_the_lab_are_fitted() {
    let mut fitted_count = 0;
    for folder in ["captures", "captures/kernels"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix("linux-") else {
                continue;
            };
            let found = match fitted(&path) {
                Ok(found) => found,
                Err(FitError::Empty(why)) => {
                    assert!(why.contains("sim record"), "{name}: {why}");
                    continue;
                }
                Err(FitError::Read(error)) => panic!("{name}: {error}"),
            };
            let text = read_back(&found);
            fitted_count += 1;
            let words = rest.split('-').collect::<Vec<_>>();
            assert_eq!(found.scenario.node.kernel.release, words[0], "{name}");
            let scheduler = found.notes.get("kube_proxy.scheduler").unwrap();
            if !name.contains("two") && scheduler.origin == Origin::Measured {
                let line = format!("scheduler = \"{}\"", words[3]);
                assert!(text.contains(&line), "{name}: {text}");
            }
            let sysctls = engine::node_sysctls(&found.scenario).unwrap();
            assert_eq!(
                format!("mode{}", sysctls.vs.conn_reuse_mode),
                words[1],
                "{name}"
            );
            assert_eq!(
                format!("expire{}", u8::from(sysctls.vs.expire_nodest_conn)),
                words[2],
                "{name}"
            );
            assert_eq!(
                format!("ct{}", u8::from(sysctls.vs.conntrack)),
                words[4],
                "{name}"
            );
        }
    }
    assert!(
        fitted_count > 30,
        "only {fitted_count} recordings were fitted"
    );
}

#[test]
fn captures_that_show_nothing_say_what_to_record() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("manifest.toml"),
        "schema = 1\nkernel = \"6.1.0\"\n",
    )
    .unwrap();
    let error = fitted(dir.path()).unwrap_err().to_string();
    assert!(error.contains("sim record"), "{error}");
    let asked = Options {
        service: Some("10.0.0.1:80".parse().unwrap()),
        ..Options::default()
    };
    let founding = Capture::open(&root().join("captures/founding-case")).unwrap();
    let error = fit(&founding, &asked).unwrap_err().to_string();
    assert!(
        error.contains("knows no service 10.0.0.1:80; it has 10.20.79.226:31199"),
        "{error}"
    );
}
