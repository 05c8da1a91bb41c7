//! Kernels whose release leaves open which fixes they have: a point of the sweep for each that they can be.

use super::prepared::field_of;
use crate::cli::CommonError;
use crate::experiment::Axis;
use crate::scenario::{Document, Scenario};

/// Where a kernel's release leaves open which fixes it has, a point for each possibility takes its place. Axes that
/// decide what is open (`node.kernel_gates`, `node.assume_backports`) leave the node's kernel as it is written.
pub(super) fn open_kernels(document: &Document, axes: &mut Vec<Axis>) -> Result<(), CommonError> {
    let decided = |axis: &Axis| {
        let path = field_of(&axis.path);
        path.starts_with("node.kernel_gates")
            || path == "node.assume_backports"
            || path == "node.mode"
    };
    let node_decided = axes.iter().any(decided);
    let base = document.resolve()?.scenario;
    // A kernel that an axis varies: each of its values may be open.
    for axis in axes.iter_mut() {
        let path = field_of(&axis.path).replace('*', "0");
        let is_node = path == "node.kernel" && !node_decided;
        let is_client =
            (0..base.client.len()).any(|index| path == format!("client.{index}.kernel"));
        if is_node || is_client {
            let values = axis.values.iter();
            axis.values = values
                .flat_map(|value| each_kernel(&base, &path, value))
                .collect();
        }
    }
    // Kernels of the scenario that no axis varies.
    for open in base.open_kernels() {
        let varied = |axis: &Axis| {
            let path = field_of(&axis.path);
            path == open.path || (path == "client.*.kernel" && open.path.starts_with("client."))
        };
        if axes.iter().any(varied) || (open.path == "node.kernel" && node_decided) {
            continue;
        }
        axes.push(Axis {
            path: open.path,
            values: open.values.iter().map(ToString::to_string).collect(),
        });
    }
    Ok(())
}

/// The kernels that a release can stand for at this place of a scenario; the release itself if it is clear, or wrong.
fn each_kernel(base: &Scenario, path: &str, release: &str) -> Vec<String> {
    let Ok(kernel) = release.parse() else {
        return vec![release.to_owned()];
    };
    let open = base.with_kernel(path, &kernel).open_kernels();
    let open = open.into_iter().find(|open| open.path == path);
    open.map_or_else(
        || vec![release.to_owned()],
        |open| open.values.iter().map(ToString::to_string).collect(),
    )
}
