//! Captures without packets: what must have happened between two listings.
//!
//! For each connection, the shortest sequence of packets is searched that leads the model from one listing to the next:
//! the model's own node takes the packets, so no rule is told twice. What such a sequence says of reused ports is put into
//! words; where there is none, that is a divergence. An entry that came or went is a connection like any other, where the
//! listings are whole.

mod keeping;
mod known;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipvs_model::ipvs::Rule as IpvsRule;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::State;
use ipvs_model::node::Rule;
use ipvs_model::segment::{Endpoint, Flags, Tuple};
use ipvs_model::time::Span;

use super::report::{Class, Divergence, Finding, Report};
use super::setup::Setup;
use crate::capture::{Body, Capture, ConntrackLine, Event, IpvsConnLine, Place, ReadError, Stamp};
use keeping::{keeping_rule, settings_that_keep};
use known::Known;
use search::{Case, Joined, STEPS_MAX, Says, Search, Shown, Step};

/// The two tables are listed one after the other: they belong together within this.
const ROUND: Span = Span::from_millis(1_500);
/// The dates of a mixed log are whole seconds.
const MIXED_SLACK: Span = Span::from_secs(1);
/// Distinct searches whose results are remembered.
const CASES_MAX: usize = 100_000;

const LISTED_ONCE: &str = "entry listed once: nothing to join it to";

/// The rows of one table in one round.
struct Rows<T> {
    at: Stamp,
    complete: bool,
    rows: BTreeMap<Tuple, T>,
}

impl<T: Copy> Rows<T> {
    fn says(table: Option<&Self>, tuple: &Tuple) -> Says<T> {
        match table.map(|table| (table.rows.get(tuple), table.complete)) {
            Some((Some(row), _)) => Says::Row(*row),
            Some((None, true)) => Says::Gone,
            Some((None, false)) | None => Says::Nothing,
        }
    }
}

/// A round of listings.
struct Round {
    at: Stamp,
    place: Place,
    file: Arc<str>,
    ipvs: Option<Rows<IpvsConnLine>>,
    ct: Option<Rows<ConntrackLine>>,
}

/// The comparison of a capture without packets.
struct Trajectories {
    /// With the sysctls as they are now.
    setup: Setup,
    slack: Span,
    report: Report,
    known: Known,
    cases: BTreeMap<Case, Option<Joined>>,
}

/// Compares a capture without packets.
pub(super) fn diff(capture: &Capture, setup: &Setup) -> Result<Report, ReadError> {
    let mut events = capture.events()?;
    let slack = match capture.files.mixed {
        Some(_) => MIXED_SLACK,
        None => Span::ZERO,
    };
    let mut trajectories = Trajectories {
        setup: setup.clone(),
        slack: Span(setup.slack().0 + slack.0),
        report: Report::default(),
        known: Known::default(),
        cases: BTreeMap::new(),
    };
    let (mut before, mut current) = (None::<Round>, None::<Round>);
    loop {
        let event = events.next_event()?;
        let is_table = |event: &Event| matches!(event.body, Body::Ipvs(_) | Body::Conntrack(_));
        let goes_on = match (&event, &current) {
            (Some(event), Some(round)) => {
                !event.stepped_back && (!is_table(event) || round.may_take(event))
            }
            _ => false,
        };
        if !goes_on && let Some(round) = current.take() {
            trajectories.judge(before.as_ref(), &round);
            trajectories.known.forget_before(round.at);
            before = Some(round);
        }
        let Some(event) = event else {
            break;
        };
        if event.stepped_back {
            trajectories
                .report
                .not_checked("time across a clock that was set");
            before = None;
            trajectories.known = Known::default();
        }
        match &event.body {
            Body::Rules(block) => {
                let timeouts = trajectories.known.timeouts;
                trajectories.known.rules(event.at, block);
                if trajectories.known.timeouts != timeouts {
                    trajectories.cases.clear();
                }
            }
            Body::Sysctls(rows) => {
                let before = trajectories.setup.sysctls;
                for (key, value) in rows {
                    // A value that the kernel would refuse changes nothing.
                    let _ = trajectories.setup.sysctls.set(key, value);
                }
                if trajectories.setup.sysctls != before {
                    trajectories.cases.clear();
                }
            }
            Body::Endpoints(objects) => trajectories.known.endpoints(event.at, objects),
            Body::Ipvs(_) | Body::Conntrack(_) => {
                let round = current.get_or_insert_with(|| Round::new(&event));
                trajectories.take(round, &event);
            }
            Body::Pods(_) | Body::Packet(_) | Body::ConntrackEvent(_) => {}
        }
    }
    trajectories.report.skipped = events.skipped();
    Ok(trajectories.report)
}

