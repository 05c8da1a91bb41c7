//! The kernel lab: drives a real Linux kernel in virtual time and records what its tables do.

mod cli;
mod clock;
mod config;
mod conform;
mod generator;
mod guest;
mod host;
mod job;
mod netlink;
mod packet;
mod play;
mod recorder;
mod rollout;
mod step;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1
        && let Some(path) = std::env::var_os(job::VARIABLE)
    {
        guest::run(path.as_ref());
    }
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ipvs-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
