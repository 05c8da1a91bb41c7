//! Checks of the node: its sysctls, what its kernel's release leaves open, and whether kube-proxy starts on it.

use ipvs_model::kernel::possible::NODE_DECISIVE;
use ipvs_model::kernel::{Answer, Gate, Kernel};
use ipvs_model::kube::{ProxyGate, SysctlConfig, sysctls_at_start};
use ipvs_model::sysctl::Sysctls;

use super::{contradiction, report};
use crate::diag::Diag;
use crate::scenario::field::Cx;
use crate::scenario::suggest::nearest;
use crate::scenario::{DataPlane, Scenario};

/// The sysctls that the model reads, for suggestions.
const SYSCTLS: &[&str] = &[
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.conn_reuse_mode",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
    "net.ipv4.vs.sloppy_tcp",
    "net.ipv4.vs.nat_icmp_send",
    "net.ipv4.vs.secure_tcp",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_timeout_syn_sent",
    "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_last_ack",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_close",
    "net.netfilter.nf_conntrack_tcp_timeout_max_retrans",
    "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged",
    "net.netfilter.nf_conntrack_tcp_max_retrans",
    "net.netfilter.nf_conntrack_tcp_loose",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.netfilter.nf_conntrack_tcp_ignore_invalid_rst",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_tw_reuse_delay",
    "net.ipv4.tcp_syn_retries",
    "net.ipv4.tcp_syn_linear_timeouts",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_abort_on_overflow",
    "net.core.somaxconn",
];

/// Limits that the kernel, or what the bits of the value mean, sets on top of "a number".
const SYSCTL_LIMITS: &[(&str, u64, u64)] = &[
    ("net.ipv4.vs.conn_reuse_mode", 0, 3),
    ("net.ipv4.vs.secure_tcp", 0, 3),
    ("net.ipv4.tcp_tw_reuse", 0, 2),
    ("net.ipv4.tcp_syn_retries", 1, 127),
    ("net.ipv4.tcp_syn_linear_timeouts", 0, 127),
];

pub(super) fn sysctls(scenario: &Scenario, cx: &mut Cx) {
    let mut all = Sysctls::of(scenario.node.behaviours());
    for (key, value) in scenario.node_sysctl_overrides() {
        let path = format!("node.sysctl.{key}");
        let bad = |title: String| Diag::error("bad-sysctl", title);
        let limit = SYSCTL_LIMITS.iter().find(|(name, ..)| name == key);
        let outside = limit.filter(|(_, low, high)| {
            !value
                .trim()
                .parse::<u64>()
                .is_ok_and(|value| (*low..=*high).contains(&value))
        });
        if let Some((_, low, high)) = outside {
            let diag = bad(format!("sysctl {key} cannot be `{value}`"));
            report(
                cx,
                diag.help(format!("write {low} to {high}")),
                &[(&path, String::new())],
            );
            continue;
        }
        match all.set(key, value) {
            Ok(true) => {}
            Err(error) => {
                let message = error.to_string();
                let (title, help) = message
                    .split_once(": ")
                    .unwrap_or((&message, "see `sysctl -a`"));
                report(
                    cx,
                    bad(title.to_owned()).help(help),
                    &[(&path, String::new())],
                );
            }
            Ok(false) => {
                let short = key.chars().take(80).collect::<String>();
                let diag = Diag::warning(
                    "no-effect",
                    format!("the model does not read sysctl `{short}`"),
                );
                let diag = match nearest(key, SYSCTLS.iter().copied()) {
                    Some(near) => diag.help(format!("did you mean `{near}`?")),
                    None => diag.help("it changes nothing here; leave it out"),
                };
                report(cx, diag, &[(&path, String::new())]);
            }
        }
    }
    let (low, high) = all.tcp.local_ports;
    if low == 0 || low > high {
        let title = format!("sysctl net.ipv4.ip_local_port_range cannot be `{low} {high}`");
        let diag = Diag::error("bad-sysctl", title)
            .help("write two ports, the lower one first: \"32768 60999\"");
        report(
            cx,
            diag,
            &[("node.sysctl.net.ipv4.ip_local_port_range", String::new())],
        );
    }
}

