#![no_main]

use ipvs_sim::capture::ipvsadm::parse_rule_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        let _ = parse_rule_line(line);
    }
});
