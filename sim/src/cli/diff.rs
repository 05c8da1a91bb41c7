//! `sim diff`: a capture from a real node against the model.

use std::path::PathBuf;

use ipvs_model::kernel::possible::NODE_DECISIVE;

use super::{CommonError, Exit, Format};
use crate::capture::{Capture, ReadError};
use crate::diff::Report;
use crate::output;

/// Arguments of `sim diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A capture directory, or a mixed log of `date`, kubectl, ipvsadm and nf_conntrack output.
    #[arg(required = true)]
    captures: Vec<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Divergences to show with all their circumstances.
    #[arg(long, value_name = "N", default_value_t = 10)]
    show: usize,
}

const EXAMPLES: &str = "Examples:
  sim diff captures/founding-case";

/// Runs `sim diff`.
///
/// # Errors
/// If a capture cannot be read, or the output not be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let mut divergences = 0;
    let mut reports = Vec::new();
    for path in &args.captures {
        let unreadable = |error: ReadError| CommonError::Capture(error.to_string());
        let capture = Capture::open(path).map_err(unreadable)?;
        let report = judge(capture).map_err(unreadable)?;
        divergences += report.divergence_count();
        match args.format {
            Format::Text => {
                let text = format!("{}: {}", path.display(), report.text(args.show));
                output::write(None, text.as_bytes())?;
            }
            Format::Json => {
                let mut json = report.json();
                json["capture"] = path.display().to_string().into();
                reports.push(json);
            }
        }
    }
    if args.format == Format::Json {
        // One capture is one object; several are a list.
        let json = match reports.len() {
            1 => reports.swap_remove(0),
            _ => serde_json::Value::Array(reports),
        };
        output::write(None, format!("{json:#}\n").as_bytes())?;
    }
    Ok(if divergences == 0 {
        Exit::OK
    } else {
        Exit::DIVERGENCE
    })
}

/// Compares a capture. A kernel whose release leaves open which fixes it has is compared as each kernel that it can be; the one
/// that agrees best is shown, and how the others fared.
fn judge(mut capture: Capture) -> Result<Report, ReadError> {
    let kernel = capture.manifest.kernel.as_ref();
    let possible = kernel.map_or_else(Vec::new, |kernel| kernel.possibilities(NODE_DECISIVE));
    if possible.len() < 2 {
        return crate::diff::diff(&capture);
    }
    let mut words = Vec::new();
    let mut best: Option<Report> = None;
    for kernel in possible {
        words.push(format!("{kernel}: "));
        capture.manifest.kernel = Some(kernel);
        let report = crate::diff::diff(&capture)?;
        let count = report.divergence_count();
        if let Some(words) = words.last_mut() {
            words.push_str(&match count {
                0 => "agrees".to_owned(),
                count => format!("{count} divergences"),
            });
        }
        if best
            .as_ref()
            .is_none_or(|best| count < best.divergence_count())
        {
            best = Some(report);
        }
    }
    let mut best = best.unwrap_or_default();
    best.scope.push(format!(
        "the release leaves open which fixes the kernel has; compared as each that it can be, the best is shown: {}",
        words.join("; ")
    ));
    Ok(best)
}
