//! Which Service, which of its ports, and at which address clients call it.

use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::time::Span;

use super::objects::{Container, Deployment, Service, ServicePort};
use super::{Ask, Builder};
use crate::diag::Diag;
use crate::scenario::{Masquerade, ServiceKind, TrafficPolicy};

/// Whether a Service selects the pods of a Deployment.
pub(super) fn selects(service: &Service, deployment: &Deployment) -> bool {
    service.name.namespace == deployment.name.namespace
        && !service.selector.is_empty()
        && service
            .selector
            .iter()
            .all(|label| deployment.labels.contains(label))
}

/// How clients reach a port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cluster,
    External,
    Node,
}

/// The port that an address of a recording is, and how it is reached.
fn port_of(service: &Service, at: Endpoint) -> Option<(&ServicePort, Way)> {
    service.ports.iter().find_map(|port| {
        if port.port == at.port && service.cluster_ip == Some(at.ip) {
            Some((port, Way::Cluster))
        } else if port.port == at.port && service.external.contains(&at.ip) {
            Some((port, Way::External))
        } else if port.node_port == Some(at.port) {
            Some((port, Way::Node))
        } else {
            None
        }
    })
}

/// The port that was asked for, or the only one.
fn chosen<'s>(service: &'s Service, ask: &Ask) -> Option<&'s ServicePort> {
    if let Some(at) = ask.address {
        return port_of(service, at).map(|(port, _)| port);
    }
    let is = |port: &&ServicePort| match &ask.port {
        Some(wanted) => {
            port.name == *wanted
                || port.port.to_string() == *wanted
                || port
                    .node_port
                    .is_some_and(|number| number.to_string() == *wanted)
        }
        None => service.ports.len() == 1,
    };
    service.ports.iter().find(is)
}

/// The container that the Service's port leads to; else the first.
pub(super) fn serving<'d>(
    deployment: &'d Deployment,
    service: Option<&Service>,
    ask: &Ask,
) -> Option<&'d Container> {
    let port = service.and_then(|service| chosen(service, ask));
    let leads = |container: &&Container| {
        port.is_some_and(|port| {
            container
                .ports
                .iter()
                .any(|(name, number)| match &port.target {
                    Ok(target) => target == number,
                    Err(target) => target == name,
                })
        })
    };
    let all = &deployment.containers;
    all.iter().find(leads).or_else(|| all.first())
}

