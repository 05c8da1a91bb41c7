//! What must hold of every run: closed forms, conservation, and that a seed means the same everywhere.

use std::fmt::Write as _;

use ipvs_model::kernel::Kernel;
use ipvs_model::time::{Clock, Instant, Span};
use ipvs_sim::engine::story::StoriesOf;
use ipvs_sim::engine::trace::TraceOptions;
use ipvs_sim::engine::{RunResult, run, run_checked};
use ipvs_sim::explain;
use ipvs_sim::outcome::{Outcome, RunSummary, SecondCounts};
use ipvs_sim::scenario::Scenario;
use proptest::prelude::*;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;

fn parse(text: &str) -> Scenario {
    let loaded = Scenario::parse(text, "a test");
    loaded
        .unwrap_or_else(|found| panic!("{}\n{text}", found.render(false)))
        .scenario
}

fn plain(scenario: &Scenario, seed: u64) -> RunSummary {
    run(scenario, seed, &TraceOptions::default())
        .unwrap()
        .summary
}

// Erlang B.

/// The share of arrivals that a system of `servers` without a queue turns away, for `load` erlangs of Poisson
/// arrivals and any distribution of the holding time.
fn erlang_b(load: f64, servers: u32) -> f64 {
    (1..=servers).fold(1.0, |blocked, n| {
        load * blocked / (f64::from(n) + load * blocked)
    })
}

/// The mean time from connect() to the end of TIME_WAIT, in seconds: the ways of the handshake, request, answer and
/// FINs, the service, and TIME_WAIT with its timer's lateness, averaged over the phases of the wheel.
fn mean_holding(clock: &Clock) -> f64 {
    const PHASES: u64 = 1 << 15;
    let armed = clock.ticks(60);
    let start = clock.jiffies(Instant::ZERO);
    let ticks: u64 = (0..PHASES)
        .map(|phase| {
            let now = start + phase;
            now.until(clock.fires(clock.deadline(now, armed), armed))
        })
        .sum();
    let one_way = 0.000_350;
    ticks as f64 / PHASES as f64 / f64::from(clock.hz()) + 6.0 * one_way + 0.001
}

/// Batches of a timeline: attempts and those without a port.
fn batches(timeline: &[SecondCounts], from: usize, seconds: usize) -> Vec<(f64, f64)> {
    timeline[from..]
        .chunks_exact(seconds)
        .map(|batch| {
            let attempts: u64 = batch.iter().map(|second| second.attempts).sum();
            let blocked: u64 = batch.iter().map(|second| second.ports_exhausted).sum();
            (attempts as f64, blocked as f64)
        })
        .collect()
}

/// A share with its standard error.
#[derive(Clone, Copy, Debug)]
struct Share {
    found: f64,
    error: f64,
    wanted: f64,
}

/// The share of connects without a port, of a client with `ports` ports that closes first, at `load` times the rate that
/// would keep all of them busy, and what Erlang's formula says.
fn blocked(ports: u32, load: f64, kernel: &str, hz: u32) -> Share {
    const WARMUP: usize = 400;
    const BATCH: usize = 500;
    let release: Kernel = kernel.parse().unwrap();
    let clock = Clock::new(hz, release.behaviours().timer_era(), Span::ZERO);
    let erlangs = load * f64::from(ports);
    let rate = erlangs / mean_holding(&clock);
    let scenario = parse(&format!(
        "duration = \"{}s\"\nwarmup = \"{WARMUP}s\"\n[node]\nkernel = \"5.15.100\"\n\
         [kube_proxy]\nversion = \"1.28.0\"\n\
         [[client]]\nkernel = \"{kernel}\"\nhz = {hz}\nports = {ports}\ncloses_first = \"client\"\n\
         arrivals = {{ poisson = {{ rate = {rate} }} }}\n[rollout.none]\n",
        WARMUP + 40 * BATCH,
    ));
    let summary = plain(&scenario, 11);
    assert_eq!(summary.failed(), 0);
    assert_eq!(summary.requests, summary.ended());
    let batches = batches(&summary.timeline, WARMUP, BATCH);
    let attempts: f64 = batches.iter().map(|batch| batch.0).sum();
    let blocked: f64 = batches.iter().map(|batch| batch.1).sum();
    let found = blocked / attempts;
    // The error of a ratio from its batches, which are eight holding times long.
    let count = batches.len() as f64;
    let residuals: f64 = batches.iter().map(|(n, k)| (k - found * n).powi(2)).sum();
    let error = (residuals / (count - 1.0) * count).sqrt() / attempts;
    Share {
        found,
        error,
        wanted: erlang_b(erlangs, ports),
    }
}

