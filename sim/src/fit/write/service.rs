//! The service: its address, whom its pods answer to, scheduler and affinity.

use ipvs_model::time::Span;

use super::{Draft, Found, many};
use crate::scenario::Scheduler;
use crate::scenario::annotate::Origin;

impl Draft<'_> {
    pub(super) fn service(&mut self) {
        let Found {
            scan,
            service,
            source_nat,
            ..
        } = self.found;
        self.scenario.service.address = service;
        let called = scan.called.get(&service).copied().unwrap_or(0);
        let others = scan.called.len().saturating_sub(1);
        let text = match others {
            0 => format!("the only service with entries or SYNs ({called})"),
            _ => format!(
                "chosen of {} services with entries or SYNs, with {called} of them; --service takes another",
                others + 1
            ),
        };
        self.note("service.address", Origin::Measured, text);
        if let Some(port) = scan.target_port(service) {
            self.scenario.service.target_port = port;
            self.note(
                "service.target_port",
                Origin::Measured,
                "port of the real servers",
            );
        }
        match source_nat {
            Some((kind, entries)) => {
                self.scenario.kube_proxy.masquerade = kind;
                self.note(
                    "kube_proxy.masquerade",
                    Origin::Measured,
                    format!(
                        "whom the pods answer to, in {} of conntrack",
                        many(entries, "row")
                    ),
                );
            }
            None => self.note(
                "kube_proxy.masquerade",
                Origin::Assumed,
                "no conntrack entry of the service was recorded",
            ),
        }
        let Some((listed, rules)) = scan.rules_of(service) else {
            self.note(
                "kube_proxy.scheduler",
                Origin::Assumed,
                "no rules were recorded",
            );
            self.note(
                "service.session_affinity",
                Origin::Assumed,
                "no rules were recorded",
            );
            return;
        };
        let whose = match listed == service {
            true => "the service's rule".to_owned(),
            false => format!(
                "the rule of {listed}, which has the same real servers; the service's own was not recorded"
            ),
        };
        let persistent = rules.persistent_s;
        match scheduler(&rules.scheduler) {
            Some(known) => {
                self.scenario.kube_proxy.scheduler = known;
                self.note("kube_proxy.scheduler", Origin::Measured, whose.clone());
            }
            None => {
                let text = format!(
                    "{whose} says `{}`, which is not modelled: rr is taken",
                    rules.scheduler
                );
                self.remarks.push(text.clone());
                self.note("kube_proxy.scheduler", Origin::Assumed, text);
            }
        }
        self.scenario.service.session_affinity =
            persistent.map(|seconds| Span::from_secs(seconds.into()));
        self.note("service.session_affinity", Origin::Measured, whose);
    }
}

fn scheduler(name: &str) -> Option<Scheduler> {
    Some(match name {
        "rr" => Scheduler::Rr,
        "wrr" => Scheduler::Wrr,
        "lc" => Scheduler::Lc,
        "wlc" => Scheduler::Wlc,
        "sed" => Scheduler::Sed,
        "nq" => Scheduler::Nq,
        "sh" => Scheduler::Sh,
        "mh" => Scheduler::Mh,
        _ => return None,
    })
}
