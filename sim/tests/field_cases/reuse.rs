//! Ports that come round again: F2, F3, F5.

use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::Attempt;
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::{Arrivals, OrKernel, Ports, Rate, Rollout, Scenario, Scripted};

use crate::kit::*;

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
    let at_end = |server| {
        let mut of = samples(&result, 299, 300).filter(|sample| sample.server == server);
        of.next()
            .map_or((0, 0), |sample| (sample.active, sample.inactive))
    };
    let (drained, fresh) = (at_end(old), at_end(new));
    let total = drained.0 + drained.1 + fresh.0 + fresh.1;
    line(
        "F2.1",
        "IPVS entries of the service: 14,301 and 14,298",
        &format!(
            "{total}: {} + {} on the old, {} + {} on the new",
            drained.0, drained.1, fresh.0, fresh.1
        ),
        "agrees within 1.3 % (rest: odd ports or a second client)",
    );
    line(
        "F2.2",
        "98.3 % of them on the drained real server, which is never removed",
        &format!(
            "{}, never removed",
            per_cent(f64::from(drained.0 + drained.1) / f64::from(total))
        ),
        "agrees",
    );
    line(
        "F2.3",
        "connects fail with \"No route to host\" until the load stops",
        &format!("{} of the connects after the pod's death", per_cent(failed)),
        "agrees",
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
    line(
        "F2.4",
        "mode 1 on a fixed kernel, or c95c07836fa4: no failure, real server removed",
        "none failed on 4.19.140 in mode 1 and 4.19.219 in mode 0; removed within 180 s",
        "agrees",
    );
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
    line(
        "F2.5",
        "a drained real server goes after 120 to 180 s",
        &format!("after {took:.0} s without reuse"),
        "agrees",
    );
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
    line(
        "F2.6",
        "new pods of a scale-out get little traffic in mode 0",
        &format!(
            "{} of the connects go to half of the pods; {} in mode 1",
            per_cent(pinned),
            per_cent(spread)
        ),
        "agrees",
    );
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
    line(
        "F3.1",
        "\"QPS = 0 and timeouts\" although only new pods are listed",
        &format!(
            "from the last preStop's end on {} of the goodput; {} of the failures are timeouts, all on reused ports",
            per_cent(dead / before),
            per_cent(timeouts as f64 / result.summary.failed() as f64)
        ),
        "agrees (load chosen)",
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
    line(
        "F5.1",
        "InActConn jumps to 14000 within seconds, then extremely slow",
        &format!(
            "{} after {full} s, then {} of the rate",
            inactive(29),
            per_cent(slow / (30 - full) as f64 / fast)
        ),
        "agrees",
    );
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
    line(
        "F5.2",
        "fixed port, mode 1: tens of ms first, then 1 s each; mode 1 on a fixed kernel: never",
        &format!(
            "{:.0} ms, then {:.2} s each; none on 4.14.194",
            connects[0] * 1e3,
            connects[1]
        ),
        "agrees",
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
    line(
        "F5.3",
        "mode 0: the port goes to the same pod for 2 minutes after it was deleted",
        "dead pod hit at +30, +90, +119 s, not at +121 s",
        "agrees",
    );
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
    line(
        "F5.4",
        "mode 0, attempts less than a minute apart: for ever",
        "19 attempts in 950 s, all on the dead pod",
        "agrees",
    );
}

/// F5, its caveat: connect() of RHEL 7 goes on to the next odd port only where the even one is busy. The server closes first here, so no port
/// is: an el7 caller fills the even half alone, as a newer one does.
#[test]
fn f05_an_el7_caller_fills_the_even_half_too() {
    let mut scenario = load("f05-plateau");
    scenario.client[0].kernel = scenario.node.kernel.clone();
    let result = play(&scenario);
    let of = samples(&result, 29, 30);
    let found = of.map(|sample| sample.inactive).sum::<u32>();
    assert!(
        (EVEN_PORTS - 20..=EVEN_PORTS + 20).contains(&found),
        "{found}"
    );
    line(
        "F5.5",
        "14000 on an apparent CentOS 7 host: was the caller a newer machine?",
        &format!(
            "{found} with an el7 caller: where the server closes first its connect() uses even ports only"
        ),
        "agrees; no newer machine is needed",
    );
    scenario.client[0].ports = OrKernel(Some(Ports {
        low: 1_024,
        high: 65_535,
    }));
    let wide = play(&scenario);
    let found = samples(&wide, 29, 30)
        .map(|sample| sample.inactive)
        .sum::<u32>();
    assert!((32_236..=32_276).contains(&found), "{found}");
    line(
        "F5.6",
        "another report from a 3.10 host: 32,000",
        &format!("{found} if its range was 1024-65535"),
        "agrees (range not stated)",
    );
}
