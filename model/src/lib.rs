//! Pure state machines of the kernel tables that decide where a connection goes.
//!
//! This crate has no clock, no randomness of its own, no files and no threads: time and random generators are
//! arguments. It is not a network stack: it keeps exactly the state that IPVS, conntrack, the client's port
//! choice and kube-proxy base their decisions on, and every decision names the rule that made it.
#![forbid(unsafe_code)]

pub mod balancer;
pub mod conntrack;
pub mod dataplane;
pub mod icmp;
pub mod index;
pub mod ipvs;
pub mod kernel;
pub mod kube;
pub mod node;
pub mod segment;
pub mod sysctl;
pub mod tcp;
pub mod time;
pub mod timers;
pub mod udp;
