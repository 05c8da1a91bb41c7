//! Sessions, fixed ports and affinity: F7, F12, F15, F16.

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::Attempt;
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::{DeadEnd, NewOwner, Reassigned, Side};

use crate::kit::*;

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
    line(
        "F7.1",
        "weight 0, ActiveConn 1, GETs work until the grace period (60 s) ends; weight 0 only with live connections",
        "weight 0 and 1 active from 61 to 120 s, every request answered; then removed",
        "agrees",
    );
    line(
        "F7.2",
        "a new tuple gets no backend when it was the only pod",
        &format!("{refused} of {refused} new connections failed"),
        "agrees",
    );
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
    line(
        "F12.1",
        "fixed port, retries closer than 120 s: a black hole until the client is silent",
        "no recovery at 30 and 119 s apart, recovery at 121 s",
        "agrees",
    );
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
    line(
        "F12.2",
        "an entry in TIME_WAIT, iptables mode: recovers at once",
        "none failed, none late",
        "agrees",
    );
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
    line(
        "F12.3",
        "address given away after 30 s: an entry points to another pod between 30 and 120 s",
        "at +25 s nothing, at +35 and +115 s RST or the wrong service, at +121 s the new pod",
        "agrees",
    );
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
    line(
        "F15.1",
        "the client is dead up to 3 h; expire_quiescent_template 1 cures it",
        &format!(
            "all of {} connects after the pod's death fail; none with 1",
            after.len()
        ),
        "agrees (330 s played)",
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
    line(
        "F15.2",
        "an affinity of 5 s lasts at least 2 minutes",
        "template there at 119 s, gone at 180 s",
        "agrees",
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
    line(
        "F16.1",
        "NFS client on its old port stays with the old pod",
        &format!(
            "{} reconnects, none answered; weight 0, 1 active to the end",
            after.len()
        ),
        "agrees",
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
    line(
        "F16.2",
        "mode 1 cures it",
        &format!("one connect of {:.2} s", opened[0]),
        "agrees",
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
    line(
        "F16.3",
        "without graceful termination it is cured",
        "one connect late by a second, none failed (1.11.0, expire_nodest_conn 1)",
        "agrees",
    );
}
