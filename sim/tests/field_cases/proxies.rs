//! What kube-proxy and the control plane do in time, and what does their work: F13, F21, F25, F26.

use ipvs_model::kernel::Version;
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::RunResult;
use ipvs_sim::engine::trace::Attempt;
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::{
    Arrivals, CiliumVersion, DataPlane, OrKernel, ProxyVersion, Rate, Rollout, Scenario,
};

use crate::kit::*;

fn proxy(mut scenario: Scenario, version: &str) -> Scenario {
    scenario.kube_proxy.version = ProxyVersion::parse(version).unwrap();
    scenario
}

/// F13: up to 1.25 a real server that drained when kube-proxy started anew stays at weight 0 although it is wanted: of three, two
/// serve. From 1.26 on the first sync repairs it.
#[test]
fn f13_a_restart_strands_a_drained_real_server() {
    let flapped = endpoint("10.27.1.247:80");
    let end = |version: &str| {
        let result = play(&proxy(load("f13-restart"), version));
        assert_eq!(result.summary.failed(), 0, "{version}");
        let last: Vec<&ServerSampleOf> = samples(&result, 599, 600).collect();
        let weight = last
            .iter()
            .find(|sample| sample.server == flapped)
            .map(|sample| sample.weight);
        let syns: Vec<u32> = [
            endpoint("10.27.1.245:80"),
            endpoint("10.27.1.246:80"),
            flapped,
        ]
        .map(|server| {
            let of = samples(&result, 500, 600).filter(|sample| sample.server == server);
            of.map(|sample| sample.syns).sum()
        })
        .to_vec();
        (weight, syns)
    };
    for version in ["1.19.16", "1.22.0", "1.25.16"] {
        let (weight, syns) = end(version);
        assert_eq!(weight, Some(Some(0)), "{version}");
        assert_eq!(syns[2], 0, "{version}: {syns:?}");
        assert!(syns[0] > 2_400 && syns[1] > 2_400, "{version}: {syns:?}");
    }
    for version in ["1.26.0", "1.30.3", "1.35.0"] {
        let (weight, syns) = end(version);
        assert_eq!(weight, Some(Some(1)), "{version}");
        assert!(syns[2] > 1_600, "{version}: {syns:?}");
    }
    line(
        "F13.1",
        "up to 1.25: a wanted real server stays at weight 0 after a restart, 33 % of three missing",
        "weight 0 to the end, 2 of 3 serve (1.19.16, 1.22.0, 1.25.16)",
        "agrees",
    );
    line(
        "F13.2",
        "from 1.26 on weight 1 after the first sync",
        "weight 1, 3 of 3 serve (1.26.0, 1.30.3, 1.35.0)",
        "agrees",
    );
}

type ServerSampleOf = ipvs_sim::engine::trace::ServerSample;

/// F13: 1.13 and 1.14.0 delete or drain every real server when they start; nobody serves until the first sync.
#[test]
fn f13_early_releases_serve_nobody_until_the_first_sync() {
    let outage = |version: &str| {
        let result = play(&proxy(load("f13-early-start"), version));
        let bad: Vec<u64> = result
            .trace
            .attempts
            .iter()
            .filter(|attempt| attempt.outcome != Outcome::Answered)
            .map(|attempt| attempt.start.as_secs())
            .collect();
        let during: Vec<&Attempt> =
            begun(&result, Instant::from_secs(91), Instant::from_secs(94)).collect();
        let failed = share(&during, |attempt| attempt.outcome.is_failure());
        (bad.first().copied(), bad.last().copied(), failed)
    };
    for version in ["1.13.0", "1.14.0"] {
        let (first, last, failed) = outage(version);
        assert_eq!(
            (first, last, failed),
            (Some(90), Some(94), 1.0),
            "{version}"
        );
    }
    for version in ["1.15.0", "1.22.0", "1.30.3"] {
        assert_eq!(outage(version), (None, None, 0.0), "{version}");
    }
    line(
        "F13.3",
        "1.13, 1.14.0: a restart deletes or drains every real server until the first sync",
        "every request between the start (90 s) and the first sync (95 s) fails; from 1.15 on none",
        "agrees",
    );
}

