//! Making the table agree with a listing: for captures that begin in mid-life, and after a divergence.
//!
//! Leaves out: what no listing shows: sequence numbers and windows (both sides become liberal), who closed first
//! (the original side is taken), the last segment before a reset.

use super::Conntrack;
use super::entry::{CtEntry, Seen, Status, TcpState};
use super::table::CtState;
use crate::segment::{Proto, Tuple};
use crate::time::Jiffies;

/// An entry as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedCt {
    /// Original tuple.
    pub orig: Tuple,
    /// Reply tuple.
    pub reply: Tuple,
    /// TCP state; ignored for UDP.
    pub state: CtState,
    /// Not `[UNREPLIED]`.
    pub seen_reply: bool,
    /// `[ASSURED]`.
    pub assured: bool,
    /// Ticks until its deadline.
    pub left_ticks: u64,
}

impl Conntrack {
    /// Enters an entry as a listing shows it, in the place of any that has one of its tuples.
    pub fn adopt(&mut self, now: Jiffies, listed: &ListedCt) {
        for tuple in [&listed.orig, &listed.reply] {
            while let Some(ct) = self.owner(tuple) {
                self.delete(ct.slot);
            }
        }
        let mut status = Status::default();
        for (bit, on) in [
            (Status::LIVE, true),
            (Status::CONFIRMED, true),
            (Status::SRC_NAT_DONE, true),
            (Status::DST_NAT_DONE, true),
            (Status::SEEN_REPLY, listed.seen_reply),
            (Status::ASSURED, listed.assured),
            (Status::SRC_NAT, listed.reply.dst != listed.orig.src),
        ] {
            if on {
                status.set(bit);
            }
        }
        self.serial = self.serial.wrapping_add(1);
        let tuples = (listed.orig, listed.reply);
        let mut entry = CtEntry::new(tuples, status, self.serial, now);
        entry.deadline = now + listed.left_ticks;
        if listed.orig.proto == Proto::Tcp {
            *entry.record_mut().0 = tcp_of(listed.state);
        }
        let slot = self.take_slot(entry);
        let chain = self.chain_of(&listed.orig, &listed.reply);
        self.link(slot, chain);
    }
}

fn tcp_of(state: CtState) -> TcpState {
    let liberal = Seen {
        flags: Seen::BE_LIBERAL,
        ..Seen::default()
    };
    let mut tcp = TcpState {
        seen: [liberal; 2],
        state,
        ..TcpState::default()
    };
    if state.is_closing() && state != CtState::Close {
        tcp.seen[0].flags |= Seen::CLOSE_INIT;
    }
    tcp
}
