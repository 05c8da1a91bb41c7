//! Ctrl-C: the first asks the work to end well, the second ends it at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal};

use super::Exit;

/// Whether the user, or the system that started this, wants an end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT and SIGTERM are taken as the wish for an end. Call it before any thread is started: only
    /// those started later leave the signals alone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn watch() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let interrupt = Self::default();
        let seen = interrupt.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                while signals.wait().is_ok() {
                    if seen.0.swap(true, Ordering::Relaxed) {
                        // Whatever is on disk was made to survive this.
                        std::process::exit(i32::from(Exit::INTERRUPTED));
                    }
                }
            })?;
        Ok(interrupt)
    }

    /// Whether it was asked for.
    pub fn seen(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for it, as a signal would.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
