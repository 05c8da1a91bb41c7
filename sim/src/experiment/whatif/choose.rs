//! From the table of remedies to settings of one scenario: what would be set, or why a remedy makes no sense there.

use ipvs_model::kernel::{Flavour, Gate, Kernel, Version};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::Span;

use super::remedies::{Change, Need, Remedy};
use crate::scenario::field::Field;
use crate::scenario::{Location, OnSigterm, PortChoice, Rollout, Scenario, Side, span_text};

/// A field and its value, as for `--set`.
pub type Setting = (String, String);

/// What is looked at to choose.
#[derive(Clone, Copy, Debug)]
pub struct Today<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The node's sysctls in it.
    pub sysctls: &'a Sysctls,
}

/// What a remedy sets, and what its texts stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The settings.
    pub settings: Vec<Setting>,
    /// `{name}` and what it stands for.
    pub names: Vec<(&'static str, String)>,
    /// How the simulated time differs from today's, and why; empty if it does not.
    pub window: String,
}

/// The settings of a remedy.
///
/// # Errors
/// Why it makes no sense here, in words.
pub fn choose(remedy: &Remedy, today: Today<'_>) -> Result<Chosen, String> {
    for need in remedy.needs {
        check(*need, today)?;
    }
    change(remedy.change, today.scenario)
}

fn unless(ok: bool, reason: impl Into<String>) -> Result<(), String> {
    if ok { Ok(()) } else { Err(reason.into()) }
}

fn check(need: Need, Today { scenario, sysctls }: Today<'_>) -> Result<(), String> {
    let node = &scenario.node;
    let mode = word(&node.mode);
    let kernel = node.behaviours();
    match need {
        Need::Ipvs => unless(
            mode == "ipvs",
            format!("the node is in {mode} mode: there are no IPVS entries"),
        ),
        Need::NotMode(other) => unless(mode != other, "it is so today"),
        Need::ReuseModeOff => {
            unless(
                kernel.has(Gate::ReuseMode),
                format!(
                    "kernel {} has no such switch (4.1 and later have)",
                    node.kernel
                ),
            )?;
            let now = sysctls.vs.conn_reuse_mode;
            unless(now == 0, format!("it is {now} today"))
        }
        Need::SysctlOther("net.ipv4.vs.expire_nodest_conn", _) => unless(
            !sysctls.vs.expire_nodest_conn,
            "it is 1 today (kube-proxy sets it)",
        ),
        Need::SysctlOther(key, value) => {
            let set = scenario.node_sysctl_overrides();
            let same = set.iter().any(|(k, v)| k == key && v == value);
            unless(!same, format!("it is {value} today"))
        }
        Need::Lacks(gate) => unless(
            !kernel.has(gate),
            format!(
                "kernel {} has it: {}",
                node.kernel,
                gate.row().summary.trim()
            ),
        ),
        Need::Has(gate) => unless(
            kernel.has(gate),
            format!("kernel {} does not need it", node.kernel),
        ),
        Need::RangeBelow(most) => {
            chosen_by_kernel(scenario, true)?;
            let narrow = scenario.client.iter().any(|client| {
                let (low, high) = client.tcp().local_ports;
                u32::from(high.saturating_sub(low)) + 1 < most
            });
            unless(narrow, "the range is as wide as it can be")
        }
        Need::ConnectChooses => chosen_by_kernel(scenario, false),
        Need::TwReuseOther(value) => {
            let other = scenario
                .client
                .iter()
                .any(|client| client.tcp().tw_reuse != value);
            unless(other, format!("it is {value} today"))
        }
        Need::ClientCloses => unless(
            scenario
                .client
                .iter()
                .any(|client| client.closes_first == Side::Client),
            "the server closes first: clients hold no port in TIME_WAIT that it could concern",
        ),
        Need::RemoteClients => unless(
            scenario
                .client
                .iter()
                .any(|client| client.location != Location::Host),
            "all clients are processes of the node itself, with one address",
        ),
        Need::LocalClients => unless(
            scenario
                .client
                .iter()
                .any(|client| client.location != Location::Remote),
            "all clients are outside of the cluster's nodes",
        ),
        Need::Deployment => unless(
            matches!(scenario.rollout, Rollout::Deployment(_)),
            "no Deployment is rolled out in this scenario",
        ),
        Need::PreStopBelow(seconds) => match &scenario.rollout {
            Rollout::Deployment(deployment) => unless(
                deployment.pre_stop < Span::from_secs(seconds),
                format!("preStop takes {} today", span_text(deployment.pre_stop)),
            ),
            _ => Ok(()),
        },
        Need::NotDraining => match &scenario.rollout {
            Rollout::Deployment(deployment) => unless(
                deployment.on_sigterm != OnSigterm::Drains,
                "it drains today",
            ),
            _ => Ok(()),
        },
        Need::Affinity => unless(
            scenario.service.session_affinity.is_some(),
            "the service has none",
        ),
        Need::ProxyBelow(minor) => {
            let Version(_, now, _) = proxy(scenario)?;
            unless(
                now < minor,
                format!(
                    "kube-proxy {} is new enough",
                    word(&scenario.kube_proxy.version)
                ),
            )
        }
        Need::KernelFrom59 => {
            let key = "net.ipv4.vs.conn_reuse_mode";
            let given = scenario.node_sysctl_overrides();
            unless(
                !given.iter().any(|(k, _)| k == key),
                "the scenario says what conn_reuse_mode is, whatever kube-proxy writes",
            )?;
            unless(
                node.kernel.version >= Version(5, 9, 0),
                format!(
                    "on kernel {} a newer one writes conn_reuse_mode 0 as well: only from 5.9 on it leaves it alone",
                    node.kernel
                ),
            )
        }
    }
}

