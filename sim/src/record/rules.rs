//! Rules: `/proc/net/ip_vs`, written as `ipvsadm -Ln --nosort` writes it.
//!
//! Faithful to: `ip_vs_info_seq_show`. The file shows the persistence timeout in ticks, and the flags of the `sh` and
//! `mh` schedulers not at all: those are asked of `ipvsadm`, if it is there.
//! Nothing tells when a rule changes, so the file is looked at often, and written down whenever it has changed.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ipvs_model::segment::{Endpoint, Proto};

use super::control::Control;
use super::log::Log;
use super::select::Selection;
use super::{RecordError, clock};
use crate::capture::{Parsed, ipvsadm};

/// The tick assumed where the node does not tell and a persistence timeout must be converted.
const HZ_ASSUMED: u32 = 250;
/// The headings that the tool prints.
const COLUMNS: &str = "Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
";

/// The rules of a node.
#[derive(Debug)]
pub struct Rules<'c> {
    path: PathBuf,
    log: Log<'c>,
    selection: Selection,
    hz: u32,
    /// Services with the flags of their schedulers, in the tool's words.
    flags: Vec<(String, String)>,
    /// What was asked of the tool: services with a scheduler that has flags.
    asked: Vec<String>,
    shape: String,
    /// How often a change was seen.
    pub changes: u64,
    /// Flags could not be asked for.
    pub flags_unknown: bool,
}

/// The rules at one moment.
#[derive(Debug, Default)]
struct Listing {
    /// As the tool prints them.
    text: String,
    /// Without the counters of connections.
    shape: String,
    /// Services whose scheduler has flags that the file hides.
    hiding: Vec<String>,
}

impl<'c> Rules<'c> {
    /// Rules of the file, for the log.
    pub const fn new(path: PathBuf, log: Log<'c>, selection: Selection, hz: Option<u32>) -> Self {
        Self {
            path,
            log,
            selection,
            hz: match hz {
                Some(hz) => hz,
                None => HZ_ASSUMED,
            },
            flags: Vec::new(),
            asked: Vec::new(),
            shape: String::new(),
            changes: 0,
            flags_unknown: false,
        }
    }

