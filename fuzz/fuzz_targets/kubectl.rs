#![no_main]

use ipvs_sim::capture::kubectl::{EndpointsReader, parse_date_line, parse_pod_line};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut describe = EndpointsReader::default();
    for line in text.lines() {
        let _ = parse_date_line(line);
        let _ = parse_pod_line(line);
        let _ = describe.take(line);
    }
    let _ = describe.finish();
});
