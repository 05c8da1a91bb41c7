//! The readers against generated rows, mutated real text and nonsense.

use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Flags, Options, Proto, Segment, Timestamps, Tuple};
use proptest::prelude::*;

use super::conntrack::{parse_entry, parse_event};
use super::ipvs_conn::parse_conn_line;
use super::ipvsadm::parse_rule_line;
use super::kubectl::{EndpointsReader, parse_date_line, parse_pod_line};
use super::packet::decode;
use super::pcap::Packets;
use super::tests::{sample_pcap, sample_pcapng};
use super::*;

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| Endpoint::new(Ipv4Addr::from_bits(ip), port))
}

fn proto() -> impl Strategy<Value = Proto> {
    prop_oneof![Just(Proto::Tcp), Just(Proto::Udp)]
}

fn state() -> impl Strategy<Value = StateName> {
    prop::sample::select(vec![
        "NONE",
        "ESTABLISHED",
        "SYN_RECV",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ])
    .prop_map(|name| StateName::of(name).unwrap())
}

fn ipvs_row() -> impl Strategy<Value = IpvsConnLine> {
    (
        proto(),
        endpoint(),
        endpoint(),
        endpoint(),
        state(),
        0..1_000_000_u32,
    )
        .prop_map(
            |(proto, client, virt, dest, state, expires_s)| IpvsConnLine {
                proto,
                client,
                virt,
                dest,
                state,
                expires_s,
            },
        )
}

fn conntrack_row() -> impl Strategy<Value = ConntrackLine> {
    let ends = (endpoint(), endpoint(), endpoint(), endpoint());
    (
        proto(),
        ends,
        state(),
        any::<u32>(),
        any::<[bool; 3]>(),
        any::<u32>(),
    )
        .prop_map(
            |(proto, (a, b, c, d), state, timeout_s, [unreplied, assured, offload], mark)| {
                ConntrackLine {
                    orig: Tuple {
                        proto,
                        src: a,
                        dst: b,
                    },
                    reply: Tuple {
                        proto,
                        src: c,
                        dst: d,
                    },
                    state: (!offload && proto == Proto::Tcp).then_some(state),
                    timeout_s: (!offload).then_some(timeout_s),
                    unreplied,
                    assured: assured && !offload,
                    offload,
                    zone: 0,
                    mark,
                }
            },
        )
}

fn segment() -> impl Strategy<Value = Segment> {
    let options = (
        any::<Option<u8>>(),
        any::<bool>(),
        any::<Option<u32>>(),
        any::<Option<(u32, u32)>>(),
    );
    (
        proto(),
        endpoint(),
        endpoint(),
        any::<u8>(),
        any::<[u32; 2]>(),
        any::<u16>(),
        0..1400_u16,
        options,
    )
        .prop_map(
            |(
                proto,
                src,
                dst,
                flags,
                [seq, ack],
                window,
                len,
                (wscale, sack_ok, sack_right, stamps),
            )| {
                let mut segment = Segment::new(Tuple { proto, src, dst }, Flags(0));
                segment.len = len;
                if proto == Proto::Tcp {
                    segment.flags = Flags(flags);
                    (segment.seq, segment.ack, segment.window) = (seq, ack, window);
                    segment.options = Options {
                        wscale: wscale.map(|shift| shift % 15),
                        sack_ok,
                        sack_right,
                        timestamps: stamps.map(|(val, ecr)| Timestamps { val, ecr }),
                    };
                }
                segment
            },
        )
}

