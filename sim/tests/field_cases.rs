//! Public reports with figures, as scenarios: what a report states, the model shows.
//!
//! The cases and their numbers are those of the field reports that the scenario files in `scenarios/field` name.
//! What no scenario can say (restarts of kube-proxy, `ipvsadm -d` by hand, two virtual services) is in
//! `model/tests/field_cases.rs`.

use std::path::PathBuf;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::{Attempt, ServerSample, TraceOptions};
use ipvs_sim::engine::{RunResult, run};
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::{
    Arrivals, DeadEnd, NewOwner, Rate, Reassigned, Rollout, Scenario, Scripted, Side,
};

/// The even ports of 32768-60999: what connect() prefers.
const EVEN_PORTS: u32 = 14_116;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scenarios/field")
}

fn load(name: &str) -> Scenario {
    let path = folder().join(format!("{name}.toml"));
    let loaded = Scenario::load(&path);
    loaded
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .scenario
}

fn on_kernel(mut scenario: Scenario, release: &str) -> Scenario {
    scenario.node.kernel = release.parse().unwrap();
    scenario
}

fn with(mut scenario: Scenario, sysctl: &str, value: u32) -> Scenario {
    let key = format!("net.{sysctl}");
    scenario.node.sysctl.0.retain(|(name, _)| *name != key);
    scenario.node.sysctl.0.push((key, value.to_string()));
    scenario
}

fn mode(scenario: Scenario, mode: u32) -> Scenario {
    with(scenario, "ipv4.vs.conn_reuse_mode", mode)
}

/// One request every so often.
fn every(mut scenario: Scenario, seconds: f64) -> Scenario {
    let rate = 1.0 / seconds;
    scenario.client[0].arrivals = Arrivals::Constant(Rate { rate });
    scenario
}

fn play(scenario: &Scenario) -> RunResult {
    let options = TraceOptions {
        sample_every: Some(Span::from_secs(1)),
        requests_max: usize::MAX,
        attempts: true,
        tables_at: vec![Instant::from_secs(119), Instant::from_secs(180)],
        ..TraceOptions::default()
    };
    let result = run(scenario, 1, &options).unwrap();
    assert_eq!(
        result.summary.outcomes.iter().sum::<u64>(),
        result.summary.requests
    );
    result
}

/// When something first happened to a pod or real server.
fn when(result: &RunResult, pod: Option<Endpoint>, what: &str) -> Option<Instant> {
    let mut events = result.trace.events.iter();
    events
        .find(|event| event.what == what && (pod.is_none() || event.pod == pod))
        .map(|event| event.at)
}

/// When something last happened.
fn last(result: &RunResult, what: &str) -> Instant {
    let events = result.trace.events.iter().rev();
    let found = events
        .filter(|event| event.what == what)
        .map(|event| event.at)
        .next();
    found.unwrap_or_else(|| panic!("never: {what}"))
}

fn begun(result: &RunResult, from: Instant, to: Instant) -> impl Iterator<Item = &Attempt> {
    let attempts = result.trace.attempts.iter();
    attempts.filter(move |attempt| attempt.start >= from && attempt.start < to)
}

fn share(attempts: &[&Attempt], is: impl Fn(&Attempt) -> bool) -> f64 {
    attempts.iter().filter(|attempt| is(attempt)).count() as f64 / attempts.len() as f64
}

fn outcomes(result: &RunResult) -> Vec<Outcome> {
    let mut attempts: Vec<&Attempt> = result.trace.attempts.iter().collect();
    attempts.sort_by_key(|attempt| attempt.start);
    attempts.iter().map(|attempt| attempt.outcome).collect()
}

fn samples(result: &RunResult, from: u64, to: u64) -> impl Iterator<Item = &ServerSample> {
    let range = Instant::from_secs(from)..Instant::from_secs(to);
    let servers = result.trace.servers.iter();
    servers.filter(move |sample| range.contains(&sample.at))
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

#[test]
fn every_field_scenario_is_good() {
    let mut count = 0;
    for file in std::fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        let loaded =
            Scenario::load(&path).unwrap_or_else(|found| panic!("{}", found.render(false)));
        assert!(!loaded.warnings.has_errors());
        assert_eq!(
            loaded.scenario.name,
            path.file_stem().unwrap().to_str().unwrap()
        );
        count += 1;
    }
    assert_eq!(count, 10);
}

