//! Which kernel and which kube-proxy: F9, F22.

use ipvs_sim::engine::RunResult;
use ipvs_sim::outcome::Cause;
use ipvs_sim::scenario::{ProxyVersion, Scenario};

use crate::kit::*;

/// Requests that a reused port kept on a drained real server.
fn pinned(result: &RunResult) -> u64 {
    result.summary.causes[Cause::PinnedToDrained.index()]
}

/// Requests that lost their first SYN to port reuse.
fn dropped(result: &RunResult) -> u64 {
    result.summary.delayed[Cause::SynDroppedOnReuse.index()]
}

/// F9: kernel, whether mode 1 delays, whether mode 0 fails.
const KERNELS: [(&str, bool, bool); 16] = [
    ("4.14.193", true, true),
    ("4.19.139", true, true),
    ("5.4.58", true, true),
    ("4.14.194", false, true),
    ("4.19.140", false, true),
    ("5.4.59", false, true),
    ("4.14.257", false, false),
    ("4.19.219", false, false),
    ("5.4.163", false, false),
    ("5.10.83", false, false),
    ("5.15.6", false, false),
    ("5.16", false, false),
    ("5.9.1", false, true),
    ("5.10.82", false, true),
    ("5.11.1", false, true),
    ("3.10.0-1160.el7.x86_64", true, true),
];

/// F9: the matrix of kernels, from LKML and the announcements of stable releases.
#[test]
fn f09_delays_and_failures_by_kernel() {
    for (kernel, delays, fails) in KERNELS {
        let base = on_kernel(load("f09-kernel-matrix"), kernel);
        let one = play(&mode(base.clone(), 1));
        assert_eq!(one.summary.failed(), 0, "{kernel}");
        let late = dropped(&one) as f64 / one.summary.requests as f64;
        if delays {
            assert!(late > 0.5, "{kernel}: {late}");
        } else {
            assert_eq!(dropped(&one), 0, "{kernel}");
        }
        let zero = play(&mode(base.clone(), 0));
        let failed = pinned(&zero) as f64 / zero.summary.requests as f64;
        if fails {
            assert!(failed > 0.5, "{kernel}: {failed}");
        } else {
            assert_eq!(zero.summary.failed(), 0, "{kernel}");
        }
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        line(
            &format!(
                "F9.{}",
                1 + KERNELS.iter().position(|row| row.0 == kernel).unwrap()
            ),
            &format!(
                "{kernel}: 1 s in mode 1 {}, failures in mode 0 {}",
                yes(delays),
                yes(fails)
            ),
            &format!("{} late, {} failed", per_cent(late), per_cent(failed)),
            "agrees",
        );
    }
}

/// F9: without expire_nodest_conn the fix of 5.16 changes nothing in mode 0.
#[test]
fn f09_the_fix_needs_expire_nodest_conn() {
    let base = on_kernel(load("f09-kernel-matrix"), "5.16");
    let result = play(&with(mode(base, 0), "ipv4.vs.expire_nodest_conn", 0));
    let failed = pinned(&result) as f64 / result.summary.requests as f64;
    assert!(failed > 0.5, "{failed}");
    line(
        "F9.17",
        "5.16 with expire_nodest_conn 0: failures in mode 0 stay",
        &format!("{} failed", per_cent(failed)),
        "agrees",
    );
}

fn proxy(mut scenario: Scenario, version: &str) -> Scenario {
    scenario.kube_proxy.version = ProxyVersion::parse(version).unwrap();
    scenario
}

/// F22: DaoCloud's table: CentOS 7 has delays, CentOS 8 keeps the real server, Ubuntu 22.04 is fine.
#[test]
fn f22_what_a_vendor_says_of_three_distributions() {
    let on = |kernel: &str, version: &str| {
        let scenario = proxy(on_kernel(load("f09-kernel-matrix"), kernel), version);
        let result = play(&scenario);
        let stuck = when(
            &result,
            Some(endpoint("10.27.1.245:80")),
            "real server deleted",
        )
        .is_none();
        (dropped(&result), pinned(&result), stuck)
    };
    let (late, failed, stuck) = on("3.10.0-1160.el7.x86_64", "1.19.16");
    assert!(
        late > 2_000 && failed == 0 && !stuck,
        "{late} {failed} {stuck}"
    );
    line(
        "F22.1",
        "CentOS 7, 3.10: a delay of 1 s",
        &format!("{late} of 4,200 connects late, none failed"),
        "agrees",
    );
    // Red Hat's 4.18: whatever it may have taken over but the fix of 5.16.
    for kernel in [
        "4.18.0-305.el8 with none",
        "4.18.0-305.el8 with reuse-drops-confirmed",
    ] {
        let (_, failed, stuck) = on(kernel, "1.19.16");
        assert!(failed > 2_000 && stuck, "{kernel}: {failed} {stuck}");
    }
    let (_, failed, stuck) = on("4.18.0-305.el8 with weight-zero-any-mode", "1.19.16");
    assert!(failed == 0 && !stuck);
    line(
        "F22.2",
        "CentOS 8, 4.18: the real server is not removed",
        "never removed, unless the vendor took c95c07836fa4 over",
        "agrees; the release does not tell",
    );
    for version in ["1.19.16", "1.22.0"] {
        let found = on("5.15.0-25-generic", version);
        assert_eq!(found, (0, 0, false), "{version}");
    }
    line(
        "F22.3",
        "Ubuntu 22.04, 5.15: fine",
        "no delay, no failure, real servers removed (its first kernel is 5.15.30)",
        "agrees",
    );
}

/// F22: Ksyun KCE: kernels before 5.9 have 1 s in mode 1 or failures in mode 0.
#[test]
fn f22_before_5_9_it_is_either_delay_or_failure() {
    for kernel in ["4.19.57", "5.4.50", "5.8"] {
        let base = on_kernel(load("f09-kernel-matrix"), kernel);
        let (one, zero) = (play(&mode(base.clone(), 1)), play(&mode(base, 0)));
        assert!(
            dropped(&one) > 2_000 && one.summary.failed() == 0,
            "{kernel}"
        );
        assert!(pinned(&zero) > 2_000, "{kernel}");
    }
    line(
        "F22.4",
        "kernel below 5.9: 1 s in mode 1, or failures in mode 0",
        "so on 4.19.57, 5.4.50 and 5.8",
        "agrees for kernels without the stable fixes",
    );
}
