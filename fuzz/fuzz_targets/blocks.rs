#![no_main]

use std::sync::Arc;

use ipvs_sim::capture::blocks::Blocks;
use ipvs_sim::capture::ipvsadm::parse_rule_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut blocks = Blocks::new(Arc::from("fuzz"), data, parse_rule_line);
    while let Ok(Some(_)) = blocks.next_block() {}
});
