//! A TCP segment meets its conntrack entry: state, window, retransmissions, lifetime.
//!
//! Faithful to: `nf_conntrack_tcp_packet`, `tcp_new`, `tcp_error`, `nf_tcp_handle_invalid`, 3.10 to 6.12.
//! Leaves out: checksums, the SYN proxy, sequence numbers mangled by helpers.

use super::entry::{Dir, Seen, Status, TcpState};
use super::rule::CtRule;
use super::table::{Cell, CtState, FlagClass, next_state};
use super::window::{self, Window};
use crate::kernel::{Behaviours, Gate};
use crate::segment::{Flags, Options, Segment, seq_before};
use crate::sysctl::CtSysctls;

/// What the rules know besides the record and the segment.
#[derive(Clone, Copy, Debug)]
pub struct TcpEnv<'a> {
    /// `net.netfilter.nf_conntrack_*`.
    pub sysctls: &'a CtSysctls,
    /// The kernel.
    pub kernel: Behaviours,
    /// Ticks a second.
    pub hz: u32,
    /// Ticks until the entry's deadline; only read when it is confirmed.
    pub remaining: u64,
}

/// What happens to the segment and the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpVerdict {
    /// The segment belongs to the entry, which lives `timeout` seconds from now; `None` keeps its deadline.
    Accept {
        /// The rule that decided.
        rule: CtRule,
        /// New lifetime in seconds.
        timeout: Option<u32>,
    },
    /// The segment belongs to the entry, which is deleted at once.
    AcceptAndDelete(CtRule),
    /// The segment passes without an entry. The entry's lifetime may be cut.
    Invalid {
        /// The rule that decided.
        rule: CtRule,
        /// New lifetime in seconds.
        timeout: Option<u32>,
    },
    /// The entry is deleted and the segment judged again without it.
    Reopen,
}

/// The configured lifetime of a state, in seconds (facts 5.2).
pub const fn timeout_of(state: CtState, sysctls: &CtSysctls) -> u32 {
    match state {
        // Unused by the kernel's packet path; its table has the SYN_SENT value there.
        CtState::None | CtState::SynSent | CtState::SynSent2 => sysctls.syn_sent,
        CtState::SynRecv => sysctls.syn_recv,
        CtState::Established => sysctls.established,
        CtState::FinWait => sysctls.fin_wait,
        CtState::CloseWait => sysctls.close_wait,
        CtState::LastAck => sysctls.last_ack,
        CtState::TimeWait => sysctls.time_wait,
        CtState::Close => sysctls.close,
    }
}

/// Whether a TCP sends these flags together (`tcp_error`); PSH, ECE and CWR do not matter.
pub const fn flags_are_valid(flags: Flags) -> bool {
    const URG: u8 = 0x20;
    const SYN: u8 = Flags::SYN.0;
    const FIN: u8 = Flags::FIN.0;
    const RST: u8 = Flags::RST.0;
    const ACK: u8 = Flags::ACK.0;
    let with_urg = flags.0 & !(Flags::PSH.0 | 0x40 | 0x80);
    let plain = with_urg & !URG;
    match plain {
        _ if plain == SYN || plain == ACK || plain == FIN | ACK => true,
        _ if plain == SYN | ACK || plain == RST || plain == RST | ACK => with_urg == plain,
        _ => false,
    }
}

/// Reads the options of a SYN into one side's record (`tcp_options`). A segment without options changes nothing.
pub(super) fn read_options(seen: &mut Seen, options: &Options, kernel: Behaviours) {
    let any = options.wscale.is_some()
        || options.sack_ok
        || options.sack_right.is_some()
        || options.timestamps.is_some();
    if !any {
        return;
    }
    seen.scale = 0;
    seen.flags &= if kernel.has(Gate::OptionsKeepLiberal) {
        Seen::BE_LIBERAL
    } else {
        0
    };
    if options.sack_ok {
        seen.flags |= Seen::SACK_PERM;
    }
    if let Some(scale) = options.wscale {
        seen.scale = scale.min(14);
        seen.flags |= Seen::WINDOW_SCALE;
    }
}

