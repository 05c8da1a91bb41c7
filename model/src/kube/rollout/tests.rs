use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::kube::addresses::Reuse;
use crate::kube::deployment::{IntOrPercent, UpdateStrategy};
use crate::kube::endpoints::{EndpointRule, TrafficPolicy, usable};
use crate::kube::pod::{PodSpec, PreStop, Probe};
use crate::kube::version::ProxyVersion;
use crate::time::Span;

fn secs(s: u64) -> Span {
    Span::from_secs(s)
}

fn at(s: u64) -> Instant {
    Instant::from_secs(s)
}

/// Delays of a small idle cluster, in milliseconds.
fn idle(kind: LatencyKind) -> Span {
    Span::from_millis(match kind {
        LatencyKind::Controller => 20,
        LatencyKind::AssignAddress => 500,
        LatencyKind::StartContainer => 1_500,
        LatencyKind::Listen => 100,
        LatencyKind::ProbePhase => 2_500,
        LatencyKind::ReportStatus => 50,
        LatencyKind::SliceWrite => 100,
        LatencyKind::KubeletDelete => 30,
        LatencyKind::TearDown => 1_300,
        LatencyKind::RemoveObject => 1_000,
    })
}

fn pool() -> AddressPool {
    AddressPool::new(
        Ipv4Addr::new(10, 27, 1, 1),
        200,
        Reuse::RoundRobin,
        secs(30),
    )
}

/// The founding case's manifest: nginx, `preStop: sleep 20`, readiness 5/5.
fn founding() -> Deployment {
    Deployment {
        replicas: 2,
        pod: PodSpec {
            readiness: Some(Probe {
                initial_delay: secs(5),
                period: secs(5),
                failure_threshold: 5,
                ..Probe::default()
            }),
            pre_stop: PreStop::Sleep(secs(20)),
            ..PodSpec::default()
        },
        ..Deployment::default()
    }
}

/// A rollout played to its end, with what was true after every moment.
struct Played {
    rollout: Rollout,
    events: Vec<(Instant, RolloutEvent)>,
    /// Moment, ready pods, active pods.
    counts: Vec<(Instant, usize, usize)>,
}

fn play(mut rollout: Rollout, until: Instant, mut lat: impl Latencies) -> Played {
    let mut events = Vec::new();
    let mut counts = Vec::new();
    while let Some(next) = rollout.next().filter(|next| *next <= until) {
        while let Some(event) = rollout.poll(next, &mut lat) {
            events.push(event);
        }
        counts.push((next, rollout.ready(), rollout.active()));
    }
    Played {
        rollout,
        events,
        counts,
    }
}

fn run(deployment: Deployment) -> Played {
    let mut rollout = Rollout::new(deployment, pool(), at(0));
    rollout.start(at(10));
    play(rollout, Instant::NEVER, idle)
}

impl Played {
    fn when(&self, wanted: impl Fn(&RolloutEvent) -> bool) -> Vec<Instant> {
        self.events
            .iter()
            .filter(|(_, event)| wanted(event))
            .map(|(at, _)| *at)
            .collect()
    }

    fn of(&self, pod: u32) -> Vec<(Instant, &RolloutEvent)> {
        use RolloutEvent::*;
        let pod = PodId(pod);
        let concerns = |event: &RolloutEvent| match event {
            PodCreated { pod: p, .. }
            | AddressAssigned { pod: p, .. }
            | ContainerStarted { pod: p }
            | Listening { pod: p }
            | PodReady { pod: p }
            | PodNotReady { pod: p }
            | PodTerminating { pod: p }
            | PreStopStarted { pod: p }
            | SigTerm { pod: p }
            | ListenerClosed { pod: p }
            | ProcessExited { pod: p, .. }
            | AddressGone { pod: p, .. }
            | PodRemoved { pod: p } => *p == pod,
            Started { .. } | EndpointsPublished { .. } | Complete { .. } => false,
        };
        self.events
            .iter()
            .filter(|(_, e)| concerns(e))
            .map(|(at, e)| (*at, e))
            .collect()
    }

    /// The last EndpointSlice written by a moment.
    fn slice(&self, by: Instant) -> Vec<EndpointState> {
        let written = self.events.iter().filter(|(at, _)| *at <= by);
        let mut slices = written.filter_map(|(_, event)| match event {
            RolloutEvent::EndpointsPublished { endpoints } => Some(endpoints.clone()),
            _ => None,
        });
        slices.next_back().unwrap_or_default()
    }
}

