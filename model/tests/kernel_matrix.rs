//! The kernel matrix: which kernel loses a second in mode 1 and which sends to the drained real server in mode 0
//! (field case F9), which mode recent kube-proxies leave (facts 1.6.5), and the eras of the long-term branches
//! (facts 1.6.1). Nothing is looked up: each row reuses a port on a node and sees what becomes of the SYN.

mod common;

use common::{A, ACK, B, CLIENT, FIN, Flow, Lab, RST, SYN_ACK, at};
use ipvs_model::conntrack::SourceNat;
use ipvs_model::kernel::Kernel;
use ipvs_model::kube::{ProxyVersion, SysctlConfig, sysctls_at_start};
use ipvs_model::node::Verdict;
use ipvs_model::sysctl::Sysctls;

/// What becomes of a SYN on a port whose entry is in TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// To the entry's old real server.
    Kept,
    /// To a live real server, at once.
    Rescheduled,
    /// Dropped, and to a live real server a second later.
    Delayed,
}

/// A connection through A closes with FINs, A is replaced by B, and a port in TIME_WAIT is used again.
fn reuse(mut lab: Lab) -> Fate {
    let mut flow = Flow::new(CLIENT);
    lab.open(&mut flow);
    lab.server_closes(&mut flow);
    lab.wait_s(10);
    lab.replace(A, B);
    lab.wait_s(53);
    fate(&mut lab, &mut flow)
}

fn fate(lab: &mut Lab, flow: &mut Flow) -> Fate {
    let reached = lab.syn(flow);
    if let Err((verdict, _)) = reached {
        assert_eq!(verdict, Verdict::Drop, "not refused");
        lab.wait_s(1);
        lab.again(flow);
        assert_eq!(lab.node.bound_to(&flow.tuple()), Some(at(B)));
        return Fate::Delayed;
    }
    match reached {
        Ok(pod) if pod == at(A) => Fate::Kept,
        _ => Fate::Rescheduled,
    }
}

/// F9's columns for a kernel: delay in mode 1 (a port of a live real server), failures in mode 0 (a drained one).
fn delay_and_failures(release: &str, expire_nodest: bool) -> (bool, bool) {
    let lab = |mode| {
        let mut lab = Lab::new(release, mode, &[A]);
        lab.sysctl(|all| all.vs.expire_nodest_conn = expire_nodest);
        lab
    };
    let mut live = lab(1);
    let mut flow = Flow::new(CLIENT);
    live.open(&mut flow);
    live.server_closes(&mut flow);
    live.add(B);
    live.wait_s(30);
    let delayed = fate(&mut live, &mut flow) == Fate::Delayed;
    (delayed, reuse(lab(0)) == Fate::Kept)
}

/// F9, the prediction matrix, expire_nodest_conn=1: kernel, delay in mode 1, failures in mode 0.
#[test]
fn f9_delays_and_failures_by_kernel() {
    let rows = [
        ("4.14.193", true, true),
        ("4.19.139", true, true),
        ("5.4.58", true, true),
        ("4.14.194", false, true),
        ("4.14.256", false, true),
        ("4.19.140", false, true),
        ("4.19.218", false, true),
        ("5.4.59", false, true),
        ("5.4.162", false, true),
        ("4.14.257", false, false),
        ("4.19.219", false, false),
        ("5.10.83", false, false),
        ("5.16", false, false),
        ("5.9", false, true),
        ("5.10.82", false, true),
        ("5.11.1", false, true),
        // CentOS 7: the knob and the drop are back-ported, neither fix is.
        ("3.10.0-1160.el7.x86_64", true, true),
        // Likely in F9, confirmed since (facts 1.6.1).
        ("5.4.163", false, false),
        ("5.15.5", false, true),
        ("5.15.6", false, false),
        ("6.1.192", false, false),
        ("6.12.117", false, false),
    ];
    for (release, delay, failures) in rows {
        assert_eq!(
            delay_and_failures(release, true),
            (delay, failures),
            "{release}"
        );
    }
}

/// F9, last sentence: without expire_nodest_conn the weight-0 fix makes no difference, on any kernel.
#[test]
fn f9_without_expire_nodest_the_fix_is_irrelevant() {
    for release in [
        "3.10.108",
        "3.10.0-1160.el7.x86_64",
        "4.14.256",
        "4.14.257",
        "4.19.218",
        "4.19.219",
        "5.4.163",
        "5.10.83",
        "5.15.6",
        "6.12.117",
    ] {
        let (_, failures) = delay_and_failures(release, false);
        assert!(failures, "{release}");
    }
}

