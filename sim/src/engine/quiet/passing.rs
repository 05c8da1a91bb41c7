//! The SYN of a request that goes the shortest way, at the node: what the tables and the model's rules make of it.

use ipvs_model::node::{Decision, Foreseen, Verdict};
use ipvs_model::segment::{Endpoint, Segment, Tuple};
use ipvs_model::tcp::foreseen::{Begin, rest_ends};
use ipvs_model::time::{Instant, Span};

use super::super::load::Request;
use super::super::traffic::trouble;
use super::super::world::{Event, World};
use super::direct::{Answer, Begun};
use super::left::Left;
use super::{ClientEnd, Quiet};

impl World<'_> {
    /// Whether a connection can go quietly whose SYN is at the node now.
    fn is_undisturbed(&mut self, quiet: &mut Quiet, healthy_over: Span) -> bool {
        let over = self.now + healthy_over;
        self.now >= quiet.from
            && over < quiet.end
            && quiet.scan_is_after(&self.node, over)
            && self.next_control() > over
    }

    /// Takes a connection from a port of which the node knows nothing to its end; whether it did.
    pub(super) fn passes_unknown(&mut self, quiet: &mut Quiet, begun: &Begun) -> bool {
        let now = self.now;
        let Some(healthy) = quiet.healthy(begun) else {
            return false;
        };
        let (over, rests) = (healthy.over, healthy.pod.is_some());
        if !self.is_undisturbed(quiet, over) {
            return false;
        }
        if quiet.direct.servers.is_none() {
            quiet.direct.servers = Some(self.healthy_servers());
        }
        let servers = quiet.direct.servers.as_deref().unwrap_or_default();
        let client = self.hosts.peek(begun.host);
        let tuple = Tuple::tcp(Endpoint::new(client.to.saddr, begun.port), self.key.addr);
        let touched = quiet.touched(begun.host, begun.port) != 0;
        let answers = |server: &(Endpoint, u32)| Tuple::tcp(server.0, tuple.src);
        if servers.is_empty()
            || self.node.ipvs.table().find_in(&tuple).is_some()
            || (touched
                && servers
                    .iter()
                    .any(|server| self.node.ct.knows(&answers(server))))
        {
            return false;
        }
        // What its earlier uses left at pods.
        let left = quiet.left.get(begun.host, begun.port).copied();
        let waits = rests && left.is_some_and(|left| left.syn + quiet.forgotten >= now);
        let remembered =
            waits || ((touched || rests) && self.pods.have_a_socket_towards(tuple.src));
        let mut meets = None;
        if remembered {
            self.settle_left(quiet, begun.host, begun.port);
            meets = self.meets_at_pods(quiet, begun);
            if meets.is_none() {
                return false;
            }
        }
        let Some(healthy) = quiet.healthy(begun) else {
            return false;
        };
        let foreseen = Foreseen {
            steps: &healthy.steps,
            ct: &healthy.ct,
            last: healthy.last,
        };
        let Some(to) = self.node.foresee(now, &tuple, &foreseen) else {
            return false;
        };
        let servers = quiet.direct.servers.as_deref().unwrap_or_default();
        let place = servers.iter().find(|(address, _)| *address == to);
        let place = place.map_or(u32::MAX, |(_, place)| *place);
        let last = self.node.ipvs.clock().jiffies(now + healthy.last);
        if let Some((own, theirs)) = &meets
            && let Some((_, theirs)) = theirs.iter().find(|(at, _)| *at == place)
        {
            let isns = [own.isn, theirs.isn];
            self.node.ct.settle(&tuple, &healthy.ct, isns, last);
        }
        self.observer.syn(to);
        self.note_packets(1);
        quiet.untouch(begun.host, begun.port);
        match meets {
            None => {
                let left = Left {
                    syn: now,
                    place,
                    begins: None,
                };
                let host = self.hosts.peek(begun.host);
                quiet.left.set(host, begun.host, begun.port, left);
            }
            Some((own, theirs)) => {
                let at_pod = theirs.iter().find(|(at, _)| *at == place);
                if let Some((_, theirs)) = at_pod {
                    self.leaves(quiet, begun, place, (own, *theirs));
                }
            }
        }
        self.passed(quiet, begun);
        true
    }

    /// What client and pods choose for a connection whose port has sockets of earlier uses at pods, for every pod that it may
    /// come to; `None` if one of them is in its way.
    fn meets_at_pods(
        &mut self,
        quiet: &Quiet,
        begun: &Begun,
    ) -> Option<(Begin, Vec<(u32, Begin)>)> {
        let (mut syn, own, _) = self.syn_of(begun)?;
        let peer = syn.tuple.src;
        let at = self.now + quiet.node_pod;
        let left = quiet.left.get(begun.host, begun.port).copied();
        let old = left.and_then(|left| self.left_at_pod(quiet, begun.host, peer, &left, at));
        let servers = quiet.direct.servers.as_deref().unwrap_or_default();
        let mut theirs = Vec::with_capacity(servers.len());
        for (address, place) in servers {
            syn.tuple.dst = *address;
            let here = old.filter(|_| left.is_some_and(|left| left.place == *place));
            let rests = quiet.healthy(begun)?.pod.is_some();
            let begin = self
                .pods
                .expect_quiet(*place, at, &syn, rests, here.as_ref())?;
            theirs.push((*place, begin));
        }
        Some((own, theirs))
    }

    /// The SYN of a request, what it begins with, and when it is sent again if it was the first.
    fn syn_of(&self, begun: &Begun) -> Option<(Segment, Begin, Option<Instant>)> {
        let client = self.hosts.peek(begun.host);
        let (to, client) = (client.to, &client.client);
        match begun.again {
            None => {
                let (syn, own, again) = client.first_syn(begun.start, to, begun.port);
                Some((syn, own, Some(again)))
            }
            Some((again, _)) => {
                let (syn, own) = client.second_syn(begun.start, again, to, begun.port)?;
                Some((syn, own, None))
            }
        }
    }

    /// Lets the node decide on the SYN of a connection, and takes it to its end if it goes to a pod that serves; waits for it to
    /// be sent again if it is dropped; else it goes on packet by packet. Whether it waits.
    pub(super) fn passes_known(&mut self, quiet: &mut Quiet, begun: &Begun, place: u32) -> bool {
        self.settle_left(quiet, begun.host, begun.port);
        let Some((syn, own, again)) = self.syn_of(begun) else {
            return false;
        };
        let decision = self.node.packet(self.now, &syn, &mut self.node_rng);
        self.note_packets(1);
        if self.takes_up(quiet, begun, &syn, &decision, own).is_some() {
            if let Some(server) = self.server_of(&decision) {
                self.observer.syn(server);
            }
            self.passed(quiet, begun);
            return false;
        }
        let resent = quiet.over_again(begun.kind) < Span(u64::MAX);
        // Of requests that are listed one by one more is to be told.
        if let (Verdict::Drop, Some(again), Some(cause), true, 0) = (
            decision.verdict,
            again,
            trouble(decision.rule, false),
            resent,
            self.observer.options().requests_max,
        ) {
            quiet.direct.begun[place as usize].again = Some((again, cause));
            quiet.direct.resending += 1;
            self.queue.at(again, Event::QuietResend(place));
            return true;
        }
        self.goes_on_by_packets(quiet, begun, &syn, &decision);
        false
    }

    /// Leaves what the packets after the SYN will leave, if nothing is in their way.
    fn takes_up(
        &mut self,
        quiet: &mut Quiet,
        begun: &Begun,
        syn: &Segment,
        decision: &Decision,
        own: Begin,
    ) -> Option<()> {
        let healthy = quiet.healthy(begun)?;
        let (over, rests) = (healthy.over, healthy.pod.is_some());
        if !self.is_undisturbed(quiet, over) {
            return None;
        }
        let (entry, ct, out) = self.forwarded_quietly(syn, decision)?;
        let place = self.pods.at(out.tuple.dst.ip)?;
        let at = self.now + quiet.node_pod;
        let peer = syn.tuple.src;
        if begun.again.is_some()
            && trouble(decision.rule, self.pods.is_dead(out.tuple.dst)).is_some()
        {
            return None;
        }
        // A socket that is not written out stands for one in the pod's table.
        let left = quiet.left.get(begun.host, begun.port).copied();
        let old = left.and_then(|left| self.left_at_pod(quiet, begun.host, peer, &left, at));
        let here = old.filter(|_| left.is_some_and(|left| left.place == place));
        let theirs = self
            .pods
            .expect_quiet(place, at, &out, rests, here.as_ref())?;
        // Nothing is in the way.
        self.foresee_at_node(quiet.healthy(begun)?, entry, ct, [own.isn, theirs.isn]);
        self.leaves(quiet, begun, place, (own, theirs));
        Some(())
    }

    /// Notes what a connection leaves at its pod.
    fn leaves(&mut self, quiet: &mut Quiet, begun: &Begun, place: u32, begins: (Begin, Begin)) {
        let (now, host, port) = (self.now, begun.host, begun.port);
        // What an earlier use left at another pod stays there.
        if quiet
            .left
            .get(host, port)
            .is_some_and(|left| left.place != place)
        {
            self.write_out(quiet, host, port);
        }
        let peer = Endpoint::new(self.hosts.peek(host).to.saddr, port);
        let mut left = Left {
            syn: now,
            place,
            begins: Some(begins),
        };
        if let Some(Some((resting, known))) = quiet.healthy(begun).map(|healthy| &healthy.pod)
            && self.pods.get(place).peers.get(peer).is_some()
        {
            // One that was written out is replaced.
            let at = now + resting.after;
            let age = quiet.client_node + quiet.node_pod;
            let rest = (&resting.rest, begins.0, begins.1);
            let fires = self.pods.rest_quietly(place, peer, at, rest, *known, age);
            if let Some(fires) = fires {
                self.queue.at(fires, Event::PodTimer(place, peer));
            }
            left.place = u32::MAX;
        }
        quiet.left.set(self.hosts.peek(host), host, port, left);
    }

    /// What happens to a connection after its SYN has passed: packets, its answer, and the end of its port.
    fn passed(&mut self, quiet: &mut Quiet, begun: &Begun) {
        let now = self.now;
        let Some(healthy) = quiet.healthy(begun) else {
            return;
        };
        self.note_packets(healthy.packets);
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
        self.file_client_timer(host, port);
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
