#![no_main]

use ipvs_sim::capture::ipvs_conn::parse_conn_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        let _ = parse_conn_line(line);
    }
});
