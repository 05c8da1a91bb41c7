//! A socket's timer fires.
//!
//! Faithful to: `tcp_retransmit_timer`, `tcp_write_timeout`, `reqsk_timer_handler`, `tw_timer_handler`,
//! `tcp_delack_timer` (5.x to 6.12; the SYN schedule of every release by its gate, facts 6.5).
//! Leaves out: `TCP_USER_TIMEOUT`, `TCP_SYNCNT`, keep-alive probes, the pruning of old requests in a busy listener.
//!
//! Timers that fire in the same tick: the kernel expires the coarsest wheel level first, and within a bucket
//! the timer armed last. Recordings depend on that order; it is the event queue's business, and
//! [`Socket::timer_level`] is there for it.

use super::rule::Rule;
use super::secret;
use super::socket::{ConnError, Ctx, Event, Outcome, Socket, flag};
use super::state::{Input, State};
use super::timewait;

/// `tcp_retries2`.
const RETRIES2: u32 = 15;
/// The retransmissions of a socket without a process (`tcp_orphan_retries` of 0).
const ORPHAN_RETRIES: u32 = 8;
/// `tcp_synack_retries`.
const SYNACK_RETRIES: u8 = 5;

impl Socket {
    /// The timer may be due. A call before its tick, or without a timer, does nothing.
    pub fn on_timer(&mut self, ctx: &Ctx<'_>) -> Outcome {
        match self.timer(ctx.tick()) {
            Some(fires) if fires <= ctx.tick() => {}
            _ => return Outcome::of(Rule::TimerIdle),
        }
        self.set(flag::TIMER, false);
        match self.state {
            State::Closed | State::Listen => Outcome::of(Rule::TimerIdle),
            State::TimeWait | State::OrphanFinWait2 => {
                self.go(Input::GiveUp);
                Outcome::telling(Rule::TimeWaitOver, Event::Closed)
            }
            State::SynRecv => self.request_timer(ctx),
            _ if self.has(flag::ACK_OWED) => {
                self.set(flag::ACK_OWED, false);
                Outcome::sending(Rule::DelayedAck, self.ack(ctx))
            }
            State::FinWait2 => self.fin_wait2_timer(ctx),
            _ => self.retransmit_timer(ctx),
        }
    }

    fn request_timer(&mut self, ctx: &Ctx<'_>) -> Outcome {
        if self.retransmits >= SYNACK_RETRIES {
            self.go(Input::GiveUp);
            return Outcome::telling(Rule::RequestExpired, Event::Closed);
        }
        self.retransmits += 1;
        self.arm_request(ctx);
        Outcome::sending(Rule::SynAckRetransmitted, self.syn_ack(ctx))
    }

    /// Arms the timer of a request: a second, doubled with each repetition.
    pub(super) fn arm_request(&mut self, ctx: &Ctx<'_>) {
        let ticks = ctx.hz() << self.retransmits;
        self.arm(ctx, ticks.min(Self::rto_max(ctx)));
    }

    /// FIN_WAIT2 without a process as a full socket (`tcp_keepalive_timer`).
    fn fin_wait2_timer(&mut self, ctx: &Ctx<'_>) -> Outcome {
        if !self.has(flag::FULL_FIN_WAIT2) {
            return Outcome::of(Rule::TimerIdle);
        }
        let limit = super::socket::TIME_WAIT_SECS * ctx.hz();
        let left = timewait::fin_time(self, ctx).saturating_sub(limit);
        if left > 0 {
            let mut outcome = Outcome::of(Rule::CloseOrphan);
            timewait::orphan_for(self, ctx, left, &mut outcome);
            return outcome;
        }
        let mut outcome = Outcome::sending(Rule::FinWait2Over, self.reset(ctx));
        self.go(Input::Abort);
        outcome.tell(Event::Closed);
        outcome
    }

    fn retransmit_timer(&mut self, ctx: &Ctx<'_>) -> Outcome {
        if self.snd_una == self.snd_nxt {
            return Outcome::of(Rule::TimerIdle);
        }
        if self.write_timed_out(ctx) {
            let event = self.ending(self.soft_error.unwrap_or(ConnError::TimedOut));
            self.go(Input::GiveUp);
            return Outcome::telling(Rule::TimedOut, event);
        }
        let now = secret::millis(ctx.now);
        let (rule, segment, backs_off) = if self.state == State::SynSent {
            self.retransmits += 1;
            let backs_off = self.retransmits > ctx.stack.syn_linear();
            (Rule::SynRetransmitted, Some(self.syn(ctx)), backs_off)
        } else {
            self.set(flag::LOSS, true);
            if self.retransmits == 0 {
                self.retrans_stamp = now;
            }
            self.retransmits = self.retransmits.saturating_add(1);
            (Rule::Retransmitted, self.again(ctx), true)
        };
        if backs_off {
            self.backoff = self.backoff.saturating_add(1);
            self.rto = (u64::from(self.rto) * 2).min(Self::rto_max(ctx)) as u32;
        }
        self.arm(ctx, u64::from(self.rto));
        segment.map_or(Outcome::of(rule), |segment| Outcome::sending(rule, segment))
    }

    /// `tcp_write_timeout`.
    fn write_timed_out(&self, ctx: &Ctx<'_>) -> bool {
        let hz = ctx.hz();
        if self.state == State::SynSent {
            let sysctls = &ctx.stack.sysctls;
            return u32::from(self.retransmits)
                >= u32::from(sysctls.syn_retries) + u32::from(ctx.stack.syn_linear())
                || self.retransmitting_since(ctx, u32::from(sysctls.syn_retries), hz);
        }
        let retries = if !self.has(flag::ORPHAN) {
            RETRIES2
        } else if u64::from(self.rto) < Self::rto_max(ctx) {
            ORPHAN_RETRIES
        } else {
            0
        };
        self.retransmitting_since(ctx, retries, hz / 5)
    }

    /// `retransmits_timed_out`: whether so much time has passed as `boundary` doublings of `base` ticks take.
    fn retransmitting_since(&self, ctx: &Ctx<'_>, boundary: u32, base: u64) -> bool {
        if self.retransmits == 0 {
            return false;
        }
        let max = Self::rto_max(ctx);
        let linear = (max / base).ilog2();
        let doublings = boundary.min(linear);
        let ticks = ((2 << doublings) - 1) * base + u64::from(boundary - doublings) * max;
        let millis = ticks * 1000 / ctx.hz();
        let passed = secret::millis(ctx.now).wrapping_sub(self.retrans_stamp);
        u64::from(passed) >= millis
    }
}
