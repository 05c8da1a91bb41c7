//! A packet's way through the node: conntrack, then the balancer, then source NAT, then confirmation, in the order of
//! the kernel's hook priorities.
//!
//! Faithful to: `ip_vs_ops4`, `ipv4_conntrack_ops`, `nf_nat_ipv4_ops` and their priorities (`NF_IP_PRI_*`);
//! `tcp_v4_rcv` without a socket; 3.10 to 6.19.
//! Leaves out: fragments, filter rules that drop, ICMP errors that come back through the node, routes other than
//! "reachable" and "unreachable".

mod foreseen;

use core::net::Ipv4Addr;

use rand::Rng;

use crate::conntrack::{Conntrack, CtRef, CtRule, Dir, Incoming, SourceNat, Status};
use crate::dataplane::{Cilium, CiliumRule, CiliumVerdict, IptablesRules, Pick};
use crate::ipvs::reuse::CtSeen;
use crate::ipvs::table::EntryId;
use crate::ipvs::{self, Inward, Ipvs, Outward};
use crate::kernel::Behaviours;
use crate::segment::{Endpoint, IcmpKind, Proto, Segment};
use crate::sysctl::Sysctls;
use crate::tcp::socket::reset_for;
use crate::time::{Clock, Instant};

pub use foreseen::Foreseen;

/// What balances on the node.
#[derive(Clone, Debug)]
pub enum Balancer {
    /// IPVS.
    Ipvs,
    /// DNAT rules, one chosen at random for each new connection: kube-proxy's iptables or nftables mode.
    Iptables(IptablesRules),
    /// Cilium's service entries, packet by packet, in the place of netfilter's hooks.
    Cilium(Box<Cilium>),
    /// Nothing: the node forwards.
    None,
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The kernel's behaviours.
    pub kernel: Behaviours,
    /// The kernel's tick.
    pub clock: Clock,
    /// All sysctls.
    pub sysctls: Sysctls,
    /// What balances.
    pub balancer: Balancer,
    /// Source NAT of balanced connections. Others have a null binding, unless the node has no NAT table at all.
    pub source_nat: SourceNat,
    /// Whether anything tracks connections: one rule that asks for conntrack is enough. kube-proxy's do.
    pub tracking: bool,
}

/// The rule that decided on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A rule of IPVS.
    Ipvs(ipvs::Rule),
    /// A rule of conntrack: it dropped the packet.
    Conntrack(CtRule),
    /// iptables mode: a new connection, an endpoint was chosen at random.
    IptablesPicked,
    /// iptables mode: the connection's conntrack entry keeps its endpoint.
    IptablesKept,
    /// iptables mode: the service has no endpoint; kube-proxy's rule rejects.
    IptablesNoEndpoint,
    /// iptables mode: a forwarded packet that conntrack calls invalid is dropped by kube-proxy's rule.
    IptablesInvalid,
    /// A rule of Cilium's load balancer.
    Cilium(CiliumRule),
    /// The real server's address has no route.
    NoRoute,
    /// Nobody's packet: forwarded or delivered as it is.
    Plain,
}

impl Rule {
    /// One sentence on what the rule does.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Ipvs(rule) => rule.describe(),
            Self::Conntrack(rule) => rule.describe(),
            Self::IptablesPicked => "a new connection: an endpoint was chosen at random",
            Self::IptablesKept => "the conntrack entry keeps the endpoint it was given",
            Self::IptablesNoEndpoint => {
                "the service has no endpoint: rejected by ICMP port unreachable"
            }
            Self::IptablesInvalid => "conntrack calls the packet invalid: dropped by KUBE-FORWARD",
            Self::Cilium(rule) => rule.describe(),
            Self::NoRoute => "the real server's address has no route: ICMP host unreachable",
            Self::Plain => "no service and no entry concerns this packet",
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves the node like this.
    Forward(Segment),
    /// The node's own stack took it; a TCP segment for nobody is answered.
    Local {
        /// The RST that the node sends, if any.
        answer: Option<Segment>,
    },
    /// Dropped without a word.
    Drop,
    /// Dropped, and the node sends an ICMP error to the sender, if its rate limits let it.
    Reject(IcmpKind),
}

/// A verdict with its reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The rule that decided.
    pub rule: Rule,
    /// What conntrack made of the packet; `None` if nothing tracks.
    pub ct: Option<CtRule>,
    /// The IPVS entry that the packet followed or made.
    pub entry: Option<EntryId>,
}

