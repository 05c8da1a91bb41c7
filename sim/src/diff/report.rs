//! What a comparison found: counts, divergences, what was not checked, and why the node may behave so.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use crate::capture::{Place, Skipped, Stamp};

/// Divergences that are kept with all their circumstances; the others are only counted.
const KEPT_MAX: usize = 100;

/// Findings that are kept; the others are only counted.
const FINDINGS_MAX: usize = 100;

/// In what the model and the node differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A packet left otherwise, or not at all.
    Verdict,
    /// The node's own answer to a packet.
    Answer,
    /// An IPVS entry that the model lacks.
    IpvsMissing,
    /// An IPVS entry that only the model has.
    IpvsExtra,
    /// An IPVS entry's real server.
    IpvsDest,
    /// An IPVS entry's state.
    IpvsState,
    /// An IPVS entry's remaining time.
    IpvsTime,
    /// A conntrack entry that the model lacks.
    CtMissing,
    /// A conntrack entry that only the model has.
    CtExtra,
    /// A conntrack entry's reply tuple.
    CtReply,
    /// A conntrack entry's state.
    CtState,
    /// A conntrack entry's `[UNREPLIED]` or `[ASSURED]`.
    CtFlags,
    /// A conntrack entry's remaining time.
    CtTime,
    /// The number of conntrack entries.
    CtCount,
    /// ActiveConn or InActConn of a real server.
    Counters,
    /// Two listings that no legal sequence of packets and timers joins.
    Trajectory,
}

impl Class {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Answer => "answer of the node",
            Self::IpvsMissing => "IPVS entry missing in the model",
            Self::IpvsExtra => "IPVS entry only in the model",
            Self::IpvsDest => "IPVS entry's real server",
            Self::IpvsState => "IPVS entry's state",
            Self::IpvsTime => "IPVS entry's remaining time",
            Self::CtMissing => "conntrack entry missing in the model",
            Self::CtExtra => "conntrack entry only in the model",
            Self::CtReply => "conntrack entry's reply tuple",
            Self::CtState => "conntrack entry's state",
            Self::CtFlags => "conntrack entry's flags",
            Self::CtTime => "conntrack entry's remaining time",
            Self::CtCount => "number of conntrack entries",
            Self::Counters => "connection counters",
            Self::Trajectory => "trajectory",
        }
    }
}

/// One difference with its circumstances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// When.
    pub at: Stamp,
    /// The file that shows it.
    pub file: Arc<str>,
    /// Where in the file.
    pub place: Place,
    /// In what.
    pub class: Class,
    /// The tuple, or the service.
    pub subject: String,
    /// What the model says.
    pub model: String,
    /// What the node shows.
    pub node: String,
    /// The rule of the model that decided last on the subject.
    pub rule: String,
    /// The packets before, oldest first.
    pub before: Vec<String>,
}

/// A difference in the node's behaviours or settings that would explain divergences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// In words: "this node behaves like one without ...".
    pub text: String,
    /// Divergences that are left under it ...
    pub left: u64,
    /// ... of so many, the first ones, for which an explanation was searched.
    pub of: u64,
    /// Whether it explains the first divergence.
    pub explains_first: bool,
}

/// What happened between two listings of a capture without packets, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// When, by the node's clock.
    pub at: String,
    /// The tuple.
    pub subject: String,
    /// What happened.
    pub text: String,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was compared, in words.
    pub scope: Vec<String>,
    /// Packets read.
    pub packets: u64,
    /// Packets whose fate was compared.
    pub verdicts: u64,
    /// Listings of either table.
    pub snapshots: u64,
    /// Entries compared in them.
    pub entries: u64,
    /// Conntrack entries of known services among them.
    pub tracked: u64,
    /// Packets that were not seen to enter and yet left.
    pub missed: u64,
    /// Pairs of listings that were joined by a sequence of events.
    pub trajectories: u64,
    /// Divergences by class.
    pub by_class: BTreeMap<Class, u64>,
    /// The first of them.
    pub divergences: Vec<Divergence>,
    /// What could not be checked, and how often.
    pub not_checked: BTreeMap<&'static str, u64>,
    /// What was read past.
    pub skipped: Skipped,
    /// Which rules decided on how many packets.
    pub rules: BTreeMap<String, u64>,
    /// What was learnt on the way.
    pub notes: Vec<String>,
    /// What would explain the divergences.
    pub explanations: Vec<Explanation>,
    /// What happened, for captures without packets.
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub more_findings: u64,
    /// Which cells of which tables were exercised, if anybody asked.
    pub coverage: Option<super::coverage::Coverage>,
}

impl Report {
    /// Divergences of all classes.
    pub fn divergence_count(&self) -> u64 {
        self.by_class.values().sum()
    }

    pub(super) fn not_checked(&mut self, why: &'static str) {
        *self.not_checked.entry(why).or_default() += 1;
    }

    /// Whether a finding would be kept and not only counted.
    pub(super) const fn keeps_findings(&self) -> bool {
        self.findings.len() < FINDINGS_MAX
    }

    /// Adds a finding; nothing, if it is only to be counted.
    pub(super) fn found(&mut self, finding: Option<Finding>) {
        match finding {
            Some(finding) => self.findings.push(finding),
            None => self.more_findings += 1,
        }
    }

