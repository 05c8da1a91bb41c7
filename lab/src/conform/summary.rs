//! Adds up the logs: counts for each kernel, and the coverage as Markdown tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};
use ipvs_sim::diff::coverage::all_cells;

use super::Line;

#[derive(Default)]
struct Sum<'a> {
    seeds: u64,
    failed: u64,
    diverging: u64,
    counts: [u64; 5],
    divergences: BTreeMap<&'a str, u64>,
    not_checked: BTreeMap<&'a str, u64>,
    coverage: BTreeMap<&'a str, u64>,
}

/// The logs added up, by kernel.
fn sums(lines: &[Line]) -> BTreeMap<&str, Sum<'_>> {
    let mut kernels = BTreeMap::<&str, Sum>::new();
    for line in lines {
        let sum = kernels.entry(&line.kernel).or_default();
        if line.failed.is_some() {
            sum.failed += 1;
            continue;
        }
        sum.seeds += 1;
        sum.diverging += u64::from(!line.divergences.is_empty());
        let new = [
            line.steps.into(),
            line.packets,
            line.verdicts,
            line.listings,
            line.entries,
        ];
        for (sum, new) in sum.counts.iter_mut().zip(new) {
            *sum += new;
        }
        let maps = [
            (&mut sum.divergences, &line.divergences),
            (&mut sum.not_checked, &line.not_checked),
            (&mut sum.coverage, &line.coverage),
        ];
        for (sum, new) in maps {
            for (key, count) in new {
                *sum.entry(key).or_default() += count;
            }
        }
    }
    kernels
}

/// The summary. `tables`: with the coverage, cell by cell.
pub fn text(lines: &[Line], tables: bool) -> String {
    let kernels = sums(lines);
    let mut out = counts(&kernels);
    for (kernel, sum) in &kernels {
        list(
            &mut out,
            &format!("{kernel}: divergences"),
            &sum.divergences,
        );
        list(
            &mut out,
            &format!("{kernel}: not checked"),
            &sum.not_checked,
        );
    }
    if tables {
        coverage(&mut out, &kernels);
    }
    out
}

/// Renews the parts of a document that stand between `<!-- NAME -->` and `<!-- /NAME -->`: `counts`, `unchecked` and
/// `coverage`.
///
/// # Errors
/// If a part is not there.
pub fn renew(document: &str, lines: &[Line]) -> Result<String> {
    let kernels = sums(lines);
    let mut tables = String::new();
    coverage(&mut tables, &kernels);
    let parts = [
        ("counts", counts(&kernels)),
        ("unchecked", unchecked(&kernels)),
        ("coverage", tables),
    ];
    let mut document = document.to_owned();
    for (name, text) in parts {
        let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
        let from = document.find(&begin).map(|at| at + begin.len());
        let to = document.find(&end);
        let (Some(from), Some(to)) = (from, to) else {
            bail!("the document lacks `{begin}` or `{end}`");
        };
        if from > to {
            bail!("`{end}` comes before `{begin}`");
        }
        document.replace_range(from..to, &format!("\n{}\n", text.trim()));
    }
    Ok(document)
}

fn counts(kernels: &BTreeMap<&str, Sum>) -> String {
    let mut out = String::new();
    out.push_str("| kernel | seeds | steps | packets | verdicts | listings | entries | seeds that diverge | lab failures |\n");
    out.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for (kernel, sum) in kernels {
        let [steps, packets, verdicts, listings, entries] = sum.counts;
        let _ = writeln!(
            out,
            "| {kernel} | {} | {steps} | {packets} | {verdicts} | {listings} | {entries} | {} | {} |",
            sum.seeds, sum.diverging, sum.failed
        );
    }
    out
}

/// What was not checked, the kernels side by side.
fn unchecked(kernels: &BTreeMap<&str, Sum>) -> String {
    let names = kernels.keys().copied().collect::<Vec<_>>();
    let mut whys = kernels
        .values()
        .flat_map(|sum| sum.not_checked.keys().copied())
        .collect::<Vec<_>>();
    whys.sort_unstable();
    whys.dedup();
    let columns = "|---".repeat(names.len());
    let mut out = format!("| | {} |\n|---{columns}|\n", names.join(" | "));
    for why in whys {
        let counts = kernels.values();
        let counts = counts.map(|sum| sum.not_checked.get(why).copied().unwrap_or(0).to_string());
        let counts = counts.collect::<Vec<_>>().join(" | ");
        let _ = writeln!(out, "| {why} | {counts} |");
    }
    out
}

