//! The causal chain of one request: links with their reasons, from what began it to the client's error.
//!
//! Built from the request's story and from what happened to pods and rules; each link says which earlier links it follows from.
//! The first links are roots: the load, the rollout, a setting. The last is what the client saw.

use ipvs_model::node::Rule;
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use ipvs_model::{ipvs, tcp::rule::Rule as TcpRule};
use serde::Serialize;

use super::fate::Fates;
use super::sources::{self, Cuts, Source};
use super::words;
use crate::engine::story::{AtNode, Fate, GoneAnswer, Origin, Step, Story, What};
use crate::engine::trace::{Happening, TimelineEvent};
use crate::outcome::{Cause, Outcome};
use crate::scenario::Scenario;

/// Where a link takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The Deployment, or whatever changes the pods.
    Rollout,
    /// A pod and its kubelet.
    Pod,
    /// kube-proxy.
    KubeProxy,
    /// The client and its kernel.
    Client,
    /// The node that balances.
    Node,
    /// The way to the pod.
    Network,
}

impl Place {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::Pod => "pod",
            Self::KubeProxy => "kube-proxy",
            Self::Client => "client",
            Self::Node => "node",
            Self::Network => "network",
        }
    }
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// A stable name of its kind.
    pub key: &'static str,
    /// Where.
    pub place: Place,
    /// When, in nanoseconds since the start of the run; none for what holds all the time.
    pub at_ns: Option<u64>,
    /// What, in words.
    pub what: String,
    /// The name of the rule that decided, if one of the model did.
    pub rule: Option<String>,
    /// Where the rule comes from.
    pub source: Option<Source>,
    /// Remedies that would have cut the chain here, by their names in `sim whatif`.
    pub cut: Vec<&'static str>,
    /// The links it follows from, by their places in the chain; none for a root. All come before it.
    pub because: Vec<usize>,
}

/// The chain of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Number of the request in its run.
    pub request: u64,
    /// The client's address and port.
    pub client: String,
    /// The service.
    pub service: String,
    /// When it began, in nanoseconds since the start of the run.
    pub start_ns: u64,
    /// When it ended; none if it had not.
    pub end_ns: Option<u64>,
    /// How it ended.
    pub outcome: &'static str,
    /// How it ended, in words.
    pub ended: &'static str,
    /// Its cause, as counted.
    pub cause: Option<&'static str>,
    /// The cause in words.
    pub why: Option<&'static str>,
    /// The links, each after those that it follows from; the last is the end.
    pub links: Vec<Link>,
}

impl Chain {
    /// The links without a reason: where it begins.
    pub fn roots(&self) -> impl Iterator<Item = usize> + '_ {
        let all = self.links.iter().enumerate();
        all.filter(|(_, link)| link.because.is_empty())
            .map(|(place, _)| place)
    }

    /// Whether it is one: it has roots and an end, reasons come before what follows from them, and every link leads to the end.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let last = self.links.len().checked_sub(1).ok_or("no links")?;
        if self.roots().next().is_none() {
            return Err("no root".to_owned());
        }
        let mut leads = vec![false; self.links.len()];
        leads[last] = true;
        for (place, link) in self.links.iter().enumerate().rev() {
            if !leads[place] {
                return Err(format!("link {place} ({}) leads nowhere", link.key));
            }
            for reason in &link.because {
                if *reason >= place {
                    return Err(format!(
                        "link {place} follows from {reason}, which comes later"
                    ));
                }
                leads[*reason] = true;
            }
        }
        if self.links[last].because.is_empty() {
            return Err("the end has no reason".to_owned());
        }
        match self.links[last].key {
            "end" => Ok(()),
            other => Err(format!("it ends with {other}")),
        }
    }
}

/// The chain of a story in a run of `scenario`, in which `events` happened.
pub fn of(story: &Story, events: &[TimelineEvent], scenario: &Scenario) -> Chain {
    let mut builder = Builder {
        story,
        scenario,
        links: Vec::new(),
        fates: Fates::new(events),
        used: Vec::new(),
    };
    builder.build();
    builder.finish()
}

