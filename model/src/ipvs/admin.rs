//! What `ipvsadm` and kube-proxy do: services, destinations, timeouts.

use super::Ipvs;
use super::sched::{Change, Flags, Kind, Scheduler};
use super::service::{AdminError, DestId, Persistence, Service, ServiceKey};
use super::state::State;
use crate::kernel::Gate;
use crate::segment::{Endpoint, Proto};
use crate::time::{Clock, Instant};

/// `ipvsadm --set tcp tcpfin udp`, in seconds. Only ESTABLISHED and FIN_WAIT can be changed (`ip_vs_set_timeout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// ESTABLISHED (900).
    pub tcp_s: u32,
    /// FIN_WAIT (120).
    pub tcp_fin_s: u32,
    /// UDP (300).
    pub udp_s: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_s: State::Es.timeout_s(),
            tcp_fin_s: State::Fw.timeout_s(),
            udp_s: 300,
        }
    }
}

impl Timeouts {
    pub(super) const fn ticks(&self, clock: &Clock, state: State) -> u32 {
        let secs = match state {
            State::Es => self.tcp_s,
            State::Fw => self.tcp_fin_s,
            other => other.timeout_s(),
        };
        clock.ticks(secs as u64) as u32
    }

    pub(super) const fn udp_ticks(&self, clock: &Clock) -> u32 {
        clock.ticks(self.udp_s as u64) as u32
    }
}

/// A line of `ipvsadm -Ln` for a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestStats {
    /// Address.
    pub addr: Endpoint,
    /// Weight.
    pub weight: u32,
    /// ActiveConn.
    pub active: u32,
    /// InActConn.
    pub inactive: u32,
}

impl Ipvs {
    /// `ipvsadm -A`.
    ///
    /// # Errors
    /// If the service exists.
    pub fn add_service(
        &mut self,
        key: ServiceKey,
        kind: Kind,
        flags: Flags,
        persistence: Option<Persistence>,
    ) -> Result<(), AdminError> {
        match self
            .services
            .binary_search_by_key(&key, |service| service.key)
        {
            Ok(_) => Err(AdminError::Exists),
            Err(at) => {
                let scheduler = Scheduler::new(kind, flags);
                self.hooked = true;
                self.services.insert(
                    at,
                    Service {
                        key,
                        persistence,
                        scheduler,
                        dests: Vec::new(),
                    },
                );
                Ok(())
            }
        }
    }

    /// `ipvsadm -E`. The same scheduler keeps its state, another one starts afresh.
    ///
    /// # Errors
    /// If there is no such service.
    pub fn edit_service(
        &mut self,
        key: ServiceKey,
        kind: Kind,
        flags: Flags,
        persistence: Option<Persistence>,
    ) -> Result<(), AdminError> {
        let at = self.service_at(key).ok_or(AdminError::NotFound)?;
        let service = &mut self.services[at];
        service.persistence = persistence;
        service.scheduler.flags = flags;
        if service.scheduler.kind != kind {
            service.scheduler = Scheduler::new(kind, flags);
            service
                .scheduler
                .changed(Change::Added, &service.dests, &self.dests);
        }
        Ok(())
    }

    /// `ipvsadm -D`: its destinations go to the trash, its entries stay until they expire. With the last service IPVS
    /// itself steps aside (`ip_vs_unregister_hooks`, 5.9).
    ///
    /// # Errors
    /// If there is no such service.
    pub fn delete_service(&mut self, now: Instant, key: ServiceKey) -> Result<(), AdminError> {
        let at = self.service_at(key).ok_or(AdminError::NotFound)?;
        let service = self.services.remove(at);
        for dest in service.dests {
            self.discard(now, dest);
        }
        self.hooked = !self.services.is_empty() || !self.kernel.has(Gate::HooksWithServices);
        Ok(())
    }

    fn find(&self, key: ServiceKey, addr: Endpoint) -> Result<(usize, usize), AdminError> {
        let at = self.service_at(key).ok_or(AdminError::NotFound)?;
        let position = self.services[at]
            .dests
            .iter()
            .position(|id| self.dests.get(*id).addr == addr)
            .ok_or(AdminError::NotFound)?;
        Ok((at, position))
    }