    /// Looks at the rules, and writes them down if they have changed, or `always`.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub fn look(&mut self, always: bool) -> Result<(), RecordError> {
        let at = clock::wall();
        let text = std::fs::read_to_string(&self.path)
            .map_err(|error| RecordError::read(&self.path, error))?;
        let mut listing = self.convert(&text);
        if listing.hiding != self.asked {
            self.ask_for_flags(listing.hiding);
            listing = self.convert(&text);
        }
        let changed = listing.shape != self.shape;
        if changed {
            self.changes += 1;
            self.shape = listing.shape;
        }
        if changed || always {
            self.log.begin(at)?;
            self.log.write(listing.text.as_bytes())?;
            self.log.end()?;
        }
        Ok(())
    }

    /// Bytes written.
    pub const fn size(&self) -> u64 {
        self.log.size()
    }

    fn convert(&self, proc: &str) -> Listing {
        let mut listing = Listing::default();
        let mut service = None;
        for row in proc.lines() {
            let words = row.split_ascii_whitespace().collect::<Vec<_>>();
            match words[..] {
                ["IP", "Virtual", "Server", ..] => {
                    let _ = writeln!(listing.text, "{}\n{COLUMNS}", row.trim_end());
                    listing.text.pop();
                }
                ["Prot", ..] | ["->", "RemoteAddress:Port", ..] | [] => {}
                ["->", real, forward, weight, active, inactive] => {
                    let Some(proto) = service else { continue };
                    let end = endpoint(real);
                    if let (Some(proto), Some(end)) = (proto, end) {
                        self.selection.add_server(proto, end);
                    }
                    let real = end.map_or_else(|| decimal_port(real), |end| end.to_string());
                    let head = format!("  -> {real:<28} {forward:<7} {weight:<6}");
                    let _ = writeln!(listing.text, "{head} {active:<10} {inactive}");
                    listing.shape.push_str(&head);
                }
                [name, at, ref rest @ ..] => {
                    service = self.service(name, at, rest, &mut listing);
                }
                [_] => service = None,
            }
        }
        listing
    }

    /// Adds a service; its protocol if its real servers belong to the listing: `None` outside says that they do not.
    fn service(
        &self,
        name: &str,
        at: &str,
        rest: &[&str],
        listing: &mut Listing,
    ) -> Option<Option<Proto>> {
        let proto = match name {
            "TCP" => Some(Proto::Tcp),
            "UDP" => Some(Proto::Udp),
            _ => None,
        };
        let end = endpoint(at);
        let wanted = match (proto, end) {
            (Some(proto), Some(end)) => self.selection.has_service(proto, end),
            _ => self.selection.is_everything(),
        };
        if !wanted {
            return None;
        }
        let at = match (name, end) {
            ("FWM", _) => {
                u32::from_str_radix(at, 16).map_or_else(|_| at.to_owned(), |m| m.to_string())
            }
            (_, Some(end)) => end.to_string(),
            (_, None) => decimal_port(at),
        };
        let id = format!("{name} {at}");
        let [scheduler, rest @ ..] = rest else {
            return Some(proto);
        };
        let mut line = format!("{name:<4} {at} {scheduler}");
        if matches!(*scheduler, "sh" | "mh") {
            let known = self.flags.iter().find(|(service, _)| *service == id);
            if let Some((_, flags)) = known.filter(|(_, flags)| !flags.is_empty()) {
                let _ = write!(line, " ({flags})");
            }
            listing.hiding.push(id);
        }
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            if *word != "persistent" {
                let _ = write!(line, " {word}");
                continue;
            }
            let ticks = rest.next().and_then(|ticks| ticks.parse::<u32>().ok());
            let _ = write!(line, " persistent {}", ticks.unwrap_or(0) / self.hz);
            let mask = rest
                .clone()
                .next()
                .and_then(|m| u32::from_str_radix(m, 16).ok());
            if let Some(mask) = mask {
                rest.next();
                if mask != u32::MAX && end.is_some() {
                    let _ = write!(line, " mask {}", Ipv4Addr::from_bits(mask));
                }
            }
        }
        listing.text.push_str(&line);
        listing.text.push('\n');
        listing.shape.push_str(&line);
        Some(proto)
    }

    /// Asks `ipvsadm` for the flags of schedulers, which the file hides.
    fn ask_for_flags(&mut self, hiding: Vec<String>) {
        self.asked = hiding;
        if self.asked.is_empty() {
            return;
        }
        let told = Command::new("ipvsadm").args(["-Ln", "--nosort"]).output();
        let Some(told) = told.ok().filter(|told| told.status.success()) else {
            self.flags_unknown = true;
            return;
        };
        let text = String::from_utf8_lossy(&told.stdout);
        let service = |line| match ipvsadm::parse_list_line(line) {
            Parsed::Item(ipvsadm::ListLine::Service(service)) => Some(service),
            _ => None,
        };
        self.flags = text
            .lines()
            .filter_map(service)
            .map(|service| (service.id.to_string(), service.flags.join(",")))
            .collect();
    }
}

/// Looks at the rules until the recording ends. `every`: the time between two looks; longer if the file is so large
/// that looking takes more than a twentieth of it.
///
/// # Errors
/// If they cannot be read or written.
pub fn watch(
    rules: &std::sync::Mutex<Rules<'_>>,
    every: Duration,
    control: &Control,
) -> Result<(), RecordError> {
    let mut next = clock::monotonic() + every;
    while control.wait_until(next) {
        let start = clock::monotonic();
        rules
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .look(false)?;
        let end = clock::monotonic();
        next = (start + every).max(end + (end - start) * 19);
    }
    Ok(())
}

