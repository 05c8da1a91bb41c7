//! Reports that the facts do not list: written down from their texts alone, then run.

use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::RunResult;
use ipvs_sim::engine::trace::Attempt;
use ipvs_sim::outcome::{Cause, DELAYED_AFTER, Outcome};
use ipvs_sim::scenario::{Arrivals, DataPlane, Dist, OrKernel, Ports, ProxyVersion, Scenario};

use crate::kit::*;

fn is_late(attempt: &Attempt) -> bool {
    attempt.connect.is_some_and(|took| took > DELAYED_AFTER)
}

/// How many requests were answered before the first late connect.
fn before_the_first_late(result: &RunResult) -> usize {
    let mut attempts: Vec<&Attempt> = result.trace.attempts.iter().collect();
    attempts.sort_by_key(|attempt| attempt.start);
    let first = attempts.iter().position(|attempt| is_late(attempt));
    first.unwrap_or(attempts.len())
}

fn think(scenario: &mut Scenario, time: Span) {
    let Arrivals::Closed(closed) = &mut scenario.client[0].arrivals else {
        panic!("a closed loop")
    };
    closed.think_time = Dist::Constant(time);
}

/// moby#31746: 14,112 requests are fast, then each connect takes a second; with more ports at the client the limit is gone.
#[test]
fn moby_31746_swarm_is_fast_for_one_round_of_ports() {
    let scenario = load("i31746-swarm-14112");
    let result = play(&scenario);
    let fast = before_the_first_late(&result);
    assert!((14_090..=14_116).contains(&fast), "{fast}");
    let after = begun(&result, Instant::from_secs(8), Instant::from_secs(100));
    let after: Vec<&Attempt> = after.collect();
    assert_eq!(share(&after, is_late), 1.0);
    line(
        "moby#31746.1",
        "ab -c 20: fast for 14112 requests, then a second each",
        &format!("{fast}, then every connect takes a second"),
        "agrees",
    );
    let mut wider = scenario;
    wider.client[0].ports = OrKernel(Some(Ports {
        low: 5_000,
        high: 65_000,
    }));
    wider.duration = Span::from_secs(7);
    let result = play(&wider);
    let done = result.summary.count(Outcome::Answered);
    assert_eq!(result.summary.delayed_total(), 0);
    assert!(done > 20_000, "{done}");
    line(
        "moby#31746.2",
        "ports 5000 to 65000 at the client: 20000 requests without the limit",
        &format!("{done} requests in 7 s, none late"),
        "agrees",
    );
}

/// moby#31117: one worker, 28,000 requests before it blocks: a client that takes all ports of its range.
#[test]
fn moby_31117_an_old_client_uses_the_whole_range() {
    let result = play(&load("i31117-swarm-28000"));
    let fast = before_the_first_late(&result);
    assert!((28_200..=28_233).contains(&fast), "{fast}");
    line(
        "moby#31117.1",
        "ab -c 1: blocked \"after around 28000 requests\"",
        &format!("first connect of a second after {fast} requests"),
        "agrees for a caller that takes all its ports (kernel before 4.2)",
    );
}

/// kubernetes#70747: ab -c100 -t300 on 3.10 with 1.11.1.
#[test]
fn k8s_70747_ab_with_100_workers_on_centos_7() {
    let result = play(&load("i70747-ab-100"));
    let done = result.summary.count(Outcome::Answered);
    let rate = done as f64 / 300.0;
    let slow: Vec<&Attempt> =
        begun(&result, Instant::from_secs(10), Instant::from_secs(110)).collect();
    let late = share(&slow, is_late);
    assert!(late > 0.99 && rate < 250.0, "{late} {rate}");
    let mut other = load("i70747-ab-100");
    other.node.mode = DataPlane::Iptables;
    other.duration = Span::from_secs(20);
    let other = play(&other);
    assert_eq!(other.summary.delayed_total(), 0);
    line(
        "#70747.1",
        "ab with 100 workers on 3.10, Kubernetes 1.11.1: \"very low throughput and high latency\"",
        &format!(
            "{rate:.0} a second over five minutes; {:.0} a second while ports are reused, each a second late",
            slow.len() as f64 / 100.0
        ),
        "agrees",
    );
}

/// kubernetes#93297: mode 1 on 5.9-rc2.
#[test]
fn k8s_93297_mode_1_on_5_9_delays_nothing() {
    let result = play(&load("i93297-linux-5.9-mode-1"));
    let rate = result.summary.count(Outcome::Answered) as f64 / 60.0;
    assert_eq!(
        (result.summary.failed(), result.summary.delayed_total()),
        (0, 0)
    );
    assert!((2_300.0..2_500.0).contains(&rate), "{rate}");
    line(
        "#93297.1",
        "5.9-rc2, mode 1, ab -c 1000: 2422 a second, none failed",
        &format!("{rate:.0} a second, none failed, none late, each port used ten times"),
        "agrees (service time from the report)",
    );
    let old = play(&on_kernel(load("i93297-linux-5.9-mode-1"), "5.8.0"));
    assert!(old.summary.delayed_total() > 10_000);
}

