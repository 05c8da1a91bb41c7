//! What must hold of the tables between two packets, whatever came before. For tests.

use std::collections::BTreeMap;

use super::service::DestId;
use super::table::EntryId;
use super::{Ipvs, Jiffies};
use crate::time::Instant;

/// What the table says that a destination should count: active, inactive, templates.
type Counts = BTreeMap<DestId, [u32; 3]>;

impl Ipvs {
    /// Whether the tables are sound at `now`, up to which [`Ipvs::advance`] must have run: the counters of every
    /// destination equal its entries; every entry can be found, has a deadline ahead of it and a timer that
    /// will see it; templates know how many entries they control; entries keep their destination.
    ///
    /// # Errors
    /// The first thing that does not hold, in words.
    pub fn check_invariants(&self, now: Instant) -> Result<(), String> {
        let jiffies = self.clock.jiffies(now);
        let mut counts = Counts::new();
        let mut controlled = BTreeMap::<EntryId, u32>::new();
        let mut live = 0;
        for (id, entry) in self.table.iter() {
            live += 1;
            self.check_entry(id, jiffies)?;
            let place = match (entry.is_template(), entry.state().is_active(self.kernel)) {
                (true, _) => 2,
                (false, true) => 0,
                (false, false) => 1,
            };
            counts.entry(entry.dest()).or_default()[place] += 1;
            if let Some(template) = entry.template() {
                *controlled.entry(template).or_default() += 1;
            }
        }
        if live != self.table.len() {
            let said = self.table.len();
            return Err(format!("{live} entries are live, the table says {said}"));
        }
        for (id, entry) in self.table.iter() {
            let wanted = controlled.get(&id).copied().unwrap_or(0);
            let said = entry.controls();
            if said != wanted {
                return Err(format!("{id:?} controls {wanted} entries, it says {said}"));
            }
        }
        self.check_dests(&counts)
    }

    fn check_entry(&self, id: EntryId, now: Jiffies) -> Result<(), String> {
        let entry = self.table.get(id);
        let complain = |what: &str| {
            Err(format!(
                "{id:?} {} {:?} expires {} fires {} at tick {}: {what}",
                entry.client(),
                entry.state(),
                entry.expires().0,
                entry.fires().0,
                now.0
            ))
        };
        if entry.fires() <= now || entry.fires() == Jiffies::NEVER {
            return complain("its timer is not ahead");
        }
        if entry.expires() > entry.fires() {
            return complain("its timer fires before its deadline");
        }
        if !self.table.is_filed(id) {
            return complain("no timer will see it");
        }
        if !self.table.is_chained(id) {
            return complain("it is in no chain");
        }
        if let Some(template) = entry.template() {
            let template = self.table.get(template);
            if !template.is_template() || template.dest() != entry.dest() {
                return complain("what controls it is no template of its destination");
            }
        }
        Ok(())
    }

    fn check_dests(&self, counts: &Counts) -> Result<(), String> {
        let listed = self.services.iter().flat_map(|service| &service.dests);
        let kept = self.dests.trash().iter();
        let mut known: Vec<DestId> = listed.clone().chain(kept).copied().collect();
        known.sort_unstable();
        if let Some(twice) = known.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{:?} is known twice", twice[0]));
        }
        if let Some(lost) = counts.keys().find(|id| known.binary_search(id).is_err()) {
            return Err(format!(
                "{lost:?} has entries and is neither listed nor kept"
            ));
        }
        for id in &known {
            let dest = self.dests.get(*id);
            let said = [dest.active, dest.inactive, dest.templates];
            let wanted = counts.get(id).copied().unwrap_or_default();
            if said != wanted {
                let addr = dest.addr;
                return Err(format!(
                    "{addr} counts {said:?} active, inactive, templates; its entries are {wanted:?}"
                ));
            }
            if dest.available != listed.clone().any(|other| other == id) {
                return Err(format!("{}: available is {}", dest.addr, dest.available));
            }
        }
        Ok(())
    }
}
