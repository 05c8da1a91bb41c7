//! The event queue: a lane for each constant delay, and buckets for everything else.
//!
//! Packets that take the same time arrive in the order in which they were sent, so a first-in-first-out queue each is
//! enough for them, and for every timeout of constant length. All other events wait unsorted in a bucket of 2^24 ns
//! (17 ms), which is sorted when its time comes; a small heap takes what is still added to it then. Ties are broken by
//! the order of scheduling: the order of events is total.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use ipvs_model::time::{Instant, Span};

/// A delay line: everything on it arrives the same time after it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    delay: Span,
    /// Its place among the queues; [`NO_LINE`] if there are too many and its events wait in buckets.
    line: usize,
}

impl Lane {
    /// The time that everything on it takes.
    pub const fn delay(self) -> Span {
        self.delay
    }
}

/// The order of scheduling of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// That of no event.
    pub const NONE: Self = Self(0);
}

const NO_LINE: usize = usize::MAX;
/// More lanes than this are not worth a look at each event.
const LINES_MAX: usize = 12;

/// When, and in which order of scheduling: one number, which is compared at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u128);

/// After every event.
const NEVER: Key = Key::new(Instant::NEVER, u64::MAX);

impl Key {
    const fn new(when: Instant, turn: u64) -> Self {
        Self((when.0 as u128) << 64 | turn as u128)
    }

    const fn when(self) -> Instant {
        Instant((self.0 >> 64) as u64)
    }
}

/// A key and the slot of the event.
type Pending = (Key, u32);

/// The width of a bucket: 2 to this power, in nanoseconds.
const BUCKET_SHIFT: u32 = 24;
/// Buckets of the ring: 69 s. What is further ahead waits in a tree.
const RING: u64 = 4096;

struct DelayLine<E> {
    delay: Span,
    waiting: VecDeque<(Key, E)>,
}

/// Events in the order of time, then of scheduling.
pub struct Queue<E> {
    sequence: u64,
    lines: Vec<DelayLine<E>>,
    /// The key of the first event of each line, [`NEVER`] for an empty one.
    fronts: Vec<Key>,
    /// The earliest of them, and its line.
    best: (Key, usize),
    /// The event that comes before all others, if it was sent as such, with its line, which is empty or later: most packets
    /// are alone on their way.
    alone: Option<(Key, usize, E)>,
    /// The key of the event of a series that its caller holds, [`NEVER`] if none is held.
    held: Key,
    /// Buckets up to this one are in `near` and `late`.
    bucket: u64,
    /// What is left of the bucket, the last event first.
    near: Vec<Pending>,
    /// What was scheduled for the bucket after it had been sorted.
    late: BinaryHeap<Reverse<Pending>>,
    /// The next bucket that holds anything, `u64::MAX` if none does.
    next: u64,
    /// Buckets after `bucket`, by their number modulo [`RING`].
    ring: Vec<Vec<Pending>>,
    /// A bit for each bucket of the ring that is not empty.
    filled: Vec<u64>,
    beyond: BTreeMap<u64, Vec<Pending>>,
    spare: Vec<Vec<Pending>>,
    /// The events of everything but the lines.
    events: Vec<Option<E>>,
    free: Vec<u32>,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            sequence: 0,
            lines: Vec::new(),
            fronts: Vec::new(),
            best: (NEVER, 0),
            alone: None,
            held: NEVER,
            bucket: 0,
            near: Vec::new(),
            late: BinaryHeap::new(),
            next: u64::MAX,
            ring: (0..RING).map(|_| Vec::new()).collect(),
            filled: vec![0; RING as usize / 64],
            beyond: BTreeMap::new(),
            spare: Vec::new(),
            events: Vec::new(),
            free: Vec::new(),
        }
    }
}

enum Source {
    Near,
    Late,
    Line(usize),
}

impl<E> Queue<E> {
    /// The lane of a constant delay.
    pub fn lane(&mut self, delay: Span) -> Lane {
        let known = self.lines.iter().position(|line| line.delay == delay);
        let line = match known {
            Some(line) => line,
            None if self.lines.len() == LINES_MAX => NO_LINE,
            None => {
                let waiting = VecDeque::new();
                self.lines.push(DelayLine { delay, waiting });
                self.fronts.push(NEVER);
                self.lines.len() - 1
            }
        };
        Lane { delay, line }
    }

    /// A lane of its own for events that are scheduled by their moments, none of them before the one that was scheduled last.
    pub fn series(&mut self) -> Lane {
        self.lane(Span(u64::MAX - self.lines.len() as u64))
    }

    /// Schedules the next event of a series.
    #[inline]
    pub fn next(&mut self, series: Lane, when: Instant, event: E) {
        self.push(series, when, event);
    }

