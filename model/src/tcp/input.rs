//! A segment arrives at a socket that has been opened, and an ICMP error about one.
//!
//! Faithful to: `tcp_rcv_synsent_state_process`, `tcp_validate_incoming`, `tcp_ack`,
//! `tcp_rcv_state_process`, `tcp_fin`, `tcp_v4_err` (6.12; 3.10 to 6.12 alike where no gate is named).
//! Leaves out: the netns-wide limit of challenge ACKs, PAWS after weeks of silence, segments kept after a hole,
//! fast retransmission. Data are acknowledged at once (quick ACK), a FIN after 40 ms unless the application closes first.

use super::rule::Rule;
use super::secret;
use super::socket::{ConnError, Ctx, Event, Outcome, Socket, WINDOW, flag, reset_for};
use super::state::{Input, State};
use super::timewait;
use crate::kernel::Gate;
use crate::segment::{Flags, IcmpKind, Segment, seq_after, seq_before};

/// `TCP_TIMEOUT_MIN`, in ticks.
const TIMEOUT_MIN: u64 = 2;

impl Socket {
    /// A segment arrives for a socket that is neither a listener nor a request. A TIME_WAIT socket that a SYN
    /// may reopen is the business of [`super::server::Pod`]; here it answers as without a listener.
    pub fn on_segment(&mut self, ctx: &Ctx<'_>, segment: &Segment) -> Outcome {
        match self.state {
            State::Closed | State::Listen | State::SynRecv => no_socket(segment),
            State::SynSent => self.syn_sent(ctx, segment),
            State::TimeWait | State::OrphanFinWait2 => {
                match timewait::process(self, ctx, segment) {
                    (outcome, timewait::Verdict::Done) => outcome,
                    (_, timewait::Verdict::Reopen(_)) => timewait::refuse_reopen(self, ctx),
                }
            }
            _ => self.synchronised(ctx, segment),
        }
    }

    fn syn_sent(&mut self, ctx: &Ctx<'_>, segment: &Segment) -> Outcome {
        let flags = segment.flags;
        if !flags.has(Flags::ACK) {
            let rule = if flags.has(Flags::SYN) && !flags.has(Flags::RST) {
                Rule::SimultaneousOpen
            } else {
                Rule::SynSentIgnored
            };
            return Outcome::of(rule);
        }
        if segment.ack != self.snd_nxt {
            if ctx.stack.kernel.has(Gate::SynResendAfterBadAck) && self.retransmits == 0 {
                self.arm(ctx, TIMEOUT_MIN);
            }
            return answer_reset(Rule::SynSentBadAck, segment);
        }
        if let Some(stamps) = segment.options.timestamps
            && stamps.ecr != 0
        {
            let echo = stamps.ecr.wrapping_sub(self.ts_offset);
            let now = secret::millis(ctx.now);
            if now.wrapping_sub(self.retrans_stamp) < echo.wrapping_sub(self.retrans_stamp) {
                return answer_reset(Rule::SynSentBadEcho, segment);
            }
        }
        if flags.has(Flags::RST) {
            self.go(Input::Reset);
            return Outcome::telling(Rule::SynSentReset, Event::Failed(ConnError::Refused));
        }
        if !flags.has(Flags::SYN) {
            return Outcome::of(Rule::SynSentIgnored);
        }
        self.snd_una = segment.ack;
        self.rcv_nxt = segment.seq.wrapping_add(1);
        let stamped = segment.options.timestamps.is_some() && ctx.stack.sysctls.timestamps;
        self.set(flag::TIMESTAMPS, stamped);
        self.ts_recent_stamp = 0;
        self.note_timestamp(ctx, segment);
        self.go(Input::SynAck);
        self.open(ctx);
        let mut outcome = Outcome::sending(Rule::SynAckAccepted, self.ack(ctx));
        outcome.tell(Event::Connected);
        outcome
    }

    /// The request becomes a connection, and `segment`, which completes the handshake, is its first
    /// (`tcp_child_process`). `queued` says that the server has not accepted it yet.
    pub(super) fn accepted(&mut self, ctx: &Ctx<'_>, segment: &Segment, queued: bool) -> Outcome {
        self.go(Input::AckOfSyn);
        self.open(ctx);
        self.set(flag::QUEUED, queued);
        self.snd_una = segment.ack;
        if !seq_after(segment.seq, self.rcv_nxt) {
            self.note_timestamp(ctx, segment);
        }
        let mut outcome = Outcome::telling(Rule::Accepted, Event::Accepted);
        self.text(ctx, segment, &mut outcome);
        outcome
    }

