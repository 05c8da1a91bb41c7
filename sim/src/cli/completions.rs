//! `sim completions` and `sim man`: what a package ships beside the binary, made from the same definitions as `--help`.

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, CommonError, Exit};
use crate::output;

/// Arguments of `sim completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

const COMPLETIONS: &str = "Examples:
  sim completions bash > ~/.local/share/bash-completion/completions/sim
  sim completions zsh > ~/.zfunc/_sim
  sim completions fish > ~/.config/fish/completions/sim.fish";

/// Arguments of `sim man`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN)]
pub struct ManArgs {
    /// The subcommand; without it, the page of sim itself.
    command: Option<String>,
    /// Write all pages into this folder, which must exist.
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    into: Option<PathBuf>,
}

const MAN: &str = "Examples:
  sim man | man -l -
  sim man sweep | man -l -
  sim man --into /usr/local/share/man/man1";

/// Runs `sim completions`.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<u8, CommonError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sim", &mut script);
    output::write(None, &script)?;
    Ok(Exit::OK)
}

/// Runs `sim man`.
///
/// # Errors
/// If there is no such subcommand, or a page cannot be written.
pub fn man(args: &ManArgs) -> Result<u8, CommonError> {
    let mut root = Cli::command();
    root.build();
    if let Some(folder) = &args.into {
        output::write(Some(&folder.join("sim.1")), &page(&root)?)?;
        for command in root
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
        {
            let path = folder.join(format!("sim-{}.1", command.get_name()));
            output::write(Some(&path), &page(command)?)?;
        }
        return Ok(Exit::OK);
    }
    let command = match &args.command {
        None => &root,
        Some(name) => root.find_subcommand(name).ok_or_else(|| {
            let names = root.get_subcommands().map(clap::Command::get_name);
            let names = names.collect::<Vec<_>>().join(", ");
            CommonError::Usage(format!("there is no subcommand {name}; there are {names}"))
        })?,
    };
    output::write(None, &page(command)?)?;
    Ok(Exit::OK)
}

fn page(command: &clap::Command) -> Result<Vec<u8>, CommonError> {
    let mut bytes = Vec::new();
    let page = clap_mangen::Man::new(command.clone());
    let written = page.render(&mut bytes);
    written.map_err(|error| CommonError::Internal(error.into()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_and_every_subcommand_has_something() {
        for shell in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Elvish,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sim", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains("sweep") && script.contains("conn-reuse-mode"),
                "{shell}"
            );
        }
        let mut root = Cli::command();
        root.build();
        for command in root.get_subcommands() {
            let text = String::from_utf8(page(command).unwrap()).unwrap();
            assert!(
                text.contains(".SH SYNOPSIS"),
                "{}: {text}",
                command.get_name()
            );
        }
    }

    #[test]
    fn pages_of_all_subcommands_are_written_and_an_unknown_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let args = ManArgs {
            command: None,
            into: Some(dir.path().to_owned()),
        };
        man(&args).unwrap();
        for name in ["sim.1", "sim-run.1", "sim-fit.1"] {
            assert!(dir.path().join(name).is_file(), "{name}");
        }
        let args = ManArgs {
            command: Some("walk".to_owned()),
            into: None,
        };
        let error = man(&args).unwrap_err().to_string();
        assert!(
            error.contains("no subcommand walk") && error.contains("sweep"),
            "{error}"
        );
    }
}
