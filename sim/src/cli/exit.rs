//! Exit codes, and the errors that lead to them.

use crate::diag::Diagnostics;
use crate::output::OutputError;

/// Exit codes of every command. Not a type to make values of: a place for documented constants.
#[derive(Clone, Copy, Debug)]
pub enum Exit {}

impl Exit {
    /// All went well.
    pub const OK: u8 = 0;
    /// A bug of ours.
    pub const INTERNAL: u8 = 1;
    /// Wrong usage, or a scenario that cannot be run.
    pub const USAGE: u8 = 2;
    /// A threshold that was asked for is broken.
    pub const THRESHOLD_BROKEN: u8 = 3;
    /// Undecided: the budget was spent before a threshold was decided (the interval lies on both sides of it), or
    /// shards of a sweep are missing.
    pub const UNDECIDED: u8 = 4;
    /// A capture and the model differ.
    pub const DIVERGENCE: u8 = 5;
    /// A capture cannot be read.
    pub const CAPTURE_UNREADABLE: u8 = 6;
    /// A result cannot be written.
    pub const OUTPUT_UNWRITABLE: u8 = 7;
    /// Nothing matched what was asked for.
    pub const NOTHING_MATCHED: u8 = 8;
    /// Interrupted by the user.
    pub const INTERRUPTED: u8 = 130;
}

/// What every command can fail with.
#[derive(Debug, thiserror::Error)]
pub enum CommonError {
    /// A scenario, or flags laid over one, cannot be used.
    #[error("{0}")]
    Scenario(#[from] Diagnostics),
    /// Wrong usage. The message says what to write instead.
    #[error("{0}")]
    Usage(String),
    /// A capture cannot be read.
    #[error("{0}")]
    Capture(String),
    /// A result cannot be written.
    #[error("{0}")]
    Output(#[from] OutputError),
    /// Nothing matched.
    #[error("{0}")]
    NothingMatched(String),
    /// Results could not be kept. The message says how to go on.
    #[error("{0}")]
    Unkept(String),
    /// Results are not complete. The message says what is missing and how to get it.
    #[error("{0}")]
    Incomplete(String),
    /// A bug of ours.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

impl CommonError {
    /// The exit code. A reader that has gone is no failure.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Scenario(_) | Self::Usage(_) => Exit::USAGE,
            Self::Capture(_) => Exit::CAPTURE_UNREADABLE,
            Self::Output(OutputError::BrokenPipe) => Exit::OK,
            Self::Output(_) => Exit::OUTPUT_UNWRITABLE,
            Self::NothingMatched(_) => Exit::NOTHING_MATCHED,
            Self::Unkept(_) => Exit::OUTPUT_UNWRITABLE,
            Self::Incomplete(_) => Exit::UNDECIDED,
            Self::Internal(_) => Exit::INTERNAL,
        }
    }

    /// The message for standard error, with escape sequences; empty if there is nothing to say.
    pub fn message(&self) -> String {
        match self {
            Self::Scenario(diagnostics) => diagnostics.render(true),
            Self::Output(OutputError::BrokenPipe) => String::new(),
            Self::Internal(_) => format!(
                "internal error: {self}\nThis is a bug in sim {}. Please report it with the command line.\n",
                env!("CARGO_PKG_VERSION")
            ),
            _ => format!("error: {self}\n"),
        }
    }
}

impl From<crate::scenario::range::RangeError> for CommonError {
    fn from(error: crate::scenario::range::RangeError) -> Self {
        Self::Usage(error.to_string())
    }
}
