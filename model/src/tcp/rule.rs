//! The names of the rules that decide what an end of a connection does.

/// The rule that decided. Kernel functions are those of 6.12 where no release is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// connect() sends a SYN (`tcp_v4_connect`).
    Connect,
    /// connect() takes over a four-tuple in TIME_WAIT (`tcp_twsk_unique`).
    TimeWaitTakenOver,
    /// The SYN-ACK is acceptable (`tcp_rcv_synsent_state_process`).
    SynAckAccepted,
    /// SYN_SENT: the acknowledgement is for something else; answer with a RST of that number.
    SynSentBadAck,
    /// SYN_SENT: the echoed timestamp is older than the SYN; answer with a RST.
    SynSentBadEcho,
    /// SYN_SENT: a RST that acknowledges the SYN; ECONNREFUSED.
    SynSentReset,
    /// SYN_SENT: neither SYN nor acknowledgement in it; dropped.
    SynSentIgnored,
    /// SYN_SENT: a SYN without acknowledgement, a simultaneous open; not modelled, dropped.
    SimultaneousOpen,
    /// SYN_SENT: an ICMP error ends the attempt at once (`tcp_v4_err`).
    IcmpHard,
    /// An ICMP error is only remembered: the socket is locked by its user, or the connection is open.
    IcmpSoft,
    /// An ICMP error about a half-open request drops it (`tcp_req_err`).
    IcmpDropsRequest,
    /// An ICMP error that no socket can use.
    IcmpIgnored,
    /// The SYN is sent again (`tcp_retransmit_timer`).
    SynRetransmitted,
    /// Data or a FIN is sent again.
    Retransmitted,
    /// The SYN-ACK is sent again (`reqsk_timer_handler`).
    SynAckRetransmitted,
    /// Retransmission has gone on for too long: ETIMEDOUT, or the remembered ICMP error.
    TimedOut,
    /// The half-open request has gone unanswered for too long.
    RequestExpired,
    /// The delayed acknowledgement is due.
    DelayedAck,
    /// The timer that fired had been moved or stopped in the meantime.
    TimerIdle,
    /// TIME_WAIT, or FIN_WAIT2 without a process, is over.
    TimeWaitOver,
    /// FIN_WAIT2 without a process is over and had not been a small socket: a RST leaves.
    FinWait2Over,
    /// A new SYN for a listener: answered (`tcp_conn_request`).
    SynAnswered,
    /// A new SYN, but the accept queue is full: dropped.
    AcceptQueueFull,
    /// A retransmitted SYN for a request: the SYN-ACK goes out again (`tcp_check_req`).
    RequestSynAgain,
    /// A request's segment is outside of its window: acknowledged.
    RequestOutOfWindow,
    /// A request's acknowledgement is for something else: RST.
    RequestBadAck,
    /// A RST or another SYN kills the request.
    RequestReset,
    /// A RST in the request's window that is not exactly expected: acknowledged.
    RequestChallenge,
    /// The request becomes a connection in the accept queue.
    Accepted,
    /// The request would become a connection, but the accept queue is full: the ACK is ignored.
    AcceptOverflow,
    /// The same with tcp_abort_on_overflow: RST.
    AcceptOverflowReset,
    /// No socket and no listener: RST (`tcp_v4_send_reset`).
    NoSocket,
    /// No socket, and the segment is itself a RST: nothing.
    NoSocketReset,
    /// A listener gets a segment that is neither a SYN nor for a request: RST if it has an ACK.
    ListenerStray,
    /// The address is gone with its network namespace: nothing answers.
    NetnsGone,
    /// The segment is as expected.
    InSequence,
    /// A duplicate or an old segment: acknowledged again.
    Duplicate,
    /// A segment after a hole: acknowledged, not kept.
    AfterHole,
    /// Neither ACK nor RST nor SYN: dropped.
    NoFlags,
    /// The timestamp is older than the last one (PAWS): acknowledged, rate limited.
    PawsRejected,
    /// The sequence number is outside of the window: acknowledged, rate limited.
    OutOfWindow,
    /// A RST outside of the window: dropped.
    ResetIgnored,
    /// A RST at exactly the expected number: the connection is gone (`tcp_reset`).
    ResetAccepted,
    /// A SYN or an inexact RST for an open connection: challenge ACK (RFC 5961).
    ChallengeAck,
    /// The same within 500 ms of the last (`tcp_invalid_ratelimit`): nothing.
    ChallengeLimited,
    /// The acknowledgement is for bytes that were never sent.
    AckOfUnsent,
    /// Data for a connection that no process reads any more: RST (TCPAbortOnData).
    DataAfterClose,
    /// TIME_WAIT: a RST at exactly the expected number kills it (assassination).
    TimeWaitKilled,
    /// TIME_WAIT: a bare ACK at exactly the expected number restarts it.
    TimeWaitRestarted,
    /// TIME_WAIT: a newer SYN is handed to the listener (7.3 step 2).
    TimeWaitReopened,
    /// TIME_WAIT: anything else is acknowledged, rate limited (7.3 step 3).
    TimeWaitAck,
    /// The same within 500 ms of the last: nothing.
    TimeWaitAckLimited,
    /// TIME_WAIT: a RST that is not exact: dropped.
    TimeWaitResetIgnored,
    /// FIN_WAIT2 without a process: a SYN in the window, or data: RST.
    FinWait2Reset,
    /// FIN_WAIT2 without a process: the FIN has come, TIME_WAIT begins.
    FinWait2Fin,
    /// FIN_WAIT2 without a process: a duplicate acknowledgement: dropped.
    FinWait2Duplicate,
    /// The application sends.
    Send,
    /// The application closes and a FIN leaves.
    Close,
    /// The application closes before the connection is open: nothing leaves.
    CloseUnconnected,
    /// The application closes with unread data, or with linger 0: a RST leaves.
    CloseReset,
    /// The application lets go of a socket that had sent its FIN before.
    CloseOrphan,
}
