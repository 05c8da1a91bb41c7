//! What the threads of a recording share: whether to stop and why, and how much may still be written.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::clock;

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its time was over.
    Time,
    /// It reached its size.
    Size,
    /// A signal asked for it.
    Interrupted,
    /// Something could not be read or written.
    Failed,
}

impl Ended {
    /// For people and for the manifest.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Time => "its time was over",
            Self::Size => "it reached its size",
            Self::Interrupted => "it was interrupted",
            Self::Failed => "of an error",
        }
    }
}

/// Shared by all threads of a recording.
#[derive(Debug)]
pub struct Control {
    ended: Mutex<Option<Ended>>,
    changed: Condvar,
    left: AtomicU64,
    end: Duration,
    signals: SignalFd,
    /// Seen from here on packets belong to the recording: the time of its first listing, 0 before it.
    pub packets_from: AtomicU64,
}

impl Control {
    /// A recording that may last so long and write so much. From now on signals that would end the process are kept
    /// for it; call this before any thread is started.
    ///
    /// # Errors
    /// If the system gives no descriptor for signals.
    pub fn new(lasts: Duration, size_max: u64) -> io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self {
            ended: Mutex::new(None),
            changed: Condvar::new(),
            left: AtomicU64::new(size_max),
            end: clock::monotonic().saturating_add(lasts),
            signals: SignalFd::with_flags(&signals, flags)?,
            packets_from: AtomicU64::new(0),
        })
    }

    /// Ends the recording. The first reason counts.
    pub fn end(&self, why: Ended) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Whether the recording has ended, and why. Looks for signals and at the clock.
    pub fn ended(&self) -> Option<Ended> {
        let known = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return known;
        }
        if matches!(self.signals.read_signal(), Ok(Some(_))) {
            self.end(Ended::Interrupted);
        } else if clock::monotonic() >= self.end {
            self.end(Ended::Time);
        } else {
            return None;
        }
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until then on the monotonic clock, or until the recording ends; whether it goes on.
    pub fn wait_until(&self, then: Duration) -> bool {
        // Signals are looked for this often.
        const LOOK: Duration = Duration::from_millis(100);
        loop {
            if self.ended().is_some() {
                return false;
            }
            let now = clock::monotonic();
            if now >= then {
                return true;
            }
            let pause = (then.min(self.end).saturating_sub(now)).min(LOOK);
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            if ended.is_none() {
                // A spurious or early wake-up only means another look.
                let _ = self
                    .changed
                    .wait_timeout(ended, pause.max(Duration::from_micros(100)));
            }
        }
    }

    /// Asks for room to write; false, and the end of the recording, if it would grow beyond its size.
    pub fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            });
        if taken.is_err() {
            self.end(Ended::Size);
        }
        taken.is_ok()
    }

    /// Gives room back that was not used.
    pub fn give_back(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}
