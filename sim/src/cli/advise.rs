//! `sim advise`: a recording and a Deployment into a verdict, its reason and what to change.

use std::path::PathBuf;

use super::args::{self, HowMuch, Teller};
use super::fit::{From, load, to_toml};
use super::{CommonError, Exit, Format, Overrides};
use crate::advise::{self, Watched};
use crate::experiment::clock::WallClock;
use crate::experiment::seeds;
use crate::experiment::whatif::{self, PlanError, Ran, Selection, SoFar, WhatIf};
use crate::fit::Fitted;
use crate::output::{self, Output};
use crate::report::advise::{self as report, Advice};
use crate::report::html::{self, Input, Options};
use crate::report::whatif::{View, so_far};
use crate::scenario::Document;
use crate::scenario::annotate::Origin;

/// Clients that get a table of their own.
const CLIENTS_MAX: usize = 16;

/// Arguments of `sim advise`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: From,
    /// Try only these remedies, by name; `sim whatif --list` has all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these remedies out.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    skip: Vec<String>,
    /// A remedy of your own: fields that are set together, --try 'node.kernel=5.10.83 & node.hz=1000'. Repeatable.
    #[arg(long = "try", value_name = "PATH=VALUE")]
    own: Vec<String>,
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
    /// Write an HTML file, too: timeline, port space, causal graph, comparison.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the scenario that it all is about, with where each value came from.
    #[arg(long, value_name = "FILE")]
    scenario_out: Option<PathBuf>,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim advise captures/founding-case --deployment scenarios/founding-case.k8s.yaml
  sim advise captures/founding-case --deployment scenarios/founding-case.k8s.yaml --only wider-ports,reuse-mode-1,iptables --runs 2
  sim advise /tmp/capture --deployment objects.yaml --kernel 5.10.83 --report report.html --scenario-out mine.toml

Flags of scenario fields (--kernel, --closes-first, --set ...) correct what the recording does not tell.";

/// Runs `sim advise`.
///
/// # Errors
/// Those of fit, import and whatif; outputs that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let mut fitted = load(&args.source, CLIENTS_MAX)?;
    let document = corrected(&args, &mut fitted)?;
    let selection = Selection {
        only: args.only.clone(),
        skip: args.skip.clone(),
        own: own(&args.own)?,
    };
    let comparison = whatif::plan(&document, &selection).map_err(|error| match error {
        PlanError::Scenario(found) => CommonError::Scenario(found),
        PlanError::Unknown(_) | PlanError::Unrunnable(_) => CommonError::Usage(error.to_string()),
    })?;
    let mut output = Output::create(args.out.as_deref())?;
    let plan = args.how_much.plan();
    let seed = seeds::seed_of(plan.root_seed, 0);
    let watched = advise::watch(&fitted.scenario, seed)
        .map_err(|error| CommonError::Usage(error.to_string()))?;

    let (clock, mut teller) = (WallClock::start(), Teller::new());
    let told = &mut |seen: &SoFar, elapsed| {
        teller.say(elapsed, || so_far(seen, elapsed));
    };
    let file = args
        .scenario_out
        .as_ref()
        .map(|path| path.display().to_string());
    let result = whatif::run(&comparison, file, &plan, &clock, &Ran::once, told);
    teller.clear();
    let whatif = result.map_err(args::rows_error)?;

    if let Some(path) = &args.scenario_out {
        output::write(Some(path), to_toml(&args.source, &fitted).as_bytes())?;
    }
    if let Some(path) = &args.report {
        let page = page(&args, &fitted, &watched, &whatif, seed)?;
        output::write(Some(path), page.as_bytes())?;
    }
    let advice = Advice {
        fitted: &fitted,
        watched: &watched,
        whatif: &whatif,
    };
    let text = match args.format {
        Format::Text => {
            let view = View {
                look: args::look(args.ascii, args.out.is_some()),
                details: args.details,
                again: args.scenario_out.as_ref().map_or_else(
                    || "mine.toml".to_owned(),
                    |path| args::quoted(&path.display().to_string()),
                ),
            };
            report::text(&advice, &view)
        }
        Format::Json => {
            let json = json(&advice, &again(&args), &to_toml(&args.source, &fitted))?;
            format!("{json:#}\n")
        }
    };
    output.write(text.as_bytes())?;
    output.finish()?;
    Ok(Exit::OK)
}