/// Releases that do not tell everything: what is assumed must be said.
pub(super) fn kernels(scenario: &Scenario, cx: &mut Cx) {
    let node = &scenario.node;
    let unknown = node
        .kernel
        .unknown()
        .filter(|gate| !node.kernel_gates.0.contains_key(gate))
        .collect::<Vec<_>>();
    let assumed = if node.assume_backports {
        "present"
    } else {
        "absent"
    };
    let decides = NODE_DECISIVE.iter().any(|(gate, _)| unknown.contains(gate));
    let shown = decides && !node.assume_backports && node.mode == DataPlane::Ipvs;
    let help = match (&node.kernel.taken, shown) {
        (None, true) => {
            "`sim run` and `sim sweep` show the result for each kernel that it can be; `uname -a` (Debian), \
             /proc/version_signature (Ubuntu) or the changelog tell which it is: kernel = \"RELEASE as X.Y.Z\""
        }
        _ => {
            "set them in [node.kernel_gates], or `assume_backports` for all of them; the kernel's changelog tells"
        }
    };
    tell_unknown(&node.kernel, &unknown, assumed, help, "node.kernel", cx);
    let mut told = vec![&node.kernel];
    let ends = scenario
        .client
        .iter()
        .enumerate()
        .map(|(index, client)| (&client.kernel, format!("client.{index}.kernel")));
    for (kernel, path) in ends.chain([(&scenario.server.kernel, "server.kernel".to_owned())]) {
        if !told.contains(&kernel) {
            told.push(kernel);
            let unknown = kernel
                .unknown()
                .filter(|gate| END_GATES.contains(gate))
                .collect::<Vec<_>>();
            let help = "write a release with its full patch level, such as 5.10.125";
            tell_unknown(kernel, &unknown, "absent", help, &path, cx);
        }
    }
}

/// The behaviours that matter at the ends of a connection.
const END_GATES: &[Gate] = &[
    Gate::ConnectEven,
    Gate::ConnectTwoPass,
    Gate::ConnectPerturb256,
    Gate::ConnectRandomStep,
    Gate::TwReuseLoopback,
    Gate::TwReuseRefusesFinWait2,
    Gate::TwReuseDelay,
    Gate::TwTimerPerSocket,
    Gate::SynResendAfterBadAck,
    Gate::SynLinear,
    Gate::TsOffsetPerTuple,
    Gate::PortRange60999,
    Gate::Somaxconn4096,
];

fn tell_unknown(
    kernel: &Kernel,
    gates: &[Gate],
    assumed: &str,
    help: &str,
    path: &str,
    cx: &mut Cx,
) {
    if gates.is_empty() {
        return;
    }
    let names = gates
        .iter()
        .map(|gate| gate.row().name)
        .collect::<Vec<_>>()
        .join(", ");
    let title = format!(
        "release {kernel} does not tell {} behaviours, which count as {assumed}",
        gates.len()
    );
    let diag = Diag::warning("unknown-behaviour", title)
        .help(format!("they are {names}"))
        .help(help);
    report(cx, diag, &[(path, String::new())]);
}

/// kube-proxy 1.13 to 1.18 gives up if it cannot set conn_reuse_mode: kube-proxy facts, section 1. What a version
/// without its patch release leaves open is said.
pub(super) fn proxy(scenario: &Scenario, cx: &mut Cx) {
    let (node, proxy) = (&scenario.node, &scenario.kube_proxy);
    let Some(release) = proxy.version.release() else {
        return;
    };
    let open = release
        .unknown()
        .map(|gate| gate.row().name)
        .collect::<Vec<_>>();
    if !open.is_empty() {
        let title = format!(
            "`kube_proxy.version` {release} does not state the patch release, which decides {} behaviours: the last of \
             the branch is taken",
            open.len()
        );
        let diag = Diag::warning("unknown-behaviour", title)
            .help(format!("they are {}", open.join(", ")))
            .help("write what `kube-proxy --version` prints");
        report(cx, diag, &[("kube_proxy.version", String::new())]);
    }
    if node.mode == DataPlane::Ipvs && release.answer(ProxyGate::IpvsDeprecated) == Answer::Yes {
        let title = format!("kube-proxy {release} deprecates IPVS mode");
        let diag = Diag::warning("deprecated", title)
            .help("it works as before; plan the way to nftables mode");
        report(cx, diag, &[("kube_proxy.version", String::new())]);
    }
    let starts = sysctls_at_start(
        release.behaviours(),
        &node.kernel,
        &SysctlConfig::default(),
        &mut Sysctls::of(node.behaviours()),
    );
    let sure = node.kernel.answer(Gate::ReuseMode) != Answer::Unknown;
    if node.mode == DataPlane::Ipvs && proxy.sets_sysctls && starts.is_err() && sure {
        contradiction(
            cx,
            format!(
                "`kube_proxy.version` {} does not start on `node.kernel` {}: it must set conn_reuse_mode, which came with 4.1",
                proxy.version, node.kernel
            ),
            "write a kernel from 4.1 on, a kube-proxy from 1.19 on, or `sets_sysctls = false`",
            &[
                ("kube_proxy.version", String::new()),
                ("node.kernel", String::new()),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sysctl_that_is_suggested_is_read() {
        for key in SYSCTLS {
            let mut all = Sysctls::of(Scenario::default().node.behaviours());
            let value = if key.ends_with("port_range") {
                "1024 2048"
            } else {
                "1"
            };
            assert_eq!(all.set(key, value), Ok(true), "{key}");
        }
        for (key, ..) in SYSCTL_LIMITS {
            assert!(SYSCTLS.contains(key), "{key}");
        }
    }
}
