//! kube-proxy in IPVS mode, the Deployment rollout and the life of a pod, as pure state machines.
//!
//! A rollout reaches the kernel's tables in three steps, each with delays of its own: the Deployment, its pods and
//! their kubelets change what is alive ([`rollout`], [`pod`]); the EndpointSlice tells which of them to use
//! ([`endpoints`]); kube-proxy on every node turns that into real servers ([`proxy`], [`server`]) by rules that
//! changed from release to release ([`version`]). Nothing here looks at a packet.
//!
//! All delays are values that the caller hands in; all choices that Kubernetes leaves to chance come from the
//! caller's generator.

pub mod addresses;
pub mod deployment;
pub mod endpoints;
pub mod masquerade;
pub mod pod;
pub mod proxy;
pub mod rollout;
pub mod runner;
pub mod scripted;
pub mod server;
pub mod stale_udp;
pub mod sysctls;
pub mod version;

pub use addresses::{AddressPool, Reuse};
pub use deployment::{Deployment, IntOrPercent, UpdateStrategy};
pub use endpoints::{EndpointRule, EndpointState, TrafficPolicy, as_published, usable};
pub use masquerade::{AddressKind, Origin, draws_ports, masquerades};
pub use pod::{Answering, OnTerm, PodId, PodPhase, PodSpec, PreStop, Probe};
pub use proxy::{
    Proxy, ProxyAction, ProxyConfig, ProxyIo, ProxyLatency, ProxyLog, RealServer, RealServers,
    ServiceRef,
};
pub use rollout::{Latencies, LatencyKind, Rollout, RolloutEvent};
pub use scripted::{Script, Scripted};
pub use server::{ProxyRule, ServerEvent, ServerState, ServiceProto, WaitFor};
pub use stale_udp::StaleUdp;
pub use sysctls::{StartError, SysctlConfig, SysctlDecision, SysctlRule, sysctls_at_start};
pub use version::{ProxyBehaviours, ProxyGate, ProxyVersion};