/// Facts 1.6.5: kernel, the mode that a recent kube-proxy leaves, and the fate of a SYN on a port of a drained pod.
#[test]
fn what_recent_kube_proxies_make_of_each_kernel() {
    use Fate::{Delayed, Kept, Rescheduled};
    let rows: &[(&str, u8, Fate)] = &[
        ("3.10.108", 1, Rescheduled),
        ("4.0.5", 1, Rescheduled),
        ("3.10.0-1160.el7.x86_64", 1, Delayed),
        ("4.1.6", 0, Kept),
        ("4.9.115", 0, Kept),
        ("4.14.256", 0, Kept),
        ("4.15.18", 0, Kept),
        ("4.18.20", 0, Kept),
        ("4.19.57", 0, Kept),
        ("4.19.218", 0, Kept),
        ("4.20.17", 0, Kept),
        ("5.3.18", 0, Kept),
        ("5.4.30", 0, Kept),
        ("5.4.162", 0, Kept),
        ("5.5.19", 0, Kept),
        ("5.8.18", 0, Kept),
        ("4.14.257", 0, Rescheduled),
        ("4.19.219", 0, Rescheduled),
        ("5.4.163", 0, Rescheduled),
        ("5.9.16", 1, Rescheduled),
        ("5.10.82", 1, Rescheduled),
        ("5.11.22", 1, Rescheduled),
        ("5.14.21", 1, Rescheduled),
        ("5.15.5", 1, Rescheduled),
        ("5.10.83", 1, Rescheduled),
        ("5.15.6", 1, Rescheduled),
        ("5.16", 1, Rescheduled),
        ("6.1.192", 1, Rescheduled),
        ("6.12.117", 1, Rescheduled),
    ];
    for &(release, mode, want) in rows {
        let lab = started("1.28.3", release);
        assert_eq!(
            lab.node.config().sysctls.vs.conn_reuse_mode,
            mode,
            "{release}"
        );
        assert_eq!(reuse(lab), want, "{release}");
    }
}

/// Facts 1.6.5, "only if an operator set mode 0", and the old kube-proxies that wrote 0 on every kernel.
#[test]
fn a_mode_of_zero_from_elsewhere_brings_the_bug() {
    for release in ["3.10.0-1160.el7.x86_64", "5.9.16", "5.10.82", "5.15.5"] {
        let mut lab = started("1.28.3", release);
        lab.sysctl(|all| all.vs.conn_reuse_mode = 0);
        assert_eq!(reuse(lab), Fate::Kept, "{release}");
        assert_eq!(reuse(started("1.17.0", release)), Fate::Kept, "{release}");
    }
    for release in ["5.10.83", "5.15.6", "6.12.117"] {
        assert_eq!(
            reuse(started("1.17.0", release)),
            Fate::Rescheduled,
            "{release}"
        );
    }
}

/// A node on which this kube-proxy has started.
fn started(proxy: &str, release: &str) -> Lab {
    let proxy: ProxyVersion = proxy.parse().expect("release");
    let kernel: Kernel = release.parse().expect("release");
    let mut sysctls = Sysctls::of(kernel.behaviours());
    let config = SysctlConfig::default();
    sysctls_at_start(proxy.behaviours(), &kernel, &config, &mut sysctls).expect("it starts");
    Lab::with(release, sysctls, SourceNat::NullBinding, &[A])
}

/// What tells the eras of facts 1.6.1 apart, seen from outside: mode 1, live real server, by what closed the entry.
///
/// TIME_WAIT after FINs; CLOSE after the client's RST (conntrack reopens); CLOSE after the server's (it does not).
fn fingerprint(release: &str) -> String {
    type Close = fn(&mut Lab, &mut Flow);
    let closes: [Close; 3] = [
        |lab, flow| lab.server_closes(flow),
        |lab, flow| {
            lab.client(flow, RST);
        },
        |lab, flow| {
            lab.pod(flow, RST);
        },
    ];
    let mut text = String::new();
    for close in closes {
        let mut lab = Lab::new(release, 1, &[A]);
        let mut flow = Flow::new(CLIENT);
        lab.open(&mut flow);
        close(&mut lab, &mut flow);
        lab.add(B);
        lab.wait_s(5);
        text.push(letter(fate(&mut lab, &mut flow)));
    }
    // Mode 0 at weight 0, and a deleted real server's entry when the SYN comes in the same tick.
    text.push(letter(reuse(Lab::new(release, 0, &[A]))));
    let mut lab = Lab::new(release, 0, &[A]);
    let mut flow = Flow::new(CLIENT);
    lab.open(&mut flow);
    lab.server_closes(&mut flow);
    lab.add(B);
    lab.delete(A);
    flow.begin_again();
    let decision = lab.client_now(&mut flow, common::SYN, 0);
    text.push(match decision.verdict {
        Verdict::Forward(_) => 'r',
        _ => 'd',
    });
    text
}

