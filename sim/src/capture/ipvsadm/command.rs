//! The options of one `ipvsadm` command.

use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto};

use super::{DestArgs, Forward, RuleCommand, ServiceArgs, ServiceId};
use crate::capture::ipvs_conn::is_ipv6;
use crate::capture::place::Parsed;

/// `IPVS_SVC_PERSISTENT_TIMEOUT`: `-p` without a value. The manual page says 300, the tool uses 360.
const PERSISTENT_DEFAULT_S: u32 = 360;

/// The largest persistence timeout ipvsadm takes: 31 days.
const PERSISTENT_MAX_S: u32 = 31 * 86_400;

/// The long names of the options and the letters they stand for. `-O` stands for `--ops`, whose letter `o`
/// has another meaning when listing; `%` for `--set`.
const LONG: [(&str, char); 27] = [
    ("add-service", 'A'),
    ("edit-service", 'E'),
    ("delete-service", 'D'),
    ("clear", 'C'),
    ("restore", 'R'),
    ("save", 'S'),
    ("add-server", 'a'),
    ("edit-server", 'e'),
    ("delete-server", 'd'),
    ("list", 'L'),
    ("zero", 'Z'),
    ("set", '%'),
    ("tcp-service", 't'),
    ("udp-service", 'u'),
    ("sctp-service", '6'),
    ("fwmark-service", 'f'),
    ("scheduler", 's'),
    ("persistent", 'p'),
    ("netmask", 'M'),
    ("real-server", 'r'),
    ("gatewaying", 'g'),
    ("ipip", 'i'),
    ("masquerading", 'm'),
    ("weight", 'w'),
    ("u-threshold", 'x'),
    ("l-threshold", 'y'),
    ("sched-flags", 'b'),
];

/// What has been collected of one command.
struct Args {
    command: Option<char>,
    service: Option<ServiceId>,
    scheduler: Option<String>,
    persistent_s: Option<u32>,
    netmask: Option<Ipv4Addr>,
    flags: Vec<String>,
    one_packet: bool,
    real: Option<(Ipv4Addr, Option<u16>)>,
    forward: Forward,
    weight: u32,
    thresholds: [u32; 2],
    set: [u32; 3],
}

type Refusal = Parsed<RuleCommand>;

const fn unknown(why: &'static str) -> Refusal {
    Parsed::Unknown(why)
}

/// Splits a command line into words as a shell would, for the quoting that people use with addresses.
pub fn split_words(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace()
        .map(|word| word.trim_matches(['"', '\'']))
        .collect()
}

/// Reads the arguments of one command: `-e -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 0`.
pub fn parse_command(arguments: &str) -> Refusal {
    let mut args = Args {
        command: None,
        service: None,
        scheduler: None,
        persistent_s: None,
        netmask: None,
        flags: Vec::new(),
        one_packet: false,
        real: None,
        forward: Forward::Route,
        weight: 1,
        thresholds: [0; 2],
        set: [0; 3],
    };
    let words = split_words(arguments);
    let mut rest = &words[..];
    while let [word, after @ ..] = rest {
        rest = match args.option(word, after) {
            Ok(rest) => rest,
            Err(refusal) => return refusal,
        };
    }
    args.finish()
}

