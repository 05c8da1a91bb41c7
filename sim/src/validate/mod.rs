//! Whole rollouts on real kernels against predictions: what the clients saw there, beside the interval in which the model
//! expects one more rollout of the same scenario.
//!
//! A recording is one draw. Where chance decides (6.x chooses ports at random steps), the model is run with many seeds, and
//! the prediction interval is that of order statistics: of `n` runs and one more, the new one lies between the `k`-th
//! smallest and the `k`-th largest with probability `1 - 2k/(n + 1)`, whatever the distribution. Where it does not, the
//! kernel must agree within one percent of the requests.

pub mod recording;

use ipvs_model::time::Span;
use rayon::prelude::*;

use crate::engine::trace::TraceOptions;
use crate::engine::{RunResult, run};
use crate::experiment::seeds;
use crate::outcome::Outcome;
use crate::scenario::Scenario;
pub use recording::{Recording, RecordingError};

/// The lab writes down the real servers this often.
pub const SAMPLE: Span = Span::from_secs(30);
/// Without chance, kernel and model may differ by this share of the requests: one in so many.
const TOLERANCE: u64 = 100;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// Requests that the service failed.
    Failed,
    /// Requests answered after a connect of more than half a second.
    Late,
    /// Requests that found no free port.
    NoPort,
    /// Requests made: in a closed loop an outcome, too.
    Requests,
    /// Entries of real servers at weight 0, added up over the samples: how long the node remembers.
    Entries,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Failed,
        Self::Late,
        Self::NoPort,
        Self::Requests,
        Self::Entries,
    ];
    /// Those that clients see.
    pub const SEEN: [Self; 4] = [Self::Failed, Self::Late, Self::NoPort, Self::Requests];

    /// For heads of columns.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
            Self::NoPort => "no port",
            Self::Requests => "requests",
            Self::Entries => "entries at weight 0",
        }
    }
}

/// The quantities of one rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    values: [u64; 5],
}

impl Counts {
    /// Of a run of the model.
    pub fn of_run(result: &RunResult) -> Self {
        let summary = &result.summary;
        let drained = result.trace.servers.iter();
        let drained = drained.filter(|server| server.weight == Some(0) && server.at.0 > 0);
        Self {
            values: [
                summary.failed(),
                summary.delayed_total(),
                summary.count(Outcome::PortsExhausted),
                summary.requests,
                drained
                    .map(|server| u64::from(server.active + server.inactive))
                    .sum(),
            ],
        }
    }

    /// One of them.
    pub const fn get(&self, quantity: Quantity) -> u64 {
        self.values[quantity as usize]
    }
}

/// What one more rollout is expected to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Lower end of the 95 % prediction interval.
    pub low: u64,
    /// The middle of the runs.
    pub median: u64,
    /// Upper end.
    pub high: u64,
    /// Whether chance decides: the runs lie further apart than the tolerance.
    pub chance: bool,
}

/// What the comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The kernel's count is the model's.
    Same,
    /// No chance, and the counts differ by at most one percent of the requests.
    Close,
    /// Chance, and the kernel's count is in the interval.
    Inside,
    /// Chance, and it is not.
    Outside,
    /// No chance, and they differ by more.
    Different,
}

impl Verdict {
    /// For tables.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Close => "within 1 %",
            Self::Inside => "inside",
            Self::Outside => "OUTSIDE",
            Self::Different => "DIFFERENT",
        }
    }

    /// Whether kernel and model agree.
    pub const fn agrees(self) -> bool {
        matches!(self, Self::Same | Self::Close | Self::Inside)
    }
}

/// A recording beside its prediction.
#[derive(Clone, Debug)]
pub struct Row {
    /// The recording.
    pub recording: Recording,
    /// By [`Quantity::ALL`]; `None` if the recording does not have it.
    pub cells: [Option<Cell>; 5],
}

/// One quantity of a row.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The kernel's count.
    pub kernel: u64,
    /// The model's.
    pub model: Interval,
    /// What follows.
    pub verdict: Verdict,
}

impl Row {
    /// The cell of a quantity.
    pub const fn cell(&self, quantity: Quantity) -> Option<Cell> {
        self.cells[quantity as usize]
    }

