//! Reports of hand-made runs: the engine's own are tested where it is.

use std::net::Ipv4Addr;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, NANOS_PER_SEC, Span};

use super::tables::mentions;
use super::*;
use crate::engine::trace::{
    Attempt, Happening, ServerSample, Tables, TimelineEvent, TroubledRequest,
};
use crate::outcome::{Cause, Outcome, Recorder, SecondCounts};

const QUICK: Span = Span::from_millis(1);

macro_rules! snapshot {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
        }, { insta::assert_snapshot!($name, $text) })
    };
}

fn pod(last: u8) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(10, 27, 1, last), 80)
}

fn client(port: u16) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(10, 23, 31, 87), port)
}

fn header(file: Option<&str>) -> Header {
    let fact = |label: &str, words: &str| (label.to_owned(), words.to_owned());
    Header {
        name: "founding-case".to_owned(),
        file: file.map(str::to_owned),
        facts: vec![
            fact(
                "node",
                "kernel 4.19.57, IPVS rr, conn_reuse_mode 0, kube-proxy 1.17.0",
            ),
            fact(
                "load",
                "500 requests/s, 28,232 ports, 1 request a connection, gives up after 5 s",
            ),
        ],
        seed: 0x7f3a,
        duration: Span::from_secs(300),
        warmup: Span::ZERO,
        ipvs: true,
        command: "sim run scenarios/founding-case.toml --seed 0x7f3a".to_owned(),
        possible: Vec::new(),
    }
}

fn plain(failures: usize) -> View {
    View {
        failures,
        ..View::default()
    }
}

fn unicode(failures: usize) -> View {
    let look = Look {
        unicode: true,
        colour: false,
    };
    View {
        look,
        failures,
        ..View::default()
    }
}

/// What becomes of a request that starts at a moment.
enum Fate {
    Fine,
    Late(Cause),
    Fails(Span, Outcome, Cause),
    NoPort,
}

/// A run of `secs` seconds at `rate` requests a second.
fn play(
    secs: u64,
    rate: u64,
    fate: impl Fn(u64, Instant) -> Fate,
) -> (RunSummary, Vec<TroubledRequest>) {
    let mut happenings = Vec::new();
    let mut troubled = Vec::new();
    for number in 0..secs * rate {
        let start = Instant(number * NANOS_PER_SEC / rate);
        let fate = fate(number, start);
        let end = match &fate {
            Fate::Fine => start + Span::from_millis(2),
            Fate::Late(_) => start + Span::from_millis(1_003),
            Fate::Fails(after, ..) => start + *after,
            Fate::NoPort => start,
        };
        let (outcome, cause) = match &fate {
            Fate::Fine => (Outcome::Answered, None),
            Fate::Late(cause) => (Outcome::Answered, Some(*cause)),
            Fate::Fails(_, outcome, cause) => (*outcome, Some(*cause)),
            Fate::NoPort => (Outcome::PortsExhausted, Some(Cause::PortsExhausted)),
        };
        if let Some(cause) = cause {
            troubled.push(TroubledRequest {
                number,
                start,
                end,
                client: client(if outcome == Outcome::PortsExhausted {
                    0
                } else {
                    32_768 + (number % 28_232) as u16
                }),
                outcome,
                cause,
                server: (!matches!(outcome, Outcome::Refused | Outcome::PortsExhausted))
                    .then(|| pod(245 + (number % 2) as u8)),
                rule: match cause {
                    Cause::PinnedToDrained => "entry kept: conn_reuse_mode is 0",
                    Cause::NoDestination => "no real server has a weight",
                    Cause::SynDroppedOnReuse => "entry in TIME_WAIT let go, this SYN dropped",
                    _ => "",
                },
                port_idle: (outcome != Outcome::PortsExhausted)
                    .then_some(Span::from_millis(56_464)),
            });
        }
        happenings.push((end, 1, number, fate));
        if outcome != Outcome::PortsExhausted {
            happenings.push((start, 0, number, Fate::Fine));
        }
    }
    happenings.sort_by_key(|(at, order, number, _)| (*at, *order, *number));
    troubled.sort_by_key(|request| (request.end, request.number));
    let end = Instant::from_secs(secs);
    let mut recorder = Recorder::new();
    for (at, order, _, fate) in happenings.into_iter().filter(|h| h.0 < end) {
        match (order, fate) {
            (0, _) => recorder.attempt(at),
            (_, Fate::Fine) => recorder.answered(at, QUICK, None),
            (_, Fate::Late(cause)) => recorder.answered(at, Span::from_millis(1_001), Some(cause)),
            (_, Fate::Fails(_, outcome, cause)) => recorder.failed(at, outcome, cause),
            (_, Fate::NoPort) => recorder.no_port(at),
        }
    }
    troubled.retain(|request| request.end < end);
    (recorder.finish(end, 0), troubled)
}

