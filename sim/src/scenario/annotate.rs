//! A scenario as TOML in which every value says where it came from: measured, read, derived or assumed.
//!
//! `sim fit`, `sim import` and `sim advise` write their scenarios this way. Fields that nobody spoke of are left out: they
//! are defaults, and `sim scenario show` prints them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::field::{Section, quoted};
use super::{Client, Rollout, Scenario};

/// The longest line of a comment, in characters.
const COLUMNS: usize = 118;

/// How a value is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Seen in a recording, with its number of samples.
    Measured,
    /// Written in a file that was given: a manifest, an object of the cluster.
    Read,
    /// Follows from what was measured or read, by the reason given.
    Derived,
    /// Nobody says; the value is the one that the note gives reasons for.
    Assumed,
}

impl Origin {
    /// The word that comments begin with.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Read => "read",
            Self::Derived => "derived",
            Self::Assumed => "ASSUMED",
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How it is known.
    pub origin: Origin,
    /// From what, with how many samples; or why it is assumed.
    pub text: String,
}

/// Where the values of a scenario came from, by the dotted path of the field: `client.0.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance(BTreeMap<String, Note>);

impl Provenance {
    /// Notes where the field's value came from; a later word replaces an earlier one.
    pub fn note(&mut self, path: &str, origin: Origin, text: impl Into<String>) {
        let text = text.into();
        self.0.insert(path.to_owned(), Note { origin, text });
    }

    /// What is noted of a field.
    pub fn get(&self, path: &str) -> Option<&Note> {
        self.0.get(path)
    }

    /// All notes, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Note)> {
        self.0.iter().map(|(path, note)| (path.as_str(), note))
    }

    /// Takes over the notes below a path, such as `rollout`, from another.
    pub fn take_over(&mut self, below: &str, other: &Self) {
        let belongs = |path: &str| {
            path.strip_prefix(below)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0.retain(|path, _| !belongs(path));
        let taken = other.0.iter().filter(|(path, _)| belongs(path));
        self.0
            .extend(taken.map(|(path, note)| (path.clone(), note.clone())));
    }
}

/// The scenario as TOML with a comment above each value. Parsing it gives an equal scenario.
pub fn to_toml(scenario: &Scenario, notes: &Provenance, head: &[String]) -> String {
    let mut out = Writer {
        text: String::new(),
        notes,
    };
    for line in head {
        out.comment(line);
    }
    let own = ["name", "description", "duration", "warmup"];
    let lines = scenario.lines();
    let top = lines.iter().filter(|(name, ..)| own.contains(name));
    out.text.push_str("schema = 1\n");
    out.lines("", top);
    let node = scenario.node.lines();
    out.section(
        "[node]",
        "node",
        node.iter().filter(|(name, ..)| *name != "sysctl"),
    );
    out.sysctls(scenario);
    out.section("[kube_proxy]", "kube_proxy", &scenario.kube_proxy.lines());
    out.section("[service]", "service", &scenario.service.lines());
    for (index, client) in scenario.client.iter().enumerate() {
        let path = format!("client.{index}");
        out.section("[[client]]", &path, &Client::lines(client));
    }
    out.section("[server]", "server", &scenario.server.lines());
    out.section("[network]", "network", &scenario.network.lines());
    let (name, lines) = match &scenario.rollout {
        Rollout::None(steady) => ("rollout.none", steady.lines()),
        Rollout::Deployment(deployment) => ("rollout.deployment", deployment.lines()),
        Rollout::Scripted(script) => ("rollout.scripted", script.lines()),
        Rollout::Scale(scale) => ("rollout.scale", scale.lines()),
        Rollout::Flap(flap) => ("rollout.flap", flap.lines()),
    };
    // Always written: which kind of rollout it is must not be left to the default.
    if let Some(note) = notes.get(name) {
        out.text.push('\n');
        out.comment(&format!("{}: {}", note.origin.word(), note.text));
        let _ = writeln!(out.text, "[{name}]");
        out.lines(name, lines.iter());
    } else {
        let _ = writeln!(out.text, "\n[{name}]");
        out.lines(name, lines.iter());
    }
    out.text
}

