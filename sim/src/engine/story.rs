//! The stories of requests that did not go well: every decision about their packets, written down where it was made, by
//! the name of the rule that made it. `explain` makes causal chains of them.
//!
//! Keeping stories never changes a run. Leaves out: packets that went as they should after the handshake.

use hashbrown::HashMap;
use ipvs_model::conntrack::CtRule;
use ipvs_model::node::{Decision, Rule, Verdict};
use ipvs_model::segment::{Endpoint, IcmpKind};
use ipvs_model::tcp::rule::Rule as TcpRule;
use ipvs_model::time::{Instant, Span};
use rustc_hash::FxBuildHasher;

use crate::outcome::{Cause, Outcome};

/// Whose stories are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoriesOf {
    /// Nobody's.
    #[default]
    Nobody,
    /// Of requests that failed, found no port or were late: so many, those that ended first.
    Troubled(usize),
    /// Of one request by its number, whatever became of it.
    Request(u64),
}

/// What becomes of a packet at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves for this address.
    Forwarded(Endpoint),
    /// Dropped without a word.
    Dropped,
    /// Dropped; the node tries to send this error.
    Rejected(IcmpKind),
    /// The node's own stack took it, and perhaps answered with a RST.
    Local {
        /// Whether a RST leaves.
        reset: bool,
    },
}

impl Fate {
    /// The fate that a verdict gives.
    pub const fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Forward(out) => Self::Forwarded(out.tuple.dst),
            Verdict::Drop => Self::Dropped,
            Verdict::Reject(kind) => Self::Rejected(*kind),
            Verdict::Local { answer } => Self::Local {
                reset: answer.is_some(),
            },
        }
    }
}

/// The connection that gave a tuple (or a client's persistence template) its real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The request whose SYN it was.
    pub request: u64,
    /// When the node decided.
    pub at: Instant,
    /// The rule that chose.
    pub rule: Rule,
    /// What it chose.
    pub server: Endpoint,
}

/// The node's decision on a packet of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtNode {
    /// Whether it asked for a connection: a SYN, or a datagram.
    pub syn: bool,
    /// The rule that decided.
    pub rule: Rule,
    /// What conntrack had made of it.
    pub ct: Option<CtRule>,
    /// The real server concerned, if one is.
    pub server: Option<Endpoint>,
    /// Its weight; `None` if it is not listed, or nothing has weights.
    pub weight: Option<u32>,
    /// What became of it.
    pub fate: Fate,
    /// Who had bound the tuple to the real server, if not this packet.
    pub origin: Option<Origin>,
    /// Who had bound the client's persistence template, if that chose.
    pub template: Option<Origin>,
}

/// What answers for an address that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneAnswer {
    /// Nothing.
    Nothing,
    /// Nothing yet: the last node asks for the address by ARP.
    Arp,
    /// An ICMP error.
    Icmp(IcmpKind),
    /// A RST.
    Reset,
    /// Another workload that has the address now.
    NewOwner,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// connect() got this local port.
    Opened {
        /// The port.
        port: u16,
        /// Time since its last connection ended; `None` if it had not been used.
        idle: Option<Span>,
    },
    /// The request goes over a connection that is open already.
    KeptAlive {
        /// Its port.
        port: u16,
    },
    /// connect() found no free port.
    NoPort,
    /// The node decided.
    Node(AtNode),
    /// A pod's TCP decided on a packet: a SYN, or one that it answers with a RST.
    Pod {
        /// The pod.
        server: Endpoint,
        /// The rule.
        rule: TcpRule,
        /// Whether the packet was a SYN.
        syn: bool,
    },
    /// The packet came to an address that is gone.
    Gone {
        /// The address.
        server: Endpoint,
        /// What answers.
        answer: GoneAnswer,
        /// Whether the packet was a SYN.
        syn: bool,
    },
    /// The node wanted to send an ICMP error to the client.
    Icmp {
        /// Which.
        kind: IcmpKind,
        /// Whether its rate limits let it.
        sent: bool,
    },
    /// An answer came from an address that the client had not called.
    PastNode {
        /// The address.
        from: Endpoint,
    },
    /// The pod's process ended while the connection was open.
    ServerLeft {
        /// The pod.
        server: Endpoint,
        /// Whether it could still say so (a FIN or RST left).
        said: bool,
    },
    /// connect() succeeded.
    Connected,
    /// The application gave up.
    GaveUp {
        /// While it was connecting.
        connecting: bool,
    },
}

/// Something that happened, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Instant,
    /// What.
    pub what: What,
}

