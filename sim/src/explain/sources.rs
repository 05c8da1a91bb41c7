//! Where rules come from: kernel function and releases, kube-proxy function and versions, and which remedies of `sim whatif`
//! would have cut a chain at them. A table; `model` holds the rules themselves.

use ipvs_model::conntrack::CtRule;
use ipvs_model::ipvs::Rule as IpvsRule;
use ipvs_model::kernel::Gate;
use ipvs_model::node::Rule;
use ipvs_model::tcp::rule::Rule as TcpRule;
use serde::Serialize;

use crate::engine::trace::Happening;

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// The function that decides.
    pub function: &'static str,
    /// Its file.
    pub file: &'static str,
    /// In which releases it is so.
    pub releases: String,
}

/// Remedies, by their names in `sim whatif`.
pub type Cuts = &'static [&'static str];

/// From 3.10, the oldest that is modelled, to the newest that was read.
const ALL: &str = "3.10 to 6.19";
const CORE: &str = "net/netfilter/ipvs/ip_vs_core.c";

fn source(function: &'static str, file: &'static str, releases: &str) -> Source {
    Source {
        function,
        file,
        releases: releases.to_owned(),
    }
}

/// The releases that lack a behaviour, with the commit that brought it.
fn until(gate: Gate) -> String {
    let row = gate.row();
    let commit = row.source.split(';').next().unwrap_or_default();
    let since = row
        .since
        .map_or_else(String::new, |since| since.to_string());
    let ports: Vec<String> = row.backports.iter().map(ToString::to_string).collect();
    let ports = if ports.is_empty() {
        String::new()
    } else {
        format!("; {}", ports.join(", "))
    };
    format!("without {commit} ({since}{ports})")
}

/// The releases that have a behaviour.
fn from(gate: Gate) -> String {
    until(gate).replacen("without", "with", 1)
}

/// The source of a rule of the node.
pub fn of_rule(rule: Rule) -> Source {
    match rule {
        Rule::Ipvs(rule) => of_ipvs(rule),
        Rule::Conntrack(rule) => of_conntrack(rule),
        Rule::IptablesPicked => source(
            "statistic match of KUBE-SVC chains; nf_nat_setup_info",
            "pkg/proxy/iptables/proxier.go; net/netfilter/nf_nat_core.c",
            "kube-proxy 1.11 to 1.35",
        ),
        Rule::IptablesKept => source("nf_nat_packet", "net/netfilter/nf_nat_core.c", ALL),
        Rule::IptablesNoEndpoint => source(
            "REJECT of KUBE-SERVICES",
            "pkg/proxy/iptables/proxier.go",
            "kube-proxy 1.11 to 1.35",
        ),
        Rule::NoRoute => source("ip_route_input_slow, ip_error", "net/ipv4/route.c", ALL),
        Rule::Plain => source("ip_rcv_finish", "net/ipv4/ip_input.c", ALL),
        #[allow(
            unreachable_patterns,
            reason = "other data planes bring rules of their own"
        )]
        _ => source("the data plane's", "docs/model.md", "see there"),
    }
}

fn of_ipvs(rule: IpvsRule) -> Source {
    let hook = "ip_vs_in_hook (ip_vs_in before 5.13)";
    match rule {
        IpvsRule::SynKeptAtWeightZero => source(hook, CORE, &until(Gate::WeightZeroAnyMode)),
        IpvsRule::EntryFound | IpvsRule::SynKept | IpvsRule::DatagramKeptAtWeightZero => {
            source(hook, CORE, ALL)
        }
        IpvsRule::Scheduled | IpvsRule::ScheduledSloppy | IpvsRule::NoDestination => {
            source("ip_vs_schedule", CORE, ALL)
        }
        IpvsRule::ScheduledByTemplate => source("ip_vs_sched_persist", CORE, ALL),
        IpvsRule::RescheduledWeightZero => source(hook, CORE, &from(Gate::WeightZeroAnyMode)),
        IpvsRule::RescheduledReuse => source("is_new_conn_expected", CORE, &from(Gate::ReuseMode)),
        IpvsRule::RescheduledDeleted => source(hook, CORE, &from(Gate::DeletedDestReschedules)),
        IpvsRule::DroppedWeightZero | IpvsRule::DroppedReuse => source(
            "ip_vs_conn_uses_conntrack, ip_vs_conn_uses_old_conntrack",
            CORE,
            &until(Gate::ReuseDropsConfirmed),
        ),
        IpvsRule::DroppedDeleted => source(hook, CORE, &until(Gate::DeletedDestReschedules)),
        IpvsRule::BlackholedDeleted => source(hook, CORE, "all with expire_nodest_conn=0"),
        IpvsRule::NoService | IpvsRule::NotSchedulable => source(
            "tcp_conn_schedule",
            "net/netfilter/ipvs/ip_vs_proto_tcp.c",
            ALL,
        ),
        IpvsRule::NoEntryOutward | IpvsRule::Translated => source("ip_vs_out_hook", CORE, ALL),
    }
}