/// Source NAT by where a balanced packet comes from, where kube-proxy's rules tell sources apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRules {
    /// First and last address of clients, with what applies to them.
    pub clients: Vec<(Ipv4Addr, Ipv4Addr, SourceNat)>,
    /// For a pod that reaches itself (`KUBE-LOOP-BACK`).
    pub hairpin: Option<SourceNat>,
}

impl SourceRules {
    /// What applies to a packet that has its real server as destination, or else `otherwise`.
    fn of(&self, out: &Segment, otherwise: SourceNat) -> SourceNat {
        let (src, dst) = (out.tuple.src.ip, out.tuple.dst.ip);
        match self.hairpin {
            Some(policy) if src == dst => return policy,
            _ => {}
        }
        let found = self
            .clients
            .iter()
            .find(|(low, high, _)| *low <= src && src <= *high);
        found.map_or(otherwise, |(_, _, policy)| *policy)
    }
}

/// A node: the tables and the way through them.
#[derive(Clone, Debug)]
pub struct Node {
    config: NodeConfig,
    /// IPVS.
    pub ipvs: Ipvs,
    /// conntrack.
    pub ct: Conntrack,
    local: Vec<Ipv4Addr>,
    unreachable: Vec<Ipv4Addr>,
    sources: SourceRules,
}

impl Node {
    /// A node without services.
    pub fn new(config: NodeConfig) -> Self {
        let ipvs = Ipvs::new(config.kernel, config.clock, config.sysctls.vs);
        let ct = Conntrack::new(config.clock, config.kernel);
        Self {
            config,
            ipvs,
            ct,
            local: Vec::new(),
            unreachable: Vec::new(),
            sources: SourceRules::default(),
        }
    }

    /// Tells sources apart in the source NAT of balanced connections; those without a rule have the set-up's policy.
    pub fn set_source_rules(&mut self, rules: SourceRules) {
        self.sources = rules;
    }

    /// The node's set-up.
    pub const fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// What balances, for its programmer; IPVS is [`Node::ipvs`].
    pub const fn balancer_mut(&mut self) -> &mut Balancer {
        &mut self.config.balancer
    }

    /// Changes sysctls at run time.
    pub const fn set_sysctls(&mut self, sysctls: Sysctls) {
        self.config.sysctls = sysctls;
        self.ipvs.sysctls = sysctls.vs;
    }

    /// Changes the source NAT of balanced connections that begin from now on.
    pub const fn set_source_nat(&mut self, policy: SourceNat) {
        self.config.source_nat = policy;
    }

    /// Makes an address the node's own: a virtual address (as on kube-ipvs0) or one of its interfaces.
    pub fn add_local(&mut self, ip: Ipv4Addr) {
        if let Err(at) = self.local.binary_search(&ip) {
            self.local.insert(at, ip);
        }
    }

    /// Sets or clears a route of type unreachable to an address.
    pub fn set_unreachable(&mut self, ip: Ipv4Addr, unreachable: bool) {
        match (self.unreachable.binary_search(&ip), unreachable) {
            (Err(at), true) => self.unreachable.insert(at, ip),
            (Ok(at), false) => {
                self.unreachable.remove(at);
            }
            _ => {}
        }
    }

    fn is_local(&self, ip: Ipv4Addr) -> bool {
        self.local.binary_search(&ip).is_ok()
    }

    fn has_route(&self, ip: Ipv4Addr) -> bool {
        self.unreachable.is_empty() || self.unreachable.binary_search(&ip).is_err()
    }

    /// Runs the timers of both tables up to `now`.
    pub fn advance(&mut self, now: Instant) {
        let ct = &mut self.ct;
        self.ipvs.advance(now, &mut |tick, tuple| {
            ct.delete_tuple(tick, tuple);
        });
    }