impl Round {
    fn new(event: &Event) -> Self {
        Self {
            at: event.at,
            place: event.place,
            file: event.file.clone(),
            ipvs: None,
            ct: None,
        }
    }

    /// Whether a listing belongs to this round.
    fn may_take(&self, event: &Event) -> bool {
        let has = match &event.body {
            Body::Ipvs(_) => self.ipvs.is_some(),
            Body::Conntrack(_) => self.ct.is_some(),
            _ => false,
        };
        !has && event.at.since(self.at) <= ROUND
    }

    fn shown(&self, tuple: &Tuple) -> Shown {
        Shown {
            ipvs: Rows::says(self.ipvs.as_ref(), tuple),
            ct: Rows::says(self.ct.as_ref(), tuple),
        }
    }

    fn end(&self) -> Stamp {
        let ipvs = self.ipvs.as_ref().map(|rows| rows.at);
        let ct = self.ct.as_ref().map(|rows| rows.at);
        ipvs.max(ct).unwrap_or(self.at)
    }

    fn tuples(&self) -> impl Iterator<Item = Tuple> + '_ {
        let ipvs = self.ipvs.iter().flat_map(|table| table.rows.keys());
        let ct = self.ct.iter().flat_map(|table| table.rows.keys());
        ipvs.chain(ct).copied()
    }

    /// The persistence template of a connection's client, for the usual mask of one address.
    fn template(&self, tuple: &Tuple) -> Option<IpvsConnLine> {
        let key = Tuple {
            src: Endpoint::new(tuple.src.ip, 0),
            ..*tuple
        };
        self.ipvs.as_ref()?.rows.get(&key).copied()
    }
}

const fn key_of(tuple: &Tuple) -> ServiceKey {
    ServiceKey {
        proto: tuple.proto,
        addr: tuple.dst,
    }
}

impl Trajectories {
    fn take(&mut self, round: &mut Round, event: &Event) {
        self.report.snapshots += 1;
        match &event.body {
            Body::Ipvs(table) => {
                let mut rows = BTreeMap::<Tuple, IpvsConnLine>::new();
                for line in &table.rows {
                    self.report.entries += 1;
                    let tuple = Tuple {
                        proto: line.proto,
                        src: line.client,
                        dst: line.virt,
                    };
                    self.known.services.insert(key_of(&tuple));
                    // For a tick there may be two: the one that was told to go has less time.
                    let row = rows.entry(tuple).or_insert(*line);
                    if row.expires_s < line.expires_s {
                        *row = *line;
                    }
                }
                round.ipvs = Some(Rows {
                    at: event.at,
                    complete: table.complete,
                    rows,
                });
            }
            Body::Conntrack(table) => {
                self.report.entries += table.rows.len() as u64;
                round.ct = Some(Rows {
                    at: event.at,
                    complete: table.complete,
                    rows: table.rows.iter().map(|line| (line.orig, *line)).collect(),
                });
            }
            _ => {}
        }
    }

    fn judge(&mut self, before: Option<&Round>, round: &Round) {
        let mut tuples = round.tuples().collect::<BTreeSet<_>>();
        tuples.extend(before.into_iter().flat_map(Round::tuples));
        for tuple in tuples {
            if !self.known.services.contains(&key_of(&tuple)) {
                self.report
                    .not_checked("conntrack entry of no known service");
            } else if tuple.src.port == 0 {
                self.template(before, round, &tuple);
            } else {
                self.connection(before, round, tuple);
            }
        }
    }

