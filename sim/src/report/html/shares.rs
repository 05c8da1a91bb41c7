//! The axis of shares that bars of all kinds of results stand on: 700 units are all.

use super::percent;
use crate::svg::{Anchor, Svg};

/// Where a share stands.
pub(super) fn place(share: f64) -> f64 {
    share.clamp(0.0, 1.0) * 700.0
}

/// The grid and its words, from nothing to all, whose lines end at `bottom`.
pub(super) fn axis(svg: &mut Svg, bottom: f64) {
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let x = place(share);
        svg.line((x, 0.0), (x, bottom), "grid");
        let anchor = if tick == 0 {
            Anchor::Start
        } else {
            Anchor::Middle
        };
        svg.text(x, bottom + 15.0, anchor, "dim small", &percent(share));
    }
}
