//! Places for things that come and go, with numbers that are never given twice.

/// A place and which of its tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The place.
    pub slot: u32,
    /// The tenant.
    pub serial: u32,
}

/// Places.
#[derive(Debug)]
pub struct Slots<T> {
    items: Vec<Option<(u32, T)>>,
    free: Vec<u32>,
    serial: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
            serial: 0,
        }
    }
}

impl<T> Slots<T> {
    /// The key of the next tenant.
    pub fn next_key(&self) -> Key {
        Key {
            slot: self.free.last().copied().unwrap_or(self.items.len() as u32),
            // The kernel hands back 64 bits of ours: two for the kind, thirty for this, the rest for the place.
            serial: (self.serial + 1) & 0x3fff_ffff,
        }
    }

    /// Moves in; the key is that of [`Slots::next_key`].
    pub fn insert(&mut self, item: T) -> Key {
        let key = self.next_key();
        self.serial = key.serial;
        let tenant = Some((key.serial, item));
        match self.free.pop() {
            Some(slot) => self.items[slot as usize] = tenant,
            None => self.items.push(tenant),
        }
        key
    }

    /// The tenant, if it has not moved out.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (serial, item) = self.items.get_mut(key.slot as usize)?.as_mut()?;
        (*serial == key.serial).then_some(item)
    }

    /// Moves out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get_mut(key)?;
        self.free.push(key.slot);
        self.items[key.slot as usize].take().map(|(_, item)| item)
    }

    /// The keys of all tenants that are meant.
    pub fn keys(&self, meant: impl Fn(&T) -> bool) -> Vec<Key> {
        let tenants = self.items.iter().enumerate();
        tenants
            .filter_map(|(slot, tenant)| {
                let (serial, item) = tenant.as_ref()?;
                let slot = slot as u32;
                meant(item).then_some(Key {
                    slot,
                    serial: *serial,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_former_tenant_finds_nobody() {
        let mut slots = Slots::default();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(first.slot, second.slot);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut 'b'));
        assert_eq!(slots.keys(|item| *item == 'b'), [second]);
    }
}
