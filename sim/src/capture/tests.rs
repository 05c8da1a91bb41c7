//! The readers against real text and against nonsense.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use etherparse::PacketBuilder;
use ipvs_model::segment::{Endpoint, Flags, IcmpKind, Segment, Tuple};

use super::packet::{decode, link};
use super::pcap::Packets;
use super::*;

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures")
}

fn all_events(capture: &Capture) -> (Vec<Event>, Skipped) {
    let mut events = capture.events().unwrap();
    let mut all = Vec::new();
    while let Some(event) = events.next_event().unwrap() {
        all.push(event);
    }
    (all, events.skipped())
}

/// Every recording is understood to the last line: nothing skipped, every table complete, time in order.
#[test]
fn recordings_of_kernels_are_read_whole() {
    let mut read = 0;
    for directory in fs::read_dir(captures().join("kernels")).unwrap() {
        let capture = Capture::open(&directory.unwrap().path()).unwrap();
        let (events, skipped) = all_events(&capture);
        assert!(
            skipped.is_empty() && capture.skipped.is_empty(),
            "{skipped:?}"
        );
        assert!(events.is_sorted_by_key(|event| event.at));
        let count = |name| {
            events
                .iter()
                .filter(|event| event.body.name() == name)
                .count()
        };
        assert_eq!(count("IPVS entries"), count("conntrack entries"));
        assert!(count("packet") > 300 && count("IPVS entries") > 200 && count("rules") > 5);
        for event in &events {
            match &event.body {
                Body::Ipvs(table) => assert!(table.complete),
                Body::Conntrack(table) => assert!(table.complete),
                Body::Rules(rules) => assert!(rules.complete && rules.commands.len() == 1),
                Body::Packet(packet) => assert!(matches!(
                    packet.content,
                    Content::Segment { .. } | Content::Icmp { .. }
                )),
                other => panic!("{other:?}"),
            }
        }
        read += 1;
    }
    assert_eq!(read, 13);
}

#[test]
fn the_founding_case_opens_as_a_directory_and_as_a_file() {
    let directory = Capture::open(&captures().join("founding-case")).unwrap();
    let file = Capture::open(&captures().join("founding-case/log.txt")).unwrap();
    assert_eq!(all_events(&directory).0.len(), all_events(&file).0.len());
    assert_eq!(all_events(&file).0.len(), 13);
}

#[test]
fn what_cannot_be_opened_says_so() {
    let root = tempfile::tempdir().unwrap();
    let error = Capture::open(&root.path().join("nothing")).unwrap_err();
    assert!(error.reason.contains("cannot be opened"), "{error}");
    let error = Capture::open(root.path()).unwrap_err();
    assert!(error.to_string().contains("manifest.toml"), "{error}");
    let pcap = root.path().join("x.pcap");
    let mut bytes = Vec::new();
    write::pcap_header(&mut bytes).unwrap();
    fs::write(&pcap, bytes).unwrap();
    assert!(
        Capture::open(&pcap)
            .unwrap_err()
            .reason
            .contains("manifest.toml")
    );
}

/// A directory with every optional file, an event stream, a clock that is set back, and a broken end.
#[test]
fn a_messy_directory_is_read_in_order() {
    let root = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
    put(
        "manifest.toml",
        "schema = 1\nkernel = \"5.15.0-91-generic\"\n[sysctl]\n\"net.ipv4.vs.conn_reuse_mode\" = \"0\"\n",
    );
    put(
        "sysctl.txt",
        "net.ipv4.vs.conn_reuse_mode = 1\nnet.ipv4.vs.conntrack = 1\n",
    );
    put(
        "rules.log",
        "@ 100.5\nTCP  10.0.0.1:80 rr\n  -> 10.0.0.2:80 Masq 1 0 0\nFWM 3 rr\n@ 106\nipvsadm -C\n",
    );
    put(
        "ipvs-conn.log",
        "@ 101\n@ 103\nTCP 00:59 SYN_RECV 10.0.0.9:1 10.0.0.1:80 10.0.0.2:80\n@ 91\n@ 92\nTCP 00:5",
    );
    put(
        "conntrack.log",
        "\n[102.000001]\t    [NEW] tcp      6 120 SYN_SENT src=10.0.0.9 dst=10.0.0.1 sport=1 dport=80 [UNREPLIED] src=10.0.0.2 dst=10.0.0.9 sport=80 dport=1\n[102.2] [NEW] ipv6\n",
    );
    put(
        "pods.log",
        "@ 100.7\nweb-0 1/1 Running 0 5s 10.0.0.2 node-1 <none> <none>\nkind: List\n",
    );
    let capture = Capture::open(root.path()).unwrap();
    let vs = capture.manifest.sysctls(&Arc::from("m")).unwrap().vs;
    assert_eq!((vs.conntrack, vs.conn_reuse_mode), (true, 0));
    let (events, skipped) = all_events(&capture);
    let order = events
        .iter()
        .map(|event| (event.at.0 / 1_000_000, event.stepped_back))
        .collect::<Vec<_>>();
    let expected = [
        (100_500, false),
        (100_700, false),
        (101_000, false),
        (102_000, false),
        (103_000, false),
        (91_000, true),
        (92_000, false),
        (106_000, false),
    ];
    assert_eq!(order, expected);
    for why in [
        "clock set back",
        "line broken off or longer than 64 KiB",
        "IPVS service of a firewall mark",
        "line of the pods log other than a pod",
    ] {
        assert_eq!(skipped.of(why), 1, "{why}");
    }
    let Body::Ipvs(last) = &events[6].body else {
        panic!("{:?}", events[6])
    };
    assert!(!last.complete);
}