struct Builder<'a> {
    story: &'a Story,
    scenario: &'a Scenario,
    links: Vec<Link>,
    fates: Fates<'a>,
    /// Events that have a link already: their place among the events, and the link's.
    used: Vec<(usize, usize)>,
}

impl Builder<'_> {
    fn push(&mut self, link: Link) -> usize {
        self.links.push(link);
        self.links.len() - 1
    }

    fn link(
        &mut self,
        key: &'static str,
        place: Place,
        at: Option<Instant>,
        what: String,
        because: Vec<usize>,
    ) -> usize {
        self.push(Link {
            key,
            place,
            at_ns: at.map(|at| at.0),
            what,
            rule: None,
            source: None,
            cut: Vec::new(),
            because,
        })
    }

    fn sourced(&mut self, link: usize, source: Source, cut: Cuts) {
        self.links[link].source = Some(source);
        self.links[link].cut = cut.to_vec();
    }

    fn build(&mut self) {
        let load = self.link(
            "load",
            Place::Client,
            None,
            words::load(self.scenario, self.story.kind),
            vec![],
        );
        let steps = merged(&self.story.steps);
        let mut last = load;
        let mut asked: Option<AtNode> = None;
        for step in &steps {
            last = match &step.step.what {
                What::NoPort => self.no_port(step.step.at, load),
                What::KeptAlive { port } => {
                    let what =
                        format!("the request goes over the open connection from port {port}");
                    self.link(
                        "kept-alive",
                        Place::Client,
                        Some(step.step.at),
                        what,
                        vec![load],
                    )
                }
                What::Opened { port, idle } => self.opened(step.step.at, *port, *idle, load),
                What::Node(decision) => {
                    let again = decision.syn && asked.is_some();
                    if again {
                        last = self.again(step, last);
                    }
                    if decision.syn {
                        asked = Some(*decision);
                    }
                    self.at_node(step, decision, last, load, again)
                }
                other => self.step(step.step.at, other, last),
            };
        }
        self.end(last);
    }

    fn no_port(&mut self, at: Instant, load: usize) -> usize {
        let what = words::ports_held(self.scenario, self.story.kind);
        let link = self.link("ports-held", Place::Client, Some(at), what, vec![load]);
        self.sourced(link, sources::port_choice(), sources::PORT_CUTS);
        link
    }

    fn opened(&mut self, at: Instant, port: u16, idle: Option<Span>, load: usize) -> usize {
        let what = match idle {
            Some(idle) => format!(
                "port {port} comes round {} after its last connection: request {} is sent from it",
                words::length(idle),
                words::number(self.story.number)
            ),
            None => format!(
                "request {} is sent from port {port}, not used before",
                words::number(self.story.number)
            ),
        };
        let (key, cut) = if idle.is_some() {
            ("port-again", sources::PORT_CUTS)
        } else {
            ("port", &[][..])
        };
        let link = self.link(key, Place::Client, Some(at), what, vec![load]);
        self.sourced(link, sources::port_choice(), cut);
        link
    }

    /// The client sends its SYN (or datagram) again.
    fn again(&mut self, step: &Merged, last: usize) -> usize {
        let what = "no answer has come: the client sends again".to_owned();
        let link = self.link("again", Place::Client, Some(step.step.at), what, vec![last]);
        self.sourced(link, sources::syn_again(), &[]);
        link
    }

    /// The connection that gave the tuple its real server, and its entry that has stayed.
    fn bound(&mut self, origin: &Origin, at: Instant, load: usize) -> usize {
        let port = self.story.client.port;
        let what = format!(
            "request {} came from port {port} before: {}; {}",
            words::number(origin.request),
            origin.rule.describe(),
            origin.server,
        );
        let bound = self.link("bound", Place::Node, Some(origin.at), what, vec![load]);
        self.links[bound].rule = Some(format!("{:?}", origin.rule));
        self.sourced(bound, sources::of_rule(origin.rule), &[]);
        let ipvs = matches!(origin.rule, Rule::Ipvs(_));
        let (table, source) = if ipvs {
            ("IPVS entry", sources::ipvs_time_wait())
        } else {
            ("conntrack entry", sources::conntrack_timeouts())
        };
        let what = format!(
            "the {table} of that port stays after the connection's end, and every reuse renews it"
        );
        let stays = self.link("entry-stays", Place::Node, None, what, vec![bound]);
        debug_assert!(origin.at <= at);
        self.sourced(stays, source, &[]);
        stays
    }

    fn at_node(
        &mut self,
        step: &Merged,
        decision: &AtNode,
        last: usize,
        load: usize,
        again: bool,
    ) -> usize {
        let at = step.step.at;
        let mut because = vec![last];
        if let Some(origin) = &decision.origin
            && !again
            && origin.request != self.story.number
            && keeps(decision.rule)
        {
            because.push(self.bound(origin, at, load));
        }
        if let Some(template) = &decision.template {
            let what = format!(
                "session affinity: since request {} this client's template holds {}",
                words::number(template.request),
                template.server
            );
            let link = self.link("template", Place::Node, Some(template.at), what, vec![load]);
            self.sourced(
                link,
                sources::of_rule(Rule::Ipvs(ipvs::Rule::ScheduledByTemplate)),
                &["no-affinity"],
            );
            because.push(link);
        }
        because.extend(self.state_of_server(decision, at));
        let words = words::decision(decision, step.times);
        let key = if decision.syn {
            "syn-at-node"
        } else {
            "packet-at-node"
        };
        let link = self.link(key, Place::Node, Some(at), words, because);
        self.links[link].rule = Some(format!("{:?}", decision.rule));
        self.sourced(
            link,
            sources::of_rule(decision.rule),
            sources::cuts_of_rule(decision.rule),
        );
        link
    }

    /// What had been done to the real server that makes the node decide so.
    fn state_of_server(&mut self, decision: &AtNode, at: Instant) -> Option<usize> {
        let drained = decision.weight == Some(0);
        let deleted = matches!(
            decision.rule,
            Rule::Ipvs(
                ipvs::Rule::DroppedDeleted
                    | ipvs::Rule::BlackholedDeleted
                    | ipvs::Rule::RescheduledDeleted
            )
        );
        let none = matches!(
            decision.rule,
            Rule::Ipvs(ipvs::Rule::NoDestination) | Rule::IptablesNoEndpoint
        );
        let wanted = |kind: &Happening| match kind {
            Happening::WeightSet(0) => drained || none,
            Happening::ServerDeleted => deleted || none,
            Happening::RulesList(_) => none,
            _ => false,
        };
        let pod = if none { None } else { Some(decision.server?) };
        let event = self.fates.last(pod, at, wanted)?;
        Some(self.happened(event))
    }

    /// The link of an event, with those that it follows from.
    fn happened(&mut self, event: usize) -> usize {
        if let Some((_, link)) = self.used.iter().find(|(used, _)| *used == event) {
            return *link;
        }
        let because: Vec<usize> = match self.fates.reason(event) {
            Some(reason) => vec![self.happened(reason)],
            None => vec![],
        };
        let TimelineEvent { at, pod, kind, .. } = self.fates.get(event).clone();
        let place = match kind {
            Happening::RolloutStarted | Happening::RolloutComplete => Place::Rollout,
            Happening::ServerAdded
            | Happening::WeightSet(_)
            | Happening::ServerDeleted
            | Happening::RulesList(_) => Place::KubeProxy,
            _ => Place::Pod,
        };
        let what = words::happening(&kind, pod, self.scenario);
        let link = self.link(words::key(&kind), place, Some(at), what, because);
        self.sourced(link, sources::of_happening(&kind), &[]);
        self.used.push((event, link));
        link
    }

    /// How it came that a pod does not answer, if anything is known of it.
    fn end_of(&mut self, server: Endpoint, at: Instant, gone: bool) -> Option<usize> {
        let wanted = |kind: &Happening| match kind {
            Happening::AddressGone => gone,
            Happening::ProcessExited | Happening::ProcessKilled | Happening::ListenerClosed => true,
            _ => false,
        };
        let event = self.fates.last(Some(server), at, wanted)?;
        Some(self.happened(event))
    }

    fn step(&mut self, at: Instant, what: &What, last: usize) -> usize {
        let mut because = vec![last];
        match *what {
            What::Pod { server, rule, .. } => {
                if matches!(rule, TcpRule::NoSocket) {
                    because.extend(self.end_of(server, at, false));
                }
                let link = self.link(
                    "pod-answers",
                    Place::Pod,
                    Some(at),
                    words::pod(server, rule),
                    because,
                );
                self.links[link].rule = Some(format!("{rule:?}"));
                self.sourced(link, sources::of_tcp(rule), &[]);
                link
            }
            What::Gone { server, answer, .. } => {
                because.extend(self.end_of(server, at, true));
                let place = if answer == GoneAnswer::NewOwner {
                    Place::Pod
                } else {
                    Place::Network
                };
                let what = words::gone(server, answer);
                self.link("address-gone", place, Some(at), what, because)
            }
            What::Icmp { kind, sent } => {
                let link = self.link(
                    "icmp",
                    Place::Node,
                    Some(at),
                    words::icmp(kind, sent),
                    because,
                );
                self.sourced(link, sources::icmp_limits(), &[]);
                link
            }
            What::PastNode { from } => {
                let what = format!(
                    "an answer comes from {from}, which the client has not called: its kernel resets it"
                );
                self.link("past-node", Place::Client, Some(at), what, because)
            }
            What::ServerLeft { server, said } => {
                because.extend(self.end_of(server, at, false));
                let what = format!(
                    "the process at {server} ends with the connection open{}",
                    if said {
                        ": its kernel says so to the client"
                    } else {
                        ", without a word"
                    }
                );
                let link = self.link("server-left", Place::Pod, Some(at), what, because);
                self.links[link].cut = sources::CUT_CUTS.to_vec();
                link
            }
            What::Connected => {
                let took = at.since(self.story.start);
                let what = format!(
                    "the connection is open, {} after its beginning",
                    words::length(took)
                );
                self.link("connected", Place::Client, Some(at), what, because)
            }
            What::GaveUp { connecting } => {
                let what = words::gave_up(self.scenario, self.story, at, connecting);
                self.link("gave-up", Place::Client, Some(at), what, because)
            }
            // The others are no mere steps.
            What::Opened { .. } | What::KeptAlive { .. } | What::NoPort | What::Node(_) => last,
        }
    }

    fn end(&mut self, last: usize) {
        let story = self.story;
        let mut because = vec![last];
        let at = story.end.unwrap_or(story.start);
        let by_server = matches!(
            story.cause,
            Some(
                Cause::ConnectionCut
                    | Cause::EndpointLag
                    | Cause::AddressReassigned
                    | Cause::PinnedByConntrack
            )
        );
        let told = self.used.iter().any(|(event, _)| self.fates.is_end(*event));
        let mut cut: Cuts = &[];
        if by_server
            && !told
            && let Some(server) = story.server
        {
            because.extend(self.end_of(server, at, true));
        }
        match story.cause {
            Some(Cause::ConnectionCut) => cut = sources::CUT_CUTS,
            Some(Cause::EndpointLag) => cut = sources::LAG_CUTS,
            _ => {}
        }
        let what = match (story.outcome, story.late) {
            (Outcome::Answered, true) => "answered, but late".to_owned(),
            (outcome, _) => format!("the client sees: {}", outcome.describe()),
        };
        let end = self.link("end", Place::Client, story.end, what, because);
        self.links[end].cut = cut.to_vec();
    }

    fn finish(mut self) -> Chain {
        self.links = in_time(self.links);
        let story = self.story;
        Chain {
            request: story.number,
            client: story.client.to_string(),
            service: self.scenario.service.address.to_string(),
            start_ns: story.start.0,
            end_ns: story.end.map(|end| end.0),
            outcome: story.outcome.key(),
            ended: if story.late && story.outcome == Outcome::Answered {
                "answered late"
            } else {
                story.outcome.describe()
            },
            cause: story.cause.map(Cause::key),
            why: story.cause.map(Cause::describe),
            links: self.links,
        }
    }
}

