//! Small hand-made captures in which conntrack entries have expired, and what the collector, a look-up or a listing has done to
//! them shows only later.

use ipvs_model::segment::Flags;

use super::super::Class;
use super::super::doubt::{SAME_BUCKET, WHICH_COLLECTED};
use super::{CLIENT, NEW, OLD, Scene, VIP, segment};

const OTHER_CLIENT: &str = "10.23.31.88:40000";
const OTHER_VIP: &str = "10.20.79.226:31200";

/// A node with a service on each of two addresses, the second one with this real server. An unanswered SYN's conntrack entry
/// lives for 5 s.
fn two_services(second: &str) -> Scene {
    let mut scene = Scene::new();
    scene.manifest = [
        "transit_us = 10\n",
        "\"net.netfilter.nf_conntrack_tcp_timeout_syn_sent\" = 5\n",
    ];
    let service = |vip, to| format!("ipvsadm -A -t {vip} -s rr\nipvsadm -a -t {vip} -r {to} -m\n");
    scene.rules(0, &(service(VIP, OLD) + &service(OTHER_VIP, second)));
    scene.ct = Scene::header(500);
    scene
}

/// Two connections' conntrack entries have expired. How many of them the collector has taken by the next packet, the node's
/// count says; which ones, the packet's fate: it clashes with the one that is there, for the node has no nat table, as a
/// third client's packet shows.
#[test]
fn which_entry_was_collected_is_told_by_what_clashes() {
    const THIRD_CLIENT: &str = "10.23.31.89:40000";
    // Whose tuple the packet has, expired entries left, whether it passes, whether that can be.
    for (client, left, passes, can_be) in [
        (CLIENT, 1, true, true),
        (CLIENT, 1, false, true),
        (OTHER_CLIENT, 1, true, true),
        (OTHER_CLIENT, 1, false, true),
        (OTHER_CLIENT, 2, false, true),
        (CLIENT, 0, true, true),
        (CLIENT, 0, false, false),
        (OTHER_CLIENT, 0, false, false),
    ] {
        let mut scene = two_services(OLD);
        for (ms, client) in [
            (1_000, CLIENT),
            (2_000, OTHER_CLIENT),
            (19_000, THIRD_CLIENT),
        ] {
            scene.passes(ms, segment(client, VIP, Flags::SYN, 1, 0), client, OLD);
        }
        let clashes = segment(THIRD_CLIENT, OTHER_VIP, Flags::SYN, 9, 0);
        scene.packets.push((19_500_000_000, clashes, 64));
        let count = format!("net.netfilter.nf_conntrack_count = {}\n", left + 1);
        scene.sysctls = Scene::header(20_000) + &count;
        let again = segment(client, OTHER_VIP, Flags::SYN, 9, 0);
        if passes {
            scene.passes(20_001, again, client, OLD);
        } else {
            scene.packets.push((20_001_000_000, again, 64));
        }
        scene.rules(25_000, "");
        let report = scene.diff();
        let about = format!("{client} {left} {passes}: {}", report.text(9));
        assert_eq!(report.divergence_count() == 0, can_be, "{about}");
        assert_eq!(report.verdicts, 5, "{about}");
        // Taken as the longest expired goes first, only two of them need another choice.
        let chosen = report.not_checked.contains_key(WHICH_COLLECTED);
        let first_went = (client == CLIENT) == passes;
        assert_eq!(chosen, left == 1 && !first_went, "{about}");
    }
}

