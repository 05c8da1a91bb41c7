//! `kubectl get pods -o wide`, `kubectl describe ep`, and the `date` line before them.
//!
//! Leaves out: everything but names, readiness, status, age, addresses and ports. Names may be masked.

use std::net::Ipv4Addr;

use jiff::civil;

use super::place::{Parsed, Stamp};

/// A row of `kubectl get pods -o wide`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLine {
    /// Name of the pod.
    pub name: String,
    /// Containers that are ready, and how many there are.
    pub ready: (u32, u32),
    /// `Running`, `Terminating`, ...
    pub status: String,
    /// Age in seconds.
    pub age_s: Option<u64>,
    /// Address, if it has one.
    pub ip: Option<Ipv4Addr>,
    /// Node.
    pub node: Option<String>,
}

/// An object of `kubectl describe ep`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Ready addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Addresses that are not ready.
    pub not_ready: Vec<Ipv4Addr>,
    /// Port names and numbers.
    pub ports: Vec<(String, u16)>,
}

/// Reads one row of `kubectl get pods -o wide`, with or without a namespace column and a heading above.
pub fn parse_pod_line(line: &str) -> Parsed<PodLine> {
    let words = line.split_ascii_whitespace().collect::<Vec<_>>();
    if words.first() == Some(&"NAME") || words.first() == Some(&"NAMESPACE") || words.is_empty() {
        return Parsed::Heading;
    }
    let missing = Parsed::Unknown("no row of kubectl get pods");
    let Some(at) = words.iter().take(3).position(|word| ready(word).is_some()) else {
        return missing;
    };
    let (Some(ready), Some(name)) = (
        ready(words[at]),
        at.checked_sub(1).and_then(|at| words.get(at)),
    ) else {
        return missing;
    };
    let [status, restarts, rest @ ..] = &words[at + 1..] else {
        return missing;
    };
    if restarts.parse::<u32>().is_err() {
        return missing;
    }
    // `2 (3h ago)`: when the last restart was.
    let rest = match rest {
        [open, _ago, rest @ ..] if open.starts_with('(') => rest,
        rest => rest,
    };
    let some = |word: &&&str| **word != "<none>";
    Parsed::Item(PodLine {
        name: (*name).to_owned(),
        ready,
        status: (*status).to_owned(),
        age_s: rest.first().and_then(|age| age_seconds(age)),
        ip: rest.get(1).and_then(|ip| ip.parse().ok()),
        node: rest.get(2).filter(some).map(|node| (*node).to_owned()),
    })
}

fn ready(word: &str) -> Option<(u32, u32)> {
    let (ready, all) = word.split_once('/')?;
    Some((ready.parse().ok()?, all.parse().ok()?))
}

/// `50s`, `3m20s`, `2d4h`.
fn age_seconds(word: &str) -> Option<u64> {
    let mut total = 0_u64;
    let mut rest = word;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number = rest[..end].parse::<u64>().ok()?;
        let unit = rest[end..].chars().next()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            'y' => 365 * 86_400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(seconds)?)?;
        rest = &rest[end + unit.len_utf8()..];
    }
    (!word.is_empty()).then_some(total)
}

/// Collects the lines of `kubectl describe ep`, which are understood in their context only.
#[derive(Debug, Default)]
pub struct EndpointsReader {
    current: Option<Endpoints>,
    in_ports: bool,
}

