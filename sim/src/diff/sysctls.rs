//! Sysctls that change while the node is recorded, and the count of conntrack entries, which a recording has among them.

use super::replay::{CT, Replay};
use super::report::Class;
use crate::capture::Event;
use ipvs_model::conntrack::Collected;
use ipvs_model::segment::{Endpoint, Proto, Tuple};
use std::net::Ipv4Addr;

/// The sysctl that counts conntrack entries: a reading and no setting.
const COUNT: &str = "net.netfilter.nf_conntrack_count";

impl Replay<'_> {
    /// Takes over what a block of sysctls says.
    pub(super) fn take_sysctls(&mut self, event: &Event, rows: &[(String, String)]) {
        self.node.advance(self.now());
        let before = self.sysctls;
        for (key, value) in rows {
            if key == COUNT {
                if let Ok(count) = value.parse() {
                    self.take_count(event, count);
                }
            } else if self.sysctls.set(key, value).is_err() {
                self.report
                    .not_checked("sysctl with a value that the kernel would refuse, left aside");
            }
        }
        if self.sysctls == before {
            return;
        }
        self.node.set_sysctls(self.sysctls);
        if !self.setup.exact {
            self.report
                .not_checked("change of a sysctl, taken to have happened when it was seen");
        }
    }

    /// Makes the collector's work what the node's count says. Only a recording of the lab has the count of the very
    /// moment before a packet, and nobody else's entries in it.
    fn take_count(&mut self, event: &Event, count: u32) {
        if !self.setup.exact || !self.setup.tracking || !self.listed[CT] {
            return;
        }
        let now = self.jiffies();
        self.report.entries += 1;
        self.counted = true;
        let before = (self.node.ct.count() > count).then(|| Box::new((self.node.clone(), count)));
        let collected = self.node.ct.collect_to(now, count, |_| 0);
        self.partly = before.filter(|_| collected == Ok(Collected::Part));
        if let Err(here) = collected {
            let nobody = Endpoint::new(Ipv4Addr::UNSPECIFIED, 0);
            let tuple = Tuple {
                proto: Proto::Tcp,
                src: nobody,
                dst: nobody,
            };
            let alive = self.node.ct.iter().filter(|(_, e)| !e.is_expired(now));
            let alive = alive.count();
            self.diverged(
                event,
                Class::CtCount,
                tuple,
                "conntrack table".to_owned(),
                format!("{here} entries, {alive} of them not expired"),
                format!("{count} entries"),
                String::new(),
            );
            self.counted = false;
        }
    }
}