fn event(millis: u64, at: Option<u8>, what: &str) -> TimelineEvent {
    TimelineEvent {
        at: Instant::from_millis(millis),
        pod: at.map(pod),
        what: what.to_owned(),
        // The report prints the words.
        kind: Happening::RolloutStarted,
    }
}

fn rollout() -> Vec<TimelineEvent> {
    vec![
        event(150_000, None, "rollout starts"),
        event(150_010, Some(248), "pod created"),
        event(158_400, Some(248), "pod ready"),
        event(158_540, Some(248), "real server added"),
        event(158_550, Some(245), "pod terminating"),
        event(158_560, Some(249), "pod created"),
        event(158_700, Some(245), "weight set to 0"),
        event(166_900, Some(249), "pod ready"),
        event(167_010, Some(249), "real server added"),
        event(167_012, Some(246), "pod terminating"),
        event(167_140, Some(246), "weight set to 0"),
        event(178_700, Some(245), "process gone"),
        event(180_100, Some(245), "address gone"),
        event(187_200, Some(246), "process gone"),
        event(188_000, Some(246), "address gone"),
        event(221_300, Some(245), "real server deleted"),
        event(221_300, Some(246), "real server deleted"),
    ]
}

/// Samples every 5 s and at the events.
fn samples(events: &[TimelineEvent], ipvs: bool) -> Vec<ServerSample> {
    let mut moments = (0..60)
        .map(|i| Instant::from_secs(i * 5))
        .collect::<Vec<_>>();
    moments.extend(events.iter().map(|event| event.at));
    moments.sort_unstable();
    moments.dedup();
    let mut samples = Vec::new();
    let mut before = 0;
    for at in moments {
        let ms = at.0 / 1_000_000;
        for last in [245_u8, 246, 248, 249] {
            let (added, drained, deleted) = match last {
                245 => (0, 158_700, 221_300),
                246 => (0, 167_140, 221_300),
                248 => (158_540, u64::MAX, u64::MAX),
                _ => (167_010, u64::MAX, u64::MAX),
            };
            let there = added <= ms && ms < deleted;
            let weight = if !there {
                None
            } else if ipvs {
                Some(u32::from(ms < drained))
            } else {
                Some(1)
            };
            let busy = there && ipvs;
            samples.push(ServerSample {
                at,
                server: pod(last),
                weight,
                active: if busy { 12 } else { 0 },
                inactive: if busy { 28_200 } else { 0 },
                syns: if there { ((ms - before) / 4) as u32 } else { 0 },
            });
        }
        before = ms;
    }
    samples
}

/// The founding case's shape: dead while reused ports meet the drained real servers.
fn dead_stretch() -> (RunSummary, RunTrace) {
    let (summary, troubled) = play(300, 500, |number, at| match at.0 / 1_000_000 {
        180_100..221_300 => Fate::Fails(
            Span::from_secs(5),
            Outcome::ConnectTimeout,
            Cause::PinnedToDrained,
        ),
        221_300..225_000 if number.is_multiple_of(7) => {
            Fate::Fails(Span::from_millis(1), Outcome::Refused, Cause::NoDestination)
        }
        _ => Fate::Fine,
    });
    let events = rollout();
    let servers = samples(&events, true);
    (
        summary,
        RunTrace {
            servers,
            events,
            troubled,
            ..RunTrace::default()
        },
    )
}

