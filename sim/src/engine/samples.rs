//! Who looks at the tables while a run goes on: samples and listings.

use ipvs_model::conntrack::ListingStyle;
use ipvs_model::ipvs::{list_connections_ipvsadm, list_services};
use ipvs_model::node::Balancer;
use ipvs_model::time::Instant;

use super::trace::{Gauges, ServerSample, Tables};
use super::world::{Event, World};
use crate::scenario::Location;

impl World<'_> {
    /// Sizes of the tables and counts of the real servers, for those who watch a run.
    pub(super) fn sample(&mut self) {
        self.pay_all();
        self.node.advance(self.now);
        let mut samples = Vec::new();
        match self.node.config().balancer {
            Balancer::Ipvs => {
                // A deleted real server whose entries live on is shown as long as they do.
                let listed = self.node.ipvs.real_servers(self.key).map(|server| {
                    (
                        server.addr,
                        Some(server.weight),
                        server.active,
                        server.inactive,
                    )
                });
                let trashed = self.node.ipvs.dests().trash().iter().map(|id| {
                    let dest = self.node.ipvs.dests().get(*id);
                    (dest.addr, None, dest.active, dest.inactive)
                });
                samples.extend(listed.chain(trashed.filter(|(_, _, a, i)| a + i > 0)));
            }
            _ => samples.extend(self.offered().into_iter().map(|addr| (addr, Some(1), 0, 0))),
        }
        samples.sort();
        for (server, weight, active, inactive) in samples {
            let at = self.now;
            self.observer.server(ServerSample {
                at,
                server,
                weight,
                active,
                inactive,
                syns: 0,
            });
        }
        self.release_all_ports();
        let (ports_held, ports_of) = self.hosts.ports_held_most();
        self.observer.gauges(Gauges {
            at: self.now,
            ipvs_entries: self.node.ipvs.table().len(),
            conntrack_entries: self.node.ct.count(),
            ports_held,
            ports_of,
        });
        if self.observer.options().pins && matches!(self.node.config().balancer, Balancer::Ipvs) {
            self.look_at_pins();
        }
        let end = Instant::ZERO + self.scenario.duration;
        let after = self.observer.options().sample_after;
        if let Some(every) = self.observer.options().sample_every
            && self.now < end
            && self.now + every <= end + after
        {
            self.control_at((self.now + every).min(end), Event::Sample);
        }
    }

    /// What ports are pinned to.
    fn look_at_pins(&mut self) {
        let (virt, client) = (self.scenario.service.address, self.scenario.client.first());
        let Some(client) = client else { return };
        let ip = match client.location {
            Location::Host => virt.ip,
            Location::Remote | Location::Pod => client.address,
        };
        let pins = super::pins::look(&self.node.ipvs, self.now, ip, virt);
        self.observer.pins(pins);
    }

    /// The tables as the tools on a node show them.
    pub(super) fn list(&mut self) {
        self.pay_all();
        self.node.advance(self.now);
        let tick = self.node.ipvs.clock().jiffies(self.now);
        let ipvs = matches!(self.node.config().balancer, Balancer::Ipvs);
        let mut conntrack = self
            .node
            .ct
            .listing(tick, ListingStyle::default())
            .join("\n");
        conntrack.push('\n');
        self.observer.tables(Tables {
            at: self.now,
            services: if ipvs {
                list_services(&self.node.ipvs)
            } else {
                String::new()
            },
            connections: if ipvs {
                list_connections_ipvsadm(&self.node.ipvs, tick)
            } else {
                String::new()
            },
            conntrack,
        });
    }
}
