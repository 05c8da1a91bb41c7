use super::*;
use crate::experiment::seeds::SplitMix64;
use crate::outcome::{Cause, Outcome, SecondCounts};

fn manifest() -> Manifest {
    Manifest::new("x".to_owned(), manifest::Recipe::default(), None)
}

fn summary(seed: u64) -> RunSummary {
    let mut rng = SplitMix64::new(seed);
    let mut summary = RunSummary {
        requests: rng.below(1 << 40),
        longest_dead_ns: rng.next(),
        first_failure_ns: rng.next().is_multiple_of(2).then(|| rng.next()),
        connections: rng.next(),
        packets: rng.next(),
        conditioned: rng.next().is_multiple_of(2).then(|| rng.below(1 << 50)),
        ..RunSummary::default()
    };
    summary.outcomes = std::array::from_fn(|_| rng.below(3) * rng.below(1_000));
    summary.causes = std::array::from_fn(|_| rng.below(2) * rng.next());
    summary.delayed = std::array::from_fn(|_| rng.below(2) * rng.below(7));
    let mut second = SecondCounts::default();
    for _ in 0..rng.below(50) {
        if rng.below(3) == 0 {
            second.attempts = rng.below(5);
            second.delayed = rng.below(2);
        }
        summary.timeline.push(second);
    }
    summary
}

fn done(point: usize, run: u64) -> Done {
    Done {
        point,
        run,
        summary: summary(run * 31 + point as u64),
        fresh: true,
    }
}

fn keep(store: &Store, all: &[Done]) {
    store.keep(&mut all.iter()).expect("kept");
}

#[test]
fn a_run_is_read_back_as_it_was_written() {
    for seed in 0..300 {
        let mut line = String::new();
        record::encode(&mut line, 3, seed, &summary(seed));
        let read = record::decode(&line).expect("whole");
        assert_eq!((read.point, read.run), (3, seed));
        assert_eq!(read.summary, summary(seed));
    }
}

#[test]
fn no_changed_byte_and_no_missing_end_goes_unnoticed() {
    let mut line = String::new();
    record::encode(&mut line, 0, 5, &summary(9));
    for cut in 0..line.len() {
        assert_eq!(record::check(&line[..cut]), None, "{cut}");
        let mut other = line.clone().into_bytes();
        other[cut] ^= 1;
        if let Ok(other) = String::from_utf8(other) {
            assert_eq!(record::check(&other), None, "byte {cut}");
        }
    }
    assert_eq!(record::check(&line), Some((0, 5)));
}

#[test]
fn a_store_torn_at_any_byte_gives_back_the_whole_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let all: Vec<Done> = (0..3).map(|run| done(0, run)).collect();
    let whole = Store::open(folder.path(), &manifest()).expect("made");
    keep(&whole, &all);
    drop(whole);
    let log = folder.path().join(LOG);
    let bytes = fs::read(&log).expect("a log");
    for cut in 0..=bytes.len() {
        fs::write(&log, &bytes[..cut]).expect("written");
        let store = Store::open(folder.path(), &manifest()).expect("opened");
        let lines = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(store.len(), lines, "cut at {cut}");
        for (run, done) in all.iter().enumerate() {
            let known = store.known(0, run as u64);
            assert_eq!(known, (run < lines).then(|| done.summary.clone()));
        }
        keep(&store, &all[lines..]);
        drop(store);
        assert_eq!(fs::read(&log).expect("a log"), bytes, "cut at {cut}");
    }
}

#[test]
fn a_damaged_line_costs_its_run_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let all: Vec<Done> = (0..4).map(|run| done(1, run)).collect();
    let store = Store::open(folder.path(), &manifest()).expect("made");
    keep(&store, &all);
    drop(store);
    let log = folder.path().join(LOG);
    let mut bytes = fs::read(&log).expect("a log");
    let second = bytes.iter().position(|byte| *byte == b'\n').expect("lines") + 20;
    bytes[second] ^= 4;
    fs::write(&log, &bytes).expect("written");
    let store = Store::open(folder.path(), &manifest()).expect("opened");
    assert_eq!(store.runs().collect::<Vec<_>>(), [(1, 0), (1, 2), (1, 3)]);
    assert!(
        store.remarks()[0].contains("1 lines"),
        "{:?}",
        store.remarks()
    );
    keep(&store, &all[1..2]);
    drop(store);
    let store = Store::read(folder.path()).expect("read");
    assert_eq!(store.len(), 4);
    assert_eq!(store.known(1, 1), Some(all[1].summary.clone()));
}

#[test]
fn two_writers_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let _one = Store::open(folder.path(), &manifest()).expect("made");
    let other = Store::open(folder.path(), &manifest());
    assert!(matches!(other, Err(StoreError::Busy { .. })), "{other:?}");
}

#[test]
fn a_manifest_of_another_model_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(Store::open(folder.path(), &manifest()).expect("made"));
    let path = folder.path().join(MANIFEST);
    let text = fs::read_to_string(&path).expect("a manifest");
    fs::write(&path, text.replace(&manifest::epoch(), "0123")).expect("written");
    let error = Manifest::read(folder.path()).expect_err("another epoch");
    assert!(error.to_string().contains("another model"), "{error}");
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).expect("written");
    let error = Manifest::read(folder.path()).expect_err("another format");
    assert!(error.to_string().contains("format 2"), "{error}");
    fs::write(&path, "{}").expect("written");
    assert!(Manifest::read(folder.path()).is_err());
    let nothing = Manifest::read(&folder.path().join("none")).expect("no error");
    assert_eq!(nothing, None);
}

#[test]
fn counts_of_an_unknown_kind_are_not_taken_for_none() {
    let mut line = String::new();
    let mut one = RunSummary::default();
    one.outcomes[Outcome::Reset.index()] = 1;
    one.causes[Cause::Other.index()] = 1;
    record::encode(&mut line, 0, 0, &one);
    let body = line.split_once(' ').expect("parts").1;
    let body = body.split_once(' ').expect("parts").1.trim_end();
    let body = body.replace("\"other\"", "\"novel\"");
    let crc = crc32fast::hash(body.as_bytes());
    let line = format!("{crc:08x} {} {body}\n", body.len());
    assert_eq!(record::check(&line), Some((0, 0)));
    assert_eq!(record::decode(&line), None);
}
