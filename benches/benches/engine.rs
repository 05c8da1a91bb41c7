//! The engine: whole rollouts, in connections a second.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ipvs_benches::scenario;
use ipvs_sim::engine::{run, trace::TraceOptions};

/// Seconds, requests a second and who closes first of each case.
const CASES: [(&str, u64, u64, &str); 3] = [
    ("five_minutes_at_2000", 300, 2_000, "server"),
    ("healthy_minute_at_200", 60, 200, "client"),
    ("exhaustion_minute_at_2000", 60, 2_000, "client"),
];

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10);
    for (name, seconds, rate, closes_first) in CASES {
        let scenario = scenario(seconds, rate, closes_first);
        group.throughput(Throughput::Elements(seconds * rate));
        group.bench_function(name, |bencher| {
            bencher
                .iter(|| run(black_box(&scenario), 1, &TraceOptions::default()).expect("it runs"));
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
