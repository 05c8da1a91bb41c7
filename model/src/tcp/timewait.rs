//! TIME_WAIT and FIN_WAIT2 without a process: how long, what ends them, who may take them over.
//!
//! Faithful to: `tcp_time_wait`, `tcp_timewait_state_process`, `tcp_twsk_unique`, `inet_twsk_schedule`
//! (3.10 to 6.12). Before 4.2 a calendar of eight slots of 7.5 s: 52.5 to 60 s.
//! Leaves out: `tcp_tw_recycle` (to 4.11), `tcp_rfc1337`, the calendar's phase (here multiples of 7.5 s of
//! the tick counter; in the kernel, since its first TIME_WAIT), its recycling of short waits.

use super::rule::Rule;
use super::secret;
use super::socket::{Ctx, Event, Outcome, Socket, TIME_WAIT_SECS, WINDOW, flag};
use super::state::{Input, State};
use crate::kernel::Gate;
use crate::segment::{Flags, Segment, seq_after, seq_before};
use crate::time::Jiffies;

/// What a segment for a TIME_WAIT socket leads to beyond its [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The outcome says everything.
    Done,
    /// The SYN may open a new connection with this initial sequence number, if there is a listener.
    Reopen(u32),
}

/// The initial sequence number of a connection that replaces one in TIME_WAIT.
pub(super) const fn next_isn(old: &Socket) -> u32 {
    match old.snd_nxt.wrapping_add(65_535 + 2) {
        0 => 1,
        isn => isn,
    }
}

/// Arms the timer of a small socket. Before 4.2 the calendar kills it a little early.
fn arm(socket: &mut Socket, ctx: &Ctx<'_>, ticks: u64) {
    if ctx.stack.kernel.has(Gate::TwTimerPerSocket) {
        socket.arm(ctx, ticks);
        return;
    }
    socket.timer = fires(ctx, ticks).0 as u32;
    socket.set(flag::TIMER, true);
}

/// The tick at which the timer of a small socket fires that is armed now for so many ticks.
#[inline]
fn fires(ctx: &Ctx<'_>, ticks: u64) -> Jiffies {
    if ctx.stack.kernel.has(Gate::TwTimerPerSocket) {
        return ctx.fires(ticks);
    }
    let period = TIME_WAIT_SECS * ctx.hz() / 8;
    let slots = ticks.div_ceil(period).clamp(1, 8);
    Jiffies((ctx.tick().0 / period + slots) * period)
}

/// The tick at which a socket is gone that comes to TIME_WAIT now and hears nothing more.
#[inline]
pub(super) fn ends(ctx: &Ctx<'_>) -> Jiffies {
    fires(ctx, TIME_WAIT_SECS * ctx.hz())
}

/// The full socket becomes one in TIME_WAIT, or goes if there is no room (`tcp_max_tw_buckets`).
pub(super) fn enter(socket: &mut Socket, ctx: &Ctx<'_>, input: Input, outcome: &mut Outcome) {
    if ctx.tw_full && socket.state != State::OrphanFinWait2 {
        socket.go(Input::NoRoom);
        outcome.tell(Event::Closed);
        return;
    }
    socket.go(input);
    rest(socket, ctx);
}

/// Starts or restarts the 60 s.
pub(super) fn rest(socket: &mut Socket, ctx: &Ctx<'_>) {
    socket.disarm();
    socket.retransmits = 0;
    socket.retrans_stamp = secret::millis(ctx.now);
    arm(socket, ctx, TIME_WAIT_SECS * ctx.hz());
}

/// FIN_WAIT2 that no process holds any more: a small socket for `tcp_fin_timeout`; what of that is beyond 60 s
/// is spent as a full socket first.
pub(super) fn orphan(socket: &mut Socket, ctx: &Ctx<'_>, outcome: &mut Outcome) {
    let ticks = fin_time(socket, ctx);
    let limit = TIME_WAIT_SECS * ctx.hz();
    if ticks > limit {
        socket.set(flag::FULL_FIN_WAIT2, true);
        socket.arm(ctx, ticks - limit);
    } else {
        orphan_for(socket, ctx, ticks, outcome);
    }
}

