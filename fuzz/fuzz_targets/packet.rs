#![no_main]

use ipvs_sim::capture::Stamp;
use ipvs_sim::capture::packet::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    const LINKS: [u32; 9] = [0, 1, 12, 14, 101, 113, 228, 276, 999];
    if let Some((first, bytes)) = data.split_first() {
        let link = LINKS[usize::from(*first) % LINKS.len()];
        let _ = decode(Stamp(0), 1, link, bytes);
    }
});
