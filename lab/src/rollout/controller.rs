//! Plays kube-proxy in IPVS mode: adds new pods, drains old ones, deletes them when no entry is left.

use anyhow::{Context, Result};

use super::network::{Network, pod_address};
use super::spec::RolloutSpec;
use crate::generator::SERVICE;
use crate::guest::{line, set_sysctl};

/// kube-proxy.
#[derive(Debug)]
pub struct Controller {
    old: usize,
    new: usize,
    /// Pods on the list of graceful termination.
    draining: Vec<usize>,
    /// What it did, with the time.
    pub notes: Vec<(f64, String)>,
}

impl Controller {
    /// Sets the sysctls and makes the service with the old pods. Runs in the node's namespace.
    pub fn set_up(spec: &RolloutSpec, _node: &Network) -> Result<Self> {
        for (key, value) in [
            ("conntrack", u8::from(spec.conntrack)),
            ("conn_reuse_mode", spec.conn_reuse_mode),
            ("expire_nodest_conn", spec.expire_nodest_conn.into()),
            (
                "expire_quiescent_template",
                spec.expire_quiescent_template.into(),
            ),
        ] {
            set_sysctl(&format!("net.ipv4.vs.{key}"), value)?;
        }
        let persistent = spec
            .persistence
            .map(|s| format!(" -p {s}"))
            .unwrap_or_default();
        line(
            "ipvsadm",
            &format!("-A -t {SERVICE} -s {}{persistent}", spec.scheduler),
        )?;
        let this = Self {
            old: spec.old_pods,
            new: spec.new_pods,
            draining: vec![],
            notes: vec![],
        };
        for pod in 0..spec.old_pods {
            line(
                "ipvsadm",
                &format!("-a -t {SERVICE} -r {} -m -w 1", pod_address(pod)),
            )?;
        }
        Ok(this)
    }

    /// Remembers an event for the report.
    pub fn note(&mut self, at: f64, what: &str) {
        self.notes.push((at, what.to_owned()));
    }

    fn ipvsadm(&mut self, at: f64, arguments: &str) -> Result<()> {
        self.note(at, &format!("ipvsadm {arguments}"));
        line("ipvsadm", arguments)
    }

    /// The endpoints change: new pods are added, then old ones deleted, gracefully.
    pub fn roll_out(&mut self, at: f64) -> Result<()> {
        for pod in self.old..self.old + self.new {
            self.ipvsadm(
                at,
                &format!("-a -t {SERVICE} -r {} -m -w 1", pod_address(pod)),
            )?;
        }
        for pod in 0..self.old {
            if entries(pod)? == 0 {
                self.ipvsadm(at, &format!("-d -t {SERVICE} -r {}", pod_address(pod)))?;
            } else {
                self.ipvsadm(
                    at,
                    &format!("-e -t {SERVICE} -r {} -m -w 0", pod_address(pod)),
                )?;
                self.draining.push(pod);
            }
        }
        Ok(())
    }

    /// The periodic check: drained pods without entries are deleted.
    pub fn check(&mut self, at: f64) -> Result<()> {
        for pod in std::mem::take(&mut self.draining) {
            let left = entries(pod)?;
            if left == 0 {
                self.ipvsadm(at, &format!("-d -t {SERVICE} -r {}", pod_address(pod)))?;
            } else {
                self.note(at, &format!("{} has {left} entries", pod_address(pod)));
                self.draining.push(pod);
            }
        }
        Ok(())
    }
}

/// Active and inactive entries of a pod, as the node counts them.
fn entries(pod: usize) -> Result<u32> {
    let text = std::fs::read_to_string("/proc/net/ip_vs").context("cannot read the rules")?;
    let address = pod_address(pod);
    let hex = format!("{:08X}:{:04X}", u32::from(*address.ip()), address.port());
    let row = text.lines().find(|row| row.contains(&hex));
    let row = row.with_context(|| format!("{address} is no destination"))?;
    let counts = row.split_whitespace().skip(4);
    counts
        .map(|n| n.parse::<u32>().context("no count in the rules"))
        .sum()
}
