#![no_main]

use std::sync::Arc;

use ipvs_sim::capture::Skipped;
use ipvs_sim::capture::blocks::Blocks;
use ipvs_sim::capture::manifest::{parse_sysctl_line, parse_sysctls};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = parse_sysctls(&Arc::from("fuzz"), &text, &mut Skipped::default());
    let mut blocks = Blocks::new(Arc::from("fuzz"), data, parse_sysctl_line);
    while let Ok(Some(_)) = blocks.next_block() {}
});