#[test]
fn a_rollout_with_a_dead_stretch() {
    let (summary, trace) = dead_stretch();
    let header = header(Some("scenarios/founding-case.toml"));
    snapshot!(
        "run_dead_stretch",
        text(&header, &unicode(5), &summary, &trace)
    );
}

#[test]
fn a_rollout_without_any_failure() {
    let (summary, _) = play(300, 500, |_, _| Fate::Fine);
    let events = rollout();
    let servers = samples(&events, true);
    let trace = RunTrace {
        servers,
        events,
        ..RunTrace::default()
    };
    snapshot!(
        "run_no_failure",
        text(&header(None), &unicode(5), &summary, &trace)
    );
}

#[test]
fn a_rollout_with_nothing_but_late_connects() {
    let (summary, troubled) = play(300, 500, |number, at| {
        let reused = at >= Instant::from_secs(57) && number.is_multiple_of(11);
        if reused {
            Fate::Late(Cause::SynDroppedOnReuse)
        } else {
            Fate::Fine
        }
    });
    let events = rollout();
    let servers = samples(&events, true);
    let trace = RunTrace {
        servers,
        events,
        troubled,
        ..RunTrace::default()
    };
    snapshot!(
        "run_late_connects",
        text(&header(None), &plain(2), &summary, &trace)
    );
}

#[test]
fn a_load_that_runs_out_of_ports() {
    let (summary, troubled) = play(300, 2_000, |number, at| {
        let out = at >= Instant::from_millis(14_116) && !number.is_multiple_of(4);
        if out { Fate::NoPort } else { Fate::Fine }
    });
    let trace = RunTrace {
        troubled,
        ..RunTrace::default()
    };
    snapshot!(
        "run_ports_exhausted",
        text(&header(None), &plain(2), &summary, &trace)
    );
}

#[test]
fn a_rollout_in_iptables_mode() {
    let (summary, troubled) = play(300, 500, |number, at| match at.0 / 1_000_000 {
        178_700..178_900 if number.is_multiple_of(3) => {
            Fate::Fails(Span::from_millis(1), Outcome::Reset, Cause::ConnectionCut)
        }
        180_100..236_000 if number.is_multiple_of(40) => Fate::Fails(
            Span::from_secs(5),
            Outcome::ConnectTimeout,
            Cause::PinnedByConntrack,
        ),
        _ => Fate::Fine,
    });
    let mut events = rollout();
    events.retain(|event| event.what != "weight set to 0");
    let servers = samples(&events, false);
    let conntrack = "ipv4     2 tcp      6 119 SYN_SENT src=10.23.31.87 dst=10.20.79.226 sport=33000 dport=31199 \
                     [UNREPLIED] src=10.27.1.245 dst=10.23.31.87 sport=80 dport=33000 mark=0 zone=0 use=2\n\
                     ipv4     2 tcp      6 60 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 sport=33001 dport=31199 \
                     src=10.27.1.24 dst=10.23.31.87 sport=80 dport=33001 [ASSURED] mark=0 zone=0 use=2\n";
    let at = Instant::from_secs(181);
    let tables = vec![Tables {
        at,
        conntrack: conntrack.to_owned(),
        ..EMPTY_TABLES
    }];
    let trace = RunTrace {
        servers,
        events,
        troubled,
        tables,
        ..RunTrace::default()
    };
    let header = Header {
        ipvs: false,
        ..header(None)
    };
    let view = View {
        matching: Some("10.27.1.24".to_owned()),
        ..plain(3)
    };
    snapshot!("run_iptables", text(&header, &view, &summary, &trace));
}

const EMPTY_TABLES: Tables = Tables {
    at: Instant::ZERO,
    services: String::new(),
    connections: String::new(),
    conntrack: String::new(),
};