/// F2: 14,116 entries (14,298 to 14,301 in the report, 98.7 % of which the even ports explain), the drained real
/// server keeps 98.3 % of them and is never removed, and from the pod's death on at least 98 % of connects fail.
#[test]
fn f02_a_saturated_pool_stays_on_the_drained_pod() {
    let result = play(&load("f02-saturated-pool"));
    let (old, new) = (endpoint("172.16.8.106:80"), endpoint("172.16.8.107:80"));
    let gone = last(&result, "address gone");
    let (from, to) = (gone + Span::from_secs(1), Instant::from_secs(300));
    let after: Vec<&Attempt> = begun(&result, from, to).collect();
    assert!(after.len() > 40_000);
    let failed = share(&after, |attempt| attempt.outcome.is_failure());
    assert!(failed >= 0.98, "{failed}");
    // To the very end: the load itself keeps them there.
    let end: Vec<&Attempt> = begun(&result, Instant::from_secs(290), to).collect();
    assert!(share(&end, |attempt| attempt.outcome.is_failure()) >= 0.98);
    let second = gone.as_secs();
    // Once the ports have gone round again.
    for at in second + 60..300 {
        let entries = |server| {
            let mut of = samples(&result, at, at + 1).filter(|sample| sample.server == server);
            of.next()
                .map_or(0, |sample| sample.active + sample.inactive)
        };
        let total = entries(old) + entries(new);
        assert!(
            (EVEN_PORTS..EVEN_PORTS * 102 / 100).contains(&total),
            "at {at}: {total}"
        );
        assert!(
            entries(old) * 100 >= total * 98,
            "at {at}: {} of {total}",
            entries(old)
        );
    }
    assert_eq!(when(&result, Some(old), "real server deleted"), None);
    let weights: Vec<_> = samples(&result, 299, 300)
        .map(|sample| (sample.server, sample.weight))
        .collect();
    assert_eq!(weights, [(old, Some(0)), (new, Some(1))]);
    assert_eq!(
        result.summary.causes[Cause::PinnedToDrained.index()],
        result.summary.failed()
    );
}

/// F2: with mode 1 on a kernel with the fix of 5.9, or with c95c07836fa4, nothing fails and the drained real server
/// goes within three minutes. (Where no port is reused, no sooner than after 120 s; here reuse takes its entries away,
/// and the first check that finds none deletes it.)
#[test]
fn f02_mode_1_or_the_later_fix_cures_it() {
    let fixed = mode(on_kernel(load("f02-saturated-pool"), "4.19.140"), 1);
    let later = on_kernel(load("f02-saturated-pool"), "4.19.219");
    for scenario in [fixed, later] {
        let result = play(&scenario);
        assert_eq!(result.summary.failed(), 0, "{}", scenario.node.kernel);
        assert_eq!(
            result.summary.delayed_total(),
            0,
            "{}",
            scenario.node.kernel
        );
        let old = Some(endpoint("172.16.8.106:80"));
        let drained = when(&result, old, "weight set to 0").unwrap();
        let deleted = when(&result, old, "real server deleted").unwrap();
        let took = deleted.since(drained).as_secs();
        assert!(
            (1..=180).contains(&took),
            "{took} s on {}",
            scenario.node.kernel
        );
    }
}

/// F2: a client without reuse leaves entries that last: then the drained real server goes after 120 to 180 s and the
/// lateness of a timer.
#[test]
fn f02_without_reuse_the_drained_server_goes_after_two_to_three_minutes() {
    let mut scenario = mode(on_kernel(load("f02-saturated-pool"), "4.19.140"), 1);
    // 14,116 ports at 50 a second come round after 282 s.
    scenario.client[0].arrivals = Arrivals::Constant(Rate { rate: 50.0 });
    let result = play(&scenario);
    assert_eq!(result.summary.failed(), 0);
    let old = Some(endpoint("172.16.8.106:80"));
    let drained = when(&result, old, "weight set to 0").unwrap();
    let deleted = when(&result, old, "real server deleted").unwrap();
    let took = deleted.since(drained).as_secs_f64();
    assert!((120.0..=183.0).contains(&took), "{took}");
}