    /// The worst verdict of the cells that clients see.
    pub fn verdict(&self) -> Verdict {
        let cells = Quantity::SEEN
            .into_iter()
            .filter_map(|quantity| self.cell(quantity));
        cells
            .map(|cell| cell.verdict)
            .max()
            .unwrap_or(Verdict::Same)
    }

    /// Whether chance decides any of what clients see.
    pub fn chance(&self) -> bool {
        self.cells[..3]
            .iter()
            .flatten()
            .any(|cell| cell.model.chance)
    }
}

/// The interval for one more value after these.
fn interval(mut values: Vec<u64>, requests: u64) -> Interval {
    values.sort_unstable();
    let count = values.len();
    // 2.5 % of the runs and the new one, rounded down, but never outside of what was seen.
    let rank = ((count + 1) / 40).max(1);
    let (low, high) = (values[rank - 1], values[count - rank]);
    let spread = values[count - 1] - values[0];
    Interval {
        low,
        median: values[count / 2],
        high,
        chance: spread * TOLERANCE > requests,
    }
}

fn judge(kernel: u64, model: Interval, requests: u64) -> Verdict {
    if model.chance {
        if (model.low..=model.high).contains(&kernel) {
            Verdict::Inside
        } else {
            Verdict::Outside
        }
    } else if kernel == model.median {
        Verdict::Same
    } else if kernel.abs_diff(model.median) * TOLERANCE <= requests {
        Verdict::Close
    } else {
        Verdict::Different
    }
}

/// The counts of this many runs of a scenario, in the order of their seeds.
///
/// # Errors
/// If the scenario cannot be run.
pub fn predict(scenario: &Scenario, runs: u32, root: u64) -> Result<Vec<Counts>, String> {
    let options = TraceOptions {
        sample_every: Some(SAMPLE),
        // The lab samples after everything else that is due.
        sample_after: Span(1),
        ..TraceOptions::default()
    };
    (0..runs)
        .into_par_iter()
        .map(|number| {
            let seed = seeds::seed_of(root, u64::from(number));
            run(scenario, seed, &options).map(|result| Counts::of_run(&result))
        })
        .collect()
}

/// Holds a recording against so many runs of its scenario.
///
/// # Errors
/// If the scenario cannot be run.
pub fn validate(recording: Recording, runs: u32, root: u64) -> Result<Row, String> {
    let model = predict(&recording.scenario, runs.max(1), root)?;
    let requests = recording.counts.get(Quantity::Requests);
    let cells = Quantity::ALL.map(|quantity| {
        if quantity == Quantity::Entries && !recording.sampled {
            return None;
        }
        let kernel = recording.counts.get(quantity);
        let values = model.iter().map(|counts| counts.get(quantity)).collect();
        // Entries are not requests: the tolerance is of all that the samples hold.
        let whole = match quantity {
            Quantity::Entries => model.iter().map(|counts| counts.get(quantity)).max(),
            _ => Some(requests),
        };
        let whole = whole.unwrap_or(0).max(kernel);
        let model = interval(values, whole);
        let verdict = judge(kernel, model, whole);
        Some(Cell {
            kernel,
            model,
            verdict,
        })
    });
    Ok(Row { recording, cells })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_thirty_nine_runs_the_interval_is_what_was_seen() {
        let found = interval((1..=39).collect(), 100);
        assert_eq!((found.low, found.median, found.high), (1, 20, 39));
        assert!(found.chance);
    }

    #[test]
    fn of_a_hundred_and_ninety_nine_runs_it_leaves_out_four_at_each_end() {
        let found = interval((1..=199).rev().collect(), 100);
        assert_eq!((found.low, found.high), (5, 195));
    }

    #[test]
    fn a_count_outside_of_the_interval_is_told_from_one_inside() {
        let chance = interval((100..=298).collect(), 1000);
        assert_eq!(judge(104, chance, 1000), Verdict::Inside);
        assert_eq!(judge(103, chance, 1000), Verdict::Outside);
        let certain = interval(vec![100; 39], 1000);
        assert_eq!(judge(100, certain, 1000), Verdict::Same);
        assert_eq!(judge(110, certain, 1000), Verdict::Close);
        assert_eq!(judge(111, certain, 1000), Verdict::Different);
    }
}
