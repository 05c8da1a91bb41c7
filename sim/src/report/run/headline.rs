//! The verdict in words: what failed, when, for how long, what the clients saw, why, and what to try.

use ipvs_model::time::{NANOS_PER_SEC, Span};

use super::timeline::DEAD_MIN;
use super::{Header, timeline};
use crate::outcome::{Cause, DELAYED_AFTER, Outcome, RunSummary};
use crate::report::text::{Align, Look, Tone, columns, count_of, length, percent, thousands};

/// At most so many kinds of outcome, causes and remedies on the first screen.
const LINES_MAX: usize = 4;

/// The verdict, and below it what the clients saw, why, and what to try.
pub fn text(header: &Header, look: Look, summary: &RunSummary) -> String {
    let mut out = String::new();
    for (tone, sentence) in sentences(header, summary) {
        out.push_str(&look.paint(tone, &sentence));
        out.push('\n');
    }
    let parts = [details(look, summary), remedies(header, look, summary)];
    for part in parts.iter().filter(|part| !part.is_empty()) {
        out.push('\n');
        out.push_str(part);
    }
    out
}

/// The verdict as sentences with their weight; also what the JSON calls `verdict`.
pub fn sentences(header: &Header, summary: &RunSummary) -> Vec<(Tone, String)> {
    if summary.requests == 0 {
        let sentence =
            "No request was counted: there was no load, or all of it fell into the warm-up.";
        return vec![(Tone::Warn, sentence.to_owned())];
    }
    let mut out = vec![failed(summary)];
    out.extend(dead(header, summary));
    out.extend(late(summary));
    out.extend(no_port(summary));
    let open = summary.count(Outcome::Unfinished);
    if open > 0 {
        let were = if open == 1 { "was" } else { "were" };
        let sentence = format!(
            "{} {were} still open when the run ended and counted as neither.",
            thousands(open)
        );
        out.push((Tone::Dim, sentence));
    }
    out
}

fn failed(summary: &RunSummary) -> (Tone, String) {
    let (failed, decided) = (summary.failed(), summary.decided());
    if decided == 0 {
        let sentence = "No request got as far as to succeed or fail.".to_owned();
        return (Tone::Warn, sentence);
    }
    let mut of = count_of(decided, "request", "requests");
    if summary.count(Outcome::PortsExhausted) > 0 {
        of.push_str(" that had a port");
    }
    if failed == 0 {
        return (Tone::Good, format!("None of {of} failed."));
    }
    let window = match window(summary, |second| second.failed) {
        Some((from, until)) if failed > 1 => format!(", all between {from} s and {until} s"),
        Some((from, _)) => format!(", at {from} s"),
        None => String::new(),
    };
    let share = percent(failed, decided);
    (
        Tone::Bad,
        format!("{} of {of} failed ({share}){window}.", thousands(failed)),
    )
}

/// Stretches without an answer, if any lasted long enough to be called dead.
fn dead(header: &Header, summary: &RunSummary) -> Option<(Tone, String)> {
    if summary.longest_dead_ns < DEAD_MIN.0 {
        return None;
    }
    let longest = length(Span(summary.longest_dead_ns));
    let mut stretches = timeline::dead_stretches(header, summary);
    stretches.retain(|(from, until)| until - from >= DEAD_MIN.as_secs());
    let longer = |best: (u64, u64), next: (u64, u64)| {
        if next.1 - next.0 > best.1 - best.0 {
            next
        } else {
            best
        }
    };
    let end = header.duration.0.div_ceil(NANOS_PER_SEC);
    let place = match stretches.iter().copied().reduce(longer) {
        Some((from, until)) if until >= end => format!(", from about {from} s to the end"),
        Some((from, until)) => format!(", from about {from} s to {until} s"),
        None => String::new(),
    };
    let sentence = if stretches.len() > 1 {
        let together = stretches
            .iter()
            .map(|(from, until)| until - from)
            .sum::<u64>();
        format!(
            "The service was dead {} times, about {together} s together, the longest time for {longest}{place}",
            stretches.len()
        )
    } else {
        format!("The service was dead for {longest}{place}")
    };
    let sentence = format!("{sentence}: requests were made and not one was answered.");
    Some((Tone::Bad, sentence))
}

