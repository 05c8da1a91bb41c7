//! The words of links.

use ipvs_model::segment::{Endpoint, IcmpKind};
use ipvs_model::tcp::rule::Rule as TcpRule;
use ipvs_model::time::{Instant, Span};

use crate::engine::story::{AtNode, Fate, GoneAnswer, Story};
use crate::engine::trace::Happening;
use crate::report::text;
use crate::scenario::{Arrivals, DeadEnd, Dist, Rollout, Scenario, Side};

/// A length of time.
pub fn length(span: Span) -> String {
    text::length(span)
}

/// A number with its thousands apart.
pub fn number(number: u64) -> String {
    text::thousands(number)
}

/// What the clients of a table do.
pub fn load(scenario: &Scenario, kind: u16) -> String {
    let Some(client) = scenario.client.get(usize::from(kind)) else {
        return "clients call the service".to_owned();
    };
    let rate = match &client.arrivals {
        Arrivals::Constant(rate) | Arrivals::Poisson(rate) => format!("{} requests/s", rate.rate),
        Arrivals::Closed(closed) => {
            format!("{} workers one request after the other", closed.concurrency)
        }
    };
    let (low, high) = client.tcp().local_ports;
    let ports = number(u64::from(high.saturating_sub(low)) + 1);
    let hosts = match client.count {
        1 => format!("client {}", client.address),
        count => format!("{count} clients from {} on", client.address),
    };
    let each = match client.requests_per_connection {
        1 => "a connection each".to_owned(),
        many => format!("{many} a connection"),
    };
    format!(
        "{hosts}: {rate}, {each}, from {ports} ports, to {}",
        scenario.service.address
    )
}

/// Why no port is free.
pub fn ports_held(scenario: &Scenario, kind: u16) -> String {
    let client = scenario.client.get(usize::from(kind));
    let rest = match client.map(|client| client.closes_first) {
        Some(Side::Client) => {
            "those of closed connections rest in TIME_WAIT for 60 s, because the client closes first"
        }
        _ => "all are in use by connections that are open or half open",
    };
    format!("connect() finds no free port: {rest}")
}

fn kind_of_dead_end(scenario: &Scenario) -> &'static str {
    match scenario.server.dead_end {
        DeadEnd::Blackhole => "its packets vanish",
        DeadEnd::Unreachable => "a route answers ICMP host unreachable",
        DeadEnd::ArpFailure => "nobody answers ARP for it",
        DeadEnd::Reset => "something answers RST for it",
        DeadEnd::Reassigned(_) => "another pod will get it",
    }
}

/// What happened to a pod or its rules.
pub fn happening(kind: &Happening, pod: Option<Endpoint>, scenario: &Scenario) -> String {
    let pod = pod.map_or_else(|| "the service".to_owned(), |pod| pod.to_string());
    match kind {
        Happening::RolloutStarted => match &scenario.rollout {
            Rollout::Deployment(deployment) => format!(
                "the rollout starts: {} pods are to be replaced",
                deployment.replicas
            ),
            Rollout::Scripted(script) => format!(
                "{} pods are to be replaced by {}",
                script.old_pods, script.new_pods
            ),
            Rollout::Scale(scale) => format!("{} pods become {}", scale.from, scale.to),
            Rollout::Flap(flap) => format!(
                "{} of {} pods are not ready for a while",
                flap.flapping, flap.pods
            ),
            Rollout::None(_) => "the pods change".to_owned(),
        },
        Happening::PodTerminating => match &scenario.rollout {
            Rollout::Deployment(deployment) if deployment.pre_stop.0 > 0 => {
                format!(
                    "{pod} is deleted; its preStop takes {}",
                    length(deployment.pre_stop)
                )
            }
            _ => format!("{pod} is deleted"),
        },
        Happening::WeightSet(0) => {
            format!(
                "kube-proxy sets {pod} to weight 0: it has entries, so it may not be deleted yet"
            )
        }
        Happening::ServerDeleted => format!("kube-proxy deletes the real server {pod}"),
        Happening::SigTerm => format!("{pod} gets SIGTERM"),
        Happening::ListenerClosed => format!("{pod} closes its listener"),
        Happening::ProcessExited => format!("the process of {pod} ends"),
        Happening::ProcessKilled => format!("the process of {pod} is killed"),
        Happening::AddressGone => {
            format!("the address of {pod} goes: {}", kind_of_dead_end(scenario))
        }
        Happening::RulesList(endpoints) if endpoints.is_empty() => {
            "the rules list no endpoint".to_owned()
        }
        other => format!("{pod}: {other}"),
    }
}

