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
use crate::time::{Clock, Instant, Jiffies, Moment};

pub use foreseen::{Foreseen, Forgetting, Forgotten};

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

/// A packet on its way through the node, with what the hooks have made of it so far.
struct Passage {
    now: Moment,
    /// The packet as it is now.
    seg: Segment,
    /// Its conntrack entry.
    ct: Option<CtRef>,
    /// What conntrack made of it when it came.
    seen: Option<CtRule>,
    /// The rule that decided.
    rule: Rule,
    /// The IPVS entry that it follows.
    entry: Option<EntryId>,
    /// What the node's own stack answers.
    answer: Option<Segment>,
}

/// How a packet's way ends.
#[derive(Clone, Copy)]
enum Fate {
    Leaves,
    Delivered,
    Dropped,
    Rejected(IcmpKind),
}

/// Whose source NAT applies to a packet that leaves.
#[derive(Clone, Copy)]
enum Mapping {
    /// What the node does to balanced connections.
    Balanced,
    /// None, but the port must be free.
    Null,
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

    /// Gives one client's ports arrays of their own in both tables: faster, not different. Before the first packet.
    pub fn reserve(&mut self, proto: Proto, ip: Ipv4Addr, ports: (u16, u16)) {
        self.ipvs.reserve(proto, ip, ports);
        if self.config.tracking {
            self.ct.reserve(proto, ip, ports);
        }
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

    #[inline]
    fn is_local(&self, ip: Ipv4Addr) -> bool {
        self.local.binary_search(&ip).is_ok()
    }

    #[inline]
    fn has_route(&self, ip: Ipv4Addr) -> bool {
        self.unreachable.is_empty() || self.unreachable.binary_search(&ip).is_err()
    }

    /// Runs the timers of both tables up to `now`.
    pub fn advance(&mut self, now: Instant) {
        self.advance_to(self.config.clock.jiffies(now));
    }

    #[inline]
    fn advance_to(&mut self, tick: Jiffies) {
        let ct = &mut self.ct;
        self.ipvs.advance_to(tick, &mut |tick, tuple| {
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
        let now = self.config.clock.moment(now);
        self.advance_to(now.tick);
        let mut way = Passage {
            now,
            seg: *seg,
            ct: None,
            seen: None,
            rule: Rule::Plain,
            entry: None,
            answer: None,
        };
        let fate = match self.config.balancer {
            Balancer::Cilium(_) => self.past_netfilter(&mut way, rng),
            _ => self.hooks(&mut way, rng),
        };
        let verdict = match fate {
            Fate::Leaves => Verdict::Forward(way.seg),
            Fate::Delivered => Verdict::Local { answer: way.answer },
            Fate::Dropped => Verdict::Drop,
            Fate::Rejected(kind) => Verdict::Reject(kind),
        };
        Decision {
            verdict,
            rule: way.rule,
            ct: way.seen,
            entry: way.entry,
        }
    }

    /// The way through netfilter's hooks.
    #[inline(always)]
    fn hooks(&mut self, way: &mut Passage, rng: &mut impl Rng) -> Fate {
        if self.config.tracking {
            let sysctls = &self.config.sysctls.ct;
            match self.ct.incoming(way.now.tick, &way.seg, sysctls) {
                Incoming::Tracked(ct, rule) => (way.ct, way.seen) = (Some(ct), Some(rule)),
                Incoming::Untracked(rule) => {
                    way.seen = Some(rule);
                    if self.drops_invalid(&way.seg) {
                        return self.end(way, Fate::Dropped, Rule::IptablesInvalid);
                    }
                }
                Incoming::Dropped(rule) => {
                    way.seen = Some(rule);
                    return self.end(way, Fate::Dropped, Rule::Conntrack(rule));
                }
            }
        }
        if let (Balancer::Iptables(rules), Some(ct)) = (&mut self.config.balancer, way.ct) {
            match iptables_destination(way.now.at, &mut self.ct, rules, ct, &way.seg, rng) {
                Ok(rule) => way.rule = rule,
                Err(rule) => {
                    let refused = Fate::Rejected(IcmpKind::PortUnreachable);
                    return self.end(way, refused, rule);
                }
            }
        }
        // Replies to a masqueraded connection get their client back, and iptables mode its endpoint.
        if let Some(to) = way.ct.and_then(|ct| self.ct.pre_routing_destination(ct)) {
            way.seg.tuple.dst = to;
        }
        let local = self.is_local(way.seg.tuple.dst.ip);
        match (&self.config.balancer, local) {
            (Balancer::Ipvs, true) => self.ipvs_inward(way, rng),
            (Balancer::Ipvs, false) => self.ipvs_outward(way, rng),
            (_, true) => self.deliver(way, rng),
            (_, false) => self.route(way, rng),
        }
    }

    /// Whether iptables mode drops an invalid packet at FORWARD; one for the node itself passes INPUT.
    fn drops_invalid(&self, seg: &Segment) -> bool {
        matches!(&self.config.balancer, Balancer::Iptables(rules) if rules.drops_invalid())
            && !self.is_local(seg.tuple.dst.ip)
    }

    /// Cilium looks at the packet in the place of netfilter's hooks, and it goes on past them.
    #[inline(never)]
    fn past_netfilter(&mut self, way: &mut Passage, rng: &mut impl Rng) -> Fate {
        let Balancer::Cilium(cilium) = &mut self.config.balancer else {
            return self.route(way, rng);
        };
        match cilium.packet(way.now.at, &way.seg, rng) {
            CiliumVerdict::Forward(out, rule) => (way.seg, way.rule) = (out, Rule::Cilium(rule)),
            CiliumVerdict::Drop(rule) => return self.end(way, Fate::Dropped, Rule::Cilium(rule)),
            CiliumVerdict::Pass if self.is_local(way.seg.tuple.dst.ip) => {
                return self.deliver(way, rng);
            }
            CiliumVerdict::Pass => {}
        }
        self.route(way, rng)
    }

    #[inline]
    fn seen(&self, ct: Option<CtRef>) -> CtSeen {
        match ct {
            None => CtSeen::None,
            Some(ct) if self.ct.is_confirmed(ct) => CtSeen::Confirmed,
            Some(_) => CtSeen::Unconfirmed,
        }
    }

    /// A packet for one of the node's addresses at IPVS.
    #[inline(always)]
    fn ipvs_inward(&mut self, way: &mut Passage, rng: &mut impl Rng) -> Fate {
        // Replies to a client on the node itself are local too: `ip_vs_out_hook` comes first at LOCAL_IN.
        if let Outward::Translate { entry, virt, nfct } = self.ipvs.packet_out(way.now, &way.seg) {
            return self.translate(way, (entry, virt, nfct), rng);
        }
        let seen = self.seen(way.ct);
        let (entry, to, nfct) = match self.ipvs.packet_in(way.now, &way.seg, seen) {
            Inward::Forward {
                rule,
                entry,
                to,
                nfct,
            } => {
                way.rule = Rule::Ipvs(rule);
                (entry, to, nfct)
            }
            Inward::Drop(rule) => return self.end(way, Fate::Dropped, Rule::Ipvs(rule)),
            Inward::Refuse(rule) => {
                let refused = Fate::Rejected(IcmpKind::PortUnreachable);
                return self.end(way, refused, Rule::Ipvs(rule));
            }
            Inward::Pass(rule) => {
                way.rule = Rule::Ipvs(rule);
                return self.deliver(way, rng);
            }
        };
        way.entry = Some(entry);
        if !self.has_route(to.ip) {
            self.release(way);
            return Fate::Rejected(IcmpKind::HostUnreachable);
        }
        let tracked = way.ct.is_some();
        self.keep_or_untrack(way, nfct);
        if let Some(ct) = way.ct {
            self.ct.alter_reply_source(ct, to);
        }
        way.seg.tuple.dst = to;
        if !tracked
            && self.config.tracking
            && let Err(reason) = self.track_again(way)
        {
            way.entry = None;
            return self.end(way, Fate::Dropped, Rule::Conntrack(reason));
        }
        self.postroute(way, Mapping::Balanced, rng)
    }

    /// A packet that conntrack judged invalid reaches LOCAL_OUT without an entry and is judged again there, with
    /// the real server as its destination: it may make an entry of its own, or clash with the connection's.
    fn track_again(&mut self, way: &mut Passage) -> Result<(), CtRule> {
        let sysctls = &self.config.sysctls.ct;
        match self.ct.incoming(way.now.tick, &way.seg, sysctls) {
            Incoming::Tracked(ct, _) => way.ct = Some(ct),
            Incoming::Untracked(_) => {}
            Incoming::Dropped(rule) => return Err(rule),
        }
        Ok(())
    }

    /// A packet for somebody else at IPVS.
    #[inline(always)]
    fn ipvs_outward(&mut self, way: &mut Passage, rng: &mut impl Rng) -> Fate {
        match self.ipvs.packet_out(way.now, &way.seg) {
            Outward::Translate { entry, virt, nfct } => {
                self.translate(way, (entry, virt, nfct), rng)
            }
            Outward::Pass => {
                way.rule = Rule::Ipvs(ipvs::Rule::NoEntryOutward);
                self.postroute(way, Mapping::Null, rng)
            }
        }
    }

    /// A real server's packet of an entry gets the virtual address as its source (`handle_response`).
    #[inline(always)]
    fn translate(
        &mut self,
        way: &mut Passage,
        (entry, virt, nfct): (EntryId, Endpoint, bool),
        rng: &mut impl Rng,
    ) -> Fate {
        self.keep_or_untrack(way, nfct);
        if let Some(ct) = way.ct {
            self.ct.alter_reply_destination(ct, virt);
        }
        way.seg.tuple.src = virt;
        (way.rule, way.entry) = (Rule::Ipvs(ipvs::Rule::Translated), Some(entry));
        self.postroute(way, Mapping::Null, rng)
    }

    const fn null_binding(&self) -> SourceNat {
        match self.config.source_nat {
            SourceNat::Inactive => SourceNat::Inactive,
            _ => SourceNat::NullBinding,
        }
    }

    /// Entries made with vs.conntrack=0 strip their packets of conntrack.
    #[inline]
    fn keep_or_untrack(&mut self, way: &mut Passage, nfct: bool) {
        if !nfct {
            self.release(way);
        }
    }

    /// The packet loses its conntrack entry, which is freed if this was its first packet.
    fn release(&mut self, way: &mut Passage) {
        if let Some(ct) = way.ct.take() {
            self.ct.release(ct);
        }
    }

    /// The packet's way ends here.
    fn end(&mut self, way: &mut Passage, fate: Fate, rule: Rule) -> Fate {
        self.release(way);
        way.rule = rule;
        fate
    }

    /// POST_ROUTING: source NAT, then confirmation.
    #[inline(always)]
    fn postroute(&mut self, way: &mut Passage, mapping: Mapping, rng: &mut impl Rng) -> Fate {
        match self.finish(way, mapping, rng) {
            Ok(_) => Fate::Leaves,
            Err(clash) => clash,
        }
    }

    /// The last hooks, on the way out and on the way in: source NAT, then confirmation. The source that NAT gave, if any.
    #[inline(always)]
    fn finish(
        &mut self,
        way: &mut Passage,
        mapping: Mapping,
        rng: &mut impl Rng,
    ) -> Result<Option<Endpoint>, Fate> {
        let Some(ct) = way.ct else { return Ok(None) };
        // An entry keeps what its first packet was given.
        let source = match self.ct.is_confirmed(ct) {
            true => self.ct.post_routing_source(ct),
            false => self.finish_first(way, ct, mapping, rng)?,
        };
        if let Some(source) = source {
            way.seg.tuple.src = source;
        }
        Ok(source)
    }

    /// The first packet of a connection.
    #[inline(never)]
    fn finish_first(
        &mut self,
        way: &mut Passage,
        ct: CtRef,
        mapping: Mapping,
        rng: &mut impl Rng,
    ) -> Result<Option<Endpoint>, Fate> {
        let tick = way.now.tick;
        let policy = match mapping {
            Mapping::Balanced => self.sources.of(&way.seg, self.config.source_nat),
            Mapping::Null => self.null_binding(),
        };
        let (source, _) = self.ct.source_nat(tick, ct, policy, rng);
        if let Err(reason) = self.ct.confirm(tick, ct) {
            (way.ct, way.entry, way.rule) = (None, None, Rule::Conntrack(reason));
            return Err(Fate::Dropped);
        }
        Ok(source)
    }

    /// LOCAL_IN without a taker: conntrack confirms, TCP answers RST. The RST passes conntrack on its way out.
    #[inline(never)]
    fn deliver(&mut self, way: &mut Passage, rng: &mut impl Rng) -> Fate {
        // Source NAT is looked at on the way in, too: the local stack sees, and answers, the source that an entry
        // maps to. A masqueraded client is the node itself then, and the answer does not leave it.
        let to_itself = match self.finish(way, Mapping::Null, rng) {
            Ok(source) => source.is_some_and(|source| self.is_local(source.ip)),
            Err(clash) => return clash,
        };
        if way.seg.tuple.proto == Proto::Udp {
            return match to_itself {
                true => Fate::Delivered,
                false => Fate::Rejected(IcmpKind::PortUnreachable),
            };
        }
        let mut answer = reset_for(&way.seg);
        if let (Some(rst), true) = (&answer, self.config.tracking) {
            let tick = way.now.tick;
            match self.ct.incoming(tick, rst, &self.config.sysctls.ct) {
                Incoming::Tracked(ct, _) => {
                    // A clash drops the entry, not the answer: nothing else can own the tuple of our own RST.
                    let _ = self.ct.confirm(tick, ct);
                }
                Incoming::Untracked(_) => {}
                // A full table drops the node's own packets too (`nf_conntrack_in`).
                Incoming::Dropped(_) => answer = None,
            }
        }
        way.answer = answer.filter(|_| !to_itself);
        Fate::Delivered
    }

    /// What PRE_ROUTING has not delivered locally is routed and leaves.
    #[inline(never)]
    fn route(&mut self, way: &mut Passage, rng: &mut impl Rng) -> Fate {
        if !self.has_route(way.seg.tuple.dst.ip) {
            let refused = Fate::Rejected(IcmpKind::HostUnreachable);
            return self.end(way, refused, Rule::NoRoute);
        }
        let mapping = match way.rule {
            Rule::Plain => Mapping::Null,
            _ => Mapping::Balanced,
        };
        self.postroute(way, mapping, rng)
    }

    /// The real server that a client's tuple is bound to now, for display.
    pub fn bound_to(&self, tuple: &crate::segment::Tuple) -> Option<Endpoint> {
        let id = self.ipvs.table().find_in(tuple)?;
        Some(self.ipvs.dests().get(self.ipvs.table().get(id).dest()).addr)
    }
}

/// PRE_ROUTING of iptables mode: a new connection to a service gets its endpoint, an old one keeps it.
fn iptables_destination(
    now: Instant,
    table: &mut Conntrack,
    rules: &mut IptablesRules,
    ct: CtRef,
    seg: &Segment,
    rng: &mut impl Rng,
) -> Result<Rule, Rule> {
    if !table.is_confirmed(ct) && ct.dir == Dir::Original {
        return match rules.pick(now, &seg.tuple, rng) {
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
