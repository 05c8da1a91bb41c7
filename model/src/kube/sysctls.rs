//! The sysctls that kube-proxy sets at its start, by release and kernel.
//!
//! Faithful to: `NewProxier` in pkg/proxy/ipvs/proxier.go and the conntrack settings in cmd/kube-proxy, 1.11 to
//! 1.30 read (facts, kube-proxy 1 and 2).
//! Leaves out: the hash size of the conntrack table, the IPVS timeouts (`--ipvs-tcp-timeout` and its kin leave the
//! kernel's values by default), settings of other proxy modes.

use core::fmt;

use super::version::{ProxyBehaviours, ProxyGate};
use crate::kernel::{Gate, Kernel, Version};
use crate::sysctl::Sysctls;

/// The part of kube-proxy's configuration that ends up in sysctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysctlConfig {
    /// Processors of the node.
    pub cores: u32,
    /// `conntrack.maxPerCore` (32768); 0 leaves nf_conntrack_max alone.
    pub conntrack_max_per_core: u32,
    /// `conntrack.min` (131072), the least that nf_conntrack_max is set to.
    pub conntrack_min: u32,
    /// `conntrack.tcpEstablishedTimeout` in seconds (86400); 0 leaves the kernel's.
    pub tcp_established: u32,
    /// `conntrack.tcpCloseWaitTimeout` in seconds (3600); 0 leaves the kernel's.
    pub tcp_close_wait: u32,
    /// `ipvs.strictARP` (false).
    pub strict_arp: bool,
}

impl Default for SysctlConfig {
    fn default() -> Self {
        Self {
            cores: 4,
            conntrack_max_per_core: 32_768,
            conntrack_min: 131_072,
            tcp_established: 86_400,
            tcp_close_wait: 3_600,
            strict_arp: false,
        }
    }
}

/// Why kube-proxy sets a sysctl, or leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SysctlRule {
    /// Set by every release.
    Always,
    /// conn_reuse_mode is not touched: the release is older than #71114.
    ReuseUntouched,
    /// conn_reuse_mode is set to 0 whatever the kernel is (#71114).
    ReuseZero,
    /// conn_reuse_mode is set to 0: the kernel is named 4.1 or later (#88541).
    ReuseZeroFrom41,
    /// conn_reuse_mode is set to 0: the kernel is named 4.1 to 5.8 (#102122).
    ReuseZeroBelow59,
    /// conn_reuse_mode is left: the kernel is named below 4.1 (#88541).
    ReuseKernelTooOld,
    /// conn_reuse_mode is left as it is, not set to 1: the kernel is named 5.9 or later (#102122).
    ReuseKernelFixed,
    /// expire_nodest_conn and expire_quiescent_template (#71834).
    Expire,
    /// route_localnet, up to 1.20.
    RouteLocalnet,
    /// The ARP sysctls, on request or in releases that always set them.
    StrictArp,
    /// conntrack's size, from the number of processors.
    ConntrackMax,
    /// conntrack's timeouts, from the configuration.
    ConntrackTimeout,
}

impl SysctlRule {
    /// The rule in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Always => "every release sets it",
            Self::ReuseUntouched => "this release does not touch it",
            Self::ReuseZero => "this release sets 0 on every kernel",
            Self::ReuseZeroFrom41 => "this release sets 0 on kernels from 4.1",
            Self::ReuseZeroBelow59 => "this release sets 0 on kernels from 4.1 and below 5.9",
            Self::ReuseKernelTooOld => "left alone: the kernel's name is below 4.1",
            Self::ReuseKernelFixed => "left as it is: the kernel's name is 5.9 or later",
            Self::Expire => "set since #71834",
            Self::RouteLocalnet => "set up to 1.20",
            Self::StrictArp => "strict ARP",
            Self::ConntrackMax => "maxPerCore times processors, but not below min",
            Self::ConntrackTimeout => "from the conntrack configuration",
        }
    }
}

/// One sysctl that kube-proxy decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysctlDecision {
    /// The full name, as `sysctl` prints it.
    pub key: &'static str,
    /// The value written; `None` if the sysctl is left as it is.
    pub value: Option<u32>,
    /// Why.
    pub rule: SysctlRule,
}

impl fmt::Display for SysctlDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{} = {value} ({})", self.key, self.rule.text()),
            None => write!(f, "{} ({})", self.key, self.rule.text()),
        }
    }
}

/// kube-proxy does not start: it cannot write conn_reuse_mode on a kernel that lacks it (kubernetes#82065).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    /// The kernel's release.
    pub kernel: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this kube-proxy does not start on kernel {}: it must write {REUSE_MODE}, which the kernel lacks; take \
             kube-proxy 1.19 or later, or kernel 4.1 or later",
            self.kernel
        )
    }
}

