//! The objects of a cluster as `kubectl get -o yaml` gives them, as far as a rollout depends on them.
//!
//! Read tolerantly: fields that have no meaning here are passed over, absent ones take the API's default where it
//! has one, and wrong ones are reported with their place. Written by hand rather than with generated types because those
//! know neither line numbers nor which default was taken.

use std::net::Ipv4Addr;

use super::hook::{self, Hook};
use crate::diag::{Diag, Place};
use crate::scenario::Amount;
use crate::scenario::tree::{Table, Tree, Value};

/// Collects mistakes while objects are read.
#[derive(Debug, Default)]
pub struct Reader {
    /// What was wrong.
    pub diags: Vec<Diag>,
}

/// Whom an object is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// `metadata.namespace`, or "default".
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where the object begins.
    pub place: Place,
}

/// A probe's times, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `initialDelaySeconds`.
    pub initial_delay: u32,
    /// `periodSeconds`.
    pub period: u32,
    /// `timeoutSeconds`.
    pub timeout: u32,
    /// `successThreshold`.
    pub success: u32,
    /// `failureThreshold`.
    pub failure: u32,
}

/// A preStop hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreStop {
    /// There is none.
    None,
    /// `sleep.seconds`.
    Sleep(u32),
    /// A command, and what it says of its time.
    Exec(Hook),
    /// Something whose time cannot be told, in words.
    Other(String),
}

/// A container of a pod template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Names and numbers of its ports.
    pub ports: Vec<(String, u16)>,
    /// Its readiness probe.
    pub readiness: Option<Probe>,
    /// Whether it has a startup probe.
    pub startup_probe: bool,
    /// Its preStop hook.
    pub pre_stop: PreStop,
}

/// How a Deployment replaces its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Step by step.
    RollingUpdate {
        /// `maxSurge`, and whether it was written.
        surge: (Amount, bool),
        /// `maxUnavailable`, and whether it was written.
        unavailable: (Amount, bool),
    },
    /// All at once.
    Recreate(Place),
}

/// A Deployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Who it is.
    pub name: Name,
    /// Labels of its pods.
    pub labels: Vec<(String, String)>,
    /// `spec.replicas`, if written.
    pub replicas: Option<u32>,
    /// Its strategy.
    pub strategy: Strategy,
    /// `minReadySeconds`.
    pub min_ready: u32,
    /// `terminationGracePeriodSeconds`, if written.
    pub grace: Option<u32>,
    /// The containers of its pods.
    pub containers: Vec<Container>,
    /// `spec.paused`: no rollout happens.
    pub paused: bool,
    /// `hostNetwork`.
    pub host_network: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, or "".
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `nodePort`, if any.
    pub node_port: Option<u16>,
    /// `targetPort`: a number or the name of a container's port.
    pub target: Result<u16, String>,
    /// "TCP", "UDP" or "SCTP".
    pub protocol: String,
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Who it is.
    pub name: Name,
    /// `ClusterIP`, `NodePort` or `LoadBalancer`.
    pub kind: String,
    /// `clusterIP`, if it has one of IPv4.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Addresses of load balancers and `externalIPs`.
    pub external: Vec<Ipv4Addr>,
    /// Labels of the pods that it selects.
    pub selector: Vec<(String, String)>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Session affinity by client address, in seconds; and whether the time was written.
    pub affinity: Option<(u32, bool)>,
    /// `externalTrafficPolicy`, if written.
    pub external_policy: Option<String>,
}

/// Ready pods of a Service: an EndpointSlice, an Endpoints object, or a Pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// "EndpointSlice", "Endpoints" or "Pod".
    pub kind: &'static str,
    /// Namespace and name of the Service (slices, endpoints) or of the pod.
    pub name: Name,
    /// Labels, of a pod.
    pub labels: Vec<(String, String)>,
    /// Addresses of ready pods with the address of their node, if known.
    pub addresses: Vec<(Ipv4Addr, Option<String>)>,
    /// The node's own address, of a pod.
    pub host_ip: Option<Ipv4Addr>,
}

/// All that was given.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Deployments in their order.
    pub deployments: Vec<Deployment>,
    /// Services.
    pub services: Vec<Service>,
    /// Ready pods.
    pub ready: Vec<Ready>,
    /// Objects of other kinds, as `Kind name`.
    pub others: Vec<String>,
}

