//! The node's tables at a moment, in the words of `ipvsadm` and `/proc/net/nf_conntrack`, whole or filtered.

use super::{Header, View, heading};
use crate::engine::trace::Tables;
use crate::report::text::{count_of, moment, thousands};

/// All tables that were asked for.
pub fn text(header: &Header, view: &View, tables: &[Tables]) -> String {
    let parts = tables.iter().map(|tables| one(header, view, tables));
    parts.collect::<Vec<_>>().join("\n")
}

fn one(header: &Header, view: &View, tables: &Tables) -> String {
    let matching = view.matching.as_deref();
    let remark = matching.map_or_else(String::new, |words| format!("lines with {words}"));
    let mut out = heading(
        view.look,
        &format!("Tables at {}", moment(tables.at)),
        &remark,
    );
    if header.ipvs {
        out.push_str(&listing("ipvsadm -Ln", &tables.services, 2, matching, true));
        out.push_str(&listing(
            "ipvsadm -Lnc",
            &tables.connections,
            2,
            matching,
            false,
        ));
    }
    out.push_str(&listing(
        "cat /proc/net/nf_conntrack",
        &tables.conntrack,
        0,
        matching,
        false,
    ));
    out
}

/// A listing under the command that prints it on a node. The first `titles` lines are never filtered; in a listing of
/// services a real server's line brings its service's line with it.
fn listing(
    command: &str,
    text: &str,
    titles: usize,
    matching: Option<&str>,
    services: bool,
) -> String {
    let lines = text.lines().collect::<Vec<_>>();
    let (titles, entries) = lines.split_at(titles.min(lines.len()));
    let kept = match matching {
        Some(words) if services => with_services(entries, words),
        Some(words) => entries
            .iter()
            .copied()
            .filter(|line| mentions(line, words))
            .collect(),
        None => entries.to_vec(),
    };
    let mut out = format!("$ {command}\n");
    for line in titles.iter().chain(&kept) {
        out.push_str(line);
        out.push('\n');
    }
    if matching.is_some() && !services {
        let of = count_of(entries.len() as u64, "line", "lines");
        out.push_str(&format!("({} of {of})\n", thousands(kept.len() as u64)));
    }
    out
}

fn with_services<'a>(entries: &[&'a str], words: &str) -> Vec<&'a str> {
    let mut kept = Vec::new();
    let mut service = None;
    for line in entries {
        let is_server = line.trim_start().starts_with("->");
        if !is_server {
            service = Some(*line);
        }
        if mentions(line, words) {
            kept.extend(service.take().filter(|_| is_server));
            kept.push(*line);
            if !is_server {
                service = None;
            }
        }
    }
    kept
}

/// Whether a line holds `words` as a whole: `10.27.1.24` is not in `10.27.1.245`, nor `:80` in `:8080`.
pub(super) fn mentions(line: &str, words: &str) -> bool {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let starts_with_digit = is_digit(words.chars().next());
    let ends_with_digit = is_digit(words.chars().next_back());
    line.match_indices(words).any(|(start, found)| {
        let before = line[..start].chars().next_back();
        let after = line[start + found.len()..].chars().next();
        let cut_before = starts_with_digit && (is_digit(before) || before == Some('.'));
        let cut_after = ends_with_digit && is_digit(after);
        !(cut_before || cut_after)
    })
}
