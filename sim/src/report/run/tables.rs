//! The node's tables at a moment, in the words of `ipvsadm` and `/proc/net/nf_conntrack`, whole or filtered.

use ipvs_model::segment::Endpoint;

use super::{Header, View, heading};
use crate::engine::trace::Tables;
use crate::report::text::{count_of, moment, thousands};

/// Lines of `ipvsadm -Lnc` before the first entry.
const LNC_TITLES: usize = 2;

/// All tables that were asked for.
pub fn text(header: &Header, view: &View, tables: &[Tables]) -> String {
    let parts = tables.iter().map(|tables| one(header, view, tables));
    parts.collect::<Vec<_>>().join("\n")
}

fn one(header: &Header, view: &View, tables: &Tables) -> String {
    let matching = view.matching.as_deref();
    let remark = matching.map_or_else(String::new, |words| format!("lines with {words}"));
    let title = format!("Tables at {}", moment(tables.at));
    let mut out = heading(view.look, &title, &remark);
    let kept = filtered(tables, matching);
    let mut listing = |command: &str, kept: &str, all: &str, titles: usize| {
        out.push_str(&format!("$ {command}\n{kept}"));
        if matching.is_some() {
            let count = |text: &str| text.lines().count().saturating_sub(titles) as u64;
            let of = count_of(count(all), "line", "lines");
            out.push_str(&format!("({} of {of})\n", thousands(count(kept))));
        }
    };
    if header.ipvs {
        listing(
            "ipvsadm -Lnc",
            &kept.connections,
            &tables.connections,
            LNC_TITLES,
        );
    }
    listing(
        "cat /proc/net/nf_conntrack",
        &kept.conntrack,
        &tables.conntrack,
        0,
    );
    if header.ipvs {
        out.push_str(&format!("$ ipvsadm -Ln\n{}", kept.services));
    }
    out
}

/// The tables with only those lines that mention `matching`. Titles stay, and so do services: they are few.
pub(super) fn filtered(tables: &Tables, matching: Option<&str>) -> Tables {
    let Some(words) = matching else {
        return tables.clone();
    };
    let filter = |text: &str, titles: usize| {
        let lines = text.lines().enumerate();
        let kept = lines.filter(|(place, line)| *place < titles || mentions(line, words));
        kept.fold(String::new(), |out, (_, line)| out + line + "\n")
    };
    Tables {
        at: tables.at,
        services: tables.services.clone(),
        connections: filter(&tables.connections, LNC_TITLES),
        conntrack: filter(&tables.conntrack, 0),
    }
}

/// Whether a line holds `words` as a whole: `10.27.1.24` is not in `10.27.1.245`, nor `:80` in `:8080`. An address with
/// a port is also found where conntrack writes the two apart.
pub(super) fn mentions(line: &str, words: &str) -> bool {
    let apart = || {
        words.parse::<Endpoint>().is_ok_and(|end| {
            let ways = [("src=", "sport="), ("dst=", "dport=")];
            ways.iter().any(|(ip, port)| {
                holds(line, &format!("{ip}{}", end.ip))
                    && holds(line, &format!("{port}{}", end.port))
            })
        })
    };
    holds(line, words) || apart()
}

fn holds(line: &str, words: &str) -> bool {
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