type Line = (&'static str, Option<String>, bool);

struct Writer<'a> {
    text: String,
    notes: &'a Provenance,
}

impl Writer<'_> {
    fn section<'l>(&mut self, head: &str, path: &str, lines: impl IntoIterator<Item = &'l Line>) {
        let before = self.text.len();
        let _ = writeln!(self.text, "\n{head}");
        let with_head = self.text.len();
        self.lines(path, lines);
        // A client is a client even if all is default.
        if self.text.len() == with_head && head != "[[client]]" {
            self.text.truncate(before);
        }
    }

    fn lines<'l>(&mut self, path: &str, lines: impl IntoIterator<Item = &'l Line>) {
        for (name, value, is_default) in lines {
            let full = match path {
                "" => (*name).to_owned(),
                path => format!("{path}.{name}"),
            };
            let note = self.notes.get(&full).cloned();
            if note.is_none() && *is_default {
                continue;
            }
            if let Some(note) = &note {
                self.comment(&format!("{}: {}", note.origin.word(), note.text));
            }
            // "none" is written as such only where the field has a word for it.
            match value {
                Some(value) => {
                    let _ = writeln!(self.text, "{name} = {value}");
                }
                None => {
                    let _ = writeln!(self.text, "# {name}: not set");
                }
            }
        }
    }

    fn sysctls(&mut self, scenario: &Scenario) {
        let sysctls = scenario.node_sysctl_overrides();
        if sysctls.is_empty() {
            return;
        }
        self.text.push_str("\n[node.sysctl]\n");
        if let Some(note) = self.notes.get("node.sysctl").cloned() {
            self.comment(&format!("{}: {}", note.origin.word(), note.text));
        }
        for (key, value) in sysctls {
            if let Some(note) = self.notes.get(&format!("node.sysctl.{key}")).cloned() {
                self.comment(&format!("{}: {}", note.origin.word(), note.text));
            }
            let _ = writeln!(self.text, "{} = {}", quoted(key), quoted(value));
        }
    }

    /// A comment, broken at spaces.
    fn comment(&mut self, text: &str) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > COLUMNS - 2 {
                let _ = writeln!(self.text, "# {line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let _ = writeln!(self.text, "# {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_scenario_with_a_reason_at_each_value() {
        let mut scenario = Scenario {
            name: "a \"name\"".to_owned(),
            ..Scenario::default()
        };
        scenario.service.target_port = 8080;
        scenario.node.sysctl.0 = vec![("net.ipv4.vs.conn_reuse_mode".to_owned(), "1".to_owned())];
        let mut notes = Provenance::default();
        notes.note("service.target_port", Origin::Measured, "7 real servers");
        notes.note("node.kernel", Origin::Assumed, "nobody says ".repeat(20));
        let text = to_toml(&scenario, &notes, &["A head".to_owned()]);
        let read = Scenario::parse(&text, "test").unwrap_or_else(|e| panic!("{text}\n{e}"));
        assert_eq!(read.scenario, scenario, "{text}");
        assert!(text.starts_with("# A head\n"), "{text}");
        assert!(
            text.contains("# measured: 7 real servers\ntarget_port = 8080\n"),
            "{text}"
        );
        assert!(text.contains("# ASSUMED: nobody says"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= COLUMNS),
            "{text}"
        );
        assert!(
            !text.contains("scheduler"),
            "a default that nobody spoke of: {text}"
        );
    }

    #[test]
    fn notes_are_taken_over_by_section() {
        let (mut mine, mut other) = (Provenance::default(), Provenance::default());
        mine.note("rollout.deployment.replicas", Origin::Measured, "mine");
        mine.note("server.dead_end", Origin::Assumed, "mine");
        other.note("rollout.deployment.pre_stop", Origin::Read, "other");
        other.note("rolloutish", Origin::Read, "other");
        mine.take_over("rollout", &other);
        let paths = mine.iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(paths, ["rollout.deployment.pre_stop", "server.dead_end"]);
    }
}
