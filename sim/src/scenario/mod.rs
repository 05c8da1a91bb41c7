//! Scenarios: the TOML that a person writes, checked and resolved into plain data.
//!
//! A file is read into a tree that knows where everything stands ([`tree`]), flags are laid over it ([`overrides`]),
//! it is decoded field by field ([`field`], [`sections`]) and cross-checked ([`check`]). Every mistake is collected.
//! Leaves out: what sysctls come out of kernel, kube-proxy and `[node.sysctl]`; that is for who builds the node.

pub mod annotate;
mod check;
pub mod field;
pub mod overrides;
mod possible;
pub mod range;
mod rollout;
pub mod schema;
mod sections;
mod show;
mod suggest;
pub mod tree;
mod values;

use std::path::Path;

pub use overrides::{Document, FieldName};
pub use possible::OpenKernel;
pub use rollout::*;
pub use sections::*;
pub use suggest::nearest;
pub use values::*;

use crate::diag::{Diag, Diagnostics, Severity, Source};
use field::{Cx, Field};
use tree::Tree;

/// A scenario file longer than this is refused, in bytes.
const TEXT_MAX: u64 = 1 << 20;
/// No array of tables and no table of sysctls is longer.
const ENTRIES_MAX: usize = 1000;

/// A scenario that can be run, with what its author should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The scenario.
    pub scenario: Scenario,
    /// Warnings; never errors.
    pub warnings: Diagnostics,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// All mistakes in it; or that it cannot be read.
    pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
        let text = read_text(path)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a text that came from `name`.
    ///
    /// # Errors
    /// All mistakes in it.
    pub fn parse(text: &str, name: &str) -> Result<Loaded, Diagnostics> {
        let sources = vec![Source {
            name: name.to_owned(),
            text: text.to_owned(),
        }];
        match Tree::parse(text, 0) {
            Ok(tree) => decode(&tree, sources),
            Err(diags) => Err(Diagnostics { sources, diags }),
        }
    }

    /// `[node.sysctl]`: keys as in `sysctl -a` with their values, to be applied last.
    pub fn node_sysctl_overrides(&self) -> &[(String, String)] {
        &self.node.sysctl.0
    }
}

/// The text of a scenario file.
///
/// # Errors
/// If it cannot be read, is no UTF-8 or far too long to be a scenario.
pub fn read_text(path: &Path) -> Result<String, Diagnostics> {
    let fail = |reason: String| {
        let title = format!("cannot read scenario {}: {reason}", path.display());
        Diagnostics::bare(Diag::error("unreadable", title))
    };
    let size = std::fs::metadata(path)
        .map_err(|error| fail(error.to_string()))?
        .len();
    if size > TEXT_MAX {
        return Err(fail(format!("{size} bytes are no scenario")));
    }
    let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| fail("it is not UTF-8 text".to_owned()))
}

fn decode(tree: &Tree, sources: Vec<Source>) -> Result<Loaded, Diagnostics> {
    let mut cx = Cx::default();
    let scenario = Scenario::decode(tree, &mut cx).unwrap_or_default();
    let broken = cx.diags.iter().any(|d| d.severity == Severity::Error);
    // Checks across fields would complain about defaults that stand in for what could not be read.
    if !broken {
        check::check(&scenario, &mut cx);
    }
    let mut diags = cx.diags;
    // In the order of the file, then of the flags; errors before warnings.
    diags.sort_by_key(|diag| (diag.severity, diag.labels.first().map(|label| label.place)));
    let found = Diagnostics { sources, diags };
    if found.has_errors() {
        return Err(found);
    }
    Ok(Loaded {
        scenario,
        warnings: found,
    })
}

#[cfg(test)]
mod tests;
