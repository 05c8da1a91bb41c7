//! scratch
use ipvs_sim::engine::{run, trace::TraceOptions};
use ipvs_sim::scenario::Scenario;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let seeds: u64 = std::env::args().nth(2).map_or(1, |s| s.parse().unwrap());
    let s = Scenario::load(std::path::Path::new(&path))
        .map_err(|e| panic!("{}", e.render(false)))
        .unwrap()
        .scenario;
    for seed in 0..seeds {
        #[allow(clippy::disallowed_types)]
        let t = std::time::Instant::now();
        let r = run(
            &s,
            seed,
            &TraceOptions {
                attempts: true,
                requests_max: if std::env::var("V").is_ok() { 20 } else { 0 },
                sample_every: std::env::var("E")
                    .ok()
                    .map(|_| ipvs_model::time::Span::from_secs(10)),
                ..Default::default()
            },
        )
        .unwrap();
        println!(
            "seed {seed} requests {} outcomes {:?} causes {:?} delayed {} dead {:.1} conns {} pkts {} events {} in {:.2}s",
            r.summary.requests,
            r.summary.outcomes,
            r.summary.causes,
            r.summary.delayed_total(),
            r.summary.longest_dead_ns as f64 / 1e9,
            r.summary.connections,
            r.summary.packets,
            r.summary.events,
            t.elapsed().as_secs_f64()
        );
        if std::env::var("V").is_ok() {
            for t in &r.trace.troubled {
                println!("{t:?}");
            }
        }
        if std::env::var("E").is_ok() {
            for e in &r.trace.events {
                println!("{} {:?} {}", e.at, e.pod, e.what);
            }
            for e in &r.trace.servers {
                println!(
                    "{} {} {:?} {} {} {}",
                    e.at, e.server, e.weight, e.active, e.inactive, e.syns
                );
            }
        }
        if std::env::var("S").is_ok() {
            let mut a = std::collections::BTreeMap::<u64, [u32; 2]>::new();
            for x in &r.trace.attempts {
                let e = a.entry(x.start.as_secs()).or_default();
                if x.outcome == ipvs_sim::outcome::Outcome::Answered {
                    e[0] += 1
                } else {
                    e[1] += 1
                }
            }
            for (s, c) in a {
                println!("S {s} ok {} fail {}", c[0], c[1]);
            }
        }
    }
}