pub(super) fn sample_segment() -> Segment {
    let tuple = Tuple::tcp(
        Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 40_000),
        Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 80),
    );
    let mut segment = Segment::new(tuple, Flags::SYN);
    segment.seq = 77;
    segment.options.wscale = Some(7);
    segment
}

/// A pcap file of two packets in either byte order, with micro- or nanoseconds.
pub(super) fn sample_pcap(big: bool, nanos: bool) -> Vec<u8> {
    let word = |value: u32| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let half = |value: u16| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let mut bytes = word(if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
    bytes.extend(half(2).into_iter().chain(half(4)));
    for value in [0, 0, 0xffff, link::RAW] {
        bytes.extend(word(value));
    }
    let ip = write::ipv4_bytes(&sample_segment(), 64, 1);
    for second in [1, 2] {
        for value in [second, 5, ip.len() as u32, ip.len() as u32] {
            bytes.extend(word(value));
        }
        bytes.extend(&ip);
    }
    bytes
}

/// A pcapng file: section, raw interface with nanoseconds, one packet.
pub(super) fn sample_pcapng(big: bool) -> Vec<u8> {
    let word = |value: u32| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let half = |value: u16| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let block = |kind: u32, body: &[u8]| {
        let mut padded = body.to_vec();
        padded.resize(body.len().next_multiple_of(4), 0);
        let len = word(padded.len() as u32 + 12);
        [&word(kind)[..], &len, &padded, &len].concat()
    };
    let section = [&word(0x1a2b_3c4d)[..], &half(1), &half(0), &[0xff; 8]].concat();
    let resolution = [&half(9)[..], &half(1), &[9, 0, 0, 0], &half(0), &half(0)].concat();
    let interface = [&half(101)[..], &half(0), &word(0), &resolution].concat();
    let ip = write::ipv4_bytes(&sample_segment(), 64, 1);
    let nanos = 1_700_000_000_123_456_789_u64;
    let mut packet = Vec::new();
    for value in [
        0,
        (nanos >> 32) as u32,
        nanos as u32,
        ip.len() as u32,
        ip.len() as u32,
    ] {
        packet.extend(word(value));
    }
    packet.extend(&ip);
    [
        block(0x0a0d_0d0a, &section),
        block(1, &interface),
        block(6, &packet),
    ]
    .concat()
}

fn packets_of(bytes: &[u8]) -> (Vec<Packet>, Skipped) {
    let mut packets = Packets::new(Arc::from("p"), bytes).unwrap();
    let mut all = Vec::new();
    while let Some(packet) = packets.next_packet().unwrap() {
        all.push(packet);
    }
    (all, packets.skipped().clone())
}

#[test]
fn every_kind_of_packet_file_is_read() {
    for (big, nanos) in [(false, false), (true, false), (false, true), (true, true)] {
        let (packets, _) = packets_of(&sample_pcap(big, nanos));
        let unit = if nanos { 1 } else { 1_000 };
        assert_eq!(packets[1].at.0, 2_000_000_000 + 5 * unit, "{big} {nanos}");
        assert_eq!(
            packets[0].content,
            Content::Segment {
                segment: sample_segment(),
                options_cut: false
            }
        );
    }
    for big in [false, true] {
        let (packets, _) = packets_of(&sample_pcapng(big));
        assert_eq!(packets[0].at.0, 1_700_000_000_123_456_789);
    }
}

#[test]
fn a_packet_that_breaks_off_ends_the_file() {
    let whole = sample_pcap(false, false);
    let (packets, skipped) = packets_of(&whole[..whole.len() - 3]);
    assert_eq!(
        (packets.len(), skipped.of("last packet broken off")),
        (1, 1)
    );
    let whole = sample_pcapng(false);
    let (packets, skipped) = packets_of(&whole[..whole.len() - 3]);
    assert_eq!(
        (packets.len(), skipped.of("last packet broken off")),
        (0, 1)
    );
    let mut damaged = sample_pcap(false, false);
    damaged[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut packets = Packets::new(Arc::from("p"), &damaged[..]).unwrap();
    assert!(packets.next_packet().is_err());
}

/// Packets built by another hand, in every frame that captures come in.
#[test]
fn every_link_type_leads_to_the_segment() {
    let builder = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 61);
    let mut ip = Vec::new();
    builder()
        .tcp(40_000, 80, 77, 1_000)
        .syn()
        .write(&mut ip, &[1, 2, 3])
        .unwrap();
    let ethernet = [&[0; 12][..], &[8, 0], &ip].concat();
    let vlan = [&[0; 12][..], &[0x81, 0, 0, 5, 8, 0], &ip].concat();
    let double = [&[0; 12][..], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &ip].concat();
    let cooked = [&[0, 4, 0, 1, 0, 6][..], &[0; 8], &[8, 0], &ip].concat();
    let cooked2 = [&[8, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0, 6][..], &[0; 8], &ip].concat();
    let null = [&[2, 0, 0, 0][..], &ip].concat();
    let frames = [
        (link::RAW, &ip, None, None),
        (link::RAW_12, &ip, None, None),
        (link::RAW_14, &ip, None, None),
        (link::ETHERNET, &ethernet, None, None),
        (link::ETHERNET, &vlan, None, None),
        (link::ETHERNET, &double, None, None),
        (link::LINUX_SLL, &cooked, Some(Way::Out), None),
        (link::LINUX_SLL2, &cooked2, Some(Way::In), Some(3)),
        (link::NULL, &null, None, None),
    ];
    for (link, bytes, way, interface) in frames {
        let packet = decode(Stamp(0), 1, link, bytes);
        let Content::Segment { segment, .. } = packet.content else {
            panic!("link {link}: {:?}", packet.content);
        };
        assert_eq!(
            (packet.way, packet.interface, packet.ttl),
            (way, interface, 61),
            "link {link}"
        );
        assert_eq!(
            (segment.seq, segment.len, segment.window),
            (77, 3, 1_000),
            "link {link}"
        );
        assert_eq!(segment.tuple.dst.port, 80);
    }
}

#[test]
fn icmp_errors_carry_the_tuple_they_are_about() {
    let inner = write::ipv4_bytes(&sample_segment(), 64, 7);
    let icmp = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &inner[..28]].concat();
    let mut ip = write::ipv4_bytes(&sample_segment(), 64, 1)[..20].to_vec();
    ip[9] = 1;
    ip[2..4].copy_from_slice(&(20 + icmp.len() as u16).to_be_bytes());
    ip.extend(icmp);
    let Content::Icmp { error, to, quoted } = decode(Stamp(0), 1, link::RAW, &ip).content else {
        panic!("no ICMP");
    };
    assert_eq!(
        (error.kind, error.about),
        (IcmpKind::PortUnreachable, sample_segment().tuple)
    );
    assert_eq!((to, quoted), (Ipv4Addr::new(10, 0, 0, 2), 7));
}

#[test]
fn what_is_not_ours_is_skipped_by_name() {
    let mut ip = write::ipv4_bytes(&sample_segment(), 64, 1);
    let skipped = |bytes: &[u8]| match decode(Stamp(0), 1, link::RAW, bytes).content {
        Content::Skipped(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(skipped(&ip[..30]), "packet cut before its headers ended");
    assert_eq!(skipped(&[0x60; 60]), "IPv6");
    ip[6] = 0x20;
    assert_eq!(skipped(&ip), "IP fragment");
    // A snapshot length that ends within the options: the segment counts, its options are marked as cut.
    let whole = write::ipv4_bytes(&sample_segment(), 64, 1);
    let Content::Segment {
        segment,
        options_cut,
    } = decode(Stamp(0), 1, link::RAW, &whole[..41]).content
    else {
        panic!("no segment");
    };
    assert!(options_cut && segment.options.wscale.is_none() && segment.seq == 77);
}
