//! The files of a capture merged into one stream in the order of time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use ipvs_model::time::Span;

use super::blocks::{Block, Blocks, is_header};
use super::conntrack::{is_event, parse_entry, parse_event};
use super::ipvs_conn::{IpvsConnLine, parse_conn_line};
use super::ipvsadm::{ListLine, ListedService, RuleLine, parse_rule_line};
use super::kubectl::{PodLine, parse_pod_line};
use super::lines::Lines;
use super::manifest::parse_sysctl_line;
use super::mixed::Mixed;
use super::pcap::Packets;
use super::place::{Parsed, Place, ReadError, Skipped, Stamp};
use super::{Body, ConntrackLine, Event, Files, RulesBlock, Table, file_name};

/// Packets of several processors may be written out of order by less than this; a step back by more means
/// that the node's clock was set.
const DISORDER_MAX: Span = Span::from_millis(500);

type Reader = BufReader<File>;
type Rows<T> = Blocks<Reader, fn(&str) -> Parsed<T>>;

/// One file of a capture.
enum Source {
    Packets(Box<Packets<'static>>),
    Ipvs(Rows<IpvsConnLine>),
    Conntrack(Rows<ConntrackLine>),
    ConntrackEvents(Arc<str>, Lines<Reader>, Skipped),
    Rules(Rows<RuleLine>, Skipped),
    Sysctls(Rows<(String, String)>),
    Pods(Rows<PodLine>),
    Mixed(Mixed<Reader>, VecDeque<Event>),
}

/// A file with the event that it would give next.
struct Stream {
    source: Source,
    head: Option<Event>,
    /// How often its clock has been set back.
    epoch: u32,
    last: Stamp,
}

/// What a capture shows, in the order of time.
///
/// Events of equal time come in this order: sysctls, packets, rules, IPVS entries, conntrack entries, pods.
pub struct Events {
    streams: Vec<Stream>,
    /// When the clock was set back the last time: the epoch that began, and the time it showed before.
    step: Option<(u32, Stamp)>,
    /// The epoch of the last event that was given.
    epoch: u32,
    /// Where packets or rules end because their file broke off.
    broken: Option<Stamp>,
    disordered: Skipped,
}

impl Events {
    /// Opens the files of a capture.
    pub(super) fn open(files: &Files, finished: bool) -> Result<Self, ReadError> {
        let mut sources = Vec::new();
        if let Some(path) = &files.sysctls {
            sources.push(Source::Sysctls(
                rows(path, parse_sysctl_line)?.finished(finished),
            ));
        }
        if let Some(path) = &files.packets {
            let file = File::open(path).map_err(|error| unreadable(path, &error))?;
            sources.push(Source::Packets(Box::new(Packets::new(
                file_name(path),
                file,
            )?)));
        }
        if let Some(path) = &files.rules {
            sources.push(Source::Rules(
                rows(path, parse_rule_line)?.finished(finished),
                Skipped::default(),
            ));
        }
        if let Some(path) = &files.ipvs {
            sources.push(Source::Ipvs(
                rows(path, parse_conn_line)?.finished(finished),
            ));
        }
        if let Some(path) = &files.conntrack {
            sources.push(conntrack_source(path, finished)?);
        }
        if let Some(path) = &files.pods {
            sources.push(Source::Pods(rows(path, parse_pod_block_line)?));
        }
        if let Some(path) = &files.mixed {
            let mixed = Mixed::new(file_name(path), open(path)?);
            sources.push(Source::Mixed(mixed, VecDeque::new()));
        }
        let stream = |source| Stream {
            source,
            head: None,
            epoch: 0,
            last: Stamp(0),
        };
        let mut events = Self {
            streams: sources.into_iter().map(stream).collect(),
            step: None,
            epoch: 0,
            broken: None,
            disordered: Skipped::default(),
        };
        for index in 0..events.streams.len() {
            events.fill(index)?;
        }
        Ok(events)
    }

