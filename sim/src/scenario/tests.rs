use std::path::{Path, PathBuf};

use super::*;

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

/// The one place where defaults and the founding case could drift apart.
#[test]
fn the_defaults_are_the_founding_case() {
    let loaded = Scenario::load(&scenarios().join("founding-case.toml")).unwrap();
    let mut expected = Scenario::default();
    // The file names the ports that the kernel's default stands for.
    expected.client[0].ports = OrKernel(Some(Ports {
        low: 32_768,
        high: 60_999,
    }));
    assert_eq!(loaded.scenario, expected);
    assert_eq!(
        loaded.warnings,
        Diagnostics {
            diags: vec![],
            ..loaded.warnings.clone()
        }
    );
    assert_eq!(
        expected.client[0].tcp().local_ports,
        Scenario::default().client[0].tcp().local_ports
    );
}
