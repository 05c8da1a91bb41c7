//! A node with virtual services, played packet by packet: what the acceptance tests of the node share.
//!
//! Both ends are puppets: a [`Flow`] keeps the sequence numbers, so that conntrack sees a plausible connection,
//! and sends what the test says. The node in between is the whole of it: conntrack, IPVS, source NAT.

#![allow(
    dead_code,
    reason = "each test program uses a part of what is shared here"
)]

use ipvs_model::conntrack::{ListingStyle, SourceNat, Status};
use ipvs_model::ipvs::sched::{Flags as SchedFlags, Kind};
use ipvs_model::ipvs::service::{Persistence, ServiceKey};
use ipvs_model::ipvs::{list_connections, list_connections_ipvsadm};
use ipvs_model::kernel::{Behaviours, Kernel};
use ipvs_model::node::{Balancer, Decision, Node, NodeConfig, Rule, Verdict};
use ipvs_model::segment::{Endpoint, Flags, Segment, Tuple};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Jiffies, Span};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// The founding case's NodePort.
pub const NODE_PORT: &str = "10.20.79.226:31199";
/// The founding case's client and the port that is reused.
pub const CLIENT: &str = "10.23.31.87:58578";
/// The old real server.
pub const A: &str = "10.27.1.249:80";
/// Its successor.
pub const B: &str = "10.27.1.250:80";

pub const SYN: Flags = Flags::SYN;
pub const ACK: Flags = Flags::ACK;
pub const FIN: Flags = Flags(0x11);
pub const RST: Flags = Flags::RST;
pub const SYN_ACK: Flags = Flags(0x12);

pub fn at(text: &str) -> Endpoint {
    text.parse().expect("endpoint")
}

pub fn kernel(release: &str) -> Behaviours {
    release.parse::<Kernel>().expect("release").behaviours()
}

/// The time that passes before each packet: one more than a tick at HZ 250.
const STEP: Span = Span::from_millis(5);

/// A node and its clock.
pub struct Lab {
    pub node: Node,
    pub now: Instant,
    /// The service that flows go to unless they say otherwise.
    pub key: ServiceKey,
    rng: ChaCha8Rng,
}

impl Lab {
    /// kube-proxy's sysctls but for the reuse mode, HZ 250, rr, no masquerading.
    pub fn new(release: &str, mode: u8, pods: &[&str]) -> Self {
        let mut sysctls = Sysctls::of(kernel(release));
        sysctls.vs.conntrack = true;
        sysctls.vs.expire_nodest_conn = true;
        sysctls.vs.expire_quiescent_template = true;
        sysctls.vs.conn_reuse_mode = mode;
        Self::with(release, sysctls, SourceNat::NullBinding, pods)
    }

    pub fn with(release: &str, sysctls: Sysctls, source_nat: SourceNat, pods: &[&str]) -> Self {
        let kernel = kernel(release);
        let mut lab = Self {
            node: Node::new(NodeConfig {
                kernel,
                clock: Clock::new(250, kernel.timer_era(), Span::from_secs(1000)),
                sysctls,
                balancer: Balancer::Ipvs,
                source_nat,
                tracking: true,
            }),
            now: Instant::ZERO,
            key: ServiceKey::tcp(at(NODE_PORT)),
            rng: ChaCha8Rng::seed_from_u64(1),
        };
        lab.add_service(NODE_PORT, None);
        for pod in pods {
            lab.add(pod);
        }
        lab
    }

    pub fn add_service(&mut self, addr: &str, persistence: Option<Persistence>) -> ServiceKey {
        let key = ServiceKey::tcp(at(addr));
        self.node.add_local(key.addr.ip);
        self.node
            .ipvs
            .add_service(key, Kind::Rr, SchedFlags::default(), persistence)
            .expect("a new service");
        key
    }

    /// Changes sysctls, as an operator would.
    pub fn sysctl(&mut self, change: impl FnOnce(&mut Sysctls)) {
        let mut sysctls = self.node.config().sysctls;
        change(&mut sysctls);
        self.node.set_sysctls(sysctls);
    }

    pub fn add(&mut self, pod: &str) {
        let added = self.node.ipvs.add_dest(self.key, at(pod), 1);
        added.expect("a new real server");
    }

    pub fn weight(&mut self, pod: &str, weight: u32) {
        let edited = self.node.ipvs.edit_dest(self.key, at(pod), weight);
        edited.expect("a known real server");
    }

