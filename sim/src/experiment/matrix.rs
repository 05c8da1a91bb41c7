//! Kernel x kube-proxy x mode: one small rollout on each, and what becomes of it.
//!
//! Leaves out: anything random. A cell is one run with one seed; the rollout is made so that the answers differ by halves of the
//! requests and not by some.

use ipvs_model::kernel::Kernel;
use ipvs_model::kernel::possible::NODE_DECISIVE;
use rayon::prelude::*;

use super::RunError;
use crate::scenario::{ProxyVersion, Scenario};

/// The rollout that is played.
pub const SCENARIO: &str = include_str!("../../../scenarios/matrix.toml");

/// Kernels of the matrix: both sides of each fix on each long-term branch, and what distributions ship.
pub const KERNELS: &[&str] = &[
    "3.10.0-1160.el7.x86_64",
    "4.9.320",
    "4.14.193",
    "4.14.256",
    "4.14.336",
    "4.15.0-213-generic",
    "4.18.0-305.el8.x86_64",
    "4.19.91-21.al7.x86_64",
    "4.19.139",
    "4.19.218",
    "4.19.325",
    "5.4.0-47-generic",
    "5.4.0-91-generic",
    "5.4.0-100-generic",
    "5.4.119-19-0009.11",
    "5.8.1",
    "5.10.0-9-amd64",
    "5.10.0-20-amd64",
    "5.10.134-16.al8.x86_64",
    "5.14.0-362.el9.x86_64",
    "5.15.5",
    "5.15.0-91-generic",
    "6.1.0-18-amd64",
    "6.12.117",
];

/// kube-proxy releases of the matrix: one for each set of rules that a rollout meets.
pub const PROXIES: &[&str] = &[
    "1.11.4", "1.12.4", "1.13.0", "1.14.10", "1.18.20", "1.19.16", "1.21.8", "1.22.17", "1.26.15",
    "1.30.14", "1.35.0",
];

/// Who decides conn_reuse_mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// kube-proxy, on a node that has booted with the kernel's own value.
    Proxy,
    /// An operator, over what kube-proxy set.
    Forced(u8),
}

/// What became of one rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Whether kube-proxy starts on this kernel.
    pub starts: bool,
    /// Requests made.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that connected late.
    pub late: u64,
    /// Whether a replaced pod is still a real server at the end.
    pub stuck: bool,
}

/// What a run leaves for a cell: requests, failed, late, and whether a real server of a replaced pod is left.
pub type Play<'a> = &'a (dyn Fn(&Scenario) -> Result<Cell, RunError> + Sync);

impl Cell {
    /// Shares below this many per cent are what any rollout may show (connections cut when a pod exits).
    const NOTABLE_PER_CENT: u64 = 1;