impl Args {
    /// Takes one option; returns the words after it.
    fn option<'w>(&mut self, word: &str, after: &'w [&'w str]) -> Result<&'w [&'w str], Refusal> {
        if let Some(long) = word.strip_prefix("--") {
            let (name, attached) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let letter = match name {
                "numeric" | "exact" => return Ok(after),
                "ops" => 'O',
                _ => {
                    let known = LONG.iter().find(|(long, _)| *long == name);
                    known.ok_or(unknown("an unknown ipvsadm option"))?.1
                }
            };
            return self.letter(letter, attached, after);
        }
        let mut letters = word
            .strip_prefix('-')
            .filter(|letters| !letters.is_empty())
            .ok_or(unknown("a word that is no ipvsadm option"))?
            .chars();
        // Flags may be written together (`-Ln`); the last one may have its value attached (`-w0`).
        while let Some(letter) = letters.next() {
            let tail = letters.as_str();
            if takes_value(letter) && !tail.is_empty() {
                return self.letter(letter, Some(tail), after);
            }
            if tail.is_empty() {
                return self.letter(letter, None, after);
            }
            self.letter(letter, None, &[])?;
        }
        Ok(after)
    }

    fn letter<'w>(
        &mut self,
        letter: char,
        attached: Option<&str>,
        after: &'w [&'w str],
    ) -> Result<&'w [&'w str], Refusal> {
        match letter {
            'A' | 'E' | 'D' | 'C' | 'a' | 'e' | 'd' | 'L' | 'l' | 'Z' | 'S' | 'R' => {
                if self
                    .command
                    .replace(letter)
                    .is_some_and(|other| other != letter)
                {
                    return Err(unknown("two ipvsadm commands in one line"));
                }
                return Ok(after);
            }
            'n' => return Ok(after),
            'g' => self.forward = Forward::Route,
            'i' => self.forward = Forward::Tunnel,
            'm' => self.forward = Forward::Masq,
            'O' | 'o' => self.one_packet = true,
            '%' => return self.timeouts(after),
            'p' => return self.persistence(attached, after),
            _ if takes_value(letter) => {
                let (value, rest) = match (attached, after) {
                    (Some(value), rest) => (value, rest),
                    (None, [value, rest @ ..]) => (*value, rest),
                    (None, []) => return Err(unknown("an ipvsadm option without its value")),
                };
                self.valued(letter, value)?;
                return Ok(rest);
            }
            _ => return Err(unknown("an unknown ipvsadm option")),
        }
        Ok(after)
    }

    fn valued(&mut self, letter: char, value: &str) -> Result<(), Refusal> {
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| unknown("a weight or threshold that is no number"))
        };
        match letter {
            't' | 'u' => {
                let proto = if letter == 't' {
                    Proto::Tcp
                } else {
                    Proto::Udp
                };
                self.service = Some(service_id(proto, value)?);
            }
            'f' => return Err(Parsed::Foreign("IPVS service of a firewall mark")),
            '6' => return Err(Parsed::Foreign("IPVS service of SCTP")),
            's' => self.scheduler = Some(value.to_owned()),
            'M' => {
                let mask = value.parse();
                self.netmask = Some(mask.map_err(|_| unknown("a netmask that is none"))?);
            }
            'r' => self.real = Some(address(value)?),
            'w' => self.weight = number()?,
            'x' => self.thresholds[0] = number()?,
            'y' => self.thresholds[1] = number()?,
            'b' => {
                let flags = value.split(',').filter(|flag| !flag.is_empty());
                self.flags = flags.map(str::to_owned).collect();
            }
            _ => return Err(unknown("an unknown ipvsadm option")),
        }
        Ok(())
    }

    fn persistence<'w>(
        &mut self,
        attached: Option<&str>,
        after: &'w [&'w str],
    ) -> Result<&'w [&'w str], Refusal> {
        let (value, rest) = match (attached, after) {
            (Some(value), rest) => (Some(value), rest),
            (None, [value, rest @ ..]) if !value.starts_with('-') => (Some(*value), rest),
            (None, rest) => (None, rest),
        };
        let seconds = match value {
            None => PERSISTENT_DEFAULT_S,
            Some(value) => value
                .parse()
                .ok()
                .filter(|seconds| (1..=PERSISTENT_MAX_S).contains(seconds))
                .ok_or(unknown("a persistence timeout that is none"))?,
        };
        self.persistent_s = Some(seconds);
        Ok(rest)
    }

    fn timeouts<'w>(&mut self, after: &'w [&'w str]) -> Result<&'w [&'w str], Refusal> {
        self.command = Some('%');
        let [tcp, tcpfin, udp, rest @ ..] = after else {
            return Err(unknown("--set without three timeouts"));
        };
        for (slot, word) in self.set.iter_mut().zip([tcp, tcpfin, udp]) {
            *slot = word
                .parse()
                .map_err(|_| unknown("--set without three timeouts"))?;
        }
        Ok(rest)
    }

    fn finish(self) -> Refusal {
        let no_service = unknown("an ipvsadm command without its service");
        let command = match (self.command, self.service) {
            (None, _) => return unknown("no ipvsadm command such as -A, -a, -e or -d"),
            (Some('L' | 'l' | 'S' | 'R' | 'Z'), _) => return Parsed::Heading,
            (Some('C'), _) => RuleCommand::Flush,
            (Some('%'), _) => RuleCommand::SetTimeouts {
                tcp_s: self.set[0],
                tcpfin_s: self.set[1],
                udp_s: self.set[2],
            },
            (Some(_), None) => return no_service,
            (Some('D'), Some(id)) => RuleCommand::DeleteService(id),
            (Some('A'), Some(id)) => RuleCommand::AddService(self.service_args(id)),
            (Some('E'), Some(id)) => RuleCommand::EditService(self.service_args(id)),
            (Some(letter), Some(id)) => {
                let Some(dest) = self.dest_args(id) else {
                    return unknown("an ipvsadm command without its real server");
                };
                match letter {
                    'a' => RuleCommand::AddDest(id, dest),
                    'e' => RuleCommand::EditDest(id, dest),
                    _ => RuleCommand::DeleteDest(id, dest.real),
                }
            }
        };
        Parsed::Item(command)
    }

    fn service_args(self, id: ServiceId) -> ServiceArgs {
        ServiceArgs {
            id,
            scheduler: self.scheduler.unwrap_or_else(|| "wlc".to_owned()),
            persistent_s: self.persistent_s,
            netmask: self.netmask,
            flags: self.flags,
            one_packet: self.one_packet,
        }
    }

    /// The real server has the service's port unless it names its own.
    fn dest_args(&self, id: ServiceId) -> Option<DestArgs> {
        let (ip, port) = self.real?;
        Some(DestArgs {
            real: Endpoint::new(ip, port.unwrap_or(id.at.port)),
            forward: self.forward,
            weight: self.weight,
            upper_threshold: self.thresholds[0],
            lower_threshold: self.thresholds[1],
        })
    }
}

const fn takes_value(letter: char) -> bool {
    matches!(
        letter,
        't' | 'u' | 'f' | '6' | 's' | 'p' | 'M' | 'r' | 'w' | 'x' | 'y' | 'b'
    )
}

fn address(value: &str) -> Result<(Ipv4Addr, Option<u16>), Refusal> {
    if is_ipv6(value) {
        return Err(Parsed::Foreign("IPv6"));
    }
    let bad = || unknown("names instead of numeric addresses (dump with -n)");
    match value.split_once(':') {
        None => Ok((value.parse().map_err(|_| bad())?, None)),
        Some((ip, port)) => Ok((
            ip.parse().map_err(|_| bad())?,
            Some(port.parse().map_err(|_| bad())?),
        )),
    }
}

pub(super) fn service_id(proto: Proto, value: &str) -> Result<ServiceId, Refusal> {
    let (ip, port) = address(value)?;
    Ok(ServiceId {
        proto,
        at: Endpoint::new(ip, port.unwrap_or(0)),
    })
}
