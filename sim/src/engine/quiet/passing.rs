//! The SYN of a request that goes the shortest way, at the node: what the tables and the model's rules make of it.

use ipvs_model::ipvs::service::DestId;
use ipvs_model::ipvs::table::EntryId;
use ipvs_model::node::{Decision, Verdict};
use ipvs_model::segment::{Endpoint, Segment, Tuple};
use ipvs_model::tcp::foreseen::{Begin, Past, rest_ends};
use ipvs_model::time::{Instant, Span};

use super::super::load::Request;
use super::super::traffic::trouble;
use super::super::world::{Event, World};
use super::direct::{Answer, Begun, Known, Owes, Precedent};
use super::left::Left;
use super::{ClientEnd, Quiet};
use crate::outcome::Cause;

/// No tick is longer than this.
const TICK_MAX: Span = Span::from_millis(20);

impl World<'_> {
    /// Whether a connection can go quietly whose SYN is at the node now.
    fn is_undisturbed(&mut self, quiet: &mut Quiet, healthy_over: Span) -> bool {
        let over = self.now + healthy_over;
        self.now >= quiet.from
            && over < quiet.end
            && quiet.scan_is_after(&self.node, over)
            && self.next_control() > over
    }

    /// What the node's tables would have of a request's port, as far as it is not written out.
    fn owes(&self, quiet: &Quiet, begun: &Begun) -> Owes {
        let left = quiet.left.get(begun.host, begun.port);
        let Some((left, dest)) = left.and_then(|left| Some((left, left.owed?))) else {
            return Owes::Nothing;
        };
        if quiet.touched(begun.host, begun.port) != 0 {
            return Owes::Unclear;
        }
        if quiet.left.is_over(left, self.now) {
            return Owes::Forgotten;
        }
        let both = Owes::Both(Precedent {
            dest,
            kind: begun.kind,
            left_again: left.again,
            again: begun.again.is_some(),
        });
        if quiet.left.is_kept(left, self.now) {
            return both;
        }
        let Some(forgetting) = quiet.forgetting(&self.node, begun.kind, left.again) else {
            return Owes::Unclear;
        };
        let forgotten = forgetting.of(left.syn);
        let tick = self.node.ipvs.clock().jiffies(self.now);
        if forgotten.ipvs <= tick {
            Owes::Forgotten
        } else if forgotten.ct <= tick {
            Owes::Unclear
        } else {
            both
        }
    }

    /// Takes a connection to its end without a look at the tables: nothing is in them of its port, or what the node would do with
    /// the entries that are owed has a precedent. Whether it waits to send its SYN again; `None` if the tables must tell.
    pub(super) fn passes(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        slot: Option<u32>,
    ) -> Option<bool> {
        let over = quiet.healthy(begun)?.over;
        if !self.is_undisturbed(quiet, over) {
            return None;
        }
        if quiet.direct.servers.is_none() {
            quiet.direct.servers = Some(self.healthy_servers());
        }
        if quiet.direct.servers.as_ref().is_none_or(Vec::is_empty) {
            return None;
        }
        let client = self.hosts.peek(begun.host);
        let tuple = Tuple::tcp(Endpoint::new(client.to.saddr, begun.port), self.key.addr);
        let stays = match self.owes(quiet, begun) {
            Owes::Nothing if self.no_table_knows(quiet, begun, &tuple) => None,
            Owes::Forgotten => None,
            Owes::Both(like) => match quiet.direct.precedent(&like)? {
                Known::Stays(address, place) => Some((like.dest, address, place)),
                Known::Dropped(cause) => {
                    let waits = self.waits_to_send_again(quiet, begun, slot, cause);
                    return waits.then_some(true);
                }
            },
            Owes::Nothing | Owes::Unclear => return None,
        };
        self.goes_on(quiet, begun, &tuple, stays)?;
        Some(false)
    }

    /// Takes a connection to its end that goes to the pod of its entry's real server, or else to that of the scheduler's choice;
    /// `None`, with nothing changed, if the socket of an earlier use of its port is in its way.
    fn goes_on(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        tuple: &Tuple,
        stays: Option<(DestId, Endpoint, u32)>,
    ) -> Option<()> {
        // What its earlier uses left in the tables of pods.
        let rests = quiet.healthy(begun)?.pod.is_some();
        let touched = quiet.touched(begun.host, begun.port) != 0;
        let mut meets = None;
        if (touched || rests) && self.pods.have_a_socket_towards(tuple.src) {
            let only = stays.map(|(_, address, place)| (address, place));
            meets = Some(self.meets_at_pods(quiet, begun, only)?);
        }
        let mut turn = None;
        let (dest, to, place) = match stays {
            Some(stays) => stays,
            None => {
                // Only a socket at a pod can be in the way.
                if rests || meets.is_some() {
                    turn = self.node.ipvs.turn(self.key);
                }
                let (dest, to) = self.node.ipvs.choose_foreseen(tuple)?;
                let servers = quiet.direct.servers.as_deref().unwrap_or_default();
                let place = servers.iter().find(|(address, _)| *address == to);
                (dest, to, place.map_or(u32::MAX, |(_, place)| *place))
            }
        };
        let met = match &meets {
            Some(theirs) => {
                let met = theirs.iter().find(|(at, _)| *at == place);
                met.map(|(_, theirs)| *theirs)
            }
            None => self.number_at_pod(quiet, begun, place),
        };
        let Some(theirs) = met else {
            if let Some(turn) = turn {
                self.node.ipvs.unchoose(self.key, turn);
            }
            return None;
        };
        self.observer.syn(to);
        quiet.untouch(begun.host, begun.port);
        self.leaves(quiet, begun, (place, theirs), meets.is_some());
        self.owe(quiet, begun, dest);
        if !quiet.left.may_wait() {
            self.pay(quiet, begun.host, begun.port);
        }
        self.passed(quiet, begun, 1);
        Some(())
    }

    /// The entries of a request's connection, whose SYN is at the node now, wait to be written out.
    fn owe(&self, quiet: &mut Quiet, begun: &Begun, dest: DestId) {
        if let Some(healthy) = quiet.healthy(begun) {
            let clock = self.node.ipvs.clock();
            let deadline = healthy.foreseen().ct_deadline(clock, self.now);
            quiet.left.owe(self.now, begun, dest, deadline);
        }
    }

    /// The number that a pod gives to the connection of a request, whose port has no socket in the pod's table; `None` if the
    /// socket of an earlier use is in its way.
    fn number_at_pod(&self, quiet: &Quiet, begun: &Begun, place: u32) -> Option<u32> {
        let sent = begun.again.map_or(begun.start, |(again, _)| again);
        let port = (begun.host, begun.port);
        match self.past_at_pod(quiet, port, place, (begun.start, sent))? {
            Past::Over => {
                let pod = self.pods.each().nth(place as usize)?.pod.as_ref()?;
                Some(pod.number_at(self.now + quiet.node_pod))
            }
            Past::Reopens(number) => Some(number),
            Past::InTheWay => None,
        }
    }

    /// Whether the node's tables have nothing of a client's port.
    fn no_table_knows(&self, quiet: &Quiet, begun: &Begun, tuple: &Tuple) -> bool {
        let touched = quiet.touched(begun.host, begun.port) != 0;
        let servers = quiet.direct.servers.as_deref().unwrap_or_default();
        let answers = |server: &(Endpoint, u32)| Tuple::tcp(server.0, tuple.src);
        let ct = &self.node.ct;
        self.node.ipvs.table().find_in(tuple).is_none()
            && !ct.knows(tuple)
            && !(touched && servers.iter().any(|server| ct.knows(&answers(server))))
    }

    /// A request's first SYN is dropped as its precedent was: it waits until the SYN is sent again. Whether it may.
    fn waits_to_send_again(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        slot: Option<u32>,
        cause: Cause,
    ) -> bool {
        // At the next tick the entries are gone.
        if !self.may_send_again(quiet, begun) || self.next_control() <= self.now + TICK_MAX {
            return false;
        }
        quiet.left.paid(begun.host, begun.port);
        self.note_packets(1);
        self.send_again(quiet, begun, slot, cause);
        true
    }

    /// Whether a request whose SYN is dropped may wait for its second one here.
    fn may_send_again(&self, quiet: &Quiet, begun: &Begun) -> bool {
        let resent = quiet.over_again(begun.kind) < Span(u64::MAX);
        // Of requests that are listed one by one more is to be told.
        begun.again.is_none() && resent && self.observer.options().requests_max == 0
    }

    /// Files the second SYN of a request.
    fn send_again(&mut self, quiet: &mut Quiet, begun: &Begun, slot: Option<u32>, cause: Cause) {
        let slot = quiet.direct.place(slot, begun);
        let again = self.hosts.peek(begun.host).client.sends_again(begun.start);
        quiet.direct.begun[slot as usize].again = Some((again, cause));
        quiet.direct.resending += 1;
        let event = Event::QuietResend(slot);
        self.queue.at_turn(again, begun.turn, event);
    }

    /// The number that a pod gives to a connection which it begins so.
    fn chosen_number(&self, place: u32, peer: Endpoint, begin: Begin) -> Option<u32> {
        let pod = self.pods.each().nth(place as usize)?.pod.as_ref()?;
        Some(begin.isn.wrapping_sub(pod.begin_with(0, peer).isn))
    }

    /// The numbers that pods give to a connection whose port has sockets of earlier uses in the tables of pods, for every pod that
    /// it may come to, or for the `only` one; `None` if one of them is in its way.
    fn meets_at_pods(
        &mut self,
        quiet: &Quiet,
        begun: &Begun,
        only: Option<(Endpoint, u32)>,
    ) -> Option<Vec<(u32, u32)>> {
        let (mut syn, _) = self.syn_of(begun)?;
        let all = quiet.direct.servers.as_deref().unwrap_or_default();
        let servers = only.as_ref().map_or(all, std::slice::from_ref);
        let mut theirs = Vec::with_capacity(servers.len());
        for (address, place) in servers {
            syn.tuple.dst = *address;
            let begin = self.expects(quiet, begun, *place, &syn)?;
            theirs.push((*place, self.chosen_number(*place, syn.tuple.src, begin)?));
        }
        Some(theirs)
    }

    /// What the pod at a place chooses for the connection of a forwarded SYN, if nothing is in its way.
    fn expects(
        &mut self,
        quiet: &Quiet,
        begun: &Begun,
        place: u32,
        syn: &Segment,
    ) -> Option<Begin> {
        let at = self.now + quiet.node_pod;
        let rests = quiet.healthy(begun)?.pod.is_some();
        // A socket that is not written out stands for one in the pod's table.
        let port = (begun.host, begun.port);
        let left = quiet.left.at_pod(begun.host, begun.port, place);
        let here = left.and_then(|left| self.left_at_pod(quiet, port, left, at));
        self.pods.expect_quiet(place, at, syn, rests, here.as_ref())
    }

    /// The SYN of a request, and what it begins with.
    fn syn_of(&self, begun: &Begun) -> Option<(Segment, Begin)> {
        let client = self.hosts.peek(begun.host);
        let (to, client) = (client.to, &client.client);
        match begun.again {
            None => Some(client.first_syn(begun.start, to, begun.port)),
            Some((again, _)) => client.second_syn(begun.start, again, to, begun.port),
        }
    }

    /// Lets the node decide on the SYN of a connection, and takes it to its end if it goes to a pod that serves; waits for it to
    /// be sent again if it is dropped; else it goes on packet by packet. Whether it waits.
    pub(super) fn passes_known(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        place: Option<u32>,
    ) -> bool {
        let owes = self.owes(quiet, begun);
        self.pay(quiet, begun.host, begun.port);
        self.settle_left(quiet, begun.host, begun.port);
        self.collect_beside(quiet);
        let Some((syn, own)) = self.syn_of(begun) else {
            return false;
        };
        let before = self.node.ipvs.table().find_in(&syn.tuple);
        let decision = self.node.packet(self.now, &syn, &mut self.node_rng);
        self.note_packets(1);
        if let Some((entry, ct, (to, at))) = self.takes_up(quiet, begun, &syn, &decision, own) {
            if let Some(server) = self.server_of(&decision) {
                self.observer.syn(server);
            }
            // An entry that was kept, or made where none was, can be written out as any other.
            if quiet.left.may_wait() && before.is_none_or(|before| before == entry) {
                let dest = self.node.ipvs.table().get(entry).dest();
                self.node.take_back(entry, ct);
                self.owe(quiet, begun, dest);
                if let Owes::Both(like) = owes {
                    quiet.direct.learn(like, Known::Stays(to, at));
                }
            }
            self.passed(quiet, begun, 0);
            return false;
        }
        if decision.verdict == Verdict::Drop
            && self.may_send_again(quiet, begun)
            && let Some(cause) = trouble(decision.rule, false)
        {
            let goes = |id| self.node.ipvs.table().get(id).is_expiring();
            if let Owes::Both(like) = owes
                && before.is_some_and(goes)
                && !self.node.ct.knows(&syn.tuple)
            {
                quiet.direct.learn(like, Known::Dropped(cause));
            }
            self.send_again(quiet, begun, place, cause);
            return true;
        }
        self.goes_on_by_packets(quiet, begun, &syn, &decision);
        false
    }

    /// Leaves what the packets after the SYN will leave, if nothing is in their way: the entries, and address and place
    /// of the pod.
    fn takes_up(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        syn: &Segment,
        decision: &Decision,
        own: Begin,
    ) -> Option<(EntryId, u32, (Endpoint, u32))> {
        let healthy = quiet.healthy(begun)?;
        if !self.is_undisturbed(quiet, healthy.over) {
            return None;
        }
        let (entry, ct, out) = self.forwarded_quietly(syn, decision)?;
        let place = self.pods.at(out.tuple.dst.ip)?;
        if begun.again.is_some()
            && trouble(decision.rule, self.pods.is_dead(out.tuple.dst)).is_some()
        {
            return None;
        }
        let theirs = self.expects(quiet, begun, place, &out)?;
        let number = self.chosen_number(place, syn.tuple.src, theirs)?;
        // Nothing is in the way.
        self.foresee_at_node(quiet.healthy(begun)?, entry, ct, [own.isn, theirs.isn]);
        self.leaves(quiet, begun, (place, number), true);
        Some((entry, ct, (out.tuple.dst, place)))
    }

    /// Notes what a connection leaves at its pod. `known`: pods may have sockets of its port.
    fn leaves(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        (place, theirs): (u32, u32),
        known: bool,
    ) {
        let (now, host, port) = (self.now, begun.host, begun.port);
        let client = self.hosts.peek(host);
        let peer = Endpoint::new(client.to.saddr, port);
        let own = client.client.number_at(begun.start);
        let left = Left {
            syn: now,
            numbers: [own, theirs],
            place,
            owed: None,
            again: begun.again.is_some(),
            settled: true,
        };
        let since = Instant(now.0.saturating_sub(quiet.forgotten.0));
        quiet.left.make_older(host, port, place, since);
        let pod = self.pods.get(place);
        if known
            && pod.peers.remove(peer).is_some()
            && let Some(pod) = &mut pod.pod
        {
            // One that was written out makes room.
            pod.leave_rest(peer);
        }
        quiet.left.set(self.hosts.peek(host), host, port, left);
    }

    /// What happens to a connection after its SYN has passed: packets beside so many that are not counted yet, its answer, and the
    /// end of its port.
    fn passed(&mut self, quiet: &mut Quiet, begun: &Begun, uncounted: u64) {
        let now = self.now;
        let Some(healthy) = quiet.healthy(begun) else {
            return;
        };
        self.note_packets(uncounted + healthy.packets);
        let answer = Answer {
            at: now + healthy.answered,
            start: begun.start,
            host: begun.host,
            port: begun.port,
            counted: begun.counted,
            cause: begun.again.map(|(_, cause)| cause),
        };
        let until = match &healthy.client {
            ClientEnd::Closes(after) => now + *after,
            ClientEnd::Rests(resting) => {
                let stack = self.hosts.peek(begun.host).client.stack();
                rest_ends(stack, now + resting.after)
            }
        };
        let direct = &mut quiet.direct;
        direct.next_answer = direct.next_answer.min(answer.at);
        direct.answers[usize::from(begun.kind)].push_back(answer);
        direct.lease(begun.host, until, begun.port);
    }

    /// A connection goes on by packets, as if it had begun so; the node has decided on its latest SYN.
    fn goes_on_by_packets(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        syn: &Segment,
        decision: &Decision,
    ) {
        let &Begun { host, port, .. } = begun;
        self.gets_socket(quiet, begun);
        if let Some((again, _)) = begun.again
            && let Some(id) = self.conn_id(host, port)
        {
            // Its second SYN is this one.
            self.hosts.get(host).client.on_timer(again, id);
        }
        quiet.touch(host, port, self.now + quiet.settles);
        self.file_client_timer_in(begun.turn, host, port);
        self.note_syn(syn, decision);
        self.follow(*decision, syn.tuple);
    }

    /// A request gets its socket, in SYN_SENT since it began, and its place among those that are open.
    pub(super) fn gets_socket(&mut self, quiet: &mut Quiet, begun: &Begun) {
        let &Begun {
            start, host, port, ..
        } = begun;
        self.write_out(quiet, host, port);
        quiet.open -= 1;
        let client = self.hosts.get(host);
        client.client.connect_held(start, client.to, port);
        let request = Request {
            port,
            opened: true,
            port_idle: begun.port_idle,
            trouble: begun.again.map(|(_, cause)| cause),
            ..Request::new(begun.number, begun.kind, host, start, begun.counted)
        };
        self.take_slot(request, |world, lane, event| {
            world.queue.at(start + lane.delay(), event);
        });
    }
}