/// Source ports are a loss system: a connect() without a free port is refused at once and does not wait. With the client
/// closing first each port is held for the connection and its TIME_WAIT, so the share that is refused is Erlang's B,
/// whichever way the kernel chooses ports. Before 4.8 timers fire nearly to the tick; later ones round, which
/// hardly matters where ports are short all the time.
#[test]
fn port_exhaustion_under_poisson_arrivals_is_erlang_b() {
    let cases = [
        (100, 0.9, "4.4.100", 1000),
        (100, 1.5, "4.19.57", 1000),
        (200, 1.0, "4.4.100", 250),
        (200, 1.4, "6.12.117", 250),
        (500, 0.98, "4.4.100", 1000),
    ];
    cases.into_par_iter().for_each(|(ports, load, kernel, hz)| {
        let share = blocked(ports, load, kernel, hz);
        let off = (share.found - share.wanted).abs();
        assert!(
            off <= 4.0 * share.error,
            "{ports} ports, load {load}, {kernel} HZ {hz}: {share:.5?}"
        );
        assert!(
            share.error < 0.2 * share.wanted,
            "it decides nothing: {share:.5?}"
        );
    });
}

/// From 4.8 on the timers of TIME_WAIT fire in bursts, every 5.12 s at HZ 100: between two bursts no port comes free,
/// and near the limit more connects find none than Erlang's formula allows for, which lets ports go one by one.
#[test]
fn timers_that_fire_in_bursts_make_port_exhaustion_worse_than_erlang_b() {
    let share = blocked(500, 0.95, "6.12.117", 100);
    assert!(
        share.found > share.wanted + 4.0 * share.error,
        "{share:.5?}"
    );
}

// No reuse below the rate at which the ports come round after the entries have gone.

/// A sequential client on `ports` ports, half of which connect() prefers, whose ports come round every `cycle`
/// seconds, in a rollout.
fn sequential(kernel: &str, hz: u32, mode: u8, expire: u8, ports: u32, cycle: f64) -> Scenario {
    parse(&format!(
        "duration = \"500s\"\n[node]\nkernel = \"{kernel}\"\nhz = {hz}\n[node.sysctl]\n\
         \"net.ipv4.vs.conntrack\" = 1\n\"net.ipv4.vs.expire_nodest_conn\" = {expire}\n{}\n\
         [kube_proxy]\nversion = \"none\"\nendpoint_latency = \"0s\"\nsync_latency = \"0s\"\n\
         [[client]]\nkernel = \"4.19.57\"\nports = {ports}\narrivals = {{ constant = {{ rate = {} }} }}\n\
         [server]\naddress_gone_after = \"0s\"\n\
         [rollout.scripted]\nat = \"200s\"\nold_die_at = \"201s\"\n",
        if kernel.starts_with('3') {
            String::new()
        } else {
            format!("\"net.ipv4.vs.conn_reuse_mode\" = {mode}")
        },
        f64::from(ports / 2) / cycle,
    ))
}

/// How long an entry lives after the close of its connection, at most: TIME_WAIT with the timer's lateness, and a
/// second for the connection itself.
fn life(kernel: &str, hz: u32) -> f64 {
    let release: Kernel = kernel.parse().unwrap();
    let clock = Clock::new(hz, release.behaviours().timer_era(), Span::ZERO);
    let ticks = clock.ticks(120);
    let late = match clock.lateness_max(ticks) {
        // Slack moves the deadline itself, by at most 1/256.
        0 => ticks / 256,
        late => late,
    };
    121.0 + late as f64 / f64::from(hz)
}