    pub fn delete(&mut self, pod: &str) {
        let deleted = self.node.ipvs.delete_dest(self.now, self.key, at(pod));
        deleted.expect("a known real server");
    }

    /// What kube-proxy does at an endpoint update: the new pod first, then weight 0 for the old one.
    pub fn replace(&mut self, old: &str, new: &str) {
        self.add(new);
        self.weight(old, 0);
    }

    pub fn tick(&self) -> Jiffies {
        self.node.config().clock.jiffies(self.now)
    }

    pub fn wait(&mut self, span: Span) {
        self.now += span;
        self.node.advance(self.now);
    }

    pub fn wait_s(&mut self, secs: u64) {
        self.wait(Span::from_secs(secs));
    }

    /// Waits until that long after `since`.
    pub fn until(&mut self, since: Instant, span: Span) {
        assert!(since + span >= self.now, "that has passed");
        self.now = since + span;
        self.node.advance(self.now);
    }

    /// A packet arrives now.
    pub fn packet(&mut self, seg: &Segment) -> Decision {
        self.node.packet(self.now, seg, &mut self.rng)
    }

    /// The client sends a segment of the flow.
    pub fn client(&mut self, flow: &mut Flow, flags: Flags) -> Decision {
        self.client_data(flow, flags, 0)
    }

    /// The same with payload.
    pub fn client_data(&mut self, flow: &mut Flow, flags: Flags, len: u16) -> Decision {
        self.wait(STEP);
        self.client_now(flow, flags, len)
    }

    /// The same without any time in between.
    pub fn client_now(&mut self, flow: &mut Flow, flags: Flags, len: u16) -> Decision {
        let seg = flow.client_segment(flags, len);
        flow.client_next = seg.end_seq();
        flow.last_from_client = Some(seg);
        let decision = self.packet(&seg);
        if let Verdict::Forward(out) = decision.verdict {
            flow.pod_side = Some(out.tuple);
        }
        decision
    }

    /// The client sends its last segment again.
    pub fn again(&mut self, flow: &mut Flow) -> Decision {
        let seg = flow.last_from_client.expect("something was sent");
        let decision = self.packet(&seg);
        if let Verdict::Forward(out) = decision.verdict {
            flow.pod_side = Some(out.tuple);
        }
        decision
    }

    /// The real server that the flow's packets go to sends a segment.
    pub fn pod(&mut self, flow: &mut Flow, flags: Flags) -> Decision {
        self.pod_data(flow, flags, 0)
    }

    /// The same with payload.
    pub fn pod_data(&mut self, flow: &mut Flow, flags: Flags, len: u16) -> Decision {
        self.wait(STEP);
        let seg = flow.pod_segment(flags, len);
        flow.pod_next = seg.end_seq();
        self.packet(&seg)
    }

    /// A SYN with a newer sequence number; the real server it was sent to.
    pub fn syn(&mut self, flow: &mut Flow) -> Result<Endpoint, (Verdict, Rule)> {
        flow.begin_again();
        let decision = self.client(flow, SYN);
        match decision.verdict {
            Verdict::Forward(out) => Ok(out.tuple.dst),
            other => Err((other, decision.rule)),
        }
    }

    /// The whole handshake.
    pub fn open(&mut self, flow: &mut Flow) -> Endpoint {
        let pod = self.syn(flow).expect("the SYN is forwarded");
        self.pod(flow, SYN_ACK);
        self.client(flow, ACK);
        pod
    }

    /// Both sides close, the server first. Ends at the last packet.
    pub fn server_closes(&mut self, flow: &mut Flow) {
        self.pod(flow, FIN);
        self.client(flow, ACK);
        self.client(flow, FIN);
        self.pod(flow, ACK);
    }

    /// Both sides close, the client first. Ends at the last packet.
    pub fn client_closes(&mut self, flow: &mut Flow) {
        self.client(flow, FIN);
        self.pod(flow, ACK);
        self.pod(flow, FIN);
        self.client(flow, ACK);
    }

