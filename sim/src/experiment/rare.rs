//! Rare events: the failure probability of requests conditioned on what is known before their port is drawn.
//!
//! A client that draws its ports meets an entry of the past with a small chance, in each request anew. Counting such
//! failures needs some hundred of them. But the chance of each draw is known exactly at the moment before it (see
//! [`crate::engine::probe`]), so it need not be waited for. With H the ports that lead to an entry of a real server without
//! weight, w their chance, and B whether a request that got one of them fails,
//!
//! ```text
//! P(request fails | the state before its draw) = w * P(B | that state) + P(fails and drew no port of H | that state)
//! ```
//!
//! A run adds up the second part by counting, and the first part by its chances: their sum W over all requests, times the share of
//! failures among some of these draws, chosen in proportion to their chances and *played*: the same seed again, that
//! request forced to that port. Both have the right mean, whatever depends on what (the law of total expectation), so the
//! estimate is unbiased; and it does not need a single hit in the run itself.
//!
//! Leaves out: ports that connect() searches from where the last search ended (nothing is drawn), and failures by other
//! rare causes, which are counted as they are.

use super::RunError;
use super::seeds::seed_of;
use crate::engine::probe::{Chance, Probed};
use crate::outcome::{Outcome, RunSummary};

/// Parts of a request in which expected failures are counted: sums stay integers.
pub const PARTS: u64 = 1_000_000_000;

/// Draws that are played for each run.
const PLAYED: u64 = 4;

/// More requests than this in one run are no case for conditioning.
const REQUESTS_MAX: u64 = 10_000_000;

/// A run with [`RunSummary::conditioned`]. `play` replays its seed with a request forced to a port and says how that request
/// ended.
///
/// # Errors
/// Those of `play`; or far too many requests.
pub fn condition(
    mut summary: RunSummary,
    probed: &Probed,
    seed: u64,
    play: &mut dyn FnMut(u64, u16) -> Result<Option<Outcome>, RunError>,
) -> Result<RunSummary, RunError> {
    if summary.requests > REQUESTS_MAX {
        return Err(RunError(format!(
            "{} requests in one rollout are too many for --rare; without it their failures are frequent enough to count",
            summary.requests
        )));
    }
    let counted = (summary.failed() - probed.hits_failed) * PARTS;
    let weights: Vec<u64> = probed.chances.iter().map(parts).collect();
    let whole: u64 = weights.iter().sum();
    let mut failed = 0;
    if whole > 0 {
        for number in 0..PLAYED {
            // Any generator will do that the run itself does not use.
            let mut left = seed_of(!seed, number) % whole;
            let drawn = probed.chances.iter().zip(&weights).find(|(_, weight)| {
                let here = left < **weight;
                left = left.saturating_sub(**weight);
                here
            });
            if let Some((chance, _)) = drawn {
                let ended = play(chance.request, chance.port)?;
                failed += u64::from(ended.is_some_and(Outcome::is_failure));
            }
        }
    }
    summary.conditioned = Some(counted + whole * failed / PLAYED);
    Ok(summary)
}

/// A chance in parts of a request, to the nearest.
const fn parts(chance: &Chance) -> u64 {
    let (starts, of) = (chance.starts as u64, chance.of as u64);
    (starts * PARTS + of / 2) / of
}

#[cfg(test)]
mod tests;
