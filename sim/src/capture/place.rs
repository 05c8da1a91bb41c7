//! Where something was read, when it happened, what was wrong with it, and what was left aside.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipvs_model::time::{Instant, NANOS_PER_SEC, Span};

/// A moment as the node's clock showed it: nanoseconds since 1970-01-01 UTC.
///
/// Logs with a `date` line give wall time; there the zone is taken as UTC, since only differences count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// From whole seconds and microseconds. `None` past the year 2554.
    pub fn from_micros(secs: u64, micros: u64) -> Option<Self> {
        let nanos = secs.checked_mul(NANOS_PER_SEC)?;
        Some(Self(nanos.checked_add(micros.checked_mul(1_000)?)?))
    }

    /// The time since `earlier`, or zero if that is later.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }

    /// This moment on a time line that begins at `origin`.
    pub const fn after(self, origin: Self) -> Instant {
        Instant(self.0.saturating_sub(origin.0))
    }

    /// Reads `SECONDS`, `SECONDS.MICROS` or a fraction of up to nine digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if secs.is_empty() || !digits(secs) || !digits(fraction) || fraction.len() > 9 {
            return None;
        }
        let mut nanos = 0_u64;
        for place in 0..9 {
            let digit = fraction.as_bytes().get(place).map_or(0, |b| b - b'0');
            nanos = nanos * 10 + u64::from(digit);
        }
        let secs = secs.parse::<u64>().ok()?.checked_mul(NANOS_PER_SEC)?;
        Some(Self(secs.checked_add(nanos)?))
    }
}

/// `SECONDS.MICROS`, as in the header of a block.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, micros) = (self.0 / NANOS_PER_SEC, self.0 % NANOS_PER_SEC / 1_000);
        write!(f, "{secs}.{micros:06}")
    }
}

/// A place in a file: a line of text or a packet, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line of a text file.
    Line(u64),
    /// A packet of a packet file, counted as Wireshark does.
    Packet(u64),
}

/// Why a capture cannot be read: file, place, reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// The file as it was named.
    pub file: Arc<str>,
    /// Where in it.
    pub place: Place,
    /// What is wrong and what to do.
    pub reason: String,
}

impl ReadError {
    /// An error about a place in a file.
    pub fn new(file: &Arc<str>, place: Place, reason: impl Into<String>) -> Self {
        Self {
            file: file.clone(),
            place,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::File => write!(f, "{}: {}", self.file, self.reason),
            Place::Line(line) => write!(f, "{}:{line}: {}", self.file, self.reason),
            Place::Packet(number) => write!(f, "{}: packet {number}: {}", self.file, self.reason),
        }
    }
}

impl std::error::Error for ReadError {}

/// What was read past: how often, why, and where it was first met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    tally: BTreeMap<(Arc<str>, &'static str), (u64, Place)>,
}

/// One row of the tally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedRow {
    /// The file.
    pub file: Arc<str>,
    /// Why the content was left aside.
    pub why: &'static str,
    /// How many lines or packets.
    pub count: u64,
    /// The first of them.
    pub first: Place,
}

impl Skipped {
    /// Counts one line or packet.
    pub fn count(&mut self, file: &Arc<str>, why: &'static str, place: Place) {
        match self.tally.get_mut(&(file.clone(), why)) {
            Some((count, _)) => *count += 1,
            None => {
                self.tally.insert((file.clone(), why), (1, place));
            }
        }
    }

    /// The rows by file and reason.
    pub fn rows(&self) -> impl Iterator<Item = SkippedRow> + '_ {
        self.tally
            .iter()
            .map(|((file, why), &(count, first))| SkippedRow {
                file: file.clone(),
                why,
                count,
                first,
            })
    }

    /// How often something was left aside for this reason, in any file.
    pub fn of(&self, why: &str) -> u64 {
        self.rows()
            .filter(|row| row.why == why)
            .map(|row| row.count)
            .sum()
    }

    /// Nothing was left aside.
    pub fn is_empty(&self) -> bool {
        self.tally.is_empty()
    }

    /// Takes over another tally.
    pub fn absorb(&mut self, other: &Self) {
        for (key, &(count, first)) in &other.tally {
            let row = self.tally.entry(key.clone()).or_insert((0, first));
            row.0 += count;
        }
    }
}

/// What one line of a known kind of text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A row.
    Item(T),
    /// A heading or a separator: nothing to read.
    Heading,
    /// Understood, and none of the model's business: IPv6, another protocol, ...
    Foreign(&'static str),
    /// Not understood: what it is missing.
    Unknown(&'static str),
}

impl<T> Parsed<T> {
    /// The same line with its row converted.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Parsed<U> {
        match self {
            Self::Item(item) => Parsed::Item(convert(item)),
            Self::Heading => Parsed::Heading,
            Self::Foreign(why) => Parsed::Foreign(why),
            Self::Unknown(why) => Parsed::Unknown(why),
        }
    }

    /// The row, if it is one.
    pub fn item(self) -> Option<T> {
        match self {
            Self::Item(item) => Some(item),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_read_back_what_they_print() {
        let stamp = Stamp::parse("1700000000.012863").unwrap();
        assert_eq!(stamp, Stamp(1_700_000_000_012_863_000));
        assert_eq!(stamp.to_string(), "1700000000.012863");
        assert_eq!(Stamp::parse("17"), Some(Stamp(17 * NANOS_PER_SEC)));
        assert_eq!(Stamp::parse("1.123456789"), Some(Stamp(1_123_456_789)));
        for bad in [
            "",
            ".5",
            "1.2.3",
            "-1",
            "1,5",
            "99999999999999999999",
            "18446744074.9",
        ] {
            assert_eq!(Stamp::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_tally_keeps_count_and_first_place() {
        let file = Arc::from("x.log");
        let mut skipped = Skipped::default();
        skipped.count(&file, "IPv6", Place::Line(3));
        skipped.count(&file, "IPv6", Place::Line(9));
        let mut sum = Skipped::default();
        sum.absorb(&skipped);
        sum.absorb(&skipped);
        assert_eq!(sum.of("IPv6"), 4);
        assert_eq!(sum.rows().next().unwrap().first, Place::Line(3));
    }

    #[test]
    fn errors_say_file_place_and_reason() {
        let file = Arc::from("packets.pcap");
        let error = ReadError::new(&file, Place::Packet(7), "cut short");
        assert_eq!(error.to_string(), "packets.pcap: packet 7: cut short");
    }
}