fn proxy(scenario: &Scenario) -> Result<Version, String> {
    let number = scenario.kube_proxy.version.number();
    number.ok_or_else(|| "a script plays kube-proxy here".to_owned())
}

/// Whether the kernel chooses source ports somewhere: with connect(), or with bind() to port 0 as well.
fn chosen_by_kernel(scenario: &Scenario, bind_too: bool) -> Result<(), String> {
    let any = scenario
        .client
        .iter()
        .any(|client| match client.port_choice {
            PortChoice::Connect => true,
            PortChoice::Bind => bind_too,
            PortChoice::Fixed(_) | PortChoice::Pool(_) => false,
        });
    unless(any, "the application chooses its source ports itself")
}

fn change(change: Change, scenario: &Scenario) -> Result<Chosen, String> {
    match change {
        Change::Set(fields) => Ok(Chosen {
            settings: owned(fields),
            ..Chosen::default()
        }),
        Change::Kernel(gate, fields) => {
            let (setting, release) = kernel_with(gate, scenario);
            let mut settings = vec![setting];
            settings.extend(owned(fields));
            let fix = gate
                .row()
                .source
                .split(';')
                .next()
                .unwrap_or_default()
                .to_owned();
            Ok(Chosen {
                settings,
                names: vec![("{kernel}", release), ("{kernel_fix}", fix)],
                ..Chosen::default()
            })
        }
        Change::Clients(times) => {
            let each = scenario.client.iter().enumerate();
            let more = each.map(|(place, client)| {
                let count = client.count.saturating_mul(times).min(65_536);
                (format!("client.{place}.count"), count.to_string())
            });
            let settings: Vec<Setting> = more.collect();
            let total: u32 = settings
                .iter()
                .filter_map(|(_, count)| count.parse::<u32>().ok())
                .sum();
            Ok(Chosen {
                settings,
                names: vec![("{clients}", total.to_string())],
                ..Chosen::default()
            })
        }
        Change::KeepAlive(least) => {
            let now = scenario
                .client
                .iter()
                .map(|client| client.requests_per_connection);
            let now = now.min().unwrap_or(1);
            let requests = if now < least {
                least
            } else {
                now.saturating_mul(10).min(1_000_000)
            };
            Ok(Chosen {
                settings: vec![(
                    "client.*.requests_per_connection".to_owned(),
                    requests.to_string(),
                )],
                names: vec![("{requests}", requests.to_string())],
                ..Chosen::default()
            })
        }
        Change::FlipClosesFirst => {
            let each = scenario.client.iter().enumerate();
            let flipped = each.map(|(place, client)| {
                let other = match client.closes_first {
                    Side::Server => "client",
                    Side::Client => "server",
                };
                (format!("client.{place}.closes_first"), other.to_owned())
            });
            Ok(Chosen {
                settings: flipped.collect(),
                ..Chosen::default()
            })
        }
        Change::PreStop(seconds) => pre_stop(Span::from_secs(seconds), scenario),
        Change::MinReady(seconds) => min_ready(Span::from_secs(seconds), scenario),
    }
}

