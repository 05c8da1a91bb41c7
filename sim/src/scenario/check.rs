//! Checks across fields: values that are good alone and impossible together.

use super::Scenario;
use super::field::Cx;

/// Reports every contradiction.
pub fn check(_scenario: &Scenario, _cx: &mut Cx) {}
