//! Which scenarios the lab can play, and what becomes of them on its kernel.

use anyhow::{Result, anyhow, bail, ensure};
use ipvs_model::kernel::Behaviours;
use ipvs_model::segment::Proto;
use ipvs_model::tcp::ports::PortEra;
use ipvs_model::time::Span;
use ipvs_sim::scenario::{
    Arrivals, DataPlane, Dist, Document, Location, PortChoice, Rate, RetryPort, ReturnPath,
    Scenario,
};

use crate::host::Kernel;

/// Ways take no time in the lab; a scenario may say so much.
const LATENCY_MAX: Span = Span::from_millis(1);
/// A request or a response must fit into a socket's buffer.
const BYTES_MAX: u32 = 16_384;

/// Whether the lab plays the port choice of this kernel itself, on a kernel that would choose otherwise.
pub fn emulates_ports(kernel: Behaviours) -> bool {
    PortEra::of(kernel) == PortEra::TwoPass
}

/// The scenario as it is on this kernel: node, pods and clients have its release, but for clients whose kernels choose
/// ports one after the other, which the lab imitates.
///
/// # Errors
/// What the lab cannot play, in words.
pub fn fit(mut document: Document, kernel: &Kernel) -> Result<Scenario> {
    let words = |found: ipvs_sim::diag::Diagnostics| anyhow!("{}", found.render(false));
    let written = document.resolve().map_err(words)?.scenario;
    let (release, hz) = (format!("\"{}\"", kernel.release), kernel.hz.to_string());
    let mut set = |path: &str, value: &str| document.set(path, value).map_err(words);
    set("node.kernel", &release)?;
    set("server.kernel", &release)?;
    for (index, client) in written.client.iter().enumerate() {
        // A table that is not written cannot be edited by its number.
        let index = if written.client.len() == 1 {
            "*".to_owned()
        } else {
            index.to_string()
        };
        if !emulates_ports(client.behaviours()) {
            set(&format!("client.{index}.kernel"), &release)?;
        }
        set(&format!("client.{index}.hz"), &hz)?;
    }
    set("node.hz", &hz)?;
    set("server.hz", &hz)?;
    let scenario = document.resolve().map_err(words)?.scenario;
    check(&scenario)?;
    Ok(scenario)
}

fn check(scenario: &Scenario) -> Result<()> {
    match scenario.node.mode {
        DataPlane::Ipvs => {}
        DataPlane::Iptables | DataPlane::Nftables => ensure!(
            scenario.service.protocol == Proto::Tcp
                && scenario.service.session_affinity.is_none()
                && scenario
                    .client
                    .iter()
                    .all(|client| client.location != Location::Host),
            "node.mode: in iptables and nftables mode the lab plays TCP services without session_affinity, for clients \
             beside the node"
        ),
        _ => bail!("node.mode: the lab plays ipvs, iptables and nftables"),
    }
    ensure!(
        scenario.warmup == Span::ZERO,
        "warmup: the lab counts every request; leave it out"
    );
    ensure!(
        scenario.network.return_path == ReturnPath::Node,
        "network.return_path: answers pass the node in the lab"
    );
    for way in [scenario.network.client_node, scenario.network.node_pod] {
        ensure!(
            matches!(way, Dist::Constant(time) if time <= LATENCY_MAX),
            "network: ways take no time in the lab; write a constant of at most 1ms"
        );
    }
    for (number, client) in scenario.client.iter().enumerate() {
        let era = PortEra::of(client.behaviours());
        ensure!(
            era == PortEra::RandomStep || emulates_ports(client.behaviours()),
            "client.{number}.kernel: the lab plays clients of its own kernel and of 4.6 to 5.11"
        );
        ensure!(
            client.request_bytes <= BYTES_MAX && client.response_bytes <= BYTES_MAX,
            "client.{number}: at most {BYTES_MAX} bytes a request and a response in the lab"
        );
        if client.location == Location::Host {
            ensure!(
                client.count == 1 && scenario.client.len() == 1,
                "client.{number}.location: a client on the node is the only one in the lab"
            );
        }
        let udp = scenario.service.protocol == Proto::Udp;
        ensure!(
            !udp || client.udp.connected && client.udp.retry_port == RetryPort::Same,
            "client.{number}.udp: the lab's sockets are connected and repeat from the same port"
        );
        if let (Arrivals::Constant(Rate { rate }), PortChoice::Pool(size)) =
            (client.arrivals, &client.port_choice)
        {
            let round = f64::from(*size) * f64::from(client.count) / rate;
            let timeout = client.timeout.unwrap_or(Span(u64::MAX));
            ensure!(
                round * 1e9 > timeout.0 as f64,
                "client.{number}.port_choice: a socket of the lab's pool has one request at a time; make the pool larger or \
                 the timeout shorter"
            );
        }
        let instant = matches!(scenario.server.service_time, Dist::Constant(Span::ZERO));
        if let Arrivals::Closed(closed) = client.arrivals
            && instant
            && matches!(closed.think_time, Dist::Constant(Span::ZERO))
        {
            bail!(
                "client.{number}.arrivals: nothing takes time in the lab, so a closed loop needs a think_time or a \
                 server.service_time"
            );
        }
    }
    Ok(())
}