    /// `ipvsadm -a`: the new destination stands at the head of the list. If it is still in the trash it comes
    /// back with its entries and counters.
    ///
    /// # Errors
    /// If there is no such service, or it has the real server already.
    pub fn add_dest(
        &mut self,
        key: ServiceKey,
        addr: Endpoint,
        weight: u32,
    ) -> Result<DestId, AdminError> {
        let at = self.service_at(key).ok_or(AdminError::NotFound)?;
        if self.find(key, addr).is_ok() {
            return Err(AdminError::Exists);
        }
        let id = self.dests.create(key, addr, weight);
        if self.dests.trash().is_empty() {
            // The running timer finds nothing and is not started again.
            self.trash_timer = None;
        }
        let service = &mut self.services[at];
        service.dests.insert(0, id);
        service
            .scheduler
            .changed(Change::Added, &service.dests, &self.dests);
        Ok(id)
    }

    /// `ipvsadm -e`: changes the weight in place.
    ///
    /// # Errors
    /// If there is no such service or real server.
    pub fn edit_dest(
        &mut self,
        key: ServiceKey,
        addr: Endpoint,
        weight: u32,
    ) -> Result<(), AdminError> {
        let (at, position) = self.find(key, addr)?;
        let service = &mut self.services[at];
        self.dests.set_weight(service.dests[position], weight);
        service
            .scheduler
            .changed(Change::Edited, &service.dests, &self.dests);
        Ok(())
    }

    /// `ipvsadm -d`: the destination leaves the list; its entries keep it in the trash. With
    /// expire_nodest_conn=1 kernels from 5.9 flush those entries after a jiffy.
    ///
    /// # Errors
    /// If there is no such service or real server.
    pub fn delete_dest(
        &mut self,
        now: Instant,
        key: ServiceKey,
        addr: Endpoint,
    ) -> Result<(), AdminError> {
        let (at, position) = self.find(key, addr)?;
        let service = &mut self.services[at];
        let dest = service.dests.remove(position);
        service.scheduler.changed(
            Change::Removed { dest, at: position },
            &service.dests,
            &self.dests,
        );
        self.discard(now, dest);
        Ok(())
    }

    pub(super) fn discard(&mut self, now: Instant, dest: DestId) {
        let jiffies = self.clock.jiffies(now);
        if self.dests.delete(dest) {
            self.trash_timer = Some(self.trash_tick(jiffies));
        }
        if self.sysctls.expire_nodest_conn && self.kernel.has(Gate::DeletedDestReschedules) {
            // Delayed work of one jiffy; work that is queued already is not moved.
            let fires = self.clock.fires(jiffies + 1, 1);
            self.flush_at = Some(self.flush_at.map_or(fires, |queued| queued.min(fires)));
        }
    }

    /// `ipvsadm --set`: zero leaves a value as it is. Entries take the new value with their next packet.
    pub const fn set_timeouts(&mut self, tcp_s: u32, tcp_fin_s: u32, udp_s: u32) {
        if tcp_s > 0 {
            self.timeouts.tcp_s = tcp_s;
        }
        if tcp_fin_s > 0 {
            self.timeouts.tcp_fin_s = tcp_fin_s;
        }
        if udp_s > 0 {
            self.timeouts.udp_s = udp_s;
        }
    }

    /// The real servers of a service in list order, as `ipvsadm -Ln` counts them.
    pub fn real_servers(&self, key: ServiceKey) -> impl Iterator<Item = DestStats> + '_ {
        let dests = self.service(key).map_or(&[][..], |service| &service.dests);
        dests.iter().map(|id| {
            let dest = self.dests.get(*id);
            DestStats {
                addr: dest.addr,
                weight: dest.weight,
                active: dest.active,
                inactive: dest.inactive,
            }
        })
    }
}

impl ServiceKey {
    /// A TCP service.
    pub const fn tcp(addr: Endpoint) -> Self {
        Self {
            proto: Proto::Tcp,
            addr,
        }
    }
}