    /// The handshake is complete: nothing is under way, the RTO is that of a short round trip.
    pub(super) const fn open(&mut self, ctx: &Ctx<'_>) {
        self.disarm();
        self.retransmits = 0;
        self.backoff = 0;
        self.retrans_stamp = 0;
        self.soft_error = None;
        self.rto = base_rto(ctx);
    }

    /// Keeps the timestamp of an acceptable segment.
    pub(super) fn note_timestamp(&mut self, ctx: &Ctx<'_>, segment: &Segment) {
        if let Some(stamps) = segment.options.timestamps
            && self.has(flag::TIMESTAMPS)
        {
            self.ts_recent = stamps.val;
            self.ts_recent_stamp = ctx.seconds().max(1);
        }
    }

    /// ESTABLISHED and the closing states, in the order of the kernel's tests.
    fn synchronised(&mut self, ctx: &Ctx<'_>, segment: &Segment) -> Outcome {
        let flags = segment.flags;
        if flags.0 & (Flags::ACK.0 | Flags::RST.0 | Flags::SYN.0) == 0 {
            return Outcome::of(Rule::NoFlags);
        }
        if let Some(outcome) = self.validate(ctx, segment) {
            return outcome;
        }
        if let Some(outcome) = self.bad_ack(ctx, segment) {
            return outcome;
        }
        if !seq_after(segment.seq, self.rcv_nxt)
            && segment
                .options
                .timestamps
                .is_some_and(|stamps| !seq_before(stamps.val, self.ts_recent))
        {
            self.note_timestamp(ctx, segment);
        }
        let mut outcome = Outcome::of(Rule::InSequence);
        self.acknowledged(ctx, segment.ack, &mut outcome);
        if !self.advance(ctx, segment, &mut outcome) {
            return outcome;
        }
        if self.state != State::Closed && !self.state.is_time_wait() {
            self.text(ctx, segment, &mut outcome);
        }
        outcome
    }

    /// `tcp_validate_incoming`: PAWS, window, RST, SYN. `None` if the segment may go on.
    fn validate(&mut self, ctx: &Ctx<'_>, segment: &Segment) -> Option<Outcome> {
        let flags = segment.flags;
        let (rst, syn) = (flags.has(Flags::RST), flags.has(Flags::SYN));
        let paws = self.has(flag::TIMESTAMPS)
            && self.ts_recent != 0
            && segment
                .options
                .timestamps
                .is_some_and(|stamps| self.ts_recent.wrapping_sub(stamps.val) as i32 > 1);
        if paws && !rst {
            return Some(self.complain(ctx, segment, Rule::PawsRejected));
        }
        let before = seq_before(segment.end_seq(), self.rcv_nxt);
        let beyond = seq_after(segment.seq, self.rcv_nxt.wrapping_add(WINDOW));
        if before || beyond {
            if !rst {
                let rule = if before {
                    Rule::Duplicate
                } else {
                    Rule::OutOfWindow
                };
                return Some(self.complain(ctx, segment, rule));
            }
            if !self.resets_before_fin(segment) {
                return Some(Outcome::of(Rule::ResetIgnored));
            }
        }
        if rst {
            if segment.seq == self.rcv_nxt || self.resets_before_fin(segment) {
                return Some(self.reset_by_peer());
            }
            return Some(self.challenge(ctx));
        }
        syn.then(|| self.challenge(ctx))
    }

    /// A RST of a peer that has already forgotten its own FIN (`tcp_reset_check`).
    fn resets_before_fin(&self, segment: &Segment) -> bool {
        segment.seq == self.rcv_nxt.wrapping_sub(1)
            && matches!(
                self.state,
                State::CloseWait | State::LastAck | State::Closing
            )
    }

    fn reset_by_peer(&mut self) -> Outcome {
        let error = match self.state {
            State::CloseWait => ConnError::BrokenPipe,
            _ => ConnError::Reset,
        };
        let event = self.ending(error);
        self.go(Input::Reset);
        Outcome::telling(Rule::ResetAccepted, event)
    }

    /// What the application learns of a connection that ends: nothing bad if it no longer listens.
    pub(super) const fn ending(&self, error: ConnError) -> Event {
        if self.has(flag::ORPHAN) {
            Event::Closed
        } else {
            Event::Failed(error)
        }
    }

