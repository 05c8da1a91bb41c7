//! Diagnostics for people: what is wrong, where, and what to write instead.
//!
//! Readers of outside text collect [`Diag`]s instead of stopping at the first mistake; [`Diagnostics`] owns the texts
//! they point into and renders them like rustc, plain or in colour.

use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// At most so many diagnostics are shown of one text; the rest are counted.
const DIAGS_SHOWN_MAX: usize = 40;
/// At most so many are given to machines.
const DIAGS_JSON_MAX: usize = 1000;

/// A range of bytes in one of the texts of a [`Diagnostics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the text.
    pub source: usize,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Place {
    /// A range in text number `source`.
    pub fn new(source: usize, range: Range<usize>) -> Self {
        Self {
            source,
            start: range.start,
            end: range.end,
        }
    }
}

/// Whether a diagnostic forbids going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The input cannot be used.
    Error,
    /// The input can be used but probably does not mean what its author wanted.
    Warning,
}

/// A place with what to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub place: Place,
    /// What to say; may be empty.
    pub text: String,
    /// Whether this is the culprit or only context.
    pub primary: bool,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diag {
    /// Short stable name of the kind of mistake, such as `unknown-key`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub title: String,
    /// Where.
    pub labels: Vec<Label>,
    /// What to do; each is one line.
    pub help: Vec<String>,
}

impl Diag {
    /// An error without a place.
    pub fn error(code: &'static str, title: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            title: title.into(),
            labels: Vec::new(),
            help: Vec::new(),
        }
    }

    /// A warning without a place.
    pub fn warning(code: &'static str, title: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, title)
        }
    }

    /// The same, pointing at the culprit.
    #[must_use]
    pub fn at(mut self, place: impl Into<Option<Place>>, text: impl Into<String>) -> Self {
        if let Some(place) = place.into() {
            let primary = !self.labels.iter().any(|label| label.primary);
            self.labels.push(Label {
                place,
                text: text.into(),
                primary,
            });
        }
        self
    }

    /// The same, with a remedy.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }
}

/// A text that diagnostics point into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// File name, or the flag that the text came from.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Diagnostics with the texts they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The texts.
    pub sources: Vec<Source>,
    /// What is wrong with them, in the order found.
    pub diags: Vec<Diag>,
}

impl Diagnostics {
    /// A single diagnostic that is not about a text.
    pub fn bare(diag: Diag) -> Self {
        Self {
            sources: Vec::new(),
            diags: vec![diag],
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.diags.is_empty()
    }

    /// Whether any of them is an error.
    pub fn has_errors(&self) -> bool {
        self.diags.iter().any(|d| d.severity == Severity::Error)
    }

    /// As text; with escape sequences if `styled`. Ends with a newline unless empty.
    pub fn render(&self, styled: bool) -> String {
        let renderer = if styled {
            Renderer::styled()
        } else {
            Renderer::plain()
        }
        .decor_style(DecorStyle::Ascii);
        let mut out = String::new();
        for diag in self.diags.iter().take(DIAGS_SHOWN_MAX) {
            out.push_str(&renderer.render(&self.groups(diag)));
            out.push_str("\n\n");
        }
        if self.diags.len() > DIAGS_SHOWN_MAX {
            let rest = self.diags.len() - DIAGS_SHOWN_MAX;
            out.push_str(&format!("... and {rest} more\n\n"));
        }
        if out.ends_with("\n\n") {
            out.pop();
        }
        out
    }

    fn groups<'a>(&'a self, diag: &'a Diag) -> Vec<Group<'a>> {
        let level = match diag.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(diag.title.as_str()).id(diag.code));
        let mut order = Vec::new();
        for label in &diag.labels {
            if !order.contains(&label.place.source) {
                order.push(label.place.source);
            }
        }
        for index in order {
            let Some(source) = self.sources.get(index) else {
                continue;
            };
            let mut snippet = Snippet::source(source.text.as_str()).path(source.name.as_str());
            for label in diag.labels.iter().filter(|l| l.place.source == index) {
                let kind = if label.primary {
                    AnnotationKind::Primary
                } else {
                    AnnotationKind::Context
                };
                let mut note = kind.span(clamp(&source.text, label.place));
                if !label.text.is_empty() {
                    note = note.label(label.text.as_str());
                }
                snippet = snippet.annotation(note);
            }
            group = group.element(snippet);
        }
        for help in &diag.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        vec![group]
    }

    /// The line (from 1) and column (from 1, in characters) of a place.
    pub fn line_column(&self, place: Place) -> Option<(usize, usize)> {
        let text = &self.sources.get(place.source)?.text;
        let before = &text[..clamp(text, place).start];
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .map_or(0, |tail| tail.chars().count());
        Some((line, column + 1))
    }

    /// For machines: code, severity, message, file, line, column and help of each of the first thousand.
    pub fn to_json(&self) -> serde_json::Value {
        let one = |diag: &Diag| {
            let primary = diag.labels.iter().find(|label| label.primary);
            let at = primary.and_then(|label| self.line_column(label.place));
            serde_json::json!({
                "code": diag.code,
                "severity": match diag.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                },
                "message": diag.title,
                "file": primary.and_then(|l| self.sources.get(l.place.source)).map(|s| &s.name),
                "line": at.map(|(line, _)| line),
                "column": at.map(|(_, column)| column),
                "help": diag.help,
            })
        };
        serde_json::Value::Array(self.diags.iter().take(DIAGS_JSON_MAX).map(one).collect())
    }
}

/// The place as a range that lies inside the text and on character boundaries.
fn clamp(text: &str, place: Place) -> Range<usize> {
    let start = text.floor_char_boundary(place.start.min(text.len()));
    let end = text.ceil_char_boundary(place.end.clamp(start, text.len()));
    start..end
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Diagnostics {}
