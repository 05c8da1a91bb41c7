//! Flags that change fields of a scenario: `--set PATH=VALUE` and the short names, the same for every command.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};

use super::CommonError;
use crate::scenario::overrides::SHORTCUTS;
use crate::scenario::{Document, FieldName};

const SET: &str = "set";
const HEADING: &str = "Scenario fields";

/// The fields that a command line sets, in its order. Use with `#[command(flatten)]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Field and value, as given: for a sweep the value may be a list.
    pub given: Vec<(FieldName, String)>,
}

impl Overrides {
    /// Lays them over a scenario.
    ///
    /// # Errors
    /// If a path leads nowhere.
    pub fn apply(&self, document: &mut Document) -> Result<(), CommonError> {
        for (field, value) in &self.given {
            document.set_field(field, value)?;
        }
        Ok(())
    }

    fn read(matches: &ArgMatches) -> Result<Self, Error> {
        let mut found = Vec::new();
        let flags = SHORTCUTS.iter().map(|short| short.name).chain([SET]);
        for name in flags {
            let values = matches.get_many::<String>(name).into_iter().flatten();
            let indices = matches.indices_of(name).into_iter().flatten();
            for (index, value) in indices.zip(values) {
                found.push((index, name, value.as_str()));
            }
        }
        found.sort_unstable();
        let mut given = Vec::new();
        for (_, name, value) in found {
            if name != SET {
                given.push((FieldName::Short(name), value.to_owned()));
                continue;
            }
            let Some((path, value)) = value.split_once('=') else {
                let message = format!(
                    "--set {value}: there is no `=`; write --set PATH=VALUE, such as --set node.hz=1000\n"
                );
                return Err(Error::raw(ErrorKind::ValueValidation, message));
            };
            given.push((
                FieldName::Path(path.trim().to_owned()),
                value.trim().to_owned(),
            ));
        }
        Ok(Self { given })
    }
}

impl FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Self::read(matches)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.given.extend(Self::read(matches)?.given);
        Ok(())
    }
}

impl clap::Args for Overrides {
    fn augment_args(command: Command) -> Command {
        let flag = |name: &'static str, value: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .value_name(value)
                .help(help)
                .help_heading(HEADING)
                .action(ArgAction::Append)
                .allow_hyphen_values(true)
        };
        let command = SHORTCUTS.iter().fold(command, |command, short| {
            command.arg(flag(short.name, short.value, short.help))
        });
        command.arg(flag(
            SET,
            "PATH=VALUE",
            "Any field by its path: node.hz, client.0.ports, client.*.ports for all clients",
        ))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
