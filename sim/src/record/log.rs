//! A file of a recording that grows by whole blocks. What is on disk is readable at any moment: if the process dies
//! in a block, only that block is lost.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::RecordError;
use super::control::Control;
use crate::capture::Stamp;

/// Bytes gathered before a write.
const GATHERED: usize = 1 << 18;

/// A file that grows by blocks.
#[derive(Debug)]
pub struct Log<'c> {
    path: PathBuf,
    file: File,
    control: &'c Control,
    gathered: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    /// Where the block being written begins.
    start: u64,
    /// Room was refused: what comes is dropped with its block.
    full: bool,
}

impl<'c> Log<'c> {
    /// Makes the file anew.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(dir: &Path, name: &str, control: &'c Control) -> Result<Self, RecordError> {
        let path = dir.join(name);
        let file = File::create(&path).map_err(|error| RecordError::write(&path, error))?;
        Ok(Self {
            path,
            file,
            control,
            gathered: Vec::with_capacity(GATHERED + (1 << 16)),
            written: 0,
            start: 0,
            full: false,
        })
    }

    /// Begins a block.
    ///
    /// # Errors
    /// If the medium is full or gone.
    pub fn begin(&mut self, at: Stamp) -> Result<(), RecordError> {
        self.start = self.written + self.gathered.len() as u64;
        self.write(format!("@ {at}\n").as_bytes())
    }

    /// Adds to the block; false if the recording has reached its size: then the block is to be ended.
    ///
    /// # Errors
    /// If the medium is full or gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        self.full |= !self.control.take(bytes.len());
        if self.full {
            return Ok(());
        }
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHERED {
            self.flush()?;
        }
        Ok(())
    }

    /// Marks that what comes is whole by itself: a packet, say.
    pub const fn begin_record(&mut self) {
        self.start = self.written + self.gathered.len() as u64;
    }

    /// Whether room was refused since the block began.
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// Ends the block: it is on disk, or, if it did not fit, gone.
    ///
    /// # Errors
    /// If the medium is full or gone. Then the file ends with the block before.
    pub fn end(&mut self) -> Result<(), RecordError> {
        if self.full {
            return self
                .drop_block()
                .map_err(|error| RecordError::write(&self.path, error));
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), RecordError> {
        if let Err(error) = self.file.write_all(&self.gathered) {
            // The first failure is the one to tell.
            let _ = self.drop_block();
            self.full = true;
            return Err(RecordError::write(&self.path, error));
        }
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    fn drop_block(&mut self) -> io::Result<()> {
        let end = self.written + self.gathered.len() as u64;
        self.control.give_back(end - self.start);
        self.gathered.clear();
        self.written = self.start;
        self.file.set_len(self.start)?;
        self.file.seek(SeekFrom::Start(self.start)).map(drop)
    }

    /// Bytes written.
    pub const fn size(&self) -> u64 {
        self.written
    }
}
