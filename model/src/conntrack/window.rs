//! The window check: does a segment fit what both sides have sent and have room for?
//!
//! Faithful to: `tcp_in_window`, `tcp_init_sender`, `tcp_sack`, 3.10 to 6.12.
//! Leaves out: numbers shifted by protocol helpers (`nf_ct_seq_offset` is zero without them).

use super::entry::{Dir, Seen, TcpState};
use super::rule::CtRule;
use super::table::{CtState, FlagClass};
use super::tcp::{TcpEnv, read_options};
use crate::kernel::Gate;
use crate::segment::{Flags, Segment, seq_after, seq_before};

/// The least span behind the acknowledged data within which an ACK counts as merely late (`MAXACKWINCONST`).
const MAX_ACK_WINDOW: u32 = 66_000;

/// The result of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// In the window; the record is updated.
    In,
    /// Not in the window, and nobody minds.
    Liberal,
    /// Not in the window: the packet passes with its entry, which stays as it is.
    Ignore(CtRule),
    /// Not in the window: the packet gets no entry.
    Invalid(CtRule),
}

/// The numbers of one segment, as the check sees them.
struct Numbers {
    seq: u32,
    ack: u32,
    sack: u32,
    end: u32,
    window: u32,
}

/// Checks a segment and, if it fits, moves the windows.
#[inline]
pub(super) fn check(
    tcp: &mut TcpState,
    dir: Dir,
    class: FlagClass,
    seg: &Segment,
    env: &TcpEnv<'_>,
) -> Window {
    let state = tcp.state;
    let [original, reply] = &mut tcp.seen;
    let (sender, receiver) = match dir {
        Dir::Original => (original, reply),
        Dir::Reply => (reply, original),
    };
    let mut n = Numbers {
        seq: seg.seq,
        ack: seg.ack,
        sack: seg.ack,
        end: seg.end_seq(),
        window: u32::from(seg.window),
    };
    if receiver.has(Seen::SACK_PERM)
        && let Some(right) = seg.options.sack_right
        && seq_after(right, n.sack)
    {
        n.sack = right;
    }
    if begin(state, dir, sender, receiver, &n, seg, env) {
        return Window::In;
    }
    let is_rst = seg.flags.has(Flags::RST);
    let no_ack = !seg.flags.has(Flags::ACK) || (is_rst && n.ack == 0);
    if no_ack {
        n.ack = receiver.end;
        n.sack = receiver.end;
    }
    if is_rst && n.seq == 0 && state == CtState::SynSent {
        n.seq = sender.end;
        n.end = sender.end;
    }
    if let Err(refusal) = fits(sender, receiver, &n, env) {
        let liberal = sender.has(Seen::BE_LIBERAL) || env.sysctls.be_liberal;
        return if liberal { Window::Liberal } else { refusal };
    }
    advance(sender, receiver, &n, seg);
    if class == FlagClass::Ack {
        count_retransmission(tcp, dir, &n, seg.window);
    }
    Window::In
}

/// First segment of its side, or a newer SYN: takes its numbers. True if nothing remains to be checked.
#[inline]
fn begin(
    state: CtState,
    dir: Dir,
    sender: &mut Seen,
    receiver: &mut Seen,
    n: &Numbers,
    seg: &Segment,
    env: &TcpEnv<'_>,
) -> bool {
    let is_syn = seg.flags.has(Flags::SYN);
    let has_ack = seg.flags.has(Flags::ACK);
    if sender.max_window == 0 {
        if is_syn {
            init_sender(dir, sender, receiver, n, seg, env);
            return !has_ack;
        }
        sender.end = n.end;
        sender.max_window = (n.window << sender.scale).max(1);
        sender.max_end = n.end.wrapping_add(sender.max_window);
        if receiver.max_window == 0 {
            receiver.end = n.sack;
            receiver.max_end = n.sack;
        } else if n.sack == receiver.end.wrapping_add(1)
            && env.kernel.has(Gate::WindowUnknownPasses)
        {
            receiver.end = n.sack;
        }
        return false;
    }
    if !seq_after(n.end, sender.end) {
        return false;
    }
    if env.kernel.has(Gate::SynReinit) {
        if is_syn && matches!(state, CtState::SynSent | CtState::SynRecv) {
            init_sender(dir, sender, receiver, n, seg, env);
            return dir == Dir::Reply && !has_ack;
        }
    } else if matches!(
        (state, dir),
        (CtState::SynSent, Dir::Original) | (CtState::SynRecv, Dir::Reply)
    ) {
        restart(sender, n, seg, env);
    }
    false
}

/// Takes a side's numbers from its SYN.
fn restart(sender: &mut Seen, n: &Numbers, seg: &Segment, env: &TcpEnv<'_>) {
    sender.end = n.end;
    sender.max_end = n.end;
    sender.max_window = n.window.max(1);
    read_options(sender, &seg.options, env.kernel);
}