/// Facts, kube-proxy 6: nginx ends fast, so its address goes 20 to 23 s after the deletion although the grace
/// period is 30 s.
#[test]
fn nginx_with_a_sleep_of_20_loses_its_address_at_t0_plus_20_to_23() {
    let played = run(founding());
    for pod in [0, 1] {
        let life = played.of(pod);
        let t0 = life
            .iter()
            .find(|(_, e)| matches!(e, RolloutEvent::PodTerminating { .. }))
            .unwrap()
            .0;
        let gone = life
            .iter()
            .find(|(_, e)| matches!(e, RolloutEvent::AddressGone { .. }))
            .unwrap()
            .0;
        let span = gone.since(t0);
        assert!(span >= secs(20) && span <= secs(23), "{span:?}");
        let end: Vec<_> = life.iter().map(|(_, e)| *e).skip(5).cloned().collect();
        let pod = PodId(pod);
        assert!(
            matches!(
                end[..],
                [
                    RolloutEvent::PodTerminating { .. },
                    RolloutEvent::PreStopStarted { .. },
                    RolloutEvent::SigTerm { .. },
                    RolloutEvent::ProcessExited { killed: false, .. },
                    RolloutEvent::AddressGone { .. },
                    RolloutEvent::PodRemoved { .. },
                ]
            ),
            "{pod:?} {end:?}"
        );
    }
    assert!(played.rollout.is_complete());
}

/// The founding case: the rules list only the new pods while the old ones still answer.
#[test]
fn the_slice_drops_an_old_pod_at_its_deletion_not_at_its_death() {
    let played = run(founding());
    let t0 = played.when(|e| matches!(e, RolloutEvent::PodTerminating { .. }))[0];
    let victim = played.slice(t0)[1];
    assert!(victim.ready);
    let after = played.slice(t0 + Span::from_millis(100));
    let now = after.iter().find(|ep| ep.ip == victim.ip).unwrap();
    assert!(!now.ready && now.serving && now.terminating);
    let proxy = "1.28.3".parse::<ProxyVersion>().unwrap().behaviours();
    let (ips, rule) = usable(&after, TrafficPolicy::Cluster, 0, proxy);
    assert!(!ips.contains(&victim.ip));
    assert_eq!(rule, EndpointRule::Ready);
    // Dead, it does not serve either; later it is gone from the slice.
    let dead = played.slice(t0 + secs(21));
    assert!(!dead.iter().find(|ep| ep.ip == victim.ip).unwrap().serving);
    assert!(
        played
            .slice(t0 + secs(30))
            .iter()
            .all(|ep| ep.ip != victim.ip)
    );
}

#[test]
fn a_new_pod_is_ready_one_probe_after_its_initial_delay() {
    let played = run(founding());
    let life = played.of(2);
    let texts: Vec<_> = life
        .iter()
        .map(|(at, e)| (at.since(life[0].0).0 / 1_000_000, *e))
        .collect();
    let pod = PodId(2);
    assert_eq!(texts[2], (2_000, &RolloutEvent::ContainerStarted { pod }));
    assert_eq!(texts[3], (2_100, &RolloutEvent::Listening { pod }));
    assert_eq!(
        texts[4],
        (2_000 + 5_000 + 2_500 + 50, &RolloutEvent::PodReady { pod })
    );
}

/// F26: 2 replicas, surge 1, unavailable 1, initial delay 30 s: one wanted real server for at least 30 s.
#[test]
fn f26_one_of_two_is_missing_until_the_first_new_pod_is_ready() {
    let probe = Probe {
        initial_delay: secs(30),
        period: secs(5),
        ..Probe::default()
    };
    let one = IntOrPercent::Int(1);
    let played = run(Deployment {
        replicas: 2,
        strategy: UpdateStrategy::RollingUpdate {
            max_surge: one,
            max_unavailable: one,
        },
        pod: PodSpec {
            readiness: Some(probe),
            ..PodSpec::default()
        },
        ..Deployment::default()
    });
    assert!(
        played
            .counts
            .iter()
            .all(|(_, ready, active)| *ready >= 1 && *active <= 3)
    );
    let down = played
        .counts
        .iter()
        .find(|(_, ready, _)| *ready == 1)
        .unwrap()
        .0;
    let up = played
        .counts
        .iter()
        .find(|(at, ready, _)| *at > down && *ready == 2)
        .unwrap()
        .0;
    assert!(up.since(down) >= secs(30), "{:?}", up.since(down));
    assert!(
        down.since(at(10)) < secs(1),
        "the old pod goes at once, before any new one is ready"
    );
}

