//! A packet's fate in the model against its fate on the node, and both in words.

use ipvs_model::conntrack::CtRule;
use ipvs_model::node::{Decision, Verdict};
use ipvs_model::segment::Segment;

use super::ahead::Seen;
use super::report::Class;

/// The two sides of a comparison of verdicts.
pub(super) enum Match {
    Yes,
    No(Class),
    Unknown(&'static str),
}

/// Whether the model's decision is what the node was seen to do.
pub(super) fn compare(decision: &Decision, seen: Seen) -> Match {
    match (&decision.verdict, seen) {
        (_, Seen::TooEarly) => Match::Unknown("packet at the end of the capture"),
        (Verdict::Forward(out), Seen::Left(left)) if out.tuple == left.tuple => Match::Yes,
        (Verdict::Local { answer: None } | Verdict::Drop, Seen::Nothing) => Match::Yes,
        (
            Verdict::Local {
                answer: Some(answer),
            },
            Seen::Reset(reset),
        ) => {
            let same =
                |a: &Segment, b: &Segment| (a.flags, a.seq, a.ack) == (b.flags, b.seq, b.ack);
            if same(answer, &reset) {
                Match::Yes
            } else {
                Match::No(Class::Answer)
            }
        }
        (Verdict::Local { .. }, Seen::Nothing) => Match::No(Class::Answer),
        (Verdict::Reject(kind), Seen::Icmp(seen)) if *kind == seen => Match::Yes,
        (Verdict::Reject(_), Seen::Nothing) => {
            Match::Unknown("ICMP error that the node may have withheld by its rate limit")
        }
        _ => Match::No(Class::Verdict),
    }
}

/// Whether the packet made a conntrack entry, on its way in or, judged invalid there, on its way out.
pub(super) const fn made_entry(ct: Option<CtRule>) -> bool {
    !matches!(
        ct,
        Some(CtRule::InWindow | CtRule::LiberalWindow | CtRule::SynRetransmitted)
    )
}

pub(super) fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Forward(out) => format!("forwarded as {}", out.tuple),
        Verdict::Local {
            answer: Some(answer),
        } => format!("taken by the node itself, which answers {answer}"),
        Verdict::Local { answer: None } => "taken by the node itself, without an answer".to_owned(),
        Verdict::Drop => "dropped".to_owned(),
        Verdict::Reject(kind) => format!("refused by ICMP ({kind:?})"),
    }
}

pub(super) fn seen_text(seen: Seen) -> String {
    match seen {
        Seen::Left(left) => format!("forwarded as {}", left.tuple),
        Seen::Reset(answer) => format!("answered by the node: {answer}"),
        Seen::Icmp(kind) => format!("refused by ICMP ({kind:?})"),
        Seen::Nothing => "nothing left the node".to_owned(),
        Seen::TooEarly => "the capture ends".to_owned(),
    }
}

pub(super) fn rule_text(decision: &Decision) -> String {
    let rule = decision.rule;
    let tracked = decision
        .ct
        .map_or_else(String::new, |ct| format!("; conntrack: {}", ct.describe()));
    format!("{rule:?}: {}{tracked}", rule.describe())
}
