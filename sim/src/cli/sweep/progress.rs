//! The progress line: how far the sweep has come, and the estimate so far.

use std::fmt::Write as _;

use crate::experiment::estimate::Estimates;
use crate::experiment::sweep::Progress;
use crate::report::sweep::interval_text;
use crate::report::text::percent;

/// Runs done, time, and the estimate of the point that fails most.
pub fn line(progress: &Progress<'_>) -> String {
    let seconds = progress.elapsed.as_secs_f64();
    let mut line = format!("{} of {} rollouts", progress.runs, progress.goal);
    if progress.active > 1 {
        let _ = write!(line, " at each of {} points", progress.active);
    }
    if progress.active < progress.points.len() {
        let settled = progress.points.len() - progress.active;
        let _ = write!(line, " ({settled} precise enough)");
    }
    let (done, all) = progress.blocks;
    let _ = write!(
        line,
        " ({} of this stage), {seconds:.1} s",
        percent(done, all)
    );
    let share = |place: &usize| progress.tallies[*place].failure.estimate().unwrap_or(0.0);
    let places = 0..progress.points.len();
    let Some(worst) = places.rev().max_by(|a, b| share(a).total_cmp(&share(b))) else {
        return line;
    };
    if progress.runs > 0 {
        let failure = Estimates::of(&progress.tallies[worst]).failure;
        let settings: Vec<String> = progress.points[worst]
            .settings
            .iter()
            .map(ToString::to_string)
            .collect();
        let share = percent(failure.count, failure.of);
        let range = interval_text(&failure.interval);
        let _ = write!(line, "; worst so far: {share} of requests fail {range}");
        if progress.points.len() > 1 {
            let _ = write!(line, " at {}", settings.join(", "));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::experiment::grid::{Axis, Grid};
    use crate::experiment::tally::Tally;
    use crate::outcome::{Outcome, RunSummary};

    #[test]
    fn the_line_shows_the_estimate_of_the_worst_point() {
        let points = Grid::new(vec![Axis::parse("rps", "1,2").expect("a list")])
            .expect("a grid")
            .points();
        let mut tallies = vec![Tally::default(), Tally::default()];
        for (place, failed) in [(0, 5), (1, 40)] {
            let mut run = RunSummary {
                requests: 100,
                ..RunSummary::default()
            };
            run.outcomes[Outcome::Reset.index()] = failed;
            run.outcomes[Outcome::Answered.index()] = 100 - failed;
            tallies[place].add(0, &run);
        }
        let progress = Progress {
            runs: 1,
            goal: 20,
            active: 2,
            blocks: (3, 40),
            points: &points,
            tallies: &tallies,
            elapsed: Duration::from_millis(1_260),
        };
        let line = line(&progress);
        assert!(
            line.starts_with("1 of 20 rollouts at each of 2 points (7.5 % of this stage), 1.3 s; "),
            "{line}"
        );
        assert!(line.contains("40.0 % of requests fail ["), "{line}");
        assert!(line.ends_with("at rps 2"), "{line}");
    }
}