/// How long after a pod's exit new tuples still went to it: they failed, or were late.
fn lag_seconds(result: &RunResult) -> Vec<f64> {
    let exits = result
        .trace
        .events
        .iter()
        .filter(|event| event.what == "process exited");
    let mut spans = Vec::new();
    for exit in exits {
        // In the last second of the lag the SYN sent again finds the pod drained and goes to another: late instead of failed.
        let hit = |attempt: &&Attempt| {
            let late = attempt
                .connect
                .is_some_and(|took| took > Span::from_millis(900));
            let soon = attempt.start >= exit.at && attempt.start < exit.at + Span::from_secs(7);
            soon && (late || attempt.outcome.is_failure())
        };
        let last = result
            .trace
            .attempts
            .iter()
            .filter(hit)
            .map(|attempt| attempt.start)
            .max();
        spans.extend(last.map(|last| last.since(exit.at).as_secs_f64()));
    }
    spans
}

/// F25: without preStop, new tuples fail for the lag of the endpoints less the time until the process exits, in every proxy mode;
/// a preStop longer than the lag removes these failures and leaves those of port reuse.
#[test]
fn f25_the_lag_of_the_endpoints() {
    let mut spans = Vec::new();
    for plane in [DataPlane::Ipvs, DataPlane::Iptables] {
        let mut scenario = load("f25-propagation");
        scenario.node.mode = plane;
        let result = play(&scenario);
        let lag = result.summary.causes[Cause::EndpointLag.index()];
        assert!(lag > 100, "{plane:?}: {:?}", result.summary.causes);
        let found = lag_seconds(&result);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found.iter().all(|lag| (4.5..=5.0).contains(lag)),
            "{plane:?}: {found:?}"
        );
        spans.extend(found);
        let mut waits = scenario;
        let Rollout::Deployment(deployment) = &mut waits.rollout else {
            panic!("a deployment")
        };
        deployment.pre_stop = Span::from_secs(10);
        let cured = play(&waits);
        assert_eq!(
            cured.summary.failed(),
            0,
            "{plane:?}: {:?}",
            cured.summary.causes
        );
    }
    let longest = spans.iter().copied().fold(0.0, f64::max);
    line(
        "F25.1",
        "endpoints take \"1-10 seconds\", \"slightly under 5s\": new tuples fail for that long, in every mode",
        &format!(
            "with a lag of 5 s and an exit after 0.1 s: {longest:.1} s of failures and late connects, in IPVS and iptables mode"
        ),
        "agrees (lag given)",
    );
    line(
        "F25.2",
        "preStop longer than the lag: none of these",
        "0",
        "agrees",
    );
}

/// F25: a preStop longer than the lag leaves the failures of port reuse, and the report tells the two apart.
#[test]
fn f25_the_two_components_are_told_apart() {
    let mut scenario = on_kernel(load("f25-propagation"), "4.19.57");
    scenario.client[0].arrivals = Arrivals::Constant(Rate { rate: 300.0 });
    let both = play(&scenario);
    let of = |result: &RunResult, cause: Cause| result.summary.causes[cause.index()];
    assert!(of(&both, Cause::EndpointLag) + of(&both, Cause::PinnedToDrained) > 10_000);
    let Rollout::Deployment(deployment) = &mut scenario.rollout else {
        panic!("a deployment")
    };
    deployment.pre_stop = Span::from_secs(10);
    let reuse = play(&scenario);
    assert_eq!(of(&reuse, Cause::EndpointLag), 0);
    assert!(of(&reuse, Cause::PinnedToDrained) > 10_000);
    line(
        "F25.3",
        "reuse failures (F2 to F4) stay with preStop; the report separates the two",
        "cause endpoint_lag 0, cause pinned_to_drained over 10,000",
        "agrees",
    );
}

/// F26: one wanted real server of two for at least 30 s; the old ones stay at weight 0 for two minutes and more; no failures.
#[test]
fn f26_max_unavailable_halves_the_capacity() {
    let result = play(&load("f26-capacity"));
    assert_eq!(result.summary.failed(), 0, "{:?}", result.summary.causes);
    let serving = |second: u64| {
        samples(&result, second, second + 1)
            .filter(|sample| sample.weight == Some(1))
            .count()
    };
    let alone = (60..419).filter(|second| serving(*second) == 1).count();
    assert!(alone >= 30, "{alone}");
    let mut shortest = f64::MAX;
    for old in ["10.27.1.245:80", "10.27.1.246:80"] {
        let old: Option<Endpoint> = Some(endpoint(old));
        let drained = when(&result, old, "weight set to 0").unwrap();
        let deleted = when(&result, old, "real server deleted").unwrap();
        shortest = shortest.min(deleted.since(drained).as_secs_f64());
    }
    assert!(shortest >= 120.0, "{shortest}");
    line(
        "F26.1",
        "maxUnavailable 1 of 2, readiness after 30 s: one wanted real server for at least 30 s",
        &format!("for {alone} s"),
        "agrees",
    );
    line(
        "F26.2",
        "a drained real server stays at least 120 s under short connections; no errors by itself",
        &format!("at least {shortest:.0} s; none failed"),
        "agrees",
    );
}