/// The links in the order of time, each after those that it follows from. What holds all the time stands where its last reason
/// does.
fn in_time(links: Vec<Link>) -> Vec<Link> {
    let mut times: Vec<u64> = Vec::with_capacity(links.len());
    for link in &links {
        let reasons = link.because.iter().map(|reason| times[*reason]);
        let after = reasons.max().unwrap_or(0);
        times.push(link.at_ns.unwrap_or(after).max(after));
    }
    // Stable: at one moment a reason stays before what follows from it.
    let mut order: Vec<usize> = (0..links.len()).collect();
    order.sort_by_key(|place| times[*place]);
    let mut moved = vec![0; links.len()];
    for (to, from) in order.iter().enumerate() {
        moved[*from] = to;
    }
    let mut sorted: Vec<(usize, Link)> = moved.iter().copied().zip(links).collect();
    sorted.sort_by_key(|(to, _)| *to);
    let mut sorted: Vec<Link> = sorted.into_iter().map(|(_, link)| link).collect();
    for link in &mut sorted {
        for reason in &mut link.because {
            *reason = moved[*reason];
        }
        link.because.sort_unstable();
    }
    sorted
}

/// Whether a rule follows what an earlier packet had chosen.
const fn keeps(rule: Rule) -> bool {
    match rule {
        Rule::Ipvs(rule) => !matches!(
            rule,
            ipvs::Rule::Scheduled
                | ipvs::Rule::ScheduledByTemplate
                | ipvs::Rule::ScheduledSloppy
                | ipvs::Rule::NoDestination
                | ipvs::Rule::NoService
                | ipvs::Rule::NotSchedulable
        ),
        Rule::IptablesKept => true,
        _ => false,
    }
}