fn written(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut bytes = Vec::new();
    write(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

proptest! {
    #[test]
    fn ipvs_rows_survive_both_formats(row in ipvs_row()) {
        let proc = written(|out| write::ipvs_conn_proc(out, &row));
        prop_assert_eq!(parse_conn_line(&proc), Parsed::Item(row));
        let tool = written(|out| write::ipvs_conn_tool(out, &row));
        prop_assert_eq!(parse_conn_line(&tool), Parsed::Item(row));
    }

    #[test]
    fn conntrack_rows_survive(row in conntrack_row()) {
        let text = written(|out| write::conntrack_proc(out, &row));
        prop_assert_eq!(parse_entry(&text), Parsed::Item(row));
    }

    #[test]
    fn segments_survive_a_packet_file(segments in prop::collection::vec((segment(), any::<u32>()), 0..20)) {
        let mut bytes = Vec::new();
        write::pcap_header(&mut bytes).unwrap();
        for (segment, nanos) in &segments {
            let at = Stamp(1_700_000_000_000_000_000 + u64::from(*nanos));
            write::pcap_packet(&mut bytes, at, &write::ipv4_bytes(segment, 63, 7)).unwrap();
        }
        let mut packets = Packets::new(Arc::from("p"), &bytes[..]).unwrap();
        for (segment, nanos) in &segments {
            let packet = packets.next_packet().unwrap().unwrap();
            prop_assert_eq!(packet.at.0, 1_700_000_000_000_000_000 + u64::from(*nanos));
            prop_assert_eq!((packet.ttl, packet.ip_id), (63, 7));
            let content = Content::Segment { segment: *segment, options_cut: false };
            prop_assert_eq!(packet.content, content);
        }
        prop_assert!(packets.next_packet().unwrap().is_none());
    }

    /// Real lines with bytes changed, dropped and doubled never make a text reader panic.
    #[test]
    fn text_readers_survive_mutations(
        base in prop::sample::select(sample_lines()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<char>(), 0..3_u8), 0..8),
    ) {
        let mut line = base.chars().collect::<Vec<_>>();
        for (at, with, how) in edits {
            if line.is_empty() {
                break;
            }
            let at = at.index(line.len());
            match how {
                0 => line[at] = with,
                1 => { line.remove(at); }
                _ => line.insert(at, with),
            }
        }
        read_every_way(&line.into_iter().collect::<String>());
    }

    #[test]
    fn text_readers_survive_anything(text in "\\PC*|[ -~\\n\\t]*") {
        read_every_way(&text);
    }

    #[test]
    fn packet_readers_survive_anything(
        link in prop::sample::select(vec![0, 1, 12, 14, 101, 113, 228, 276, 999]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        decode(Stamp(0), 1, link, &bytes);
        drain(&bytes);
    }

    /// A valid file with bytes changed anywhere, and cut anywhere.
    #[test]
    fn packet_files_survive_mutations(
        ng in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..10),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = if ng { sample_pcapng(false) } else { sample_pcap(false, false) };
        for (at, with) in edits {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        drain(&bytes);
    }
}

fn drain(bytes: &[u8]) {
    if let Ok(mut packets) = Packets::new(Arc::from("p"), bytes) {
        while let Ok(Some(_)) = packets.next_packet() {}
    }
}

fn read_every_way(text: &str) {
    let _ = parse_conn_line(text);
    let _ = parse_entry(text);
    let _ = parse_event(text);
    let _ = parse_rule_line(text);
    let _ = parse_pod_line(text);
    let _ = parse_date_line(text);
    let _ = Manifest::parse(&Arc::from("m"), text, &mut Skipped::default());
    let _ = manifest::parse_sysctls(&Arc::from("s"), text, &mut Skipped::default());
    let mut describe = EndpointsReader::default();
    let _ = describe.take("Name: x");
    for line in text.lines() {
        let _ = describe.take(line);
    }
    let dated = format!("@ 1\n{text}");
    for text in [text, &dated] {
        let mut blocks = blocks::Blocks::new(Arc::from("b"), text.as_bytes(), parse_rule_line);
        while let Ok(Some(_)) = blocks.next_block() {}
    }
    let dated = format!("Mon Jun  8 17:58:22 CST 2020\n{text}");
    for text in [text, &dated] {
        let mut mixed = mixed::Mixed::new(Arc::from("m"), text.as_bytes());
        while let Ok(Some(_)) = mixed.next_round() {}
    }
}

fn sample_lines() -> Vec<String> {
    let log = include_str!("../../../captures/founding-case/log.txt");
    let manifest =
        "schema = 1\nkernel = \"6.1.90\"\nhz = 100\n[sysctl]\n\"net.ipv4.vs.conntrack\" = 1\n";
    let more = [
        "TCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV         60",
        "ipvsadm -A -t 10.0.0.1:80 -s sh -p 10800 -M 255.255.255.0 -b sh-fallback,sh-port",
        "-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 1 -x 3 -y 2",
        "[1591610302.000025]\t[UPDATE] tcp 6 60 SYN_RECV src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.3 dst=10.0.0.1 sport=2 dport=1",
        "Mon 08 Jun 2020 05:58:22 PM CST",
        manifest,
    ];
    log.lines().chain(more).map(str::to_owned).collect()
}