    fn connection(&mut self, before: Option<&Round>, round: &Round, tuple: Tuple) {
        let mut later = round.shown(&tuple);
        let Some(before) = before else {
            self.stale_server(tuple, &later, round);
            self.report.not_checked(LISTED_ONCE);
            return;
        };
        let earlier = before.shown(&tuple);
        let listed_twice = earlier.ipvs != Says::Nothing && later.ipvs != Says::Nothing;
        if !listed_twice {
            self.stale_server(tuple, &later, round);
            self.report
                .not_checked(match earlier.ipvs.row().or(later.ipvs.row()) {
                    Some(_) => LISTED_ONCE,
                    None => "conntrack entry without its IPVS entry in both listings",
                });
            return;
        }
        if earlier.ct == Says::Nothing {
            // A start that nobody saw leads anywhere.
            later.ct = Says::Nothing;
        }
        self.report.trajectories += 1;
        let (from, to) = (before.at, round.end());
        let (old, new) = (earlier.ipvs.row(), later.ipvs.row());
        let key = key_of(&tuple);
        let places = |line: Option<IpvsConnLine>| {
            line.map_or_else(BTreeSet::new, |line| {
                self.known.places(key, line.dest, from, to)
            })
        };
        let since = |at: Option<Stamp>| at.unwrap_or(round.at).since(from);
        let ipvs_at = round.ipvs.as_ref().map(|rows| rows.at);
        let search = Search {
            tuple,
            earlier,
            later,
            template: before.template(&tuple),
            persistence: self.known.persistence(key, from, to),
            spans: [
                since(ipvs_at),
                since(round.ct.as_ref().map(|rows| rows.at).or(ipvs_at)),
            ],
            places: [places(old), places(new)],
            slack: self.slack,
            timeouts: self.known.timeouts,
            setup: &self.setup,
        };
        let case = search.case();
        let joined = match self.cases.get(&case) {
            Some(joined) => joined.clone(),
            None => {
                let joined = search.join();
                if self.cases.len() < CASES_MAX {
                    self.cases.insert(case, joined.clone());
                }
                joined
            }
        };
        match joined {
            Some(joined) => {
                if !joined.steps.is_empty() || old.is_none() {
                    self.stale_server(tuple, &later, round);
                }
                self.put_into_words((before, round), tuple, (&earlier, &later), &joined);
            }
            None => {
                self.stale_server(tuple, &later, round);
                self.no_way(round, tuple, (&earlier, &later));
            }
        }
    }

    /// A persistence template lives as long as its connections want it to, and then some; but it never changes its real
    /// server.
    fn template(&mut self, before: Option<&Round>, round: &Round, tuple: &Tuple) {
        let Some(before) = before else {
            self.report.not_checked(LISTED_ONCE);
            return;
        };
        let (earlier, later) = (before.shown(tuple), round.shown(tuple));
        let (Says::Row(old), Says::Row(new)) = (earlier.ipvs, later.ipvs) else {
            self.report
                .not_checked("persistence template that came or went between two listings");
            return;
        };
        self.report.trajectories += 1;
        let span_ms = round.at.since(before.at).0 / 1_000_000;
        let may_have_gone = u64::from(old.expires_s) * 1_000 <= span_ms + self.slack.0 / 1_000_000
            || new.virt.port == u16::MAX
            || self
                .known
                .places(key_of(tuple), old.dest, before.at, round.end())
                .iter()
                .any(|place| *place != known::Place::Weighted);
        if old.dest != new.dest && !may_have_gone {
            self.no_way(round, *tuple, (&earlier, &later));
        }
    }

    /// An entry whose SYN has just come, and whose real server neither rules nor Endpoints list any more: only an
    /// entry of an earlier connection can have led it there.
    fn stale_server(&mut self, tuple: Tuple, shown: &Shown, round: &Round) {
        let Says::Row(line) = shown.ipvs else {
            return;
        };
        let Some((listed, ready)) = self.known.listed(round.end()) else {
            return;
        };
        if listed.contains(&line.dest.ip) || line.state.name() != State::Sr.name() {
            return;
        }
        let age_s = u64::from(State::Sr.timeout_s()).saturating_sub(u64::from(line.expires_s));
        let (who, names) = match ready.is_empty() {
            true => ("rules list only", &listed),
            false => ("rules and Endpoints list only the new pods", ready),
        };
        if !self.report.keeps_findings() {
            return self.report.found(None);
        }
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let rule = keeping_rule(tuple, line.dest, &listed, &self.setup);
        let finding = Finding {
            at: wall(round.at),
            subject: tuple.to_string(),
            text: format!(
                "a SYN came {age_s} s before and went to {}, although {who} {}: the port was reused while the entry of its \
                 earlier connection was there. {rule}",
                line.dest,
                names.join(", "),
            ),
        };
        self.report.found(Some(finding));
    }

