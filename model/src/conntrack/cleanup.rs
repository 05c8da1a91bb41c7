//! Entries that a program deletes from outside (`conntrack -D`, ctnetlink).

use super::{Conntrack, CtEntry};

impl Conntrack {
    /// Deletes every confirmed entry that `matches`; returns how many there were.
    pub fn delete_matching(&mut self, mut matches: impl FnMut(&CtEntry) -> bool) -> usize {
        let found: Vec<u32> = self
            .iter()
            .filter(|(_, entry)| entry.status.has(super::Status::CONFIRMED) && matches(entry))
            .map(|(slot, _)| slot)
            .collect();
        for slot in &found {
            self.delete(*slot);
        }
        found.len()
    }
}