#[test]
fn with_two_replicas_and_defaults_no_old_pod_goes_before_a_new_one_is_ready() {
    let played = run(founding());
    assert!(
        played
            .counts
            .iter()
            .all(|(_, ready, active)| *ready >= 2 && *active <= 3)
    );
    let ready = played.when(|e| matches!(e, RolloutEvent::PodReady { .. }));
    let terminating = played.when(|e| matches!(e, RolloutEvent::PodTerminating { .. }));
    assert!(terminating[0] > ready[2] && terminating[1] > ready[3]);
}

/// F25: without a hook the process is gone before the slice says so.
#[test]
fn f25_a_fast_exit_beats_the_endpoint_update() {
    let mut deployment = founding();
    deployment.pod.pre_stop = PreStop::None;
    deployment.pod.on_term = OnTerm::ExitsAfter(Span::ZERO);
    let mut rollout = Rollout::new(deployment, pool(), at(0));
    rollout.start(at(10));
    let slow = |kind| {
        if kind == LatencyKind::SliceWrite {
            secs(2)
        } else {
            idle(kind)
        }
    };
    let played = play(rollout, Instant::NEVER, slow);
    let is_exit = |e: &RolloutEvent| matches!(e, RolloutEvent::ProcessExited { .. });
    let exit = played.when(is_exit)[0];
    let gone = played.when(|e| matches!(e, RolloutEvent::AddressGone { .. }))[0];
    // The youngest old pod, 10.27.1.2, goes first; its address is gone too before the slice says so.
    let dead = Ipv4Addr::new(10, 27, 1, 2);
    for moment in [exit, gone] {
        assert!(
            played
                .slice(moment)
                .iter()
                .any(|ep| ep.ip == dead && ep.ready)
        );
    }
    assert!(
        played
            .slice(exit + secs(2))
            .iter()
            .all(|ep| ep.ip != dead || !ep.ready)
    );
}

#[test]
fn recreate_waits_for_the_last_old_object() {
    let mut deployment = founding();
    deployment.strategy = UpdateStrategy::Recreate;
    let played = run(deployment);
    let removed = played.when(|e| matches!(e, RolloutEvent::PodRemoved { .. }));
    let created = played.when(|e| matches!(e, RolloutEvent::PodCreated { .. }));
    assert_eq!((removed.len(), created.len()), (2, 4));
    assert!(created[2] > removed[1]);
    // Meanwhile 1.26 and later keep sending to the terminating pods, earlier releases to nobody.
    let t0 = played.when(|e| matches!(e, RolloutEvent::PodTerminating { .. }))[0];
    let slice = played.slice(t0 + secs(5));
    let used = |version: &str| {
        let proxy = version.parse::<ProxyVersion>().unwrap().behaviours();
        usable(&slice, TrafficPolicy::Cluster, 0, proxy).0.len()
    };
    assert_eq!((used("1.25.1"), used("1.26.0")), (0, 2));
    assert!(played.rollout.is_complete());
}

#[test]
fn min_ready_seconds_delay_every_step() {
    let mut deployment = founding();
    deployment.min_ready = secs(15);
    let played = run(deployment);
    let ready = played.when(|e| matches!(e, RolloutEvent::PodReady { .. }));
    let terminating = played.when(|e| matches!(e, RolloutEvent::PodTerminating { .. }));
    assert!(terminating[0].since(ready[2]) >= secs(15));
    assert!(played.rollout.is_complete());
}

#[test]
fn a_flap_starts_min_ready_seconds_anew() {
    let mut deployment = founding();
    deployment.min_ready = secs(60);
    let mut rollout = Rollout::new(deployment, pool(), at(0));
    rollout.start(at(0));
    rollout.set_answering(at(20), PodId(2), Answering::Refuses);
    rollout.set_answering(at(50), PodId(2), Answering::Yes);
    let played = play(rollout, at(300), idle);
    let ready = played.when(|e| *e == RolloutEvent::PodReady { pod: PodId(2) });
    let terminating = played.when(|e| matches!(e, RolloutEvent::PodTerminating { .. }));
    assert!(ready[0] < at(20) && ready[1] > at(50), "{ready:?}");
    assert!(
        terminating[0] >= ready[1] + secs(60),
        "not 60 s after the first time"
    );
}

#[test]
fn without_a_probe_a_pod_is_ready_before_it_listens() {
    let deployment = Deployment {
        replicas: 1,
        ..Deployment::default()
    };
    let played = run(deployment);
    let life: Vec<_> = played.of(1).iter().map(|(_, e)| (*e).clone()).collect();
    let pod = PodId(1);
    assert_eq!(life[3], RolloutEvent::PodReady { pod });
    assert_eq!(life[4], RolloutEvent::Listening { pod });
}

