//! What balances instead of IPVS, for comparison: the DNAT rules of kube-proxy's iptables and nftables modes
//! ([`rules`]), and Cilium's per-packet load balancer ([`cilium`]).
//!
//! What chooses at connect() needs nothing here: Cilium's socket load balancer and a client that resolves a headless
//! service both open a plain connection to a pod, so no table of the node can bind a reused port to a pod that is gone.

pub mod cilium;
mod cilium_version;
mod rules;

pub use cilium::{BackendState, Cilium, CiliumConfig, CiliumRule, CiliumVerdict};
pub use cilium_version::{CILIUM_GATES, CiliumBehaviours, CiliumGate, CiliumGateRow};
pub use rules::{Affinity, IptablesRules, Pick};
