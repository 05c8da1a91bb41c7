//! Results on files and standard output: all of a file or none of it.
//!
//! A file is written beside its target and moved over it when it is complete, so that an interrupted run leaves the
//! previous result. Devices and pipes, which cannot be moved over, are written directly.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A result that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The reader of a pipe has gone: `sim ... | head`. No failure of ours.
    #[error("the reader of the output has gone")]
    BrokenPipe,
    /// Anything else.
    #[error(
        "cannot write {target}: {reason}; choose a path that can be written, or free some space"
    )]
    Unwritable {
        /// The path, or `standard output`.
        target: String,
        /// What the system said.
        reason: io::Error,
    },
}

impl OutputError {
    fn of(target: &Path, reason: io::Error) -> Self {
        if reason.kind() == ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            let target = target.display().to_string();
            Self::Unwritable { target, reason }
        }
    }
}

/// Writes `bytes` to `path`, or to standard output if there is none.
///
/// # Errors
/// If it cannot be written; then a file at `path` is as it was.
pub fn write(path: Option<&Path>, bytes: &[u8]) -> Result<(), OutputError> {
    let mut output = Output::create(path)?;
    output.write(bytes)?;
    output.finish()
}

/// A result being written. Without [`Output::finish`] nothing appears at the path.
#[derive(Debug)]
pub struct Output {
    target: PathBuf,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Stdout,
    /// A device or pipe.
    Direct(File),
    /// The file beside the target; `None` once it has been moved.
    Beside(File, Option<PathBuf>),
}

impl Output {
    /// Starts a result. Fails at once if the path cannot be written, before any work is done.
    ///
    /// # Errors
    /// If the folder does not exist, is not writable, or the path is a folder.
    pub fn create(path: Option<&Path>) -> Result<Self, OutputError> {
        let Some(path) = path else {
            let target = PathBuf::from("standard output");
            let sink = Sink::Stdout;
            return Ok(Self { target, sink });
        };
        let fail = |reason| OutputError::of(path, reason);
        // A link stays a link: what it points to is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let sink = match fs::metadata(&target) {
            Ok(meta) if meta.is_dir() => {
                return Err(fail(io::Error::from(ErrorKind::IsADirectory)));
            }
            Ok(meta) if !meta.is_file() => {
                Sink::Direct(OpenOptions::new().write(true).open(&target).map_err(fail)?)
            }
            Ok(meta) if meta.permissions().readonly() => {
                return Err(fail(io::Error::from(ErrorKind::PermissionDenied)));
            }
            _ => {
                let (file, beside) = create_beside(&target).map_err(fail)?;
                Sink::Beside(file, Some(beside))
            }
        };
        Ok(Self { target, sink })
    }

    /// Adds to the result.
    ///
    /// # Errors
    /// If the medium is full or gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        let result = match &mut self.sink {
            Sink::Stdout => anstream::stdout().lock().write_all(bytes),
            Sink::Direct(file) | Sink::Beside(file, _) => file.write_all(bytes),
        };
        result.map_err(|reason| OutputError::of(&self.target, reason))
    }

    /// Completes the result.
    ///
    /// # Errors
    /// If the last bytes cannot be written or the file not be moved into place.
    pub fn finish(mut self) -> Result<(), OutputError> {
        let result = match &mut self.sink {
            Sink::Stdout => anstream::stdout().lock().flush(),
            Sink::Direct(file) => file.flush(),
            Sink::Beside(file, beside) => file.sync_all().and_then(|()| match beside {
                Some(path) => fs::rename(path, &self.target).map(|()| *beside = None),
                None => Ok(()),
            }),
        };
        result.map_err(|reason| OutputError::of(&self.target, reason))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Sink::Beside(_, Some(path)) = &self.sink {
            // Nothing more can be done about a leftover that cannot be removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// A new file in the target's folder.
fn create_beside(target: &Path) -> io::Result<(File, PathBuf)> {
    let Some(name) = target.file_name() else {
        return Err(io::Error::from(ErrorKind::InvalidInput));
    };
    for attempt in 0..100 {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{attempt}.part", std::process::id()));
        let path = target.with_file_name(hidden);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (file, path)),
        }
    }
    Err(io::Error::from(ErrorKind::AlreadyExists))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        fs::write(&path, "old").unwrap();
        let mut output = Output::create(Some(&path)).unwrap();
        output.write(b"half").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        drop(output);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        write(Some(&path), b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            dir.path().to_path_buf(),
            dir.path().join("no/such/folder.json"),
        ] {
            let error = write(Some(&path), b"x").unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        write(Some(Path::new("/dev/null")), b"x").unwrap();
        let error = write(Some(Path::new("/dev/full")), b"x")
            .unwrap_err()
            .to_string();
        assert!(error.contains("/dev/full"), "{error}");
    }
}
