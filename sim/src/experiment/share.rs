//! Which runs of a sweep belong to which shard.
//!
//! Run r belongs to shard r mod n, so the union over any n is the same set of runs, and a shard that is stopped early
//! leaves a fair sample behind. The seeds do not know of shards (see [`super::seeds`]).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The most shards of one sweep: what a Kubernetes Indexed Job allows.
pub const SHARDS_MAX: u64 = 100_000;

/// One of `of` shards. Written from 1, as `3/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    index: u64,
    of: u64,
}

impl Share {
    /// All runs.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Shard `index`, counted from 0, of `of`.
    ///
    /// # Errors
    /// Unless `index < of <= SHARDS_MAX`.
    pub const fn new(index: u64, of: u64) -> Result<Self, ShareError> {
        if of > SHARDS_MAX {
            return Err(ShareError::TooMany { of });
        }
        if index >= of {
            return Err(ShareError::Beyond { index, of });
        }
        Ok(Self { index, of })
    }

    /// Its place, from 0.
    pub const fn index(self) -> u64 {
        self.index
    }

    /// How many shards there are.
    pub const fn of(self) -> u64 {
        self.of
    }

    /// Whether it has all runs.
    pub const fn is_whole(self) -> bool {
        self.of == 1
    }

    /// The number in the whole sweep of this shard's run number `row`, from 0.
    pub const fn run(self, row: u64) -> u64 {
        row.saturating_mul(self.of).saturating_add(self.index)
    }

    /// How many of the first `runs` runs are this shard's.
    pub const fn rows(self, runs: u64) -> u64 {
        runs.saturating_sub(self.index).div_ceil(self.of)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let unreadable = || ShareError::Unreadable {
            text: text.to_owned(),
        };
        let (index, of) = text.split_once('/').ok_or_else(unreadable)?;
        let number = |part: &str| part.trim().parse::<u64>().map_err(|_| unreadable());
        let (index, of) = (number(index)?, number(of)?);
        let index = index.checked_sub(1).ok_or_else(unreadable)?;
        Self::new(index, of)
    }
}

/// A shard that there is not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ShareError {
    /// Not `m/n`.
    #[error("`{text}` is no shard; write m/n, the first being 1/n, such as --shard 3/64")]
    Unreadable {
        /// What was given.
        text: String,
    },
    /// More than there are.
    #[error("there is no shard {} of {of}; the last one is {of}/{of}", index + 1)]
    Beyond {
        /// From 0.
        index: u64,
        /// How many there are.
        of: u64,
    },
    /// Too many.
    #[error("{of} shards are too many; at most {SHARDS_MAX}")]
    TooMany {
        /// How many were asked for.
        of: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shards_of_any_number_are_the_whole() {
        for of in [1, 2, 7, 64] {
            for runs in [0, 1, 6, 7, 63, 64, 65, 200] {
                let mut seen = vec![0; runs as usize];
                for index in 0..of {
                    let share = Share::new(index, of).unwrap();
                    for row in 0..share.rows(runs) {
                        seen[share.run(row) as usize] += 1;
                    }
                    assert!(share.run(share.rows(runs)) >= runs);
                }
                assert!(seen.iter().all(|count| *count == 1), "{of} {runs}");
            }
        }
    }

    #[test]
    fn shards_are_written_from_one() {
        let share: Share = "3/64".parse().unwrap();
        assert_eq!((share.index(), share.of()), (2, 64));
        assert_eq!(share.to_string(), "3/64");
        for wrong in ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/100001", ""] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
