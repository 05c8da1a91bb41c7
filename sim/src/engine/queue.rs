//! The event queue: a lane for each constant delay, a small heap for what is near, and buckets for what is far.
//!
//! Packets that take the same time arrive in the order in which they were sent, so a queue each is enough for them.
//! Timers mostly lie seconds ahead: they wait unsorted in a bucket of 2^24 ns (17 ms) and enter the heap when its time
//! comes, so that the heap never holds more than the next bucket. Ties are broken by the order of scheduling: the order
//! of events is total.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use ipvs_model::time::{Instant, Span};

/// A delay line: everything on it arrives the same time after it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane(usize);

struct DelayLine<E> {
    delay: Span,
    waiting: VecDeque<(Instant, u64, E)>,
}

/// When, in which order of scheduling, and the slot of the event.
type Pending = (Instant, u64, u32);

/// The width of a bucket: 2 to this power, in nanoseconds.
const BUCKET_SHIFT: u32 = 24;

/// Events in the order of time, then of scheduling.
pub struct Queue<E> {
    sequence: u64,
    /// Buckets up to this one are in the heap.
    near: u64,
    heap: BinaryHeap<Reverse<Pending>>,
    far: BTreeMap<u64, Vec<Pending>>,
    spare: Vec<Vec<Pending>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    lanes: Vec<DelayLine<E>>,
}

enum Source {
    Heap,
    Lane(usize),
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            sequence: 0,
            near: 0,
            heap: BinaryHeap::new(),
            far: BTreeMap::new(),
            spare: Vec::new(),
            events: Vec::new(),
            free: Vec::new(),
            lanes: Vec::new(),
        }
    }
}

impl<E> Queue<E> {
    /// A new lane of a constant delay.
    pub fn lane(&mut self, delay: Span) -> Lane {
        self.lanes.push(DelayLine {
            delay,
            waiting: VecDeque::new(),
        });
        Lane(self.lanes.len() - 1)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Schedules an event at a moment.
    pub fn at(&mut self, when: Instant, event: E) {
        let sequence = self.next_sequence();
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot as usize] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                self.events.len() as u32 - 1
            }
        };
        let pending = (when, sequence, slot);
        let bucket = when.0 >> BUCKET_SHIFT;
        if bucket <= self.near {
            self.heap.push(Reverse(pending));
        } else {
            let spare = &mut self.spare;
            let fresh = || spare.pop().unwrap_or_default();
            self.far.entry(bucket).or_insert_with(fresh).push(pending);
        }
    }

    /// Sends an event down a lane. `now` must not go back between calls.
    pub fn send(&mut self, now: Instant, lane: Lane, event: E) {
        let sequence = self.next_sequence();
        let line = &mut self.lanes[lane.0];
        line.waiting.push_back((now + line.delay, sequence, event));
    }

    /// Moves the next bucket into the heap.
    fn load(&mut self) {
        if let Some((bucket, mut pending)) = self.far.pop_first() {
            self.near = bucket;
            self.heap.extend(pending.drain(..).map(Reverse));
            self.spare.push(pending);
        }
    }

    fn first(&self) -> Option<(Instant, u64, Source)> {
        let mut best = self
            .heap
            .peek()
            .map(|Reverse((when, sequence, _))| (*when, *sequence, Source::Heap));
        for (index, line) in self.lanes.iter().enumerate() {
            if let Some((when, sequence, _)) = line.waiting.front()
                && best
                    .as_ref()
                    .is_none_or(|(w, s, _)| (*when, *sequence) < (*w, *s))
            {
                best = Some((*when, *sequence, Source::Lane(index)));
            }
        }
        best
    }

    /// Takes the next event if it is not after `until`.
    pub fn pop(&mut self, until: Instant) -> Option<(Instant, E)> {
        let (when, source) = loop {
            let first = self.first();
            let start = self
                .far
                .first_key_value()
                .map(|(bucket, _)| bucket << BUCKET_SHIFT);
            match (first, start) {
                (Some((when, _, source)), start) if start.is_none_or(|start| when.0 < start) => {
                    break (when, source);
                }
                (None, None) => return None,
                _ => self.load(),
            }
        };
        if when > until {
            return None;
        }
        match source {
            Source::Lane(index) => {
                let (when, _, event) = self.lanes[index].waiting.pop_front()?;
                Some((when, event))
            }
            Source::Heap => {
                let Reverse((when, _, slot)) = self.heap.pop()?;
                self.free.push(slot);
                let event = self.events[slot as usize].take();
                Some((when, event.expect("a scheduled slot holds its event")))
            }
        }
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        let far = self.far.values().map(Vec::len).sum::<usize>();
        let lanes = self
            .lanes
            .iter()
            .map(|line| line.waiting.len())
            .sum::<usize>();
        self.heap.len() + far + lanes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The queue gives events back in the order of a stable sort by time.
        #[test]
        fn order_is_time_then_scheduling(delays in prop::collection::vec((0u64..50, 0usize..4), 1..200)) {
            let mut queue = Queue::default();
            let lanes = [queue.lane(Span(7)), queue.lane(Span(20))];
            let mut expected = Vec::new();
            for (n, (delay, how)) in delays.into_iter().enumerate() {
                // Time only moves on, as it does in a run.
                let now = Instant((n as u64 / 4) * 3_000_000);
                let when = match how {
                    0 => { queue.at(now + Span(delay), n); now + Span(delay) }
                    3 => { queue.at(now + Span(delay << 23), n); now + Span(delay << 23) }
                    1 => { queue.send(now, lanes[0], n); now + Span(7) }
                    _ => { queue.send(now, lanes[1], n); now + Span(20) }
                };
                expected.push((when, n));
            }
            expected.sort();
            let mut got = Vec::new();
            while let Some(item) = queue.pop(Instant::NEVER) {
                got.push(item);
            }
            prop_assert_eq!(got, expected);
            prop_assert!(queue.is_empty());
        }
    }
}
