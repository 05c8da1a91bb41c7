//! `sim explain`: the handbook.

use std::io::IsTerminal as _;

use super::{CommonError, Exit, args};
use crate::explain::handbook::{TOPICS, topic};
use crate::output;
use crate::report::text::{Align, columns};
use crate::scenario::nearest;

/// Arguments of `sim explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The topic; without one, the list of topics.
    topic: Option<String>,
    /// Print the Markdown as it is.
    #[arg(long)]
    markdown: bool,
}

const EXAMPLES: &str = "Examples:
  sim explain
  sim explain conn-reuse-mode
  sim explain time-wait --markdown";

/// Characters on a line.
const WIDTH: usize = 96;

/// Runs `sim explain`.
///
/// # Errors
/// If there is no such topic, or the output cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let text = match &args.topic {
        None => {
            let rows: Vec<Vec<String>> = TOPICS
                .iter()
                .map(|one| vec![one.name.to_owned(), one.title().to_owned()])
                .collect();
            columns("", &[Align::Left; 2], &rows)
        }
        Some(name) => {
            let found = topic(name).ok_or_else(|| CommonError::NothingMatched(unknown(name)))?;
            if args.markdown {
                found.text.to_owned()
            } else {
                let mut look = args::look(false, false);
                look.colour = std::io::stdout().is_terminal();
                found.render(look, WIDTH)
            }
        }
    };
    output::write(None, text.as_bytes())?;
    Ok(Exit::OK)
}

fn unknown(name: &str) -> String {
    let all = TOPICS.iter().map(|one| one.name);
    match nearest(name, all.clone()) {
        Some(near) => format!("there is no topic `{name}`; did you mean `{near}`?"),
        None => {
            // Perhaps it stands in a text.
            let word = name.to_lowercase();
            let inside: Vec<&str> = TOPICS
                .iter()
                .filter(|one| one.text.to_lowercase().contains(&word))
                .map(|one| one.name)
                .collect();
            if inside.is_empty() {
                format!(
                    "there is no topic `{name}`; there are: {}",
                    all.collect::<Vec<_>>().join(", ")
                )
            } else {
                format!(
                    "there is no topic `{name}`, but it is spoken of in: {}",
                    inside.join(", ")
                )
            }
        }
    }
}