/// The source of a rule of conntrack.
pub fn of_conntrack(rule: CtRule) -> Source {
    let tcp = "net/netfilter/nf_conntrack_proto_tcp.c";
    match rule {
        CtRule::TableFull => source(
            "__nf_conntrack_alloc, early_drop",
            "net/netfilter/nf_conntrack_core.c",
            ALL,
        ),
        CtRule::Clash | CtRule::Confirmed => source(
            "__nf_conntrack_confirm",
            "net/netfilter/nf_conntrack_core.c",
            ALL,
        ),
        CtRule::NatEstablished
        | CtRule::NatPortKept
        | CtRule::NatPortShared
        | CtRule::NatPortDrawn
        | CtRule::NatEvicted
        | CtRule::NatExhausted => source("get_unique_tuple", "net/netfilter/nf_nat_core.c", ALL),
        CtRule::NewUdp | CtRule::UdpUnreplied | CtRule::UdpReplied | CtRule::UdpStream => source(
            "nf_conntrack_udp_packet",
            "net/netfilter/nf_conntrack_proto_udp.c",
            ALL,
        ),
        CtRule::InWindow
        | CtRule::LiberalWindow
        | CtRule::InvalidSeqOver
        | CtRule::InvalidSeqUnder
        | CtRule::InvalidAckOver
        | CtRule::InvalidAckUnder
        | CtRule::InvalidShortened
        | CtRule::IgnoredDelayed
        | CtRule::IgnoredOvershot => source("tcp_in_window", tcp, ALL),
        _ => source("nf_conntrack_tcp_packet", tcp, ALL),
    }
}

/// The source of a rule of a pod's or client's TCP.
pub fn of_tcp(rule: TcpRule) -> Source {
    match rule {
        TcpRule::SynAnswered | TcpRule::AcceptQueueFull => {
            source("tcp_conn_request", "net/ipv4/tcp_input.c", ALL)
        }
        TcpRule::NoSocket | TcpRule::NoSocketReset => {
            source("tcp_v4_send_reset", "net/ipv4/tcp_ipv4.c", ALL)
        }
        TcpRule::ChallengeAck | TcpRule::ChallengeLimited => source(
            "tcp_send_challenge_ack",
            "net/ipv4/tcp_input.c",
            "3.10 to 6.19 (RFC 5961)",
        ),
        TcpRule::TimeWaitAck | TcpRule::TimeWaitAckLimited | TcpRule::TimeWaitReopened => source(
            "tcp_timewait_state_process",
            "net/ipv4/tcp_minisocks.c",
            ALL,
        ),
        TcpRule::RequestSynAgain | TcpRule::RequestReset | TcpRule::RequestBadAck => {
            source("tcp_check_req", "net/ipv4/tcp_minisocks.c", ALL)
        }
        _ => source("tcp_rcv_state_process", "net/ipv4/tcp_input.c", ALL),
    }
}

/// The source of something that happens to pods and rules.
pub fn of_happening(kind: &Happening) -> Source {
    let kubelet = "pkg/kubelet/kuberuntime/kuberuntime_container.go";
    let graceful = "pkg/proxy/ipvs/graceful_termination.go";
    match kind {
        Happening::RolloutStarted | Happening::RolloutComplete | Happening::PodTerminating => {
            source(
                "reconcileOldReplicaSets, cleanupUnhealthyReplicas",
                "pkg/controller/deployment/rolling.go",
                "Kubernetes 1.11 to 1.35",
            )
        }
        Happening::PodReady | Happening::PodNotReady => source(
            "prober worker",
            "pkg/kubelet/prober/worker.go",
            "Kubernetes 1.11 to 1.35",
        ),
        Happening::PreStopStarted
        | Happening::SigTerm
        | Happening::ProcessExited
        | Happening::ProcessKilled => source("killContainer", kubelet, "Kubernetes 1.11 to 1.35"),
        Happening::ListenerClosed => source(
            "the application at SIGTERM",
            "the scenario: on_sigterm",
            "-",
        ),
        Happening::AddressGone => source(
            "StopPodSandbox, CNI DEL",
            "the scenario: server.address_gone_after (assumed)",
            "container runtime",
        ),
        Happening::ServerAdded => source(
            "syncEndpoint",
            "pkg/proxy/ipvs/proxier.go",
            "kube-proxy 1.11 to 1.35",
        ),
        Happening::WeightSet(_) => source(
            "GracefulDeleteRSHandler",
            graceful,
            "kube-proxy from 1.13 on (1.11.5, 1.12.2)",
        ),
        Happening::ServerDeleted => source(
            "deleteRsFunc, tryDeleteRs",
            graceful,
            "kube-proxy 1.11 to 1.35",
        ),
        Happening::RulesList(_) => source(
            "syncProxyRules",
            "pkg/proxy/iptables/proxier.go",
            "kube-proxy 1.11 to 1.35",
        ),
    }
}

