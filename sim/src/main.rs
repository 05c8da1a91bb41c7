//! The `sim` command.

use std::hint::black_box;
use std::process::ExitCode;

/// More than a run takes, and less than the 32 MiB up to which glibc learns.
const BLOCK: usize = 16 << 20;

fn main() -> ExitCode {
    keep_freed_memory();
    ExitCode::from(ipvs_sim::cli::main(std::env::args_os()))
}

/// Each run takes a few megabytes and gives them back. glibc hands them on to the kernel, and the next run faults its pages in
/// anew (an eighth of the time of a sweep of short runs), unless it has seen that larger blocks come and go.
fn keep_freed_memory() {
    drop(black_box(Vec::<u8>::with_capacity(BLOCK)));
}
