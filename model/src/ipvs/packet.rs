//! A packet at IPVS: from the client (`ip_vs_in_hook`) and from a real server (`ip_vs_out_hook`).

use super::Ipvs;
use super::reuse::{self, CtSeen, Inputs, Reuse, Trigger};
use super::service::{DestId, ServiceKey};
use super::state::{Class, Direction, transition};
use super::table::{self, EntryId};
use crate::index::NONE;
use crate::kernel::Gate;
use crate::segment::{Endpoint, Flags, Proto, Segment};
use crate::time::Moment;

/// The rule that decided on a packet at IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The packet belongs to an entry and opens nothing.
    EntryFound,
    /// A SYN found an entry whose real server has a weight above 0; the entry keeps it.
    SynKept,
    /// A SYN found an entry whose real server is quiesced (weight 0); the entry keeps it: k8s #81775.
    SynKeptAtWeightZero,
    /// A datagram found an entry whose real server is quiesced (weight 0); the entry keeps it: k8s #76664.
    DatagramKeptAtWeightZero,
    /// A SYN found no entry; the scheduler chose.
    Scheduled,
    /// A SYN found no entry; the persistence template chose, whatever the weight.
    ScheduledByTemplate,
    /// A segment without SYN was scheduled because sloppy_tcp is set.
    ScheduledSloppy,
    /// The entry's real server has weight 0 and expire_nodest_conn is set: scheduled anew.
    RescheduledWeightZero,
    /// The entry's state expects a new connection (conn_reuse_mode): scheduled anew.
    RescheduledReuse,
    /// The entry's real server was deleted (expire_nodest_conn): scheduled anew, or not the service's any more.
    RescheduledDeleted,
    /// As [`Rule::RescheduledWeightZero`], but conntrack has settled on the old one: this SYN is dropped and
    /// its retransmission, a second later, is scheduled anew.
    DroppedWeightZero,
    /// As [`Rule::RescheduledReuse`], but conntrack has settled on the old one: this SYN is dropped.
    DroppedReuse,
    /// The entry's real server was deleted: dropped, and the entry expires (expire_nodest_conn=1).
    DroppedDeleted,
    /// The entry's real server was deleted: dropped, and the entry stays (expire_nodest_conn=0).
    BlackholedDeleted,
    /// The scheduler has no real server to offer: refused by ICMP port unreachable.
    NoDestination,
    /// No service at this address and port.
    NoService,
    /// No entry, and the segment cannot open a connection: left to the node's own TCP, which answers RST.
    NotSchedulable,
    /// A real server's packet without an entry: forwarded untouched.
    NoEntryOutward,
    /// A real server's packet of an entry: the source becomes the virtual address.
    Translated,
}

impl Rule {
    /// Whether the scheduler was asked.
    pub const fn schedules(self) -> bool {
        matches!(
            self,
            Self::Scheduled
                | Self::ScheduledSloppy
                | Self::RescheduledWeightZero
                | Self::RescheduledReuse
                | Self::RescheduledDeleted
                | Self::NoDestination
        )
    }

    /// One sentence on what the rule does.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::EntryFound => "the packet follows its entry",
            Self::SynKept => {
                "the SYN found an entry of its tuple and went to the entry's real server"
            }
            Self::SynKeptAtWeightZero => {
                "the SYN found an entry of its tuple and went to the entry's real server, although its weight is 0"
            }
            Self::DatagramKeptAtWeightZero => {
                "the datagram follows its entry to a real server at weight 0, and renews it"
            }
            Self::Scheduled => "no entry: the scheduler chose a real server",
            Self::ScheduledByTemplate => {
                "no entry: the client's persistence template chose the real server"
            }
            Self::ScheduledSloppy => "no entry and no SYN, but sloppy_tcp=1: the scheduler chose",
            Self::RescheduledWeightZero => {
                "the entry's real server has weight 0 (expire_nodest_conn=1): the entry expires, the scheduler chose anew"
            }
            Self::RescheduledReuse => {
                "the entry was closed (conn_reuse_mode): it expires, the scheduler chose anew"
            }
            Self::RescheduledDeleted => {
                "the entry's real server was deleted (expire_nodest_conn=1): the entry expires"
            }
            Self::DroppedWeightZero => {
                "the entry's real server has weight 0, but conntrack still expects it: the SYN is dropped and its retransmission is scheduled anew"
            }
            Self::DroppedReuse => {
                "the entry was closed, but conntrack still expects its real server: the SYN is dropped and its retransmission is scheduled anew"
            }
            Self::DroppedDeleted => {
                "the entry's real server was deleted: the packet is dropped and the entry expires"
            }
            Self::BlackholedDeleted => {
                "the entry's real server was deleted and expire_nodest_conn=0: the packet is dropped, the entry stays"
            }
            Self::NoDestination => "no real server is available: ICMP port unreachable",
            Self::NoService => "no virtual service at this address and port",
            Self::NotSchedulable => {
                "no entry, and only a SYN can make one: the node itself answers RST"
            }
            Self::NoEntryOutward => "no entry for the real server's packet: forwarded untouched",
            Self::Translated => "the real server's packet follows its entry",
        }
    }
}