fn late(summary: &RunSummary) -> Option<(Tone, String)> {
    let late = summary.delayed_total();
    if late == 0 {
        return None;
    }
    let sentence = format!(
        "{} ({} of the answered) connected late, after more than {}{}.",
        count_of(late, "request", "requests"),
        percent(late, summary.count(Outcome::Answered)),
        length(DELAYED_AFTER),
        within(window(summary, |second| second.delayed)),
    );
    Some((Tone::Warn, sentence))
}

fn no_port(summary: &RunSummary) -> Option<(Tone, String)> {
    let none = summary.count(Outcome::PortsExhausted);
    if none == 0 {
        return None;
    }
    let sentence = format!(
        "{} ({} of all) found no free local port{}: the client's limit, no failure of the service.",
        count_of(none, "request", "requests"),
        percent(none, summary.ended()),
        within(window(summary, |second| second.ports_exhausted)),
    );
    Some((Tone::Warn, sentence))
}

fn within(window: Option<(u64, u64)>) -> String {
    window.map_or_else(String::new, |(from, until)| {
        format!(", between {from} s and {until} s")
    })
}

/// From the first second in which `count` is not zero to the end of the last.
fn window(
    summary: &RunSummary,
    count: impl Fn(&crate::outcome::SecondCounts) -> u64,
) -> Option<(u64, u64)> {
    let first = summary
        .timeline
        .iter()
        .position(|second| count(second) > 0)?;
    let last = summary
        .timeline
        .iter()
        .rposition(|second| count(second) > 0)?;
    Some((first as u64, last as u64 + 1))
}

/// What the clients saw and why, most frequent first.
fn details(look: Look, summary: &RunSummary) -> String {
    let saw = Outcome::ALL.iter().filter(|outcome| outcome.is_failure());
    let saw = saw.map(|outcome| (summary.count(*outcome), outcome.describe()));
    let counts = |counts: &[u64; Cause::COUNT]| {
        let causes = Cause::ALL.iter();
        causes
            .map(|cause| (counts[cause.index()], cause.describe()))
            .collect::<Vec<_>>()
    };
    let mut out = ranked(look, "The clients saw", saw.collect());
    out.push_str(&ranked(look, "Why it failed", counts(&summary.causes)));
    out.push_str(&ranked(look, "Why it was late", counts(&summary.delayed)));
    out
}

fn ranked(look: Look, title: &str, mut counts: Vec<(u64, &str)>) -> String {
    counts.retain(|(count, _)| *count > 0);
    if counts.is_empty() {
        return String::new();
    }
    // Stable: equal counts stay in the order of the enum.
    counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let rest = counts.split_off(counts.len().min(LINES_MAX));
    let mut rows = counts
        .iter()
        .map(|(count, words)| (*count, (*words).to_owned()))
        .collect::<Vec<_>>();
    if !rest.is_empty() {
        rows.push((
            rest.iter().map(|(count, _)| count).sum(),
            "for other reasons, below".to_owned(),
        ));
    }
    let rows = rows
        .into_iter()
        .map(|(count, words)| vec![thousands(count), words]);
    let lines = columns(
        "  ",
        &[Align::Right, Align::Left],
        &rows.collect::<Vec<_>>(),
    );
    format!("{}\n{lines}", look.paint(Tone::Heading, title))
}

