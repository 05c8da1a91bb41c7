//! The founding case's log: one file in which a script collected, round after round, a `date` line and then
//! what `kubectl`, `ipvsadm` and `/proc/net/nf_conntrack` printed, one after the other.
//!
//! What a line belongs to is told by its form, not by a heading, since most rounds have none. The script
//! filtered its tables, so a row that is missing says nothing: no table of such a log is complete.

use std::io::BufRead;
use std::sync::Arc;

use super::conntrack::parse_entry;
use super::ipvs_conn::parse_conn_line;
use super::ipvsadm::{ListLine, ListedService, parse_list_line};
use super::kubectl::{Endpoints, EndpointsReader, PodLine, parse_date_line, parse_pod_line};
use super::lines::{Lines, TextLine};
use super::place::{Parsed, Place, ReadError, Skipped, Stamp};
use super::{Body, Event, RulesBlock, Table};

/// Reads a mixed log, one round in memory at a time.
pub struct Mixed<R> {
    file: Arc<str>,
    lines: Lines<R>,
    next_date: Option<(Stamp, u64)>,
    started: bool,
    skipped: Skipped,
}

/// What has been collected of one round.
#[derive(Default)]
struct Round {
    pods: Vec<PodLine>,
    endpoints: Vec<Endpoints>,
    listing: Vec<ListLine>,
    ipvs: Option<Table<super::ipvs_conn::IpvsConnLine>>,
    conntrack: Option<Table<super::conntrack::ConntrackLine>>,
}

impl<R: BufRead> Mixed<R> {
    /// A log named `file`.
    pub fn new(file: Arc<str>, reader: R) -> Self {
        Self {
            file,
            lines: Lines::new(reader),
            next_date: None,
            started: false,
            skipped: Skipped::default(),
        }
    }