/// The story of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// Number of the request in the run.
    pub number: u64,
    /// When it began.
    pub start: Instant,
    /// When it ended; `None` if it was still open.
    pub end: Option<Instant>,
    /// The client's address and port (0 without one).
    pub client: Endpoint,
    /// Its `[[client]]` table.
    pub kind: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if not well.
    pub cause: Option<Cause>,
    /// Whether it connected late.
    pub late: bool,
    /// The real server that its latest SYN went to.
    pub server: Option<Endpoint>,
    /// What happened, in order.
    pub steps: Vec<Step>,
}

/// A story holds no more steps; the last one stays free for the end.
pub const STEPS_MAX: usize = 200;

/// A client's port: its host's number, and the port.
type Place = (u32, u16);

/// The stories of a run in the making.
#[derive(Debug, Default)]
pub struct Stories {
    of: StoriesOf,
    /// By the request's number.
    open: HashMap<u64, Vec<Step>, FxBuildHasher>,
    origins: HashMap<Place, Origin, FxBuildHasher>,
    templates: HashMap<u32, Origin, FxBuildHasher>,
    kept: Vec<Story>,
}

impl Stories {
    /// None yet.
    pub fn new(of: StoriesOf) -> Self {
        Self {
            of,
            ..Self::default()
        }
    }

    /// Whether any are kept.
    pub const fn wanted(&self) -> bool {
        !matches!(self.of, StoriesOf::Nobody)
    }

    fn wants(&self, number: u64) -> bool {
        match self.of {
            StoriesOf::Nobody => false,
            StoriesOf::Troubled(most) => self.kept.len() < most,
            StoriesOf::Request(wanted) => number == wanted,
        }
    }

    /// A request begins.
    pub fn begin(&mut self, number: u64, at: Instant, what: What) {
        if self.wants(number) {
            self.open.insert(number, vec![Step { at, what }]);
        }
    }

    /// Something happens to a request, if its story is kept.
    pub fn tell(&mut self, number: u64, at: Instant, what: What) {
        if let Some(steps) = self.open.get_mut(&number)
            && steps.len() < STEPS_MAX
        {
            steps.push(Step { at, what });
        }
    }

    /// The node decided on a client's packet, which belongs to request `number` if to one. Who chose a real server is
    /// remembered for the packets that will follow that choice.
    pub fn at_node(
        &mut self,
        place: Place,
        at: Instant,
        number: Option<u64>,
        (syn, decision): (bool, &Decision),
        (server, weight): (Option<Endpoint>, Option<u32>),
    ) {
        let rule = decision.rule;
        let template = if rule == Rule::Ipvs(ipvs_model::ipvs::Rule::ScheduledByTemplate) {
            self.templates.get(&place.0).copied()
        } else {
            None
        };
        let mut origin = self.origins.get(&place).copied();
        if chooses(rule) {
            origin = None;
            if let Some(server) = server {
                let chosen = Origin {
                    request: number.unwrap_or_default(),
                    at,
                    rule,
                    server,
                };
                self.origins.insert(place, chosen);
                if template.is_none() {
                    self.templates.insert(place.0, chosen);
                }
            }
        }
        let plain = !syn && matches!(decision.verdict, Verdict::Forward(_));
        if plain && !chooses(rule) {
            return;
        }
        let step = AtNode {
            syn,
            rule,
            ct: decision.ct,
            server,
            weight,
            fate: Fate::of(&decision.verdict),
            origin,
            template,
        };
        if let Some(number) = number {
            self.tell(number, at, What::Node(step));
        }
    }

    /// A request found no port: a story of one step.
    pub fn no_port(&mut self, story: Story) {
        if self.wants(story.number) {
            self.kept.push(story);
        }
    }

    /// A request ended, `troubled` or not.
    pub fn end(&mut self, mut story: Story, troubled: bool) {
        let Some(steps) = self.open.remove(&story.number) else {
            return;
        };
        let one = matches!(self.of, StoriesOf::Request(_));
        if (troubled || one) && self.wants(story.number) {
            story.steps = steps;
            self.kept.push(story);
        }
    }

    /// All that were kept, in the order in which they ended.
    pub fn finish(self) -> Vec<Story> {
        self.kept
    }
}

/// Whether a rule gives a tuple its real server.
const fn chooses(rule: Rule) -> bool {
    match rule {
        Rule::Ipvs(rule) => {
            rule.schedules() || matches!(rule, ipvs_model::ipvs::Rule::ScheduledByTemplate)
        }
        Rule::IptablesPicked => true,
        Rule::Cilium(rule) => rule.chooses(),
        _ => false,
    }
}