/// Remedies of one's own.
fn own(given: &[String]) -> Result<Vec<Vec<(String, String)>>, CommonError> {
    let field = |text: &str| {
        let (path, value) = text.split_once('=').ok_or_else(|| {
            CommonError::Usage(format!(
                "--try {text}: there is no `=`; write --try PATH=VALUE, such as --try node.hz=1000"
            ))
        })?;
        Ok((path.trim().to_owned(), value.trim().to_owned()))
    };
    given
        .iter()
        .map(|text| text.split(" & ").map(field).collect())
        .collect()
}

/// The scenario as a document, with the flags laid over it; the fit follows.
fn corrected(args: &Args, fitted: &mut Fitted) -> Result<Document, CommonError> {
    let mut document = Document::parse(&to_toml(&args.source, fitted), "the fitted scenario")?;
    args.overrides.apply(&mut document)?;
    let loaded = document.resolve()?;
    super::warn(&loaded.warnings);
    fitted.scenario = loaded.scenario;
    for (field, value) in &args.overrides.given {
        fitted.notes.note(
            &field.to_string(),
            Origin::Read,
            format!("the command line: {value}"),
        );
    }
    Ok(document)
}

fn json(
    advice: &Advice<'_>,
    again: &str,
    scenario: &str,
) -> Result<serde_json::Value, CommonError> {
    let internal = |error: serde_json::Error| CommonError::Internal(error.into());
    let of = |origin: Origin| {
        let notes = advice
            .fitted
            .notes
            .iter()
            .filter(|(_, note)| note.origin == origin);
        notes
            .map(|(path, note)| (path.to_owned(), note.text.clone().into()))
            .collect::<serde_json::Map<String, serde_json::Value>>()
    };
    Ok(serde_json::json!({
        "format": 1,
        "kind": "advice",
        "again": again,
        "headline": report::headline(advice),
        "watched": serde_json::to_value(advice.watched).map_err(internal)?,
        "whatif": serde_json::to_value(advice.whatif).map_err(internal)?,
        "measured": of(Origin::Measured),
        "read": of(Origin::Read),
        "derived": of(Origin::Derived),
        "assumed": of(Origin::Assumed),
        "remarks": advice.fitted.remarks,
        "scenario": scenario,
    }))
}

/// The HTML file: the watched rollout with its chain, then the comparison.
fn page(
    args: &Args,
    fitted: &Fitted,
    watched: &Watched,
    whatif: &WhatIf,
    seed: u64,
) -> Result<String, CommonError> {
    let internal = |error: serde_json::Error| CommonError::Internal(error.into());
    let run = super::report::watched(&fitted.scenario, None, seed, again(args))?;
    let name = args.source.capture.display().to_string();
    let mut compared = serde_json::to_value(whatif).map_err(internal)?;
    compared["again"] = again(args).into();
    let inputs = [run, compared].map(|value| Input {
        name: name.clone(),
        value,
    });
    let title = report::headline(&Advice {
        fitted,
        watched,
        whatif,
    });
    let options = Options {
        title: Some(title),
        safe_below: 0.001,
    };
    Ok(html::page(&inputs, &options))
}

/// The command that makes the page again.
fn again(args: &Args) -> String {
    let mut words = vec![
        "sim advise".to_owned(),
        args::quoted(&args.source.capture.display().to_string()),
    ];
    for file in &args.source.deployment {
        words.push(format!(
            "--deployment {}",
            args::quoted(&file.display().to_string())
        ));
    }
    words.extend(
        args.source
            .service
            .map(|service| format!("--service {service}")),
    );
    words.extend(args::given(&args.overrides));
    if !args.only.is_empty() {
        words.push(format!("--only {}", args.only.join(",")));
    }
    if !args.skip.is_empty() {
        words.push(format!("--skip {}", args.skip.join(",")));
    }
    words.extend(
        args.own
            .iter()
            .map(|own| format!("--try {}", args::quoted(own))),
    );
    words.extend(args.how_much.runs.map(|runs| format!("--runs {runs}")));
    words.push(format!(
        "--seed {:#x} --report report.html",
        args.how_much.seed
    ));
    words.join(" ")
}
