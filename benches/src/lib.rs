//! Shared helpers of the benchmarks.

use ipvs_sim::scenario::Scenario;

/// The founding case's rollout, shortened to `seconds`, at `rate` requests a second; the rollout starts after a third.
///
/// # Panics
/// If the text below is no scenario any more.
pub fn scenario(seconds: u64, rate: u64, closes_first: &str) -> Scenario {
    let start = seconds / 3;
    let text = format!(
        "schema = 1\nduration = \"{seconds}s\"\n[rollout.deployment]\nstart = \"{start}s\"\n\
         [[client]]\ncloses_first = \"{closes_first}\"\narrivals = {{ constant = {{ rate = {rate} }} }}\n"
    );
    match Scenario::parse(&text, "benchmark") {
        Ok(loaded) => loaded.scenario,
        Err(mistakes) => panic!("{}", mistakes.render(false)),
    }
}
