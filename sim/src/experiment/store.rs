//! Results of a sweep on disk: they survive whatever ends the sweep.
//!
//! A store is a folder with two files. `manifest.json` says what is swept, and is there, complete, before anything else.
//! `runs.log` grows by one line a run, in the order of the sweep, and is flushed to the disk before the sweep goes on;
//! each line carries its length and a checksum ([`record`]). What a crash, a full disk or a power cut leaves of a line
//! is recognised and cut off when the sweep goes on. A run is a pure function of scenario and seed, so a lost line
//! costs its time and nothing else, and a sweep that was interrupted ends with the bytes of one that was not.
//!
//! One process writes to a store at a time; a lock on `runs.log` sees to that.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use super::ledger::{Done, Ledger};
use crate::outcome::RunSummary;
use crate::output;

pub mod manifest;
pub mod record;

pub use manifest::Manifest;

/// The file that says what is swept.
pub const MANIFEST: &str = "manifest.json";
/// The file of results.
pub const LOG: &str = "runs.log";

/// What a store cannot do.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The disk is full, or the like. What was kept before is still there.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The manifest is none.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Another process writes to it.
    #[error("{} is being written by another process; wait for it, or give this one another --dir", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
}

/// Where in `runs.log` a run stands.
type Places = BTreeMap<(usize, u64), (u64, u32)>;

/// What a look through `runs.log` found.
#[derive(Debug, Default)]
struct Found {
    places: Places,
    /// Bytes up to the end of the last whole line.
    whole: u64,
    /// Bytes after it: of a line that was not finished.
    torn: u64,
    /// Lines before it that are not what was written.
    damaged: u64,
}

/// The results of a store.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    log: File,
    found: Found,
    /// Bytes of whole lines; none when the store is only read.
    end: Option<Mutex<u64>>,
}

impl Store {
    /// Opens the store in `dir` for going on with it, or makes it. The manifest is written first. A line that was not
    /// finished is cut off.
    ///
    /// # Errors
    /// If the files cannot be written, or another process writes them.
    pub fn open(dir: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |reason| StoreError::Write { path, reason }
        };
        fs::create_dir_all(dir).map_err(write(dir))?;
        let path = dir.join(LOG);
        let mut log = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(write(&path))?;
        match log.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Busy {
                    path: dir.to_owned(),
                });
            }
            // A file system without locks: whoever starts two writers there is on their own.
            Err(TryLockError::Error(_)) => {}
        }
        manifest.write(dir)?;
        let found = look_through(&mut log).map_err(|reason| StoreError::Read {
            path: path.clone(),
            reason,
        })?;
        if found.torn > 0 {
            log.set_len(found.whole).map_err(write(&path))?;
        }
        log.sync_all().map_err(write(&path))?;
        sync_folder(dir).map_err(write(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            log,
            end: Some(Mutex::new(found.whole)),
            found,
        })
    }

    /// Opens the results in `dir` for reading only. A store that was made but has no results is empty.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(LOG);
        let fail = |reason| StoreError::Read {
            path: path.clone(),
            reason,
        };
        let mut log = File::open(&path).map_err(fail)?;
        let found = look_through(&mut log).map_err(fail)?;
        Ok(Self {
            dir: dir.to_owned(),
            log,
            found,
            end: None,
        })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many runs it had when it was opened, of all points together.
    pub fn len(&self) -> usize {
        self.found.places.len()
    }

    /// Whether it had none.
    pub fn is_empty(&self) -> bool {
        self.found.places.is_empty()
    }

    /// Whether it had this run.
    pub fn has(&self, point: usize, run: u64) -> bool {
        self.found.places.contains_key(&(point, run))
    }

    /// The runs that it had when it was opened, as (point, run).
    pub fn runs(&self) -> impl Iterator<Item = (usize, u64)> {
        self.found.places.keys().copied()
    }

    /// What the look through the results found that was not whole, in words.
    pub fn remarks(&self) -> Vec<String> {
        let path = self.dir.join(LOG);
        let mut remarks = Vec::new();
        if self.found.torn > 0 {
            remarks.push(format!(
                "{}: the last line was not finished ({} bytes): it was being written when the sweep was stopped; its run \
                 is done again",
                path.display(),
                self.found.torn
            ));
        }
        if self.found.damaged > 0 {
            remarks.push(format!(
                "{}: {} lines in it are not what was written (is the disk in order?); their runs are done again",
                path.display(),
                self.found.damaged
            ));
        }
        remarks
    }

    /// The line of a run as it was written, for comparing two results of it.
    pub fn line(&self, point: usize, run: u64) -> Option<String> {
        let (at, length) = *self.found.places.get(&(point, run))?;
        let mut bytes = vec![0; length as usize];
        self.log.read_exact_at(&mut bytes, at).ok()?;
        String::from_utf8(bytes).ok()
    }
}

impl Ledger for Store {
    fn known(&self, point: usize, run: u64) -> Option<RunSummary> {
        record::decode(&self.line(point, run)?).map(|record| record.summary)
    }

    fn keep(&self, done: &mut dyn Iterator<Item = &Done>) -> Result<(), StoreError> {
        let mut lines = String::new();
        for done in done.filter(|done| done.fresh) {
            record::encode(&mut lines, done.point, done.run, &done.summary);
        }
        let Some(end) = self.end.as_ref().filter(|_| !lines.is_empty()) else {
            return Ok(());
        };
        let mut end = end.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = (&self.log)
            .write_all(lines.as_bytes())
            .and_then(|()| self.log.sync_data());
        match kept {
            Ok(()) => {
                *end += lines.len() as u64;
                Ok(())
            }
            Err(reason) => {
                // What was written in part would be recognised anyway.
                let _ = self.log.set_len(*end);
                let path = self.dir.join(LOG);
                Err(StoreError::Write { path, reason })
            }
        }
    }
}

fn look_through(log: &mut File) -> io::Result<Found> {
    log.seek(SeekFrom::Start(0))?;
    let mut found = Found::default();
    let mut reader = BufReader::with_capacity(1 << 16, log);
    let (mut line, mut at, mut bad) = (Vec::new(), 0_u64, 0_u64);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        let key = std::str::from_utf8(&line).ok().and_then(record::check);
        if let (Some(key), Ok(length)) = (key, u32::try_from(length)) {
            found.places.insert(key, (at, length));
            found.whole = at + u64::from(length);
            // Lines that are not whole but have whole ones after them were damaged later.
            found.damaged += std::mem::take(&mut bad);
        } else {
            bad += 1;
        }
        at += length as u64;
    }
    found.torn = at - found.whole;
    Ok(found)
}

/// Makes the names in a folder durable.
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file of a store: complete or not at all, and durable.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fail = |reason| StoreError::Write {
        path: path.to_owned(),
        reason,
    };
    output::write(Some(path), bytes).map_err(|error| match error {
        output::OutputError::Unwritable { reason, .. } => fail(reason),
        output::OutputError::BrokenPipe => fail(io::ErrorKind::BrokenPipe.into()),
    })?;
    let dir = path.parent().unwrap_or(Path::new("."));
    sync_folder(dir).map_err(fail)
}

#[cfg(test)]
mod tests;