/// What IPVS makes of a packet from the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inward {
    /// Not for IPVS: the packet goes on to the node's own stack, or is forwarded.
    Pass(Rule),
    /// Dropped.
    Drop(Rule),
    /// Dropped with ICMP port unreachable (`ip_vs_leave`).
    Refuse(Rule),
    /// To a real server.
    Forward {
        /// The deciding rule.
        rule: Rule,
        /// The entry.
        entry: EntryId,
        /// The real server's address.
        to: Endpoint,
        /// The packet keeps its conntrack; otherwise it is untracked from here on.
        nfct: bool,
    },
}

/// What IPVS makes of a packet from the real servers' side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outward {
    /// No entry.
    Pass,
    /// The source becomes `virt`.
    Translate {
        /// The entry.
        entry: EntryId,
        /// The virtual address.
        virt: Endpoint,
        /// The packet keeps its conntrack.
        nfct: bool,
    },
}

/// A new connection's real server, or why there is none.
enum Choice {
    Dest {
        dest: DestId,
        control: u32,
        rule: Rule,
    },
    None,
}

impl Ipvs {
    /// A packet on its way in. `ct`: what conntrack attached to it. Call [`Ipvs::advance`] first.
    pub fn packet_in(&mut self, now: Moment, seg: &Segment, ct: CtSeen) -> Inward {
        if !self.hooked {
            return Inward::Pass(Rule::NoService);
        }
        let syn = seg.tuple.proto == Proto::Tcp && seg.flags.has(Flags::SYN);
        let rescheduled = match self.table.find_in(&seg.tuple) {
            None => None,
            Some(id) => match self.decide(id, syn, ct) {
                Reuse::Keep => {
                    let weight = self.dests.get(self.table.get(id).dest).weight;
                    let rule = match (syn, weight) {
                        (false, 0) if seg.tuple.proto == Proto::Udp => {
                            Rule::DatagramKeptAtWeightZero
                        }
                        (false, _) => Rule::EntryFound,
                        (true, 0) => Rule::SynKeptAtWeightZero,
                        (true, _) => Rule::SynKept,
                    };
                    return self.forward(now, id, seg, rule);
                }
                Reuse::Blackhole => return Inward::Drop(Rule::BlackholedDeleted),
                Reuse::Drop { trigger } => {
                    self.expire_now(now, id, trigger);
                    return Inward::Drop(match trigger {
                        Trigger::WeightZero => Rule::DroppedWeightZero,
                        Trigger::State => Rule::DroppedReuse,
                        Trigger::Deleted => Rule::DroppedDeleted,
                    });
                }
                Reuse::Reschedule {
                    release_ct,
                    trigger,
                } => {
                    if release_ct {
                        self.table.get_mut(id).flags &= !table::NFCT;
                    }
                    self.expire_now(now, id, trigger);
                    Some(match trigger {
                        Trigger::WeightZero => Rule::RescheduledWeightZero,
                        Trigger::State => Rule::RescheduledReuse,
                        Trigger::Deleted => Rule::RescheduledDeleted,
                    })
                }
            },
        };
        self.schedule(now, seg, syn, rescheduled)
    }

    #[inline]
    fn decide(&self, id: EntryId, syn: bool, ct: CtSeen) -> Reuse {
        let entry = self.table.get(id);
        let dest = self.dests.get(entry.dest);
        if !syn && dest.available {
            return Reuse::Keep;
        }
        reuse::decide(
            self.kernel,
            syn,
            &Inputs {
                mode: self.sysctls.conn_reuse_mode,
                expire_nodest: self.sysctls.expire_nodest_conn,
                weight: dest.weight,
                available: dest.available,
                state: entry.state,
                no_output: false,
                controlled: entry.is_controlled(),
                controls: entry.controls() > 0,
                nfct: entry.keeps_conntrack(),
                ct,
            },
        )
    }

    fn expire_now(&mut self, now: Moment, id: EntryId, trigger: Trigger) {
        if self.table.get(id).controls() == 0 || trigger == Trigger::Deleted {
            self.table.expire_now(now, id);
        }
    }

    /// The part of `tcp_conn_schedule` and `udp_conn_schedule` that comes before the scheduler.
    fn schedule(
        &mut self,
        now: Moment,
        seg: &Segment,
        syn: bool,
        rescheduled: Option<Rule>,
    ) -> Inward {
        let tuple = &seg.tuple;
        let sloppy = self.sysctls.sloppy_tcp && self.kernel.has(Gate::AckEstablishes);
        if tuple.proto == Proto::Tcp && (seg.flags.has(Flags::RST) || !(syn || sloppy)) {
            return Inward::Pass(rescheduled.unwrap_or(Rule::NotSchedulable));
        }
        let key = ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
        let Some(at) = self.service_at(key) else {
            return Inward::Pass(Rule::NoService);
        };
        // Active FTP data connections are never scheduled.
        if tuple.src.port == 20 {
            return Inward::Pass(Rule::NotSchedulable);
        }
        let Choice::Dest {
            dest,
            control,
            rule,
        } = self.choose(now, at, tuple.src)
        else {
            return Inward::Refuse(Rule::NoDestination);
        };
        let id = self.bind(tuple.proto, tuple.src, tuple.dst, dest, 0);
        if control != NONE {
            self.table.put_under(id, EntryId(control));
            self.table.arm(&self.clock, now, EntryId(control));
        }
        let rule = match rescheduled {
            Some(rule) => rule,
            None if tuple.proto == Proto::Tcp && !syn => Rule::ScheduledSloppy,
            None => rule,
        };
        self.forward(now, id, seg, rule)
    }

