//! Checks of what is for UDP services only, or not for them.

use ipvs_model::segment::Proto;

use super::{contradiction, report};
use crate::diag::Diag;
use crate::scenario::field::Cx;
use crate::scenario::{Client, PortChoice, RetryPort, Scenario, Udp, span_text};

/// Payload of the largest datagram over IPv4, in bytes.
const DATAGRAM_MAX: u32 = 65_507;

pub(super) fn check(scenario: &Scenario, cx: &mut Cx) {
    let udp = scenario.service.protocol == Proto::Udp;
    for (index, client) in scenario.client.iter().enumerate() {
        let path = |field: &str| format!("client.{index}.{field}");
        if udp {
            of_udp(client, &path, cx);
        } else {
            of_tcp(client, &path, cx);
        }
    }
}

fn no_effect(cx: &mut Cx, path: &str, title: &str, help: &str) {
    if let Some(place) = cx.place(path) {
        let diag = Diag::warning("no-effect", title).at(place, "").help(help);
        cx.diags.push(diag);
    }
}

fn of_tcp(client: &Client, path: &impl Fn(&str) -> String, cx: &mut Cx) {
    let udp = path("udp");
    if client.udp != Udp::default() {
        let title = format!("`{udp}` has no effect: `service.protocol` is \"tcp\"");
        no_effect(
            cx,
            &udp,
            &title,
            "leave it out, or write protocol = \"udp\"",
        );
    }
    if matches!(client.port_choice, PortChoice::Pool(_)) {
        contradiction(
            cx,
            format!(
                "`{}` is a pool of UDP sockets, and `service.protocol` is \"tcp\"",
                path("port_choice")
            ),
            "for connections that stay open write requests_per_connection; for UDP write protocol = \"udp\"",
            &[
                (&path("port_choice"), String::new()),
                ("service.protocol", String::new()),
            ],
        );
    }
}

fn of_udp(client: &Client, path: &impl Fn(&str) -> String, cx: &mut Cx) {
    for field in [
        "tcp_tw_reuse",
        "tcp_timestamps",
        "syn_retries",
        "requests_per_connection",
        "closes_first",
        "connect_timeout",
    ] {
        let title = format!(
            "`{}` has no effect: `service.protocol` is \"udp\"",
            path(field)
        );
        no_effect(
            cx,
            &path(field),
            &title,
            "leave it out, or write protocol = \"tcp\"",
        );
    }
    for (field, bytes) in [
        ("request_bytes", client.request_bytes),
        ("response_bytes", client.response_bytes),
    ] {
        if bytes > DATAGRAM_MAX {
            let title = format!("`{}` does not fit into a datagram", path(field));
            let diag = Diag::error("out-of-range", title);
            let help = format!("write 1 to {DATAGRAM_MAX} bytes, or protocol = \"tcp\"");
            report(
                cx,
                diag.help(help),
                &[(&path(field), format!("{bytes} bytes"))],
            );
        }
    }
    let udp = client.udp;
    if udp.retries > 0
        && client
            .timeout
            .is_some_and(|timeout| timeout <= udp.retry_after)
    {
        let title = format!(
            "`{}` is never reached: `{}` ({}) ends the request before the first repetition ({})",
            path("udp.retries"),
            path("timeout"),
            span_text(client.timeout.unwrap_or_default()),
            span_text(udp.retry_after)
        );
        no_effect(
            cx,
            &path("udp.retries"),
            &title,
            "give up later, or write retries = 0",
        );
    }
    if client.timeout.is_none() {
        contradiction(
            cx,
            format!(
                "`{}` is \"none\": a datagram without an answer would be waited for for ever",
                path("timeout")
            ),
            "write when the application gives up",
            &[(&path("timeout"), String::new())],
        );
    }
    let keeps = matches!(
        client.port_choice,
        PortChoice::Fixed(_) | PortChoice::Pool(_)
    );
    if keeps && udp.retry_port == RetryPort::New {
        let title = format!(
            "`{}` is \"new\", and `{}` keeps its sockets: the repetition goes out from the next of them",
            path("udp.retry_port"),
            path("port_choice")
        );
        report(
            cx,
            Diag::warning("retry-port", title).help("write \"same\", or port_choice = \"connect\""),
            &[
                (&path("udp.retry_port"), String::new()),
                (&path("port_choice"), String::new()),
            ],
        );
    }
}
