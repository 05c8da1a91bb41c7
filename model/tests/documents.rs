//! What the documents claim of the tests: each test that docs/traps.md and docs/findings.md name exists, and all 34
//! traps are there.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("the document is there")
}

/// The `file::function` references of a text.
fn references(text: &str) -> Vec<(&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.split_once(".rs::"))
        .map(|(file, function)| (file, function.trim()))
        .collect()
}

/// A reference that leads nowhere, or to something that is not a test.
fn broken((file, function): (&str, &str)) -> Option<String> {
    let path = root().join(format!("{file}.rs"));
    let Ok(source) = fs::read_to_string(&path) else {
        return Some(format!("{file}.rs: there is no such file"));
    };
    let Some(at) = source.find(&format!("fn {function}()")) else {
        return Some(format!("{file}.rs: there is no function {function}"));
    };
    let is_test = source[..at].trim_end().ends_with("#[test]");
    (!is_test).then(|| format!("{file}.rs: {function} is not a test"))
}

#[test]
fn every_test_that_the_documents_name_exists() {
    for name in ["traps.md", "findings.md"] {
        let text = document(name);
        let found = references(&text);
        assert!(!found.is_empty(), "{name} names no test");
        let broken: Vec<_> = found.into_iter().filter_map(broken).collect();
        assert!(broken.is_empty(), "{name}:\n{}", broken.join("\n"));
    }
}

#[test]
fn all_34_traps_are_listed_with_a_test_or_a_reason() {
    let text = document("traps.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 5 && cells[1].parse::<u32>().is_ok())
        .collect();
    let numbers: Vec<u32> = rows
        .iter()
        .map(|cells| cells[1].parse().expect("a number"))
        .collect();
    assert_eq!(numbers, (1..=34).collect::<Vec<_>>());
    for cells in rows {
        assert!(cells[2].ends_with('.'), "trap {} has no sentence", cells[1]);
        let reasoned = cells[3].starts_with("No test");
        assert!(
            reasoned || !references(cells[3]).is_empty(),
            "trap {} has no test",
            cells[1]
        );
    }
}

/// The check would notice.
#[test]
fn a_wrong_reference_is_noticed() {
    assert!(broken(("model/tests/documents", "a_wrong_reference_is_noticed")).is_none());
    assert!(broken(("model/tests/documents", "no_such_function")).is_some());
    assert!(broken(("model/tests/documents", "root")).is_some());
    assert!(broken(("model/tests/no_such_file", "root")).is_some());
}