/// The record of a segment that has no entry yet (`tcp_new`).
///
/// # Errors
/// The rule by which the segment cannot begin an entry.
pub fn tcp_new(seg: &Segment, env: &TcpEnv<'_>) -> Result<(TcpState, CtRule), CtRule> {
    let class = FlagClass::of(seg.flags);
    let mut tcp = TcpState::default();
    let window = u32::from(seg.window).max(1);
    let end = seg.end_seq();
    tcp.seen[0].end = end;
    tcp.seen[0].max_window = window;
    match next_state(env.kernel, Dir::Original, class, CtState::None) {
        Cell::To(CtState::SynSent) => {
            tcp.seen[0].max_end = end;
            read_options(&mut tcp.seen[0], &seg.options, env.kernel);
            Ok((tcp, CtRule::NewSyn))
        }
        Cell::To(_) if !env.sysctls.tcp_loose => Err(CtRule::InvalidNotLoose),
        Cell::To(_) => {
            tcp.seen[0].max_end = end.wrapping_add(window);
            tcp.seen[0].flags = Seen::SACK_PERM | Seen::BE_LIBERAL;
            tcp.seen[1].flags = Seen::SACK_PERM | Seen::BE_LIBERAL;
            Ok((tcp, CtRule::NewMidStream))
        }
        Cell::Ignore | Cell::Invalid => Err(CtRule::InvalidNew),
    }
}

/// How the segment goes on after the table has been asked.
enum Step {
    /// To the window check; if that accepts, the rule and the states are these.
    Check {
        rule: CtRule,
        old: CtState,
        new: CtState,
    },
    /// Accepted without a window check.
    Take { rule: CtRule, new: CtState },
    /// Decided.
    Done(TcpVerdict),
}

/// Judges a segment that has an entry and updates the entry's record.
///
/// `status` is the entry's; this sets ASSURED, and the caller sets SEEN_REPLY after an accepted reply.
#[inline(always)]
pub fn tcp_packet(
    tcp: &mut TcpState,
    status: &mut Status,
    dir: Dir,
    seg: &Segment,
    env: &TcpEnv<'_>,
) -> TcpVerdict {
    let class = FlagClass::of(seg.flags);
    let old = tcp.state;
    let step = match next_state(env.kernel, dir, class, old) {
        Cell::Invalid => Step::Done(invalid(CtRule::InvalidState)),
        Cell::Ignore => ignore(tcp, dir, class, seg, env),
        Cell::To(CtState::SynSent) if old >= CtState::TimeWait => {
            if may_reopen(tcp, dir) {
                Step::Done(TcpVerdict::Reopen)
            } else {
                ignore(tcp, dir, class, seg, env)
            }
        }
        Cell::To(CtState::TimeWait) if is_challenge_ack(tcp, dir, class, env) => {
            tcp.last_flags &= !TcpState::EXPECT_CHALLENGE_ACK;
            Step::Done(accept_unchanged(CtRule::IgnoredChallengeAck))
        }
        Cell::To(CtState::SynSent2) => {
            tcp.last_flags |= TcpState::SIMULTANEOUS_OPEN;
            check(CtRule::SimultaneousOpen, old, CtState::SynSent2)
        }
        Cell::To(CtState::SynRecv)
            if dir == Dir::Reply
                && class == FlagClass::Ack
                && tcp.last_flags & TcpState::SIMULTANEOUS_OPEN != 0 =>
        {
            check(CtRule::InWindow, old, CtState::Established)
        }
        Cell::To(CtState::Close) if class == FlagClass::Rst => rst(tcp, *status, dir, seg, env),
        Cell::To(new) => check(CtRule::InWindow, old, new),
    };
    let (rule, old, new) = match step {
        Step::Done(verdict) => return verdict,
        Step::Take { rule, new } => (rule, old, new),
        Step::Check { rule, old, new } => match window::check(tcp, dir, class, seg, env) {
            Window::In => (rule, old, new),
            Window::Liberal => (CtRule::LiberalWindow, old, new),
            Window::Ignore(rule) => return accept_unchanged(rule),
            Window::Invalid(rule) => return out_of_window(tcp, *status, dir, class, rule, env),
        },
    };
    tcp.last_class = class;
    tcp.last_dir = dir;
    tcp.state = new;
    if old != new && new == CtState::FinWait {
        tcp.seen[dir as usize].flags |= Seen::CLOSE_INIT;
    }
    finish(tcp, status, class, (rule, old, new), env)
}

const fn invalid(rule: CtRule) -> TcpVerdict {
    TcpVerdict::Invalid {
        rule,
        timeout: None,
    }
}

const fn accept_unchanged(rule: CtRule) -> TcpVerdict {
    TcpVerdict::Accept {
        rule,
        timeout: None,
    }
}

const fn check(rule: CtRule, old: CtState, new: CtState) -> Step {
    Step::Check { rule, old, new }
}

/// Whether a SYN may replace a finished entry: a FIN had been seen, or the sender's own RST was the last segment.
fn may_reopen(tcp: &TcpState, dir: Dir) -> bool {
    tcp.flags() & Seen::CLOSE_INIT != 0 || (tcp.last_dir == dir && tcp.last_class == FlagClass::Rst)
}

