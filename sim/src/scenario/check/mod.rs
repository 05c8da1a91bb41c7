//! Checks across fields: values that are good alone and impossible, or without effect, together.

mod node;
mod planes;
mod topology;
mod udp;

use std::net::Ipv4Addr;

use ipvs_model::time::Span;

use super::field::Cx;
use super::{
    Amount, Arrivals, Client, Deployment, Flap, Location, Masquerade, PortChoice, ReturnPath,
    Rollout, Scenario, Scripted, span_text,
};
use crate::diag::Diag;

/// Reports every contradiction.
pub fn check(scenario: &Scenario, cx: &mut Cx) {
    times(scenario, cx);
    for (index, client) in scenario.client.iter().enumerate() {
        client_times(scenario, client, index, cx);
        client_ports(client, index, cx);
        client_values(client, index, cx);
    }
    match &scenario.rollout {
        Rollout::None(_) => {}
        Rollout::Deployment(deployment) => check_deployment(scenario, deployment, cx),
        Rollout::Scripted(script) => check_script(scenario, script, cx),
        Rollout::Scale(scale) => before_end(scenario, scale.at, "rollout.scale.at", cx),
        Rollout::Flap(flap) => check_flap(scenario, flap, cx),
    }
    addresses(scenario, cx);
    node::sysctls(scenario, cx);
    node::kernels(scenario, cx);
    node::proxy(scenario, cx);
    planes::check(scenario, cx);
    topology::check(scenario, cx);
    udp::check(scenario, cx);
    without_effect(scenario, cx);
}

fn check_flap(scenario: &Scenario, flap: &Flap, cx: &mut Cx) {
    before_end(scenario, flap.at, "rollout.flap.at", cx);
    if flap.flapping > flap.pods {
        contradiction(
            cx,
            format!(
                "`rollout.flap.flapping` ({}) is more than `rollout.flap.pods` ({})",
                flap.flapping, flap.pods
            ),
            "write as many as there are, or fewer",
            &[
                ("rollout.flap.flapping", String::new()),
                ("rollout.flap.pods", String::new()),
            ],
        );
    }
}

/// An error about the first of `paths`, with the others as context. Fields that were not written have no place: the
/// title must name them.
fn report(cx: &mut Cx, mut diag: Diag, paths: &[(&str, String)]) {
    for (path, label) in paths {
        diag = diag.at(cx.place(path), label.as_str());
    }
    cx.diags.push(diag);
}

fn contradiction(cx: &mut Cx, title: String, help: &str, paths: &[(&str, String)]) {
    report(cx, Diag::error("contradiction", title).help(help), paths);
}

fn times(scenario: &Scenario, cx: &mut Cx) {
    let end = span_text(scenario.duration);
    if scenario.warmup >= scenario.duration {
        let warmup = span_text(scenario.warmup);
        contradiction(
            cx,
            format!("`warmup` ({warmup}) leaves nothing of `duration` ({end})"),
            "make the warm-up shorter or the run longer",
            &[
                ("warmup", String::new()),
                ("duration", "the run ends here".to_owned()),
            ],
        );
    } else if let Some(start) = scenario.rollout.start()
        && scenario.warmup > start
    {
        let title = format!(
            "`warmup` ({}) ends after the rollout began ({}): its first failures are not counted",
            span_text(scenario.warmup),
            span_text(start)
        );
        let diag = Diag::warning("hides-failures", title).help("make the warm-up shorter");
        report(cx, diag, &[("warmup", String::new())]);
    }
}

fn client_times(scenario: &Scenario, client: &Client, index: usize, cx: &mut Cx) {
    let path = |field: &str| format!("client.{index}.{field}");
    let (start, end) = (client.start, scenario.duration);
    let stop = client.stop.unwrap_or(end);
    if start >= end {
        contradiction(
            cx,
            format!(
                "`{}` ({}) is not before the end of the run, `duration` ({})",
                path("start"),
                span_text(start),
                span_text(end)
            ),
            "start earlier or make the run longer",
            &[
                (&path("start"), String::new()),
                ("duration", "the run ends here".to_owned()),
            ],
        );
    } else if stop <= start {
        contradiction(
            cx,
            format!(
                "`{}` ({}) is not after `{}` ({})",
                path("stop"),
                span_text(stop),
                path("start"),
                span_text(start)
            ),
            "stop later than you start",
            &[
                (&path("stop"), "ends here".to_owned()),
                (&path("start"), "starts here".to_owned()),
            ],
        );
    } else if stop > end {
        contradiction(
            cx,
            format!(
                "`{}` ({}) is after the end of the run, `duration` ({})",
                path("stop"),
                span_text(stop),
                span_text(end)
            ),
            "leave `stop` out to go on to the end, or make the run longer",
            &[
                (&path("stop"), String::new()),
                ("duration", "the run ends here".to_owned()),
            ],
        );
    }
    for (field, value) in [
        ("connect_timeout", client.connect_timeout),
        ("timeout", client.timeout),
    ] {
        if value == Some(Span::ZERO) {
            contradiction(
                cx,
                format!("`{}` is 0: no request can ever succeed", path(field)),
                "write a time, or \"none\" for no limit",
                &[(&path(field), String::new())],
            );
        }
    }
    if let (Some(connect), Some(total)) = (client.connect_timeout, client.timeout)
        && connect > total
    {
        let title = format!(
            "`{}` ({}) is never reached: `{}` ({}) ends the request before",
            path("connect_timeout"),
            span_text(connect),
            path("timeout"),
            span_text(total)
        );
        let diag = Diag::warning("no-effect", title).help("make it shorter, or leave it out");
        report(cx, diag, &[(&path("connect_timeout"), String::new())]);
    }
}