    fn put_into_words(
        &mut self,
        (before, round): (&Round, &Round),
        tuple: Tuple,
        (earlier, later): (&Shown, &Shown),
        joined: &Joined,
    ) {
        for rule in &joined.rules {
            *self.report.rules.entry(format!("{rule:?}")).or_default() += 1;
        }
        let (Says::Row(old), Says::Row(new), Some((syn, _))) =
            (earlier.ipvs, later.ipvs, joined.packets)
        else {
            return;
        };
        let reused = joined.steps.first() == Some(&Step::Client(Flags::SYN))
            && old.state.name() == State::Tw.name();
        if !reused {
            return;
        }
        if !self.report.keeps_findings() {
            return self.report.found(None);
        }
        // It entered TIME_WAIT so long before the first listing, and the SYN came so long after it.
        let idle_s = u64::from(State::Tw.timeout_s()).saturating_sub(u64::from(old.expires_s));
        let (least, most) = (idle_s + syn.as_secs(), idle_s + syn.as_secs() + 1);
        let rule = joined.rules.first().copied().unwrap_or(Rule::Plain);
        let kept = if old.dest == new.dest {
            format!("it kept the real server {}", new.dest)
        } else {
            format!("it went from {} to {}", old.dest, new.dest)
        };
        let tracked = match (earlier.ct, later.ct) {
            (Says::Row(old), Says::Row(new)) => format!(
                "; conntrack went from {} to {}, its answers still expected from {}{}",
                old.state.map_or("?", |state| state.name()),
                new.state.map_or("?", |state| state.name()),
                new.reply.src,
                if new.unreplied { ", none has come" } else { "" },
            ),
            _ => String::new(),
        };
        let text = format!(
            "between {} and {} a SYN reused the port {least}-{most} s after close: TIME_WAIT became {}, {kept} \
             ({rule:?}: {}){tracked}. {}",
            wall(before.at),
            wall(round.at),
            new.state,
            rule.describe(),
            settings_that_keep(
                tuple,
                new.dest,
                rule == Rule::Ipvs(IpvsRule::SynKeptAtWeightZero)
            ),
        );
        self.report.found(Some(Finding {
            at: wall(round.at),
            subject: tuple.to_string(),
            text,
        }));
    }

    fn no_way(&mut self, round: &Round, tuple: Tuple, (earlier, later): (&Shown, &Shown)) {
        let model = format!(
            "no sequence of up to {STEPS_MAX} packets leads there from {}",
            text_of(earlier)
        );
        self.report.diverged(Divergence {
            at: round.at,
            file: round.file.clone(),
            place: round.place,
            class: Class::Trajectory,
            subject: tuple.to_string(),
            model,
            node: text_of(later),
            rule: String::new(),
            before: Vec::new(),
        });
    }
}

fn text_of(shown: &Shown) -> String {
    let ipvs = match shown.ipvs {
        Says::Row(line) => format!("{} {} s -> {}", line.state, line.expires_s, line.dest),
        Says::Gone => "no IPVS entry".to_owned(),
        Says::Nothing => String::new(),
    };
    let ct = match shown.ct {
        Says::Row(line) => format!(", conntrack {}", super::ct_tables::line_text(&line)),
        Says::Gone => ", no conntrack entry".to_owned(),
        Says::Nothing => String::new(),
    };
    ipvs + &ct
}

fn wall(at: Stamp) -> String {
    let second = i64::try_from(at.0 / 1_000_000_000).unwrap_or(0);
    jiff::Timestamp::from_second(second).map_or_else(
        |_| at.to_string(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}
