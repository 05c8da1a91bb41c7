//! Behaviour of the tables as a whole; each test names the fact it comes from.

use super::reuse::CtSeen;
use super::sched::{Flags as SchedFlags, Kind};
use super::service::{Persistence, ServiceKey};
use super::*;
use crate::kernel::Kernel;
use crate::segment::{Endpoint, Flags, Segment};
use crate::time::Span;

const SYN: Flags = Flags::SYN;
const ACK: Flags = Flags::ACK;
const FIN: Flags = Flags(0x11);
const RST: Flags = Flags::RST;
const SYN_ACK: Flags = Flags(0x12);

fn at(text: &str) -> Endpoint {
    text.parse().unwrap()
}

/// A node with one service and a clock that a test moves; drops of conntrack are collected.
struct Lab {
    ipvs: Ipvs,
    now: Instant,
    key: ServiceKey,
    dropped: Vec<Tuple>,
}

impl Lab {
    fn new(release: &str, kind: Kind, pods: &[&str]) -> Self {
        Self::with(release, kind, pods, None)
    }

    fn with(release: &str, kind: Kind, pods: &[&str], persistence: Option<Persistence>) -> Self {
        let kernel = release.parse::<Kernel>().unwrap().behaviours();
        let clock = Clock::new(250, kernel.timer_era(), Span::from_secs(1000));
        let sysctls = VsSysctls {
            conntrack: true,
            expire_nodest_conn: true,
            ..VsSysctls::default()
        };
        let mut ipvs = Ipvs::new(kernel, clock, sysctls);
        let key = ServiceKey::tcp(at("10.20.79.226:31199"));
        ipvs.add_service(key, kind, SchedFlags::default(), persistence)
            .unwrap();
        for pod in pods {
            ipvs.add_dest(key, at(pod), 1).unwrap();
        }
        Self {
            ipvs,
            now: Instant::ZERO,
            key,
            dropped: Vec::new(),
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now += Span::from_millis(ms);
        let dropped = &mut self.dropped;
        self.ipvs
            .advance(self.now, &mut |_, tuple| dropped.push(*tuple));
    }

    fn send_with(&mut self, client: &str, flags: Flags, ct: CtSeen) -> Inward {
        self.wait(1);
        let seg = Segment::new(Tuple::tcp(at(client), self.key.addr), flags);
        self.ipvs
            .packet_in(self.ipvs.clock.moment(self.now), &seg, ct)
    }

    fn send(&mut self, client: &str, flags: Flags) -> Inward {
        self.send_with(client, flags, CtSeen::Unconfirmed)
    }

    fn reply(&mut self, pod: &str, client: &str, flags: Flags) -> Outward {
        self.wait(1);
        let seg = Segment::new(Tuple::tcp(at(pod), at(client)), flags);
        self.ipvs.packet_out(self.ipvs.clock.moment(self.now), &seg)
    }

    /// The pod of a new connection.
    fn open(&mut self, client: &str) -> String {
        match self.send(client, SYN) {
            Inward::Forward { to, .. } => to.to_string(),
            other => panic!("not forwarded: {other:?}"),
        }
    }

    fn shows(&self) -> Vec<(String, &'static str, u64)> {
        list_connections(&self.ipvs, self.ipvs.clock().jiffies(self.now))
            .into_iter()
            .map(|line| (line.dest.to_string(), line.state, line.expires_s))
            .collect()
    }

    fn counts(&self) -> Vec<(u32, u32, u32)> {
        self.ipvs
            .real_servers(self.key)
            .map(|d| (d.weight, d.active, d.inactive))
            .collect()
    }

    fn server_closes(&mut self, pod: &str, client: &str) {
        self.reply(pod, client, SYN_ACK);
        self.send(client, ACK);
        self.reply(pod, client, FIN);
        self.send(client, FIN);
        self.reply(pod, client, ACK);
    }
}

const A: &str = "10.27.1.10:80";
const B: &str = "10.27.1.11:80";
const C: &str = "10.27.1.12:80";
const CLIENT: &str = "10.23.31.87:58578";

/// Facts 10.1: the client closes first.
#[test]
fn client_closes_first() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.open(CLIENT);
    assert_eq!(lab.shows(), [(A.into(), "SYN_RECV", 60)]);
    assert_eq!(lab.counts(), [(1, 1, 0)]);
    lab.reply(A, CLIENT, SYN_ACK);
    assert_eq!(lab.shows()[0].1, "SYN_RECV");
    lab.send(CLIENT, ACK);
    assert_eq!(lab.shows(), [(A.into(), "ESTABLISHED", 900)]);
    lab.send(CLIENT, FIN);
    assert_eq!(lab.shows(), [(A.into(), "CLOSE_WAIT", 60)]);
    assert_eq!(lab.counts(), [(1, 0, 1)]);
    lab.reply(A, CLIENT, ACK);
    lab.reply(A, CLIENT, FIN);
    lab.send(CLIENT, ACK);
    assert_eq!(lab.shows(), [(A.into(), "TIME_WAIT", 120)]);
    lab.wait(119_900);
    assert_eq!(lab.shows().len(), 1);
    lab.wait(2_200);
    assert_eq!(lab.shows(), []);
    assert_eq!(lab.counts(), [(1, 0, 0)]);
    assert_eq!(lab.dropped.len(), 1);
}