impl core::error::Error for StartError {}

const REUSE_MODE: &str = "net.ipv4.vs.conn_reuse_mode";

/// What kube-proxy does to the node's sysctls when it starts, in its order; `sysctls` is changed accordingly.
///
/// The kernel counts by its name: back-ported fixes are not seen, so 4.19.219 and 5.4.163 still get mode 0.
///
/// # Errors
/// If this release refuses to start on this kernel. What it wrote before stays written.
pub fn sysctls_at_start(
    proxy: ProxyBehaviours,
    kernel: &Kernel,
    config: &SysctlConfig,
    sysctls: &mut Sysctls,
) -> Result<Vec<SysctlDecision>, StartError> {
    let mut plan = Plan {
        done: Vec::new(),
        sysctls,
    };
    if !proxy.has(ProxyGate::NoRouteLocalnet) {
        plan.set(
            "net.ipv4.conf.all.route_localnet",
            1,
            SysctlRule::RouteLocalnet,
        );
    }
    plan.set("net.ipv4.vs.conntrack", 1, SysctlRule::Always);
    let rule = reuse_rule(proxy, kernel)?;
    match rule {
        SysctlRule::ReuseZero | SysctlRule::ReuseZeroFrom41 | SysctlRule::ReuseZeroBelow59 => {
            plan.set(REUSE_MODE, 0, rule);
        }
        _ => plan.done.push(SysctlDecision {
            key: REUSE_MODE,
            value: None,
            rule,
        }),
    }
    if proxy.has(ProxyGate::ExpireSysctls) {
        plan.set("net.ipv4.vs.expire_nodest_conn", 1, SysctlRule::Expire);
        plan.set(
            "net.ipv4.vs.expire_quiescent_template",
            1,
            SysctlRule::Expire,
        );
    }
    plan.set("net.ipv4.ip_forward", 1, SysctlRule::Always);
    // Releases before 1.13 are not known to set the ARP sysctls; #75295 says that 1.13.0 began to.
    let arp_always =
        proxy.has(ProxyGate::ReuseModeZero) && !proxy.has(ProxyGate::StrictArpOptional);
    if config.strict_arp || arp_always {
        plan.set("net.ipv4.conf.all.arp_ignore", 1, SysctlRule::StrictArp);
        plan.set("net.ipv4.conf.all.arp_announce", 2, SysctlRule::StrictArp);
    }
    if config.conntrack_max_per_core > 0 {
        let max = config.conntrack_max_per_core.saturating_mul(config.cores);
        plan.set(
            "net.netfilter.nf_conntrack_max",
            max.max(config.conntrack_min),
            SysctlRule::ConntrackMax,
        );
    }
    for (key, seconds) in [
        (
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            config.tcp_established,
        ),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
            config.tcp_close_wait,
        ),
    ] {
        if seconds > 0 {
            plan.set(key, seconds, SysctlRule::ConntrackTimeout);
        }
    }
    Ok(plan.done)
}

/// The decisions so far and the sysctls that they changed.
struct Plan<'a> {
    done: Vec<SysctlDecision>,
    sysctls: &'a mut Sysctls,
}

impl Plan<'_> {
    fn set(&mut self, key: &'static str, value: u32, rule: SysctlRule) {
        // Keys that the model does not read are reported all the same; the values are all legal.
        let _ = self.sysctls.set(key, &value.to_string());
        self.done.push(SysctlDecision {
            key,
            value: Some(value),
            rule,
        });
    }
}

