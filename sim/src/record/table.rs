//! The two tables as files of `/proc`, streamed into a log.
//!
//! The kernel hands out at most a page at each read, whatever room there is, and finds its place again by counting
//! entries from the first: a long listing is slow, and where entries come or go between two reads it skips some or
//! shows them twice. So a listing that took several reads and time is marked as possibly lacking rows. Since its cost grows with
//! the square of the table's length, a listing is given up after a while: no node shall work for minutes to be watched.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use super::control::{Control, Ended};
use super::log::Log;
use super::{RecordError, clock};
use crate::capture::Stamp;
use crate::capture::blocks::INCOMPLETE;

/// Whether a line of a table is to be kept.
pub type Wanted<'a> = &'a dyn Fn(&[u8]) -> bool;

/// Room for a read. The kernel fills a page of it; a test's file fills it.
const ROOM: usize = 1 << 18;
/// In so short a time next to nothing comes or goes.
const AT_ONCE: Duration = Duration::from_millis(1);
/// After a signal a listing may take so long to come to its end.
const GRACE: Duration = Duration::from_secs(2);
/// A listing that takes longer is broken off.
const LISTING_MAX: Duration = Duration::from_secs(10);
/// Reads between two looks for a signal.
const READS_BETWEEN: u64 = 64;

/// What a listing was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listed {
    /// How long it took.
    pub took: Duration,
    /// Bytes that the kernel handed out.
    pub bytes: u64,
    /// Lines kept.
    pub rows: u64,
    /// Given up before its end.
    pub cut: bool,
}

/// Copies the lines of a table that `wanted` chooses, or all, as a block. `before` is told the block's time before
/// anything is read.
///
/// # Errors
/// If it cannot be read or written.
pub fn list(
    path: &Path,
    log: &mut Log<'_>,
    wanted: Option<Wanted<'_>>,
    control: &Control,
    before: impl FnOnce(Stamp),
) -> Result<Listed, RecordError> {
    let unreadable = |error| RecordError::read(path, error);
    let mut file = File::open(path).map_err(unreadable)?;
    let (at, start) = (clock::wall(), clock::monotonic());
    before(at);
    log.begin(at)?;
    let mut lines = LineFilter::new(wanted);
    let mut room = vec![0; ROOM];
    let (mut bytes, mut reads, mut told, mut cut) = (0, 0, None, false);
    loop {
        let read = match file.read(&mut room) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                // What was listed so far is true, but not all.
                log.write(format!("{INCOMPLETE}it could not be read on\n").as_bytes())?;
                log.end()?;
                return Err(unreadable(error));
            }
        };
        bytes += read as u64;
        reads += 1;
        lines.take(&room[..read], log)?;
        if log.is_full() {
            break;
        }
        if reads % READS_BETWEEN == 0 && clock::monotonic() > start + LISTING_MAX {
            cut = true;
            break;
        }
        if reads % READS_BETWEEN == 0 && control.ended().is_some_and(|why| why != Ended::Time) {
            let told = *told.get_or_insert_with(clock::monotonic);
            if clock::monotonic() > told + GRACE {
                break;
            }
        }
    }
    lines.finish(log)?;
    let took = clock::monotonic() - start;
    if cut {
        let secs = LISTING_MAX.as_secs();
        let why = format!(
            "{INCOMPLETE}given up after {secs} s: the table is too long for the kernel to list\n"
        );
        log.write(why.as_bytes())?;
    } else if told.is_some_and(|told| clock::monotonic() > told + GRACE) {
        log.write(format!("{INCOMPLETE}the recording was interrupted\n").as_bytes())?;
    } else if reads > 1 && took > AT_ONCE {
        let secs = took.as_secs_f64();
        let why =
            format!("{INCOMPLETE}{reads} reads in {secs:.3} s, entries may have moved between\n");
        log.write(why.as_bytes())?;
    }
    log.end()?;
    Ok(Listed {
        took,
        bytes,
        rows: lines.rows,
        cut,
    })
}

/// Passes on the lines that are wanted, whatever the pieces that they come in.
struct LineFilter<'w> {
    wanted: Option<Wanted<'w>>,
    /// A line whose end has not come yet.
    rest: Vec<u8>,
    rows: u64,
    ends_with_newline: bool,
}

impl<'w> LineFilter<'w> {
    const fn new(wanted: Option<Wanted<'w>>) -> Self {
        Self {
            wanted,
            rest: Vec::new(),
            rows: 0,
            ends_with_newline: true,
        }
    }

    fn take(&mut self, mut piece: &[u8], log: &mut Log<'_>) -> Result<(), RecordError> {
        let Some(wanted) = self.wanted else {
            self.rows += piece.iter().filter(|b| **b == b'\n').count() as u64;
            self.ends_with_newline = piece.last() == Some(&b'\n');
            return log.write(piece);
        };
        while let Some(end) = piece.iter().position(|b| *b == b'\n') {
            let (head, tail) = piece.split_at(end + 1);
            piece = tail;
            let line = if self.rest.is_empty() {
                head
            } else {
                self.rest.extend_from_slice(head);
                &self.rest
            };
            if wanted(&line[..line.len() - 1]) {
                self.rows += 1;
                log.write(line)?;
            }
            self.rest.clear();
        }
        self.rest.extend_from_slice(piece);
        // No line of the kernel's is so long: memory stays bounded whatever the file is.
        self.rest.truncate(ROOM);
        Ok(())
    }

    fn finish(&mut self, log: &mut Log<'_>) -> Result<(), RecordError> {
        if !self.ends_with_newline {
            log.write(b"\n")?;
        }
        if !self.rest.is_empty() && self.wanted.is_some_and(|wanted| wanted(&self.rest)) {
            self.rest.push(b'\n');
            self.rows += 1;
            log.write(&self.rest)?;
        }
        Ok(())
    }
}
