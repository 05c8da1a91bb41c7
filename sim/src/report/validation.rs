//! Recordings beside predictions, as text for a screen or as the table of docs/validation.md.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::text::{Align, columns, thousands};
use crate::validate::{Cell, Quantity, Row, Verdict};

/// How many agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Rows in which chance decides nothing, and those of them that agree.
    pub certain: (usize, usize),
    /// The others.
    pub chance: (usize, usize),
}

impl Score {
    /// Of these rows.
    pub fn of(rows: &[Row]) -> Self {
        let mut score = Self::default();
        for row in rows {
            let place = if row.chance() {
                &mut score.chance
            } else {
                &mut score.certain
            };
            place.0 += 1;
            place.1 += usize::from(row.verdict().agrees());
        }
        score
    }

    /// Whether every row without chance agrees, and 93 % of the others: of true 95 % intervals, a few miss.
    pub const fn holds(&self) -> bool {
        self.certain.0 == self.certain.1 && self.chance.1 * 100 >= self.chance.0 * 93
    }

    fn words(self) -> String {
        let Self { certain, chance } = self;
        format!(
            "{} of {} rollouts without chance agree; {} of {} with chance lie inside the interval",
            certain.1, certain.0, chance.1, chance.0
        )
    }
}

/// `kernel` beside `[low, high]`, or beside the one number of a model without chance.
fn shown(cell: Option<Cell>) -> [String; 2] {
    let Some(cell) = cell else {
        return [String::new(), String::new()];
    };
    let model = &cell.model;
    let predicted = if model.low == model.high {
        thousands(model.median)
    } else {
        format!(
            "{} [{}, {}]",
            thousands(model.median),
            thousands(model.low),
            thousands(model.high)
        )
    };
    [thousands(cell.kernel), predicted]
}

fn quiet(row: &Row, quantity: Quantity) -> bool {
    row.cell(quantity)
        .is_none_or(|cell| cell.kernel == 0 && cell.model.high == 0)
}

/// Late connects and ports that were not there, if there were any, and requests if kernel and model made different numbers.
fn beside(row: &Row) -> String {
    let mut words = Vec::new();
    for quantity in [Quantity::Late, Quantity::NoPort] {
        if !quiet(row, quantity) {
            let [kernel, model] = shown(row.cell(quantity));
            words.push(format!("{} {kernel}: {model}", quantity.words()));
        }
    }
    if let Some(cell) = row.cell(Quantity::Requests)
        && (cell.model.low, cell.model.high) != (cell.kernel, cell.kernel)
    {
        let [kernel, model] = shown(Some(cell));
        words.push(format!("requests {kernel}: {model}"));
    }
    words.join("; ")
}

/// For a screen.
pub fn text(rows: &[Row], runs: u32) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} rollouts of real kernels; each prediction from {runs} runs, with its 95 % prediction interval\n",
        rows.len()
    );
    let head = ["rollout", "requests", "failed", "predicted", "verdict", ""];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let [kernel, model] = shown(row.cell(Quantity::Failed));
        table.push(vec![
            row.recording.name.clone(),
            thousands(row.recording.counts.get(Quantity::Requests)),
            kernel,
            model,
            row.verdict().words().to_owned(),
            beside(row),
        ]);
    }
    let right = [
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
        Align::Left,
    ];
    out.push_str(&columns("", &right, &table));
    let _ = writeln!(out, "\n{}", Score::of(rows).words());
    let off = rows.iter().filter(|row| {
        row.cell(Quantity::Entries)
            .is_some_and(|cell| !cell.verdict.agrees())
    });
    for row in off {
        let [kernel, model] = shown(row.cell(Quantity::Entries));
        let _ = writeln!(
            out,
            "entries at weight 0, summed over samples every 30 s, {}: kernel {kernel}, model {model}",
            row.recording.name
        );
    }
    out
}

/// One line of the table of docs/validation.md.
pub fn markdown_row(row: &Row) -> String {
    let [kernel, model] = shown(row.cell(Quantity::Failed));
    let [held, expected] = shown(row.cell(Quantity::Entries));
    let verdict = row.verdict();
    let verdict = if verdict.agrees() {
        verdict.words().to_owned()
    } else {
        format!("**{}**", verdict.words())
    };
    let entries = match row.cell(Quantity::Entries) {
        None => String::new(),
        Some(cell) if cell.verdict == Verdict::Same => held,
        Some(cell) if cell.verdict.agrees() => format!("{held}: {expected}"),
        Some(_) => format!("**{held}**: {expected}"),
    };
    format!(
        "| {} | {} | {} | {} | {kernel} | {model} | {} | {entries} | {verdict} |",
        row.recording.name,
        row.recording.kernel,
        row.recording.settings().join(", "),
        thousands(row.recording.counts.get(Quantity::Requests)),
        beside(row),
    )
}

/// The table of docs/validation.md.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(
        "| rollout | kernel | differs in | requests | failed | predicted | beside | entries | verdict |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = writeln!(out, "{}", markdown_row(row));
    }
    let _ = writeln!(out, "\n{}.", Score::of(rows).words());
    out
}

/// For machines.
pub fn json(rows: &[Row], runs: u32) -> Json {
    let rows: Vec<Json> = rows
        .iter()
        .map(|row| {
            let mut cells = serde_json::Map::new();
            for quantity in Quantity::ALL {
                if let Some(cell) = row.cell(quantity) {
                    cells.insert(
                        quantity.words().replace(' ', "_"),
                        json!({
                            "kernel": cell.kernel, "low": cell.model.low, "median": cell.model.median,
                            "high": cell.model.high, "chance": cell.model.chance, "agrees": cell.verdict.agrees(),
                        }),
                    );
                }
            }
            json!({
                "name": row.recording.name, "kernel": row.recording.kernel, "verdict": row.verdict().words(), "quantities": cells,
            })
        })
        .collect();
    json!({ "runs": runs, "rollouts": rows })
}
