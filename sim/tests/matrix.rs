//! docs/matrix.md is what `sim matrix` prints; `UPDATE_DOCS=1 cargo test -p ipvs-sim --test matrix` writes it anew.

use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- from `sim matrix`: begin -->\n";
const END: &str = "<!-- from `sim matrix`: end -->\n";

fn printed(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["matrix", "--format", "markdown"])
        .args(args)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_document_is_what_the_command_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/matrix.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("no begin mark");
    let (shown, tail) = rest.split_once(END).expect("no end mark");
    let now = format!("\n{}\n", printed(&[]));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{now}{END}{tail}")).unwrap();
        return;
    }
    assert!(
        shown == now,
        "docs/matrix.md is stale: UPDATE_DOCS=1 cargo test -p ipvs-sim --test matrix"
    );
}

/// The corners of the matrix that the facts state (kernel 1.6.5, kube-proxy 1), so that a wrong document cannot be renewed unseen.
#[test]
fn the_corners_are_those_of_the_facts() {
    let cell = |kernel: &str, proxy: &str, mode: &str| {
        let text = printed(&["--kernel", kernel, "--proxy-version", proxy, "--mode", mode]);
        let row = text
            .lines()
            .find(|line| line.starts_with(&format!("| {kernel} |")))
            .unwrap();
        row.split(" | ")
            .last()
            .unwrap()
            .trim_end_matches(" |")
            .to_owned()
    };
    let failing = |text: &str| text.starts_with("failures") && text.ends_with("stuck real server");
    // kube-proxy sets 0 by the kernel's name: 4.1 to 5.8, fixed or not.
    assert!(failing(&cell("4.19.218", "1.30.3", "proxy")));
    assert!(failing(&cell("5.4.0-91-generic", "1.21.0", "proxy")));
    assert_eq!(cell("4.19.219", "1.30.3", "proxy"), "no problem");
    // From 5.9 on it leaves 1 since 1.22, and set 0 before.
    assert!(failing(&cell("5.10.82", "1.21.0", "proxy")));
    assert_eq!(cell("5.10.82", "1.22.0", "proxy"), "no problem");
    assert!(failing(&cell("5.10.82", "1.22.0", "0")));
    // RHEL 7: left at 1, a second for each reused port.
    assert!(cell("3.10.0-1160.el7.x86_64", "1.19.16", "proxy").starts_with("1 s delays"));
    assert!(failing(&cell("3.10.0-1160.el7.x86_64", "1.18.20", "proxy")));
    assert_eq!(
        cell("4.0.5", "1.18.20", "proxy"),
        "kube-proxy does not start"
    );
    assert_eq!(cell("6.12.117", "1.35.0", "proxy"), "no problem");
}