/// The stable name of a link about a happening.
pub const fn key(kind: &Happening) -> &'static str {
    match kind {
        Happening::RolloutStarted => "rollout-started",
        Happening::RolloutComplete => "rollout-complete",
        Happening::PodReady => "pod-ready",
        Happening::PodNotReady => "pod-not-ready",
        Happening::PodTerminating => "pod-terminating",
        Happening::PreStopStarted => "pre-stop",
        Happening::SigTerm => "sigterm",
        Happening::ListenerClosed => "listener-closed",
        Happening::ProcessExited => "process-exited",
        Happening::ProcessKilled => "process-killed",
        Happening::AddressGone => "address-went",
        Happening::ServerAdded => "server-added",
        Happening::WeightSet(_) => "weight-set",
        Happening::ServerDeleted => "server-deleted",
        Happening::RulesList(_) => "rules",
    }
}

/// The node's decision.
pub fn decision(decision: &AtNode, times: u32) -> String {
    let mut words = decision.rule.describe().to_owned();
    let fate = match decision.fate {
        Fate::Forwarded(to) => format!(
            "{} goes to {to}",
            if decision.syn { "it" } else { "the packet" }
        ),
        Fate::Dropped => "it is dropped without a word".to_owned(),
        Fate::Rejected(kind) => format!("it is rejected ({})", icmp_name(kind)),
        Fate::Local { reset: true } => "the node itself answers RST".to_owned(),
        Fate::Local { reset: false } => "the node itself takes it".to_owned(),
    };
    words.push_str("; ");
    words.push_str(&fate);
    match times {
        0 | 1 => {}
        2 => words.push_str("; sent again once, with the same result"),
        more => words.push_str(&format!(
            "; sent again {} times, with the same result",
            more - 1
        )),
    }
    words
}

const fn icmp_name(kind: IcmpKind) -> &'static str {
    match kind {
        IcmpKind::NetUnreachable => "ICMP network unreachable",
        IcmpKind::HostUnreachable => "ICMP host unreachable",
        IcmpKind::PortUnreachable => "ICMP port unreachable",
        IcmpKind::AdminProhibited => "ICMP prohibited",
        IcmpKind::TtlExceeded => "ICMP time exceeded",
    }
}

/// A pod's answer.
pub fn pod(server: Endpoint, rule: TcpRule) -> String {
    let what = match rule {
        TcpRule::SynAnswered | TcpRule::RequestSynAgain => "answers the SYN",
        TcpRule::AcceptQueueFull => "drops the SYN: its accept queue is full",
        TcpRule::NoSocket => "answers RST: nothing listens there (any more)",
        TcpRule::ChallengeAck | TcpRule::TimeWaitAck => {
            "still has a socket of the port's last use, and answers the SYN with a bare ACK"
        }
        TcpRule::ChallengeLimited | TcpRule::TimeWaitAckLimited => {
            "still has a socket of the port's last use, and says nothing (rate limit)"
        }
        TcpRule::TimeWaitReopened => "reopens the connection from TIME_WAIT",
        _ => "answers",
    };
    format!("{server} {what}")
}

/// What comes of a packet to an address that is gone.
pub fn gone(server: Endpoint, answer: GoneAnswer) -> String {
    let what = match answer {
        GoneAnswer::Nothing => "the packet is lost".to_owned(),
        GoneAnswer::Arp => "the last node asks for it by ARP, in vain".to_owned(),
        GoneAnswer::Icmp(kind) => format!("{} comes back", icmp_name(kind)),
        GoneAnswer::Reset => "a RST comes back".to_owned(),
        GoneAnswer::NewOwner => "another workload has the address, and answers".to_owned(),
    };
    format!("{server} is gone: {what}")
}

/// An ICMP error of the node.
pub fn icmp(kind: IcmpKind, sent: bool) -> String {
    let name = icmp_name(kind);
    if sent {
        format!("the node sends {name} to the client")
    } else {
        format!("the node would send {name}, but its rate limit is used up")
    }
}

/// The application gives up.
pub fn gave_up(scenario: &Scenario, story: &Story, at: Instant, connecting: bool) -> String {
    let after = length(at.since(story.start));
    let what = if connecting {
        "its connect()"
    } else {
        "waiting for the answer"
    };
    let limit = scenario
        .client
        .get(usize::from(story.kind))
        .and_then(|client| client.timeout);
    let slow = match scenario.server.service_time {
        Dist::Constant(span) if !connecting && limit.is_some_and(|limit| span >= limit) => {
            format!(": a response takes {}", length(span))
        }
        _ => String::new(),
    };
    format!("the application gives up {what} after {after}{slow}")
}