    /// Both halves of the flow: IPVS entries (newest first), conntrack entry, `active/inactive` of all listed
    /// real servers, as in `SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0`; `-` for what is not there.
    pub fn shows(&self, flow: &Flow) -> String {
        let counts = self
            .node
            .ipvs
            .real_servers(self.key)
            .fold((0, 0), |(active, inactive), server| {
                (active + server.active, inactive + server.inactive)
            });
        format!(
            "{} | {} | {}/{}",
            self.ipvs_of(flow),
            self.ct_of(flow),
            counts.0,
            counts.1
        )
    }

    /// The IPVS half: state and seconds.
    pub fn ipvs_of(&self, flow: &Flow) -> String {
        let entries: Vec<_> = list_connections(&self.node.ipvs, self.tick())
            .into_iter()
            .filter(|line| (line.client, line.virt) == (flow.client, flow.virt))
            .map(|line| format!("{} {}", line.state, line.expires_s))
            .collect();
        or_dash(entries.join(", "))
    }

    /// The conntrack half: state, seconds, flags.
    pub fn ct_of(&self, flow: &Flow) -> String {
        let (now, hz) = (self.tick(), u64::from(self.node.config().clock.hz()));
        let entries: Vec<_> = self
            .node
            .ct
            .iter()
            .map(|(_, entry)| entry)
            .filter(|entry| entry.orig() == flow.tuple())
            .filter(|entry| entry.status.has(Status::CONFIRMED) && !entry.is_expired(now))
            .map(|entry| {
                let secs = now.until(entry.deadline) / hz;
                let state = entry.tcp().expect("TCP").state;
                let mut text = format!("{state} {secs}");
                if !entry.status.has(Status::SEEN_REPLY) {
                    text.push_str(" [UNREPLIED]");
                }
                if entry.status.has(Status::ASSURED) {
                    text.push_str(" [ASSURED]");
                }
                text
            })
            .collect();
        or_dash(entries.join(", "))
    }

    /// The IPVS table as `ipvsadm -Lnc` prints it.
    pub fn ipvsadm(&self) -> String {
        list_connections_ipvsadm(&self.node.ipvs, self.tick())
    }

    /// The conntrack table as the kernel of the article prints it.
    pub fn proc_conntrack(&self) -> Vec<String> {
        let style = ListingStyle {
            mark: true,
            zone: true,
        };
        self.node.ct.listing(self.tick(), style)
    }

    /// `weight active/inactive` of a real server, if it is listed.
    pub fn server(&self, pod: &str) -> Option<String> {
        self.node
            .ipvs
            .real_servers(self.key)
            .find(|server| server.addr == at(pod))
            .map(|server| format!("{} {}/{}", server.weight, server.active, server.inactive))
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// One client tuple and the numbers of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub client: Endpoint,
    pub virt: Endpoint,
    /// Addresses as the real server sees them, once a packet got there.
    pub pod_side: Option<Tuple>,
    pub client_next: u32,
    pub pod_next: u32,
    last_from_client: Option<Segment>,
    begun: u32,
}

impl Flow {
    pub fn new(client: &str) -> Self {
        Self::to(client, NODE_PORT)
    }

    pub fn to(client: &str, virt: &str) -> Self {
        Self {
            client: at(client),
            virt: at(virt),
            pod_side: None,
            client_next: 0,
            pod_next: 0,
            last_from_client: None,
            begun: 0,
        }
    }

    pub fn tuple(&self) -> Tuple {
        Tuple::tcp(self.client, self.virt)
    }

    /// A new connection on the tuple: both initial numbers grow, as the kernel's clock makes them.
    pub fn begin_again(&mut self) {
        self.begun += 1;
        self.client_next = self.begun * 100_000_000;
        self.pod_next = self.begun * 100_000_000 + 50_000_000;
    }

    /// A segment of the client with the next numbers.
    pub fn client_segment(&self, flags: Flags, len: u16) -> Segment {
        let mut seg = Segment::new(self.tuple(), flags);
        seg.seq = self.client_next;
        seg.len = len;
        if flags.has(Flags::ACK) {
            seg.ack = self.pod_next;
        }
        seg
    }

    /// A segment of the real server with the next numbers; a RST acknowledges, as one for a SYN does.
    pub fn pod_segment(&self, flags: Flags, len: u16) -> Segment {
        let reached = self.pod_side.expect("the client reached a real server");
        let mut seg = Segment::new(reached.reversed(), flags);
        seg.seq = self.pod_next;
        seg.len = len;
        if flags.has(Flags::ACK) {
            seg.ack = self.client_next;
        }
        seg
    }
}