/// `0A144FE2:79DF`.
fn endpoint(hex: &str) -> Option<Endpoint> {
    let (ip, port) = hex.split_once(':')?;
    if ip.len() != 8 {
        return None;
    }
    let ip = Ipv4Addr::from_bits(u32::from_str_radix(ip, 16).ok()?);
    Some(Endpoint::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// `[2001:0db8:...]:0050` with its port in decimal.
fn decimal_port(at: &str) -> String {
    let parts = at.rsplit_once(':');
    let port = parts.and_then(|(ip, port)| Some((ip, u16::from_str_radix(port, 16).ok()?)));
    port.map_or_else(|| at.to_owned(), |(ip, port)| format!("{ip}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::ipvsadm::{ListLine, ListedService, parse_list_line};

    const SHOWN: &str = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A144FE2:79DF rr persistent 2700000 FFFFFF00
  -> 0A1B010B:0050      Masq    1      3          14048     
  -> 0A1B010A:0050      Masq    0      0          7         
UDP  0A60000A:0035 mh ops 
  -> 0A1B010C:0035      Masq    1      0          0         
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 wlc 
  -> [2001:0db8:0000:0000:0000:0000:0000:0002]:1F90      Masq    1      0          0         
FWM  00000010 rr 
  -> 0A1B010D:0050      Route   1      0          0         
";

    fn convert(selection: Selection, flags: &[(&str, &str)]) -> Listing {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::new(Duration::from_secs(1), 1 << 20).unwrap();
        let log = Log::create(dir.path(), "rules.log", &control).unwrap();
        let mut rules = Rules::new(PathBuf::new(), log, selection, None);
        let owned = |(id, flags): &(&str, &str)| ((*id).to_owned(), (*flags).to_owned());
        rules.flags = flags.iter().map(owned).collect();
        rules.convert(SHOWN)
    }

    #[test]
    fn the_file_becomes_the_tools_listing() {
        let flags = [("UDP 10.96.0.10:53", "mh-port")];
        let listing = convert(Selection::default(), &flags);
        let expected = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.20.79.226:31199 rr persistent 10800 mask 255.255.255.0
  -> 10.27.1.11:80                Masq    1      3          14048
  -> 10.27.1.10:80                Masq    0      0          7
UDP  10.96.0.10:53 mh (mh-port) ops
  -> 10.27.1.12:53                Masq    1      0          0
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:80 wlc
  -> [2001:0db8:0000:0000:0000:0000:0000:0002]:8080 Masq    1      0          0
FWM  16 rr
  -> 10.27.1.13:80                Route   1      0          0
";
        assert_eq!(listing.text, expected);
        assert_eq!(listing.hiding, ["UDP 10.96.0.10:53"]);
        let lines = listing
            .text
            .lines()
            .filter_map(|line| parse_list_line(line).item());
        let (services, orphans) = ListedService::collect(lines.collect::<Vec<ListLine>>());
        assert_eq!((services.len(), orphans), (2, 0));
        assert_eq!(services[0].dests[0].inactive, 14_048);
    }

    #[test]
    fn one_service_is_taken_with_its_real_servers() {
        let selection = Selection::new(vec!["10.20.79.226:31199".parse().unwrap()]);
        let listing = convert(selection.clone(), &[]);
        assert_eq!(listing.text.lines().count(), 6, "{}", listing.text);
        assert!(selection.has_end(Proto::Tcp, "10.27.1.10:80".parse().unwrap()));
        assert!(!selection.has_end(Proto::Tcp, "10.27.1.12:53".parse().unwrap()));
    }

    #[test]
    fn counters_are_no_change_of_the_rules() {
        let before = convert(Selection::default(), &[]);
        assert!(before.shape.contains("Masq    0"));
        assert!(!before.shape.contains("14048"));
    }
}