    /// Whether the IPVS tables are sound at `now`; [`Node::advance`] must have run. For tests.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_invariants(&self, now: Instant) -> Result<(), String> {
        self.ipvs.check_invariants(now)
    }

    /// Lets the timer of an IPVS entry fire now, with what that does to its conntrack twin: for a node whose
    /// timer grid is not known.
    pub fn expire_entry(&mut self, now: Instant, id: EntryId) {
        let ct = &mut self.ct;
        self.ipvs.expire_entry(now, id, &mut |tick, tuple| {
            ct.delete_tuple(tick, tuple);
        });
    }

    /// A packet arrives at the node. Runs the timers first.
    pub fn packet(&mut self, now: Instant, seg: &Segment, rng: &mut impl Rng) -> Decision {
        self.advance(now);
        if let Balancer::Cilium(cilium) = &mut self.config.balancer {
            let verdict = cilium.packet(now, seg, rng);
            return self.after_cilium(now, seg, verdict, rng);
        }
        let mut seg = *seg;
        let (mut ct, mut seen) = (None, None);
        if self.config.tracking {
            let jiffies = self.config.clock.jiffies(now);
            match self.ct.incoming(jiffies, &seg, &self.config.sysctls.ct) {
                Incoming::Tracked(tracked, rule) => (ct, seen) = (Some(tracked), Some(rule)),
                Incoming::Untracked(rule) => {
                    seen = Some(rule);
                    if self.drops_invalid(&seg) {
                        return Decision {
                            ct: seen,
                            ..self.drop(None, Verdict::Drop, Rule::IptablesInvalid)
                        };
                    }
                }
                Incoming::Dropped(rule) => {
                    return Decision {
                        verdict: Verdict::Drop,
                        rule: Rule::Conntrack(rule),
                        ct: Some(rule),
                        entry: None,
                    };
                }
            }
        }
        let mut picked = Rule::Plain;
        if let (Balancer::Iptables(rules), Some(ct)) = (&self.config.balancer, ct) {
            match iptables_destination(&mut self.ct, rules, ct, &seg, rng) {
                Ok(rule) => picked = rule,
                Err(rule) => {
                    let refused = Verdict::Reject(IcmpKind::PortUnreachable);
                    return Decision {
                        ct: seen,
                        ..self.drop(Some(ct), refused, rule)
                    };
                }
            }
        }
        // Replies to a masqueraded connection get their client back, and iptables mode its endpoint.
        if let Some(to) = ct.and_then(|ct| self.ct.pre_routing_destination(ct)) {
            seg.tuple.dst = to;
        }
        let decision = match (&self.config.balancer, self.is_local(seg.tuple.dst.ip)) {
            (Balancer::Ipvs, true) => self.ipvs_inward(now, seg, ct, rng),
            (Balancer::Ipvs, false) => self.ipvs_outward(now, seg, ct, rng),
            (_, true) => self.deliver(now, seg, ct, picked, rng),
            (_, false) => self.route(now, seg, ct, picked, rng),
        };
        Decision {
            ct: seen,
            ..decision
        }
    }

    /// Whether iptables mode drops an invalid packet at FORWARD; one for the node itself passes INPUT.
    fn drops_invalid(&self, seg: &Segment) -> bool {
        matches!(&self.config.balancer, Balancer::Iptables(rules) if rules.drops_invalid())
            && !self.is_local(seg.tuple.dst.ip)
    }

    /// What Cilium has looked at goes on past netfilter.
    fn after_cilium(
        &mut self,
        now: Instant,
        seg: &Segment,
        verdict: CiliumVerdict,
        rng: &mut impl Rng,
    ) -> Decision {
        let (seg, rule) = match verdict {
            CiliumVerdict::Forward(out, rule) => (out, Rule::Cilium(rule)),
            CiliumVerdict::Drop(rule) => {
                return self.drop(None, Verdict::Drop, Rule::Cilium(rule));
            }
            CiliumVerdict::Pass if self.is_local(seg.tuple.dst.ip) => {
                return self.deliver(now, *seg, None, Rule::Plain, rng);
            }
            CiliumVerdict::Pass => (*seg, Rule::Plain),
        };
        self.route(now, seg, None, rule, rng)
    }

    fn seen(&self, ct: Option<CtRef>) -> CtSeen {
        match ct {
            None => CtSeen::None,
            Some(ct) if self.ct.is_confirmed(ct) => CtSeen::Confirmed,
            Some(_) => CtSeen::Unconfirmed,
        }
    }

    fn ipvs_inward(
        &mut self,
        now: Instant,
        seg: Segment,
        ct: Option<CtRef>,
        rng: &mut impl Rng,
    ) -> Decision {
        // Replies to a client on the node itself are local too: `ip_vs_out_hook` comes first at LOCAL_IN.
        if let Outward::Translate { entry, virt, nfct } = self.ipvs.packet_out(now, &seg) {
            return self.translate(now, seg, ct, (entry, virt, nfct), rng);
        }
        let seen = self.seen(ct);
        match self.ipvs.packet_in(now, &seg, seen) {
            Inward::Forward {
                rule,
                entry,
                to,
                nfct,
            } => {
                let rule = Rule::Ipvs(rule);
                if !self.has_route(to.ip) {
                    let refused = Verdict::Reject(IcmpKind::HostUnreachable);
                    return Decision {
                        entry: Some(entry),
                        ..self.drop(ct, refused, rule)
                    };
                }
                let tracked = ct.is_some();
                let mut ct = self.keep_or_untrack(ct, nfct);
                if let Some(ct) = ct {
                    self.ct.alter_reply_source(ct, to);
                }
                let mut out = seg;
                out.tuple.dst = to;
                if !tracked && self.config.tracking {
                    match self.track_again(now, &out) {
                        Ok(second) => ct = second,
                        Err(reason) => {
                            return self.drop(None, Verdict::Drop, Rule::Conntrack(reason));
                        }
                    }
                }
                let policy = self.sources.of(&out, self.config.source_nat);
                self.postroute(now, out, ct, policy, rule, Some(entry), rng)
            }
            Inward::Drop(rule) => self.drop(ct, Verdict::Drop, Rule::Ipvs(rule)),
            Inward::Refuse(rule) => self.drop(
                ct,
                Verdict::Reject(IcmpKind::PortUnreachable),
                Rule::Ipvs(rule),
            ),
            Inward::Pass(rule) => self.deliver(now, seg, ct, Rule::Ipvs(rule), rng),
        }
    }

    /// A packet that conntrack judged invalid reaches LOCAL_OUT without an entry and is judged again there, with
    /// the real server as its destination: it may make an entry of its own, or clash with the connection's.
    fn track_again(&mut self, now: Instant, seg: &Segment) -> Result<Option<CtRef>, CtRule> {
        let jiffies = self.config.clock.jiffies(now);
        match self.ct.incoming(jiffies, seg, &self.config.sysctls.ct) {
            Incoming::Tracked(ct, _) => Ok(Some(ct)),
            Incoming::Untracked(_) => Ok(None),
            Incoming::Dropped(rule) => Err(rule),
        }
    }

    fn ipvs_outward(
        &mut self,
        now: Instant,
        seg: Segment,
        ct: Option<CtRef>,
        rng: &mut impl Rng,
    ) -> Decision {
        match self.ipvs.packet_out(now, &seg) {
            Outward::Translate { entry, virt, nfct } => {
                self.translate(now, seg, ct, (entry, virt, nfct), rng)
            }
            Outward::Pass => {
                let (policy, rule) = (self.null_binding(), Rule::Ipvs(ipvs::Rule::NoEntryOutward));
                self.postroute(now, seg, ct, policy, rule, None, rng)
            }
        }
    }

    /// A real server's packet of an entry gets the virtual address as its source (`handle_response`).
    fn translate(
        &mut self,
        now: Instant,
        mut seg: Segment,
        ct: Option<CtRef>,
        (entry, virt, nfct): (EntryId, Endpoint, bool),
        rng: &mut impl Rng,
    ) -> Decision {
        let ct = self.keep_or_untrack(ct, nfct);
        if let Some(ct) = ct {
            self.ct.alter_reply_destination(ct, virt);
        }
        seg.tuple.src = virt;
        let (policy, rule) = (self.null_binding(), Rule::Ipvs(ipvs::Rule::Translated));
        self.postroute(now, seg, ct, policy, rule, Some(entry), rng)
    }

    const fn null_binding(&self) -> SourceNat {
        match self.config.source_nat {
            SourceNat::Inactive => SourceNat::Inactive,
            _ => SourceNat::NullBinding,
        }
    }

    /// Entries made with vs.conntrack=0 strip their packets of conntrack.
    fn keep_or_untrack(&mut self, ct: Option<CtRef>, nfct: bool) -> Option<CtRef> {
        if !nfct {
            self.release(ct);
            return None;
        }
        ct
    }

    fn release(&mut self, ct: Option<CtRef>) {
        if let Some(ct) = ct {
            self.ct.release(ct);
        }
    }

    fn drop(&mut self, ct: Option<CtRef>, verdict: Verdict, rule: Rule) -> Decision {
        self.release(ct);
        Decision {
            verdict,
            rule,
            ct: None,
            entry: None,
        }
    }

    /// POST_ROUTING: source NAT, then confirmation.
    #[expect(
        clippy::too_many_arguments,
        reason = "the last hook needs what all the others found"
    )]
    fn postroute(
        &mut self,
        now: Instant,
        mut seg: Segment,
        ct: Option<CtRef>,
        policy: SourceNat,
        rule: Rule,
        entry: Option<EntryId>,
        rng: &mut impl Rng,
    ) -> Decision {
        let jiffies = self.config.clock.jiffies(now);
        if let Some(ct) = ct {
            if let (Some(src), _) = self.ct.source_nat(jiffies, ct, policy, rng) {
                seg.tuple.src = src;
            }
            if let Err(reason) = self.ct.confirm(jiffies, ct) {
                return self.drop(None, Verdict::Drop, Rule::Conntrack(reason));
            }
        }
        Decision {
            verdict: Verdict::Forward(seg),
            rule,
            ct: None,
            entry,
        }
    }

    /// LOCAL_IN without a taker: conntrack confirms, TCP answers RST. The RST passes conntrack on its way out.
    fn deliver(
        &mut self,
        now: Instant,
        mut seg: Segment,
        ct: Option<CtRef>,
        rule: Rule,
        rng: &mut impl Rng,
    ) -> Decision {
        let jiffies = self.config.clock.jiffies(now);
        let mut to_itself = false;
        if let Some(ct) = ct {
            // Source NAT is looked at on the way in, too: the local stack sees, and answers, the source that an entry
            // maps to. A masqueraded client is the node itself then, and the answer does not leave it.
            let policy = self.null_binding();
            if let (Some(src), _) = self.ct.source_nat(jiffies, ct, policy, rng) {
                seg.tuple.src = src;
                to_itself = self.is_local(src.ip);
            }
            if let Err(reason) = self.ct.confirm(jiffies, ct) {
                return self.drop(None, Verdict::Drop, Rule::Conntrack(reason));
            }
        }
        if seg.tuple.proto == Proto::Udp {
            let verdict = match to_itself {
                true => Verdict::Local { answer: None },
                false => Verdict::Reject(IcmpKind::PortUnreachable),
            };
            return Decision {
                verdict,
                rule,
                ct: None,
                entry: None,
            };
        }
        let mut answer = reset_for(&seg);
        if let (Some(rst), true) = (&answer, self.config.tracking) {
            match self.ct.incoming(jiffies, rst, &self.config.sysctls.ct) {
                Incoming::Tracked(ct, _) => {
                    // A clash drops the entry, not the answer: nothing else can own the tuple of our own RST.
                    let _ = self.ct.confirm(jiffies, ct);
                }
                Incoming::Untracked(_) => {}
                // A full table drops the node's own packets too (`nf_conntrack_in`).
                Incoming::Dropped(_) => answer = None,
            }
        }
        let answer = answer.filter(|_| !to_itself);
        Decision {
            verdict: Verdict::Local { answer },
            rule,
            ct: None,
            entry: None,
        }
    }

    /// What PRE_ROUTING has not delivered locally is routed and leaves.
    fn route(
        &mut self,
        now: Instant,
        seg: Segment,
        ct: Option<CtRef>,
        rule: Rule,
        rng: &mut impl Rng,
    ) -> Decision {
        if !self.has_route(seg.tuple.dst.ip) {
            return self.drop(
                ct,
                Verdict::Reject(IcmpKind::HostUnreachable),
                Rule::NoRoute,
            );
        }
        let policy = if rule == Rule::Plain {
            self.null_binding()
        } else {
            self.sources.of(&seg, self.config.source_nat)
        };
        self.postroute(now, seg, ct, policy, rule, None, rng)
    }

    /// The real server that a client's tuple is bound to now, for display.
    pub fn bound_to(&self, tuple: &crate::segment::Tuple) -> Option<Endpoint> {
        let id = self.ipvs.table().find_in(tuple)?;
        Some(self.ipvs.dests().get(self.ipvs.table().get(id).dest()).addr)
    }
}

/// PRE_ROUTING of iptables mode: a new connection to a service gets its endpoint, an old one keeps it.
fn iptables_destination(
    table: &mut Conntrack,
    rules: &IptablesRules,
    ct: CtRef,
    seg: &Segment,
    rng: &mut impl Rng,
) -> Result<Rule, Rule> {
    if !table.is_confirmed(ct) && ct.dir == Dir::Original {
        return match rules.pick(seg.tuple.proto, seg.tuple.dst, rng) {
            Pick::Endpoint(to) => {
                table.destination_nat(ct, Some(to));
                Ok(Rule::IptablesPicked)
            }
            Pick::NoEndpoint => Err(Rule::IptablesNoEndpoint),
            Pick::NoService => Ok(Rule::Plain),
        };
    }
    let balanced = table.entry(ct.slot).status.has(Status::DST_NAT);
    Ok(if balanced {
        Rule::IptablesKept
    } else {
        Rule::Plain
    })
}