const NODES: [&str; 7] = [
    "3.10.0-1160.el7.x86_64",
    "4.4.100",
    "4.19.57",
    "5.4.60",
    "5.7.14",
    "5.10.83",
    "6.12.117",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn below_the_rate_of_reuse_nothing_fails_and_nothing_is_late(
        node in prop::sample::select(NODES.to_vec()),
        hz in prop::sample::select(vec![100u32, 250, 1000]),
        mode in 0..=1u8,
        expire in 0..=1u8,
        ports in 50..=800u32,
        beyond in 1.01..2.0f64,
        seed in any::<u64>(),
    ) {
        let cycle = life(node, hz) * beyond;
        let summary = plain(&sequential(node, hz, mode, expire, ports, cycle), seed);
        prop_assert!(summary.requests > 30);
        prop_assert_eq!(summary.count(Outcome::Answered), summary.requests);
        prop_assert_eq!(summary.delayed_total(), 0);
    }
}

/// The same clients a little faster: the property above is not empty.
#[test]
fn above_the_rate_of_reuse_mode_0_fails_and_mode_1_is_late() {
    let cycle = 100.0;
    let failed = plain(&sequential("5.7.14", 250, 0, 1, 400, cycle), 1);
    assert!(failed.failed() > 100, "{failed:?}");
    let late = plain(&sequential("5.7.14", 250, 1, 1, 400, cycle), 1);
    assert_eq!(late.failed(), 0);
    assert!(late.delayed_total() > 100, "{late:?}");
}

// Conservation, invariants and determinism on random scenarios.

/// What a random scenario may have. A feature is there or not, then its values are drawn: so that scenarios differ
/// in kind, not only in numbers.
const FEATURES: u32 = 30;