/// A pod that hangs is taken out after failureThreshold probes, and comes back after one that succeeds: the
/// returning endpoint of facts, kube-proxy 3.
#[test]
fn a_readiness_flap_takes_the_endpoint_out_and_back() {
    let mut rollout = Rollout::new(founding(), pool(), at(0));
    rollout.set_answering(at(100), PodId(0), Answering::Hangs);
    rollout.set_answering(at(160), PodId(0), Answering::Yes);
    let played = play(rollout, at(300), idle);
    let out = played.when(|e| matches!(e, RolloutEvent::PodNotReady { .. }));
    let back = *played
        .when(|e| matches!(e, RolloutEvent::PodReady { .. }))
        .last()
        .unwrap();
    // Probes at 100, 105, ... 120 fail, the fifth after its timeout of 1 s; one at 160 succeeds.
    assert_eq!(out, [at(121) + Span::from_millis(50)]);
    assert_eq!(back, at(160) + Span::from_millis(50));
    assert_eq!(
        played.slice(at(150)).iter().filter(|ep| ep.ready).count(),
        1
    );
    assert_eq!(
        played.slice(at(170)).iter().filter(|ep| ep.ready).count(),
        2
    );
    // A flap shorter than the threshold changes nothing.
    let mut rollout = Rollout::new(founding(), pool(), at(0));
    rollout.set_answering(at(100), PodId(0), Answering::Hangs);
    rollout.set_answering(at(119), PodId(0), Answering::Yes);
    let played = play(rollout, at(300), idle);
    assert!(
        played
            .when(|e| matches!(e, RolloutEvent::PodNotReady { .. }))
            .is_empty()
    );
}

#[test]
fn a_deleted_pod_is_replaced_at_once() {
    let mut rollout = Rollout::new(founding(), pool(), at(0));
    rollout.delete_pod(at(50), PodId(1));
    rollout.delete_pod(at(50), PodId(1));
    rollout.delete_pod(at(50), PodId(77));
    let played = play(rollout, Instant::NEVER, idle);
    let created = played.when(|e| matches!(e, RolloutEvent::PodCreated { .. }));
    assert_eq!(created[2..], [at(50) + Span::from_millis(20)]);
    assert_eq!((played.rollout.ready(), played.rollout.active()), (2, 2));
}

#[test]
fn scaling_goes_up_and_down_but_not_during_a_rollout() {
    let mut rollout = Rollout::new(founding(), pool(), at(0));
    assert_eq!(rollout.scale(at(1), 5), Ok(()));
    assert_eq!(rollout.scale(at(2), 6), Err(RolloutInProgress));
    let mut played = play(rollout, at(100), idle);
    assert_eq!(played.rollout.ready(), 5);
    assert!(played.rollout.is_complete());
    assert_eq!(played.rollout.scale(at(200), 0), Ok(()));
    let played = play(played.rollout, Instant::NEVER, idle);
    assert_eq!(played.rollout.pods().count(), 0);
    assert!(played.rollout.is_complete());
    assert!(played.slice(at(10_000)).is_empty());
}

#[test]
fn a_template_applied_during_a_rollout_rolls_over() {
    let mut rollout = Rollout::new(founding(), pool(), at(0));
    rollout.start(at(10));
    rollout.start(at(14));
    let played = play(rollout, Instant::NEVER, idle);
    assert!(played.rollout.is_complete());
    assert!(played.rollout.pods().all(|(_, revision, ..)| revision == 2));
    assert!(
        played
            .counts
            .iter()
            .all(|(_, ready, active)| *ready >= 2 && *active <= 3)
    );
}

/// F12: with a cool-down of 30 s and a small pool a dead pod's address belongs to a new pod soon after.
#[test]
fn a_small_pool_hands_a_dead_pods_address_to_a_new_one() {
    let small = AddressPool::new(Ipv4Addr::new(10, 27, 1, 1), 3, Reuse::Released, secs(30));
    let mut rollout = Rollout::new(founding(), small, at(0));
    rollout.start(at(10));
    let played = play(rollout, Instant::NEVER, idle);
    assert!(
        played.rollout.is_complete(),
        "the last pod waited for an address"
    );
    let gone = played.when(|e| matches!(e, RolloutEvent::AddressGone { .. }))[0];
    let assigned = played.when(|e| matches!(e, RolloutEvent::AddressAssigned { .. }));
    assert_eq!(assigned[3], gone + secs(30));
}

