//! One run of one case, with what it cost: for the instruction counts, for memory, and for a quick look.

use std::process::ExitCode;

use ipvs_benches::{CASES, Case};
use ipvs_sim::engine::{run, trace::TraceOptions};

const USAGE: &str = "usage: one-run CASE [packets] [SECONDS]\n\
                     packets: take every packet one by one; SECONDS: simulate so long instead";

/// Processor time of this process so far, in nanoseconds; 0 where the system does not tell.
fn processor_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let first = text.split(' ').next();
    first.and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The most memory that was resident, in kB; 0 where the system does not tell.
fn peak_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(mut case) = arguments.first().and_then(|name| Case::named(name)) else {
        eprintln!("{USAGE}");
        for case in CASES {
            eprintln!("  {:16} {}", case.name, case.about);
        }
        return ExitCode::from(2);
    };
    let no_quiet = arguments.iter().any(|word| word == "packets");
    if let Some(seconds) = arguments.last().and_then(|word| word.parse().ok()) {
        case.seconds = seconds;
    }
    let scenario = case.scenario();
    let options = TraceOptions {
        no_quiet,
        ..TraceOptions::default()
    };
    let before = processor_ns();
    let result = match run(&scenario, 1, &options) {
        Ok(result) => result,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(1);
        }
    };
    let spent = processor_ns() - before;
    let summary = result.summary;
    let each = |count: u64| spent.checked_div(count).unwrap_or(0);
    println!(
        "requests {} connections {} failed {} ns {spent} ns/request {} ns/connection {} peak_kB {}",
        summary.requests,
        summary.connections,
        summary.failed(),
        each(summary.requests),
        each(summary.connections),
        peak_kb(),
    );
    ExitCode::SUCCESS
}