/// The same where the node masquerades: a source that has an entry keeps its port, and gets another one if that is gone.
#[test]
fn which_entry_was_collected_is_told_by_the_port_that_is_kept() {
    const KEPT: [&str; 2] = ["10.20.79.226:51515", "10.20.79.226:51516"];
    const FRESH: &str = "10.20.79.226:40000";
    // Who asks again, as whom the node does, whether another entry than the longest expired must have gone.
    for (client, leaves_as, chosen) in [
        (CLIENT, FRESH, false),
        (OTHER_CLIENT, FRESH, true),
        (OTHER_CLIENT, KEPT[1], false),
    ] {
        let mut scene = two_services(OLD);
        for (ms, client, port) in [(1_000, CLIENT, KEPT[0]), (2_000, OTHER_CLIENT, KEPT[1])] {
            scene.passes(ms, segment(client, VIP, Flags::SYN, 1, 0), port, OLD);
        }
        scene.sysctls = Scene::header(20_000) + "net.netfilter.nf_conntrack_count = 1\n";
        let again = segment(client, OTHER_VIP, Flags::SYN, 9, 0);
        scene.passes(20_001, again, leaves_as, OLD);
        scene.rules(25_000, "");
        let report = scene.diff();
        let about = format!("{client} {leaves_as}: {}", report.text(9));
        assert_eq!(report.divergence_count(), 0, "{about}");
        assert_eq!(
            report.not_checked.contains_key(WHICH_COLLECTED),
            chosen,
            "{about}"
        );
    }
}

/// The node's count says that no expired entry was collected, and yet a packet does not clash with one: a look-up met it in
/// its bucket. That is the hash seed's choice, and so rare that the second time is a divergence.
#[test]
fn a_look_up_may_delete_an_expired_entry_of_its_bucket_once() {
    for (asks_again, wrong) in [(1, 0), (2, 1)] {
        let mut scene = two_services(OLD);
        let clients = [CLIENT, OTHER_CLIENT];
        for (ms, client) in (1_000..).zip(clients) {
            scene.passes(ms, segment(client, VIP, Flags::SYN, 1, 0), client, OLD);
        }
        // The node has no nat table: the clients' second connections clash while the first ones live.
        for (seconds, client) in (2..).zip(clients) {
            let clashes = segment(client, OTHER_VIP, Flags::SYN, 9, 0);
            scene.packets.push((seconds * 1_000_000_000, clashes, 64));
        }
        scene.sysctls = Scene::header(20_000) + "net.netfilter.nf_conntrack_count = 2\n";
        for (ms, client) in (20_001..).zip(&clients[..asks_again]) {
            let again = segment(client, OTHER_VIP, Flags::SYN, 9, 0);
            scene.passes(ms, again, client, OLD);
        }
        scene.rules(25_000, "");
        let report = scene.diff();
        let about = report.text(9);
        assert_eq!(report.divergence_count(), wrong, "{about}");
        assert_eq!(report.not_checked.get(SAME_BUCKET), Some(&1), "{about}");
    }
}

/// The same in a full table: the packet finds room, whether it is forwarded or the node answers it.
#[test]
fn a_look_up_may_make_room_in_a_full_table() {
    for (flags, expired, wrong) in [
        (Flags::SYN, true, 0),
        (Flags::ACK, true, 0),
        (Flags::SYN, false, 1),
        (Flags::ACK, false, 1),
    ] {
        let mut scene = Scene::new();
        let timeout = [
            "\"net.netfilter.nf_conntrack_tcp_timeout_syn_sent\" = 60\n\"net.netfilter.nf_conntrack_max\" = 1\n",
            "\"net.netfilter.nf_conntrack_tcp_timeout_syn_sent\" = 5\n\"net.netfilter.nf_conntrack_max\" = 1\n",
        ];
        scene.manifest = ["transit_us = 10\n", timeout[usize::from(expired)]];
        scene.rules(
            0,
            &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m\n"),
        );
        let left = if expired { 3 } else { 58 };
        scene.ct = Scene::header(500)
            + &Scene::header(3_000)
            + &format!(
                "tcp 6 {left} SYN_SENT src=10.23.31.87 dst=10.20.79.226 sport=40000 dport=31199 [UNREPLIED] \
             src=10.27.1.10 dst=10.23.31.87 sport=80 dport=40000 use=1\n"
            );
        scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), CLIENT, OLD);
        scene.sysctls = Scene::header(20_000) + "net.netfilter.nf_conntrack_count = 1\n";
        let packet = segment(OTHER_CLIENT, VIP, flags, 1, 7);
        if flags == Flags::SYN {
            scene.passes(20_001, packet, OTHER_CLIENT, OLD);
        } else {
            scene.packets.push((20_001_000_000, packet, 64));
            let reset = segment(VIP, OTHER_CLIENT, Flags::RST, 7, 0);
            scene.packets.push((20_001_002_000, reset, 64));
        }
        scene.rules(25_000, "");
        let report = scene.diff();
        let about = format!("{flags:?} {expired}: {}", report.text(9));
        assert_eq!(report.divergence_count(), wrong, "{about}");
        assert_eq!(
            report.not_checked.contains_key(SAME_BUCKET),
            expired,
            "{about}"
        );
    }
}