/// The same for a given number of ticks, at least 3.5 RTO.
pub(super) fn orphan_for(socket: &mut Socket, ctx: &Ctx<'_>, ticks: u64, outcome: &mut Outcome) {
    socket.set(flag::FULL_FIN_WAIT2, false);
    if ctx.tw_full {
        socket.go(Input::NoRoom);
        outcome.tell(Event::Closed);
        return;
    }
    socket.go(Input::Orphan);
    socket.disarm();
    socket.retrans_stamp = secret::millis(ctx.now);
    arm(socket, ctx, ticks.max(u64::from(socket.rto) * 7 / 2));
}

/// `tcp_fin_time`, in ticks.
pub(super) fn fin_time(socket: &Socket, ctx: &Ctx<'_>) -> u64 {
    let rto = u64::from(socket.rto);
    (u64::from(ctx.stack.sysctls.fin_timeout) * ctx.hz()).max(rto * 7 / 2)
}

/// Whether the timestamp of `segment` is older than the last one of its connection.
fn paws_rejects(socket: &Socket, ctx: &Ctx<'_>, segment: &Segment) -> bool {
    let Some(stamps) = segment.options.timestamps else {
        return false;
    };
    if socket.ts_recent_stamp == 0 || socket.ts_recent == 0 {
        return false;
    }
    let old = seq_after(socket.ts_recent, stamps.val);
    let age = ctx.seconds().wrapping_sub(socket.ts_recent_stamp);
    old && !(segment.flags.has(Flags::RST) && age >= 60)
}

/// Whether an acknowledgement of a bad segment must wait (`tcp_oow_rate_limited`): one in 500 ms a socket.
pub(super) fn oow_limited(socket: &mut Socket, ctx: &Ctx<'_>) -> bool {
    let now = ctx.tick().0 as u32;
    if socket.last_oow_ack != 0 {
        let elapsed = now.wrapping_sub(socket.last_oow_ack) as i32;
        if elapsed >= 0 && (elapsed as u64) < ctx.hz() / 2 {
            return true;
        }
    }
    socket.last_oow_ack = now;
    false
}

/// The acknowledgement that a small socket sends, at most every 500 ms unless it is for data.
fn limited_ack(socket: &mut Socket, ctx: &Ctx<'_>, segment: &Segment) -> Outcome {
    let data = segment.end_seq() != segment.seq && !segment.flags.has(Flags::SYN);
    if !data && oow_limited(socket, ctx) {
        return Outcome::of(Rule::TimeWaitAckLimited);
    }
    Outcome::sending(Rule::TimeWaitAck, socket.ack(ctx))
}

fn kill(socket: &mut Socket) -> Outcome {
    socket.go(Input::Reset);
    Outcome::telling(Rule::TimeWaitKilled, Event::Closed)
}

/// A segment for a socket in TIME_WAIT (facts 7.3, in the order of its tests).
pub(super) fn process(socket: &mut Socket, ctx: &Ctx<'_>, segment: &Segment) -> (Outcome, Verdict) {
    if socket.state == State::OrphanFinWait2 {
        return (fin_wait2(socket, ctx, segment), Verdict::Done);
    }
    let flags = segment.flags;
    let paws = paws_rejects(socket, ctx, segment);
    let bare = segment.end_seq() == segment.seq;
    if !paws && segment.seq == socket.rcv_nxt && (bare || flags.has(Flags::RST)) {
        if flags.has(Flags::RST) {
            return (kill(socket), Verdict::Done);
        }
        rest(socket, ctx);
        socket.note_timestamp(ctx, segment);
        return (Outcome::of(Rule::TimeWaitRestarted), Verdict::Done);
    }
    let newer_stamp = socket.ts_recent_stamp != 0
        && segment
            .options
            .timestamps
            .is_some_and(|stamps| seq_before(socket.ts_recent, stamps.val));
    let newer = seq_after(segment.seq, socket.rcv_nxt) || newer_stamp;
    if flags.is_plain_syn() && !flags.has(Flags::RST) && !paws && newer {
        let outcome = Outcome::of(Rule::TimeWaitReopened);
        return (outcome, Verdict::Reopen(next_isn(socket)));
    }
    if flags.has(Flags::RST) {
        return (Outcome::of(Rule::TimeWaitResetIgnored), Verdict::Done);
    }
    if paws || flags.has(Flags::ACK) {
        rest(socket, ctx);
    }
    (limited_ack(socket, ctx, segment), Verdict::Done)
}

