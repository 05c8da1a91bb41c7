//! What the clients saw.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use ipvs_sim::outcome::Outcome;

use super::SECOND;

/// What started in one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    ok: u32,
    fail: u32,
    no_port: u32,
    slow: u32,
}

/// The counts of a run.
#[derive(Debug, Default)]
pub struct Counts {
    /// The start of the load on the kernel's clock.
    pub start: i64,
    seconds: BTreeMap<i64, Second>,
    failures: Vec<(i64, u16, Outcome)>,
}

impl Counts {
    /// A request that began then has ended so; `late` if its connect took over half a second.
    pub fn ended(&mut self, began: i64, port: u16, outcome: Outcome, late: bool) {
        let since = began - self.start;
        let second = self.seconds.entry(since / SECOND).or_default();
        match outcome {
            Outcome::Answered => {
                second.ok += 1;
                second.slow += u32::from(late);
            }
            Outcome::PortsExhausted => second.no_port += 1,
            _ => {
                second.fail += 1;
                self.failures.push((since, port, outcome));
            }
        }
    }

    /// Failures, seconds, total.
    pub fn report(&self, text: &mut String) -> Result<()> {
        for (start, port, outcome) in &self.failures {
            let start = *start as f64 / SECOND as f64;
            writeln!(text, "F {start:.4} {port} {}", outcome.key())?;
        }
        let mut total = Second::default();
        for (second, counts) in &self.seconds {
            let Second {
                ok,
                fail,
                no_port,
                slow,
            } = counts;
            writeln!(
                text,
                "S {second} ok {ok} fail {fail} eaddr {no_port} slow {slow}"
            )?;
            total.ok += ok;
            total.fail += fail;
            total.no_port += no_port;
            total.slow += slow;
        }
        let Second {
            ok,
            fail,
            no_port,
            slow,
        } = total;
        writeln!(
            text,
            "TOTAL ok {ok} fail {fail} eaddrnotavail {no_port} slow {slow}"
        )?;
        Ok(())
    }
}
