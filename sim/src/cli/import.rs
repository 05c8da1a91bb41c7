//! `sim import`: Kubernetes objects into the rollout part of a scenario.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::{CommonError, Exit, warn};
use crate::diag::Source;
use crate::import::{self, Ask, Imported};
use crate::output;
use crate::scenario::annotate;

/// Objects longer than this are refused, in bytes.
const TEXT_MAX: u64 = 64 << 20;

/// Arguments of `sim import`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Files with what `kubectl get deployment,service,endpointslice -o yaml` (or json) prints; - is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// Address of the node that clients call, for a node port.
    #[arg(long, value_name = "ADDRESS")]
    node: Option<Ipv4Addr>,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Which of several objects is meant; shared with `sim fit` and `sim advise`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Choice {
    /// Name of the Deployment, if there are several.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Name of the Service, if several select the Deployment.
    #[arg(long, value_name = "NAME")]
    pub service_name: Option<String>,
    /// Name or number of the Service's port, if it has several.
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
}

const EXAMPLES: &str = "Examples:
  sim import scenarios/founding-case.k8s.yaml --node 10.20.79.226
  kubectl get deployment,service,endpointslice -n shop -o yaml | sim import - --name web
  sim import objects.yaml --out rollout.toml && sim run rollout.toml";

/// Runs `sim import`.
///
/// # Errors
/// Objects that cannot be read, are ambiguous or not modelled; an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let ask = Ask {
        node: args.node,
        ..ask(&args.choice)
    };
    let imported = load(&args.files, &ask)?;
    let text = annotate::to_toml(
        &imported.scenario,
        &imported.notes,
        &head(&args.files, &imported),
    );
    output::write(args.out.as_deref(), text.as_bytes())?;
    Ok(Exit::OK)
}

/// What to take of the objects.
pub fn ask(choice: &Choice) -> Ask {
    Ask {
        deployment: choice.name.clone(),
        service: choice.service_name.clone(),
        port: choice.port.clone(),
        ..Ask::default()
    }
}

/// Reads objects from files; warnings go to standard error.
///
/// # Errors
/// Those of [`import::import`], and files that cannot be read.
pub fn load(files: &[PathBuf], ask: &Ask) -> Result<Imported, CommonError> {
    let sources = files.iter().map(|path| source(path));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let (imported, warnings) = import::import(sources, ask)?;
    warn(&warnings);
    Ok(imported)
}

fn source(path: &Path) -> Result<Source, CommonError> {
    use std::io::Read as _;
    let fail =
        |reason: String| CommonError::Usage(format!("cannot read {}: {reason}", path.display()));
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(TEXT_MAX + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(TEXT_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| fail(error.to_string()))?;
    if bytes.len() as u64 > TEXT_MAX {
        return Err(fail(
            "it is longer than 64 MiB; give the objects of one Deployment".to_owned(),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".to_owned()))?;
    Ok(Source {
        name: path.display().to_string(),
        text,
    })
}

fn head(files: &[PathBuf], imported: &Imported) -> Vec<String> {
    let names = files.iter().map(|path| path.display().to_string());
    let mut head = vec![format!(
        "Taken from Kubernetes objects ({}) by sim import. Node, kernel, sysctls and clients are in no object: they are \
         the defaults until you set them, or take them from a recording with sim fit.",
        names.collect::<Vec<_>>().join(", ")
    )];
    if !imported.open.is_empty() {
        head.push("What the objects do not tell:".to_owned());
        head.extend(imported.open.iter().map(|text| format!("- {text}")));
    }
    head
}