    /// The cell in words: "no problem", "1 s delays", "failures", "stuck real server", with the shares of all requests.
    pub fn words(&self) -> String {
        if !self.starts {
            return "kube-proxy does not start".to_owned();
        }
        let share = |part: u64| (100 * part + self.requests / 2) / self.requests.max(1);
        let mut words = Vec::new();
        if share(self.failed) >= Self::NOTABLE_PER_CENT {
            words.push(format!("failures {} %", share(self.failed)));
        }
        if share(self.late) >= Self::NOTABLE_PER_CENT {
            words.push(format!("1 s delays {} %", share(self.late)));
        }
        if self.stuck {
            words.push("stuck real server".to_owned());
        }
        if words.is_empty() {
            "no problem".to_owned()
        } else {
            words.join(", ")
        }
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Who decides the mode.
    pub mode: Mode,
    /// Its rows: kernels, each that a release may stand for.
    pub kernels: Vec<Kernel>,
    /// Its columns.
    pub proxies: Vec<ProxyVersion>,
    /// A row for each kernel, a cell for each kube-proxy.
    pub cells: Vec<Vec<Cell>>,
}

/// The kernels that these releases may stand for.
pub fn rows(kernels: &[Kernel]) -> Vec<Kernel> {
    let all = kernels.iter();
    all.flat_map(|kernel| kernel.possibilities(NODE_DECISIVE))
        .collect()
}

/// Plays the rollout on every kernel with every kube-proxy.
///
/// # Errors
/// The first run that is impossible.
pub fn matrix(
    base: &Scenario,
    mode: Mode,
    kernels: &[Kernel],
    proxies: &[ProxyVersion],
    play: Play<'_>,
) -> Result<Matrix, RunError> {
    let kernels = rows(kernels);
    let cell = |kernel: &Kernel, proxy: ProxyVersion| {
        let mut scenario = base.clone();
        scenario.node.kernel = kernel.clone();
        scenario.kube_proxy.version = proxy;
        if let Mode::Forced(mode) = mode {
            let key = "net.ipv4.vs.conn_reuse_mode".to_owned();
            scenario.node.sysctl.0.push((key, mode.to_string()));
        }
        play(&scenario)
    };
    let row = |kernel: &Kernel| {
        let cells = proxies.iter().map(|proxy| cell(kernel, *proxy));
        cells.collect::<Result<Vec<_>, _>>()
    };
    let cells = kernels.par_iter().map(row).collect::<Result<Vec<_>, _>>()?;
    Ok(Matrix {
        mode,
        proxies: proxies.to_vec(),
        cells,
        kernels,
    })
}

impl Matrix {
    /// The heading in words.
    pub fn title(&self) -> String {
        match self.mode {
            Mode::Proxy => "conn_reuse_mode as kube-proxy leaves it".to_owned(),
            Mode::Forced(mode) => {
                format!("conn_reuse_mode {mode}, set by an operator after kube-proxy's start")
            }
        }
    }

    /// Neighbouring columns that say the same in every row, as ranges.
    pub fn columns(&self) -> Vec<core::ops::RangeInclusive<usize>> {
        let same = |a: usize, b: usize| {
            self.cells
                .iter()
                .all(|row| row[a].words() == row[b].words())
        };
        let mut columns: Vec<core::ops::RangeInclusive<usize>> = Vec::new();
        for index in 0..self.proxies.len() {
            match columns.last_mut() {
                Some(last) if same(*last.start(), index) => *last = *last.start()..=index,
                _ => columns.push(index..=index),
            }
        }
        columns
    }

    /// What stands over a column.
    pub fn heading(&self, column: &core::ops::RangeInclusive<usize>) -> String {
        let (first, last) = (self.proxies[*column.start()], self.proxies[*column.end()]);
        if first == last {
            first.to_string()
        } else {
            format!("{first} to {last}")
        }
    }

    /// As a table in Markdown; columns that say the same are one.
    pub fn markdown(&self) -> String {
        let columns = self.columns();
        let mut out = format!("### {}\n\n| kernel | era |", self.title());
        for column in &columns {
            out.push_str(&format!(" {} |", self.heading(column)));
        }
        out.push_str(&format!("\n|---|---|{}\n", "---|".repeat(columns.len())));
        for (kernel, cells) in self.kernels.iter().zip(&self.cells) {
            out.push_str(&format!(
                "| {kernel} | {} |",
                kernel.behaviours().reuse_era()
            ));
            for column in &columns {
                out.push_str(&format!(" {} |", cells[*column.start()].words()));
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_in_words() {
        let cell = |failed, late, stuck| {
            let cell = Cell {
                starts: true,
                requests: 1_000,
                failed,
                late,
                stuck,
            };
            cell.words()
        };
        assert_eq!(cell(0, 0, false), "no problem");
        assert_eq!(cell(4, 4, false), "no problem");
        assert_eq!(cell(600, 0, true), "failures 60 %, stuck real server");
        assert_eq!(cell(0, 950, false), "1 s delays 95 %");
        assert_eq!(Cell::default().words(), "kube-proxy does not start");
    }

    #[test]
    fn a_release_that_leaves_fixes_open_takes_a_row_for_each() {
        let kernels = ["4.19.57", "5.4.x"].map(|release| release.parse().unwrap());
        let rows = rows(&kernels)
            .iter()
            .map(Kernel::to_string)
            .collect::<Vec<_>>();
        assert_eq!(
            rows,
            [
                "4.19.57",
                "5.4.x as 5.4.58",
                "5.4.x as 5.4.59",
                "5.4.x as 5.4.163"
            ]
        );
    }
}
