//! Whole rollouts on real kernels against the model.
//!
//! `captures/rollouts-recorded` are the four that came with scenarios of their own (`scenarios/rollouts`);
//! `captures/rollouts` are our lab's, whose heads hold every parameter, so that a scenario is made from the head.
//!
//! What "the same shape" means for a rollout without chance: the counts of failures and of late connects
//! agree in every second within one attempt, and differ at all in at most [`SECONDS_APART`] of the 420.
//! A rollout that depends on the kernel's random choice of ports is one draw: it must be a plausible one of the
//! model's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use ipvs_model::time::Span;
use ipvs_sim::engine::run;
use ipvs_sim::engine::trace::TraceOptions;
use ipvs_sim::outcome::{DELAYED_AFTER, Outcome};
use ipvs_sim::scenario::Scenario;
use rayon::prelude::*;
use statrs::distribution::{ChiSquared, ContinuousCDF as _, StudentsT};

/// In so many seconds a rollout without chance may differ from the kernel's, by one attempt each.
const SECONDS_APART: usize = 2;

/// What started in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Second {
    ok: u64,
    fail: u64,
    no_port: u64,
    slow: u64,
}

/// A recording, or a run of the model seen the same way.
#[derive(Clone, Debug, Default)]
struct Rollout {
    seconds: BTreeMap<u64, Second>,
    total: Second,
    /// Failures by their words.
    errors: BTreeMap<String, u64>,
    /// Entries of the old pods at each check, while any has some.
    entries: BTreeMap<u64, u64>,
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(word: &str) -> T {
    word.parse()
        .unwrap_or_else(|error| panic!("{word:?}: {error:?}"))
}

fn counts(words: &[&str]) -> Second {
    let count = |at: usize| number(words[at]);
    Second {
        ok: count(1),
        fail: count(3),
        no_port: count(5),
        slow: count(7),
    }
}

/// Reads a recording; the head's parameters come back as they stand there.
fn read(path: &str) -> (Rollout, BTreeMap<String, String>) {
    let text = std::fs::read_to_string(repository().join(path)).unwrap();
    let (mut found, mut head) = (Rollout::default(), BTreeMap::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["S", second, ..] => {
                found.seconds.insert(number(second), counts(&words[2..]));
            }
            ["TOTAL", ..] => found.total = counts(&words[1..]),
            ["F", _, _, ..] => *found.errors.entry(words[3..].join(" ")).or_default() += 1,
            ["#", "kernel", release, "HZ", hz] => {
                head.insert("kernel".to_owned(), release.to_owned());
                head.insert("hz".to_owned(), hz.to_owned());
            }
            ["#", at, _, "has", count, "entries"] => {
                let at: f64 = number(at);
                *found.entries.entry(at as u64).or_default() += number::<u64>(count);
            }
            ["#", key, "=", ..] => {
                head.insert(key.to_owned(), words[3..].join(" "));
            }
            _ => {}
        }
    }
    assert!(found.seconds.len() > 400, "{path} is no whole recording");
    (found, head)
}