/// RFC 5961: the ACK that answers an ignored SYN in LAST_ACK is not the last ACK.
fn is_challenge_ack(tcp: &TcpState, dir: Dir, class: FlagClass, env: &TcpEnv<'_>) -> bool {
    env.kernel.has(Gate::ChallengeAckLastAck)
        && tcp.state == CtState::LastAck
        && class == FlagClass::Ack
        && tcp.last_dir != dir
        && tcp.last_class == FlagClass::Syn
        && tcp.last_flags & TcpState::EXPECT_CHALLENGE_ACK != 0
}

/// A segment that the entry does not believe is noted and passes; if it answers an ignored SYN the entry follows.
fn ignore(tcp: &mut TcpState, dir: Dir, class: FlagClass, seg: &Segment, env: &TcpEnv<'_>) -> Step {
    let answers_ignored_syn = class == FlagClass::SynAck
        && tcp.last_class == FlagClass::Syn
        && tcp.last_dir != dir
        && seg.ack == tcp.last_end;
    if answers_ignored_syn {
        resynchronise(tcp, dir, env.kernel);
        return check(CtRule::Resynchronised, CtState::SynSent, CtState::SynRecv);
    }
    let state = tcp.state;
    tcp.last_class = class;
    tcp.last_dir = dir;
    tcp.last_seq = seg.seq;
    tcp.last_end = seg.end_seq();
    tcp.last_window = seg.window;
    if class == FlagClass::Syn && dir == Dir::Original {
        tcp.last_flags = 0;
        tcp.last_scale = 0;
        if let Some(scale) = seg.options.wscale {
            tcp.last_flags |= Seen::WINDOW_SCALE;
            tcp.last_scale = scale.min(14);
        }
        if seg.options.sack_ok {
            tcp.last_flags |= Seen::SACK_PERM;
        }
        if state == CtState::LastAck {
            tcp.last_flags |= TcpState::EXPECT_CHALLENGE_ACK;
        }
    }
    if env.kernel.has(Gate::ChallengeAckReuse)
        && state == CtState::SynSent
        && class == FlagClass::Ack
        && dir == Dir::Reply
    {
        tcp.last_ack = seg.ack;
    }
    Step::Done(accept_unchanged(match class {
        FlagClass::SynAck => CtRule::IgnoredSynAck,
        FlagClass::Ack => CtRule::IgnoredAck,
        _ => CtRule::IgnoredSyn,
    }))
}

/// Takes the sender of the ignored SYN from what was noted, and forgets the sender of the SYN-ACK.
fn resynchronise(tcp: &mut TcpState, dir: Dir, kernel: Behaviours) {
    tcp.last_flags &= !TcpState::EXPECT_CHALLENGE_ACK;
    let syn_sender = &mut tcp.seen[tcp.last_dir as usize];
    syn_sender.end = tcp.last_end;
    syn_sender.max_end = tcp.last_end;
    syn_sender.max_window = u32::from(tcp.last_window).max(1);
    syn_sender.scale = tcp.last_scale;
    syn_sender.flags = tcp.last_flags;
    let answerer = &mut tcp.seen[dir as usize];
    let kept = if kernel.has(Gate::OptionsKeepLiberal) {
        answerer.flags & Seen::BE_LIBERAL
    } else {
        0
    };
    *answerer = Seen {
        flags: kept,
        ..Seen::default()
    };
}

