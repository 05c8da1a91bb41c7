use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::overrides::SHORTCUTS;
use super::*;

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

/// Every scenario file of the repository with its text, in order of the paths.
fn files() -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for folder in [scenarios(), scenarios().join("rollouts")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                all.push((path, text));
            }
        }
    }
    all.sort();
    all
}

fn parse(text: &str) -> Result<Loaded, Diagnostics> {
    Scenario::parse(text, "test.toml")
}

macro_rules! assert_renders {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(concat!("scenario-", $name), $text);
        })
    };
}

fn mistakes(text: &str) -> String {
    let found = parse(text).expect_err("the scenario is wrong");
    assert!(found.has_errors());
    found.render(false)
}

fn warnings(text: &str) -> String {
    parse(text).expect("only warnings").warnings.render(false)
}

/// The one place where defaults and the founding case could drift apart.
#[test]
fn the_defaults_are_the_founding_case() {
    let loaded = Scenario::load(&scenarios().join("founding-case.toml")).unwrap();
    let mut expected = Scenario::default();
    // The file names the ports that the kernel's default stands for.
    let ports = Ports {
        low: 32_768,
        high: 60_999,
    };
    expected.client[0].ports = OrKernel(Some(ports));
    // And the addresses of its log, which leave a gap.
    expected.server.new_address = Some("10.27.1.248".parse().unwrap());
    assert_eq!(loaded.scenario, expected);
    assert_eq!(
        expected.client[0].tcp(),
        Scenario::default().client[0].tcp()
    );
}

#[test]
fn every_file_in_scenarios_loads_without_a_warning() {
    let files = files();
    assert!(files.len() >= 10);
    for (path, _) in files {
        let loaded = Scenario::load(&path).unwrap_or_else(|found| panic!("{found}"));
        assert_eq!(loaded.warnings.render(false), "", "{}", path.display());
        let stem = path.file_stem().unwrap().to_string_lossy();
        assert_eq!(loaded.scenario.name, stem, "the name is the file's");
    }
}

#[test]
fn new_pods_follow_the_old_ones() {
    let sets = [("rollout.deployment.replicas", "20")];
    let scenario = Scenario::with_overrides(None, &sets).unwrap().scenario;
    assert_eq!(scenario.new_address().to_string(), "10.27.2.9");
}