/// F2, second article: after a scale-out under saturated reuse the new real servers' share of connects stays near 0,
/// where rr would give them half.
#[test]
fn f02_new_pods_of_a_scale_out_get_no_traffic() {
    let share = |scenario: &Scenario| {
        let result = play(scenario);
        assert_eq!(result.summary.failed(), 0);
        let first_new = endpoint("172.16.8.108:80");
        let syns = |new: bool| {
            let of =
                samples(&result, 110, 240).filter(|sample| (sample.server >= first_new) == new);
            of.map(|sample| f64::from(sample.syns)).sum::<f64>()
        };
        syns(true) / (syns(true) + syns(false))
    };
    let pinned = share(&load("f02-scale-out"));
    assert!(pinned < 0.02, "{pinned}");
    let spread = share(&mode(on_kernel(load("f02-scale-out"), "4.19.140"), 1));
    assert!((spread - 0.5).abs() < 0.02, "{spread}");
}

/// F3: goodput falls to nothing within one pool cycle after the last preStop has ended, not when the new pods are
/// ready; what fails are reused tuples, by timeout and not by refusal.
#[test]
fn f03_the_service_dies_with_the_last_old_pod() {
    let result = play(&load("f03-load"));
    let answered = |from: Instant, to: Instant| {
        let of = begun(&result, from, to).filter(|attempt| attempt.outcome == Outcome::Answered);
        of.count() as f64 / to.since(from).as_secs_f64()
    };
    let before = answered(Instant::from_secs(60), Instant::from_secs(90));
    // Ports come round within 30 s.
    assert!(f64::from(EVEN_PORTS) / before < 30.0, "{before}");
    let ready = last(&result, "pod ready");
    let first_death = when(&result, None, "process exited").unwrap();
    assert!(ready < first_death);
    let healthy = answered(ready, first_death);
    assert!(
        healthy > 0.95 * before,
        "{healthy} of {before}: readiness changes nothing"
    );
    let death = last(&result, "process exited");
    let dead = answered(death + Span::from_secs(1), death + Span::from_secs(61));
    assert!(dead < 0.01 * before, "{dead} of {before}");
    let failed: Vec<_> = result
        .trace
        .troubled
        .iter()
        .filter(|request| request.outcome.is_failure())
        .collect();
    assert!(failed.len() > 500);
    assert!(
        failed.iter().all(|request| request.port_idle.is_some()),
        "a fresh tuple failed"
    );
    assert_eq!(result.summary.count(Outcome::Refused), 0);
    let timeouts = result.summary.count(Outcome::ConnectTimeout);
    assert!(
        timeouts * 100 >= result.summary.failed() * 98,
        "{:?}",
        result.summary.outcomes
    );
}

/// F5 (a): InActConn climbs to 14,116 (stated: 14000) in 14,116 / R seconds; from then on each connect takes a second.
#[test]
fn f05_inactive_connections_stop_at_the_even_ports() {
    let result = play(&load("f05-plateau"));
    let inactive = |at: u64| {
        let of = samples(&result, at, at + 1);
        of.map(|sample| sample.inactive).sum::<u32>()
    };
    let fast = begun(&result, Instant::from_secs(1), Instant::from_secs(2)).count() as f64;
    let full = (f64::from(EVEN_PORTS) / fast).ceil() as u64 + 1;
    assert!(full < 10, "{fast} a second");
    for at in full..30 {
        // As many more as are on their way through the odd ports.
        let found = inactive(at);
        assert!(
            (EVEN_PORTS - 10..=EVEN_PORTS + 20).contains(&found),
            "at {at}: {found}"
        );
    }
    let slow = begun(&result, Instant::from_secs(full), Instant::from_secs(30)).count() as f64;
    assert!(
        slow / ((30 - full) as f64) < 0.01 * fast,
        "{slow} after {fast} a second"
    );
    assert_eq!(result.summary.failed(), 0);
    assert!(result.summary.delayed_total() as f64 > 0.9 * slow);
}