    /// The next event, or `None` at the end.
    ///
    /// # Errors
    /// If a file is damaged.
    pub fn next_event(&mut self) -> Result<Option<Event>, ReadError> {
        if let Some((epoch, before)) = self.step {
            // A file that shows a later time than the clock ever did before it was set was written after.
            for stream in &mut self.streams {
                if stream.head.as_ref().is_some_and(|head| head.at > before) {
                    stream.epoch = stream.epoch.max(epoch);
                }
            }
        }
        let first = self
            .streams
            .iter()
            .enumerate()
            .filter_map(|(index, stream)| Some((stream.epoch, stream.head.as_ref()?.at, index)))
            .min();
        let Some((epoch, _, index)) = first else {
            return Ok(None);
        };
        let mut event = self.streams[index].head.take();
        if let Some(event) = &mut event {
            // The clock is one for all files: it was set once, whichever of them show it.
            event.stepped_back = epoch > self.epoch;
            self.epoch = self.epoch.max(epoch);
        }
        self.fill(index)?;
        Ok(event)
    }

    /// The time of the last packet, or of the last block of rules, of a file that broke off: what the other files show after it
    /// cannot be compared.
    pub const fn broken_off(&self) -> Option<Stamp> {
        self.broken
    }

    /// What was read past so far, in all files.
    pub fn skipped(&self) -> Skipped {
        let mut sum = self.disordered.clone();
        for stream in &self.streams {
            match &stream.source {
                Source::Packets(packets) => sum.absorb(packets.skipped()),
                Source::Ipvs(rows) => sum.absorb(rows.skipped()),
                Source::Conntrack(rows) => sum.absorb(rows.skipped()),
                Source::ConntrackEvents(_, _, skipped) => sum.absorb(skipped),
                Source::Rules(rows, skipped) => {
                    sum.absorb(rows.skipped());
                    sum.absorb(skipped);
                }
                Source::Pods(rows) => sum.absorb(rows.skipped()),
                Source::Sysctls(rows) => sum.absorb(rows.skipped()),
                Source::Mixed(mixed, _) => sum.absorb(mixed.skipped()),
            }
        }
        sum
    }

    fn fill(&mut self, index: usize) -> Result<(), ReadError> {
        let stream = &mut self.streams[index];
        let Some(mut event) = stream.source.next_event()? else {
            if stream.source.is_broken_off() {
                self.broken = Some(self.broken.map_or(stream.last, |b| b.min(stream.last)));
            }
            return Ok(());
        };
        if event.at < stream.last {
            let step = stream.last.since(event.at);
            if step <= DISORDER_MAX {
                let why = "time a little before the line or packet above";
                self.disordered.count(&event.file, why, event.place);
                event.at = stream.last;
            } else {
                self.disordered
                    .count(&event.file, "clock set back", event.place);
                stream.epoch += 1;
                if self.step.is_none_or(|(epoch, _)| epoch < stream.epoch) {
                    self.step = Some((stream.epoch, stream.last));
                }
            }
        }
        stream.last = event.at;
        stream.head = Some(event);
        Ok(())
    }
}

impl Iterator for Events {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_event().transpose()
    }
}

impl Source {
    /// Packets or rules whose file ended in the middle of something.
    fn is_broken_off(&self) -> bool {
        match self {
            Self::Packets(packets) => packets.skipped().of(super::pcap::BROKEN_OFF) > 0,
            Self::Rules(rows, _) => [
                super::blocks::LINE_BROKEN_OFF,
                super::blocks::HEADER_BROKEN_OFF,
            ]
            .into_iter()
            .any(|why| rows.skipped().of(why) > 0),
            _ => false,
        }
    }

