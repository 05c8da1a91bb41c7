//! Public reports with figures, as scenarios: what a report states, the model shows.
//!
//! The cases and their numbers are those of the field reports that the scenario files in `scenarios/field` name. Each
//! figure has its line in docs/field-cases.md; `UPDATE_DOCS=1 cargo test -p ipvs-sim --test field_cases` writes them. What no scenario
//! can say (`ipvsadm -d` by hand, two virtual services) is in `model/tests/field_cases.rs`.

mod datagrams;
mod kit;
mod proxies;
mod reports;
mod reuse;
mod sessions;
mod throughput;
mod versions;

use kit::folder;

/// How many there are: none may go lost.
const COUNT: usize = 31;

#[test]
fn every_field_scenario_is_good() {
    let mut count = 0;
    for file in std::fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        let loaded = ipvs_sim::scenario::Scenario::load(&path)
            .unwrap_or_else(|found| panic!("{}", found.render(false)));
        assert!(!loaded.warnings.has_errors());
        assert_eq!(
            loaded.scenario.name,
            path.file_stem().unwrap().to_str().unwrap()
        );
        count += 1;
    }
    assert_eq!(count, COUNT);
}