fn client_ports(client: &Client, index: usize, cx: &mut Cx) {
    let Arrivals::Closed(closed) = client.arrivals else {
        return;
    };
    let hosts = u64::from(client.count);
    let (tcp, path) = (client.tcp(), |field: &str| {
        format!("client.{index}.{field}")
    });
    let (field, ports) = match &client.port_choice {
        PortChoice::Fixed(ports) => ("port_choice", ports.len() as u64),
        // Sockets of a pool carry any number of requests.
        PortChoice::Pool(_) => return,
        _ => (
            "ports",
            u64::from(tcp.local_ports.1) - u64::from(tcp.local_ports.0) + 1,
        ),
    };
    if u64::from(closed.concurrency) > ports * hosts {
        let title = format!(
            "`{}` asks for {} connections at once, and `{}` gives {ports} ports to each of {} hosts",
            path("arrivals.closed.concurrency"),
            closed.concurrency,
            path(field),
            hosts
        );
        let diag = Diag::warning("too-few-ports", title).help(
            "the rest will fail with EADDRNOTAVAIL: lower the concurrency or give more ports",
        );
        report(
            cx,
            diag,
            &[
                (&path("arrivals.closed.concurrency"), String::new()),
                (&path(field), String::new()),
            ],
        );
    }
}

fn client_values(client: &Client, index: usize, cx: &mut Cx) {
    let path = |field: &str| format!("client.{index}.{field}");
    for (field, value, low, high) in [
        ("tcp_tw_reuse", client.tcp_tw_reuse.0, 0, 2),
        ("syn_retries", client.syn_retries.0, 1, 127),
    ] {
        if let Some(value) = value
            && !(low..=high).contains(&value)
        {
            let title = format!("`{}` is out of range", path(field));
            let diag = Diag::error("out-of-range", title).help(format!(
                "write {low} to {high}, or \"kernel\" for the kernel's default"
            ));
            report(
                cx,
                diag,
                &[(&path(field), format!("{value} is not allowed"))],
            );
        }
    }
    if client.location == Location::Host && client.count > 1 {
        contradiction(
            cx,
            format!(
                "`{}` is \"host\" and `{}` is {}: the node is one host",
                path("location"),
                path("count"),
                client.count
            ),
            "leave `count` out, or set `location` to \"remote\" or \"pod\"",
            &[
                (&path("count"), String::new()),
                (&path("location"), String::new()),
            ],
        );
    }
}

fn check_deployment(scenario: &Scenario, deployment: &Deployment, cx: &mut Cx) {
    let path = |field: &str| format!("rollout.deployment.{field}");
    before_end(scenario, deployment.start, &path("start"), cx);
    let zero = |amount: Amount| matches!(amount, Amount::Count(0) | Amount::Percent(0));
    if zero(deployment.max_surge) && zero(deployment.max_unavailable) {
        contradiction(
            cx,
            format!(
                "`{}` and `{}` are both 0: the rollout could never begin",
                path("max_surge"),
                path("max_unavailable")
            ),
            "raise one of them; the Kubernetes API refuses this too",
            &[
                (&path("max_surge"), String::new()),
                (&path("max_unavailable"), String::new()),
            ],
        );
    }
    if deployment.unavailable() > deployment.replicas {
        contradiction(
            cx,
            format!(
                "`{}` is more than `{}` ({})",
                path("max_unavailable"),
                path("replicas"),
                deployment.replicas
            ),
            "write at most the number of replicas, or 100%",
            &[
                (&path("max_unavailable"), String::new()),
                (&path("replicas"), String::new()),
            ],
        );
    }
    if deployment.pre_stop >= deployment.termination_grace_period {
        let title = format!(
            "`{}` ({}) uses up `{}` ({}): the pod is killed before it sees SIGTERM",
            path("pre_stop"),
            span_text(deployment.pre_stop),
            path("termination_grace_period"),
            span_text(deployment.termination_grace_period)
        );
        let diag =
            Diag::warning("grace-used-up", title).help("make the grace period longer than preStop");
        report(
            cx,
            diag,
            &[
                (&path("pre_stop"), String::new()),
                (&path("termination_grace_period"), String::new()),
            ],
        );
    }
}