    /// A challenge ACK, at most one in 500 ms a socket.
    fn challenge(&mut self, ctx: &Ctx<'_>) -> Outcome {
        if timewait::oow_limited(self, ctx) {
            Outcome::of(Rule::ChallengeLimited)
        } else {
            Outcome::sending(Rule::ChallengeAck, self.ack(ctx))
        }
    }

    /// The acknowledgement of a segment that is not acceptable; a SYN is challenged.
    fn complain(&mut self, ctx: &Ctx<'_>, segment: &Segment, rule: Rule) -> Outcome {
        if segment.flags.has(Flags::SYN) {
            return self.challenge(ctx);
        }
        if segment.end_seq() == segment.seq && timewait::oow_limited(self, ctx) {
            return Outcome::of(Rule::ChallengeLimited);
        }
        Outcome::sending(rule, self.ack(ctx))
    }

    /// An acknowledgement of what was never sent, or of the distant past.
    fn bad_ack(&mut self, ctx: &Ctx<'_>, segment: &Segment) -> Option<Outcome> {
        let old = seq_before(segment.ack, self.snd_una.wrapping_sub(WINDOW));
        if !old && !seq_after(segment.ack, self.snd_nxt) {
            return None;
        }
        if self.state == State::Established && !old {
            return Some(Outcome::of(Rule::AckOfUnsent));
        }
        Some(self.challenge(ctx))
    }

    /// Takes the acknowledgement of our bytes.
    fn acknowledged(&mut self, ctx: &Ctx<'_>, ack: u32, outcome: &mut Outcome) {
        if !seq_after(ack, self.snd_una) {
            return;
        }
        self.snd_una = ack;
        self.retransmits = 0;
        self.backoff = 0;
        self.soft_error = None;
        self.rto = base_rto(ctx);
        if self.snd_una == self.snd_nxt {
            self.set(flag::LOSS, false);
            self.retrans_stamp = 0;
            self.disarm();
        } else {
            self.arm(ctx, u64::from(self.rto));
            if self.has(flag::LOSS)
                && let Some(next) = self.again(ctx)
            {
                outcome.send(next);
            }
        }
        self.output(ctx, outcome);
    }

    /// The closing states after an acknowledgement. False if the segment is done with.
    fn advance(&mut self, ctx: &Ctx<'_>, segment: &Segment, outcome: &mut Outcome) -> bool {
        if self.snd_una != self.write_seq {
            return true;
        }
        match self.state {
            State::FinWait1 => {
                self.go(Input::AckOfFin);
                if !self.has(flag::ORPHAN) {
                    return true;
                }
                let fin = segment.flags.has(Flags::FIN);
                let data_end = segment.end_seq().wrapping_sub(u32::from(fin));
                if segment.end_seq() != segment.seq && seq_after(data_end, self.rcv_nxt) {
                    self.abort_on_data(segment, outcome);
                    return false;
                }
                if fin {
                    self.set(flag::FULL_FIN_WAIT2, true);
                    self.arm(ctx, timewait::fin_time(self, ctx));
                    return true;
                }
                timewait::orphan(self, ctx, outcome);
                false
            }
            State::Closing => {
                timewait::enter(self, ctx, Input::AckOfFin, outcome);
                false
            }
            State::LastAck => {
                self.go(Input::AckOfFin);
                outcome.tell(Event::Closed);
                false
            }
            _ => true,
        }
    }

    /// Data nobody will read: the connection is reset.
    fn abort_on_data(&mut self, segment: &Segment, outcome: &mut Outcome) {
        outcome.rule = Rule::DataAfterClose;
        if let Some(reset) = reset_for(segment) {
            outcome.send(reset);
        }
        self.go(Input::Abort);
        outcome.tell(Event::Closed);
    }