/// F5 (b): a fixed port in mode 1 before the fix: a second each time but the first, and none after a pause of more
/// than TIME_WAIT; on a kernel with the fix never.
#[test]
fn f05_a_fixed_port_takes_a_second_each_time_in_mode_1() {
    let slow = play(&load("f05-fixed-port"));
    let connects: Vec<f64> = {
        let attempts = slow.trace.attempts.iter();
        attempts
            .map(|attempt| attempt.connect.unwrap().as_secs_f64())
            .collect()
    };
    assert_eq!(connects.len(), 12);
    assert!(connects[0] < 0.01, "{connects:?}");
    assert!(
        connects[1..].iter().all(|took| (0.99..1.1).contains(took)),
        "{connects:?}"
    );
    let mut paused = every(load("f05-fixed-port"), 125.0);
    paused.duration = Span::from_secs(600);
    let paused = play(&paused);
    assert_eq!(
        (paused.summary.requests, paused.summary.delayed_total()),
        (5, 0)
    );
    let fixed = play(&on_kernel(load("f05-fixed-port"), "4.14.194"));
    assert_eq!(
        (fixed.summary.failed(), fixed.summary.delayed_total()),
        (0, 0)
    );
}

/// F5 (c): in mode 0 the port stays with its deleted pod until 120 s after the last good close: one attempt at +30, +90
/// and +119 s each hits the dead pod, one at +121 s does not.
#[test]
fn f05_mode_0_keeps_a_fixed_port_on_a_dead_pod_for_two_minutes() {
    let attempt_after = |seconds: u64| {
        let mut scenario = every(mode(load("f05-fixed-port"), 0), seconds as f64);
        scenario.duration = Span::from_secs(seconds + 1);
        scenario.rollout = Rollout::Scripted(Scripted {
            at: Span::from_secs(5),
            old_pods: 1,
            new_pods: 1,
            old_die_at: Span::from_secs(5),
        });
        outcomes(&play(&scenario))
    };
    for seconds in [30, 90, 119] {
        let found = attempt_after(seconds);
        assert_eq!(
            found,
            [Outcome::Answered, Outcome::ConnectTimeout],
            "+{seconds} s"
        );
    }
    assert_eq!(attempt_after(121), [Outcome::Answered; 2], "+121 s");
}

/// F5 (c): attempts that go on keep it there for ever, as long as less than a minute lies between them.
#[test]
fn f05_mode_0_never_lets_go_of_a_port_that_keeps_trying() {
    let mut scenario = every(mode(load("f05-fixed-port"), 0), 50.0);
    scenario.duration = Span::from_secs(1_000);
    scenario.rollout = Rollout::Scripted(Scripted {
        at: Span::from_secs(5),
        old_pods: 1,
        new_pods: 1,
        old_die_at: Span::from_secs(5),
    });
    let found = outcomes(&play(&scenario));
    assert_eq!(found.len(), 20);
    assert!(
        found[1..]
            .iter()
            .all(|outcome| *outcome == Outcome::ConnectTimeout),
        "{found:?}"
    );
}