fn check_script(scenario: &Scenario, script: &Scripted, cx: &mut Cx) {
    before_end(scenario, script.at, "rollout.scripted.at", cx);
    if script.old_die_at < script.at {
        contradiction(
            cx,
            format!(
                "`rollout.scripted.old_die_at` ({}) is before `rollout.scripted.at` ({})",
                span_text(script.old_die_at),
                span_text(script.at)
            ),
            "let the old pods die after the new ones are there",
            &[
                (
                    "rollout.scripted.old_die_at",
                    "the old pods die here".to_owned(),
                ),
                ("rollout.scripted.at", "and are replaced here".to_owned()),
            ],
        );
    }
}

fn before_end(scenario: &Scenario, moment: Span, path: &str, cx: &mut Cx) {
    if moment >= scenario.duration {
        contradiction(
            cx,
            format!(
                "`{path}` ({}) is not before the end of the run, `duration` ({})",
                span_text(moment),
                span_text(scenario.duration)
            ),
            "begin earlier, make the run longer, or write [rollout.none]",
            &[
                (path, String::new()),
                ("duration", "the run ends here".to_owned()),
            ],
        );
    }
}

/// Every host has its own address.
fn addresses(scenario: &Scenario, cx: &mut Cx) {
    let mut ranges = vec![
        (scenario.service.address.ip, 1, "service.address".to_owned()),
        (
            scenario.server.old_address,
            scenario.rollout.old_pods(),
            "server.old_address".to_owned(),
        ),
    ];
    if scenario.rollout.new_pods() > 0 {
        ranges.push((
            scenario.new_address(),
            scenario.rollout.new_pods(),
            "server.new_address".to_owned(),
        ));
    }
    for (index, client) in scenario.client.iter().enumerate() {
        // A client on the node itself calls from the virtual address; its own is not used.
        if client.location != Location::Host && !topology::is_own_pod(scenario, client) {
            ranges.push((
                client.address,
                client.count,
                format!("client.{index}.address"),
            ));
        }
    }
    ranges.sort();
    for (first, count, path) in &ranges {
        if first.to_bits().checked_add(count - 1).is_none() {
            let title = format!("`{path}`: {count} addresses from {first} on do not exist");
            let diag = Diag::error("out-of-range", title).help("start at a lower address");
            report(cx, diag, &[(path, String::new())]);
            return;
        }
    }
    let last = |first: Ipv4Addr, count: u32| Ipv4Addr::from_bits(first.to_bits() + (count - 1));
    for pair in ranges.windows(2) {
        let [(a, a_count, a_path), (b, b_count, b_path)] = pair else {
            continue;
        };
        if last(*a, *a_count) >= *b {
            contradiction(
                cx,
                format!("`{a_path}` and `{b_path}` share addresses: every host needs its own"),
                "move one of them, or lower the number of hosts",
                &[
                    (a_path, format!("{a} to {}", last(*a, *a_count))),
                    (b_path, format!("{b} to {}", last(*b, *b_count))),
                ],
            );
        }
    }
}

fn without_effect(scenario: &Scenario, cx: &mut Cx) {
    let proxy = &scenario.kube_proxy;
    let mut warn = |path: &str, title: &str, help: &str| {
        if let Some(place) = cx.place(path) {
            let diag = Diag::warning("no-effect", title).at(place, "").help(help);
            cx.diags.push(diag);
        }
    };
    let path = scenario.network.return_path;
    if proxy.masquerade != Masquerade::None && path != ReturnPath::Node {
        let title = "`network.return_path` has no effect: with `kube_proxy.masquerade` the pods answer to the node";
        warn(
            "network.return_path",
            title,
            "leave it out, or write masquerade = \"none\"",
        );
    }
    if let ReturnPath::FirstPodsDirect(count) = path
        && count > scenario.rollout.old_pods().max(scenario.rollout.new_pods())
    {
        let title = format!("`network.return_path` names {count} pods, and there are fewer");
        warn(
            "network.return_path",
            &title,
            "write \"direct\" if it is all of them",
        );
    }
}