/// A step, and how often it came again with the same result.
struct Merged {
    step: Step,
    times: u32,
}

/// The steps without repetitions: a SYN that is sent again and fares as before only counts.
fn merged(steps: &[Step]) -> Vec<Merged> {
    let mut out: Vec<Merged> = Vec::new();
    let mut rest = steps;
    while let Some((step, after)) = rest.split_first() {
        rest = after;
        let twin = out
            .iter()
            .rposition(|earlier| same(&earlier.step.what, &step.what));
        // Only while nothing but repetitions lies between: the tail of `out` from the twin on is what repeats.
        match twin {
            Some(twin) if out[twin..].iter().all(|m| is_repeatable(&m.step.what)) => {
                out[twin].times += 1
            }
            _ => out.push(Merged {
                step: *step,
                times: 1,
            }),
        }
    }
    out
}

const fn is_repeatable(what: &What) -> bool {
    matches!(
        what,
        What::Node(_) | What::Gone { .. } | What::Icmp { .. } | What::Pod { .. }
    )
}

fn same(one: &What, other: &What) -> bool {
    match (one, other) {
        (What::Node(a), What::Node(b)) => {
            let follows = |at: &AtNode| matches!(at.fate, Fate::Forwarded(_));
            // The first SYN of a reused port and its repetitions meet different rules on the way to one end.
            a.syn
                && b.syn
                && a.server == b.server
                && follows(a)
                && follows(b)
                && (a.rule == b.rule || keeps(b.rule))
        }
        (What::Gone { .. } | What::Icmp { .. } | What::Pod { .. }, _) => one == other,
        _ => false,
    }
}