/// Facts 10.2: the server closes first.
#[test]
fn server_closes_first() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.open(CLIENT);
    lab.reply(A, CLIENT, SYN_ACK);
    lab.send(CLIENT, ACK);
    lab.reply(A, CLIENT, FIN);
    assert_eq!(lab.shows(), [(A.into(), "FIN_WAIT", 120)]);
    lab.send(CLIENT, ACK);
    assert_eq!(lab.shows()[0].1, "FIN_WAIT");
    lab.send(CLIENT, FIN);
    lab.reply(A, CLIENT, ACK);
    assert_eq!(lab.shows(), [(A.into(), "TIME_WAIT", 120)]);
}

/// Facts 10.3 and 2.2: resets.
#[test]
fn resets_close_for_ten_seconds() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.open(CLIENT);
    lab.send(CLIENT, RST);
    assert_eq!(
        lab.shows()[0].1,
        "SYN_RECV",
        "a client's RST in SYN_RECV is ignored"
    );
    lab.reply(A, CLIENT, RST);
    assert_eq!(lab.shows(), [(A.into(), "CLOSE", 10)]);
    lab.wait(10_300);
    assert_eq!(lab.shows(), []);
}

/// Facts 10.4, traps 2 and 5: in mode 0 before the fix the SYN revives the entry of the quiesced real server,
/// after it the SYN is scheduled anew.
#[test]
fn mode_zero_keeps_the_quiesced_real_server_before_the_fix() {
    for (release, kept) in [
        ("5.4.120", true),
        ("5.4.163", false),
        ("5.10.83", false),
        ("6.12.117", false),
    ] {
        let mut lab = Lab::new(release, Kind::Rr, &[A]);
        lab.ipvs.sysctls.conn_reuse_mode = 0;
        lab.open(CLIENT);
        lab.server_closes(A, CLIENT);
        lab.ipvs.add_dest(lab.key, at(B), 1).unwrap();
        lab.ipvs.edit_dest(lab.key, at(A), 0).unwrap();
        lab.wait(20_000);
        let pod = lab.open(CLIENT);
        if kept {
            assert_eq!(pod, A, "{release}");
            assert_eq!(lab.shows(), [(A.into(), "SYN_RECV", 60)]);
            assert_eq!(
                lab.counts(),
                [(1, 0, 0), (0, 1, 0)],
                "the entry is active again on the old one"
            );
        } else {
            assert_eq!(pod, B, "{release}");
            lab.wait(4);
            assert_eq!(lab.shows().len(), 1, "the old entry went at the next tick");
            assert!(lab.dropped.is_empty(), "it had let go of its conntrack");
        }
    }
}

/// Trap 23: for one tick there are two entries of the same key; the newest answers look-ups from the client,
/// the old one still translates its own real server's packets.
#[test]
fn a_rescheduled_tuple_has_two_entries_for_a_tick() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.open(CLIENT);
    lab.server_closes(A, CLIENT);
    lab.ipvs.add_dest(lab.key, at(B), 1).unwrap();
    assert_eq!(lab.open(CLIENT), B);
    assert_eq!(lab.ipvs.table().len(), 2);
    let tuple = Tuple::tcp(at(A), at(CLIENT));
    let seg = Segment::new(tuple, ACK);
    assert!(matches!(
        lab.ipvs.packet_out(lab.ipvs.clock.moment(lab.now), &seg),
        Outward::Translate { .. }
    ));
    // That packet re-armed the old entry (facts 1.7): it lives on, shadowed.
    lab.wait(10);
    assert_eq!(lab.ipvs.table().len(), 2);
}

