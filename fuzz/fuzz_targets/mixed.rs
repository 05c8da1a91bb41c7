#![no_main]

use std::sync::Arc;

use ipvs_sim::capture::mixed::Mixed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut log = Mixed::new(Arc::from("fuzz"), data);
    while let Ok(Some(_)) = log.next_round() {}
});
