//! What the points of a sweep have in common, in words.

use ipvs_model::segment::Proto;

use crate::scenario::field::Field;
use crate::scenario::{Arrivals, Client, Rollout, Scenario, span_text};

/// The settings that are the same in all `scenarios`, in words, most telling first.
pub fn settings_in_words(scenarios: &[Scenario]) -> Vec<String> {
    let mut all = scenarios.iter().map(pieces);
    let Some(first) = all.next() else {
        return Vec::new();
    };
    let rest: Vec<Vec<String>> = all.collect();
    // Pieces stand in fixed places: a piece that differs anywhere is something the sweep varies.
    let same = |place: usize| {
        rest.iter()
            .all(|pieces| pieces.get(place) == first.get(place))
    };
    let kept = first
        .iter()
        .enumerate()
        .filter(|(place, piece)| same(*place) && !piece.is_empty());
    kept.map(|(_, piece)| piece.clone()).collect()
}

/// A scenario in pieces that a sweep may vary one by one.
fn pieces(scenario: &Scenario) -> Vec<String> {
    let mut pieces = rollout(&scenario.rollout);
    pieces.push(format!("gone pods: {}", plain(&scenario.server.dead_end)));
    pieces.push(format!("node in {} mode", plain(&scenario.node.mode)));
    pieces.push(format!(
        "scheduler {}",
        plain(&scenario.kube_proxy.scheduler)
    ));
    pieces.push(format!("kernel {}", scenario.node.kernel));
    pieces.push(format!(
        "kube-proxy {}",
        plain(&scenario.kube_proxy.version)
    ));
    let mut sysctls = scenario.node_sysctl_overrides().iter();
    pieces.push(
        sysctls
            .by_ref()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" "),
    );
    for client in &scenario.client {
        let mut words = caller(client);
        if scenario.service.protocol == Proto::Udp {
            let [.., per_connection, closes] = &mut words;
            "UDP".clone_into(per_connection);
            *closes = match client.udp.retries {
                0 => "no datagram is sent twice".to_owned(),
                retries => format!(
                    "{retries} more after {} each",
                    span_text(client.udp.retry_after)
                ),
            };
        }
        pieces.extend(words);
    }
    pieces.push(format!("{} simulated", span_text(scenario.duration)));
    pieces
}

fn rollout(rollout: &Rollout) -> Vec<String> {
    match rollout {
        Rollout::None(steady) => vec![format!("{} pods, no rollout", steady.pods), String::new()],
        Rollout::Deployment(deployment) => vec![
            format!("{} pods replaced", deployment.replicas),
            format!("preStop {}", span_text(deployment.pre_stop)),
        ],
        Rollout::Scripted(script) => vec![
            format!(
                "{} pods replaced at {}",
                script.old_pods,
                span_text(script.at)
            ),
            format!("old ones gone at {}", span_text(script.old_die_at)),
        ],
        Rollout::Flap(flap) => vec![
            format!("{} of {} pods unready", flap.flapping, flap.pods),
            format!("at {} for {}", span_text(flap.at), span_text(flap.lasts)),
        ],
        Rollout::Scale(scale) => vec![
            format!("{} pods become {}", scale.from, scale.to),
            format!("at {}", span_text(scale.at)),
        ],
    }
}

fn caller(client: &Client) -> [String; 5] {
    let arrivals = match &client.arrivals {
        Arrivals::Constant(rate) => format!("{} requests/s", rate.rate),
        Arrivals::Poisson(rate) => format!("{} requests/s (Poisson)", rate.rate),
        Arrivals::Closed(closed) => format!("{} workers in a closed loop", closed.concurrency),
    };
    let hosts = match client.count {
        1 => "1 client".to_owned(),
        count => format!("{count} clients"),
    };
    let ports = match &client.ports.0 {
        Some(ports) => format!("{} ports ({}-{})", ports.count(), ports.low, ports.high),
        None => "the kernel's port range".to_owned(),
    };
    let per_connection = match client.requests_per_connection {
        1 => "a connection a request".to_owned(),
        requests => format!("{requests} requests a connection"),
    };
    let closes = format!("the {} closes first", plain(&client.closes_first));
    [hosts, arrivals, ports, per_connection, closes]
}

/// A field's value as a scenario writes it, without quotes.
fn plain<F: Field>(field: &F) -> String {
    field.encode().unwrap_or_default().replace('"', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_points_is_left_out() {
        let one = Scenario::default();
        let mut other = Scenario::default();
        other.client[0].count = 3;
        let alone = settings_in_words(std::slice::from_ref(&one));
        assert!(alone.iter().any(|piece| piece == "1 client"), "{alone:?}");
        let both = settings_in_words(&[one, other]);
        assert!(
            !both
                .iter()
                .any(|piece| piece.contains("client") && !piece.contains("closes")),
            "{both:?}"
        );
        assert_eq!(both.len(), alone.len() - 1);
    }
}