/// A random scenario as TOML: bit n of `features` switches feature n on, `seed` draws the values.
fn swarm(features: u32, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let on = |feature: u32| features & (1 << feature) != 0;
    let mut of = |feature: u32, choices: &[&str], otherwise: &str| {
        let drawn = choices[rng.random_range(0..choices.len())];
        if on(feature) { drawn } else { otherwise }.to_owned()
    };
    let releases = [
        "3.10.0-1160.el7.x86_64",
        "4.1.52",
        "4.9.200",
        "4.14.100",
        "4.19.140",
        "5.4.59",
        "5.8.1",
        "5.10.84",
        "5.15.0",
        "6.1.192",
        "6.8.0",
        "6.12.117",
    ];
    let latencies = [
        "\"0s\"",
        "\"40ms\"",
        "{ uniform = [\"1us\", \"300ms\"] }",
        "{ exponential = \"20ms\" }",
    ];
    let mut text = String::new();
    let line = |text: String, out: &mut String| {
        let _ = writeln!(out, "{text}");
    };
    let out = &mut text;
    line(
        format!(
            "duration = {}",
            of(0, &["\"45s\"", "\"150s\"", "\"240s\""], "\"90s\"")
        ),
        out,
    );
    line(
        format!("warmup = {}", of(1, &["\"1s\"", "\"20s\""], "\"0s\"")),
        out,
    );
    line("[node]".to_owned(), out);
    line(format!("kernel = \"{}\"", of(2, &releases, "5.4.50")), out);
    line(
        format!("hz = {}", of(3, &["100", "300", "1000"], "250")),
        out,
    );
    line(
        format!("mode = {}", of(4, &["\"iptables\""], "\"ipvs\"")),
        out,
    );
    line("[node.sysctl]".to_owned(), out);
    let expire = of(5, &["0", "1"], "1");
    line(
        format!("\"net.ipv4.vs.expire_nodest_conn\" = {expire}"),
        out,
    );
    line(
        format!("\"net.ipv4.vs.conntrack\" = {}", of(6, &["0"], "1")),
        out,
    );
    line(
        format!(
            "\"net.netfilter.nf_conntrack_max\" = {}",
            of(7, &["40", "300"], "262144")
        ),
        out,
    );
    line(
        format!(
            "\"net.ipv4.vs.expire_quiescent_template\" = {}",
            of(8, &["0"], "1")
        ),
        out,
    );
    line("[kube_proxy]\nsets_sysctls = false".to_owned(), out);
    line(
        format!(
            "version = {}",
            of(
                9,
                &["\"1.11.0\"", "\"1.14.1\"", "\"1.28.0\"", "\"none\""],
                "\"1.17.0\""
            )
        ),
        out,
    );
    let schedulers = [
        "\"wrr\"", "\"lc\"", "\"wlc\"", "\"sed\"", "\"nq\"", "\"sh\"", "\"mh\"",
    ];
    line(
        format!("scheduler = {}", of(10, &schedulers, "\"rr\"")),
        out,
    );
    line(
        format!(
            "masquerade = {}",
            of(11, &["\"masquerade\"", "\"random-fully\""], "\"none\"")
        ),
        out,
    );
    line(
        format!("sync_latency = {}", of(12, &latencies, "\"10ms\"")),
        out,
    );
    line(
        format!(
            "check_period = {}",
            of(13, &["\"5s\"", "\"23s\""], "\"60s\"")
        ),
        out,
    );
    line("[service]".to_owned(), out);
    line(
        format!(
            "session_affinity = {}",
            of(14, &["\"3s\"", "\"60s\"", "\"10800s\""], "\"none\"")
        ),
        out,
    );
    for table in 0..if on(15) { 2 } else { 1 } {
        line("[[client]]".to_owned(), out);
        line(format!("address = \"10.23.{table}.1\""), out);
        line(format!("count = {}", of(16, &["2", "5"], "1")), out);
        line(format!("kernel = \"{}\"", of(17, &releases, "5.4.50")), out);
        line(format!("ports = {}", of(18, &["20", "90"], "300")), out);
        line(
            format!(
                "port_choice = {}",
                of(
                    19,
                    &["\"bind\"", "[2348]", "[700, 40000, 32769]"],
                    "\"connect\""
                )
            ),
            out,
        );
        line(format!("tcp_tw_reuse = {}", of(20, &["1"], "0")), out);
        line(
            format!("location = {}", of(21, &["\"pod\""], "\"remote\"")),
            out,
        );
        let arrivals = [
            "{ poisson = { rate = 15 } }",
            "{ closed = { concurrency = 7, think_time = \"90ms\" } }",
            "{ closed = { concurrency = 3 } }",
            "{ constant = { rate = 0.7 } }",
        ];
        let arrivals = of(22, &arrivals, "{ constant = { rate = 12 } }");
        // A closed loop without a pause is a load of its own: let it wait a little for its answers.
        line(format!("arrivals = {arrivals}"), out);
        line(
            format!("requests_per_connection = {}", of(23, &["2", "40"], "1")),
            out,
        );
        line(
            format!("closes_first = {}", of(24, &["\"client\""], "\"server\"")),
            out,
        );
        line(
            format!("timeout = {}", of(25, &["\"700ms\"", "\"none\""], "\"5s\"")),
            out,
        );
        line(
            format!(
                "connect_timeout = {}",
                of(26, &["\"200ms\"", "\"3s\""], "\"none\"")
            ),
            out,
        );
    }
    line("[server]".to_owned(), out);
    let ends = [
        "\"unreachable\"",
        "\"arp-failure\"",
        "\"reset\"",
        "{ reassigned = { after = \"5s\", port = \"open\" } }",
        "{ reassigned = { after = \"1s\", port = \"closed\" } }",
    ];
    line(
        format!("dead_end = {}", of(27, &ends, "\"blackhole\"")),
        out,
    );
    line(
        format!(
            "service_time = {}",
            of(28, &["\"2s\"", "{ exponential = \"300ms\" }"], "\"30ms\"")
        ),
        out,
    );
    let rollouts = [
        "[rollout.none]\npods = 1",
        "[rollout.scale]\nat = \"20s\"\nfrom = 1\nto = 4",
        "[rollout.scale]\nat = \"20s\"\nfrom = 3\nto = 0\nkilled_after = \"9s\"",
        "[rollout.scripted]\nat = \"21s\"\nold_die_at = \"22s\"\nold_pods = 3\nnew_pods = 2",
        "[rollout.deployment]\nstart = \"10s\"\nreplicas = 3\non_sigterm = \"drains\"\npre_stop = \"3s\"",
        "[rollout.deployment]\nstart = \"10s\"\nreplicas = 1\non_sigterm = \"ignores\"\npre_stop = \"0s\"",
    ];
    line(
        of(
            29,
            &rollouts,
            "[rollout.scripted]\nat = \"20s\"\nold_die_at = \"30s\"",
        ),
        out,
    );
    text
}