/// Trap 9: an overdue entry shows 0 seconds, is still hit, and goes at the wheel's boundary.
#[test]
fn overdue_entries_are_still_hit() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.ipvs.sysctls.conn_reuse_mode = 0;
    lab.open(CLIENT);
    lab.server_closes(A, CLIENT);
    let entry = lab.ipvs.table().iter().next().unwrap().1;
    let (expires, fires) = (entry.expires(), entry.fires());
    assert!(fires > expires && fires.0 - expires.0 <= 512);
    let clock = *lab.ipvs.clock();
    lab.wait(clock.instant(fires).since(lab.now).0 / 1_000_000 - 1);
    assert_eq!(lab.shows(), [(A.into(), "TIME_WAIT", 0)]);
    lab.wait(2);
    assert_eq!(lab.shows(), []);
}

/// Facts 1.9: no usable real server is a refusal by ICMP, without an entry; trap 17 for sh.
#[test]
fn no_destination_refuses() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.ipvs.edit_dest(lab.key, at(A), 0).unwrap();
    assert_eq!(lab.send(CLIENT, SYN), Inward::Refuse(Rule::NoDestination));
    assert!(lab.ipvs.table().is_empty());

    let mut lab = Lab::new("6.12.117", Kind::Sh, &[A, B]);
    lab.ipvs.edit_dest(lab.key, at(A), 0).unwrap();
    let refused = (0..64)
        .filter(|n| {
            matches!(
                lab.send(&format!("10.23.31.{n}:40000"), SYN),
                Inward::Refuse(_)
            )
        })
        .count();
    assert!(
        (16..48).contains(&refused),
        "{refused} of 64 clients hash to the draining one"
    );
}

/// Facts 1.2 step 7 and 1.12: only a SYN makes an entry, unless sloppy_tcp is set.
#[test]
fn only_a_syn_opens() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    assert_eq!(lab.send(CLIENT, ACK), Inward::Pass(Rule::NotSchedulable));
    assert_eq!(lab.send(CLIENT, RST), Inward::Pass(Rule::NotSchedulable));
    lab.ipvs.sysctls.sloppy_tcp = true;
    assert_eq!(lab.send(CLIENT, RST), Inward::Pass(Rule::NotSchedulable));
    assert!(matches!(
        lab.send(CLIENT, ACK),
        Inward::Forward {
            rule: Rule::ScheduledSloppy,
            ..
        }
    ));
    assert_eq!(lab.shows(), [(A.into(), "ESTABLISHED", 900)]);
}

/// Facts 10.6: a deleted real server with a live connection.
#[test]
fn deletion_flushes_live_connections_from_5_9_on() {
    for (release, flushed) in [("5.7.14", false), ("5.9.1", true), ("6.12.117", true)] {
        let mut lab = Lab::new(release, Kind::Rr, &[A]);
        lab.open(CLIENT);
        lab.reply(A, CLIENT, SYN_ACK);
        lab.send(CLIENT, ACK);
        lab.ipvs.delete_dest(lab.now, lab.key, at(A)).unwrap();
        lab.wait(20);
        assert_eq!(lab.ipvs.table().is_empty(), flushed, "{release}");
        if flushed {
            assert_eq!(lab.dropped.len(), 1);
            assert_eq!(lab.send(CLIENT, ACK), Inward::Pass(Rule::NotSchedulable));
        } else {
            let seen = lab.send_with(CLIENT, ACK, CtSeen::Confirmed);
            assert_eq!(seen, Inward::Drop(Rule::DroppedDeleted));
            lab.wait(8);
            assert_eq!(lab.send(CLIENT, ACK), Inward::Pass(Rule::NotSchedulable));
        }
    }
}

/// Facts 1.8: with expire_nodest_conn=0 every packet is dropped until the old deadline.
#[test]
fn deletion_blackholes_without_expire_nodest() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.ipvs.sysctls.expire_nodest_conn = false;
    lab.open(CLIENT);
    lab.ipvs.delete_dest(lab.now, lab.key, at(A)).unwrap();
    lab.wait(30_010);
    assert_eq!(lab.send(CLIENT, SYN), Inward::Drop(Rule::BlackholedDeleted));
    assert_eq!(lab.shows()[0].2, 29, "the timer was not restarted");
}