impl Objects {
    /// Takes a document: an object or a list of objects.
    pub fn take(&mut self, document: &Tree, reader: &mut Reader) {
        let kind = text_at(document, &["kind"]).unwrap_or_default().to_owned();
        if kind.ends_with("List")
            && let Some(Value::Array(items)) = at(document, &["items"]).map(|tree| &tree.value)
        {
            for item in items {
                self.take(item, reader);
            }
            return;
        }
        let name = name_of(document);
        match kind.as_str() {
            "Deployment" => self.deployments.extend(deployment(document, name, reader)),
            "Service" => self.services.push(service(document, name, reader)),
            "EndpointSlice" => self.ready.extend(slice(document, name)),
            "Endpoints" => self.ready.push(endpoints(document, name)),
            "Pod" => self.ready.extend(pod(document, name)),
            "" => reader.diags.push(
                Diag::error(
                    "no-kind",
                    "this is no object of Kubernetes: it has no `kind`",
                )
                .at(document.place, "")
                .help("give what `kubectl get deployment,service,endpointslice -o yaml` prints"),
            ),
            other => self.others.push(format!("{other} {}", name.name)),
        }
    }
}

/// The value at a path of keys.
pub fn at<'t>(tree: &'t Tree, path: &[&str]) -> Option<&'t Tree> {
    path.iter().try_fold(tree, |tree, name| match &tree.value {
        Value::Table(table) => get(table, name),
        _ => None,
    })
}

fn get<'t>(table: &'t Table, name: &str) -> Option<&'t Tree> {
    table
        .iter()
        .find(|(key, _)| key.name == name)
        .map(|(_, tree)| tree)
}

fn text_at<'t>(tree: &'t Tree, path: &[&str]) -> Option<&'t str> {
    match &at(tree, path)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn list_at<'t>(tree: &'t Tree, path: &[&str]) -> &'t [Tree] {
    match at(tree, path).map(|tree| &tree.value) {
        Some(Value::Array(items)) => items,
        _ => &[],
    }
}

fn name_of(tree: &Tree) -> Name {
    let text = |path: &[&str]| text_at(tree, path).unwrap_or_default().to_owned();
    let namespace = text(&["metadata", "namespace"]);
    Name {
        namespace: if namespace.is_empty() {
            "default".to_owned()
        } else {
            namespace
        },
        name: text(&["metadata", "name"]),
        place: at(tree, &["metadata", "name"]).map_or(tree.place, |name| name.place),
    }
}

fn labels_at(tree: &Tree, path: &[&str]) -> Vec<(String, String)> {
    let Some(Value::Table(table)) = at(tree, path).map(|tree| &tree.value) else {
        return Vec::new();
    };
    let entry = |(key, value): &(crate::scenario::tree::Key, Tree)| match &value.value {
        Value::Text(text) => Some((key.name.clone(), text.clone())),
        Value::Integer(number) => Some((key.name.clone(), number.to_string())),
        Value::Bool(on) => Some((key.name.clone(), on.to_string())),
        _ => None,
    };
    table.iter().filter_map(entry).collect()
}

impl Reader {
    fn wrong(&mut self, tree: &Tree, path: &[&str], want: &str) {
        let title = format!("`{}` must be {want}", path.join("."));
        let label = format!("this is {}", tree.kind());
        self.diags
            .push(Diag::error("wrong-type", title).at(tree.place, label));
    }

    /// A number of 0 to `max`; `None` if absent or wrong.
    fn number(&mut self, tree: &Tree, path: &[&str], max: u32) -> Option<u32> {
        let found = at(tree, path)?;
        match &found.value {
            Value::Integer(number) if (0..=i128::from(max)).contains(number) => {
                u32::try_from(*number).ok()
            }
            _ => {
                self.wrong(found, path, &format!("a whole number from 0 to {max}"));
                None
            }
        }
    }

    fn port(&mut self, tree: &Tree, path: &[&str]) -> Option<u16> {
        let number = self.number(tree, path, 65_535)?;
        u16::try_from(number).ok().filter(|port| *port > 0)
    }

    fn amount(&mut self, tree: &Tree, path: &[&str]) -> (Amount, bool) {
        let Some(found) = at(tree, path) else {
            return (Amount::Percent(25), false);
        };
        let share = |text: &str| text.strip_suffix('%')?.parse::<u32>().ok();
        let amount = match &found.value {
            Value::Integer(count @ 0..=10_000) => u32::try_from(*count).ok().map(Amount::Count),
            Value::Text(text) => share(text).filter(|s| *s <= 1_000).map(Amount::Percent),
            _ => None,
        };
        if amount.is_none() {
            self.wrong(found, path, "a number of pods or a share such as \"25%\"");
        }
        (amount.unwrap_or(Amount::Percent(25)), true)
    }
}