/// F7: for the whole grace period the real server shows weight 0 and one active connection, and the session goes on;
/// new connections find no destination; the real server goes 10 to 120 s after the session's end, at a check.
#[test]
fn f07_a_session_survives_until_the_grace_period_ends() {
    let result = play(&load("f07-keep-alive"));
    let pod = endpoint("10.27.1.245:80");
    for sample in samples(&result, 61, 120) {
        assert_eq!(
            (sample.server, sample.weight, sample.active),
            (pod, Some(0), 1),
            "{}",
            sample.at
        );
    }
    let session = begun(&result, Instant::from_secs(0), Instant::from_secs(119));
    let (kept, new): (Vec<&Attempt>, Vec<&Attempt>) =
        session.partition(|attempt| attempt.connect.is_none());
    // The session's first request opened its connection; those that failed never had one.
    let answered = |attempts: &[&Attempt]| {
        let of = attempts
            .iter()
            .filter(|attempt| attempt.outcome == Outcome::Answered);
        of.count()
    };
    assert_eq!(answered(&new), 1);
    assert!(answered(&kept) > 110, "{}", answered(&kept));
    let refused = kept.len() - answered(&kept);
    assert_eq!(
        refused, 10,
        "one new connection every five seconds from 70 s on"
    );
    let causes = &result.summary.causes;
    assert!(
        causes[Cause::NoDestination.index()] >= refused as u64,
        "{causes:?}"
    );
    let deleted = when(&result, Some(pod), "real server deleted").unwrap();
    let took = deleted.since(Instant::from_secs(120)).as_secs_f64();
    assert!((10.0..=182.1).contains(&took), "{took}");
}

/// F12 (a): tries less than 120 s apart never get away from the dead pod; after 121 s the next one does.
#[test]
fn f12_retries_keep_a_dead_pod_in_syn_sent() {
    let base = load("f12-syn-sent-pinning");
    let found = outcomes(&play(&base));
    assert_eq!(found.len(), 13);
    assert!(
        found
            .iter()
            .all(|outcome| *outcome == Outcome::ConnectTimeout),
        "{found:?}"
    );
    let found = outcomes(&play(&every(base.clone(), 119.0)));
    assert!(
        found
            .iter()
            .all(|outcome| *outcome == Outcome::ConnectTimeout),
        "{found:?}"
    );
    let found = outcomes(&play(&every(base, 121.0)));
    assert_eq!(found[..2], [Outcome::ConnectTimeout, Outcome::Answered]);
}

/// F12 (b): an entry in TIME_WAIT does not hold the port: the next SYN gets a new pod at once.
#[test]
fn f12_time_wait_recovers_at_once_in_iptables_mode() {
    let mut scenario = load("f12-syn-sent-pinning");
    scenario.client[0].start = Span::from_secs(5);
    let result = play(&scenario);
    assert_eq!(result.summary.failed(), 0, "{:?}", outcomes(&result));
    assert_eq!(result.summary.delayed_total(), 0);
    assert!(result.summary.requests > 10);
}

/// F12 (c): the address is given away 30 s after the pod's death: a flow that tries again while its entry lives
/// reaches the wrong pod. With nf_conntrack_tcp_timeout_syn_sent below those 30 s none does.
#[test]
fn f12_a_reused_address_gets_flows_that_are_not_its_own() {
    let second_try = |port: NewOwner, seconds: f64, syn_sent: u32| {
        let mut scenario = every(load("f12-syn-sent-pinning"), seconds);
        scenario = with(
            scenario,
            "netfilter.nf_conntrack_tcp_timeout_syn_sent",
            syn_sent,
        );
        let after = Span::from_secs(30);
        scenario.server.dead_end = DeadEnd::Reassigned(Reassigned { after, port });
        outcomes(&play(&scenario))[..2].to_vec()
    };
    let lost = Outcome::ConnectTimeout;
    for (port, wrong) in [
        (NewOwner::Closed, Outcome::Refused),
        (NewOwner::Open, Outcome::WrongService),
    ] {
        assert_eq!(
            second_try(port, 25.0, 120),
            [lost, lost],
            "before the address is given away"
        );
        assert_eq!(second_try(port, 35.0, 120), [lost, wrong]);
        assert_eq!(second_try(port, 115.0, 120), [lost, wrong]);
        assert_eq!(second_try(port, 121.0, 120), [lost, Outcome::Answered]);
        assert_eq!(second_try(port, 35.0, 25), [lost, Outcome::Answered]);
    }
}