/// Facts 1.10 and trap 24: a destination that comes back within the trash period finds its entries again.
#[test]
fn a_revived_destination_inherits_its_entries() {
    let mut lab = Lab::new("5.7.14", Kind::Rr, &[A]);
    lab.ipvs.sysctls.expire_nodest_conn = false;
    lab.open(CLIENT);
    lab.ipvs.delete_dest(lab.now, lab.key, at(A)).unwrap();
    lab.wait(30_000);
    lab.ipvs.add_dest(lab.key, at(A), 1).unwrap();
    assert_eq!(lab.counts(), [(1, 1, 0)]);
    assert!(matches!(
        lab.send(CLIENT, ACK),
        Inward::Forward {
            rule: Rule::EntryFound,
            ..
        }
    ));
}

/// Gate 8 of facts 8: with its last service IPVS steps aside, and its entries are not even looked at, in either direction.
#[test]
fn without_a_service_even_entries_are_passed_by_from_5_9_on() {
    for (release, passes) in [("5.7.14", false), ("5.9.1", true), ("6.12.117", true)] {
        let mut lab = Lab::new(release, Kind::Rr, &[A]);
        lab.ipvs.sysctls.expire_nodest_conn = false;
        lab.open(CLIENT);
        lab.ipvs.delete_service(lab.now, lab.key).unwrap();
        let reply = lab.reply(A, CLIENT, SYN_ACK);
        assert_eq!(reply == Outward::Pass, passes, "{release}");
        let again = lab.send(CLIENT, SYN);
        let expected = if passes {
            Inward::Pass(Rule::NoService)
        } else {
            Inward::Drop(Rule::BlackholedDeleted)
        };
        assert_eq!(again, expected, "{release}");
        // The next service brings it back, and with the same real server the entry.
        let flags = SchedFlags::default();
        lab.ipvs
            .add_service(lab.key, Kind::Rr, flags, None)
            .unwrap();
        lab.ipvs.add_dest(lab.key, at(A), 1).unwrap();
        let known = lab.send(CLIENT, ACK);
        assert!(
            matches!(known, Inward::Forward { .. }),
            "{release}: {known:?}"
        );
    }
}

/// Facts 1.10: an idle destination leaves the trash after it was seen idle for 120 s.
#[test]
fn the_trash_empties_itself() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.ipvs.delete_dest(lab.now, lab.key, at(A)).unwrap();
    lab.wait(150_000);
    assert_eq!(lab.ipvs.dests().trash().len(), 1);
    lab.wait(100_000);
    assert_eq!(lab.ipvs.dests().trash().len(), 0);
    assert_eq!(lab.ipvs.next_timer(), None);
}

/// Facts 3, trap 16: the newest destination stands first; rr keeps its place, wrr starts over.
#[test]
fn round_robin_and_the_head_of_the_list() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A, B, C]);
    let mut port = 40_000;
    let mut next = |lab: &mut Lab| {
        port += 2;
        lab.open(&format!("10.23.31.87:{port}"))
    };
    assert_eq!([next(&mut lab), next(&mut lab)], [C, B]);
    let d = "10.27.1.13:80";
    lab.ipvs.add_dest(lab.key, at(d), 1).unwrap();
    assert_eq!(
        [
            next(&mut lab),
            next(&mut lab),
            next(&mut lab),
            next(&mut lab)
        ],
        [A, d, C, B]
    );
    // The last choice is deleted: its successor is next.
    lab.ipvs.delete_dest(lab.now, lab.key, at(B)).unwrap();
    assert_eq!([next(&mut lab), next(&mut lab)], [A, d]);

    let mut lab = Lab::new("6.12.117", Kind::Wrr, &[A, B, C]);
    assert_eq!([next(&mut lab), next(&mut lab)], [C, B]);
    lab.ipvs.add_dest(lab.key, at(d), 1).unwrap();
    assert_eq!(
        [
            next(&mut lab),
            next(&mut lab),
            next(&mut lab),
            next(&mut lab)
        ],
        [d, C, B, A]
    );
}

/// Facts 3.1: weights 3 and 1 are served in the ratio of three to one; all weights 0 give nothing.
#[test]
fn weighted_round_robin_follows_weights() {
    let mut lab = Lab::new("6.12.117", Kind::Wrr, &[A, B]);
    lab.ipvs.edit_dest(lab.key, at(A), 3).unwrap();
    let pods = (0..8)
        .map(|n| lab.open(&format!("10.23.31.87:{}", 40_000 + n)))
        .collect::<Vec<_>>();
    assert_eq!(pods.iter().filter(|pod| *pod == A).count(), 6);
    for pod in [A, B] {
        lab.ipvs.edit_dest(lab.key, at(pod), 0).unwrap();
    }
    assert_eq!(
        lab.send("10.23.31.87:50000", SYN),
        Inward::Refuse(Rule::NoDestination)
    );
}