    /// The segment's text and FIN.
    fn text(&mut self, ctx: &Ctx<'_>, segment: &Segment, outcome: &mut Outcome) {
        let end = segment.end_seq();
        if end == segment.seq {
            return;
        }
        let closing = matches!(
            self.state,
            State::CloseWait | State::Closing | State::LastAck
        );
        if closing && !seq_before(segment.seq, self.rcv_nxt) {
            outcome.rule = Rule::OutOfWindow;
            return;
        }
        let fin = segment.flags.has(Flags::FIN);
        let data_end = end.wrapping_sub(u32::from(fin));
        if self.has(flag::ORPHAN) && seq_after(data_end, self.rcv_nxt) {
            self.abort_on_data(segment, outcome);
            return;
        }
        if !seq_after(end, self.rcv_nxt) {
            outcome.rule = Rule::Duplicate;
            outcome.send(self.ack(ctx));
            return;
        }
        if seq_after(segment.seq, self.rcv_nxt) {
            outcome.rule = Rule::AfterHole;
            outcome.send(self.ack(ctx));
            return;
        }
        let bytes = data_end.wrapping_sub(self.rcv_nxt);
        self.rcv_nxt = end;
        if bytes > 0 && bytes <= WINDOW {
            if self.has(flag::QUEUED) {
                self.set(flag::UNREAD, true);
            }
            outcome.tell(Event::Data(bytes));
        }
        if fin {
            self.fin(ctx, bytes > 0, outcome);
        } else {
            self.set(flag::ACK_OWED, false);
            outcome.send(self.ack(ctx));
        }
    }

    /// The peer's FIN has come in order (`tcp_fin`).
    fn fin(&mut self, ctx: &Ctx<'_>, with_data: bool, outcome: &mut Outcome) {
        match self.state {
            State::Established => {
                self.go(Input::Fin);
                outcome.tell(Event::PeerClosed);
                if with_data || self.has(flag::TIMER) {
                    outcome.send(self.ack(ctx));
                } else {
                    self.set(flag::ACK_OWED, true);
                    self.arm(ctx, (ctx.hz() / 25).max(1));
                }
            }
            State::FinWait1 => {
                outcome.send(self.ack(ctx));
                self.go(Input::Fin);
                if !self.has(flag::ORPHAN) {
                    outcome.tell(Event::PeerClosed);
                }
            }
            _ => {
                outcome.send(self.ack(ctx));
                if !self.has(flag::ORPHAN) {
                    outcome.tell(Event::PeerClosed);
                }
                timewait::enter(self, ctx, Input::Fin, outcome);
            }
        }
    }

    /// An ICMP error about a segment of this socket. `owned` says that a system call of the application holds
    /// the socket at this moment: then the error is only remembered. That is so when the error comes back
    /// while connect() is still sending: to a client on the machine of the node that sends it, on kernels
    /// without [`Gate::IcmpAfterConnect`] (facts 1.9). An error about a repeated SYN never finds it owned.
    pub fn on_icmp(&mut self, ctx: &Ctx<'_>, kind: IcmpKind, owned: bool) -> Outcome {
        let error = ConnError::of(kind);
        match self.state {
            State::SynSent if !owned => {
                self.go(Input::Reset);
                Outcome::telling(Rule::IcmpHard, Event::Failed(error))
            }
            State::SynRecv => {
                if matches!(kind, IcmpKind::PortUnreachable | IcmpKind::AdminProhibited) {
                    return Outcome::of(Rule::IcmpIgnored);
                }
                self.go(Input::Reset);
                Outcome::telling(Rule::IcmpDropsRequest, Event::Closed)
            }
            State::TimeWait | State::OrphanFinWait2 | State::Closed | State::Listen => {
                Outcome::of(Rule::IcmpIgnored)
            }
            _ => {
                self.soft_error = Some(error);
                let reverts = matches!(kind, IcmpKind::HostUnreachable | IcmpKind::NetUnreachable);
                if reverts && !owned && self.retransmits > 0 && self.backoff > 0 {
                    self.revert_backoff(ctx);
                }
                Outcome::of(Rule::IcmpSoft)
            }
        }
    }

    /// RFC 6069: one doubling of the RTO is taken back.
    fn revert_backoff(&mut self, ctx: &Ctx<'_>) {
        self.backoff -= 1;
        let ticks = u64::from(base_rto(ctx)) << self.backoff;
        self.rto = ticks.min(Self::rto_max(ctx)) as u32;
        self.arm(ctx, u64::from(self.rto));
    }
}

/// The RTO of an open connection with a short round trip: `TCP_RTO_MIN` and one tick.
const fn base_rto(ctx: &Ctx<'_>) -> u32 {
    (ctx.hz() / 5 + 1) as u32
}

fn answer_reset(rule: Rule, segment: &Segment) -> Outcome {
    reset_for(segment).map_or(Outcome::of(rule), |reset| Outcome::sending(rule, reset))
}

/// A segment for which there is no socket.
pub(super) fn no_socket(segment: &Segment) -> Outcome {
    reset_for(segment).map_or(Outcome::of(Rule::NoSocketReset), |reset| {
        Outcome::sending(Rule::NoSocket, reset)
    })
}