    /// The next event of a series takes its turn, and its caller holds it for as long as it handles the present one: if nothing
    /// comes before it, it needs no place here. It is given back by [`Queue::take_held`] or [`Queue::file_held`].
    #[inline]
    pub const fn hold(&mut self, when: Instant) {
        self.sequence += 1;
        self.held = Key::new(when, self.sequence);
    }

    /// The moment of the event that is held, if it is the next one of all and not after `until`.
    #[inline]
    pub fn take_held(&mut self, until: Instant) -> Option<Instant> {
        let when = self.held.when();
        let next = self.alone.is_none()
            && when <= until
            && when.0 >> BUCKET_SHIFT < self.next
            && self.held < self.first().0;
        next.then(|| {
            self.held = NEVER;
            when
        })
    }

    /// Files the event that is held, if any is, with the turn that it has.
    #[inline]
    pub fn file_held(&mut self, series: Lane, event: E) {
        let key = core::mem::replace(&mut self.held, NEVER);
        if key != NEVER {
            self.push_key(series, key, event);
        }
    }

    /// The moment at which an event that is sent down a lane now arrives, if nothing that is scheduled comes before it: its turn is
    /// taken, and it may happen at once. `now` must not go back between calls.
    #[inline]
    pub fn comes_next(&mut self, now: Instant, lane: Lane) -> Option<Instant> {
        let when = now + lane.delay;
        let next = self.alone.is_none()
            && lane.line < self.lines.len()
            && when.0 >> BUCKET_SHIFT < self.next
            && when < self.held.when()
            && when < self.first().0.when();
        next.then(|| {
            self.sequence += 1;
            when
        })
    }

    /// Sends an event down a lane. `now` must not go back between calls.
    #[inline]
    pub fn send(&mut self, now: Instant, lane: Lane, event: E) {
        if let Some(when) = self.comes_next(now, lane) {
            let key = Key::new(when, self.sequence);
            self.alone = Some((key, lane.line, event));
            return;
        }
        self.push(lane, now + lane.delay, event);
    }

    #[inline]
    fn push(&mut self, lane: Lane, when: Instant, event: E) {
        self.sequence += 1;
        self.push_key(lane, Key::new(when, self.sequence), event);
    }

    #[inline]
    fn push_key(&mut self, lane: Lane, key: Key, event: E) {
        if lane.line >= self.lines.len() {
            return self.at_key(key, event);
        }
        self.makes_way(key);
        let line = &mut self.lines[lane.line];
        if line.waiting.is_empty() {
            self.fronts[lane.line] = key;
            if key < self.best.0 {
                self.best = (key, lane.line);
            }
        }
        line.waiting.push_back((key, event));
    }

    /// What is to be scheduled may come before the event that was the first of all.
    #[inline]
    fn makes_way(&mut self, key: Key) {
        if let Some((alone, line, event)) = self.alone.take_if(|(alone, ..)| key < *alone) {
            self.lines[line].waiting.push_front((alone, event));
            self.fronts[line] = alone;
            if alone < self.best.0 {
                self.best = (alone, line);
            }
        }
    }

    /// A turn for an event that is scheduled later, and that comes before all that are scheduled from now on for its moment.
    #[inline]
    pub const fn turn(&mut self) -> Turn {
        self.sequence += 1;
        Turn(self.sequence)
    }

    /// Schedules an event at a moment.
    pub fn at(&mut self, when: Instant, event: E) {
        let turn = self.turn();
        self.at_turn(when, turn, event);
    }

    /// Schedules an event at a moment that is not over, with the turn that it had.
    pub fn at_turn(&mut self, when: Instant, turn: Turn, event: E) {
        self.at_key(Key::new(when, turn.0), event);
    }

    fn at_key(&mut self, key: Key, event: E) {
        self.makes_way(key);
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
        let bucket = key.when().0 >> BUCKET_SHIFT;
        if bucket <= self.bucket {
            self.late.push(Reverse((key, slot)));
            return;
        }
        let spare = &mut self.spare;
        let mut fresh = || spare.pop().unwrap_or_default();
        if bucket - self.bucket < RING {
            let place = (bucket % RING) as usize;
            let pending = &mut self.ring[place];
            if pending.is_empty() {
                self.filled[place / 64] |= 1 << (place % 64);
                *pending = fresh();
            }
            pending.push((key, slot));
        } else {
            let pending = self.beyond.entry(bucket).or_insert_with(fresh);
            pending.push((key, slot));
        }
        self.next = self.next.min(bucket);
    }

