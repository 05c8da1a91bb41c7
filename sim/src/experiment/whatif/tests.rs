use super::*;
use crate::outcome::Outcome;
use crate::scenario::Arrivals;

struct Still;

impl Stopwatch for Still {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

fn two_runs() -> Plan {
    Plan {
        exact_runs: Some(2),
        ..Plan::default()
    }
}

/// The founding case in small: few ports, few requests, the same rules.
pub(crate) fn small() -> Document {
    let mut document = Document::default();
    for (path, value) in [
        ("duration", "260s"),
        ("client.0.ports", "40000-40399"),
        ("client.0.arrivals", "{ constant = { rate = 4 } }"),
    ] {
        document.set(path, value).expect("a field");
    }
    document
}

#[test]
fn every_remedy_has_a_name_of_its_own_words_and_a_source() {
    for (place, remedy) in REMEDIES.iter().enumerate() {
        assert!(
            REMEDIES[..place].iter().all(|other| other.id != remedy.id),
            "{}",
            remedy.id
        );
        assert!(
            !remedy.title.is_empty() && !remedy.source.is_empty() && !remedy.apply.is_empty(),
            "{}",
            remedy.id
        );
        assert!(
            remedy.source.contains("facts/") || remedy.source.contains("founding"),
            "{}",
            remedy.id
        );
    }
}

/// None is silently absent: each is tried or named with its reason. What is tried changes the scenario, and its texts have no
/// name left to fill in.
#[test]
fn every_remedy_is_tried_or_named_with_its_reason() {
    let mut ubuntu = Document::default();
    ubuntu
        .set("node.kernel", "5.4.0-91-generic")
        .expect("a field");
    let mut affine = Document::default();
    affine
        .set("service.session_affinity", "10800s")
        .expect("a field");
    affine
        .set("client.0.closes_first", "client")
        .expect("a field");
    affine.set("rollout.scripted.at", "100s").expect("a field");
    for document in [Document::default(), small(), ubuntu, affine] {
        let found = plan(&document, &Selection::default()).expect("a good scenario");
        assert_eq!(
            found.candidates.len() + found.left_out.len(),
            REMEDIES.len()
        );
        assert!(found.left_out.iter().all(|left| !left.reason.is_empty()));
        for candidate in &found.candidates {
            assert_ne!(candidate.scenario, found.today, "{}", candidate.id);
            for apply in &candidate.apply {
                let open = ["{kernel", "{clients", "{requests", "{ports"];
                assert!(
                    !open.iter().any(|name| apply.text.contains(name)),
                    "{}: {}",
                    candidate.id,
                    apply.text
                );
            }
        }
    }
}

#[test]
fn the_founding_cases_remedies_are_tried_on_the_founding_case() {
    let found = plan(&Document::default(), &Selection::default()).expect("the founding case");
    let ids: Vec<&str> = found
        .candidates
        .iter()
        .map(|candidate| candidate.id.as_str())
        .collect();
    for id in [
        "wider-ports",
        "reuse-mode-1",
        "iptables",
        "kernel-fix",
        "reuse-mode-1-fixed-kernel",
        "pre-stop",
        "keep-alive",
    ] {
        assert!(ids.contains(&id), "{id} of {ids:?}");
    }
    let reason = |id: &str| {
        found
            .left_out
            .iter()
            .find(|left| left.id == id)
            .map(|left| left.reason.clone())
    };
    assert_eq!(
        reason("no-affinity"),
        Some("the service has none".to_owned())
    );
    assert!(reason("expire-nodest-conn").is_some_and(|reason| reason.contains("1 today")));
    assert!(reason("kube-proxy").is_some_and(|reason| reason.contains("5.9")));
    let kernel = found
        .candidates
        .iter()
        .find(|candidate| candidate.id == "kernel-fix")
        .expect("tried");
    assert_eq!(
        kernel.settings[0],
        ("node.kernel".to_owned(), "4.19.219".to_owned())
    );
    assert!(
        kernel.apply[0].text.contains("c95c07836fa4"),
        "{:?}",
        kernel.apply
    );
}

#[test]
fn names_of_no_remedy_are_refused_with_the_nearest() {
    let selection = Selection {
        only: vec!["iptable".to_owned()],
        ..Selection::default()
    };
    let error = plan(&Document::default(), &selection).expect_err("no such remedy");
    assert!(
        error.to_string().contains("did you mean `iptables`"),
        "{error}"
    );
}

/// A synthetic service that fails more the fewer ports and the higher the rate.
fn fails(scenario: &Scenario, seed: u64) -> Result<Ran, RunError> {
    let (low, high) = scenario.client[0].tcp().local_ports;
    let ports = u64::from(high - low) + 1;
    let rate = match scenario.client[0].arrivals {
        Arrivals::Constant(rate) => rate.rate as u64,
        _ => 0,
    };
    let failed = (rate * 10_000 / ports).min(900) + seed % 5;
    let mut summary = RunSummary::default();
    summary.outcomes[Outcome::Reset.index()] = failed;
    summary.outcomes[Outcome::Answered.index()] = 1_000 - failed;
    Ok(Ran {
        summary,
        side: RunSide::default(),
    })
}

#[test]
fn the_best_comes_first_and_ones_own_takes_part() {
    let selection = Selection {
        only: vec!["wider-ports".to_owned(), "reuse-mode-1".to_owned()],
        own: vec![vec![(
            "client.0.ports".to_owned(),
            "40000-40009".to_owned(),
        )]],
        ..Selection::default()
    };
    let comparison = plan(&small(), &selection).expect("good");
    let mut last = None;
    let result = run(
        &comparison,
        None,
        &Plan::default(),
        &Still,
        &fails,
        &mut |seen, _| last = Some(*seen),
    )
    .expect("runs");
    let last = last.expect("it was told");
    assert_eq!((last.runs, last.settings), (result.runs, 4));
    assert_eq!(
        last.today,
        (result.today.failure.count, result.today.failure.of)
    );
    let none = result
        .remedies
        .iter()
        .filter(|tried| tried.result.failure.count == 0);
    assert_eq!(last.none_failed, none.count() as u64);
    let ids: Vec<&str> = result
        .remedies
        .iter()
        .map(|tried| tried.id.as_str())
        .collect();
    assert_eq!(ids, ["wider-ports", "reuse-mode-1", "own-1"]);
    assert_eq!(result.remedies[0].failure.verdict, Verdict::Lower);
    assert_eq!(result.remedies[1].failure.verdict, Verdict::Same);
    assert_eq!(result.remedies[2].failure.verdict, Verdict::Higher);
    assert_eq!(result.stopped, Stopped::Enough);
    let json = serde_json::to_value(&result).expect("data");
    assert_eq!(json["remedies"][0]["id"], "wider-ports");
    assert_eq!(json["root_seed"], "0x1");
}

/// The real engine on the small case: the founding case's three remedies do what the case says.
#[test]
fn the_remedies_of_the_founding_case_work_in_the_model() {
    let selection = Selection {
        only: [
            "wider-ports",
            "reuse-mode-1",
            "iptables",
            "kernel-fix",
            "pre-stop",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Selection::default()
    };
    let comparison = plan(&small(), &selection).expect("good");
    let result = run(
        &comparison,
        None,
        &two_runs(),
        &Still,
        &Ran::once,
        &mut |_, _| {},
    )
    .expect("runs");
    assert!(result.today.failure.count > 100, "{:?}", result.today);
    let of = |id: &str| {
        result
            .remedies
            .iter()
            .find(|tried| tried.id == id)
            .expect("tried")
    };
    for id in ["wider-ports", "iptables", "kernel-fix", "reuse-mode-1"] {
        assert_eq!(of(id).result.failure.count, 0, "{id}");
    }
    // 4.19.57 drops the first SYN of a reused port: a second's delay is the price of mode 1.
    assert!(of("reuse-mode-1").result.late.count > 100);
    assert_eq!(of("wider-ports").result.late.count, 0);
    // preStop moves the failures and does not lessen them by much.
    let futile = of("pre-stop").result.failure.count;
    assert!(
        futile * 10 > result.today.failure.count * 8,
        "{futile} {:?}",
        result.today.failure
    );
    assert!(
        result.today.side.ipvs_entries_max > 100 && result.today.side.ports_max > 0,
        "{:?}",
        result.today.side
    );
    assert_eq!(of("iptables").result.side.ipvs_entries_max, 0);
}