impl EndpointsReader {
    /// Takes a line. `None`: it is none of this output, and the object before it has ended.
    pub fn take(&mut self, line: &str) -> Option<Option<Endpoints>> {
        let trimmed = line.trim();
        let words = trimmed.split_ascii_whitespace().collect::<Vec<_>>();
        let indented = line.starts_with([' ', '\t']);
        if !indented && let ["Name:", name] = words[..] {
            self.in_ports = false;
            let object = Endpoints {
                name: name.to_owned(),
                ..Endpoints::default()
            };
            return Some(self.current.replace(object));
        }
        let current = self.current.as_mut()?;
        match words[..] {
            [] => return Some(None),
            ["Namespace:", namespace] => current.namespace = namespace.to_owned(),
            ["Addresses:", list] => current.addresses.extend(addresses(list)),
            ["NotReadyAddresses:", list] => current.not_ready.extend(addresses(list)),
            ["Ports:"] => self.in_ports = true,
            ["Events:", ..] | ["Subsets:"] => self.in_ports = false,
            ["Name", "Port", "Protocol"] => {}
            [name, port, "TCP" | "UDP" | "SCTP"] if self.in_ports => {
                if let Ok(port) = port.parse() {
                    current.ports.push((name.to_owned(), port));
                }
            }
            ["Labels:" | "Annotations:", ..] => {}
            _ if words.iter().all(|word| word.bytes().all(|b| b == b'-')) => {}
            // Further labels and annotations: `key=value` or `key: value`, indented.
            [word, ..] if indented && (word.contains('=') || word.contains(':')) => {}
            _ => return None,
        }
        Some(None)
    }

    /// The object that has not been handed out yet.
    pub fn finish(&mut self) -> Option<Endpoints> {
        self.in_ports = false;
        self.current.take()
    }
}

fn addresses(list: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    list.split(',').filter_map(|ip| ip.parse().ok())
}

/// The names of months and their numbers as `date` prints them in the C and English locales.
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Reads a line of `date` in an English or a Chinese locale:
/// `Mon Jun  8 17:58:22 CST 2020`, `Mon 08 Jun 2020 05:58:22 PM CST`, `2020年 06月 08日 星期一 17:58:22 CST`.
///
/// The zone's abbreviation is ambiguous (CST is China's and Chicago's), so it is not used: the wall time
/// counts as UTC.
pub fn parse_date_line(line: &str) -> Option<Stamp> {
    let spaced = line
        .replace('年', "年 ")
        .replace('月', "月 ")
        .replace('日', "日 ");
    let words = spaced.split_whitespace().collect::<Vec<_>>();
    if words.len() > 9 {
        return None;
    }
    let chinese = words.iter().any(|word| word.ends_with('年'));
    let (year, month, day) = if chinese {
        chinese_day(&words)?
    } else {
        english_day(&words)?
    };
    let clock = words.iter().find_map(|word| clock(word))?;
    let afternoon = words.iter().any(|word| matches!(*word, "PM" | "下午"));
    let morning = words.iter().any(|word| matches!(*word, "AM" | "上午"));
    let hour = match (clock.0, afternoon, morning) {
        (hour @ 1..=11, true, _) => hour + 12,
        (12, _, true) => 0,
        (hour, ..) => hour,
    };
    let moment = civil::DateTime::new(year, month, day, hour, clock.1, clock.2, 0).ok()?;
    let unix = moment
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?
        .timestamp()
        .as_second();
    Stamp::from_micros(u64::try_from(unix).ok()?, 0)
}

fn chinese_day(words: &[&str]) -> Option<(i16, i8, i8)> {
    let number = |unit: char| {
        words
            .iter()
            .find_map(|word| word.strip_suffix(unit)?.parse::<i16>().ok())
    };
    let small = |unit: char| number(unit).and_then(|n| i8::try_from(n).ok());
    Some((number('年')?, small('月')?, small('日')?))
}

fn english_day(words: &[&str]) -> Option<(i16, i8, i8)> {
    let weekdays = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let first = words.first()?.trim_end_matches(',');
    if !weekdays.iter().any(|day| first.starts_with(day)) {
        return None;
    }
    let month = words
        .iter()
        .skip(1)
        .find_map(|word| MONTHS.iter().position(|month| word.starts_with(month)))?;
    let numbers = words.iter().filter_map(|word| word.parse::<i16>().ok());
    let (mut day, mut year) = (None, None);
    for number in numbers {
        match number {
            1..=31 if day.is_none() => day = i8::try_from(number).ok(),
            1970..=2500 => year = Some(number),
            _ => {}
        }
    }
    Some((year?, i8::try_from(month + 1).ok()?, day?))
}