/// The same where the node masquerades: the port that a source has in an expired entry is not kept.
#[test]
fn a_look_up_may_delete_the_entry_whose_port_a_source_has() {
    const KEPT: &str = "10.20.79.226:51515";
    const FRESH: &str = "10.20.79.226:40000";
    for (ms, leaves_as, same_bucket, wrong) in [
        (20_001, KEPT, false, 0),
        (20_001, FRESH, true, 0),
        (3_000, FRESH, false, 1),
    ] {
        let mut scene = two_services(NEW);
        scene.passes(1_000, segment(CLIENT, VIP, Flags::SYN, 1, 0), KEPT, OLD);
        scene.sysctls = Scene::header(ms - 1) + "net.netfilter.nf_conntrack_count = 1\n";
        let again = segment(CLIENT, OTHER_VIP, Flags::SYN, 9, 0);
        scene.passes(ms, again, leaves_as, NEW);
        scene.rules(25_000, "");
        let report = scene.diff();
        let about = format!("{ms} {leaves_as}: {}", report.text(9));
        assert_eq!(report.divergence_count(), wrong, "{about}");
        assert_eq!(
            report.not_checked.contains_key(SAME_BUCKET),
            same_bucket,
            "{about}"
        );
    }
}

/// A listing of conntrack that takes several reads deletes what has expired and then goes on too far. It may lack as many
/// entries that live, and no more; a listing of one read lacks none.
#[test]
fn a_long_listing_skips_entries_where_it_deletes_others() {
    let entry = |host: u16, left: u64| {
        format!(
            "tcp      6 {left} SYN_SENT src=10.23.31.{host} dst=10.20.79.226 sport=40000 dport=31199 [UNREPLIED] \
             src=10.27.1.10 dst=10.23.31.{host} sport=80 dport=40000 use=1\n"
        )
    };
    // Connections, expired ones of them, entries that the listing lacks of the others, divergences.
    for (all, expired, lacks, wrong) in [
        (24, 0, 1, 1),
        (24, 1, 0, 0),
        (24, 1, 1, 0),
        (24, 1, 2, 1),
        (24, 3, 2, 0),
        (9, 1, 1, 1),
    ] {
        let mut scene = Scene::new();
        scene.manifest = [
            "transit_us = 10\n",
            "\"net.netfilter.nf_conntrack_tcp_timeout_syn_sent\" = 15\n",
        ];
        scene.rules(
            0,
            &format!("ipvsadm -A -t {VIP} -s rr\nipvsadm -a -t {VIP} -r {OLD} -m"),
        );
        scene.ct = Scene::header(500);
        let mut listing = Scene::header(22_000);
        for host in 0..all {
            let ms = if host < expired { 1_000 } else { 12_000 };
            let client = format!("10.23.31.{host}:40000");
            let syn = segment(&client, VIP, Flags::SYN, 1, 0);
            scene.passes(ms + u64::from(host), syn, &client, OLD);
            if host >= expired + lacks {
                listing += &entry(host, 5);
            }
        }
        scene.sysctls =
            Scene::header(21_000) + &format!("net.netfilter.nf_conntrack_count = {all}\n");
        scene.ct += &listing;
        scene.rules(25_000, "");
        let report = scene.diff();
        let about = format!("{all} {expired} {lacks}: {}", report.text(9));
        let extra = report.by_class.get(&Class::CtExtra).copied();
        assert_eq!(extra.unwrap_or(0), wrong, "{about}");
        assert_eq!(report.divergence_count(), wrong, "{about}");
    }
}
