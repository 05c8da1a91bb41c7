//! The engine: whole runs, in requests a second; one benchmark for each goal of docs/performance.md.

use std::hint::black_box;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ipvs_benches::Case;
use ipvs_sim::engine::{run, trace::TraceOptions};

/// Case, whether every packet is taken one by one, and name of the benchmark.
const RUNS: [(&str, bool, &str); 8] = [
    ("healthy", true, "healthy/packets"),
    ("healthy", false, "healthy/quiet"),
    ("healthy-server", true, "healthy-server/packets"),
    ("healthy-server", false, "healthy-server/quiet"),
    ("exhaustion", false, "exhaustion"),
    ("growth-1", false, "growth/1-client"),
    ("growth-100", false, "growth/100-clients"),
    ("rollout", false, "rollout"),
];

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for (name, no_quiet, label) in RUNS {
        let case = Case::named(name).unwrap_or_else(|| panic!("{name} is no case"));
        let scenario = case.scenario();
        let options = TraceOptions {
            no_quiet,
            ..TraceOptions::default()
        };
        let requests = u64::from(case.rate) * u64::from(case.seconds);
        group.throughput(Throughput::Elements(requests));
        group.bench_function(label, |bencher| {
            bencher.iter(|| run(black_box(&scenario), 1, &options).expect("it runs"));
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
