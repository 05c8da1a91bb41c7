//! What is written down of a run: its counts always, its trace if somebody asked.

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};

use super::load::Request;
use super::pins::Pins;
use super::story::{Stories, Story, What};
use super::trace::{
    Attempt, Gauges, Happening, RunTrace, ServerSample, Tables, TimelineEvent, TraceOptions,
    TroubledRequest,
};
use crate::outcome::{Cause, DELAYED_AFTER, Outcome, Recorder, RunSummary};

/// Collects counts and trace.
#[derive(Debug)]
pub struct Observer {
    recorder: Recorder,
    options: TraceOptions,
    trace: RunTrace,
    /// SYNs a real server since the last sample, sorted by address.
    syns: Vec<(Endpoint, u32)>,
    /// Stories in the making.
    pub stories: Stories,
}

impl Observer {
    /// An observer that keeps what `options` ask for.
    pub fn new(options: &TraceOptions) -> Self {
        let mut options = options.clone();
        options.tables_at.sort();
        Self {
            recorder: Recorder::new(),
            stories: Stories::new(options.stories),
            options,
            trace: RunTrace::default(),
            syns: Vec::new(),
        }
    }

    /// What to keep.
    pub const fn options(&self) -> &TraceOptions {
        &self.options
    }

    /// A request begins; whether it counts.
    #[inline]
    pub fn attempt(&mut self, start: Instant, counted: bool) {
        if counted {
            self.recorder.attempt(start);
        }
    }

    /// A request found no local port.
    pub fn no_port(&mut self, at: Instant, request: &Request, client: Endpoint) {
        if !request.counted {
            return;
        }
        self.recorder.no_port(at);
        if self.stories.wanted() {
            self.stories.no_port(Story {
                steps: vec![super::story::Step {
                    at,
                    what: What::NoPort,
                }],
                ..story(
                    request,
                    client,
                    at,
                    Outcome::PortsExhausted,
                    Some(Cause::PortsExhausted),
                )
            });
        }
        if self.options.attempts {
            self.trace.attempts.push(Attempt {
                start: at,
                end: at,
                port: 0,
                outcome: Outcome::PortsExhausted,
                connect: None,
            });
        }
    }

    /// A connection was opened.
    pub fn connection(&mut self) {
        self.recorder.connection();
    }

    /// A request ended.
    pub fn ended(&mut self, at: Instant, request: &Request, outcome: Outcome, client: Endpoint) {
        if !request.counted {
            return;
        }
        let connect = if request.opened {
            request
                .connected
                .map(|connected| connected.since(request.start))
        } else {
            None
        };
        let cause = request.trouble.unwrap_or(Cause::Other);
        let late = connect.is_some_and(|span| span > DELAYED_AFTER);
        if outcome == Outcome::Answered {
            self.recorder
                .answered(at, connect.unwrap_or(Span::ZERO), request.trouble);
        } else {
            self.recorder.failed(at, outcome, cause);
        }
        let troubled = outcome != Outcome::Answered || late;
        if self.stories.wanted() {
            let why = troubled.then_some(cause);
            let mut told = story(request, client, at, outcome, why);
            told.late = late;
            self.stories.end(told, troubled);
        }
        if troubled && self.trace.troubled.len() < self.options.requests_max {
            self.trace.troubled.push(TroubledRequest {
                number: request.number,
                start: request.start,
                end: at,
                client,
                outcome,
                cause,
                server: request.server,
                rule: request.rule,
                port_idle: request.port_idle,
            });
        }
        if self.options.attempts {
            self.trace.attempts.push(Attempt {
                start: request.start,
                end: at,
                port: request.port,
                outcome,
                connect,
            });
        }
    }

    /// A request was answered at `at` that nobody needs to know more of than these: whether it counts is the caller's
    /// business.
    pub fn answered(
        &mut self,
        at: Instant,
        (start, port): (Instant, u16),
        connect: Span,
        cause: Option<Cause>,
    ) {
        self.recorder.answered(at, connect, cause);
        if self.options.attempts {
            self.trace.attempts.push(Attempt {
                start,
                end: at,
                port,
                outcome: Outcome::Answered,
                connect: Some(connect),
            });
        }
    }

    /// Packets crossed the node.
    pub fn packets(&mut self, count: u64) {
        self.recorder.packets(count);
    }

    /// What has been counted so far.
    pub fn so_far(&self) -> &RunSummary {
        self.recorder.so_far()
    }

    /// A SYN was forwarded to a real server.
    pub fn syn(&mut self, server: Endpoint) {
        if self.options.sample_every.is_none() {
            return;
        }
        match self.syns.binary_search_by_key(&server, |(addr, _)| *addr) {
            Ok(at) => self.syns[at].1 += 1,
            Err(at) => self.syns.insert(at, (server, 1)),
        }
    }

    /// A sample of a real server; the SYNs that it got are filled in here.
    pub fn server(&mut self, mut sample: ServerSample) {
        if let Ok(at) = self
            .syns
            .binary_search_by_key(&sample.server, |(addr, _)| *addr)
        {
            sample.syns = core::mem::take(&mut self.syns[at].1);
        }
        self.trace.servers.push(sample);
    }

    /// Something happened to pods, kube-proxy or the load.
    pub fn event(&mut self, at: Instant, pod: Option<Endpoint>, kind: Happening) {
        if self.options.keeps_events() {
            self.trace.events.push(TimelineEvent {
                at,
                pod,
                what: kind.to_string(),
                kind,
            });
        }
    }

    /// Sizes at a moment.
    pub fn gauges(&mut self, gauges: Gauges) {
        self.trace.gauges.push(gauges);
    }

    /// What ports are pinned to.
    pub fn pins(&mut self, pins: Pins) {
        self.trace.pins.push(pins);
    }

    /// The tables at a moment.
    pub fn tables(&mut self, tables: Tables) {
        self.trace.tables.push(tables);
    }

    /// The run ended.
    pub fn finish(mut self, end: Instant, events: u64) -> (RunSummary, RunTrace) {
        // Those that end in one nanosecond have no order of their own.
        let attempts = &mut self.trace.attempts;
        attempts.sort_by_key(|attempt| (attempt.end, attempt.start, attempt.port));
        let troubled = &mut self.trace.troubled;
        troubled.sort_by_key(|request| (request.end, request.number));
        self.trace.events.sort_by_key(|event| event.at);
        self.trace.stories = self.stories.finish();
        (self.recorder.finish(end, events), self.trace)
    }
}

/// What the end of a request says of its story.
const fn story(
    request: &Request,
    client: Endpoint,
    at: Instant,
    outcome: Outcome,
    cause: Option<Cause>,
) -> Story {
    Story {
        number: request.number,
        start: request.start,
        end: Some(at),
        client,
        kind: request.kind,
        outcome,
        cause,
        late: false,
        server: request.server,
        steps: Vec::new(),
    }
}
