//! The handbook inside the binary: a topic a file in `sim/handbook/`, short, with its sources.

use crate::report::text::{Look, Tone, wrap};

/// A topic.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its text, in a small part of Markdown: a heading, paragraphs, lists, `code` and **bold**.
    pub text: &'static str,
}

macro_rules! topics {
    ($($name:literal),+ $(,)?) => {
        /// All topics, in the order in which they are listed.
        pub const TOPICS: &[Topic] = &[$(Topic {
            name: $name,
            text: include_str!(concat!("../../handbook/", $name, ".md")),
        }),+];
    };
}

topics![
    "time-wait",
    "conn-reuse-mode",
    "weight-zero",
    "expire-nodest-conn",
    "port-range",
    "closes-first",
    "tw-reuse",
    "keep-alive",
    "no-port",
    "late",
    "pre-stop",
    "drain",
    "dead-ends",
    "persistence",
    "conntrack",
    "nodeport",
    "kernels",
    "intervals",
    "exit-codes",
];

impl Topic {
    /// Its heading.
    pub fn title(&self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches(['#', ' '])
    }

    /// For a terminal: lines joined to paragraphs and broken at `width` characters, headings and bold painted.
    pub fn render(&self, look: Look, width: usize) -> String {
        let mut out = String::new();
        for block in blocks(self.text) {
            if let Some(title) = block.strip_prefix("# ") {
                out.push_str(&look.paint(Tone::Heading, title));
                out.push('\n');
                continue;
            }
            let (first, rest, text) = match block.strip_prefix("- ") {
                Some(item) => ("  - ", "    ", item),
                None => ("", "", block.as_str()),
            };
            if first.is_empty() {
                out.push('\n');
            }
            let plain = text.replace("**", "");
            let dim = plain.starts_with("Source:") || plain.starts_with("See also:");
            for (place, line) in wrap(&plain, width - rest.len()).iter().enumerate() {
                let lead = if place == 0 { first } else { rest };
                let line = format!("{lead}{line}");
                out.push_str(&if dim {
                    look.paint(Tone::Dim, &line)
                } else {
                    line
                });
                out.push('\n');
            }
        }
        out
    }
}

/// Paragraphs, list items and headings, each on one line. Source and See also stand alone.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let begins = line.starts_with("- ")
            || line.starts_with("# ")
            || line.starts_with("Source:")
            || line.starts_with("See also:");
        match (line.trim(), open && !begins) {
            ("", _) => open = false,
            (words, true) => {
                if let Some(last) = blocks.last_mut() {
                    last.push(' ');
                    last.push_str(words);
                }
            }
            (words, false) => {
                blocks.push(words.to_owned());
                open = !words.starts_with("# ");
            }
        }
    }
    blocks
}

/// The topic of a name.
pub fn topic(name: &str) -> Option<&'static Topic> {
    let wanted = name.to_lowercase().replace(['_', ' '], "-");
    TOPICS.iter().find(|topic| topic.name == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_have_headings_sources_and_neighbours_that_exist() {
        for one in TOPICS {
            assert!(one.text.starts_with("# "), "{}", one.name);
            assert!(one.text.contains("\nSource: "), "{}", one.name);
            let also = one
                .text
                .lines()
                .find_map(|line| line.strip_prefix("See also: "));
            for other in also
                .unwrap_or_else(|| panic!("{}: no neighbours", one.name))
                .split(", ")
            {
                assert!(topic(other).is_some(), "{}: {other}", one.name);
            }
        }
    }

    #[test]
    fn every_file_is_a_topic() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/handbook");
        let files = std::fs::read_dir(folder).expect("the handbook").count();
        assert_eq!(files, TOPICS.len());
    }

    #[test]
    fn text_is_wrapped_and_plain_without_colour() {
        for one in TOPICS {
            let text = one.render(Look::default(), 90);
            assert!(
                text.lines().all(|line| line.chars().count() <= 90),
                "{text}"
            );
            assert!(!text.contains("**") && !text.contains('\u{1b}'), "{text}");
            assert!(text.starts_with(one.title()), "{text}");
        }
        assert_eq!(
            blocks("# A b\n\nc\nd\n\n- e\n  f\n- g\nSource: h\n"),
            ["# A b", "c d", "- e f", "- g", "Source: h"]
        );
    }
}