    /// Takes the next bucket up. `near` and `late` are empty.
    fn load(&mut self) {
        self.bucket = self.next;
        let place = (self.bucket % RING) as usize;
        if self.filled[place / 64] & (1 << (place % 64)) != 0 {
            self.filled[place / 64] &= !(1 << (place % 64));
            let pending = core::mem::take(&mut self.ring[place]);
            self.spare.push(core::mem::replace(&mut self.near, pending));
        }
        if let Some(mut pending) = self.beyond.remove(&self.bucket) {
            self.near.append(&mut pending);
            self.spare.push(pending);
        }
        self.near.sort_unstable_by(|a, b| b.cmp(a));
        let beyond = self.beyond.first_key_value();
        let beyond = beyond.map_or(u64::MAX, |(bucket, _)| *bucket);
        self.next = self.next_of_ring().min(beyond);
    }

    /// The first bucket of the ring after the current one that holds anything.
    fn next_of_ring(&self) -> u64 {
        let first = self.bucket + 1;
        let mut ahead = 0;
        while ahead < RING {
            let place = (first + ahead) % RING;
            let word = self.filled[(place / 64) as usize] >> (place % 64);
            if word != 0 {
                return first + ahead + u64::from(word.trailing_zeros());
            }
            ahead += 64 - place % 64;
        }
        u64::MAX
    }

    #[inline]
    fn first(&self) -> (Key, Source) {
        let mut best = (NEVER, Source::Near);
        if let Some((key, _)) = self.near.last() {
            best.0 = *key;
        }
        if let Some(Reverse((key, _))) = self.late.peek()
            && *key < best.0
        {
            best = (*key, Source::Late);
        }
        if self.best.0 < best.0 {
            best = (self.best.0, Source::Line(self.best.1));
        }
        best
    }

    /// Finds the earliest line anew.
    #[inline]
    fn find_best(&mut self) {
        self.best = (NEVER, 0);
        for (line, key) in self.fronts.iter().enumerate() {
            if *key < self.best.0 {
                self.best = (*key, line);
            }
        }
    }

    /// Takes the next event if it is not after `until`.
    #[inline]
    pub fn pop(&mut self, until: Instant) -> Option<(Instant, E)> {
        if let Some((key, ..)) = &self.alone {
            if key.when() > until {
                return None;
            }
            return self.alone.take().map(|(key, _, event)| (key.when(), event));
        }
        let (when, source) = loop {
            let (key, source) = self.first();
            let when = key.when();
            if when.0 >> BUCKET_SHIFT < self.next {
                break (when, source);
            }
            if self.next == u64::MAX {
                return None;
            }
            self.load();
        };
        if when > until {
            return None;
        }
        let slot = match source {
            Source::Line(index) => {
                let waiting = &mut self.lines[index].waiting;
                let (_, event) = waiting.pop_front()?;
                self.fronts[index] = waiting.front().map_or(NEVER, |(key, _)| *key);
                self.find_best();
                return Some((when, event));
            }
            Source::Near => self.near.pop()?.1,
            Source::Late => self.late.pop()?.0.1,
        };
        self.free.push(slot);
        let event = self.events[slot as usize].take();
        Some((when, event.expect("a scheduled slot holds its event")))
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        let lines = self.lines.iter().map(|line| line.waiting.len());
        lines.sum::<usize>() + usize::from(self.alone.is_some()) + self.events.len()
            - self.free.len()
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
        /// The queue gives events back in the order of a stable sort by time; one that is held is taken if it is the next of all.
        #[test]
        fn order_is_time_then_scheduling(delays in prop::collection::vec((0u64..50, 0usize..7), 1..200)) {
            let mut queue = Queue::default();
            let lanes = [queue.lane(Span(7)), queue.lane(Span(20))];
            let series = queue.series();
            let arrivals = [queue.series(), queue.series()];
            let mut expected = Vec::new();
            let mut now = Instant::ZERO;
            for (n, (delay, how)) in delays.into_iter().enumerate() {
                // Time only moves on, as it does in a run.
                now = now.max(Instant((n as u64 / 4) * 3_000_000));
                let when = match how {
                    0 => { queue.at(now + Span(delay), n); now + Span(delay) }
                    3 => { queue.at(now + Span(delay << 23), n); now + Span(delay << 23) }
                    4 => { queue.next(series, now + Span(40), n); now + Span(40) }
                    5 | 6 => {
                        let held = now + Span(if how == 5 { 10 } else { 4_000_000 });
                        // What is sent meanwhile comes before it, or after it.
                        queue.hold(held);
                        let sent = now + Span(7);
                        let at_once = queue.comes_next(now, lanes[0]);
                        prop_assert!(at_once.is_none_or(|at| at == sent && expected.iter().all(|(when, _)| *when > at)));
                        let next = expected.iter().all(|(when, _)| *when > held);
                        match queue.take_held(Instant::NEVER) {
                            Some(at) => {
                                prop_assert!(next && at == held);
                                now = held;
                                continue;
                            }
                            // It may be the next one, if that takes more than a look to tell.
                            None => { queue.file_held(arrivals[how - 5], n); held }
                        }
                    }
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