/// What this release does about conn_reuse_mode on this kernel.
fn reuse_rule(proxy: ProxyBehaviours, kernel: &Kernel) -> Result<SysctlRule, StartError> {
    if !proxy.has(ProxyGate::ReuseModeZero) {
        return Ok(SysctlRule::ReuseUntouched);
    }
    if !proxy.has(ProxyGate::ReuseModeChecksKernel) {
        return if kernel.behaviours().has(Gate::ReuseMode) {
            Ok(SysctlRule::ReuseZero)
        } else {
            Err(StartError {
                kernel: kernel.release.clone(),
            })
        };
    }
    Ok(if kernel.version < Version(4, 1, 0) {
        SysctlRule::ReuseKernelTooOld
    } else if !proxy.has(ProxyGate::ReuseModeSkipsFixed) {
        SysctlRule::ReuseZeroFrom41
    } else if kernel.version < Version(5, 9, 0) {
        SysctlRule::ReuseZeroBelow59
    } else {
        SysctlRule::ReuseKernelFixed
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::version::ProxyVersion;

    fn start(
        proxy: &str,
        kernel: &str,
        mode: u8,
    ) -> Result<(Vec<SysctlDecision>, Sysctls), StartError> {
        let proxy: ProxyVersion = proxy.parse().unwrap();
        let kernel: Kernel = kernel.parse().unwrap();
        let mut sysctls = Sysctls::of(kernel.behaviours());
        sysctls.vs.conn_reuse_mode = mode;
        sysctls_at_start(
            proxy.behaviours(),
            &kernel,
            &SysctlConfig::default(),
            &mut sysctls,
        )
        .map(|done| (done, sysctls))
    }

    /// The table of conn_reuse_mode by kube-proxy and kernel: facts, kube-proxy 1.
    #[test]
    fn reuse_mode_by_release_and_kernel() {
        // Per row: mode after the start if it was 1 before; x: kube-proxy does not start.
        let kernels = [
            "3.10.0-1160.el7",
            "3.18.1",
            "4.0.5",
            "4.1.6",
            "4.19.219",
            "5.4.163",
            "5.8.1",
            "5.9.1",
            "5.12.1",
            "6.12.117",
        ];
        let rows = [
            ("1.11.4", "1111111111"),
            ("1.12.4", "1111111111"),
            ("1.12.5", "0xx0000000"),
            ("1.13.0", "0xx0000000"),
            ("1.14.5", "0xx0000000"),
            ("1.18.6", "0xx0000000"),
            ("1.19.12", "1110000000"),
            ("1.20.0", "1110000000"),
            ("1.21.0", "1110000000"),
            ("1.21.9", "1110000111"),
            ("1.22.0", "1110000111"),
            ("1.28.3", "1110000111"),
            ("1.35.0", "1110000111"),
        ];
        for (proxy, want) in rows {
            let got: String = kernels
                .iter()
                .map(|kernel| match start(proxy, kernel, 1) {
                    Ok((_, sysctls)) => char::from(b'0' + sysctls.vs.conn_reuse_mode),
                    Err(error) => {
                        assert!(error.to_string().contains(kernel));
                        'x'
                    }
                })
                .collect();
            assert_eq!(got, want, "{proxy}");
        }
    }

    /// A 0 that an older kube-proxy or sysctl.conf left stays on fixed kernels: facts, kube-proxy 1 "left as-is".
    #[test]
    fn a_zero_left_behind_stays_on_a_fixed_kernel() {
        let (done, sysctls) = start("1.28.3", "6.1.90", 0).unwrap();
        assert_eq!(sysctls.vs.conn_reuse_mode, 0);
        let decision = done.iter().find(|d| d.key == REUSE_MODE).unwrap();
        assert_eq!(
            (decision.value, decision.rule),
            (None, SysctlRule::ReuseKernelFixed)
        );
    }

    #[test]
    fn expire_sysctls_conntrack_and_timeouts() {
        let (_, old) = start("1.13.1", "4.15.0", 1).unwrap();
        assert!(
            old.vs.conntrack && !old.vs.expire_nodest_conn && !old.vs.expire_quiescent_template
        );
        let (done, new) = start("1.14.0", "4.15.0", 1).unwrap();
        assert!(new.vs.conntrack && new.vs.expire_nodest_conn && new.vs.expire_quiescent_template);
        assert_eq!(
            (new.ct.established, new.ct.close_wait, new.ct.time_wait),
            (86_400, 3_600, 120)
        );
        assert_eq!(new.ct.max, 131_072);
        assert!(
            done.iter()
                .any(|d| d.to_string() == "net.ipv4.conf.all.route_localnet = 1 (set up to 1.20)")
        );
        let (done, _) = start("1.21.0", "4.15.0", 1).unwrap();
        assert!(
            done.iter()
                .all(|d| d.rule != SysctlRule::RouteLocalnet && d.rule != SysctlRule::StrictArp)
        );
    }

    #[test]
    fn conntrack_grows_with_the_processors_and_zero_leaves_it() {
        let kernel: Kernel = "6.1.90".parse().unwrap();
        let proxy = "1.30.3".parse::<ProxyVersion>().unwrap().behaviours();
        let mut sysctls = Sysctls::of(kernel.behaviours());
        let config = SysctlConfig {
            cores: 32,
            ..SysctlConfig::default()
        };
        sysctls_at_start(proxy, &kernel, &config, &mut sysctls).unwrap();
        assert_eq!(sysctls.ct.max, 1_048_576);
        let leave = SysctlConfig {
            conntrack_max_per_core: 0,
            tcp_established: 0,
            tcp_close_wait: 0,
            ..SysctlConfig::default()
        };
        let mut sysctls = Sysctls::of(kernel.behaviours());
        sysctls_at_start(proxy, &kernel, &leave, &mut sysctls).unwrap();
        assert_eq!(sysctls.ct, Sysctls::of(kernel.behaviours()).ct);
    }
}