const fn letter(fate: Fate) -> char {
    match fate {
        Fate::Kept => 'k',
        Fate::Rescheduled => 'r',
        Fate::Delayed => 'd',
    }
}

/// Facts 1.6.1, "effective eras on LTS" and the eras themselves, by behaviour: k kept, r rescheduled, d dropped first.
/// Columns: TIME_WAIT, CLOSE by the client, CLOSE by the server (all mode 1), weight 0 in mode 0, deleted.
#[test]
fn the_eras_of_the_long_term_branches() {
    let (a, b, c) = ("kkkrd", "rkkkd", "dddkd");
    let (d, df, e, f) = ("rrdkd", "rrdrd", "rrdkr", "rrdrr");
    let rows = [
        ("3.10.108", a),
        ("4.0.5", a),
        ("4.1.6", b),
        ("4.5.7", b),
        ("4.6.2", c),
        ("4.9.292", c),
        ("4.14.193", c),
        ("4.14.194", d),
        ("4.14.257", df),
        ("4.19.0", c),
        ("4.19.139", c),
        ("4.19.140", d),
        ("4.19.218", d),
        ("4.19.219", df),
        ("5.4.58", c),
        ("5.4.59", d),
        ("5.4.162", d),
        ("5.4.163", df),
        ("5.7.14", c),
        ("5.8.1", c),
        ("5.8.2", d),
        ("5.9.1", e),
        ("5.10.0", e),
        ("5.10.82", e),
        ("5.10.83", f),
        ("5.11.4", e),
        ("5.15.0", e),
        ("5.15.5", e),
        ("5.15.6", f),
        ("5.17", f),
        ("6.1.192", f),
        ("6.12.117", f),
        ("3.10.0-1160.el7.x86_64", c),
    ];
    for (release, era) in rows {
        assert_eq!(fingerprint(release), era, "{release}");
    }
    // 4.4.y took over the drop but not the CLOSE rule.
    assert_eq!(fingerprint("4.4.155"), "dkkkd");
}

/// F9's footnote: the delay and the drop need conntrack. With vs.conntrack=0 mode 1 never costs a second.
#[test]
fn without_conntrack_there_is_no_delay() {
    for release in ["4.19.57", "5.7.14", "6.12.117"] {
        let mut lab = Lab::new(release, 1, &[A]);
        lab.sysctl(|all| all.vs.conntrack = false);
        assert_eq!(reuse(lab), Fate::Rescheduled, "{release}");
    }
}

/// F5 and F9: a fixed port, again and again. Mode 1 before the fix: a second for each; after it: never; after a pause
/// of 120 s and the wheel's lateness: never.
#[test]
fn a_fixed_port_costs_a_second_each_time_before_the_fix() {
    for (release, pause, want) in [
        ("5.4.58", 5, Fate::Delayed),
        ("5.4.58", 100, Fate::Delayed),
        ("5.4.58", 123, Fate::Rescheduled),
        ("5.4.59", 5, Fate::Rescheduled),
    ] {
        let mut lab = Lab::new(release, 1, &[B]);
        let mut flow = Flow::new(CLIENT);
        lab.open(&mut flow);
        lab.server_closes(&mut flow);
        for _ in 0..3 {
            lab.wait_s(pause);
            assert_eq!(fate(&mut lab, &mut flow), want, "{release} after {pause} s");
            lab.pod(&mut flow, SYN_ACK);
            lab.client(&mut flow, ACK);
            lab.client(&mut flow, FIN);
            lab.pod(&mut flow, FIN);
            lab.client(&mut flow, ACK);
        }
    }
}
