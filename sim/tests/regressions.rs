//! What conformance runs found and what was fixed stays fixed: the shortest conversations that showed it, as the kernel
//! answered them.

use std::path::Path;

use ipvs_sim::capture::Capture;
use ipvs_sim::diff::diff;

#[test]
fn regressions_agree_with_the_model() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../captures/regressions");
    let mut directories = std::fs::read_dir(captures)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect::<Vec<_>>();
    directories.sort();
    assert!(directories.len() >= 5, "{directories:?}");
    for directory in directories {
        let report = diff(&Capture::open(&directory).unwrap()).unwrap();
        assert_eq!(
            report.divergence_count(),
            0,
            "{}\n{}",
            directory.display(),
            report.text(3)
        );
        assert!(report.verdicts > 0 && report.entries > 0);
    }
}
