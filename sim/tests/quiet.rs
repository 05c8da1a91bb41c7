//! The proof of the quiet path: over random scenarios, every count, every request, every sample of the real servers and
//! every table at every look are, to the bit, those of the packet path.
//!
//! Scenarios are drawn feature by feature, so that each mixture of load, ports, delays, kernels, schedulers and rollouts
//! comes up, also those in which the quiet path must step aside: tables near their limit, ports that come round early,
//! pods that drain, control events in the middle of connections, events that tie to the nanosecond.

use std::fmt::Write as _;

use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::TraceOptions;
use ipvs_sim::engine::{RunResult, run, run_checked};
use ipvs_sim::outcome::RunSummary;
use ipvs_sim::scenario::Scenario;
use proptest::prelude::*;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// A scenario of 30 to 140 s with a few hundred to some thousand requests.
fn scenario_text(number: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let mut text = String::new();
    let seconds = rng.random_range(30..=140);
    let one_of = |rng: &mut ChaCha8Rng, all: &[&str]| (*all.choose(rng).unwrap()).to_owned();
    let warmup = one_of(&mut rng, &["0s", "0s", "5s"]);
    let _ = writeln!(text, "duration = \"{seconds}s\"\nwarmup = \"{warmup}\"");
    let kernels = [
        "4.19.57", "4.19.57", "5.15.100", "6.1.192", "6.12.117", "5.4.10", "4.4.100",
    ];
    let _ = writeln!(text, "[node]\nkernel = \"{}\"", one_of(&mut rng, &kernels));
    let _ = writeln!(
        text,
        "hz = {}",
        one_of(&mut rng, &["250", "250", "1000", "100"])
    );
    let _ = writeln!(
        text,
        "uptime = \"{}\"",
        one_of(&mut rng, &["random", "random", "0s", "77s"])
    );
    let mode = rng.random_range(0..=1);
    let expire = rng.random_range(0..=1);
    let _ = writeln!(
        text,
        "sysctl = {{ \"net.ipv4.vs.conn_reuse_mode\" = {mode}, \"net.ipv4.vs.expire_nodest_conn\" = {expire}"
    );
    let text_end = text.trim_end().len();
    text.truncate(text_end);
    if rng.random_bool(0.15) {
        let max = rng.random_range(200..9000);
        let _ = write!(text, ", \"net.netfilter.nf_conntrack_max\" = {max}");
    }
    if rng.random_bool(0.1) {
        text.push_str(", \"net.ipv4.vs.conntrack\" = 0");
    }
    text.push_str(" }\n");
    let schedulers = ["rr", "rr", "rr", "wrr", "sh", "mh", "lc", "wlc"];
    let _ = writeln!(
        text,
        "[kube_proxy]\nscheduler = \"{}\"",
        one_of(&mut rng, &schedulers)
    );
    if rng.random_bool(0.1) {
        text.push_str("masquerade = \"masquerade\"\n");
    }
    if rng.random_bool(0.1) {
        text.push_str("[service]\nsession_affinity = \"30s\"\n");
    }
    let delays = ["\"100us\"", "\"250us\"", "\"1ms\"", "\"0us\"", "\"333us\""];
    if rng.random_bool(0.5) {
        let client = one_of(&mut rng, &delays);
        let pod = one_of(&mut rng, &delays);
        let _ = writeln!(text, "[network]\nclient_node = {client}\nnode_pod = {pod}");
    }
    let services = [
        "\"1ms\"",
        "\"0ms\"",
        "\"20ms\"",
        "\"250ms\"",
        "{ exponential = \"3ms\" }",
    ];
    let _ = writeln!(
        text,
        "[server]\nservice_time = {}",
        one_of(&mut rng, &services)
    );
    let _ = writeln!(
        text,
        "dead_end = \"{}\"",
        one_of(
            &mut rng,
            &["blackhole", "unreachable", "arp-failure", "reset"]
        )
    );
    for _ in 0..one_of(&mut rng, &["1", "1", "1", "2"])
        .parse::<u32>()
        .unwrap()
    {
        client_table(&mut rng, &mut text);
    }
    let third = seconds / 3;
    match rng.random_range(0..4) {
        0 => text.push_str("[rollout.none]\npods = 3\n"),
        1 => {
            let stop = one_of(
                &mut rng,
                &["{ exits = \"2s\" }", "\"drains\"", "\"ignores\""],
            );
            let _ = writeln!(
                text,
                "[rollout.deployment]\nstart = \"{third}s\"\npre_stop = \"3s\"\non_sigterm = {stop}"
            );
        }
        2 => {
            let _ = writeln!(
                text,
                "[rollout.scripted]\nat = \"{third}s\"\nold_die_at = \"{}s\"",
                third + 5
            );
        }
        _ => {
            let _ = writeln!(
                text,
                "[rollout.scale]\nat = \"{third}s\"\nfrom = 3\nto = {}",
                rng.random_range(1..=5)
            );
        }
    }
    text
}

