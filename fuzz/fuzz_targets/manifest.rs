#![no_main]

use std::sync::Arc;

use ipvs_sim::capture::{Manifest, Skipped};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = Manifest::parse(&Arc::from("fuzz"), &text, &mut Skipped::default());
});