/// Every request ends in exactly one outcome, and every failure has exactly one cause.
fn assert_conserved(summary: &RunSummary) {
    assert_eq!(summary.outcomes.iter().sum::<u64>(), summary.requests);
    assert_eq!(summary.causes.iter().sum::<u64>(), summary.failed());
    let sum = |count: fn(&SecondCounts) -> u64| summary.timeline.iter().map(count).sum::<u64>();
    assert_eq!(sum(|second| second.attempts), summary.requests);
    assert_eq!(
        sum(|second| second.answered),
        summary.count(Outcome::Answered)
    );
    assert_eq!(sum(|second| second.failed), summary.failed());
    assert_eq!(
        sum(|second| second.ports_exhausted),
        summary.count(Outcome::PortsExhausted)
    );
    assert_eq!(sum(|second| second.delayed), summary.delayed_total());
}

/// So many stories a run are enough to look at.
const STORIES_MAX: usize = 20_000;

fn observed() -> TraceOptions {
    TraceOptions {
        pins: true,
        sample_every: Some(Span::from_millis(1_700)),
        tables_at: vec![Instant::from_secs(21), Instant::from_secs(40)],
        requests_max: 1_000_000,
        attempts: true,
        stories: StoriesOf::Troubled(STORIES_MAX),
        ..TraceOptions::default()
    }
}

/// Each attempt of the trace once, and the counts of the trace those of the summary.
fn assert_traced(result: &RunResult) {
    let ended = result.summary.requests - result.summary.count(Outcome::Unfinished);
    assert_eq!(result.trace.attempts.len() as u64, ended);
    for outcome in Outcome::ALL {
        if outcome != Outcome::Unfinished {
            let found = result
                .trace
                .attempts
                .iter()
                .filter(|attempt| attempt.outcome == outcome);
            assert_eq!(
                found.count() as u64,
                result.summary.count(outcome),
                "{outcome:?}"
            );
        }
    }
    for attempt in &result.trace.attempts {
        assert!(attempt.start <= attempt.end);
    }
}

/// Every request that failed, was late or found no port has a causal chain, from a root to what the client saw.
fn assert_explained(result: &RunResult, scenario: &Scenario) {
    let summary = &result.summary;
    let troubled =
        summary.failed() + summary.delayed_total() + summary.count(Outcome::PortsExhausted);
    assert_eq!(
        result.trace.stories.len() as u64,
        troubled.min(STORIES_MAX as u64)
    );
    for story in &result.trace.stories {
        let chain = explain::of(story, &result.trace.events, scenario);
        if let Err(what) = chain.check() {
            panic!("{what}: {story:?}\n{chain:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// No random scenario panics, loses a request, unbalances a counter or leaves an entry without a future; nor
    /// does it matter who looks on.
    #[test]
    fn random_scenarios_keep_the_invariants(
        features in 0..1u32 << FEATURES,
        values in any::<u64>(),
        seed in any::<u64>(),
    ) {
        let text = swarm(features, values);
        let loaded = Scenario::parse(&text, "a random scenario");
        let scenario = match loaded {
            Ok(loaded) => loaded.scenario,
            Err(found) => panic!("{}\n{text}", found.render(false)),
        };
        let unobserved = match run_checked(&scenario, seed, &TraceOptions::default(), 37) {
            Ok(result) => result,
            Err(what) => panic!("{what}\n{text}"),
        };
        assert_conserved(&unobserved.summary);
        let result = run(&scenario, seed, &observed()).unwrap();
        assert_traced(&result);
        assert_explained(&result, &scenario);
        let mut summary = result.summary;
        // Looking on takes events of its own and changes nothing else.
        summary.events = unobserved.summary.events;
        prop_assert_eq!(summary, unobserved.summary, "{}", text);
    }
}

/// The same seeds give the same bytes, traces included, whether one thread works or eight.
#[test]
fn a_seed_means_the_same_on_one_thread_and_on_eight() {
    let scenarios: Vec<Scenario> = (0..6u32)
        .map(|n| parse(&swarm(n.wrapping_mul(0x9e37_79b9) >> 2, u64::from(n))))
        .collect();
    let all = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let jobs: Vec<(usize, u64)> = (0..scenarios.len())
            .flat_map(|scenario| (0..3).map(move |seed| (scenario, seed)))
            .collect();
        pool.install(|| {
            jobs.into_par_iter()
                .map(|(at, seed)| format!("{:?}", run(&scenarios[at], seed, &observed()).unwrap()))
                .collect::<Vec<String>>()
        })
    };
    let (one, eight) = (all(1), all(8));
    assert!(one == eight);
    // And another seed is another run, where anything is left to chance.
    assert!(one.windows(2).any(|pair| pair[0] != pair[1]));
}