/// Facts 3: lc, wlc, sed and nq prefer the idle one, and the newest among equals.
#[test]
fn least_connection_schedulers() {
    for kind in [Kind::Lc, Kind::Wlc, Kind::Sed, Kind::Nq] {
        let mut lab = Lab::new("6.12.117", kind, &[A, B]);
        assert_eq!(
            lab.open("10.23.31.87:40000"),
            B,
            "{kind}: ties go to the head of the list"
        );
        assert_eq!(lab.open("10.23.31.87:40002"), A, "{kind}");
        lab.ipvs.edit_dest(lab.key, at(B), 0).unwrap();
        assert_eq!(
            lab.open("10.23.31.87:40004"),
            A,
            "{kind}: weight 0 never wins"
        );
    }
}

/// Gate 11: an active connection costs 257 instead of 256 on the stable kernels of 2026.
#[test]
fn the_overhead_of_lc_depends_on_the_release() {
    let overhead = |release: &str| {
        let mut lab = Lab::new(release, Kind::Lc, &[A]);
        lab.open("10.23.31.87:40000");
        let service = lab.ipvs.service(lab.key).unwrap();
        lab.ipvs
            .dests()
            .get(service.dests[0])
            .overhead(release.parse::<Kernel>().unwrap().behaviours())
    };
    assert_eq!((overhead("6.12.117"), overhead("6.8.0")), (257, 256));
}

/// Facts 4, F15: the template bypasses scheduler and weight; expire_quiescent_template ends that.
#[test]
fn persistence_templates() {
    let mut lab = Lab::with(
        "6.12.117",
        Kind::Rr,
        &[A, B],
        Some(Persistence::per_client(10_800)),
    );
    lab.ipvs.sysctls.expire_nodest_conn = false;
    let first = lab.open("10.23.31.87:40000");
    assert_eq!(lab.open("10.23.31.87:40002"), first);
    lab.ipvs.edit_dest(lab.key, at(&first), 0).unwrap();
    assert_eq!(lab.open("10.23.31.87:40004"), first, "facts 4.2");
    lab.ipvs.sysctls.expire_quiescent_template = true;
    assert_ne!(lab.open("10.23.31.87:40006"), first);
}

/// Facts 4.1, trap 15: the weight-0 rule replaces a controlled entry, and the template gives the same pod again
/// unless quiescent templates expire.
#[test]
fn a_controlled_entry_gets_the_templates_real_server() {
    for (quiescent, same) in [(false, true), (true, false)] {
        let mut lab = Lab::with(
            "6.12.117",
            Kind::Rr,
            &[A, B],
            Some(Persistence::per_client(10_800)),
        );
        lab.ipvs.sysctls.expire_quiescent_template = quiescent;
        let first = lab.open(CLIENT);
        lab.server_closes(&first, CLIENT);
        lab.ipvs.edit_dest(lab.key, at(&first), 0).unwrap();
        assert_eq!(lab.open(CLIENT) == first, same);
    }
}

/// Facts 4 point 6, F15: an affinity of 5 s lasts as long as its connections, in steps of 60 s.
#[test]
fn a_template_outlives_its_timeout_while_it_controls() {
    let mut lab = Lab::with("6.12.117", Kind::Rr, &[A], Some(Persistence::per_client(5)));
    lab.open(CLIENT);
    lab.server_closes(A, CLIENT);
    let closed = lab.now;
    let templates = |lab: &Lab| {
        lab.ipvs
            .table()
            .iter()
            .filter(|(_, e)| e.is_template())
            .count()
    };
    lab.wait(119_000);
    assert_eq!(templates(&lab), 1, "T+119 s: TIME_WAIT holds the template");
    lab.wait(180_000 + 5_000 - lab.now.since(closed).0 / 1_000_000);
    assert_eq!(
        templates(&lab),
        0,
        "gone by T+180 s and the timer's lateness"
    );
}

/// Seen in the lab: timers of one wheel bucket run newest first, so a connection that times out together with its
/// template goes before it and does not hold it for another minute.
#[test]
fn a_connection_expires_before_its_template_of_the_same_tick() {
    let mut lab = Lab::with(
        "6.12.117",
        Kind::Rr,
        &[A],
        Some(Persistence::per_client(60)),
    );
    lab.open(CLIENT);
    assert_eq!(lab.ipvs.table().len(), 2);
    lab.wait(62_100);
    assert!(lab.ipvs.table().is_empty(), "{:?}", lab.shows());
}