/// kubernetes#99162: nothing at first, then active connections and timeouts at weight 0; 5.11.1 does not cure it, a kube-proxy that
/// leaves mode 1 does.
#[test]
fn k8s_99162_timeouts_begin_late_and_a_new_kernel_does_not_help() {
    let scenario = load("i99162-ten-replicas");
    let result = play(&scenario);
    let failed = result.trace.attempts.iter();
    let failed = failed.filter(|attempt| attempt.outcome.is_failure());
    let times: Vec<u64> = failed.map(|attempt| attempt.start.as_secs()).collect();
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    // Weight 0 at 150 s, dead at 180 s.
    assert!((180..185).contains(first) && *last < 300, "{first} {last}");
    let at = |second: u64| {
        samples(&result, second, second + 1)
            .find(|sample| sample.weight == Some(0))
            .map(|sample| (sample.active, sample.inactive))
    };
    let all = samples(&result, 149, 150).map(|sample| sample.inactive);
    let all: Vec<u32> = all.collect();
    assert!(
        all.iter().all(|count| (610..=680).contains(count)),
        "{all:?}"
    );
    let (active, _) = at(240).expect("still there");
    assert!(active > 30, "{active}");
    assert_eq!(
        result.summary.causes[Cause::PinnedToDrained.index()],
        result.summary.failed()
    );
    line(
        "#99162.1",
        "ten real servers with about 672 InActConn; at weight 0, later, 3 to 63 ActiveConn and timeouts",
        &format!(
            "{} to {} on each; {active} active at weight 0 a minute after the pod's end; {} timeouts",
            all.iter().min().unwrap(),
            all.iter().max().unwrap(),
            times.len()
        ),
        "agrees (ports chosen)",
    );
    let mut newer = scenario;
    newer.kube_proxy.version = ProxyVersion::parse("1.22.0").unwrap();
    assert_eq!(play(&newer).summary.failed(), 0);
    line(
        "#99162.2",
        "Linux 5.11.1 does not cure it",
        "not with kube-proxy 1.20.4, which sets mode 0; with 1.22, which leaves 1, none fails",
        "agrees",
    );
}

/// kubernetes#57841, #71358: the session dies with its real server; dropped without a word with expire_nodest_conn 0, reset with 1;
/// iptables mode keeps it until the pod ends.
#[test]
fn k8s_57841_a_session_dies_with_its_real_server() {
    let fate = |expire: u32, plane: DataPlane| {
        let mut scenario = with(
            load("i57841-deleted-at-once"),
            "ipv4.vs.expire_nodest_conn",
            expire,
        );
        scenario.node.mode = plane;
        let result = play(&scenario);
        let failed = result.trace.attempts.iter();
        let mut failed = failed.filter(|attempt| attempt.outcome.is_failure());
        let deleted = result.summary.causes[Cause::PinnedToDeleted.index()];
        assert_eq!(deleted, result.summary.failed());
        failed
            .next()
            .map(|attempt| (attempt.outcome, attempt.start.as_secs()))
    };
    assert_eq!(
        fate(0, DataPlane::Ipvs),
        Some((Outcome::ResponseTimeout, 60))
    );
    assert_eq!(fate(1, DataPlane::Ipvs), Some((Outcome::Reset, 60)));
    assert_eq!(fate(0, DataPlane::Iptables), None);
    line(
        "#57841.1",
        "the session ends at once when its pod is deleted; in iptables mode it goes on until the pod stops",
        "the next request after the deletion fails, a minute before the pod ends; none in iptables mode",
        "agrees",
    );
    line(
        "#71358.1",
        "expire_nodest_conn 0: packets of the session are blackholed; 1: not",
        "no answer with 0, reset with 1",
        "agrees",
    );
}

/// kubernetes#80298 and #84041: 15 idle minutes end a session in IPVS; a longer timeout does not.
#[test]
fn k8s_80298_fifteen_idle_minutes_end_a_session() {
    let failures = |idle: u64, tcp_timeout: u64| {
        let mut scenario = load("i80298-idle-session");
        think(&mut scenario, Span::from_secs(idle));
        scenario.kube_proxy.tcp_timeout = Span::from_secs(tcp_timeout);
        let result = play(&scenario);
        let forgotten = result.summary.causes[Cause::SessionForgotten.index()];
        assert_eq!(forgotten, result.summary.failed());
        (result.summary.failed(), result.summary.requests)
    };
    let (failed, requests) = failures(920, 0);
    // Each other request opens a new connection, which then idles in turn.
    assert_eq!(failed, requests / 2);
    assert_eq!(failures(880, 0).0, 0);
    line(
        "#80298.1",
        "works until the 15th idle minute; then an error that does not persist",
        &format!(
            "after 920 idle seconds a reset, {failed} of {requests} requests, the next one works; none after 880"
        ),
        "agrees",
    );
    assert_eq!(failures(920, 7_200).0, 0);
    line(
        "#84041.1",
        "`--ipvs-tcp-timeout` should make it configurable",
        "with 7200s none fails",
        "agrees",
    );
}