/// The scenario of a recording of our lab. Every parameter of the head is used or checked here.
fn scenario_of(head: &BTreeMap<String, String>) -> Scenario {
    let mut head = head.clone();
    let mut take = |key: &str| {
        let value = head.remove(key);
        value.unwrap_or_else(|| panic!("the head has no {key}"))
    };
    let bit = |text: &str| u8::from(text == "true");
    let (kernel, hz) = (take("kernel"), take("hz"));
    let arrivals = match take("arrivals").as_str() {
        "\"const\"" => "constant",
        "\"poisson\"" => "poisson",
        other => panic!("arrivals {other}"),
    };
    let ports = take("ports").trim_matches(['[', ']']).replace(", ", "-");
    let masquerade = match take("masquerade").as_str() {
        "\"off\"" => "none",
        "\"plain\"" => "masquerade",
        "\"random-fully\"" => "random-fully",
        other => panic!("masquerade {other}"),
    };
    // To IPVS a blackhole route is a missing one like an unreachable one: it answers with ICMP.
    let dead_end = match take("dead_end").as_str() {
        "\"unreachable\"" | "\"blackhole\"" => "unreachable",
        "\"silent\"" => "blackhole",
        "\"gone\"" => "arp-failure",
        "\"reset\"" => "reset",
        other => panic!("dead_end {other}"),
    };
    assert_eq!(take("slow_s"), "0.5");
    let mut text = format!(
        "duration = \"{}s\"\n\
         [node]\nkernel = \"{kernel}\"\nhz = {hz}\nuptime = \"2001ms\"\naddress = \"10.27.1.1\"\n\
         [node.sysctl]\n\
         \"net.ipv4.vs.conntrack\" = {}\n\
         \"net.ipv4.vs.conn_reuse_mode\" = {}\n\
         \"net.ipv4.vs.expire_nodest_conn\" = {}\n\
         \"net.ipv4.vs.expire_quiescent_template\" = {}\n\
         [kube_proxy]\nversion = \"none\"\nscheduler = {}\nmasquerade = \"{masquerade}\"\n\
         endpoint_latency = \"0s\"\nsync_latency = \"0s\"\n\
         first_check = \"{}s\"\ncheck_period = \"{}s\"\n",
        take("duration_s"),
        bit(&take("conntrack")),
        take("conn_reuse_mode"),
        bit(&take("expire_nodest_conn")),
        bit(&take("expire_quiescent_template")),
        take("scheduler"),
        take("check_from_s"),
        take("check_every_s"),
    );
    write!(
        text,
        "[[client]]\nkernel = \"{kernel}\"\nhz = {hz}\nuptime = \"2001ms\"\nports = \"{ports}\"\n\
         location = \"pod\"\narrivals = {{ {arrivals} = {{ rate = {} }} }}\ncloses_first = {}\n\
         request_bytes = 1\nresponse_bytes = 1\ntimeout = \"{}s\"\n",
        take("rate"),
        take("closes_first"),
        take("app_timeout_s"),
    )
    .unwrap();
    write!(
        text,
        "[network]\nclient_node = \"10us\"\nnode_pod = \"10us\"\n\
         [server]\nkernel = \"{kernel}\"\nhz = {hz}\nuptime = \"2001ms\"\nold_address = \"10.27.1.10\"\n\
         service_time = \"0s\"\naddress_gone_after = \"0s\"\ndead_end = \"{dead_end}\"\n\
         [rollout.scripted]\nat = \"{}s\"\nold_die_at = \"{}s\"\nold_pods = {}\nnew_pods = {}\n",
        take("rollout_at_s"),
        take("death_at_s"),
        take("old_pods"),
        take("new_pods"),
    )
    .unwrap();
    // The seed of the lab's arrivals means nothing to the model.
    take("seed");
    let reuse = head.remove("tcp_tw_reuse");
    let affinity = head.remove("persistence");
    assert!(head.is_empty(), "parameters without a meaning: {head:?}");
    let mut scenario = parse(&text);
    if let Some(reuse) = reuse {
        scenario.client[0].tcp_tw_reuse.0 = Some(number(&reuse));
    }
    scenario.service.session_affinity = affinity.map(|secs| Span::from_secs(number(&secs)));
    scenario
}

fn parse(text: &str) -> Scenario {
    let loaded = Scenario::parse(text, "the scenario of a recording");
    loaded
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .scenario
}

fn load(name: &str) -> Scenario {
    let path = repository().join(format!("scenarios/rollouts/{name}.toml"));
    let loaded = Scenario::load(&path);
    loaded
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .scenario
}

/// One run of the model, counted as the lab counts.
fn play(scenario: &Scenario, seed: u64) -> Rollout {
    let options = TraceOptions {
        attempts: true,
        sample_every: Some(Span::from_secs(30)),
        ..TraceOptions::default()
    };
    let result = run(scenario, seed, &options).unwrap();
    let mut found = Rollout::default();
    for attempt in &result.trace.attempts {
        let slow = attempt.connect.is_some_and(|took| took > DELAYED_AFTER);
        let one = |what: bool| u64::from(what);
        let count = Second {
            ok: one(attempt.outcome == Outcome::Answered),
            fail: one(attempt.outcome.is_failure()),
            no_port: one(attempt.outcome == Outcome::PortsExhausted),
            slow: one(slow),
        };
        let start = attempt.start.as_secs();
        for sum in [found.seconds.entry(start).or_default(), &mut found.total] {
            sum.ok += count.ok;
            sum.fail += count.fail;
            sum.no_port += count.no_port;
            sum.slow += count.slow;
        }
        if count.fail == 1 {
            let words = attempt.outcome.key().to_owned();
            *found.errors.entry(words).or_default() += 1;
        }
    }
    let old = scenario.rollout.old_pods();
    let first = scenario.server.old_address.to_bits();
    for sample in &result.trace.servers {
        if sample.server.ip.to_bits() - first < old {
            let entries = found.entries.entry(sample.at.as_secs()).or_default();
            *entries += u64::from(sample.active + sample.inactive);
        }
    }
    found
}