/// `17:58:22` or `17时58分22秒`.
fn clock(word: &str) -> Option<(i8, i8, i8)> {
    let plain = word.replace(['时', '分'], ":");
    let plain = plain.strip_suffix('秒').unwrap_or(&plain);
    let mut parts = plain
        .split(':')
        .map(|part| part.parse::<i8>().ok().filter(|n| *n >= 0));
    let clock = (parts.next()??, parts.next()??, parts.next()??);
    (parts.next().is_none()).then_some(clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_every_locale_are_the_same_moment() {
        let expected = Stamp(1_591_639_102 * 1_000_000_000);
        for line in [
            "2020年 06月 08日 星期一 17:58:22 CST",
            "2020年06月08日 星期一 17时58分22秒 CST",
            "2020年 06月 08日 星期一 下午 05:58:22 CST",
            "Mon Jun  8 17:58:22 CST 2020",
            "Mon Jun  8 05:58:22 PM CST 2020",
            "Mon 08 Jun 2020 05:58:22 PM CST",
        ] {
            assert_eq!(parse_date_line(line), Some(expected), "{line}");
        }
        for line in [
            "",
            "Monkeys 12:00:00",
            "Mon Jun 31 17:58:22 CST 2020",
            "2020年",
            "TCP 00:09  SYN_RECV    100.97.130.6:27307 10.20.79.226:31199 10.27.1.245:80",
            "Mon Jun  8 CST 2020",
            "Mon Jun 8 -1:58:22 CST 2020",
        ] {
            assert_eq!(parse_date_line(line), None, "{line}");
        }
    }

    #[test]
    fn pods_of_the_founding_case_are_read() {
        let line = "v****s-test-85f56494bd-5swfv       1/1     Running     0    50s     10.27.1.249   cn-beijing.10.20.79.226   <none>";
        let Parsed::Item(pod) = parse_pod_line(line) else {
            panic!("not read");
        };
        assert_eq!((pod.ready, pod.age_s), ((1, 1), Some(50)));
        assert_eq!(pod.ip.unwrap().to_string(), "10.27.1.249");
        let line = "default web-0 0/1 CrashLoopBackOff 2 (3h ago) 3d4h <none> <none> <none> <none>";
        let Parsed::Item(pod) = parse_pod_line(line) else {
            panic!("not read");
        };
        assert_eq!(
            (pod.name.as_str(), pod.age_s, pod.ip, pod.node),
            ("web-0", Some(273_600), None, None)
        );
        for line in [
            "1/1 Running 0 5s",
            "x 1/1",
            "x y z",
            "a b c d 1/1 Running 0 1s",
        ] {
            assert!(matches!(parse_pod_line(line), Parsed::Unknown(_)), "{line}");
        }
        assert_eq!(age_seconds("1ø"), None);
    }

    #[test]
    fn endpoints_of_the_founding_case_are_read() {
        let text = "Name:         v***s-test-service\nNamespace:    r***l\nLabels:       app=v***s-test\n              team=default\nAnnotations:  <none>\nSubsets:\n  Addresses:          10.27.1.248,10.27.1.249\n  NotReadyAddresses:  <none>\n  Ports:\n    Name     Port   Protocol\n    ----     ----   --------\n    crontab  50091  TCP\n    main     80     TCP\n\nEvents:  <none>";
        let mut reader = EndpointsReader::default();
        for line in text.lines() {
            assert_eq!(reader.take(line), Some(None), "{line}");
        }
        assert_eq!(reader.take("TCP  10.20.81.251:80 rr"), None);
        let object = reader.finish().unwrap();
        assert_eq!((object.addresses.len(), object.not_ready.len()), (2, 0));
        assert_eq!(object.ports[1], ("main".to_owned(), 80));
        assert_eq!(reader.take("main     80     TCP"), None);
    }
}
