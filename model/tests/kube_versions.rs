//! Every minor release of kube-proxy from 1.11 to 1.35: what it sets, how it drains, which endpoints it takes, what its start does.
//! Facts, kube-proxy 1, 3 and 5.

use std::net::Ipv4Addr;

use ipvs_model::kernel::Kernel;
use ipvs_model::kube::server::{ServerEvent, ServerState, transition};
use ipvs_model::kube::{
    EndpointState, ProxyGate, ProxyVersion, ServiceProto, SysctlConfig, TrafficPolicy, WaitFor,
    as_published, sysctls_at_start, usable,
};
use ipvs_model::sysctl::Sysctls;

fn version(text: &str) -> ProxyVersion {
    text.parse().unwrap()
}

/// The value that this release leaves conn_reuse_mode at on a kernel that booted with 1; x if it does not start.
fn reuse_mode(proxy: &str, kernel: &str) -> char {
    let kernel: Kernel = kernel.parse().unwrap();
    let mut sysctls = Sysctls::of(kernel.behaviours());
    let behaviours = version(proxy).behaviours();
    match sysctls_at_start(behaviours, &kernel, &SysctlConfig::default(), &mut sysctls) {
        Ok(_) => char::from(b'0' + sysctls.vs.conn_reuse_mode),
        Err(_) => 'x',
    }
}

/// Release; conn_reuse_mode on 3.18, el7, 4.19, 5.8 and 6.1; then a letter for each rule that it has, in the order of [`rules`].
const RELEASES: &[(&str, &str, &str)] = &[
    ("1.11.0", "11111", ".........."),
    ("1.11", "x0000", "gi....e..."),
    ("1.12.0", "11111", ".........."),
    ("1.12", "x0000", "giu.k.e..."),
    ("1.13.0", "x0000", "g........."),
    ("1.13", "x0000", "giu.k.e..."),
    ("1.14.0", "x0000", "gi....e..."),
    ("1.14", "x0000", "giu.k.e..."),
    ("1.15.0", "x0000", "giu.k.e..."),
    ("1.16.0", "x0000", "giu.k.e..."),
    ("1.17.0", "x0000", "giu.k.e..."),
    ("1.18.0", "x0000", "giu.k.e..."),
    ("1.19.0", "11000", "giu.k.e..."),
    ("1.20.0", "11000", "giusk.e..."),
    ("1.20", "11001", "giusk.e..."),
    ("1.21.0", "11000", "giusk.e.l."),
    ("1.21", "11001", "giusk.e.l."),
    ("1.22.0", "11001", "giusk.e.l."),
    ("1.23.0", "11001", "giusk.e.l."),
    ("1.24.0", "11001", "giusk.e.l."),
    ("1.25.0", "11001", "giusk.e.l."),
    ("1.26.0", "11001", "giuskwetl."),
    ("1.27.0", "11001", "giuskwetl."),
    ("1.28.0", "11001", "giuskwetl."),
    ("1.29.0", "11001", "giuskwetl."),
    ("1.30.0", "11001", "giuskwetl."),
    ("1.31.0", "11001", "giuskwetl."),
    ("1.32.0", "11001", "giuskwetl."),
    ("1.33.0", "11001", "giuskwetl."),
    ("1.34.0", "11001", "giuskwetl."),
    ("1.35.0", "11001", "giuskwetld"),
];

/// g drains TCP, i waits for inactive connections, u deletes UDP at once, s deletes SCTP at once, k keeps real servers at its start, w
/// resets weights at the first sync, e sets the expire sysctls, t takes the last terminating endpoints, l falls back from Local to
/// Cluster, d is deprecated. Each is asked of the rule that uses it, not of the table of gates.
fn rules(proxy: &str) -> String {
    let behaviours = version(proxy).behaviours();
    let kernel: Kernel = "6.1.90".parse().unwrap();
    let mut sysctls = Sysctls::of(kernel.behaviours());
    sysctls_at_start(behaviours, &kernel, &SysctlConfig::default(), &mut sysctls).unwrap();
    let last = EndpointState {
        ip: Ipv4Addr::new(10, 0, 0, 1),
        node: 1,
        ready: false,
        serving: true,
        terminating: true,
    };
    let elsewhere = EndpointState {
        node: 2,
        ready: true,
        terminating: false,
        ..last
    };
    let takes = |endpoints: &[EndpointState], policy| {
        let published = as_published(endpoints, behaviours);
        !usable(&published, policy, 1, behaviours).0.is_empty()
    };
    let tcp = WaitFor::of(behaviours, ServiceProto::Tcp);
    let graceful = behaviours.has(ProxyGate::GracefulTermination);
    let at_once = |proto| graceful && WaitFor::of(behaviours, proto) == WaitFor::Nothing;
    let has = [
        ('g', tcp != WaitFor::Nothing),
        ('i', tcp == WaitFor::ActiveAndInactive),
        ('u', at_once(ServiceProto::Udp)),
        ('s', at_once(ServiceProto::Sctp)),
        ('k', behaviours.has(ProxyGate::StartKeepsServers)),
        ('w', behaviours.has(ProxyGate::FirstSyncResetsWeight)),
        (
            'e',
            sysctls.vs.expire_nodest_conn && sysctls.vs.expire_quiescent_template,
        ),
        ('t', takes(&[last], TrafficPolicy::Cluster)),
        ('l', takes(&[elsewhere], TrafficPolicy::Local)),
        ('d', behaviours.has(ProxyGate::IpvsDeprecated)),
    ];
    has.into_iter()
        .map(|(letter, has)| if has { letter } else { '.' })
        .collect()
}

#[test]
fn every_minor_release_sets_and_drains_as_the_facts_say() {
    let kernels = ["3.18.1", "3.10.0-1160.el7", "4.19.219", "5.8.1", "6.1.90"];
    for (release, modes, want) in RELEASES {
        let got: String = kernels
            .iter()
            .map(|kernel| reuse_mode(release, kernel))
            .collect();
        assert_eq!(
            (got.as_str(), rules(release).as_str()),
            (*modes, *want),
            "{release}"
        );
    }
}

/// A drained real server whose endpoint returns: deleted and added anew in every release that drains, and left at weight 0 after a
/// restart in every release before 1.26 (#92019).
#[test]
fn a_returning_endpoint_by_release() {
    for (release, _, rules) in RELEASES {
        let behaviours = version(release).behaviours();
        if !rules.starts_with("gi") {
            continue;
        }
        let row = transition(ServerState::Draining, ServerEvent::Wanted, behaviours).unwrap();
        assert_eq!(row.4, ServerState::Serving, "{release}");
        let stranded = transition(ServerState::Draining, ServerEvent::Restart, behaviours).unwrap();
        assert_eq!(stranded.4, ServerState::Stranded, "{release}");
        let wanted = transition(ServerState::Stranded, ServerEvent::Wanted, behaviours).unwrap();
        assert_eq!(wanted.4, ServerState::Stranded, "{release}");
    }
}