#[test]
fn a_table_filter_takes_addresses_and_ports_whole() {
    let line = "ipv4     2 tcp      6 119 SYN_SENT src=10.23.31.87 dst=10.20.79.226 sport=33000 dport=31199 [UNREPLIED] \
                src=10.27.1.245 dst=10.23.31.87 sport=80 dport=33000 mark=0 zone=0 use=2";
    for words in [
        "10.27.1.245",
        "sport=33000",
        "33000",
        "UNREPLIED",
        "10.23.31.87:33000",
        "10.27.1.245:80",
    ] {
        assert!(mentions(line, words), "{words}");
    }
    for words in [
        "10.27.1.24",
        "0.27.1.245",
        "sport=3300",
        "10.23.31.87:33001",
        "10.27.1.246:80",
    ] {
        assert!(!mentions(line, words), "{words}");
    }
    let line = "TCP 01:59  TIME_WAIT   10.23.31.87:33000  10.20.79.226:31199 10.27.1.245:8080";
    assert!(mentions(line, "10.23.31.87:33000"));
    assert!(!mentions(line, ":80"));
}

#[test]
fn a_warmup_and_a_missing_load_are_said_and_not_taken_for_a_dead_service() {
    let header = Header {
        warmup: Span::from_secs(60),
        ..header(None)
    };
    let summary = RunSummary::default();
    let text = text(&header, &plain(5), &summary, &RunTrace::default());
    assert!(text.starts_with("No request was counted"), "{text}");
    assert!(text.contains("warm-up, not counted"), "{text}");
    assert!(text.contains("no load"), "{text}");
    assert!(!text.contains("QPS = 0"), "{text}");
}

#[test]
fn the_timeline_stays_on_a_screen_unless_a_bucket_is_asked_for() {
    // Every second is different: nothing can be folded.
    let timeline = (0..3_000_u64).map(|second| SecondCounts {
        attempts: 100 + 400 * (second % 2),
        answered: 100 + 400 * (second % 2) - second % 7,
        failed: second % 7,
        ..SecondCounts::default()
    });
    let mut summary = RunSummary {
        requests: 1,
        timeline: timeline.collect(),
        ..RunSummary::default()
    };
    summary.outcomes[Outcome::Answered.index()] = 1;
    let header = Header {
        duration: Span::from_secs(3_000),
        ..header(None)
    };
    let lines = |view: &View| timeline::text(&header, view, &summary, &[]).lines().count();
    assert!(lines(&plain(0)) <= 62, "{}", lines(&plain(0)));
    let every_second = View {
        bucket_s: Some(1),
        ..plain(0)
    };
    assert_eq!(lines(&every_second), 3_002);
}

#[test]
fn no_count_is_lost_between_buckets() {
    let (summary, trace) = dead_stretch();
    let csv = timeline_csv(&header(None), &summary, &trace);
    let mut sums = [0_u64; 5];
    for line in csv.lines().skip(1) {
        let fields = line.split(',').skip(1).take(5);
        for (sum, field) in sums.iter_mut().zip(fields) {
            *sum += field.parse::<u64>().unwrap();
        }
    }
    let open = summary.count(Outcome::Unfinished);
    let answered = summary.count(Outcome::Answered);
    assert_eq!(sums, [summary.requests, answered, summary.failed(), 0, 0]);
    assert_eq!(sums[0], sums[1] + sums[2] + open);
    assert_eq!(csv.lines().count(), 301);
    assert!(csv.contains("real server deleted 10.27.1.245:80; real server deleted 10.27.1.246:80"));
}

#[test]
fn json_holds_the_verdict_and_every_second() {
    let (summary, trace) = dead_stretch();
    let header = Header {
        seed: u64::MAX,
        ..header(None)
    };
    let json = json(&header, 3, None, &summary, &trace);
    assert_eq!(json["format"], FORMAT);
    assert_eq!(json["seed"], "18446744073709551615");
    assert_eq!(json["causes_of_failure"]["pinned_to_drained"], 20_600);
    assert_eq!(json["timeline"].as_array().unwrap().len(), 300);
    assert_eq!(json["dead_stretches_s"], serde_json::json!([[181, 221]]));
    assert_eq!(json["examples"].as_array().unwrap().len(), 3);
    let keys = json
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect::<Vec<_>>();
    snapshot!("run_json_keys", keys.join("\n"));
}

