//! `sim whatif`: today's setting against remedies.

use std::io::Write as _;
use std::path::PathBuf;

use super::args::{self, HowMuch, Teller};
use super::{CommonError, Exit, Format, Overrides};
use crate::experiment::clock::{Stopwatch as _, WallClock};
use crate::experiment::whatif::remedies::REMEDIES;
use crate::experiment::whatif::{self, PlanError, Ran, Selection};
use crate::output::{self, Output};
use crate::report::text::{Align, columns};
use crate::report::whatif::{self as report, View};
use crate::scenario::FieldName;

/// Arguments of `sim whatif`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The scenario; without one, the founding case's rollout.
    scenario: Option<PathBuf>,
    /// Try only these remedies, by name; a list, or given again.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these remedies out.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    skip: Vec<String>,
    /// A field of today's setting by its path. (--set makes a remedy of your own; short names change today's setting.)
    #[arg(long, value_name = "PATH=VALUE")]
    base: Vec<String>,
    /// List the remedies and run nothing.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    how_much: HowMuch,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Say what to type for every remedy, also for those that do not help.
    #[arg(long)]
    details: bool,
    /// Draw with ASCII only.
    #[arg(long)]
    ascii: bool,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim whatif scenarios/founding-case.toml
  sim whatif --rps 200 --only wider-ports,reuse-mode-1,iptables
  sim whatif --only kernel-fix --set 'client.*.ports=20000-60999' --set 'node.kernel=5.10.83 & kube_proxy.version=1.28.0'

Every remedy runs on the same seeds as today's setting; the difference is paired, rollout by rollout. Each --set is one remedy of your
own; ` & ` joins fields that are set together.";

/// Runs `sim whatif`.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run, or an output that cannot be written: all found before the first run.
pub fn run(args: Args) -> Result<u8, CommonError> {
    if args.list {
        let rows: Vec<Vec<String>> = REMEDIES
            .iter()
            .map(|remedy| {
                [remedy.id, remedy.place.word(), remedy.title]
                    .map(str::to_owned)
                    .to_vec()
            })
            .collect();
        output::write(None, columns("", &[Align::Left; 3], &rows).as_bytes())?;
        return Ok(Exit::OK);
    }
    let mut document = args::document(args.scenario.as_deref())?;
    let mut selection = Selection {
        only: args.only.clone(),
        skip: args.skip.clone(),
        own: Vec::new(),
    };
    for base in &args.base {
        let (path, value) = assignment("--base", base)?;
        document.set(&path, &value)?;
    }
    for (field, value) in &args.overrides.given {
        match field {
            FieldName::Short(name) => document.set_named(name, value)?,
            FieldName::Path(path) => selection.own.push(own(path, value)?),
        }
    }
    super::warn(&document.resolve()?.warnings);
    let comparison = whatif::plan(&document, &selection).map_err(|error| match error {
        PlanError::Scenario(found) => CommonError::Scenario(found),
        PlanError::Unknown(_) | PlanError::Unrunnable(_) => CommonError::Usage(error.to_string()),
    })?;
    let mut output = Output::create(args.out.as_deref())?;

    let clock = WallClock::start();
    let mut teller = Teller::new();
    let settings = comparison.candidates.len() + 1;
    let file = args
        .scenario
        .as_ref()
        .map(|path| path.display().to_string());
    let plan = args.how_much.plan();
    let result = whatif::run(
        &comparison,
        file,
        &plan,
        &clock,
        &Ran::once,
        &mut |seen, elapsed| teller.say(elapsed, || report::so_far(seen, elapsed)),
    );
    teller.clear();
    let result = result.map_err(args::rows_error)?;
    let text = match args.format {
        Format::Text => {
            let view = View {
                look: args::look(args.ascii, args.out.is_some()),
                details: args.details,
                again: again(&args),
            };
            report::text(&result, &view)
        }
        Format::Json => args::json("whatif", repeat(&args, result.runs), &result)?,
    };
    output.write(text.as_bytes())?;
    output.finish()?;
    // If standard error is gone there is nobody to tell.
    let seconds = clock.elapsed().as_secs_f64();
    let _ = writeln!(
        anstream::stderr(),
        "sim: {} rollouts of {settings} settings each in {seconds:.1} s",
        result.runs
    );
    Ok(Exit::OK)
}

fn assignment(flag: &str, text: &str) -> Result<(String, String), CommonError> {
    let Some((path, value)) = text.split_once('=') else {
        return Err(CommonError::Usage(format!(
            "{flag} {text}: there is no `=`; write {flag} PATH=VALUE, such as {flag} node.hz=1000"
        )));
    };
    Ok((path.trim().to_owned(), value.trim().to_owned()))
}

/// The fields of one remedy of one's own: `a=1 & b=2`, split at its first `=` already.
fn own(path: &str, value: &str) -> Result<Vec<(String, String)>, CommonError> {
    let whole = format!("{path}={value}");
    whole
        .split(" & ")
        .map(|field| assignment("--set", field))
        .collect()
}

/// The command that repeats it.
fn repeat(args: &Args, runs: u64) -> Vec<String> {
    let file = args
        .scenario
        .as_deref()
        .map(|path| path.display().to_string());
    let mut words = vec!["sim whatif".to_owned()];
    words.extend(file.map(|file| args::quoted(&file)));
    words.extend(args::given(&args.overrides));
    let base = args.base.iter().map(|base| args::quoted(base));
    words.extend(base.map(|base| format!("--base {base}")));
    for (flag, names) in [("only", &args.only), ("skip", &args.skip)] {
        if !names.is_empty() {
            words.push(format!("--{flag} {}", names.join(",")));
        }
    }
    words.push(format!("--runs {runs} --seed {:#x}", args.how_much.seed));
    words
}

/// The scenario's part of the command line, for commands that the report recommends.
fn again(args: &Args) -> String {
    let mut words: Vec<String> = args
        .scenario
        .iter()
        .map(|path| args::quoted(&path.display().to_string()))
        .collect();
    let base = args
        .base
        .iter()
        .map(|base| format!("--set {}", args::quoted(base)));
    words.extend(base);
    let short = Overrides {
        given: args
            .overrides
            .given
            .iter()
            .filter(|(field, _)| matches!(field, FieldName::Short(_)))
            .cloned()
            .collect(),
    };
    words.extend(args::given(&short));
    words.join(" ")
}
