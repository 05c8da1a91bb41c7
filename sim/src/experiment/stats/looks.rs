//! Stopping by looking, without losing the interval's coverage.
//!
//! A sweep that looks at its results again and again and stops when it likes them misses the truth more often
//! than its intervals say. So it looks only at 20, 40, 80, ... runs, and stage j of these gets its own part
//! of the error, `alpha / (j (j + 1))`: the parts sum to alpha over any number of looks, so the interval
//! printed at *whichever* look the sweep stops misses with probability alpha at most. A sweep that is ended
//! between two looks by its budget uses the part of the look that was coming. The price is an interval about
//! a third wider than that of a number of runs fixed beforehand.
//!
//! The part depends on the number of runs alone, so `--runs N` prints the bytes of a sweep that stopped at N.

/// The number of runs at the first look.
pub const FIRST_LOOK: u64 = 20;

/// The stage that `runs` runs belong to, from 1: up to 20, up to 40, up to 80, ...
pub fn stage(runs: u64) -> u32 {
    let mut look = FIRST_LOOK;
    let mut stage = 1;
    while look < runs {
        look = look.saturating_mul(2);
        stage += 1;
    }
    stage
}

/// Whether the sweep looks (and may stop by precision) at `runs` runs.
pub fn is_look(runs: u64) -> bool {
    runs >= FIRST_LOOK && runs.is_multiple_of(FIRST_LOOK) && (runs / FIRST_LOOK).is_power_of_two()
}

/// The part of `alpha` that an interval after `runs` runs may use.
pub fn alpha_at(runs: u64, alpha: f64) -> f64 {
    let stage = f64::from(stage(runs));
    alpha / (stage * (stage + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_double_and_stages_follow() {
        let looks: Vec<u64> = (0..300).filter(|runs| is_look(*runs)).collect();
        assert_eq!(looks, [20, 40, 80, 160]);
        let stages = [
            (1, 1),
            (20, 1),
            (21, 2),
            (40, 2),
            (41, 3),
            (160, 4),
            (u64::MAX, 61),
        ];
        for (runs, expected) in stages {
            assert_eq!(stage(runs), expected, "{runs}");
        }
    }

    #[test]
    fn the_parts_never_exceed_the_whole() {
        let spent: f64 = (0..50).map(|look| alpha_at(FIRST_LOOK << look, 0.05)).sum();
        assert!(spent < 0.05 && spent > 0.049, "{spent}");
    }
}