    /// The real server of a new connection: by template or by scheduler (`ip_vs_schedule`, `ip_vs_sched_persist`).
    fn choose(&mut self, now: Moment, service: usize, client: Endpoint) -> Choice {
        let Some(persistence) = self.services[service].persistence else {
            return match self.pick(service, client) {
                Some(dest) => Choice::Dest {
                    dest,
                    control: NONE,
                    rule: Rule::Scheduled,
                },
                None => Choice::None,
            };
        };
        let key = self.services[service].key;
        let net = Endpoint::new((client.ip.to_bits() & persistence.netmask).into(), 0);
        if let Some(template) = self.table.find_template(key.proto, net, key.addr) {
            let dest = self.table.get(template).dest;
            let server = self.dests.get(dest);
            let quiescent = self.sysctls.expire_quiescent_template && server.weight == 0;
            if server.available && !quiescent {
                return Choice::Dest {
                    dest,
                    control: template.0,
                    rule: Rule::ScheduledByTemplate,
                };
            }
            // It takes an impossible key and runs out by its old timer (`ip_vs_check_template`).
            self.table.get_mut(template).flags |= table::INVALID;
        }
        let Some(dest) = self.pick(service, client) else {
            return Choice::None;
        };
        let template = self.bind(key.proto, net, key.addr, dest, table::TEMPLATE);
        self.table.get_mut(template).timeout =
            self.clock.ticks(u64::from(persistence.timeout_s)) as u32;
        self.table.arm(&self.clock, now, template);
        Choice::Dest {
            dest,
            control: template.0,
            rule: Rule::Scheduled,
        }
    }

    pub(super) fn pick(&mut self, service: usize, client: Endpoint) -> Option<DestId> {
        let service = &mut self.services[service];
        service
            .scheduler
            .pick(self.kernel, client, &service.dests, &self.dests)
    }

    /// A new entry bound to its destination (`ip_vs_conn_new`, `ip_vs_bind_dest`).
    pub(super) fn bind(
        &mut self,
        proto: Proto,
        client: Endpoint,
        virt: Endpoint,
        dest: DestId,
        flags: u8,
    ) -> EntryId {
        let server = self.dests.get_mut(dest);
        if flags & table::TEMPLATE != 0 {
            server.templates += 1;
        } else {
            server.inactive += 1;
        }
        let nfct = if self.sysctls.conntrack {
            table::NFCT
        } else {
            0
        };
        let timeout = self.clock.ticks(3) as u32;
        self.table.insert(
            proto,
            client,
            virt,
            dest,
            flags | nfct | table::INACTIVE,
            timeout,
        )
    }

    /// State transition, transmission and the restart of the timer, which happens even if the route fails.
    #[inline]
    fn forward(&mut self, now: Moment, id: EntryId, seg: &Segment, rule: Rule) -> Inward {
        self.step(now, id, seg, Direction::Input);
        let entry = self.table.get(id);
        Inward::Forward {
            rule,
            entry: id,
            to: self.dests.get(entry.dest).addr,
            nfct: entry.keeps_conntrack(),
        }
    }

    #[inline(always)]
    fn step(&mut self, now: Moment, id: EntryId, seg: &Segment, direction: Direction) {
        if seg.tuple.proto == Proto::Udp {
            self.table.get_mut(id).timeout = self.timeouts.udp_ticks(&self.clock);
            if direction == Direction::Output {
                self.assure_template(id);
            }
        } else {
            let secure = self.sysctls.secure_tcp == 3;
            let from = self.table.get(id).state;
            let next = transition(self.kernel, secure, direction, Class::of(seg.flags), from);
            self.set_state(id, next);
        }
        self.table.arm(&self.clock, now, id);
    }

    /// A packet from a real server on its way out. Neither weight nor deletion matters here (trap 3).
    pub fn packet_out(&mut self, now: Moment, seg: &Segment) -> Outward {
        if !self.hooked {
            return Outward::Pass;
        }
        let dests = &self.dests;
        let Some(id) = self.table.find_out(&seg.tuple, |dest| dests.get(dest).addr) else {
            return Outward::Pass;
        };
        self.step(now, id, seg, Direction::Output);
        let entry = self.table.get(id);
        Outward::Translate {
            entry: id,
            virt: entry.virt,
            nfct: entry.keeps_conntrack(),
        }
    }
}