/// One table of clients. Ports are so few, often, that they come round while somebody still remembers them.
fn client_table(rng: &mut ChaCha8Rng, text: &mut String) {
    let one_of = |rng: &mut ChaCha8Rng, all: &[&str]| (*all.choose(rng).unwrap()).to_owned();
    text.push_str("[[client]]\n");
    let _ = writeln!(text, "address = \"10.23.{}.1\"", rng.random_range(0..250));
    let _ = writeln!(text, "count = {}", one_of(rng, &["1", "1", "3", "20"]));
    let kernels = ["4.19.57", "4.19.57", "5.15.100", "6.12.117", "4.4.100"];
    let _ = writeln!(text, "kernel = \"{}\"", one_of(rng, &kernels));
    let _ = writeln!(
        text,
        "ports = {}",
        one_of(rng, &["28232", "2000", "700", "100"])
    );
    let _ = writeln!(
        text,
        "closes_first = \"{}\"",
        one_of(rng, &["client", "server"])
    );
    let _ = writeln!(
        text,
        "tcp_tw_reuse = {}",
        one_of(rng, &["0", "0", "1", "2"])
    );
    if rng.random_bool(0.1) {
        text.push_str("tcp_timestamps = false\n");
    }
    if rng.random_bool(0.1) {
        let _ = writeln!(text, "requests_per_connection = {}", rng.random_range(2..5));
    }
    if rng.random_bool(0.1) {
        text.push_str("port_choice = \"bind\"\n");
    }
    if rng.random_bool(0.1) {
        text.push_str("connect_timeout = \"500ms\"\n");
    }
    let rate = one_of(rng, &["7", "50", "100", "217.3"]);
    let arrivals = match rng.random_range(0..8) {
        0..4 => format!("{{ constant = {{ rate = {rate} }} }}"),
        4..7 => format!("{{ poisson = {{ rate = {rate} }} }}"),
        _ => "{ closed = { concurrency = 3, think_time = \"40ms\" } }".to_owned(),
    };
    let _ = writeln!(text, "arrivals = {arrivals}");
}

fn observed(scenario: &Scenario, no_quiet: bool) -> TraceOptions {
    let third = Span(scenario.duration.0 / 3);
    TraceOptions {
        sample_every: Some(Span(1_234_567_891)),
        tables_at: vec![
            Instant::ZERO + third,
            Instant::ZERO + third + third + Span(1_111_111),
            Instant::ZERO + scenario.duration,
        ],
        requests_max: 100_000,
        attempts: true,
        no_quiet,
        ..TraceOptions::default()
    }
}

/// Everything but the engine's own work.
fn counts(result: &RunResult) -> RunSummary {
    RunSummary {
        events: 0,
        ..result.summary.clone()
    }
}