fn list(out: &mut String, title: &str, counts: &BTreeMap<&str, u64>) {
    if counts.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}\n");
    for (name, count) in counts {
        let _ = writeln!(out, "- {count} {name}");
    }
}

/// Transition tables cell by cell, the other cells as lists; the counts of the kernels stand side by side.
fn coverage(out: &mut String, kernels: &BTreeMap<&str, Sum>) {
    let count = |cell: &str| {
        let counts = kernels
            .values()
            .map(|sum| sum.coverage.get(cell).copied().unwrap_or(0));
        counts
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" / ")
    };
    let names = kernels.keys().copied().collect::<Vec<_>>().join(" / ");
    let _ = writeln!(out, "\nCoverage, as packets on {names}.");
    let mut tables = BTreeMap::<String, BTreeMap<String, Vec<(String, String)>>>::new();
    let (mut reached, mut order) = (0, Vec::new());
    let cells = all_cells();
    for cell in &cells {
        let mut parts = cell.rsplitn(3, '/');
        let (Some(state), Some(class), Some(table)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if !order.contains(&table.to_owned()) {
            order.push(table.to_owned());
        }
        let somewhere = kernels
            .values()
            .any(|sum| sum.coverage.contains_key(cell.as_str()));
        reached += usize::from(somewhere);
        let row = tables.entry(table.to_owned()).or_default();
        row.entry(class.to_owned())
            .or_default()
            .push((state.to_owned(), count(cell)));
    }
    let _ = writeln!(
        out,
        "{reached} of {} cells of the transition tables were exercised.",
        cells.len()
    );
    for table in order {
        let rows = &tables[&table];
        let _ = writeln!(out, "\n`{table}`\n");
        let first = rows.values().next().into_iter().flatten();
        let heads = first.map(|(state, _)| state.as_str()).collect::<Vec<_>>();
        let _ = writeln!(
            out,
            "| | {} |\n|---{}|",
            heads.join(" | "),
            "|---".repeat(heads.len())
        );
        for (class, cells) in rows {
            let cells = cells
                .iter()
                .map(|(_, count)| count.as_str())
                .collect::<Vec<_>>();
            let _ = writeln!(out, "| {class} | {} |", cells.join(" | "));
        }
    }
    let mut others = kernels
        .values()
        .flat_map(|sum| sum.coverage.keys().copied())
        .collect::<Vec<_>>();
    others.retain(|cell| !cell.starts_with("ipvs/") && !cell.starts_with("conntrack/"));
    others.sort_unstable();
    others.dedup();
    let mut group = "";
    for cell in others {
        let (kind, name) = cell.split_once('/').unwrap_or((cell, ""));
        if kind != group {
            let _ = writeln!(out, "\n`{kind}`\n\n| | packets |\n|---|---|");
            group = kind;
        }
        let _ = writeln!(out, "| {name} | {} |", count(cell));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kernel: &str, seed: u64) -> Line {
        let text = format!(
            r#"{{"kernel":"{kernel}","seed":{seed},"steps":2000,"config":"c","set":[],"packets":7,
                "not_checked":{{"packet at the end of the capture":1}},"coverage":{{"rule/Scheduled":3}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_document_gets_the_numbers_of_the_logs() {
        let lines = [line("6.1.192", 1), line("6.1.192", 2), line("6.12.117", 1)];
        let document = "# A\n<!-- counts -->\nold\n<!-- /counts -->\nb\n<!-- unchecked --><!-- /unchecked -->\n\
                        <!-- coverage -->\n<!-- /coverage -->\nend";
        let renewed = renew(document, &lines).unwrap();
        assert!(renewed.contains("| 6.1.192 | 2 | 4000 | 14 |"), "{renewed}");
        assert!(renewed.contains("| packet at the end of the capture | 2 | 1 |"));
        assert!(renewed.contains("| Scheduled | 6 / 3 |"));
        assert!(!renewed.contains("old") && renewed.ends_with("end"));
        assert_eq!(renew(&renewed, &lines).unwrap(), renewed);
        assert!(renew("# nothing", &lines).is_err());
    }
}