/// A RST: believed at once, checked further, or known to be invalid (facts 5.3.4).
fn rst(tcp: &TcpState, status: Status, dir: Dir, seg: &Segment, env: &TcpEnv<'_>) -> Step {
    let old = tcp.state;
    let mut new = CtState::Close;
    let mut rule = CtRule::RstClosed;
    let modern = env.kernel.has(Gate::RstClosingAccepted);
    if modern && old.is_closing() {
        return Step::Take {
            rule: CtRule::RstWhileClosing,
            new,
        };
    }
    let peer = &tcp.seen[dir.other() as usize];
    let max_ack_is_current = !modern || tcp.last_class != FlagClass::Syn;
    if peer.has(Seen::MAXACK_SET) && max_ack_is_current {
        let established = old == CtState::Established && status.has(Status::ASSURED);
        if modern && seg.seq == 0 && !established {
            return check(rule, old, new);
        }
        let ignore_invalid = modern && env.sysctls.ignore_invalid_rst;
        if seq_before(seg.seq, peer.max_ack) && !ignore_invalid {
            return Step::Done(invalid(CtRule::InvalidRst));
        }
        if env.kernel.has(Gate::RstExactSeq) {
            let of_a_train =
                tcp.last_class == FlagClass::Ack && tcp.last_dir == dir && seg.seq == tcp.last_end;
            if !established || seg.seq == peer.max_ack || of_a_train {
                return check(rule, old, new);
            }
            new = old;
            rule = CtRule::RstInexact;
        }
    }
    let other_side = !env.kernel.has(Gate::RstAnswersOther) || tcp.last_dir != dir;
    let after_syn =
        status.has(Status::SEEN_REPLY) && tcp.last_class == FlagClass::Syn && other_side;
    let after_ack = !status.has(Status::ASSURED) && tcp.last_class == FlagClass::Ack;
    if (after_syn || after_ack) && seg.ack == tcp.last_end {
        return Step::Take {
            rule: CtRule::RstAnswersIgnored,
            new,
        };
    }
    if env.kernel.has(Gate::ChallengeAckReuse)
        && old == CtState::SynSent
        && tcp.last_class == FlagClass::Ack
        && tcp.last_dir == Dir::Reply
        && seg.seq == tcp.last_ack
    {
        return Step::Take {
            rule: CtRule::RstAnswersChallenge,
            new,
        };
    }
    check(rule, old, new)
}

/// An out-of-window segment gets no entry; a FIN or RST in answer to one of the other side cuts the lifetime.
fn out_of_window(
    tcp: &mut TcpState,
    status: Status,
    dir: Dir,
    class: FlagClass,
    rule: CtRule,
    env: &TcpEnv<'_>,
) -> TcpVerdict {
    let ends = |class| matches!(class, FlagClass::Fin | FlagClass::Rst);
    if !env.kernel.has(Gate::OutOfWindowShortens) || !status.has(Status::ASSURED) || !ends(class) {
        return invalid(rule);
    }
    if tcp.last_dir != dir && ends(tcp.last_class) {
        let hz = u64::from(env.hz);
        let cut = u64::from(env.sysctls.unacknowledged) * hz;
        if env.remaining >= 120 * hz && env.remaining > cut {
            return TcpVerdict::Invalid {
                rule: CtRule::InvalidShortened,
                timeout: Some(env.sysctls.unacknowledged),
            };
        }
    } else {
        tcp.last_class = class;
        tcp.last_dir = dir;
    }
    invalid(rule)
}

/// The lifetime after an accepted segment, in seconds.
#[inline]
fn lifetime(tcp: &TcpState, class: FlagClass, new: CtState, env: &TcpEnv<'_>) -> u32 {
    let sysctls = env.sysctls;
    let timeout = timeout_of(new, sysctls);
    let is_rst = class == FlagClass::Rst;
    let cut_rst = env.kernel.has(Gate::RstKeepsEstablished300);
    if tcp.retrans >= sysctls.max_retrans && timeout > sysctls.max_retrans_timeout {
        sysctls.max_retrans_timeout
    } else if cut_rst && is_rst && new == CtState::Established && timeout > sysctls.unacknowledged {
        sysctls.unacknowledged
    } else if !cut_rst && is_rst && env.kernel.has(Gate::RstExactSeq) {
        sysctls.close
    } else if tcp.flags() & Seen::UNACKNOWLEDGED != 0 && timeout > sysctls.unacknowledged {
        sysctls.unacknowledged
    } else if tcp.last_window == 0
        && timeout > sysctls.max_retrans_timeout
        && env.kernel.has(Gate::ZeroWindow300)
    {
        sysctls.max_retrans_timeout
    } else {
        timeout
    }
}

/// The end of an accepted segment: ASSURED, and how long the entry lives.
#[inline]
fn finish(
    tcp: &TcpState,
    status: &mut Status,
    class: FlagClass,
    (rule, old, new): (CtRule, CtState, CtState),
    env: &TcpEnv<'_>,
) -> TcpVerdict {
    let mut timeout = lifetime(tcp, class, new, env);
    if !status.has(Status::SEEN_REPLY) {
        if class == FlagClass::Rst {
            return TcpVerdict::AcceptAndDelete(CtRule::RstUnanswered);
        }
        if env.kernel.has(Gate::SynRetransKeepsTimeout)
            && class == FlagClass::Syn
            && old == CtState::SynSent
        {
            return accept_unchanged(CtRule::SynRetransmitted);
        }
        if new == CtState::Established {
            timeout = timeout.min(env.sysctls.unacknowledged);
        }
    } else if matches!(old, CtState::SynRecv | CtState::Established) && new == CtState::Established
    {
        status.set(Status::ASSURED);
    }
    TcpVerdict::Accept {
        rule,
        timeout: Some(timeout),
    }
}
