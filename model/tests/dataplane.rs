//! kube-proxy's rules for packets that conntrack does not know (facts kube-proxy.md 5, kubernetes#74839).

use ipvs_model::conntrack::SourceNat;
use ipvs_model::dataplane::IptablesRules;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::kernel::Kernel;
use ipvs_model::node::{Balancer, Node, NodeConfig, Rule, Verdict};
use ipvs_model::segment::{Endpoint, Flags, Proto, Segment, Tuple};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Span};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

fn at(text: &str) -> Endpoint {
    text.parse().unwrap()
}

fn node(drops_invalid: bool) -> Node {
    let kernel = "5.15.6".parse::<Kernel>().unwrap().behaviours();
    let mut rules = IptablesRules::default().dropping_invalid(drops_invalid);
    let key = ServiceKey {
        proto: Proto::Tcp,
        addr: at("10.96.0.1:80"),
    };
    rules.set_endpoints(key, vec![at("10.0.1.1:80")]);
    Node::new(NodeConfig {
        kernel,
        clock: Clock::new(250, kernel.timer_era(), Span::ZERO),
        sysctls: Sysctls::of(kernel),
        balancer: Balancer::Iptables(rules),
        source_nat: SourceNat::NullBinding,
        tracking: true,
    })
}

/// A SYN-ACK of a pod for which there is no entry is invalid: the rule of 1.16 and later drops it, without the rule it
/// reaches the client from an address that it did not call.
#[test]
fn an_invalid_packet_of_a_pod_leaks_unless_the_rule_drops_it() {
    let stray = Segment::new(
        Tuple::tcp(at("10.0.1.1:80"), at("10.0.9.9:40000")),
        Flags::SYN.with(Flags::ACK),
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let now = Instant::from_secs(10);
    let leaks = node(false).packet(now, &stray, &mut rng);
    assert_eq!(leaks.verdict, Verdict::Forward(stray));
    let drops = node(true).packet(now, &stray, &mut rng);
    assert_eq!(
        (drops.verdict, drops.rule),
        (Verdict::Drop, Rule::IptablesInvalid)
    );
    // A SYN is not invalid.
    let syn = Segment::new(
        Tuple::tcp(at("10.0.9.9:40000"), at("10.96.0.1:80")),
        Flags::SYN,
    );
    let picked = node(true).packet(now, &syn, &mut rng);
    assert_eq!(picked.rule, Rule::IptablesPicked);
}