impl<'a> Builder<'a> {
    /// The Service that the rollout is seen through.
    pub(super) fn service(
        &self,
        deployment: &Deployment,
        diags: &mut Vec<Diag>,
    ) -> Option<&'a Service> {
        let all = &self.objects.services;
        if let Some(name) = &self.ask.service {
            let found = self.named_service();
            if found.is_none() {
                let have = all.iter().map(|s| s.name.name.as_str()).collect::<Vec<_>>();
                let title = format!("there is no Service {name}");
                let help = format!("there are: {}", have.join(", "));
                diags.push(Diag::error("no-service", title).help(help));
            }
            return found;
        }
        let mut fitting = all
            .iter()
            .filter(|s| selects(s, deployment))
            .collect::<Vec<_>>();
        if let Some(at) = self.ask.address {
            let before = fitting.clone();
            fitting.retain(|service| port_of(service, at).is_some());
            if fitting.is_empty() && !before.is_empty() {
                let names = before
                    .iter()
                    .map(|s| s.name.name.as_str())
                    .collect::<Vec<_>>();
                let title =
                    format!("no Service of the Deployment has the address {at} that was recorded");
                let diag = Diag::error("other-service", title)
                    .at(before[0].name.place, format!("{} has other addresses and ports", names.join(", ")))
                    .help("give the objects of the service that was recorded, or choose another with --service ADDRESS:PORT");
                diags.push(diag);
                return None;
            }
        }
        if fitting.len() > 1 {
            let names = fitting
                .iter()
                .map(|s| s.name.name.as_str())
                .collect::<Vec<_>>();
            let title = format!(
                "{} Services select the Deployment: {}",
                names.len(),
                names.join(", ")
            );
            let diag = Diag::error("ambiguous", title)
                .at(fitting[0].name.place, "")
                .help("say which with --service-name");
            diags.push(diag);
            return None;
        }
        if let (None, Some(first)) = (fitting.first(), all.first()) {
            let title = "no Service selects the Deployment's pods";
            let diag = Diag::warning("not-selected", title)
                .at(first.name.place, "its selector asks for other labels");
            diags.push(diag);
        }
        fitting.first().copied()
    }

    /// `[service]` and whose address the pods see.
    pub(super) fn service_part(
        &mut self,
        service: &Service,
        container: Option<&Container>,
        diags: &mut Vec<Diag>,
    ) {
        if service.kind == "ExternalName" || service.ports.is_empty() {
            let title = format!(
                "Service {} has no ports: nothing balances",
                service.name.name
            );
            diags.push(Diag::error("no-ports", title).at(service.name.place, ""));
            return;
        }
        let Some(port) = chosen(service, self.ask) else {
            let ports = service.ports.iter().map(|p| match p.name.as_str() {
                "" => p.port.to_string(),
                name => format!("{name} ({})", p.port),
            });
            let ports = ports.collect::<Vec<_>>().join(", ");
            let title = match &self.ask.port {
                Some(wanted) => format!("Service {} has no port {wanted}", service.name.name),
                None => format!(
                    "Service {} has {} ports",
                    service.name.name,
                    service.ports.len()
                ),
            };
            let diag = Diag::error("ambiguous", title)
                .at(service.name.place, "")
                .help(format!("say which with --port: {ports}"));
            diags.push(diag);
            return;
        };
        match port.protocol.as_str() {
            "TCP" => {}
            "UDP" => self.scenario.service.protocol = Proto::Udp,
            other => {
                let title = format!("protocol {other} is not modelled");
                diags.push(Diag::error("not-modelled", title).at(service.name.place, ""));
            }
        }
        self.read("service.protocol", "protocol of the Service's port");
        let way = self.address(service, port, diags);
        self.target(port, container);
        match service.affinity {
            Some((seconds, written)) => {
                self.scenario.service.session_affinity = Some(Span::from_secs(seconds.into()));
                let text = match written {
                    true => "sessionAffinity ClientIP with its timeoutSeconds",
                    false => "sessionAffinity ClientIP; no timeoutSeconds: the API's default, 3 h",
                };
                self.read("service.session_affinity", text);
            }
            None => self.read("service.session_affinity", "sessionAffinity None"),
        }
        self.masquerade(service, way);
    }

    fn address(&mut self, service: &Service, port: &ServicePort, diags: &mut Vec<Diag>) -> Way {
        if let Some(at) = self.ask.address {
            let way = port_of(service, at).map_or(Way::Cluster, |(_, way)| way);
            self.scenario.service.address = at;
            self.read(
                "service.address",
                match way {
                    Way::Cluster => "the recorded address: clusterIP and port of the Service",
                    Way::External => "the recorded address: an external address of the Service",
                    Way::Node => "the recorded address: a node and the Service's nodePort",
                },
            );
            return way;
        }
        let host = self.objects.ready.iter().find_map(|ready| ready.host_ip);
        let node = self.ask.node.or(host);
        let (ip, number, way, text) = match (port.node_port, node, service.cluster_ip) {
            (Some(number), Some(node), _) => {
                let text = match self.ask.node {
                    Some(_) => "the node that was given, and nodePort",
                    None => "the node of a pod (status.hostIP), and nodePort",
                };
                (node, number, Way::Node, text)
            }
            (_, _, Some(cluster)) => (
                cluster,
                port.port,
                Way::Cluster,
                "clusterIP and port of the Service",
            ),
            (Some(_), None, None) => {
                let diag = Diag::error("no-address", "the address of the node is in no object")
                    .at(
                        service.name.place,
                        "this Service has a node port and no clusterIP",
                    )
                    .help("give it with --node ADDRESS");
                diags.push(diag);
                return Way::Node;
            }
            (None, _, None) => {
                let title = format!(
                    "Service {} has no address: it is headless, or not yet applied",
                    service.name.name
                );
                let diag = Diag::error("no-address", title)
                    .at(service.name.place, "no clusterIP of IPv4")
                    .help(
                        "clients of a headless service reach the pods themselves: nothing balances",
                    );
                diags.push(diag);
                (Ipv4Addr::UNSPECIFIED, port.port, Way::Cluster, "")
            }
        };
        if port.node_port.is_some() && way == Way::Cluster {
            let number = port.node_port.unwrap_or_default();
            self.open(format!("clients may call node port {number}: give the node's address with --node to look at that way"));
        }
        self.scenario.service.address = Endpoint::new(ip, number);
        self.read("service.address", text);
        if way == Way::Node {
            self.scenario.node.address = ip;
            self.read("node.address", "the node that balances");
        }
        way
    }

    fn target(&mut self, port: &ServicePort, container: Option<&Container>) {
        let path = "service.target_port";
        match &port.target {
            Ok(number) => {
                self.scenario.service.target_port = *number;
                self.read(path, "targetPort of the Service's port");
            }
            Err(name) => {
                let ports = container.map_or(&[][..], |container| &container.ports);
                match ports.iter().find(|(found, _)| found == name) {
                    Some((_, number)) => {
                        self.scenario.service.target_port = *number;
                        self.read(path, format!("targetPort {name}, a port of the container"));
                    }
                    None => self.assume(
                        path,
                        format!("targetPort {name} is no port of the Deployment's containers"),
                    ),
                }
            }
        }
    }

    /// Whom kube-proxy masquerades follows from the kind of address, the policy, and where clients stand.
    fn masquerade(&mut self, service: &Service, way: Way) {
        let derived = crate::scenario::annotate::Origin::Derived;
        let local = service.external_policy.as_deref() == Some("Local") && way != Way::Cluster;
        self.scenario.service.kind = match way {
            Way::Cluster => ServiceKind::ClusterIp,
            Way::Node | Way::External => ServiceKind::NodePort,
        };
        self.notes.note(
            "service.kind",
            derived,
            match way {
                Way::Cluster => "a cluster address",
                Way::Node => "a node port",
                Way::External => "an external address: to kube-proxy as a node port",
            },
        );
        if local {
            self.scenario.service.traffic_policy = TrafficPolicy::Local;
            let text = "externalTrafficPolicy Local; say with server.nodes over how many nodes the pods are spread";
            self.read("service.traffic_policy", text);
        }
        // Where the callers of a cluster address stand is in no object: those inside are meant.
        self.scenario.kube_proxy.masquerade = match way {
            Way::Cluster => Masquerade::None,
            Way::Node | Way::External => Masquerade::KubeProxy,
        };
        self.notes.note(
            "kube_proxy.masquerade",
            derived,
            match (way, local) {
                (Way::Cluster, _) => {
                    "a cluster address called from inside the cluster; masqueradeAll, or a client outside of clusterCIDR, would masquerade"
                }
                (_, true) => "as kube-proxy: externalTrafficPolicy Local, the pods see the client",
                (_, false) => {
                    "as kube-proxy: externalTrafficPolicy Cluster is masqueraded, from 1.16 on with --random-fully"
                }
            },
        );
    }
}