/// The acknowledgement that a reopening SYN gets when nobody listens: not limited.
pub(super) fn refuse_reopen(socket: &Socket, ctx: &Ctx<'_>) -> Outcome {
    Outcome::sending(Rule::TimeWaitAck, socket.ack(ctx))
}

/// A segment for a socket in FIN_WAIT2 without a process.
fn fin_wait2(socket: &mut Socket, ctx: &Ctx<'_>, segment: &Segment) -> Outcome {
    let flags = segment.flags;
    let expected = socket.rcv_nxt;
    if paws_rejects(socket, ctx, segment) || !in_window(segment, expected) {
        return limited_ack(socket, ctx, segment);
    }
    if flags.has(Flags::RST) {
        return kill(socket);
    }
    if flags.has(Flags::SYN) && !seq_before(segment.seq, expected) {
        return fin_wait2_reset(socket, segment);
    }
    let end = segment.end_seq();
    if !flags.has(Flags::ACK) || !seq_after(end, expected) || end == segment.seq {
        return Outcome::of(Rule::FinWait2Duplicate);
    }
    if !flags.has(Flags::FIN) || end != expected.wrapping_add(1) {
        return fin_wait2_reset(socket, segment);
    }
    socket.rcv_nxt = end;
    socket.go(Input::Fin);
    socket.note_timestamp(ctx, segment);
    rest(socket, ctx);
    Outcome::sending(Rule::FinWait2Fin, socket.ack(ctx))
}

fn fin_wait2_reset(socket: &mut Socket, segment: &Segment) -> Outcome {
    let mut outcome = Outcome::of(Rule::FinWait2Reset);
    if let Some(reset) = super::socket::reset_for(segment) {
        outcome.send(reset);
    }
    socket.go(Input::Abort);
    outcome.tell(Event::Closed);
    outcome
}

/// `tcp_in_window`: whether some byte of the segment is expected.
pub(super) fn in_window(segment: &Segment, expected: u32) -> bool {
    let (seq, end) = (segment.seq, segment.end_seq());
    let limit = expected.wrapping_add(WINDOW);
    if seq == expected {
        return true;
    }
    if seq_after(end, expected) && seq_before(seq, limit) {
        return true;
    }
    seq == limit && seq == end
}

/// Whether `tcp_tw_reuse` lets an unbound connect() ever take over the four-tuple of `old`.
pub(super) fn ever_reusable(old: &Socket, ctx: &Ctx<'_>) -> bool {
    let kernel = ctx.stack.kernel;
    let loopback = old.local.ip.is_loopback() || old.remote.ip.is_loopback();
    let allowed = match ctx.stack.sysctls.tw_reuse {
        0 => false,
        2 if kernel.has(Gate::TwReuseLoopback) => loopback,
        _ => true,
    };
    allowed && old.ts_recent_stamp != 0
}

/// Whether connect() may take over the four-tuple of `old` now (`tcp_twsk_unique`; facts 6.3). `bound` says
/// that the application chose the port with bind().
pub fn reusable(old: &Socket, ctx: &Ctx<'_>, bound: bool) -> bool {
    let kernel = ctx.stack.kernel;
    if !old.state.is_time_wait() || old.ts_recent_stamp == 0 {
        return false;
    }
    if bound {
        return true;
    }
    let fin_wait2 = old.state == State::OrphanFinWait2;
    if !ever_reusable(old, ctx) || fin_wait2 && kernel.has(Gate::TwReuseRefusesFinWait2) {
        return false;
    }
    if kernel.has(Gate::TwReuseDelay) {
        let waited = secret::millis(ctx.now).wrapping_sub(old.retrans_stamp) as i32;
        return waited > ctx.stack.sysctls.tw_reuse_delay_ms as i32;
    }
    let seconds = ctx.seconds().wrapping_sub(old.ts_recent_stamp) as i32;
    seconds > i32::from(!kernel.has(Gate::TwReuseLoopback))
}

#[cfg(test)]
mod tests;