fn deployment(tree: &Tree, name: Name, reader: &mut Reader) -> Option<Deployment> {
    if at(tree, &["spec"]).is_none() {
        let title = format!("Deployment {} has no `spec`", name.name);
        let help = "give the whole object: `kubectl get deployment NAME -o yaml`, not a listing";
        reader
            .diags
            .push(Diag::error("no-spec", title).at(name.place, "").help(help));
        return None;
    }
    let strategy = match at(tree, &["spec", "strategy", "type"]) {
        Some(kind) if kind.text() == Some("Recreate") => Strategy::Recreate(kind.place),
        _ => Strategy::RollingUpdate {
            surge: reader.amount(tree, &["spec", "strategy", "rollingUpdate", "maxSurge"]),
            unavailable: reader.amount(
                tree,
                &["spec", "strategy", "rollingUpdate", "maxUnavailable"],
            ),
        },
    };
    let containers = list_at(tree, &["spec", "template", "spec", "containers"]);
    let is_true =
        |path: &[&str]| at(tree, path).is_some_and(|tree| tree.value == Value::Bool(true));
    Some(Deployment {
        labels: labels_at(tree, &["spec", "template", "metadata", "labels"]),
        replicas: reader.number(tree, &["spec", "replicas"], 1_000_000),
        strategy,
        min_ready: reader
            .number(tree, &["spec", "minReadySeconds"], 86_400)
            .unwrap_or(0),
        grace: reader.number(
            tree,
            &["spec", "template", "spec", "terminationGracePeriodSeconds"],
            1_000_000,
        ),
        containers: containers
            .iter()
            .map(|tree| container(tree, reader))
            .collect(),
        paused: is_true(&["spec", "paused"]),
        host_network: is_true(&["spec", "template", "spec", "hostNetwork"]),
        name,
    })
}

fn container(tree: &Tree, reader: &mut Reader) -> Container {
    let ports = list_at(tree, &["ports"]).iter().filter_map(|port| {
        let number = reader.port(port, &["containerPort"])?;
        Some((
            text_at(port, &["name"]).unwrap_or_default().to_owned(),
            number,
        ))
    });
    let ports = ports.collect();
    Container {
        name: text_at(tree, &["name"]).unwrap_or_default().to_owned(),
        image: text_at(tree, &["image"]).unwrap_or_default().to_owned(),
        ports,
        readiness: at(tree, &["readinessProbe"]).map(|tree| probe(tree, reader)),
        startup_probe: at(tree, &["startupProbe"]).is_some(),
        pre_stop: match at(tree, &["lifecycle", "preStop"]) {
            Some(tree) => pre_stop(tree, reader),
            None => PreStop::None,
        },
    }
}

/// Defaults of the API: 0, 10, 1, 1, 3.
fn probe(tree: &Tree, reader: &mut Reader) -> Probe {
    let mut number = |name: &str, default: u32| {
        let found = reader.number(tree, &[name], 86_400);
        // The API takes 0 as "not set" where it has a default.
        found.filter(|number| *number > 0).unwrap_or(default)
    };
    Probe {
        initial_delay: number("initialDelaySeconds", 0),
        period: number("periodSeconds", 10),
        timeout: number("timeoutSeconds", 1),
        success: number("successThreshold", 1),
        failure: number("failureThreshold", 3),
    }
}

fn pre_stop(tree: &Tree, reader: &mut Reader) -> PreStop {
    if at(tree, &["sleep"]).is_some() {
        let seconds = reader.number(tree, &["sleep", "seconds"], 86_400);
        return seconds.map_or(PreStop::None, PreStop::Sleep);
    }
    if at(tree, &["exec"]).is_some() {
        let words = list_at(tree, &["exec", "command"]).iter();
        let words = words.filter_map(|word| match &word.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            _ => None,
        });
        return PreStop::Exec(hook::read(&words.collect::<Vec<_>>()));
    }
    if let Some(path) = text_at(tree, &["httpGet", "path"]) {
        return PreStop::Other(format!("a request to {path}"));
    }
    PreStop::Other("a hook of a kind that is not known".to_owned())
}

