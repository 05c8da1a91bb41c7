//! `sim fit`: a node's recording into a scenario.

use std::path::{Path, PathBuf};

use ipvs_model::segment::Endpoint;

use super::import::{Choice, ask};
use super::{CommonError, Exit};
use crate::capture::Capture;
use crate::fit::{self, FitError, Fitted, Options};
use crate::import::Ask;
use crate::output;
use crate::scenario::annotate;

/// Arguments of `sim fit`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: From,
    /// Clients that get a table of their own, the busiest first.
    #[arg(long, value_name = "N", default_value_t = 16)]
    clients: usize,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A recording, and the objects of what is rolled out; shared with `sim advise`.
#[derive(Clone, Debug, clap::Args)]
pub struct From {
    /// A capture directory, or a mixed log of `date`, kubectl, ipvsadm and nf_conntrack output.
    pub capture: PathBuf,
    /// Files with what `kubectl get deployment,service -o yaml` (or json) prints. Repeatable.
    #[arg(long, value_name = "FILE")]
    pub deployment: Vec<PathBuf>,
    /// Which of several objects.
    #[command(flatten)]
    pub choice: Choice,
    /// The virtual service to look at; without it, the one with the most connections.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub service: Option<Endpoint>,
}

const EXAMPLES: &str = "Examples:
  sim fit captures/founding-case
  sim fit captures/founding-case --deployment scenarios/founding-case.k8s.yaml --out mine.toml
  sim fit /tmp/capture --service 10.20.79.226:31199 --out mine.toml && sim run mine.toml";

/// Runs `sim fit`.
///
/// # Errors
/// A capture that cannot be read, or shows nothing; objects that cannot be used; an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let fitted = load(&args.source, args.clients)?;
    let text = to_toml(&args.source, &fitted);
    output::write(args.out.as_deref(), text.as_bytes())?;
    Ok(Exit::OK)
}

/// Fits, and lays the objects over it.
///
/// # Errors
/// Those of the fit and of the import.
pub fn load(source: &From, clients_max: usize) -> Result<Fitted, CommonError> {
    let capture =
        Capture::open(&source.capture).map_err(|error| CommonError::Capture(error.to_string()))?;
    let options = Options {
        service: source.service,
        clients_max,
    };
    let fitted = fit::fit(&capture, &options).map_err(|error| match error {
        FitError::Read(error) => CommonError::Capture(error.to_string()),
        FitError::Empty(text) => {
            CommonError::NothingMatched(format!("{}: {text}", source.capture.display()))
        }
    })?;
    if source.deployment.is_empty() {
        return Ok(fitted);
    }
    let ask = Ask {
        address: Some(fitted.scenario.service.address),
        ..ask(&source.choice)
    };
    let imported = super::import::load(&source.deployment, &ask)?;
    Ok(fit::combine(fitted, &imported))
}

/// The scenario with where each value came from.
pub fn to_toml(source: &From, fitted: &Fitted) -> String {
    let name = |path: &Path| path.display().to_string();
    let mut head = vec![format!("Fitted by sim fit to {}.", name(&source.capture))];
    if !source.deployment.is_empty() {
        let files = source
            .deployment
            .iter()
            .map(|path| name(path))
            .collect::<Vec<_>>();
        head.push(format!("The rollout is that of {}.", files.join(", ")));
    }
    head.push("What is not written here is a default: `sim scenario show` prints all. Look at every ASSUMED first.".to_owned());
    head.extend(fitted.remarks.iter().map(|text| format!("- {text}")));
    annotate::to_toml(&fitted.scenario, &fitted.notes, &head)
}
