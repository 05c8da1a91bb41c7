//! `sim kernels`: what the model knows of kernels.

use comfy_table::{ContentArrangement, Table};
use ipvs_model::kernel::possible::{CLIENT_DECISIVE, NODE_DECISIVE};
use ipvs_model::kernel::{Answer, Behaviours, Flavour, GATES, Gate, GateRow, Kernel, Version};
use ipvs_model::time::{Clock, Span, TimerEra};
use serde_json::{Value as Json, json};

use super::{CommonError, Exit, Format};
use crate::output;

/// Arguments of `sim kernels`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A release as `uname -r`, `uname -a`, /proc/version or /proc/version_signature prints it; without one, the table
    /// of all behaviours.
    release: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

const EXAMPLES: &str = "Examples:
  sim kernels
  sim kernels 5.15.0-91-generic";

/// Runs `sim kernels`.
///
/// # Errors
/// If the release cannot be parsed or the output not be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let release = args.release.join(" ");
    let text = match args.release.is_empty() {
        true => match args.format {
            Format::Text => table_text(),
            Format::Json => format!("{:#}\n", Json::Array(GATES.iter().map(row_json).collect())),
        },
        false => {
            let kernel = release
                .parse::<Kernel>()
                .map_err(|error| CommonError::Usage(error.to_string()))?;
            match args.format {
                Format::Text => kernel_text(&kernel),
                Format::Json => format!("{:#}\n", kernel_json(&kernel)),
            }
        }
    };
    output::write(None, text.as_bytes())?;
    Ok(Exit::OK)
}

fn since_text(row: &GateRow) -> String {
    row.since
        .map_or_else(|| "stable only".to_owned(), |since| since.to_string())
}

fn ports_text(row: &GateRow) -> String {
    let ports = row
        .backports
        .iter()
        .map(Version::to_string)
        .collect::<Vec<_>>();
    ports.join(" ")
}

fn table_text() -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "behaviour",
            "since",
            "stable from",
            "el7",
            "what it is",
            "source",
        ]);
    if table.width().is_none() {
        table.set_width(160);
    }
    for row in GATES {
        table.add_row([
            row.name.to_owned(),
            since_text(row),
            ports_text(row),
            if row.el7 { "yes" } else { "" }.to_owned(),
            row.summary.trim().to_owned(),
            row.source.to_owned(),
        ]);
    }
    format!(
        "{table}\n\n\"stable from\": long-term branches that took it over, each with its first patch level. el7: RHEL and CentOS 7, \
         3.10.0-1160.\nOverride any of them with [node.kernel_gates]. `sim kernels RELEASE` tells about one release.\n"
    )
}

fn row_json(row: &GateRow) -> Json {
    json!({
        "name": row.name,
        "summary": row.summary.trim(),
        "since": row.since.map(|v| v.to_string()),
        "backports": row.backports.iter().map(Version::to_string).collect::<Vec<_>>(),
        "el7": row.el7,
        "source": row.source,
    })
}

/// What an era means for a reused port, with kube-proxy's expire_nodest_conn=1. Facts 1.6.1.
fn era_text(era: &str) -> &'static str {
    match era {
        "A" => {
            "a SYN on an entry of a weight-0 real server is rescheduled; there is no conn_reuse_mode"
        }
        "B" => "mode 0 keeps every reused port on its old real server; mode 1 reschedules at once",
        "C" => {
            "mode 0 keeps every reused port on its old real server; mode 1 drops the first SYN (1 s)"
        }
        "C+F" => "weight 0 is looked at in every mode, at the price of the first SYN (1 s)",
        "D" | "E" => {
            "mode 0 keeps every reused port on its old real server; mode 1 reschedules, mostly at once"
        }
        _ => "weight 0 is looked at in every mode; the SYN is rescheduled, mostly at once",
    }
}

fn flavour_text(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Vanilla => "its patch level says everything",
        Flavour::El7 => "known as a whole (3.10.0-1160 was read)",
        Flavour::HiddenPatch => "its release hides the stable patch level",
        Flavour::Vendor => "a vendor that adds patches of its own",
    }
}