    pub(super) fn diverged(&mut self, divergence: Divergence) {
        *self.by_class.entry(divergence.class).or_default() += 1;
        if self.divergences.len() < KEPT_MAX {
            self.divergences.push(divergence);
        }
    }

    /// The report for people. `shown`: at most so many divergences with their circumstances.
    pub fn text(&self, shown: usize) -> String {
        let mut out = String::new();
        let total = self.divergence_count();
        let line = |out: &mut String, text: &str| {
            out.push_str(text);
            out.push('\n');
        };
        let verdict = match total {
            0 => "no divergence".to_owned(),
            1 => "1 divergence".to_owned(),
            n => format!("{n} divergences"),
        };
        line(&mut out, &verdict);
        self.counts_text(&mut out);
        for (class, count) in &self.by_class {
            let _ = writeln!(out, "  {count:>8}  {}", class.name());
        }
        for finding in &self.findings {
            let _ = writeln!(
                out,
                "\n{}  {}\n  {}",
                finding.at, finding.subject, finding.text
            );
        }
        if self.more_findings > 0 {
            let _ = writeln!(out, "\n... and {} more of the kind", self.more_findings);
        }
        for divergence in self.divergences.iter().take(shown) {
            divergence.text(&mut out);
        }
        if total > shown as u64 && shown > 0 {
            let _ = writeln!(out, "\n... and {} more", total - shown as u64);
        }
        if !self.explanations.is_empty() {
            line(&mut out, "\nwhat would explain it");
            for explanation in &self.explanations {
                let first = if explanation.explains_first {
                    "the first one too"
                } else {
                    "not the first one"
                };
                let _ = writeln!(
                    out,
                    "  {}: {} of {} divergences left, explains {first}",
                    explanation.text, explanation.left, explanation.of
                );
            }
        }
        self.rest_text(&mut out);
        out
    }

    fn counts_text(&self, out: &mut String) {
        for scope in &self.scope {
            let _ = writeln!(out, "  {scope}");
        }
        let _ = writeln!(
            out,
            "  {} packets, {} verdicts compared; {} listings, {} entries compared; {} trajectories",
            self.packets, self.verdicts, self.snapshots, self.entries, self.trajectories
        );
    }

    fn rest_text(&self, out: &mut String) {
        if !self.not_checked.is_empty() {
            out.push_str("\nnot checked\n");
            for (why, count) in &self.not_checked {
                let _ = writeln!(out, "  {count:>8}  {why}");
            }
        }
        if !self.skipped.is_empty() {
            out.push_str("\nread past\n");
            for row in self.skipped.rows() {
                let place = match row.first {
                    Place::File => String::new(),
                    Place::Line(line) => format!(", first at line {line}"),
                    Place::Packet(number) => format!(", first is packet {number}"),
                };
                let _ = writeln!(
                    out,
                    "  {:>8}  {} in {}{place}",
                    row.count, row.why, row.file
                );
            }
        }
        for note in &self.notes {
            let _ = writeln!(out, "\nnote: {note}");
        }
    }

    /// The report for programs. Numbers are counts; times are strings, since seconds and nanoseconds together
    /// do not fit a JSON number.
    pub fn json(&self) -> serde_json::Value {
        let place = |place: Place| match place {
            Place::File => serde_json::Value::Null,
            Place::Line(line) => serde_json::json!({ "line": line }),
            Place::Packet(number) => serde_json::json!({ "packet": number }),
        };
        let divergences = self.divergences.iter().map(|d| {
            serde_json::json!({
                "at": d.at.to_string(),
                "file": &*d.file,
                "place": place(d.place),
                "class": d.class,
                "subject": d.subject,
                "model": d.model,
                "node": d.node,
                "rule": d.rule,
                "before": d.before,
            })
        });
        let skipped = self.skipped.rows().map(|row| {
            serde_json::json!({
                "file": &*row.file,
                "why": row.why,
                "count": row.count,
                "first": place(row.first),
            })
        });
        serde_json::json!({
            "format": 1,
            "scope": self.scope,
            "counts": {
                "packets": self.packets,
                "verdicts_compared": self.verdicts,
                "snapshots": self.snapshots,
                "entries_compared": self.entries,
                "trajectories": self.trajectories,
                "divergences": self.divergence_count(),
            },
            "divergences_by_class": self.by_class,
            "divergences": divergences.collect::<Vec<_>>(),
            "findings": self.findings,
            "more_findings": self.more_findings,
            "explanations": self.explanations,
            "not_checked": self.not_checked,
            "skipped": skipped.collect::<Vec<_>>(),
            "rules": self.rules,
            "notes": self.notes,
        })
    }
}

impl Divergence {
    fn text(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n{}  {}  ({})",
            self.at,
            self.subject,
            self.class.name()
        );
        let _ = writeln!(out, "  model: {}", self.model);
        let _ = writeln!(out, "  node:  {}", self.node);
        if !self.rule.is_empty() {
            let _ = writeln!(out, "  rule:  {}", self.rule);
        }
        for before in &self.before {
            let _ = writeln!(out, "  before {before}");
        }
        let place = match self.place {
            Place::File => String::new(),
            Place::Line(line) => format!(":{line}"),
            Place::Packet(number) => format!(", packet {number}"),
        };
        let _ = writeln!(out, "  seen in {}{place}", self.file);
    }
}
