//! From a tuple to the entry that owns it.
//!
//! An entry both of whose tuples have the same client port at one end, and whose client has an array of ports, stands in
//! that port's chain. All others are found by a hash of each tuple: a table that nothing iterates. A key of it is a slot
//! and a direction in one word; the tuples themselves stay in the entries.

use core::hash::Hasher;

use hashbrown::HashTable;
use rustc_hash::FxHasher;

use super::entry::Dir;
use super::{Conntrack, CtRef};
use crate::index::NONE;
use crate::segment::{Endpoint, Proto, Tuple};

/// Hash of a tuple; the same in every run.
pub(super) fn hash_tuple(tuple: &Tuple) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write_u64(tuple.src.key() | (u64::from(tuple.proto.number()) << 48));
    hasher.write_u64(tuple.dst.key());
    hasher.finish()
}

/// Hash of a source; the same in every run.
pub(super) fn hash_source(proto: Proto, source: Endpoint) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write_u64(source.key() | (u64::from(proto.number()) << 48));
    hasher.finish()
}

/// A table of words, found by a hash that the caller computes.
#[derive(Clone, Debug, Default)]
pub(super) struct TupleIndex {
    words: HashTable<u32>,
}

impl TupleIndex {
    /// The word of a reference.
    pub(super) const fn word(ct: CtRef) -> u32 {
        (ct.slot << 1) | ct.dir as u32
    }

    /// The reference of a word.
    pub(super) const fn reference(word: u32) -> CtRef {
        CtRef {
            slot: word >> 1,
            dir: if word & 1 == 0 {
                Dir::Original
            } else {
                Dir::Reply
            },
        }
    }

    /// Whether there is no word.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A word with this hash that `is_it` accepts.
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.words.find(hash, |word| is_it(*word)).copied()
    }

    /// Every word with this hash, in no order that may matter.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        self.words.iter_hash(hash).copied()
    }

    /// Adds a word; `hash_of` tells the hash of any word in the table.
    pub(super) fn insert(&mut self, hash: u64, word: u32, hash_of: impl Fn(u32) -> u64) {
        self.words.insert_unique(hash, word, |word| hash_of(*word));
    }

    /// Takes a word out, if it is there.
    pub(super) fn remove(&mut self, hash: u64, word: u32) {
        if let Ok(found) = self.words.find_entry(hash, |other| *other == word) {
            found.remove();
        }
    }
}

impl Conntrack {
    /// The place of the chain that both tuples would stand in; `None` if the hash has to tell.
    #[inline]
    pub(super) fn chain_of(&self, orig: &Tuple, reply: &Tuple) -> Option<usize> {
        let at = self.place(orig)?;
        (self.place(reply) == Some(at)).then_some(at)
    }

    /// The place of the client port that a tuple has as an end.
    #[inline]
    fn place(&self, tuple: &Tuple) -> Option<usize> {
        match self.ports.at(tuple.proto, tuple.src) {
            None => self.ports.at(tuple.proto, tuple.dst),
            found => found,
        }
    }

    /// The place of a client port's chain; `None` if its address has no array.
    pub fn place_of(&self, proto: Proto, client: Endpoint) -> Option<usize> {
        self.ports.at(proto, client)
    }

    /// Whether any entry stands outside the chains.
    pub(super) fn any_unchained(&self) -> bool {
        !self.tuples.is_empty()
    }

    /// The confirmed entry that has this tuple, expired or not.
    #[inline(always)]
    pub(super) fn owner(&self, tuple: &Tuple) -> Option<CtRef> {
        if let Some(at) = self.place(tuple) {
            let mut slot = self.ports.head(at);
            while slot != NONE {
                let entry = self.entry(slot);
                if let Some(dir) = entry.direction_of(tuple) {
                    return Some(CtRef { slot, dir });
                }
                slot = entry.next;
            }
        }
        if self.tuples.is_empty() {
            return None;
        }
        self.owner_by_hash(tuple)
    }

    #[inline(never)]
    fn owner_by_hash(&self, tuple: &Tuple) -> Option<CtRef> {
        let word = self.tuples.find(hash_tuple(tuple), |word| {
            let ct = TupleIndex::reference(word);
            self.entry(ct.slot).tuple(ct.dir) == *tuple
        })?;
        Some(TupleIndex::reference(word))
    }

    /// Enters both tuples of a slot into the index: into the chain that they share, if they share one.
    pub(super) fn link(&mut self, slot: u32, chain: Option<usize>) {
        if let Some(at) = chain {
            let next = self.ports.head(at);
            let entry = &mut self.entries[slot as usize];
            entry.set_chained(true);
            entry.next = next;
            return self.ports.set_head(at, slot);
        }
        let entries = &self.entries;
        let hash_of = |word: u32| {
            let ct = TupleIndex::reference(word);
            hash_tuple(&entries[ct.slot as usize].tuple(ct.dir))
        };
        for dir in [Dir::Original, Dir::Reply] {
            let word = TupleIndex::word(CtRef { slot, dir });
            self.tuples.insert(hash_of(word), word, hash_of);
        }
    }

    /// Takes both tuples of a slot out of the index.
    pub(super) fn unlink(&mut self, slot: u32) {
        let entry = self.entry(slot);
        if !entry.is_chained() {
            for dir in [Dir::Original, Dir::Reply] {
                let hash = hash_tuple(&self.entry(slot).tuple(dir));
                self.tuples
                    .remove(hash, TupleIndex::word(CtRef { slot, dir }));
            }
            return;
        }
        let Some(at) = self.place(&entry.orig()) else {
            unreachable!("a chain is that of an array's port, and arrays stay");
        };
        let next = entry.next;
        let mut before = self.ports.head(at);
        if before == slot {
            return self.ports.set_head(at, next);
        }
        while self.entry(before).next != slot {
            before = self.entry(before).next;
        }
        self.entries[before as usize].next = next;
    }
}
