//! What the model decided beside what the node did: agreement, and the circumstances of a divergence.

use ipvs_model::icmp::{IcmpCause, IcmpVerdict};
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::node::{Decision, Verdict};
use ipvs_model::segment::{Endpoint, Segment, Tuple};

use super::ahead::Seen;
use super::drawn::Drawn;
use super::replay::{Past, Replay};
use super::report::{Class, Divergence};
use super::verdict::{Match, compare, rule_text, seen_text, verdict_text};
use crate::capture::Event;

/// Packets kept for the circumstances of a divergence.
const HISTORY: usize = 512;
/// Of them, shown for one tuple.
const SHOWN_BEFORE: usize = 6;

impl Replay<'_> {
    /// Compares, and counts or tells what came out.
    pub(super) fn judge(
        &mut self,
        event: &Event,
        segment: &Segment,
        inward: bool,
        decision: &Decision,
        seen: Seen,
    ) {
        let client = if inward {
            segment.tuple.src
        } else {
            segment.tuple.dst
        };
        let outcome = compare(decision, seen);
        let outcome = self.judge_silence(decision, seen, outcome);
        let mut outcome = self.judge_absence(seen, outcome);
        if let Verdict::Reject(_) = decision.verdict
            && self.setup.exact
        {
            outcome = self.limited(segment, outcome, seen);
        }
        let rule = decision.rule;
        *self.rules.entry(rule).or_default() += 1;
        match outcome {
            Match::Yes => self.report.verdicts += 1,
            Match::Unknown(why) => self.report.not_checked(why),
            Match::No(class) => self.disagree(event, segment, client, decision, seen, class),
        }
        self.past.push_back(Past {
            at: event.at,
            client,
            segment: *segment,
            seen,
            rule,
        });
        if self.past.len() > HISTORY {
            self.past.pop_front();
        }
    }

    /// Where nothing but what the recording shows makes the node send ICMP errors, its allowance decides whether this
    /// one left.
    fn limited(&mut self, segment: &Segment, outcome: Match, seen: Seen) -> Match {
        let (peer, mut rng) = (segment.tuple.src.ip, Drawn::of(seen));
        let verdict = self
            .icmp
            .allow(self.now(), peer, IcmpCause::Direct, &mut rng);
        match (verdict, seen) {
            (IcmpVerdict::Sent, Seen::Nothing) => Match::No(Class::Answer),
            (IcmpVerdict::Sent, _) | (_, Seen::TooEarly) => outcome,
            (_, Seen::Nothing) => Match::Yes,
            (_, _) => Match::No(Class::Answer),
        }
    }

    fn disagree(
        &mut self,
        event: &Event,
        segment: &Segment,
        client: Endpoint,
        decision: &Decision,
        seen: Seen,
        class: Class,
    ) {
        let tuple = self.client_tuple(segment, client);
        if self.adopted.contains(&tuple) {
            self.report.not_checked(
                "packet of a connection older than the capture, or taken from a listing",
            );
        } else if self.setup.rules_in_doubt(event.at, &tuple) {
            self.report
                .not_checked("packet between two listings of rules that differ for its service");
        } else if self.spoilt.iter().any(|spoilt| spoilt.contains(&tuple)) {
            self.report.not_checked(
                "packet after a divergence of its connection, before the next listing",
            );
        } else {
            self.report.verdicts += 1;
            let model = verdict_text(&decision.verdict);
            let text = rule_text(decision);
            let node = seen_text(seen);
            self.diverged(event, class, tuple, segment.to_string(), model, node, text);
        }
        for spoilt in &mut self.spoilt {
            spoilt.insert(tuple);
        }
        // The scheduler's place is doubtful after a wrong choice.
        if let Seen::Left(left) = seen {
            let key = ServiceKey {
                proto: tuple.proto,
                addr: tuple.dst,
            };
            let states = self.node.ipvs.possible_schedulers(key);
            if states.len() > 1 && self.servers.contains(&left.tuple.dst) {
                self.schedulers.insert(key, states);
            }
        }
    }

    /// The tuple by which a connection is known: the client's packets to the virtual service.
    fn client_tuple(&self, segment: &Segment, client: Endpoint) -> Tuple {
        if segment.tuple.src == client {
            return segment.tuple;
        }
        let from_entry = self.entry_of(segment, false).map(|(tuple, _)| tuple);
        from_entry.unwrap_or_else(|| segment.tuple.reversed())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a divergence has many circumstances"
    )]
    pub(super) fn diverged(
        &mut self,
        event: &Event,
        class: Class,
        tuple: Tuple,
        subject: String,
        model: String,
        node: String,
        rule: String,
    ) {
        let mine = self.past.iter().filter(|past| past.client == tuple.src);
        let mut before = mine
            .rev()
            .take(SHOWN_BEFORE)
            .map(|past| format!("{}  {}: {}", past.at, past.segment, seen_text(past.seen)))
            .collect::<Vec<_>>();
        before.reverse();
        self.report.diverged(Divergence {
            at: event.at,
            file: event.file.clone(),
            place: event.place,
            class,
            subject,
            model,
            node,
            rule,
            before,
        });
    }

    /// The rule that decided last on a client's packets.
    pub(super) fn last_rule(&self, client: Endpoint) -> String {
        self.past
            .iter()
            .rev()
            .find(|past| past.client == client)
            .map_or_else(String::new, |past| {
                format!("{:?}: {}", past.rule, past.rule.describe())
            })
    }
}