/// The entry that stays: TIME_WAIT in IPVS.
pub fn ipvs_time_wait() -> Source {
    source(
        "tcp_timeouts[IP_VS_TCP_S_TIME_WAIT] = 2 min",
        "net/netfilter/ipvs/ip_vs_proto_tcp.c",
        "3.10 to 6.19; no sysctl, and ipvsadm --set does not reach it",
    )
}

/// The entry that stays: conntrack.
pub fn conntrack_timeouts() -> Source {
    source(
        "tcp_timeouts: TIME_WAIT 120 s, SYN_SENT 120 s",
        "net/netfilter/nf_conntrack_proto_tcp.c",
        "3.10 to 6.19; nf_conntrack_tcp_timeout_*",
    )
}

/// How connect() chooses a port.
pub fn port_choice() -> Source {
    source(
        "__inet_hash_connect",
        "net/ipv4/inet_hashtables.c",
        "3.10 to 6.19, in four eras",
    )
}

/// The repetition of a SYN.
pub fn syn_again() -> Source {
    source(
        "tcp_retransmit_timer, TCP_TIMEOUT_INIT",
        "net/ipv4/tcp_timer.c",
        "3.10 to 6.19: after 1 s, then 2 s more, ...; from 6.5 on four times after 1 s",
    )
}

/// The limit of ICMP errors.
pub fn icmp_limits() -> Source {
    source(
        "icmpv4_xrlim_allow, icmpv4_global_allow",
        "net/ipv4/icmp.c",
        ALL,
    )
}

/// The remedies that would have cut a chain at a rule of the node.
pub const fn cuts_of_rule(rule: Rule) -> Cuts {
    match rule {
        Rule::Ipvs(IpvsRule::SynKeptAtWeightZero) => &[
            "reuse-mode-1",
            "kernel-fix",
            "iptables",
            "nftables",
            "cilium",
        ],
        Rule::Ipvs(IpvsRule::DroppedWeightZero | IpvsRule::DroppedReuse) => {
            &["reuse-mode-1-fixed-kernel", "kernel-fix"]
        }
        Rule::Ipvs(IpvsRule::DroppedDeleted | IpvsRule::BlackholedDeleted) => {
            &["expire-nodest-conn", "kernel-fix"]
        }
        Rule::Ipvs(IpvsRule::ScheduledByTemplate) => &["no-affinity"],
        Rule::IptablesKept => &["wider-ports", "keep-alive", "more-clients"],
        _ => &[],
    }
}

/// The remedies against ports that come round.
pub const PORT_CUTS: Cuts = &["wider-ports", "keep-alive", "more-clients"];
/// The remedies against an end of the pod that comes before the news of it.
pub const LAG_CUTS: Cuts = &["pre-stop"];
/// The remedies against connections that are cut.
pub const CUT_CUTS: Cuts = &["drain", "pre-stop"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::whatif::remedies;

    #[test]
    fn every_cut_is_a_remedy() {
        let rules = [
            IpvsRule::SynKeptAtWeightZero,
            IpvsRule::DroppedWeightZero,
            IpvsRule::DroppedDeleted,
            IpvsRule::ScheduledByTemplate,
        ];
        let mut all: Vec<&str> = [
            PORT_CUTS,
            LAG_CUTS,
            CUT_CUTS,
            cuts_of_rule(Rule::IptablesKept),
        ]
        .concat();
        all.extend(
            rules
                .iter()
                .flat_map(|rule| cuts_of_rule(Rule::Ipvs(*rule))),
        );
        for id in all {
            assert!(remedies::by_id(id).is_some(), "{id}");
        }
    }

    #[test]
    fn the_rule_of_the_founding_case_names_the_fix_and_its_releases() {
        let source = of_rule(Rule::Ipvs(IpvsRule::SynKeptAtWeightZero));
        assert_eq!(
            source.releases,
            "without c95c07836fa4 (5.16; 4.14.257, 4.19.219, 5.4.163, 5.10.83, 5.15.6)"
        );
    }
}
