//! The comparison on recordings of real kernels.

use std::path::{Path, PathBuf};

use super::*;

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures")
}

#[test]
fn recordings_of_kernels_agree_with_the_model() {
    let mut directories = std::fs::read_dir(captures().join("kernels"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>();
    directories.sort();
    for directory in directories {
        let capture = Capture::open(&directory).unwrap();
        let report = diff(&capture).unwrap();
        println!("{}\n{}", directory.display(), report.text(3));
    }
}
