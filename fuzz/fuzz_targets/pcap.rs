#![no_main]

use std::sync::Arc;

use ipvs_sim::capture::pcap::Packets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(mut packets) = Packets::new(Arc::from("fuzz"), data) {
        while let Ok(Some(_)) = packets.next_packet() {}
    }
});