fn owned(fields: &[(&str, &str)]) -> Vec<Setting> {
    let own = |(path, value): &(&str, &str)| ((*path).to_owned(), (*value).to_owned());
    fields.iter().map(own).collect()
}

/// The setting that gives the node's kernel a behaviour, and the release in words: the first patch level of its branch that
/// has it, or else the first mainline release; for a distribution's kernel, the behaviour by itself.
fn kernel_with(gate: Gate, scenario: &Scenario) -> (Setting, String) {
    let Kernel {
        release,
        version,
        flavour,
        ..
    } = &scenario.node.kernel;
    let row = gate.row();
    if matches!(flavour, Flavour::HiddenPatch | Flavour::Vendor) {
        let path = format!("node.kernel_gates.{}", row.name);
        return (
            (path, "true".to_owned()),
            format!("{release} with the fix taken over"),
        );
    }
    let same_branch = row
        .backports
        .iter()
        .find(|port| (port.0, port.1) == (version.0, version.1));
    let target = same_branch
        .copied()
        .or(row.since)
        .unwrap_or(Version(6, 1, 192));
    let release = target.to_string();
    (("node.kernel".to_owned(), release.clone()), release)
}

/// The settings that move what is counted by as much as pods live longer, so that the time after their end is seen for as long
/// as today.
fn moved(scenario: &Scenario, later: Span, longer: Span) -> Vec<Setting> {
    let mut settings = vec![("duration".to_owned(), span_text(scenario.duration + longer))];
    if later.0 > 0 {
        settings.push(("warmup".to_owned(), span_text(scenario.warmup + later)));
    }
    settings
}

fn pre_stop(wanted: Span, scenario: &Scenario) -> Result<Chosen, String> {
    let Rollout::Deployment(deployment) = &scenario.rollout else {
        return Err("no Deployment is rolled out in this scenario".to_owned());
    };
    let later = less(wanted, deployment.pre_stop);
    let grace = deployment
        .termination_grace_period
        .max(wanted + Span::from_secs(30));
    let mut settings = vec![
        ("rollout.deployment.pre_stop".to_owned(), span_text(wanted)),
        (
            "rollout.deployment.termination_grace_period".to_owned(),
            span_text(grace),
        ),
    ];
    settings.extend(moved(scenario, later, later));
    Ok(Chosen {
        settings,
        window: format!(
            "counted {} later than today, because the old pods end so much later",
            span_text(later)
        ),
        ..Chosen::default()
    })
}

fn min_ready(wanted: Span, scenario: &Scenario) -> Result<Chosen, String> {
    let Rollout::Deployment(deployment) = &scenario.rollout else {
        return Err("no Deployment is rolled out in this scenario".to_owned());
    };
    let later = less(wanted, deployment.min_ready);
    unless(later.0 > 0, "it is slower today")?;
    let step = (deployment.surge() + deployment.unavailable()).max(1);
    let steps = deployment.replicas.div_ceil(step).max(1);
    let longer = Span(later.0.saturating_mul(u64::from(steps)));
    let whole = scenario.duration + longer;
    unless(
        whole <= Span::from_secs(86_400),
        format!("the rollout's {steps} steps would take longer than a day"),
    )?;
    let mut settings = vec![("rollout.deployment.min_ready".to_owned(), span_text(wanted))];
    settings.extend(moved(scenario, later, longer));
    let more = less(longer, later);
    let and = if more.0 > 0 {
        format!(", and {} longer", span_text(more))
    } else {
        String::new()
    };
    Ok(Chosen {
        settings,
        window: format!(
            "counted {} later than today{and}, because the rollout takes longer",
            span_text(later)
        ),
        ..Chosen::default()
    })
}

/// A choice by its name in scenarios.
fn word(choice: &impl Field) -> String {
    choice.encode().unwrap_or_default().replace('"', "")
}

const fn less(span: Span, by: Span) -> Span {
    Span(span.0.saturating_sub(by.0))
}