/// F21: before #19451 and #20407 a reused port stays with its backend while that terminates, and fails once it is dead; after, none
/// fails; a socket load balancer has none in any version. #27096: session affinity names a terminating backend all the same.
#[test]
fn f21_cilium_and_terminating_backends() {
    let play_as = |plane: DataPlane, minor: u16, patch: u16, affinity: Option<Span>| {
        let mut scenario = load("f21-cilium-terminating");
        scenario.node.mode = plane;
        scenario.cilium.version = CiliumVersion(Version(1, minor, patch));
        scenario.service.session_affinity = affinity;
        if affinity.is_some() {
            // Each port once: a reused one would leave the terminating backend, and take the affinity with it.
            scenario.client[0].ports = OrKernel(None);
        }
        play(&scenario)
    };
    let old = play_as(DataPlane::CiliumPacket, 11, 6, None);
    // Between a pod's end and the moment at which Cilium hears of it, its share of the ports goes there: with two pods, half of 50 a
    // second or more, less what the retransmission saves.
    let mut hit = 0;
    for exit in old
        .trace
        .events
        .iter()
        .filter(|e| e.what == "process exited")
    {
        let dead: Vec<&Attempt> =
            begun(&old, exit.at, exit.at + Span::from_millis(1_900)).collect();
        let bad = share(&dead, |attempt| {
            attempt.outcome.is_failure()
                || attempt
                    .connect
                    .is_some_and(|took| took > Span::from_millis(500))
        });
        assert!((0.35..1.0).contains(&bad), "{bad}");
        hit += 1;
    }
    assert_eq!(hit, 2);
    let kept = old.summary.causes[Cause::PinnedByConntrack.index()];
    assert_eq!(kept, old.summary.failed(), "{:?}", old.summary.causes);
    let none = |plane, minor, patch| play_as(plane, minor, patch, None).summary.failed();
    let new = none(DataPlane::CiliumPacket, 12, 0);
    let socket =
        [(11, 6), (12, 0)].map(|(minor, patch)| none(DataPlane::CiliumSocket, minor, patch));
    assert_eq!((new, socket), (0, [0, 0]));
    let (failed, requests) = (old.summary.failed(), old.summary.requests);
    line(
        "F21.1",
        "1.11.6, by packet: reused ports go to terminating backends",
        &format!("{failed} of {requests} requests fail while the pods are dead and still listed"),
        "agrees",
    );
    line(
        "F21.2",
        "after #20407 none once the backend terminates; by socket none in any version",
        "0 in 1.12.0 by packet, 0 by socket",
        "agrees",
    );
    let affinity = Some(Span::from_secs(43_200));
    let mut cut = Vec::new();
    for plane in [DataPlane::CiliumPacket, DataPlane::CiliumSocket] {
        let sticky = play_as(plane, 14, 0, affinity);
        assert!(sticky.summary.failed() > 0, "{plane:?}");
        let first = sticky.trace.attempts.iter();
        let first = first.filter(|attempt| attempt.outcome.is_failure());
        let first = first.map(|attempt| attempt.start).min().unwrap();
        // Nothing fails while the pod that terminates still serves.
        assert!(first >= last_before(&sticky, "SIGTERM", first), "{first:?}");
        cut.push(sticky.summary.failed());
    }
    line(
        "F21.3",
        "#27096: with session affinity a terminating backend accepts new connections; requests fail when it is removed",
        &format!(
            "{} requests fail by packet, {} by socket, all after SIGTERM",
            cut[0], cut[1]
        ),
        "agrees (all releases in the model)",
    );
}

/// The last time something happened before a moment.
fn last_before(result: &RunResult, what: &str, before: Instant) -> Instant {
    let events = result.trace.events.iter();
    let events = events.filter(|event| event.what == what && event.at <= before);
    events.map(|event| event.at).max().expect("it happened")
}
