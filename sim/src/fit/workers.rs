//! Whether a client calls in a closed loop: so many workers, each of which opens its next connection when its last one
//! has ended, or a fixed time after.
//!
//! In such a loop the n-th beginning follows the end that stands as many places before it as there are workers without a
//! connection when the recording begins, always by the same time. In an open loop nothing ties beginnings to ends.

use ipvs_model::time::Span;

use super::conns::{Conn, Flows};
use super::estimate::Quantiles;

/// Fewer beginnings give no word.
const STARTS_MIN: usize = 50;
/// Workers that pause at one moment, at most.
const PAUSING_MAX: usize = 4_096;
/// The part of connections whose end may be missing: those of clients that gave up show none.
const ENDLESS_MAX: usize = 50;
/// Four distances of beginnings out of five within a twentieth of their median tell nothing: an open loop has them, too.
const ALIKE: u64 = 20;
/// Pauses vary at most by this part of what the distances of beginnings vary by.
const TIED: f64 = 0.1;

/// A closed loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loop {
    /// Workers.
    pub workers: u32,
    /// From an end to the beginning that follows from it.
    pub pause: Quantiles,
}

/// The loop of a client's connections; `None` if there is none, or none can be told from these.
pub fn closed_loop(conns: &[&Conn], flows: &Flows) -> Option<Loop> {
    if !flows.exact {
        return None;
    }
    let mut starts = Vec::new();
    let mut ends = Vec::new();
    let (mut open_before, mut endless) = (0_usize, 0_usize);
    for conn in conns {
        if conn.began {
            starts.push(conn.start.0);
        } else {
            open_before += 1;
        }
        match conn.let_go {
            Some(at) => ends.push(at.0),
            None => endless += 1,
        }
    }
    starts.sort_unstable();
    ends.sort_unstable();
    // Those that are still open at the end of the recording are the last ones of the workers.
    let open_after = open_after(conns);
    if starts.len() < STARTS_MIN || (endless - open_after.min(endless)) * ENDLESS_MAX > conns.len()
    {
        return None;
    }
    let mut distances = starts
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect::<Vec<_>>();
    distances.sort_unstable();
    if even(&distances) {
        return None;
    }
    let spread = deviation(&distances);
    let pausing = pausing(&starts, &ends)?;
    let pauses = starts
        .iter()
        .skip(pausing)
        .zip(&ends)
        .map(|(start, end)| Span(start.saturating_sub(*end)))
        .collect::<Vec<_>>();
    if pauses.len() < STARTS_MIN {
        return None;
    }
    let pause = Quantiles::of(pauses)?;
    let varies = (pause.high.0 - pause.low.0) as f64;
    let workers = u32::try_from(pausing + open_before).ok()?;
    (varies <= TIED * spread && workers > 0).then_some(Loop { workers, pause })
}

/// Connections without an end that began after all but a few ends: they last longer than the recording.
fn open_after(conns: &[&Conn]) -> usize {
    let longest = conns
        .iter()
        .filter_map(|conn| Some(conn.let_go?.since(conn.start)))
        .max()
        .unwrap_or(Span::ZERO);
    let last = conns.iter().map(|conn| conn.start).max();
    let still = |conn: &&&Conn| {
        conn.let_go.is_none() && last.is_some_and(|last| last.since(conn.start) <= longest)
    };
    conns.iter().filter(still).count()
}

/// The fewest beginnings that must come before the first that follows from an end, so that none comes before its end.
fn pausing(starts: &[u64], ends: &[u64]) -> Option<usize> {
    // The n-th end must have as many beginnings before it as stand before what follows from it.
    let mut most = 0;
    let mut before = 0;
    for (n, end) in ends.iter().enumerate() {
        while starts.get(before).is_some_and(|start| start < end) {
            before += 1;
        }
        if before >= starts.len() {
            break;
        }
        most = most.max(before.saturating_sub(n));
    }
    (most <= PAUSING_MAX).then_some(most)
}

/// Whether distances, in order, are nearly all the same.
fn even(distances: &[u64]) -> bool {
    let median = distances[distances.len() / 2];
    let near = median / ALIKE;
    let alike = distances
        .iter()
        .filter(|distance| distance.abs_diff(median) <= near);
    median > 0 && alike.count() * 5 >= distances.len() * 4
}

/// The standard deviation.
fn deviation(values: &[u64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<u64>() as f64 / n;
    let square = |value: &u64| (*value as f64 - mean) * (*value as f64 - mean);
    libm::sqrt(values.iter().map(square).sum::<f64>() / n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Stamp;
    use ipvs_model::segment::Endpoint;
    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt as _, SeedableRng as _};

    const MS: u64 = 1_000_000;

    fn flows(times: &[(u64, u64)]) -> Flows {
        let client: Endpoint = "10.0.0.1:40000".parse().unwrap();
        let conns = times.iter().map(|(start, end)| {
            let mut conn = Conn::new(client, Stamp(*start));
            conn.began = true;
            conn.let_go = Some(Stamp(*end));
            conn
        });
        let mut conns = conns.collect::<Vec<_>>();
        conns.sort_by_key(|conn| conn.start);
        Flows {
            conns,
            exact: true,
            complete: true,
            from: Stamp(0),
            to: Stamp(u64::MAX),
        }
    }

    fn found(times: &[(u64, u64)]) -> Option<Loop> {
        let flows = flows(times);
        closed_loop(&flows.conns.iter().collect::<Vec<_>>(), &flows)
    }

    /// Workers that take from `low` to `high` ms and then pause.
    fn looped(workers: u64, (low, high): (u64, u64), pause: u64) -> Vec<(u64, u64)> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut times = Vec::new();
        for worker in 0..workers {
            let mut at = 1_000 * MS + worker;
            for _ in 0..200 {
                let end = at + random.random_range(low * MS..=high * MS);
                times.push((at, end));
                at = end + pause;
            }
        }
        times
    }

    #[test]
    fn workers_and_their_pause_are_counted() {
        for workers in [1, 7, 40] {
            let loop_ = found(&looped(workers, (2, 30), 0)).unwrap();
            assert_eq!(
                (u64::from(loop_.workers), loop_.pause.median),
                (workers, Span::ZERO)
            );
            let loop_ = found(&looped(workers, (2, 30), 50 * MS)).unwrap();
            assert_eq!(
                (u64::from(loop_.workers), loop_.pause.median),
                (workers, Span::from_millis(50))
            );
        }
    }

    #[test]
    fn open_loops_are_none() {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let mut even = Vec::new();
        let mut poisson = Vec::new();
        let mut at = 1_000 * MS;
        for n in 0..2_000_u64 {
            let lasts = random.random_range(2 * MS..30 * MS);
            even.push((1_000 * MS + n * 5 * MS, 1_000 * MS + n * 5 * MS + lasts));
            at += (-libm::log(1.0 - random.random::<f64>()) * 5e6) as u64;
            poisson.push((at, at + lasts));
        }
        assert_eq!(found(&even), None);
        assert_eq!(found(&poisson), None);
        // All of one length: what begins tells nothing of what ended.
        let alike = poisson.iter().map(|(start, _)| (*start, start + 8 * MS));
        assert_eq!(found(&alike.collect::<Vec<_>>()), None);
    }
}