/// kubernetes#71261, one to a hundred: the table is full with 7,864 entries and not with 10,486.
#[test]
fn k8s_71261_a_full_conntrack_table() {
    let failed = |max: u32| {
        let scenario = with(
            load("i71261-conntrack-full"),
            "netfilter.nf_conntrack_max",
            max,
        );
        let result = play(&scenario);
        let full = result.summary.causes[Cause::ConntrackFull.index()];
        assert_eq!(full, result.summary.failed());
        full as f64 / result.summary.requests as f64
    };
    let (few, many) = (failed(7_864), failed(10_486));
    assert!(few > 0.05 && many == 0.0, "{few} {many}");
    line(
        "#71261.1",
        "nf_conntrack_max 786432: table full; 1048576: \"problem fixed\"",
        &format!(
            "{} of the requests fail, then none (a hundredth of the load and of the sizes)",
            per_cent(few)
        ),
        "agrees (load within the bounds that the sizes give)",
    );
}

/// kube-keepalived-vip#109: a second for about 30 s, again and again.
#[test]
fn vip_109_slow_for_thirty_seconds_and_again() {
    let result = play(&load("vip109-jmeter"));
    let slow: Vec<bool> = (0..470)
        .map(|second| {
            let from = Instant::from_secs(second);
            let of: Vec<&Attempt> = begun(&result, from, from + Span::from_secs(1)).collect();
            !of.is_empty() && share(&of, is_late) > 0.5 || of.is_empty()
        })
        .collect();
    let mut spells = Vec::new();
    for (second, is) in slow.iter().enumerate() {
        match spells.last_mut() {
            // A gap of three seconds is none.
            Some((_, end)) if *is && second - *end <= 3 => *end = second,
            _ if *is => spells.push((second, second)),
            _ => {}
        }
    }
    spells.retain(|(first, last)| last - first > 5);
    let lengths: Vec<usize> = spells
        .iter()
        .map(|(first, last)| last - first + 1)
        .collect();
    assert!(spells.len() >= 3, "{spells:?}");
    assert!(
        lengths[..3].iter().all(|length| (22..=36).contains(length)),
        "{spells:?}"
    );
    let cured = play(&mode(load("vip109-jmeter"), 0));
    assert_eq!(cured.summary.delayed_total(), 0);
    line(
        "vip#109.1",
        "1 s \"after a while\", for about 30 s, \"and looping\"; conn_reuse_mode 0 cures it",
        &format!(
            "spells of {} s, {} s and {} s, two minutes apart; none in mode 0",
            lengths[0], lengths[1], lengths[2]
        ),
        "agrees (rate chosen)",
    );
}

/// kubernetes#81775, njuicsgz: reused ports go to the terminating pod until it is killed, and it has active connections to the end.
#[test]
fn k8s_81775_reused_ports_go_there_until_sigkill() {
    let result = play(&load("i81775-until-sigkill"));
    let first = result.trace.attempts.iter();
    let first = first.filter(|attempt| attempt.outcome.is_failure());
    let first = first.map(|attempt| attempt.start).min().unwrap();
    let killed = last(&result, "process killed");
    assert!(first.since(killed) < Span::from_secs(1), "{first:?}");
    let drained = samples(&result, 170, 179).filter(|sample| sample.weight == Some(0));
    let drained: Vec<(u32, u32)> = drained.map(|sample| (sample.active, sample.syns)).collect();
    assert!(
        drained
            .iter()
            .all(|(active, syns)| *active > 0 && *syns > 80)
    );
    assert!(when(&result, None, "real server deleted").is_none());
    line(
        "#81775.1",
        "requests go on to the terminating pod until SIGKILL; active connections never end, so it is never removed",
        &format!(
            "{} a second and {} active just before the end; then a third of all requests fails; never removed",
            drained[0].1, drained[0].0
        ),
        "agrees (load chosen)",
    );
}

/// kubernetes#71514, the remedy of a comment: `ipvsadm --set 0 0 30` shortens the errors of UDP from 300 s to 30 s.
#[test]
fn k8s_71514_a_shorter_udp_timeout() {
    let errors_last = |udp_timeout: u64| {
        let mut scenario = load("f14-dig-every-50ms");
        scenario.kube_proxy.udp_timeout = Span::from_secs(udp_timeout);
        let result = play(&scenario);
        let deleted = when(&result, None, "pod terminating").expect("deleted");
        let failed = result.trace.attempts.iter();
        let failed = failed.filter(|attempt| attempt.outcome.is_failure());
        let last = failed.map(|attempt| attempt.start).max().unwrap();
        (last.since(deleted).as_secs(), result.summary.failed())
    };
    let (_, before) = errors_last(0);
    let (last, after) = errors_last(30);
    assert!(
        last <= 60 && after * 3 < before,
        "{last}: {after} of {before}"
    );
    line(
        "#71514.1",
        "`ipvsadm --set 0 0 30` for resolvers that reuse ports",
        &format!(
            "failures of the run fall from {before} to {after}; the last {last} s after the deletion"
        ),
        "agrees",
    );
}
