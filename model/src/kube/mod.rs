//! kube-proxy in IPVS mode, the Deployment rollout and the life of a pod, as pure state machines.
pub mod endpoints;
pub mod proxy;
pub mod runner;
pub mod server;
pub mod sysctls;
pub mod version;
pub use version::ProxyVersion;
