//! The remedies that people try, as a table: what each changes in a scenario, when it makes sense, what is known of its side
//! effects, what to type to apply it, and where all that comes from.
//!
//! A remedy is tried by running it: nothing here says whether it helps.

use ipvs_model::kernel::Gate;

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The nodes that balance.
    Nodes,
    /// The cluster: kube-proxy, data plane, load balancer.
    Cluster,
    /// Whoever calls.
    Clients,
    /// The Deployment and its pods.
    Workload,
}

impl Place {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Cluster => "cluster",
            Self::Clients => "clients",
            Self::Workload => "workload",
        }
    }
}

/// What a remedy changes.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// These fields to these values.
    Set(&'static [(&'static str, &'static str)]),
    /// The node's kernel to the nearest release that has the behaviour, and these fields besides.
    Kernel(Gate, &'static [(&'static str, &'static str)]),
    /// Each client table's hosts, multiplied.
    Clients(u32),
    /// Requests on a connection, at least this many, or ten times those of today.
    KeepAlive(u32),
    /// The other end closes first.
    FlipClosesFirst,
    /// preStop to this many seconds, with the grace period behind it. The run is moved by as much, so that what happens after the
    /// pod's end is seen for as long as before.
    PreStop(u64),
    /// minReadySeconds. The run is made longer by what the rollout takes longer.
    MinReady(u64),
}

/// When a remedy makes sense.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// The node balances with IPVS.
    Ipvs,
    /// The node balances with something else than this.
    NotMode(&'static str),
    /// conn_reuse_mode is 0, and the kernel has the switch.
    ReuseModeOff,
    /// A sysctl of the node has another value.
    SysctlOther(&'static str, &'static str),
    /// The node's kernel lacks a behaviour.
    Lacks(Gate),
    /// The node's kernel has a behaviour.
    Has(Gate),
    /// Clients choose their ports from a range, and it is narrower than this many.
    RangeBelow(u32),
    /// Clients choose their ports by connect().
    ConnectChooses,
    /// tcp_tw_reuse of the clients is another.
    TwReuseOther(u8),
    /// The client closes first somewhere (else it holds no TIME_WAIT that could be reused).
    ClientCloses,
    /// Clients that are hosts of their own, so that there can be more.
    RemoteClients,
    /// Clients on the node itself: pods or its processes.
    LocalClients,
    /// The rollout is a Deployment's.
    Deployment,
    /// preStop is shorter than so many seconds.
    PreStopBelow(u64),
    /// The application does not drain at SIGTERM.
    NotDraining,
    /// Session affinity is on.
    Affinity,
    /// kube-proxy is older than this minor release.
    ProxyBelow(u16),
    /// kube-proxy writes conn_reuse_mode on this kernel only in old releases: from 5.9 on a newer one leaves it alone.
    KernelFrom59,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Apply {
    /// Where to do it.
    pub on: &'static str,
    /// What to type, or the lines of YAML. `{ports}`, `{kernel}`, `{clients}` and the like stand for what was tried.
    pub text: &'static str,
}

/// A remedy.
#[derive(Clone, Copy, Debug)]
pub struct Remedy {
    /// Its name on the command line.
    pub id: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Who changes something.
    pub place: Place,
    /// What it changes.
    pub change: Change,
    /// When it makes sense.
    pub needs: &'static [Need],
    /// What it costs, as far as it is known and not measured here.
    pub side: &'static str,
    /// What to do.
    pub apply: &'static [Apply],
    /// Where it comes from.
    pub source: &'static str,
}

const MODE: &str = "node.sysctl.net.ipv4.vs.conn_reuse_mode";
const EXPIRE: &str = "node.sysctl.net.ipv4.vs.expire_nodest_conn";

const fn on(on: &'static str, text: &'static str) -> Apply {
    Apply { on, text }
}

/// All remedies, in the order in which they are listed when nothing else decides.
pub const REMEDIES: &[Remedy] = &[
    Remedy {
        id: "wider-ports",
        title: "wider port range of the clients",
        place: Place::Clients,
        change: Change::Set(&[("client.*.ports", "1024-65535")]),
        needs: &[Need::RangeBelow(64_512)],
        side: "postpones: a port comes round later, and with a higher rate all is as before; on a node, NodePorts (30000-32767) \
               must be reserved",
        apply: &[
            on(
                "each client host",
                "sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
            ),
            on(
                "each client host that is a node",
                "sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767",
            ),
            on(
                "clients that are pods",
                "spec:\n  securityContext:\n    sysctls:\n    - {name: net.ipv4.ip_local_port_range, value: \"1024 65535\"}",
            ),
        ],
        source: "founding case, remedy 1; facts/kernel.md 6 (__inet_hash_connect)",
    },
    Remedy {
        id: "reuse-mode-1",
        title: "conn_reuse_mode=1",
        place: Place::Nodes,
        change: Change::Set(&[(MODE, "1")]),
        needs: &[Need::Ipvs, Need::ReuseModeOff],
        side: "on kernels without f0a5e4d7a594 (5.9; 4.14.194, 4.19.140, 5.4.59) the first SYN of a reused port is dropped: 1 s \
               for as long as ports come round, rollout or not",
        apply: &[
            on(
                "each node, after kube-proxy has started",
                "sysctl -w net.ipv4.vs.conn_reuse_mode=1",
            ),
            on(
                "each node, to keep it",
                "kube-proxy before 1.22, or on a kernel before 5.9, writes 0 at its start: set it again after every restart (ExecStartPost, \
                 or a DaemonSet that checks it)",
            ),
        ],
        source: "founding case, remedy 2; facts/kernel.md 1.6; facts/kube-proxy.md 1",
    },
    Remedy {
        id: "reuse-mode-1-fixed-kernel",
        title: "conn_reuse_mode=1 and a kernel that drops no first SYN",
        place: Place::Nodes,
        change: Change::Kernel(Gate::ReuseDropsConfirmed, &[(MODE, "1")]),
        needs: &[
            Need::Ipvs,
            Need::ReuseModeOff,
            Need::Has(Gate::ReuseDropsTracked),
            Need::Lacks(Gate::ReuseDropsConfirmed),
        ],
        side: "a kernel update and a reboot of every node",
        apply: &[
            on("each node", "boot kernel {kernel} or later: {kernel_fix}"),
            on(
                "each node, after kube-proxy has started",
                "sysctl -w net.ipv4.vs.conn_reuse_mode=1",
            ),
        ],
        source: "f0a5e4d7a594; facts/kernel.md 1.6.1, 8; facts/field-cases.md F9",
    },
    Remedy {
        id: "kernel-fix",
        title: "kernel that looks at weight 0 in every mode",
        place: Place::Nodes,
        change: Change::Kernel(Gate::WeightZeroAnyMode, &[(EXPIRE, "1")]),
        needs: &[Need::Ipvs, Need::Lacks(Gate::WeightZeroAnyMode)],
        side: "a kernel update and a reboot of every node; needs expire_nodest_conn=1, which kube-proxy sets from 1.14 on",
        apply: &[
            on("each node", "boot kernel {kernel} or later: {kernel_fix}"),
            on(
                "each node",
                "sysctl net.ipv4.vs.expire_nodest_conn   # must say 1",
            ),
        ],
        source: "c95c07836fa4; facts/kernel.md 1.6.1, 8; facts/field-cases.md F9",
    },
    Remedy {
        id: "kube-proxy",
        title: "newer kube-proxy (1.28), which leaves conn_reuse_mode alone",
        place: Place::Cluster,
        change: Change::Set(&[("kube_proxy.version", "1.28.0")]),
        needs: &[Need::Ipvs, Need::ProxyBelow(22), Need::KernelFrom59],
        side: "a 0 that an older kube-proxy or sysctl.conf has left since boot stays 0: reboot, or set it to 1 once",
        apply: &[
            on(
                "cluster",
                "kubectl -n kube-system set image daemonset/kube-proxy kube-proxy=registry.k8s.io/kube-proxy:v1.28.0",
            ),
            on(
                "each node",
                "sysctl -w net.ipv4.vs.conn_reuse_mode=1   # once, if it still says 0",
            ),
        ],
        source: "kubernetes#102122; facts/kube-proxy.md 1",
    },
    Remedy {
        id: "expire-nodest-conn",
        title: "expire_nodest_conn=1",
        place: Place::Nodes,
        change: Change::Set(&[(EXPIRE, "1")]),
        needs: &[
            Need::Ipvs,
            Need::SysctlOther("net.ipv4.vs.expire_nodest_conn", "1"),
        ],
        side: "connections to a deleted real server are ended at their next packet instead of going silent",
        apply: &[on(
            "each node",
            "sysctl -w net.ipv4.vs.expire_nodest_conn=1",
        )],
        source: "facts/kernel.md 1.8; kubernetes#71834",
    },
    Remedy {
        id: "iptables",
        title: "kube-proxy in iptables mode",
        place: Place::Cluster,
        change: Change::Set(&[("node.mode", "iptables")]),
        needs: &[Need::NotMode("iptables")],
        side: "rules grow with services times endpoints (slow beyond some thousands of services); what remains: a SYN that meets an unanswered \
               conntrack entry stays with the old pod for 120 s",
        apply: &[
            on(
                "cluster",
                "kubectl -n kube-system edit configmap kube-proxy   # mode: \"iptables\"",
            ),
            on(
                "cluster",
                "kubectl -n kube-system rollout restart daemonset kube-proxy",
            ),
            on(
                "each node, once",
                "kube-proxy --cleanup   # removes what IPVS mode has left (ipvsadm -Ln must be empty)",
            ),
        ],
        source: "founding case, remedy 3; facts/kube-proxy.md 7; facts/field-cases.md F12",
    },
    Remedy {
        id: "nftables",
        title: "kube-proxy in nftables mode",
        place: Place::Cluster,
        change: Change::Set(&[("node.mode", "nftables")]),
        needs: &[Need::NotMode("nftables")],
        side: "kube-proxy 1.31 or later (beta; 1.33 stable), kernel 5.13 or later, nft 1.0.1 or later",
        apply: &[
            on(
                "cluster",
                "kubectl -n kube-system edit configmap kube-proxy   # mode: \"nftables\"",
            ),
            on(
                "cluster",
                "kubectl -n kube-system rollout restart daemonset kube-proxy",
            ),
        ],
        source: "facts/kube-proxy.md 7",
    },
    Remedy {
        id: "cilium",
        title: "Cilium in place of kube-proxy, packet by packet (calls from outside)",
        place: Place::Cluster,
        change: Change::Set(&[("node.mode", "cilium-packet")]),
        needs: &[Need::NotMode("cilium-packet")],
        side: "another network plugin; before cilium#19451 and #20407 (2022) a reused port kept its old backend there too",
        apply: &[on(
            "cluster",
            "cilium install --set kubeProxyReplacement=true   # version 1.13 or later",
        )],
        source: "facts/kube-proxy.md 7; facts/field-cases.md F21",
    },
    Remedy {
        id: "cilium-socket",
        title: "Cilium in place of kube-proxy, at connect() (calls from pods)",
        place: Place::Cluster,
        change: Change::Set(&[("node.mode", "cilium-socket")]),
        needs: &[Need::NotMode("cilium-socket"), Need::LocalClients],
        side: "another network plugin; a backend is chosen at connect(), so there is nothing that a port could be pinned to",
        apply: &[on(
            "cluster",
            "cilium install --set kubeProxyReplacement=true   # version 1.13 or later",
        )],
        source: "facts/kube-proxy.md 7; facts/field-cases.md F21",
    },
    Remedy {
        id: "direct-to-pod",
        title: "load balancer straight to the pods",
        place: Place::Cluster,
        change: Change::Set(&[("node.mode", "headless")]),
        needs: &[Need::NotMode("headless")],
        side: "the load balancer must know pods (ENI, IP targets); its own drain time then decides, and readiness gates must hold the rollout back",
        apply: &[
            on(
                "Service (AWS)",
                "metadata:\n  annotations:\n    service.beta.kubernetes.io/aws-load-balancer-nlb-target-type: ip",
            ),
            on(
                "Service (Alibaba Cloud, Terway ENI)",
                "metadata:\n  annotations:\n    service.beta.kubernetes.io/backend-type: eni",
            ),
        ],
        source: "facts/kube-proxy.md 7 (operational mitigations); annotations from the vendors' manuals, not tried here",
    },
    Remedy {
        id: "closes-first",
        title: "the other end closes first",
        place: Place::Clients,
        change: Change::FlipClosesFirst,
        needs: &[],
        side: "whoever closes first keeps TIME_WAIT for 60 s: a client that does so cannot reuse a port for a minute, and runs out of ports sooner",
        apply: &[on(
            "client or server",
            "HTTP: the side that sends `Connection: close` does not close; the one that reads it does. Client first: read Content-Length bytes, then \
             close() without waiting for EOF",
        )],
        source: "facts/kernel.md 6, 7",
    },
    Remedy {
        id: "tw-reuse",
        title: "tcp_tw_reuse=1 on the clients",
        place: Place::Clients,
        change: Change::Set(&[("client.*.tcp_tw_reuse", "1")]),
        needs: &[Need::TwReuseOther(1), Need::ClientCloses],
        side: "ports come round sooner, after a second instead of 60: more failures by reuse, not fewer; needs timestamps",
        apply: &[on("each client host", "sysctl -w net.ipv4.tcp_tw_reuse=1")],
        source: "facts/kernel.md 6 (tcp_twsk_unique)",
    },
    Remedy {
        id: "no-tw-reuse",
        title: "tcp_tw_reuse=0 on the clients",
        place: Place::Clients,
        change: Change::Set(&[("client.*.tcp_tw_reuse", "0")]),
        needs: &[Need::TwReuseOther(0), Need::ClientCloses],
        side: "a port in TIME_WAIT rests for 60 s: connect() may run out of ports (EADDRNOTAVAIL)",
        apply: &[on("each client host", "sysctl -w net.ipv4.tcp_tw_reuse=0")],
        source: "facts/kernel.md 6 (tcp_twsk_unique)",
    },
    Remedy {
        id: "keep-alive",
        title: "keep-alive or a pool of connections",
        place: Place::Clients,
        change: Change::KeepAlive(100),
        needs: &[],
        side: "connections outlive the drain: those that are open when the pod exits are cut, unless the server closes them first; load moves to new pods \
               slowly",
        apply: &[
            on(
                "client",
                "reuse connections: {requests} requests each (HTTP keep-alive, a pool with a maximum age)",
            ),
            on(
                "client behind nginx",
                "upstream u { server SERVICE:80; keepalive 32; keepalive_requests {requests}; }",
            ),
        ],
        source: "facts/kube-proxy.md 7; facts/field-cases.md F5, F7",
    },
    Remedy {
        id: "more-clients",
        title: "more client addresses",
        place: Place::Clients,
        change: Change::Clients(4),
        needs: &[Need::RemoteClients],
        side: "each address has ports of its own, so each port comes round later; behind an SNAT that has one address nothing is gained",
        apply: &[
            on(
                "client Deployment",
                "kubectl scale deployment CLIENT --replicas={clients}   # spread over nodes: podAntiAffinity",
            ),
            on(
                "NAT or load balancer in front",
                "add SNAT addresses until there are {clients}",
            ),
        ],
        source: "facts/kube-proxy.md 5, 7 (spread client pods)",
    },
    Remedy {
        id: "pre-stop",
        title: "longer preStop (60 s)",
        place: Place::Workload,
        change: Change::PreStop(60),
        needs: &[Need::Deployment, Need::PreStopBelow(60)],
        side: "the rollout's old pods live 60 s longer; against reused ports it only moves the failures, because each connection to the old pod renews its \
               entry",
        apply: &[on(
            "Deployment",
            "spec:\n  template:\n    spec:\n      terminationGracePeriodSeconds: 90\n      containers:\n      - name: NAME\n        lifecycle: {preStop: {exec: \
             {command: [\"sleep\", \"60\"]}}}",
        )],
        source: "facts/field-cases.md F2 (preStop had been added and did not help), F25",
    },
    Remedy {
        id: "slower-rollout",
        title: "slower rollout (minReadySeconds 120)",
        place: Place::Workload,
        change: Change::MinReady(120),
        needs: &[Need::Deployment],
        side: "each step of the rollout takes two minutes longer",
        apply: &[on(
            "Deployment",
            "spec:\n  minReadySeconds: 120\n  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}",
        )],
        source: "facts/kube-proxy.md 6",
    },
    Remedy {
        id: "drain",
        title: "server that finishes its connections at SIGTERM",
        place: Place::Workload,
        change: Change::Set(&[("rollout.deployment.on_sigterm", "drains")]),
        needs: &[Need::Deployment, Need::NotDraining],
        side: "helps connections that are open at the end, not new ones that are sent to a pod that is gone",
        apply: &[on(
            "image",
            "STOPSIGNAL SIGQUIT   # nginx; others: close the listener, then finish",
        )],
        source: "facts/kube-proxy.md 6",
    },
    Remedy {
        id: "no-affinity",
        title: "session affinity off",
        place: Place::Cluster,
        change: Change::Set(&[("service.session_affinity", "none")]),
        needs: &[Need::Affinity],
        side: "requests of one client go to different pods",
        apply: &[on(
            "cluster",
            "kubectl patch service SERVICE -p '{\"spec\":{\"sessionAffinity\":\"None\"}}'",
        )],
        source: "kubernetes#71809, #89358; facts/kube-proxy.md 5; facts/field-cases.md F15",
    },
];

/// The remedy of a name.
pub fn by_id(id: &str) -> Option<&'static Remedy> {
    REMEDIES.iter().find(|remedy| remedy.id == id)
}