#[test]
fn a_draining_application_exits_when_it_is_told_that_it_is_done() {
    let mut deployment = founding();
    deployment.pod.pre_stop = PreStop::None;
    deployment.pod.on_term = OnTerm::Drains {
        closes_after: Span::from_millis(10),
        at_most: secs(600),
    };
    let mut rollout = Rollout::new(deployment, pool(), at(0));
    rollout.delete_pod(at(5), PodId(0));
    rollout.drained(at(5), PodId(0));
    let mut played = play(rollout, at(6), idle);
    assert_eq!(
        played
            .when(|e| matches!(e, RolloutEvent::ListenerClosed { .. }))
            .len(),
        1
    );
    assert!(
        played
            .when(|e| matches!(e, RolloutEvent::ProcessExited { .. }))
            .is_empty()
    );
    played.rollout.drained(at(7), PodId(0));
    let played = play(played.rollout, at(20), idle);
    assert_eq!(
        played.when(|e| matches!(e, RolloutEvent::ProcessExited { killed: false, .. })),
        [at(7)]
    );
}

#[test]
fn the_grace_period_ends_what_ignores_sigterm() {
    let mut deployment = founding();
    deployment.pod.on_term = OnTerm::Ignores;
    let mut rollout = Rollout::new(deployment, pool(), at(0));
    rollout.delete_pod(at(5), PodId(0));
    let played = play(rollout, at(60), idle);
    let kills = played.when(|e| matches!(e, RolloutEvent::ProcessExited { killed: true, .. }));
    assert_eq!(kills, [at(35) + Span::from_millis(30)]);
}

prop_compose! {
    fn deployments()(
        replicas in 0..12u32,
        surge in 0..150u32,
        lacking in 0..101u32,
        absolute in any::<bool>(),
        recreate in prop::bool::weighted(0.2),
        min_ready in 0..20u64,
        probe in prop::option::of((0..40u64, 1..12u64, 1..4u32, 1..6u32)),
        hook in 0..40u64,
        exits in 0..50u64,
        grace in 0..60u64,
        nodes in 0..3u16,
    ) -> Deployment {
        let number = |n| if absolute { IntOrPercent::Int(n / 25) } else { IntOrPercent::Percent(n) };
        Deployment {
            replicas,
            strategy: if recreate {
                UpdateStrategy::Recreate
            } else {
                UpdateStrategy::RollingUpdate { max_surge: number(surge), max_unavailable: number(lacking) }
            },
            min_ready: secs(min_ready),
            pod: PodSpec {
                readiness: probe.map(|(delay, period, success, failure)| Probe {
                    initial_delay: secs(delay),
                    period: secs(period),
                    success_threshold: success,
                    failure_threshold: failure,
                    ..Probe::default()
                }),
                pre_stop: if hook == 0 { PreStop::None } else { PreStop::Sleep(secs(hook)) },
                grace: secs(grace),
                on_term: OnTerm::ExitsAfter(secs(exits)),
            },
            nodes,
        }
    }
}

proptest! {
    /// Every rollout completes, within its limits, whatever the delays are.
    #[test]
    fn every_rollout_completes_within_its_limits(
        deployment in deployments(),
        delays in prop::collection::vec(0..8_000u64, 1..60),
        rolls in 1..4u64,
    ) {
        let mut rollout = Rollout::new(deployment, pool(), at(0));
        for roll in 0..rolls {
            rollout.start(at(10 + roll * 7));
        }
        let mut index = 0;
        let played = play(rollout, Instant::NEVER, |_| {
            index += 1;
            Span::from_millis(delays[index % delays.len()])
        });
        prop_assert!(played.rollout.is_complete());
        prop_assert_eq!(played.rollout.ready(), deployment.replicas as usize);
        prop_assert!(played.rollout.pods().all(|(_, revision, ..)| u64::from(revision) == rolls));
        let (surge, lacking) = deployment.strategy.limits(deployment.replicas);
        for (moment, ready, active) in &played.counts {
            prop_assert!(*ready >= (deployment.replicas - lacking) as usize, "{moment}: {ready} ready");
            prop_assert!(*active <= (deployment.replicas + surge) as usize, "{moment}: {active} active");
        }
        // In the end the slice lists exactly the new pods, all ready.
        let slice = played.slice(Instant::NEVER);
        prop_assert_eq!(slice.len(), deployment.replicas as usize);
        prop_assert!(slice.iter().all(|ep| ep.ready && !ep.terminating));
        // Time does not run backwards, and no address has two pods.
        prop_assert!(played.events.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        let mut owned = std::collections::BTreeSet::new();
        for (_, event) in &played.events {
            match event {
                RolloutEvent::AddressAssigned { ip, .. } => prop_assert!(owned.insert(*ip)),
                RolloutEvent::AddressGone { ip, .. } => prop_assert!(owned.remove(ip)),
                _ => {}
            }
        }
    }
}
