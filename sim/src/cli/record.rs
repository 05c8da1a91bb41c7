//! `sim record`: a capture of the node that this runs on.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::{CommonError, Exit};
use crate::output::OutputError;
use crate::record::{self, ConntrackFrom, Ended, Plan, RecordError, Service, Summary};
use crate::report::text::thousands;
use crate::scenario::parse_span;

/// Arguments of `sim record`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The directory for the capture; made if it is not there, and it must be empty.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// List the tables this often; less often if that would take more than a tenth of the time.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    every: Duration,
    /// Look for changed rules this often.
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = interval)]
    rules_every: Duration,
    /// Record for so long.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = duration)]
    lasts: Duration,
    /// Write no more than this: bytes, or with a unit (K, M, G: powers of 1024).
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    max_size: u64,
    /// Record only this virtual service, such as 10.20.79.226:31199 or 10.96.0.10:53/udp. Repeatable.
    #[arg(long, value_name = "ADDR:PORT")]
    service: Vec<Service>,
    /// Record the packets of the services too: their headers, before and after translation.
    #[arg(long, requires = "service")]
    packets: bool,
    /// Where the conntrack table is taken from.
    #[arg(long, value_enum, default_value_t)]
    conntrack: ConntrackFrom,
    /// Timer frequency of the kernel (CONFIG_HZ), if the node does not show it.
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..=1000))]
    hz: Option<u32>,
    /// Replace an earlier recording in the directory; other files stay.
    #[arg(long)]
    force: bool,
    /// Read this tree instead of /proc.
    #[arg(long, value_name = "DIR", hide = true)]
    proc: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim record --out /tmp/capture --for 10m
  sim record --out /tmp/capture --service 10.20.79.226:31199 --packets --for 5m --max-size 500M
  sim diff /tmp/capture";

/// Runs `sim record`.
///
/// # Errors
/// If the node cannot be read or the capture not be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let plan = Plan {
        out: args.out,
        every: args.every,
        rules_every: args.rules_every,
        lasts: args.lasts,
        size_max: args.max_size,
        services: args.service,
        packets: args.packets,
        conntrack: args.conntrack,
        hz: args.hz,
        force: args.force,
        proc: args.proc,
    };
    let summary = record::record(&plan)?;
    let text = words(&plan, &summary);
    // The capture is what counts; if nobody listens there is nobody to tell.
    let _ = anstream::stderr().write_all(text.as_bytes());
    Ok(match summary.ended {
        Some(Ended::Interrupted) => Exit::INTERRUPTED,
        _ => Exit::OK,
    })
}

fn words(plan: &Plan, summary: &Summary) -> String {
    let ended = summary.ended.map_or("", Ended::words);
    let millis = summary.longest.map(|took| took.as_secs_f64() * 1_000.0);
    let mut text = format!(
        "recorded {:.1} s into {}, until {ended}: {} bytes\n  {} rounds; last listing: {} IPVS entries (at most {:.1} ms), {} \
         conntrack entries (at most {:.1} ms); rules changed {} times\n",
        summary.ran.as_secs_f64(),
        plan.out.display(),
        thousands(summary.bytes),
        thousands(summary.rounds),
        thousands(summary.rows[0]),
        millis[0],
        thousands(summary.rows[1]),
        millis[1],
        thousands(summary.rule_changes.saturating_sub(1)),
    );
    if let Some((written, lost)) = summary.packets {
        text.push_str(&format!("  {} packets", thousands(written)));
        if lost > 0 {
            text.push_str(&format!(
                ", and {} that the kernel had no room for: sim diff will miss them",
                thousands(lost)
            ));
        }
        text.push('\n');
    }
    for note in &summary.notes {
        text.push_str(&format!("  note: {note}\n"));
    }
    text.push_str(&format!("next: sim diff {}\n", plan.out.display()));
    text
}

impl From<RecordError> for CommonError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Unwritable { path, error } => Self::Output(OutputError::Unwritable {
                target: path.display().to_string(),
                reason: error,
            }),
            RecordError::NoIpvs { .. } => Self::NothingMatched(error.to_string()),
            RecordError::Unreadable { .. } => Self::Capture(error.to_string()),
            RecordError::Forbidden { .. } | RecordError::Refused(_) => {
                Self::Usage(error.to_string())
            }
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let span = parse_span(text).filter(|span| span.0 > 0);
    span.map(|span| Duration::from_nanos(span.0))
        .ok_or_else(|| "write a number and a unit: 500ms, 10s, 5m, 2h".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(1) {
        return Err("the shortest interval is 1ms".to_owned());
    }
    Ok(interval)
}

fn size(text: &str) -> Result<u64, String> {
    let wrong = || "write a number of bytes, or one with a unit: 500M, 2G".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match number.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => {
            let unit = number.chars().last().and_then(|unit| "kmgt".find(unit));
            (digits, 10 * (unit.unwrap_or(0) + 1))
        }
        None => (number, 0),
    };
    let value = digits.trim().parse::<u64>().map_err(|_| wrong())?;
    value
        .checked_mul(1 << shift)
        .filter(|size| *size > 0)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let read = ["4096", "1k", "500M", "1GiB", "2 gb"].map(size);
        let expected = [4096, 1024, 500 << 20, 1 << 30, 2 << 30].map(Ok);
        assert_eq!(read, expected);
        for wrong in ["", "M", "0", "-1", "1.5G", "99999999T", "1x"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
