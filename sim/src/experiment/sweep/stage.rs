//! The blocks between two looks, on all threads: computed in any order, kept and counted in theirs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Block, Done, Plan, Progress, State, SweepError, run_block};
use crate::experiment::Runner;
use crate::experiment::clock::Stopwatch;
use crate::experiment::grid::Point;
use crate::experiment::ledger::Ledger;

type Report = (usize, Result<Vec<Done>, SweepError>);

/// The runs from `first_row` to `goal` of the active points.
pub(super) struct Stage<'a> {
    pub runner: &'a dyn Runner,
    pub points: &'a [Point],
    pub active: &'a [usize],
    pub plan: &'a Plan,
    pub stopwatch: &'a dyn Stopwatch,
    pub ledger: &'a dyn Ledger,
    pub first_row: u64,
    pub goal: u64,
}

impl Stage<'_> {
    /// Blocks in the order in which they are handed out: all points of the first runs, then of the next.
    fn block(&self, index: usize) -> Option<Block> {
        let block_runs = self.plan.block_runs.max(1);
        let stripe = (index / self.active.len()) as u64;
        let first_row = stripe
            .checked_mul(block_runs)?
            .checked_add(self.first_row)?;
        let rows = block_runs.min(self.goal.checked_sub(first_row)?);
        (rows > 0).then_some(Block {
            point: self.active[index % self.active.len()],
            first_row,
            rows,
        })
    }

    fn out_of_time(&self, block: &Block) -> bool {
        // Every point needs a run: a sweep without any result would be no answer. Another row of runs takes as long as
        // those before it did on average; one that would end late is not begun.
        let elapsed = self.stopwatch.elapsed();
        let row = elapsed / u32::try_from(block.first_row.max(1)).unwrap_or(u32::MAX);
        let spent = |budget| elapsed + row >= budget;
        block.first_row > 0 && self.plan.exact_runs.is_none() && self.plan.budget.is_some_and(spent)
    }

    /// Whether a block is not to be begun, nor any after it.
    fn ends_before(&self, block: &Block) -> bool {
        let unknown = |row| {
            let run = self.plan.share.run(row);
            self.ledger.known(block.point, run).is_none()
        };
        self.stopwatch.interrupted()
            || self.out_of_time(block)
            || self.plan.known_only && (block.first_row..block.first_row + block.rows).any(unknown)
    }

    pub(super) fn run(
        &self,
        pool: Option<&rayon::ThreadPool>,
        state: &mut State,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<(), SweepError> {
        let next = AtomicUsize::new(0);
        let mut counter = Counter::new(self, &next, state);
        let Some(pool) = pool else {
            return self.alone(&mut counter, progress);
        };
        let (sender, reports) = mpsc::channel();
        pool.in_place_scope(|scope| {
            for _ in 0..pool.current_num_threads() {
                let (next, sender) = (&next, sender.clone());
                scope.spawn(move |_| self.work(next, &sender));
            }
            drop(sender);
            let result = counter.collect(&reports, progress);
            // Whatever ended it, no thread begins another block.
            no_more(&next);
            result
        })
    }

    /// All work on this thread.
    fn alone(
        &self,
        counter: &mut Counter<'_>,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<(), SweepError> {
        for index in 0.. {
            let Some(block) = self.block(index).filter(|block| !self.ends_before(block)) else {
                break;
            };
            let point = &self.points[block.point];
            let done = run_block(self.runner, point, &block, self.plan, self.ledger)?;
            counter.take((index, Ok(done)));
            counter.count()?;
            counter.tell(progress);
        }
        Ok(())
    }

    /// A thread's work: the next block until there is none or no time. Handing blocks out in order means that
    /// at the end of time few blocks lie beyond the last complete row.
    fn work(&self, next: &AtomicUsize, sender: &mpsc::Sender<Report>) {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = self.block(index) else {
                return;
            };
            if self.ends_before(&block) {
                return;
            }
            let point = &self.points[block.point];
            let result = run_block(self.runner, point, &block, self.plan, self.ledger);
            if sender.send((index, result)).is_err() {
                return;
            }
        }
    }
}

fn no_more(next: &AtomicUsize) {
    next.store(usize::MAX / 2, Ordering::Relaxed);
}

/// Puts results back into their order, keeps them, and counts complete rows (the same runs of every active point).
struct Counter<'a> {
    stage: &'a Stage<'a>,
    next: &'a AtomicUsize,
    state: &'a mut State,
    /// Blocks that came before their turn.
    waiting: BTreeMap<usize, Vec<Done>>,
    /// The block whose turn it is.
    turn: usize,
    /// The blocks of the row that is not complete, in order.
    row: Vec<Vec<Done>>,
    received: u64,
    failure: Option<(usize, SweepError)>,
}

impl<'a> Counter<'a> {
    fn new(stage: &'a Stage<'a>, next: &'a AtomicUsize, state: &'a mut State) -> Self {
        Self {
            stage,
            next,
            state,
            waiting: BTreeMap::new(),
            turn: 0,
            row: Vec::with_capacity(stage.active.len()),
            received: 0,
            failure: None,
        }
    }

    fn collect(
        &mut self,
        reports: &mpsc::Receiver<Report>,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<(), SweepError> {
        // What has come meanwhile is kept together: one write, one wait for the disk.
        while let Ok(first) = reports.recv() {
            self.take(first);
            while let Ok(more) = reports.try_recv() {
                self.take(more);
            }
            self.count()?;
            self.tell(progress);
        }
        match self.failure.take() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn take(&mut self, (index, result): Report) {
        self.received += 1;
        match result {
            Ok(done) => {
                self.waiting.insert(index, done);
            }
            Err(error) => {
                // No new blocks. Those before this one are already being computed.
                no_more(self.next);
                if self
                    .failure
                    .as_ref()
                    .is_none_or(|(first, _)| index < *first)
                {
                    self.failure = Some((index, error));
                }
            }
        }
    }

    fn count(&mut self) -> Result<(), SweepError> {
        let mut ready = Vec::new();
        while let Some(done) = self.waiting.remove(&self.turn) {
            ready.push(done);
            self.turn += 1;
        }
        if !ready.is_empty() {
            self.stage.ledger.keep(&mut ready.iter().flatten())?;
        }
        for done in ready {
            let rows = done.len() as u64;
            self.row.push(done);
            if self.row.len() < self.stage.active.len() {
                continue;
            }
            for done in self.row.drain(..).flatten() {
                self.state.count(&done);
            }
            self.state.rows += rows;
        }
        Ok(())
    }

    fn tell(&self, progress: &mut dyn FnMut(&Progress<'_>)) {
        let stage = self.stage;
        let stripes = (stage.goal - stage.first_row).div_ceil(stage.plan.block_runs.max(1));
        progress(&Progress {
            runs: self.state.rows,
            goal: stage.goal,
            active: stage.active.len(),
            blocks: (self.received, stripes * stage.active.len() as u64),
            points: stage.points,
            tallies: &self.state.tallies,
            elapsed: stage.stopwatch.elapsed(),
        });
    }
}