    fn next_event(&mut self) -> Result<Option<Event>, ReadError> {
        match self {
            Self::Packets(packets) => {
                let packet = packets.next_packet()?;
                Ok(packet.map(|packet| Event {
                    at: packet.at,
                    file: packets.file(),
                    place: Place::Packet(packet.number),
                    stepped_back: false,
                    body: Body::Packet(packet),
                }))
            }
            Self::Ipvs(rows) => block_event(rows, |block| Body::Ipvs(table(block))),
            Self::Conntrack(rows) => block_event(rows, |block| Body::Conntrack(table(block))),
            Self::ConntrackEvents(file, lines, skipped) => conntrack_event(file, lines, skipped),
            Self::Rules(rows, skipped) => {
                let file = rows.file();
                block_event(rows, |block| Body::Rules(rules(block, &file, skipped)))
            }
            Self::Sysctls(rows) => block_event(rows, |block| Body::Sysctls(block.rows)),
            Self::Pods(rows) => block_event(rows, |block| Body::Pods(block.rows)),
            Self::Mixed(mixed, ready) => {
                while ready.is_empty() {
                    match mixed.next_round()? {
                        Some(round) => ready.extend(round),
                        None => return Ok(None),
                    }
                }
                Ok(ready.pop_front())
            }
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> ReadError {
    let reason = format!("cannot be read: {error}");
    ReadError::new(&file_name(path), Place::File, reason)
}

fn open(path: &Path) -> Result<Reader, ReadError> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

fn rows<T>(path: &Path, parse: fn(&str) -> Parsed<T>) -> Result<Rows<T>, ReadError> {
    Ok(Blocks::new(file_name(path), open(path)?, parse))
}

/// The conntrack log is a block log or an event stream: its first line tells.
fn conntrack_source(path: &Path, finished: bool) -> Result<Source, ReadError> {
    let mut lines = Lines::new(open(path)?);
    loop {
        let line = lines.peek().map_err(|error| unreadable(path, &error))?;
        match line.map(|line| line.text.clone()) {
            Some(text) if text.trim().is_empty() => {
                lines
                    .next_line()
                    .map_err(|error| unreadable(path, &error))?;
            }
            Some(text) if is_event(&text) && !is_header(&text) => {
                let file = file_name(path);
                return Ok(Source::ConntrackEvents(file, lines, Skipped::default()));
            }
            _ => {
                return Ok(Source::Conntrack(
                    rows(path, parse_entry)?.finished(finished),
                ));
            }
        }
    }
}

/// Rows of pods; the other objects that a pods log may hold are counted.
fn parse_pod_block_line(line: &str) -> Parsed<PodLine> {
    match parse_pod_line(line) {
        Parsed::Unknown(_) => Parsed::Foreign("line of the pods log other than a pod"),
        parsed => parsed,
    }
}

fn block_event<T>(
    rows: &mut Rows<T>,
    body: impl FnOnce(Block<T>) -> Body,
) -> Result<Option<Event>, ReadError> {
    let file = rows.file();
    Ok(rows.next_block()?.map(|block| Event {
        at: block.at,
        file,
        place: Place::Line(block.line),
        stepped_back: false,
        body: body(block),
    }))
}

fn table<T>(block: Block<T>) -> Table<T> {
    Table {
        rows: block.rows,
        complete: block.complete,
    }
}

fn conntrack_event(
    file: &Arc<str>,
    lines: &mut Lines<Reader>,
    skipped: &mut Skipped,
) -> Result<Option<Event>, ReadError> {
    loop {
        let read = lines.next_line().map_err(|error| {
            let place = Place::Line(lines.number() + 1);
            ReadError::new(file, place, format!("cannot be read: {error}"))
        })?;
        let Some(line) = read else {
            return Ok(None);
        };
        let place = Place::Line(line.number);
        if line.cut || line.too_long {
            skipped.count(file, "line broken off or longer than 64 KiB", place);
            continue;
        }
        match parse_event(&line.text) {
            Parsed::Item(event) => {
                return Ok(Some(Event {
                    at: event.at,
                    file: file.clone(),
                    place,
                    stepped_back: false,
                    body: Body::ConntrackEvent(event),
                }));
            }
            Parsed::Heading => {}
            Parsed::Foreign(why) | Parsed::Unknown(why) => skipped.count(file, why, place),
        }
    }
}

fn rules(block: Block<RuleLine>, file: &Arc<str>, skipped: &mut Skipped) -> RulesBlock {
    let mut rules = RulesBlock {
        complete: block.complete,
        ..RulesBlock::default()
    };
    let mut listed = Vec::new();
    let place = Place::Line(block.line);
    for line in block.rows {
        match line {
            RuleLine::Command(command) => rules.commands.push((block.line, command)),
            RuleLine::Dump(command) => rules.dump.get_or_insert_default().push(command),
            RuleLine::Listed(line) => {
                if let ListLine::ForeignService(why) = line {
                    skipped.count(file, why, place);
                }
                listed.push(line);
            }
        }
    }
    if !listed.is_empty() {
        let (services, orphans) = ListedService::collect(listed);
        rules.listing = Some(services);
        rules.complete &= orphans == 0;
    }
    rules
}