/// Events that the quiet path saved, if both ways give the same.
fn same_both_ways(text: &str, seed: u64) -> Result<u64, TestCaseError> {
    let scenario = match Scenario::parse(text, "a test") {
        Ok(loaded) => loaded.scenario,
        Err(found) => {
            return Err(TestCaseError::reject(found.render(false)));
        }
    };
    let play = |no_quiet| run_checked(&scenario, seed, &observed(&scenario, no_quiet), 997);
    let (packets, quiet) = match (play(true), play(false)) {
        (Ok(packets), Ok(quiet)) => (packets, quiet),
        (Err(one), Err(other)) if one == other => return Err(TestCaseError::reject(one)),
        (one, other) => {
            let problem = [one.err(), other.err()];
            return Err(TestCaseError::fail(format!("{problem:?}\n{text}")));
        }
    };
    prop_assert_eq!(
        counts(&packets),
        counts(&quiet),
        "counts, seed {}\n{}",
        seed,
        text
    );
    let (one, other) = (&packets.trace, &quiet.trace);
    prop_assert!(
        one.attempts == other.attempts,
        "requests, seed {seed}\n{text}"
    );
    prop_assert!(one.servers == other.servers, "samples, seed {seed}\n{text}");
    prop_assert!(one.tables == other.tables, "tables, seed {seed}\n{text}");
    prop_assert!(
        one.troubled == other.troubled,
        "troubled, seed {seed}\n{text}"
    );
    prop_assert!(one.events == other.events, "timeline, seed {seed}\n{text}");
    let unseen = TraceOptions::default();
    let unseen = run(&scenario, seed, &unseen).map_err(TestCaseError::fail)?;
    prop_assert_eq!(
        counts(&packets),
        counts(&unseen),
        "unseen, seed {}\n{}",
        seed,
        text
    );
    let sampled = TraceOptions {
        sample_every: Some(Span::from_secs(5)),
        ..TraceOptions::default()
    };
    let sampled = run(&scenario, seed, &sampled).map_err(TestCaseError::fail)?;
    prop_assert_eq!(
        counts(&packets),
        counts(&sampled),
        "sampled, seed {}\n{}",
        seed,
        text
    );
    Ok(packets.summary.events - unseen.summary.events.min(packets.summary.events))
}

/// How many random scenarios a run of the tests plays; QUIET_CASES sets another number.
fn cases() -> u32 {
    let wanted = std::env::var("QUIET_CASES").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(), failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default()
    })]

    #[test]
    fn the_quiet_path_gives_what_the_packet_path_gives(number in any::<u64>(), seed in any::<u64>()) {
        same_both_ways(&scenario_text(number), seed)?;
    }
}

/// It must also be taken: a path that is never taken is trivially right.
#[test]
fn healthy_connections_are_quiet() {
    // All ports of twelve clients are more than one host has room for in TIME_WAIT, but each has its own.
    for (side, clients) in [("client", 1), ("server", 1), ("client", 12)] {
        let text = format!(
            "duration = \"150s\"\n[rollout.none]\n[[client]]\ncount = {clients}\nports = 28000\n\
             closes_first = \"{side}\"\narrivals = {{ poisson = {{ rate = 100 }} }}\n"
        );
        let saved = same_both_ways(&text, 5).unwrap();
        let requests = 150 * 100;
        assert!(
            saved > 22 * requests,
            "{side} closes first, {clients} clients: only {saved} events were saved over some {requests} requests"
        );
    }
}

/// Requests whose first SYN was dropped in the last second: they send it again, and end, after the load has ended.
#[test]
fn a_syn_that_is_sent_again_after_the_end_ends_its_request() {
    let text = "duration = \"60s\"\n[rollout.none]\n[node]\nkernel = \"4.19.57\"\n\
                sysctl = { \"net.ipv4.vs.conn_reuse_mode\" = 1, \"net.ipv4.vs.conntrack\" = 1 }\n[[client]]\nports = 80\n\
                arrivals = { constant = { rate = 4 } }\n";
    same_both_ways(text, 1).unwrap();
    let scenario = Scenario::parse(text, "a test").unwrap().scenario;
    let unseen = run(&scenario, 1, &TraceOptions::default()).unwrap();
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    assert_eq!(
        sum(&unseen.summary.outcomes),
        240,
        "every request has ended"
    );
    assert!(sum(&unseen.summary.delayed) > 100, "{:?}", unseen.summary);
}

/// Scenarios that once told the paths apart: SYNs, or timers, of one nanosecond had another order.
#[test]
fn scenarios_that_once_differed_are_the_same() {
    for (number, seed) in [
        (12_595_145_934_185_985_602, 5_319_376_797_313_795_293),
        (5_182_837_054_665_717_317, 10_992_716_886_262_172_960),
        (12_942_476_678_723_262_745, 7_893_143_206_580_290_497),
        (14_324_602_346_094_908_206, 2_664_228_798_781_810_885),
        (1_559_005_723_988_009_466, 996_886_301_691_070_486),
    ] {
        same_both_ways(&scenario_text(number), seed).unwrap();
    }
}