/// Takes a side's numbers from its SYN; window scaling needs both sides.
fn init_sender(
    dir: Dir,
    sender: &mut Seen,
    receiver: &mut Seen,
    n: &Numbers,
    seg: &Segment,
    env: &TcpEnv<'_>,
) {
    restart(sender, n, seg, env);
    let both_scale = sender.has(Seen::WINDOW_SCALE) && receiver.has(Seen::WINDOW_SCALE);
    let decides = dir == Dir::Reply || !env.kernel.has(Gate::ReinitKeepsScale);
    if decides && !both_scale {
        sender.scale = 0;
        receiver.scale = 0;
    }
}

/// The four bounds: sequence numbers over and under, acknowledgements over and under.
#[inline]
fn fits(sender: &mut Seen, receiver: &Seen, n: &Numbers, env: &TcpEnv<'_>) -> Result<(), Window> {
    let lowest_end = sender.end.wrapping_sub(receiver.max_window).wrapping_sub(1);
    let above_lowest = seq_after(n.end, lowest_end);
    let unknown = receiver.max_window == 0;
    let reaches_window = above_lowest || (unknown && env.kernel.has(Gate::WindowUnknownPasses));
    let ack_span = sender.max_window.max(MAX_ACK_WINDOW);
    let lowest_ack = receiver.end.wrapping_sub(ack_span).wrapping_sub(1);
    let ack_not_late = seq_after(n.sack, lowest_ack);
    let ack_seen = seq_before(n.sack, receiver.end.wrapping_add(1));
    let delayed_ignored = env.kernel.has(Gate::DelayedIgnored);

    if !seq_before(n.seq, sender.max_end.wrapping_add(1)) {
        let overshot = n.end.wrapping_sub(sender.max_end).wrapping_add(1);
        let slightly =
            !unknown && above_lowest && ack_not_late && overshot <= receiver.max_window && ack_seen;
        if delayed_ignored && slightly {
            sender.end = n.end;
            sender.flags |= Seen::UNACKNOWLEDGED;
            return Err(Window::Ignore(CtRule::IgnoredOvershot));
        }
        return Err(Window::Invalid(CtRule::InvalidSeqOver));
    }
    if delayed_ignored {
        if !ack_seen {
            return Err(Window::Invalid(CtRule::InvalidAckOver));
        }
        if !reaches_window || !ack_not_late {
            return Err(Window::Ignore(CtRule::IgnoredDelayed));
        }
        return Ok(());
    }
    if !reaches_window {
        return Err(Window::Invalid(CtRule::InvalidSeqUnder));
    }
    if !ack_seen {
        return Err(Window::Invalid(CtRule::InvalidAckOver));
    }
    if !ack_not_late {
        return Err(Window::Invalid(CtRule::InvalidAckUnder));
    }
    Ok(())
}

/// Moves both windows by a segment that fits.
#[inline]
fn advance(sender: &mut Seen, receiver: &mut Seen, n: &Numbers, seg: &Segment) {
    let window = if seg.flags.has(Flags::SYN) {
        n.window
    } else {
        n.window << sender.scale
    };
    let span = window.wrapping_add(n.sack.wrapping_sub(n.ack));
    sender.max_window = sender.max_window.max(span);
    if seq_after(n.end, sender.end) {
        sender.end = n.end;
        sender.flags |= Seen::UNACKNOWLEDGED;
    }
    if seg.flags.has(Flags::ACK) {
        if !sender.has(Seen::MAXACK_SET) {
            sender.max_ack = n.ack;
            sender.flags |= Seen::MAXACK_SET;
        } else if seq_after(n.ack, sender.max_ack) {
            sender.max_ack = n.ack;
        }
    }
    if receiver.max_window != 0 && seq_after(n.end, sender.max_end) {
        let beyond = n.end.wrapping_sub(sender.max_end);
        receiver.max_window = receiver.max_window.wrapping_add(beyond);
    }
    let room = n.sack.wrapping_add(window);
    if seq_after(room, receiver.max_end.wrapping_sub(1)) {
        // A closed window still has room for a probe.
        receiver.max_end = room.wrapping_add(u32::from(window == 0));
    }
    if n.ack == receiver.end {
        receiver.flags &= !Seen::UNACKNOWLEDGED;
    }
}

/// Counts how often the same ACK segment was seen in a row.
fn count_retransmission(tcp: &mut TcpState, dir: Dir, n: &Numbers, window: u16) {
    let same = tcp.last_dir == dir
        && tcp.last_seq == n.seq
        && tcp.last_ack == n.ack
        && tcp.last_end == n.end
        && tcp.last_window == window;
    if same {
        tcp.retrans = tcp.retrans.wrapping_add(1);
    } else {
        tcp.last_dir = dir;
        tcp.last_seq = n.seq;
        tcp.last_ack = n.ack;
        tcp.last_end = n.end;
        tcp.last_window = window;
        tcp.retrans = 0;
    }
}