/// Trap 14: two services on one pod cannot be told apart by the pod's packets; the newest entry answers.
#[test]
fn replies_do_not_know_their_service() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    let other = ServiceKey::tcp(at("10.27.255.42:80"));
    lab.ipvs
        .add_service(other, Kind::Rr, SchedFlags::default(), None)
        .unwrap();
    lab.ipvs.add_dest(other, at(A), 1).unwrap();
    lab.open(CLIENT);
    lab.wait(1);
    let seg = Segment::new(Tuple::tcp(at(CLIENT), other.addr), SYN);
    lab.ipvs
        .packet_in(lab.ipvs.clock.moment(lab.now), &seg, CtSeen::Unconfirmed);
    match lab.reply(A, CLIENT, SYN_ACK) {
        Outward::Translate { virt, .. } => assert_eq!(virt, other.addr),
        Outward::Pass => panic!("not translated"),
    }
}

/// Facts 2.4: `ipvsadm --set` changes ESTABLISHED and FIN_WAIT only.
#[test]
fn set_timeouts_reaches_two_states() {
    let mut lab = Lab::new("6.12.117", Kind::Rr, &[A]);
    lab.ipvs.set_timeouts(100, 30, 0);
    lab.open(CLIENT);
    lab.reply(A, CLIENT, SYN_ACK);
    lab.send(CLIENT, ACK);
    assert_eq!(lab.shows()[0].2, 100);
    lab.reply(A, CLIENT, FIN);
    assert_eq!(lab.shows()[0].2, 30);
    lab.send(CLIENT, FIN);
    assert_eq!(lab.shows()[0].2, 120);
}

/// Facts 2.6: the listings.
#[test]
fn listings_look_like_the_kernels() {
    let mut lab = Lab::new("5.4.120", Kind::Rr, &["10.27.1.248:80", "10.27.1.249:80"]);
    lab.ipvs.sysctls.conn_reuse_mode = 0;
    lab.open(CLIENT);
    let text = list_connections_ipvsadm(&lab.ipvs, lab.ipvs.clock().jiffies(lab.now));
    assert!(
        text.ends_with(
            "TCP 01:00  SYN_RECV    10.23.31.87:58578  10.20.79.226:31199 10.27.1.249:80\n"
        ),
        "{text}"
    );
    let text = list_services(&lab.ipvs);
    assert!(text.contains("TCP  10.20.79.226:31199 rr\n"), "{text}");
    assert!(
        text.contains("  -> 10.27.1.249:80               Masq    1      1          0         \n"),
        "{text}"
    );
}

/// Met by a kernel (6.1.192): a connection in ESTABLISHED waits in an outer level of the wheel; its FIN moves it to the level of its
/// template's timer, for the very tick that it had. That is another bucket, which it enters last, so it runs first, and its
/// template controls nothing any more when its own timer runs.
#[test]
fn a_timer_that_changes_its_level_enters_another_bucket_of_the_same_tick() {
    let clock = Clock::new(250, crate::time::TimerEra::Wheel, Span::ZERO);
    let mut table = Table::new();
    let (client, virt) = (at("10.0.0.1:40000"), at("10.20.79.226:31199"));
    let mut entry = |flags: u8, timeout: u32| {
        table.insert(Proto::Tcp, client, virt, service::DestId(0), flags, timeout)
    };
    let connection = entry(0, 200 * 250);
    let template = entry(table::TEMPLATE, 60 * 250);
    let start = Clock::initial_jiffies(250) + 10_000;
    let arm = |table: &mut Table, id, tick| {
        let at = clock.instant(Jiffies(tick));
        table.arm(&clock, clock.moment(at), id);
        table.get(id).fires()
    };
    let fires = arm(&mut table, connection, start);
    // Both deadlines are in the last stretch of the inner level before that tick.
    let deadline = fires.0 - 100;
    assert_eq!(arm(&mut table, template, deadline - 60 * 250), fires);
    table.get_mut(connection).timeout = 40 * 250;
    assert_eq!(arm(&mut table, connection, deadline - 40 * 250), fires);
    let due = table.take_due(fires);
    assert_eq!(due, Some((fires, vec![connection, template])));
}