fn service(tree: &Tree, name: Name, reader: &mut Reader) -> Service {
    let spec = |field: &str| text_at(tree, &["spec", field]).map(str::to_owned);
    let addresses = |path: &[&str]| {
        let items = list_at(tree, path).iter();
        items.filter_map(|item| match &item.value {
            Value::Text(text) => text.parse().ok(),
            _ => text_at(item, &["ip"])?.parse().ok(),
        })
    };
    let external = addresses(&["spec", "externalIPs"])
        .chain(addresses(&["status", "loadBalancer", "ingress"]))
        .collect();
    let ports = list_at(tree, &["spec", "ports"]).iter();
    let ports = ports
        .filter_map(|port| service_port(port, reader))
        .collect();
    let affinity = (spec("sessionAffinity").as_deref() == Some("ClientIP")).then(|| {
        let path = [
            "spec",
            "sessionAffinityConfig",
            "clientIP",
            "timeoutSeconds",
        ];
        let seconds = reader.number(tree, &path, 86_400);
        (seconds.unwrap_or(10_800), seconds.is_some())
    });
    Service {
        kind: spec("type").unwrap_or_else(|| "ClusterIP".to_owned()),
        cluster_ip: spec("clusterIP").and_then(|text| text.parse().ok()),
        external,
        selector: labels_at(tree, &["spec", "selector"]),
        ports,
        affinity,
        external_policy: spec("externalTrafficPolicy"),
        name,
    }
}

fn service_port(tree: &Tree, reader: &mut Reader) -> Option<ServicePort> {
    let port = reader.port(tree, &["port"])?;
    let target = match at(tree, &["targetPort"]).map(|tree| &tree.value) {
        Some(Value::Text(name)) => name.parse().map_err(|_| name.clone()),
        Some(_) => Ok(reader.port(tree, &["targetPort"]).unwrap_or(port)),
        // The API's default: the same port.
        None => Ok(port),
    };
    Some(ServicePort {
        name: text_at(tree, &["name"]).unwrap_or_default().to_owned(),
        port,
        node_port: reader.port(tree, &["nodePort"]),
        target,
        protocol: text_at(tree, &["protocol"]).unwrap_or("TCP").to_owned(),
    })
}

fn slice(tree: &Tree, mut name: Name) -> Option<Ready> {
    if text_at(tree, &["addressType"]).is_some_and(|kind| kind != "IPv4") {
        return None;
    }
    if let Some(service) = text_at(tree, &["metadata", "labels", "kubernetes.io/service-name"]) {
        name.name = service.to_owned();
    }
    let mut addresses = Vec::new();
    for endpoint in list_at(tree, &["endpoints"]) {
        // An absent condition is unknown, which kube-proxy takes as ready.
        let ready = at(endpoint, &["conditions", "ready"]);
        if ready.is_some_and(|tree| tree.value == Value::Bool(false)) {
            continue;
        }
        let node = text_at(endpoint, &["nodeName"]).map(str::to_owned);
        let first = list_at(endpoint, &["addresses"]).first();
        let address = first.and_then(|tree| tree.text()?.parse().ok());
        addresses.extend(address.map(|address| (address, node)));
    }
    Some(Ready {
        kind: "EndpointSlice",
        name,
        labels: Vec::new(),
        addresses,
        host_ip: None,
    })
}

fn endpoints(tree: &Tree, name: Name) -> Ready {
    let subsets = list_at(tree, &["subsets"]).iter();
    let addresses = subsets.flat_map(|subset| list_at(subset, &["addresses"]));
    let addresses = addresses.filter_map(|address| {
        let node = text_at(address, &["nodeName"]).map(str::to_owned);
        Some((text_at(address, &["ip"])?.parse().ok()?, node))
    });
    Ready {
        kind: "Endpoints",
        addresses: addresses.collect(),
        name,
        labels: Vec::new(),
        host_ip: None,
    }
}

/// A pod that is ready and not going away; others are `None`.
fn pod(tree: &Tree, name: Name) -> Option<Ready> {
    if at(tree, &["metadata", "deletionTimestamp"]).is_some() {
        return None;
    }
    let ready = list_at(tree, &["status", "conditions"])
        .iter()
        .any(|condition| {
            text_at(condition, &["type"]) == Some("Ready")
                && text_at(condition, &["status"]) == Some("True")
        });
    let address = text_at(tree, &["status", "podIP"])?.parse().ok()?;
    let node = text_at(tree, &["spec", "nodeName"]).map(str::to_owned);
    ready.then(|| Ready {
        kind: "Pod",
        labels: labels_at(tree, &["metadata", "labels"]),
        addresses: vec![(address, node)],
        host_ip: text_at(tree, &["status", "hostIP"]).and_then(|text| text.parse().ok()),
        name,
    })
}