/// What to try against the most frequent causes, as flags for the same command: the same seed, so that only the
/// setting changes.
fn remedies(header: &Header, look: Look, summary: &RunSummary) -> String {
    let mut causes = Cause::ALL
        .iter()
        .map(|cause| {
            let place = cause.index();
            (summary.causes[place] + summary.delayed[place], *cause)
        })
        .collect::<Vec<_>>();
    causes.push((
        summary.count(Outcome::PortsExhausted),
        Cause::PortsExhausted,
    ));
    causes.retain(|(count, _)| *count > 0);
    causes.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let mut rows = Vec::<Vec<String>>::new();
    for (flag, words) in causes
        .iter()
        .flat_map(|(_, cause)| remedies_of(*cause, header.ipvs))
    {
        let known = rows.iter().any(|row| row[0] == *flag);
        // What the command sets already is not worth proposing; people who set it know better.
        let name = flag.split_whitespace().next().unwrap_or(flag);
        let is_set = header
            .command
            .split_whitespace()
            .any(|word| word == name && name != "--set");
        if !known && !is_set && rows.len() < LINES_MAX {
            rows.push(vec![(*flag).to_owned(), (*words).to_owned()]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let lines = columns("  ", &[Align::Left, Align::Left], &rows);
    let title = look.paint(Tone::Heading, "To try: the same command with");
    format!("{title}\n{lines}")
}

/// All flags that a report may recommend, for a test that they exist.
pub fn recommended_flags() -> Vec<&'static str> {
    let both = |cause: &Cause| [remedies_of(*cause, true), remedies_of(*cause, false)].concat();
    Cause::ALL
        .iter()
        .flat_map(both)
        .map(|(flag, _)| flag)
        .collect()
}

/// Flags worth trying against a cause. Experiments, not promises: the next run tells.
const fn remedies_of(cause: Cause, ipvs: bool) -> &'static [(&'static str, &'static str)] {
    const WIDER_PORTS: (&str, &str) = (
        "--ports 1024-65535",
        "ports come round later (net.ipv4.ip_local_port_range)",
    );
    const REUSE_MODE: (&str, &str) = (
        "--conn-reuse-mode 1",
        "a reused port may be scheduled anew; before 5.9 at the price of 1 s",
    );
    const IPTABLES: (&str, &str) = ("--mode iptables", "no entries of its own beside conntrack");
    const KEEP_ALIVE: (&str, &str) = (
        "--requests-per-connection 100",
        "keep-alive: fewer connections, fewer ports",
    );
    const PRE_STOP: (&str, &str) = (
        "--pre-stop 60s --grace-period 90s",
        "the pod outlives the news of its end",
    );
    const WEIGHT_ZERO: (&str, &str) = (
        "--kernel 5.16",
        "looks at weight 0 in every mode (as 4.19.219, 5.4.163, 5.10.83, 5.15.6)",
    );
    match cause {
        Cause::PinnedToDrained if ipvs => &[REUSE_MODE, WIDER_PORTS, WEIGHT_ZERO, IPTABLES],
        Cause::PinnedToDeleted if ipvs => &[
            (
                "--expire-nodest-conn 1",
                "entries of deleted real servers go at their next packet",
            ),
            WIDER_PORTS,
        ],
        Cause::PinnedByConntrack | Cause::StaleServerSocket | Cause::AddressReassigned => {
            &[WIDER_PORTS, KEEP_ALIVE]
        }
        Cause::EndpointLag => &[PRE_STOP],
        Cause::ConnectionCut => &[
            (
                "--set rollout.deployment.on_sigterm=drains",
                "the server finishes its connections",
            ),
            PRE_STOP,
        ],
        Cause::SynDroppedOnReuse => &[
            (
                "--kernel 5.9",
                "drops the SYN only if conntrack cannot reopen the connection (as 4.19.140, 5.4.59)",
            ),
            WIDER_PORTS,
            KEEP_ALIVE,
        ],
        Cause::ListenQueueFull => &[(
            "--set server.backlog=4096",
            "a longer accept queue (and net.core.somaxconn)",
        )],
        Cause::ConntrackFull => &[("--conntrack-max 1000000", "room for more connections")],
        Cause::PortsExhausted | Cause::NatPortsExhausted => &[KEEP_ALIVE, WIDER_PORTS],
        Cause::SessionForgotten if ipvs => &[(
            "--set kube_proxy.tcp_timeout=7200s",
            "ipvsadm --set, kube-proxy's --ipvs-tcp-timeout: above the idle time; or TCP keepalive below 900 s",
        )],
        Cause::AnswerPastNode => &[(
            "--masquerade masquerade",
            "the pods answer to the node, which translates back",
        )],
        Cause::NoDestination
        | Cause::PinnedToDrained
        | Cause::PinnedToDeleted
        | Cause::SessionForgotten
        | Cause::Other => &[],
    }
}