/// The inputs of the recordings, as their README gives them.
#[test]
fn recorded_rollouts_say_what_was_recorded() {
    for (name, kernel, mode, expire) in [
        ("57-m0-sf-c41", "5.7.14", "0", "1"),
        ("57-m1-sf-c41", "5.7.14", "1", "1"),
        ("612-m0-en1-sf", "6.12.117", "0", "1"),
        ("612-m0-en0-sf", "6.12.117", "0", "0"),
    ] {
        let path = scenarios().join(format!("rollouts/{name}.toml"));
        let scenario = Scenario::load(&path).unwrap().scenario;
        let client = &scenario.client[0];
        assert_eq!(scenario.duration.as_secs(), 420);
        for release in [
            &scenario.node.kernel,
            &client.kernel,
            &scenario.server.kernel,
        ] {
            assert_eq!(release.release, kernel);
        }
        assert_eq!(
            (scenario.node.hz, client.hz, scenario.server.hz),
            (Hz(100), Hz(100), Hz(100))
        );
        let sysctl = |name: &str| {
            let mut all = scenario.node_sysctl_overrides().iter();
            all.find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(sysctl("net.ipv4.vs.conn_reuse_mode"), Some(mode));
        assert_eq!(sysctl("net.ipv4.vs.expire_nodest_conn"), Some(expire));
        assert_eq!(sysctl("net.ipv4.vs.conntrack"), Some("1"));
        assert_eq!(client.tcp().local_ports, (32_768, 33_767));
        assert_eq!(client.arrivals, Arrivals::Constant(Rate { rate: 12.0 }));
        assert_eq!(client.closes_first, Side::Server);
        assert_eq!(scenario.kube_proxy.version, ProxyVersion::None);
        let Rollout::Scripted(script) = scenario.rollout else {
            panic!("{name} is not scripted");
        };
        assert_eq!(
            (script.at.as_secs(), script.old_die_at.as_secs()),
            (150, 180)
        );
        assert_eq!((script.old_pods, script.new_pods), (2, 2));
        assert_eq!(scenario.server.dead_end, DeadEnd::Unreachable);
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = r#"schema = 2
nmae = "x"
duration = 420

[node]
kernel = "linux"
hz = 17

[node.kernel_gates]
"weight-zero-anymode" = true

[[client]]
ports = "0-100000"
arrivals = { constant = { rate = 0 } }
closes_first = "sever"

[[client]]
arrivals = { poison = { rate = nan } }
stop = "never"

[[client]]
ports = 40000
arrivals = { poisson = { rate = nan } }
address = "10.0.0"
count = 99999999999999999999999999999999999999999999

[server]
service_time = { uniform = ["5ms", "1ms"] }
dead_end = { reassigned = { after = 5 } }

[kube_proxy]
version = 1.17
scheduler = ["rr"]
sync_latency = { log_normal = { median = "5ms", sigma = -1 } }
"#;
    assert_renders!("every-mistake", mistakes(text));
}

#[test]
fn contradictions_name_both_fields() {
    let text = r#"duration = "100s"
warmup = "2m"

[node]
kernel = "3.10.108"

[node.sysctl]
"net.ipv4.vs.conn_reuse_mode" = 7
net.netfilter.nf_conntrack_max = "many"
"net.ipv4.ip_local_port_range" = "60999 32768"

[service]
address = "10.1.0.1:80"

[[client]]
address = "10.1.0.0"
count = 5
location = "pod"
start = "50s"
stop = "40s"
tcp_tw_reuse = 3

[[client]]
address = "10.1.1.0"
location = "host"
count = 2
stop = "200s"
timeout = "0s"

[rollout.deployment]
start = "100s"
max_surge = 0
max_unavailable = "0%"
"#;
    assert_renders!("contradictions", mistakes(text));
}

#[test]
fn a_choice_with_two_keys_shows_both() {
    let text = "[rollout.scripted]\nat = \"10s\"\n[rollout.deployment]\n";
    assert_renders!("two-choices", mistakes(text));
}

#[test]
fn broken_syntax_is_shown_where_it_is() {
    let text = "name = \"x\nduration = \"5s\"\n[node\nhz = 100\n[[client]]\nports = = 5\n";
    assert_renders!("syntax", mistakes(text));
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let text = r#"
[node]
mode = "iptables"
kernel = "5.4.0-1051-gke"
sysctl = { "net.ipv4.vs.conn_reuse_mode" = 1, "net.ipv4.vs.conn_resue_mode" = 1 }

[kube_proxy]
scheduler = "rr"
masquerade = "masquerade"

[network]
return_path = "direct"

[[client]]
port_choice = [2348, 2349]
arrivals = { closed = { concurrency = 3 } }
connect_timeout = "10s"

[rollout.deployment]
pre_stop = "30s"
"#;
    assert_renders!("warnings", warnings(text));
}

/// Absurd sizes and depths are refused in bounded time and stack.
#[test]
fn absurd_texts_are_refused() {
    let many = |piece: &str| piece.repeat(20_000);
    let numbered = |line: &str| {
        let lines = (0..20_000).map(|i| line.replace('#', &i.to_string()));
        lines.collect::<String>()
    };
    for text in [
        format!("a={}", many("[")),
        format!("{}a=1", many("a.")),
        format!("a={}", many("{a=")),
        many("[[client]]\n"),
        numbered("k#=1\n"),
        format!("[node.sysctl]\n{}", numbered("k#=1\n")),
        format!("[node.kernel_gates]\n{}", numbered("k#=true\n")),
    ] {
        let found = parse(&text).expect_err("refused");
        assert!(found.render(false).len() < 2_000_000);
        assert!(
            found
                .to_json()
                .as_array()
                .is_some_and(|all| all.len() <= 1000)
        );
    }
}

#[test]
fn mistakes_in_flags_show_the_flag() {
    let set = |sets: &[(&str, &str)]| {
        let base = Some(("duration = \"420s\"\n[rollout.scripted]\n", "base.toml"));
        Scenario::with_overrides(base, sets)
            .expect_err("a mistake")
            .render(false)
    };
    let mut text = String::new();
    for sets in [
        &[("node.hz", "17"), ("nodes.hz", "100")][..],
        &[("client.0.start", "500s")],
        &[("client.3.count", "5")],
        &[("node..hz", "5")],
        &[("rollout.deployment.pre_stop", "3s")],
        &[("node.sysctl.net.ipv4.vs.conn_reuse_mode", "7")],
        &[("duration.x", "7")],
    ] {
        text.push_str(&set(sets));
        text.push('\n');
    }
    let mut document = Document::default();
    document.set_named("ports", "0-100000").unwrap();
    document.set_named("kernel", "99").unwrap();
    document.set_named("rps", "nan").unwrap();
    text.push_str(&document.resolve().unwrap_err().render(false));
    text.push_str(&document.set_named("prts", "5").unwrap_err().render(false));
    assert_renders!("flags", text);
}

#[test]
fn flags_reach_every_kind_of_field() {
    let with = |sets: &[(&str, &str)]| Scenario::with_overrides(None, sets).unwrap().scenario;
    let scenario = with(&[
        ("node.sysctl.net.ipv4.vs.conn_reuse_mode", "0"),
        ("client.0.ports", "28232"),
        ("node.kernel", "5.4"),
        ("kube_proxy.version", "1.22"),
        ("server.dead_end.reassigned.after", "40s"),
        ("network.client_node.exponential", "3ms"),
        ("rollout.none.pods", "3"),
        ("name", "7"),
    ]);
    assert_eq!(
        scenario.node_sysctl_overrides(),
        [("net.ipv4.vs.conn_reuse_mode".to_owned(), "0".to_owned())]
    );
    assert_eq!(scenario.client[0].tcp().local_ports, (32_768, 60_999));
    assert_eq!(scenario.node.kernel.release, "5.4");
    assert_eq!(scenario.kube_proxy.version.to_string(), "1.22");
    assert!(matches!(scenario.server.dead_end, DeadEnd::Reassigned(r) if r.after.as_secs() == 40));
    assert_eq!(scenario.rollout.old_pods(), 3);
    assert_eq!(scenario.name, "7");
}

#[test]
fn a_flag_wins_over_a_sysctl_without_quotes() {
    let base = "[node.sysctl]\nnet.ipv4.vs.conn_reuse_mode = 1\nnet.ipv4.vs.conntrack = true\n";
    let sets = [("node.sysctl.net.ipv4.vs.conn_reuse_mode", "0")];
    let loaded = Scenario::with_overrides(Some((base, "base.toml")), &sets).unwrap();
    let pairs = loaded.scenario.node_sysctl_overrides();
    let expected = [
        ("net.ipv4.vs.conntrack", "1"),
        ("net.ipv4.vs.conn_reuse_mode", "0"),
    ];
    assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

/// A value that each short name accepts.
fn example(name: &str) -> &'static str {
    match name {
        "kernel" | "client-kernel" => "5.15.6",
        "hz" => "1000",
        "mode" => "iptables",
        "proxy-version" => "1.28.3",
        "scheduler" => "sh",
        "masquerade" => "random-fully",
        "session-affinity" | "timeout" | "pre-stop" | "grace-period" => "40s",
        "duration" => "500s",
        "closes-first" => "client",
        "port-choice" => "bind",
        "dead-end" => "reset",
        "conn-reuse-mode" | "expire-nodest-conn" | "tw-reuse" => "1",
        _ => "7",
    }
}

#[test]
fn every_short_name_changes_the_scenario() {
    for short in SHORTCUTS {
        let mut document = Document::default();
        document.set_named(short.name, example(short.name)).unwrap();
        let scenario = document
            .resolve()
            .unwrap_or_else(|f| panic!("{f}"))
            .scenario;
        assert_ne!(scenario, Scenario::default(), "{}", short.name);
    }
}

#[test]
fn rates_keep_the_kind_of_the_arrivals() {
    let rate = |base: &str| {
        let mut document = Document::parse(base, "base.toml").unwrap();
        document.set_named("rps", "2000").unwrap();
        let scenario = document.resolve().unwrap().scenario;
        scenario
            .client
            .iter()
            .map(|c| c.arrivals)
            .collect::<Vec<_>>()
    };
    let of = Rate { rate: 2000.0 };
    assert_eq!(rate(""), [Arrivals::Constant(of)]);
    let poisson = "[[client]]\narrivals = { poisson = { rate = 3 } }\n";
    assert_eq!(rate(poisson), [Arrivals::Poisson(of)]);
    let closed = "[[client]]\narrivals = { closed = { concurrency = 3 } }\n";
    assert_eq!(rate(closed), [Arrivals::Constant(of)]);
}

#[test]
fn shown_scenarios_are_the_same_scenario() {
    for (path, text) in files() {
        let scenario = parse(&text).unwrap().scenario;
        let shown = scenario.to_toml();
        assert_eq!(
            parse(&shown).unwrap().scenario,
            scenario,
            "{}",
            path.display()
        );
    }
}

/// With the marks taken away, the defaults that are shown are the defaults.
#[test]
fn shown_defaults_can_be_uncommented() {
    let shown = Scenario::default().to_toml();
    let live = shown
        .lines()
        .skip(2)
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(parse(&live).unwrap().scenario, Scenario::default());
    assert_renders!("show", shown);
}

#[test]
fn kube_proxy_versions_parse() {
    let parse = |text: &str| ProxyVersion::parse(text).map(|v| v.to_string());
    assert_eq!(parse("v1.17").as_deref(), Some("1.17"));
    assert_eq!(parse("v1.17.0").as_deref(), Some("1.17.0"));
    assert_eq!(parse("1.16.9-aliyun.1").as_deref(), Some("1.16.9"));
    assert_eq!(parse("none").as_deref(), Some("none"));
    for bad in ["", "1", "2.0.0", "1.10.0", "1.x", "1.17.0.1", "1.17."] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

/// Kubernetes rounds surge up and unavailability down, and lets one pod go if both come to nothing.
#[test]
fn shares_of_replicas_round_as_kubernetes_does() {
    let of = |replicas, surge, unavailable| {
        let deployment = Deployment {
            replicas,
            max_surge: Amount::Percent(surge),
            max_unavailable: Amount::Percent(unavailable),
            ..Deployment::default()
        };
        (deployment.surge(), deployment.unavailable())
    };
    assert_eq!(of(2, 25, 25), (1, 0));
    assert_eq!(of(10, 25, 25), (3, 2));
    assert_eq!(of(2, 0, 25), (0, 1));
}

#[test]
fn durations_are_read_and_written() {
    for (text, nanos) in [
        ("250ms", 250_000_000),
        ("2m 30s", 150_000_000_000),
        ("1h", 3_600_000_000_000),
    ] {
        let span = parse_span(text).unwrap();
        assert_eq!(span.0, nanos, "{text}");
        assert_eq!(parse_span(&span_text(span)), Some(span));
    }
    for bad in ["", "5", "-5s", "5 parsecs", "10000h", "1d"] {
        assert_eq!(parse_span(bad), None, "{bad}");
    }
}

#[test]
fn the_schema_is_as_it_was() {
    let schema = schema::json_schema();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert_renders!("schema", format!("{schema:#}"));
}

/// docs/scenario.md is written from the documentation in the code. UPDATE_DOCS=1 renews it.
#[test]
fn docs_are_as_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scenario.md");
    let wanted = schema::reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/scenario.md is stale: UPDATE_DOCS=1 cargo test -p ipvs-sim docs"
    );
}

/// Every field of the schema is documented.
#[test]
fn no_field_is_without_a_description() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if field["description"].as_str().is_none_or(str::is_empty) {
                missing.push(path.clone());
            }
            walk(&path, field, missing);
            walk(&path, &field["items"], missing);
        }
    }
    let mut missing = Vec::new();
    walk("", &schema::json_schema(), &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

/// Texts near valid ones: lines dropped, doubled and swapped, pieces replaced by others' or by nonsense.
fn mutated() -> impl Strategy<Value = String> {
    let files = files()
        .into_iter()
        .map(|(_, text)| text)
        .collect::<Vec<_>>();
    let nonsense = prop::sample::select(vec![
        "\"",
        "[",
        "]]",
        "{",
        "}",
        "=",
        "-1",
        "nan",
        "inf",
        "1e999",
        "\u{0}",
        "é",
        "none",
        "99999999999999999999",
        "\"0s\"",
        "[[client]]",
        "[rollout.none]",
        "client",
        "\\u0041",
        "'''",
        "0x1f",
        "2020-01-01",
        "\n",
        "true",
    ]);
    let edit = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0..5,
        nonsense,
    );
    (
        prop::sample::select(files),
        prop::collection::vec(edit, 1..8),
    )
        .prop_map(|(text, edits)| {
            let mut lines = text.lines().map(str::to_owned).collect::<Vec<_>>();
            for (from, to, kind, piece) in edits {
                if lines.is_empty() {
                    break;
                }
                let (from, to) = (from.index(lines.len()), to.index(lines.len()));
                match kind {
                    0 => drop(lines.remove(from)),
                    1 => lines.insert(to, lines[from].clone()),
                    2 => lines.swap(from, to),
                    3 => {
                        let line = lines[from].clone();
                        let key = line.split('=').next().unwrap_or_default();
                        let value = lines[to].split('=').nth(1).unwrap_or(piece).to_owned();
                        lines[from] = format!("{key}={value}");
                    }
                    _ => {
                        let at = to % (lines[from].len() + 1);
                        let at = lines[from].floor_char_boundary(at);
                        lines[from].insert_str(at, piece);
                    }
                }
            }
            lines.join("\n")
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No text makes the reader panic, and whatever it accepts it can show and read again.
    #[test]
    fn no_text_panics_and_what_is_accepted_round_trips(text in mutated()) {
        match parse(&text) {
            Ok(loaded) => {
                let again = parse(&loaded.scenario.to_toml()).unwrap();
                prop_assert_eq!(again.scenario, loaded.scenario);
                loaded.warnings.render(true);
            }
            Err(found) => {
                prop_assert!(found.has_errors());
                prop_assert!(!found.render(false).is_empty());
                found.to_json();
            }
        }
    }

    #[test]
    fn no_characters_panic(text in "\\PC{0,200}") {
        let _ = parse(&text).map_err(|found| found.render(false));
    }

    #[test]
    fn no_flag_panics(
        path in prop_oneof![
            prop::sample::select(SHORTCUTS).prop_map(|s| s.path().to_owned()),
            "[a-z_.*0-9]{0,30}",
            "(client|node|rollout|server)(\\.(\\*|0|1|ports|sysctl|deployment|none)){0,5}",
        ],
        value in prop_oneof!["\\PC{0,20}", "[0-9.\\-]{0,8}", Just("{ a = 1 }".to_owned())],
    ) {
        if let Err(found) = Scenario::with_overrides(None, &[(&path, &value)]) {
            prop_assert!(found.has_errors());
            found.render(true);
        }
    }

    #[test]
    fn no_list_panics(text in prop_oneof!["\\PC{0,30}", "[0-9.,kM]{0,12}(\\.\\.)?[0-9kM]{0,20}( step | x)?[0-9.kM]{0,20}"]) {
        if let Ok(values) = range::expand(&text) {
            prop_assert!(!values.is_empty() && values.len() <= range::VALUES_MAX);
        }
    }
}