    /// What was read past so far.
    pub const fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The events of the next round, or `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read or has no `date` line.
    pub fn next_round(&mut self) -> Result<Option<Vec<Event>>, ReadError> {
        if !self.started {
            self.started = true;
            self.find_first_date()?;
        }
        let Some((at, line)) = self.next_date.take() else {
            return Ok(None);
        };
        let mut round = Round::default();
        let mut describe = EndpointsReader::default();
        while let Some(text) = self.line()? {
            if let Some(date) = parse_date_line(&text.text) {
                self.next_date = Some((date, text.number));
                break;
            }
            self.take(&mut round, &mut describe, &text);
        }
        round.endpoints.extend(describe.finish());
        Ok(Some(self.finish(round, at, line)))
    }

    fn find_first_date(&mut self) -> Result<(), ReadError> {
        while let Some(text) = self.line()? {
            if let Some(date) = parse_date_line(&text.text) {
                self.next_date = Some((date, text.number));
                return Ok(());
            }
            if !text.text.trim().is_empty() {
                let place = Place::Line(text.number);
                self.skipped
                    .count(&self.file, "line before the first date", place);
            }
        }
        let reason = "no `date` line in it, such as `Mon Jun  8 17:58:22 CST 2020`: this is neither \
                      a capture directory nor a mixed log";
        Err(ReadError::new(&self.file, Place::File, reason))
    }

    fn take(&mut self, round: &mut Round, describe: &mut EndpointsReader, line: &TextLine) {
        let place = Place::Line(line.number);
        let text = line.text.trim();
        if line.cut && !text.is_empty() || line.too_long {
            let why = "line broken off or longer than 64 KiB";
            self.skipped.count(&self.file, why, place);
            return;
        }
        if let Some(finished) = describe.take(&line.text) {
            round.endpoints.extend(finished);
            return;
        }
        round.endpoints.extend(describe.finish());
        if text.is_empty() || text.starts_with("====") || text.starts_with("Warning:") {
            return;
        }
        match round.take(text) {
            Parsed::Item(()) | Parsed::Heading => {}
            Parsed::Foreign(why) | Parsed::Unknown(why) => {
                self.skipped.count(&self.file, why, place);
            }
        }
    }

    fn finish(&mut self, round: Round, at: Stamp, line: u64) -> Vec<Event> {
        let place = Place::Line(line);
        let mut bodies = Vec::new();
        if !round.pods.is_empty() {
            bodies.push(Body::Pods(round.pods));
        }
        if !round.endpoints.is_empty() {
            bodies.push(Body::Endpoints(round.endpoints));
        }
        if !round.listing.is_empty() {
            let (listing, orphans) = ListedService::collect(round.listing);
            for _ in 0..orphans {
                let why = "destination of a service that is not in the listing";
                self.skipped.count(&self.file, why, place);
            }
            bodies.push(Body::Rules(RulesBlock {
                listing: Some(listing),
                complete: false,
                ..RulesBlock::default()
            }));
        }
        bodies.extend(round.ipvs.map(Body::Ipvs));
        bodies.extend(round.conntrack.map(Body::Conntrack));
        let event = |body| Event {
            at,
            file: self.file.clone(),
            place,
            stepped_back: false,
            body,
        };
        bodies.into_iter().map(event).collect()
    }

    fn line(&mut self) -> Result<Option<TextLine>, ReadError> {
        self.lines.next_line().map_err(|error| {
            let place = Place::Line(self.lines.number() + 1);
            ReadError::new(&self.file, place, format!("cannot be read: {error}"))
        })
    }
}

impl Round {
    /// Takes a line by its form.
    fn take(&mut self, text: &str) -> Parsed<()> {
        let mut words = text.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        match first {
            "IPVS" | "pro" | "Pro" => {
                self.ipvs.get_or_insert_with(Table::partial);
                Parsed::Heading
            }
            "TCP" | "UDP" | "SCTP" | "IP" if is_time_or_hex(second) => {
                let table = self.ipvs.get_or_insert_with(Table::partial);
                parse_conn_line(text).map(|row| table.rows.push(row))
            }
            "TCP" | "UDP" | "SCTP" | "FWM" | "IP" | "Prot" | "->" | "--" => {
                parse_list_line(text).map(|line| self.listing.push(line))
            }
            "ipv4" | "ipv6" | "tcp" | "udp" | "icmp" | "unknown" => {
                let table = self.conntrack.get_or_insert_with(Table::partial);
                parse_entry(text).map(|row| table.rows.push(row))
            }
            _ => match parse_pod_line(text) {
                Parsed::Unknown(_) => Parsed::Unknown("no output of the collection script"),
                parsed => parsed.map(|pod| self.pods.push(pod)),
            },
        }
    }
}

/// `00:09` or `0A171F58`: the second column of a connection entry, in either form.
fn is_time_or_hex(word: &str) -> bool {
    let time = word.split_once(':').is_some_and(|(m, s)| {
        s.len() == 2 && (m.to_owned() + s).bytes().all(|b| b.is_ascii_digit())
    });
    time || (word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(text: &str) -> (Vec<Vec<Event>>, Skipped) {
        let mut mixed = Mixed::new(Arc::from("log.txt"), text.as_bytes());
        let mut rounds = Vec::new();
        while let Some(round) = mixed.next_round().unwrap() {
            rounds.push(round);
        }
        (rounds, mixed.skipped().clone())
    }

    #[test]
    fn the_founding_log_is_read_whole() {
        let text = include_str!("../../../captures/founding-case/log.txt");
        let (rounds, skipped) = rounds(text);
        assert!(
            skipped.is_empty(),
            "{:?}",
            skipped.rows().collect::<Vec<_>>()
        );
        let kinds = rounds
            .iter()
            .map(|round| {
                round
                    .iter()
                    .map(|event| event.body.name())
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>();
        assert_eq!(
            kinds[0],
            [
                "pods",
                "endpoints",
                "rules",
                "IPVS entries",
                "conntrack entries"
            ]
        );
        assert_eq!(kinds.len(), 5);
        assert!(
            kinds[1..]
                .iter()
                .all(|kinds| *kinds == ["IPVS entries", "conntrack entries"])
        );
        let Body::Rules(rules) = &rounds[0][2].body else {
            panic!("no rules");
        };
        let listing = rules.listing.as_ref().unwrap();
        assert_eq!((listing.len(), listing[0].dests.len()), (4, 2));
        let Body::Ipvs(table) = &rounds[0][3].body else {
            panic!("no entries");
        };
        assert_eq!((table.rows.len(), table.complete), (3, false));
        assert_eq!(rounds[4][0].at.since(rounds[3][0].at).as_secs(), 1);
    }

    #[test]
    fn foreign_lines_are_counted_not_guessed() {
        let text = "noise\nMon Jun  8 17:58:22 CST 2020\nTCP 00:09  SYN_RECV [::1]:1 [::2]:2 [::3]:3\n\
            who knows\nTCP 0A171F58 9C42 0A144FE2 79DF 0A1B010B 0050 SYN_RECV 60\n\
            ipv6 10 tcp 6 1 CLOSE src=::1\nTCP 00:09  SYN_RECV 10.0.0.1:1 10.0.0.2:2 10.0.0.3:3";
        let (rounds, skipped) = rounds(text);
        assert_eq!(skipped.of("IPv6"), 2);
        assert_eq!(skipped.of("no output of the collection script"), 1);
        assert_eq!(skipped.of("line before the first date"), 1);
        assert_eq!(skipped.of("line broken off or longer than 64 KiB"), 1);
        let Body::Ipvs(table) = &rounds[0][0].body else {
            panic!("no entries");
        };
        assert_eq!(table.rows.len(), 1);
    }

    #[test]
    fn a_file_without_a_date_is_refused() {
        let mut mixed = Mixed::new(Arc::from("x"), &b"hello\n"[..]);
        assert!(mixed.next_round().unwrap_err().reason.contains("date"));
    }
}