#[test]
fn every_request_is_a_line_of_csv() {
    let attempts = [
        Attempt {
            start: Instant::from_millis(1_500),
            end: Instant::from_millis(1_502),
            port: 32_768,
            outcome: Outcome::Answered,
            connect: Some(Span(700_000)),
        },
        Attempt {
            start: Instant::from_millis(1_501),
            end: Instant::from_millis(1_501),
            port: 0,
            outcome: Outcome::PortsExhausted,
            connect: None,
        },
    ];
    assert_eq!(
        attempts_csv(&attempts),
        "start_s,end_s,port,outcome,connect_s\n\
         1.500000000,1.502000000,32768,answered,0.000700000\n\
         1.501000000,1.501000000,,ports_exhausted,\n"
    );
}

#[test]
fn examples_show_every_kind_before_more_of_one() {
    let (_, trace) = dead_stretch();
    let chosen = examples::choose(&trace.troubled, 3);
    assert_eq!(chosen.len(), 3);
    assert!(
        chosen
            .iter()
            .any(|request| request.outcome == Outcome::Refused)
    );
    assert!(chosen.is_sorted_by_key(|request| request.end));
    assert_eq!(
        examples::choose(&trace.troubled, usize::MAX).len(),
        trace.troubled.len()
    );
    assert!(examples::choose(&[], 5).is_empty());
}

#[test]
fn a_real_server_that_is_no_longer_sampled_is_shown_as_gone() {
    let sample = |secs, last, weight| ServerSample {
        at: Instant::from_secs(secs),
        server: pod(last),
        weight,
        active: 1,
        inactive: 7,
        syns: 3,
    };
    let servers = vec![
        sample(0, 245, Some(1)),
        sample(0, 248, Some(1)),
        sample(5, 245, None),
        sample(5, 248, Some(1)),
        sample(10, 248, Some(1)),
    ];
    let trace = RunTrace {
        servers,
        ..RunTrace::default()
    };
    let text = servers::text(&header(None), Look::default(), &trace);
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let lines = lines.collect::<Vec<_>>();
    // Deleted with entries that live on, then gone.
    assert_eq!(
        lines[3..],
        [
            "0.0 | 1 1 7 3 | 1 1 7 3",
            "5.0 | - 1 7 3 | 1 1 7 3",
            "10.0 | - | 1 1 7 3"
        ]
    );
}

#[test]
fn colours_change_nothing_but_colours() {
    let (summary, trace) = dead_stretch();
    let header = header(None);
    let coloured = View {
        look: Look {
            unicode: true,
            colour: true,
        },
        ..unicode(5)
    };
    let coloured = text(&header, &coloured, &summary, &trace);
    assert!(coloured.contains('\u{1b}'));
    let stripped = anstream::adapter::strip_str(&coloured).to_string();
    assert_eq!(stripped, text(&header, &unicode(5), &summary, &trace));
}

#[test]
fn many_real_servers_are_added_up_by_what_they_are_to_the_service() {
    let sample = |secs, last: u8, weight| ServerSample {
        at: Instant::from_secs(secs),
        server: pod(last),
        weight,
        active: 1,
        inactive: 100,
        syns: 10,
    };
    let mut servers = (0..12).map(|i| sample(0, i, Some(1))).collect::<Vec<_>>();
    servers.extend((0..12).map(|i| sample(5, i, Some(u32::from(i >= 9)))));
    servers.extend((0..12).map(|i| sample(10, i, (i >= 9).then_some(1))));
    let trace = RunTrace {
        servers,
        ..RunTrace::default()
    };
    let text = servers::text(&header(None), Look::default(), &trace);
    snapshot!("run_many_servers", text);
}

#[test]
fn a_gap_of_one_repeated_syn_is_late_and_not_dead() {
    let mut recorder = Recorder::new();
    for second in 0..10_u64 {
        recorder.attempt(Instant::from_millis(second * 1_500));
        let late = Span::from_millis(1_001);
        let answered = Instant::from_millis(second * 1_500) + late;
        recorder.answered(answered, late, Some(Cause::SynDroppedOnReuse));
    }
    let summary = recorder.finish(Instant::from_secs(15), 0);
    let text = text(&header(None), &plain(0), &summary, &RunTrace::default());
    assert!(
        !text.contains("dead for") && !text.contains("QPS = 0"),
        "{text}"
    );
}