fn play_all(scenario: &Scenario, seeds: u64) -> Vec<Rollout> {
    (0..seeds)
        .into_par_iter()
        .map(|seed| play(scenario, seed))
        .collect()
}

/// Holds a run to a recording without chance.
fn assert_same(name: &str, recorded: &Rollout, model: &Rollout) {
    let attempts = recorded.total.ok + recorded.total.fail;
    let within = |what: &str, a: u64, b: u64| {
        assert!(
            a.abs_diff(b) * 100 <= attempts,
            "{name}: {what}: kernel {a}, model {b} of {attempts}"
        );
    };
    within("answered", recorded.total.ok, model.total.ok);
    within("failed", recorded.total.fail, model.total.fail);
    within("slow", recorded.total.slow, model.total.slow);
    let mut apart = Vec::new();
    for (second, kernel) in &recorded.seconds {
        let model = model.seconds.get(second).copied().unwrap_or_default();
        let gap = kernel
            .fail
            .abs_diff(model.fail)
            .max(kernel.slow.abs_diff(model.slow));
        assert!(
            gap <= 1,
            "{name}, second {second}: kernel {kernel:?}, model {model:?}"
        );
        if gap > 0 {
            apart.push(second);
        }
    }
    assert!(
        apart.len() <= SECONDS_APART,
        "{name} differs in seconds {apart:?}"
    );
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

/// How far a recorded value lies from the model's mean, in units of what a single new draw deviates from a
/// mean of so many: about normal with deviation 1 if the model is right. `None` if the model knows no chance.
fn deviation(kernel: u64, model: &[Rollout], value: impl Fn(&Rollout) -> u64) -> Option<f64> {
    let values: Vec<f64> = model.iter().map(|run| value(run) as f64).collect();
    let (mean, deviation) = mean_and_deviation(&values);
    if deviation == 0.0 {
        return None;
    }
    let one_draw = deviation * (1.0 + 1.0 / values.len() as f64).sqrt();
    Some((kernel as f64 - mean) / one_draw)
}

/// The founding case in full on 5.7.14: after the old pods die every attempt fails, for ever.
#[test]
fn recorded_57_mode_0_agrees_second_by_second() {
    let (recorded, _) = read("captures/rollouts-recorded/57-m0-sf-c41.txt");
    for model in play_all(&load("57-m0-sf-c41"), 8) {
        assert_same("57-m0-sf-c41", &recorded, &model);
        // The ICMP of a first SYN finds connect() at work and is only remembered, so few attempts hear it; the
        // limit of errors a peer gives six at once and one a second after that.
        let kernel = recorded.errors["No route to host"];
        let model = model.errors["host_unreachable"];
        assert!(
            kernel.abs_diff(model) <= 2,
            "No route to host: kernel {kernel}, model {model}"
        );
    }
}

/// Before the fix of 5.9 each reused port lost its first SYN in mode 1: a second later, answered all the same.
#[test]
fn recorded_57_mode_1_agrees_second_by_second() {
    let (recorded, _) = read("captures/rollouts-recorded/57-m1-sf-c41.txt");
    for model in play_all(&load("57-m1-sf-c41"), 8) {
        assert_same("57-m1-sf-c41", &recorded, &model);
    }
}

/// From c95c07836fa4 on weight 0 is looked at in mode 0 too: nothing fails, whatever ports are chosen.
#[test]
fn recorded_612_with_expire_nodest_agrees_second_by_second() {
    let (recorded, _) = read("captures/rollouts-recorded/612-m0-en1-sf.txt");
    for model in play_all(&load("612-m0-en1-sf"), 8) {
        assert_same("612-m0-en1-sf", &recorded, &model);
    }
}

/// 6.12 chooses ports at random: the recording must lie in the middle 95 % of 200 seeds.
#[test]
fn recorded_612_without_expire_nodest_lies_in_the_prediction_interval() {
    let (recorded, _) = read("captures/rollouts-recorded/612-m0-en0-sf.txt");
    let model = play_all(&load("612-m0-en0-sf"), 200);
    let mut failed: Vec<u64> = model.iter().map(|run| run.total.fail).collect();
    failed.sort_unstable();
    // With 200 draws and one more, five ranks at each end hold less than 2.5 %.
    let interval = failed[5]..=failed[194];
    assert!(
        interval.contains(&recorded.total.fail),
        "kernel {}, model {interval:?}",
        recorded.total.fail
    );
    assert_eq!(recorded.total.slow, 0);
    assert!(
        model
            .iter()
            .all(|run| run.total.slow == 0 && run.total.no_port == 0)
    );
}

/// Those of our lab's recordings in which nothing that is counted depends on chance.
const CERTAIN: [&str; 10] = [
    "61-m0-en1-sf",
    "61-m1-en0-sf-reset",
    "61-m1-en1-cf",
    "612-m0-en1-sf",
    "612-m0-en1-sf-dead-at-once",
    "612-m0-en1-sf-wlc-3to2",
    "612-m1-en0-sf",
    "612-m1-en1-sf",
    "612-m1-en1-sf-persistent",
    "612-m1-en1-sf-persistent-quiescent0",
];

/// The others: they depend on ports that the kernel chooses at random.
const RANDOM: [&str; 13] = [
    "61-m0-en0-sf",
    "61-m0-en0-sf-poisson",
    "61-m0-en1-sf-sh",
    "612-m0-en0-cf",
    "612-m0-en0-cf-reuse1",
    "612-m0-en0-sf",
    "612-m0-en0-sf-blackhole",
    "612-m0-en0-sf-ct0",
    "612-m0-en0-sf-gone",
    "612-m0-en0-sf-random",
    "612-m0-en0-sf-reset",
    "612-m0-en0-sf-silent",
    "612-m0-en0-sf-slow",
];

#[test]
fn every_recording_of_the_lab_is_held_against_the_model() {
    let folder = std::fs::read_dir(repository().join("captures/rollouts")).unwrap();
    let mut found: Vec<String> = folder
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "txt"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut known: Vec<&str> = CERTAIN.iter().chain(&RANDOM).copied().collect();
    found.sort();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn lab_rollouts_without_chance_agree_second_by_second() {
    for name in CERTAIN {
        let (recorded, head) = read(&format!("captures/rollouts/{name}.txt"));
        for model in play_all(&scenario_of(&head), 4) {
            assert_same(name, &recorded, &model);
        }
    }
}

/// Each recording is one draw; all of them together may deviate from the model's draws as draws do. Both the
/// failures and the entries that the old pods still have at each check, which show how fast the table empties.
#[test]
fn lab_rollouts_with_chance_are_plausible_draws() {
    const SEEDS: u64 = 30;
    let student = StudentsT::new(0.0, 1.0, SEEDS as f64 - 1.0).unwrap();
    let mut failures = Vec::new();
    let mut entries = Vec::new();
    for name in RANDOM {
        let (recorded, head) = read(&format!("captures/rollouts/{name}.txt"));
        let model = play_all(&scenario_of(&head), SEEDS);
        let failed = deviation(recorded.total.fail, &model, |run| run.total.fail);
        failures.push((name, failed.expect("chance decides")));
        // Nothing about late connects is left to chance, and no recording ran out of ports.
        for run in &model {
            assert_eq!(recorded.total.slow, run.total.slow, "{name}: slow");
            assert_eq!(recorded.total.no_port, run.total.no_port, "{name}: no port");
        }
        for (at, count) in &recorded.entries {
            let at_check = |run: &Rollout| run.entries.get(at).copied().unwrap_or(0);
            entries.extend(deviation(*count, &model, at_check).map(|far| (name, far)));
        }
    }
    // One in a hundred sets of recordings has any value further out.
    for set in [&failures, &entries] {
        let limit = student.inverse_cdf(1.0 - 0.01 / 2.0 / set.len() as f64);
        for (name, far) in set {
            assert!(
                far.abs() <= limit,
                "{name} is {far:.2} deviations off, limit {limit:.2}: {set:.2?}"
            );
        }
    }
    // Nor do they lean to one side, or scatter too much, together.
    let count = failures.len() as f64;
    let lean = failures.iter().map(|(_, far)| far).sum::<f64>() / count.sqrt();
    let scatter = failures.iter().map(|(_, far)| far * far).sum::<f64>();
    let most = ChiSquared::new(count).unwrap().inverse_cdf(0.99);
    assert!(
        lean.abs() <= 2.58 && scatter <= most,
        "lean {lean:.2}, scatter {scatter:.1}: {failures:.2?}"
    );
}