/// Per HZ, how much later than its deadline a timer of 60 and of 120 s fires at most, in milliseconds.
fn lateness(behaviours: Behaviours) -> Vec<(u32, u64, u64)> {
    let one = |hz: u32| {
        let clock = Clock::new(hz, behaviours.timer_era(), Span::ZERO);
        let ms = |secs| clock.lateness_max(clock.ticks(secs)) * 1000 / u64::from(hz);
        (hz, ms(60), ms(120))
    };
    [100, 250, 300, 1000].into_iter().map(one).collect()
}

fn kernel_text(kernel: &Kernel) -> String {
    let behaviours = kernel.behaviours();
    let level = kernel
        .level_text()
        .unwrap_or_else(|| format!("version {}", kernel.version));
    let mut out = format!(
        "kernel {kernel}: {level}; {}: {}\n",
        kernel.distribution,
        flavour_text(kernel.flavour)
    );
    let possible = kernel.possibilities(NODE_DECISIVE);
    if possible.len() > 1 {
        out.push_str("port reuse on the node, for each kernel that this can be:\n");
    }
    for kernel in &possible {
        let era = kernel.behaviours().reuse_era();
        let lead = match possible.len() {
            1 => "port reuse on the node, ".to_owned(),
            _ => format!("  {kernel}: "),
        };
        out.push_str(&format!("{lead}era {era}: {}\n", era_text(era)));
    }
    let client = kernel.possibilities(CLIENT_DECISIVE);
    let steps = client.iter().map(|kernel| {
        if kernel.behaviours().has(Gate::ConnectRandomStep) {
            "at random steps"
        } else {
            "in sequence"
        }
    });
    out.push_str(&format!(
        "ports of a client with this kernel: {}\n",
        steps.collect::<Vec<_>>().join(", or ")
    ));
    match behaviours.timer_era() {
        TimerEra::Slack => out.push_str("timers: up to 1/256 of their length late (before 4.8)\n"),
        TimerEra::Wheel => {
            out.push_str("timers fire late by at most\n");
            for (hz, sixty, twice) in lateness(behaviours) {
                out.push_str(&format!(
                    "  HZ {hz:>4}: {sixty:>5} ms of 60 s, {twice:>5} ms of 120 s\n"
                ));
            }
        }
    }
    for (answer, title) in [
        (Answer::Yes, "it has"),
        (
            Answer::Unknown,
            "its release does not tell (counted as absent unless a scenario says otherwise)",
        ),
        (Answer::No, "it has not"),
    ] {
        let rows = GATES
            .iter()
            .filter(|row| kernel.answer(row.gate) == answer)
            .collect::<Vec<_>>();
        if !rows.is_empty() {
            out.push_str(&format!("\n{title}:\n"));
        }
        for row in rows {
            out.push_str(&format!("  {:<28} {}\n", row.name, row.summary.trim()));
        }
    }
    out
}

fn kernel_json(kernel: &Kernel) -> Json {
    let behaviours = kernel.behaviours();
    let gates = GATES.iter().map(|row| {
        let answer = match kernel.answer(row.gate) {
            Answer::Yes => "yes",
            Answer::No => "no",
            Answer::Unknown => "unknown",
        };
        (row.name.to_owned(), Json::from(answer))
    });
    let possible = kernel.possibilities(NODE_DECISIVE);
    let possible = possible.iter().map(
        |kernel| json!({ "kernel": kernel.to_string(), "reuse_era": kernel.behaviours().reuse_era() }),
    );
    let late = lateness(behaviours).into_iter().map(
        |(hz, sixty, twice)| json!({ "hz": hz, "late_ms_of_60s": sixty, "late_ms_of_120s": twice }),
    );
    json!({
        "release": kernel.release,
        "version": kernel.version.to_string(),
        "flavour": flavour_text(kernel.flavour),
        "reuse_era": behaviours.reuse_era(),
        "distribution": kernel.distribution,
        "stable": kernel.level_text(),
        "possible": possible.collect::<Vec<_>>(),
        "reuse": era_text(behaviours.reuse_era()),
        "timers": match behaviours.timer_era() {
            TimerEra::Slack => Json::from("slack"),
            TimerEra::Wheel => Json::from("wheel"),
        },
        "lateness": match behaviours.timer_era() {
            TimerEra::Slack => Json::Null,
            TimerEra::Wheel => Json::Array(late.collect()),
        },
        "behaviours": gates.collect::<serde_json::Map<_, _>>(),
    })
}
