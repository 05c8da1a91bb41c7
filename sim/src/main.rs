//! The `sim` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ipvs_sim::cli::main(std::env::args_os()))
}