/// F15: with expire_quiescent_template 0 no new connection of the client gets an answer after its pod's death; with 1
/// the next new tuple is scheduled anew.
#[test]
fn f15_a_template_keeps_a_client_on_a_drained_pod() {
    let result = play(&load("f15-session-affinity"));
    let after: Vec<&Attempt> =
        begun(&result, Instant::from_secs(90), Instant::from_secs(420)).collect();
    assert!(after.len() > 600);
    assert!(
        after
            .iter()
            .all(|attempt| attempt.outcome == Outcome::ConnectTimeout)
    );
    let cured = play(&with(
        load("f15-session-affinity"),
        "ipv4.vs.expire_quiescent_template",
        1,
    ));
    assert_eq!(
        (cured.summary.failed(), cured.summary.delayed_total()),
        (0, 0)
    );
}

/// F15: an affinity of 5 s: the template is still there 119 s after the close of the only connection, gone after 180 s.
#[test]
fn f15_a_template_of_five_seconds_lasts_two_minutes() {
    let result = play(&load("f15-short-affinity"));
    assert_eq!(result.summary.requests, 1);
    let templates = |tables: usize| {
        let listing = &result.trace.tables[tables].connections;
        listing
            .lines()
            .filter(|line| line.contains("10.23.31.87:0"))
            .count()
    };
    assert_eq!(
        (templates(0), templates(1)),
        (1, 0),
        "{}",
        result.trace.tables[0].connections
    );
}

/// F16: in mode 0 before c95c07836fa4 the client never gets away: its SYNs keep one active connection on the real
/// server, which is never deleted.
#[test]
fn f16_a_client_that_reconnects_from_its_port_is_stuck() {
    let result = play(&load("f16-fixed-port-nfs"));
    let gone = last(&result, "address gone");
    let after: Vec<&Attempt> = begun(&result, gone, Instant::from_secs(420)).collect();
    assert!(after.len() > 60);
    assert!(
        after
            .iter()
            .all(|attempt| attempt.outcome == Outcome::ConnectTimeout)
    );
    let old = Endpoint::new(load("f16-fixed-port-nfs").server.old_address, 2049);
    let from = gone.as_secs() + 2;
    let kept: Vec<_> = samples(&result, from, 420)
        .filter(|sample| sample.server == old)
        .collect();
    assert_eq!(kept.len() as u64, 420 - from);
    assert!(
        kept.iter()
            .all(|sample| (sample.weight, sample.active) == (Some(0), 1))
    );
}

/// F16: mode 1 before the fix of 5.9 drops one SYN, and a second later the client has its new pod.
#[test]
fn f16_mode_1_costs_one_second() {
    let result = play(&mode(load("f16-fixed-port-nfs"), 1));
    let exited = last(&result, "process exited");
    let opened: Vec<f64> = begun(&result, exited, Instant::from_secs(420))
        .filter_map(|attempt| attempt.connect)
        .map(|took| took.as_secs_f64())
        .collect();
    assert_eq!(
        opened.len(),
        1,
        "one connection, for the rest of the run: {opened:?}"
    );
    assert!((0.99..1.1).contains(&opened[0]), "{opened:?}");
    // What the pod's death itself cut is another matter.
    assert!(
        result.summary.failed() <= 1,
        "{:?}",
        result.summary.outcomes
    );
}

/// F16: a manager that deletes at once (kube-proxy 1.11), with expire_nodest_conn 1: the first SYN after the deletion
/// is dropped with its entry, the next one, a second later, is scheduled anew.
#[test]
fn f16_deletion_at_once_costs_one_second() {
    let mut scenario = every(load("f16-fixed-port-nfs"), 5.0);
    scenario.client[0].requests_per_connection = 1;
    scenario.client[0].closes_first = Side::Server;
    scenario.kube_proxy.version = ipvs_sim::scenario::ProxyVersion::parse("1.11.0").unwrap();
    scenario.kube_proxy.sets_sysctls = false;
    let scenario = with(mode(scenario, 0), "ipv4.vs.expire_nodest_conn", 1);
    let scenario = with(scenario, "ipv4.vs.conntrack", 1);
    let result = play(&scenario);
    assert_eq!(result.summary.failed(), 0, "{:?}", result.summary.outcomes);
    assert_eq!(result.summary.delayed_total(), 1);
    assert_eq!(result.summary.delayed[Cause::PinnedToDeleted.index()], 1);
}
