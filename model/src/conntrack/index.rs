//! From a tuple to the entries that own it, where arrays of client ports do not tell: a hash table that nothing
//! iterates.
//!
//! A key is a slot and a direction in one word. The tuples themselves stay in the entries; callers hand in how
//! to find them.

use core::hash::Hasher;

use hashbrown::HashTable;
use rustc_hash::FxHasher;

use super::CtRef;
use super::entry::Dir;
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
