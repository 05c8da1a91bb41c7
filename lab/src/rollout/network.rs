//! Client, node and pods: network namespaces joined by veth pairs. The node is the guest's first namespace and has a bridge
//! with the pods on it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::ip;
use super::spec::{DeadEnd, RolloutSpec};
use crate::config::Masquerade;
use crate::generator::SERVICE;
use crate::guest::{line, set_sysctl};

/// The namespaces, open.
#[derive(Debug)]
pub struct Network {
    node: File,
    client: File,
    pods: Vec<File>,
}

/// The address a pod listens on.
pub fn pod_address(pod: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 27, 1, 10 + pod as u8), 80)
}

fn namespace(name: &str) -> Result<File> {
    ip(&format!("netns add {name}"))?;
    let path = format!("/run/netns/{name}");
    File::open(&path).with_context(|| format!("cannot open {path}"))
}

fn enter(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter a network namespace")
}

impl Network {
    /// Makes everything. The caller stays in the node's namespace.
    pub fn set_up(spec: &RolloutSpec) -> Result<Self> {
        let node = File::open("/proc/self/ns/net").context("cannot open our namespace")?;
        for key in ["all", "default"] {
            set_sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), 0)?;
        }
        set_sysctl("net.ipv4.ip_forward", 1)?;
        // Packets from pod to pod are not what this is about; absent in kernels without bridge netfilter.
        let _ = set_sysctl("net.bridge.bridge-nf-call-iptables", 0);
        ip("link add kube-ipvs0 type dummy")?;
        ip(&format!("address add {}/32 dev kube-ipvs0", SERVICE.ip()))?;
        ip("link set kube-ipvs0 up")?;
        ip("link add cni0 type bridge")?;
        ip("address add 10.27.1.1/24 dev cni0")?;
        ip("link set cni0 up")?;

        let client = namespace("client")?;
        ip("link add client type veth peer name eth0 netns client")?;
        ip("address add 10.23.31.1/24 dev client")?;
        ip("link set client up")?;
        enter(&client)?;
        let inside = || -> Result<()> {
            ip("address add 10.23.31.87/24 dev eth0")?;
            ip("link set lo up")?;
            ip("link set eth0 up")?;
            ip("route add default via 10.23.31.1")?;
            let [first, last] = spec.ports;
            set_sysctl("net.ipv4.ip_local_port_range", format!("{first} {last}"))?;
            if let Some(reuse) = spec.tcp_tw_reuse {
                set_sysctl("net.ipv4.tcp_tw_reuse", reuse)?;
            }
            Ok(())
        };
        let done = inside();
        enter(&node)?;
        done?;

        let mut pods = Vec::new();
        for pod in 0..spec.old_pods + spec.new_pods {
            let space = namespace(&format!("pod{pod}"))?;
            ip(&format!(
                "link add pod{pod} type veth peer name eth0 netns pod{pod}"
            ))?;
            ip(&format!("link set pod{pod} master cni0 up"))?;
            let address = pod_address(pod);
            for words in [
                format!("address add {}/24 dev eth0", address.ip()),
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                "route add default via 10.27.1.1".to_owned(),
            ] {
                ip(&format!("-n pod{pod} {words}"))?;
            }
            pods.push(space);
        }

        line(
            "iptables-legacy",
            "-w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        )?;
        let random = match spec.masquerade {
            Masquerade::Off => None,
            Masquerade::Plain => Some(""),
            Masquerade::RandomFully => Some(" --random-fully"),
        };
        if let Some(random) = random {
            let rule = format!("-w -t nat -A POSTROUTING -o cni0 -j MASQUERADE{random}");
            line("iptables-legacy", &rule)?;
        }
        // Ports of bridges forward at once, but carrier and addresses need a moment.
        std::thread::sleep(std::time::Duration::from_secs(2));
        Ok(Self { node, client, pods })
    }

    /// Stays in the client's namespace from now on.
    pub fn enter_client(&self) -> Result<()> {
        enter(&self.client)
    }

    /// Does something in the node's namespace and comes back to the client's.
    pub fn in_node<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        enter(&self.node)?;
        let done = what(self);
        enter(&self.client)?;
        done
    }

    /// A listening socket in a pod; the caller is in the node's namespace.
    pub fn listener(&self, pod: usize) -> Result<TcpListener> {
        enter(&self.pods[pod])?;
        let listener = TcpListener::bind(pod_address(pod)).context("a pod cannot listen");
        enter(&self.node)?;
        listener
    }

    /// The end of a pod as the node sees it; the caller is in the client's namespace.
    pub fn kill(&mut self, pod: usize, end: DeadEnd) -> Result<()> {
        let address = *pod_address(pod).ip();
        self.in_node(|_| match end {
            DeadEnd::Unreachable => ip(&format!("route replace unreachable {address}/32")),
            DeadEnd::Blackhole => ip(&format!("route replace blackhole {address}/32")),
            // A neighbour that does not exist: the bridge floods the frame and everybody ignores it.
            DeadEnd::Silent => ip(&format!(
                "neighbour replace {address} lladdr 02:00:00:00:00:{pod:02x} dev cni0 nud permanent"
            )),
            DeadEnd::Gone => {
                ip(&format!("link del pod{pod}"))?;
                ip(&format!("netns del pod{pod}"))
            }
            DeadEnd::Reset => Ok(()),
        })
    }
}
