//! The values that fields hold: numbers, durations, addresses, kernels, distributions, port ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipvs_model::kernel::{Gate, Kernel, Version};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::time::{NANOS_PER_SEC, Span};
use serde_json::{Value as Json, json};

use super::field::{Cx, Field, Section, quoted};
use super::suggest::nearest;
use super::tree::{Tree, Value};

/// No duration in a scenario is longer: a year.
const SPAN_MAX: Span = Span::from_secs(366 * 86_400);

impl Field for bool {
    fn kind() -> String {
        "boolean".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match tree.value {
            Value::Bool(value) => Some(value),
            _ => cx.expected(tree, "true or false", "true"),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

macro_rules! integer {
    ($($ty:ty),+) => { $(
        impl Field for $ty {
            fn kind() -> String {
                "integer".to_owned()
            }

            fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
                let Value::Integer(value) = tree.value else {
                    return cx.expected(tree, "a whole number", "5");
                };
                match Self::try_from(value) {
                    Ok(value) => Some(value),
                    Err(_) => cx.bad(
                        tree,
                        "out of range",
                        &format!("write a whole number from {} to {}", Self::MIN, Self::MAX),
                    ),
                }
            }

            fn encode(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn schema() -> Json {
                json!({ "type": "integer", "minimum": Self::MIN, "maximum": Self::MAX })
            }
        }
    )+ };
}
integer!(u8, u16, u32);

impl Field for f64 {
    fn kind() -> String {
        "number".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let value = match tree.value {
            Value::Float(value) => value,
            Value::Integer(value) => value as Self,
            _ => return cx.expected(tree, "a number", "12.5"),
        };
        if value.is_finite() {
            Some(value)
        } else {
            cx.bad(
                tree,
                "not a finite number",
                "write a number such as 500 or 12.5",
            )
        }
    }

    fn encode(&self) -> Option<String> {
        Some(format!("{self}"))
    }

    fn schema() -> Json {
        json!({ "type": "number" })
    }
}

impl Field for String {
    fn kind() -> String {
        "string".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) => Some(text.clone()),
            _ => cx.expected(tree, "a string", "\"text\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(self))
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

/// `"none"` or a value.
impl<T: Field> Field for Option<T> {
    fn kind() -> String {
        format!("{} or \"none\"", T::kind())
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "none" => Some(None),
            _ => T::decode(tree, cx).map(Some),
        }
    }

    fn encode(&self) -> Option<String> {
        match self {
            None => Some("\"none\"".to_owned()),
            Some(value) => value.encode(),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "const": "none" }, T::schema()] })
    }
}

/// `"kernel"` for the default of the host's kernel, or a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub struct OrKernel<T>(pub Option<T>);

impl<T: Field> Field for OrKernel<T> {
    fn kind() -> String {
        format!("{} or \"kernel\"", T::kind())
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "kernel" => Some(Self(None)),
            _ => T::decode(tree, cx).map(|value| Self(Some(value))),
        }
    }

    fn encode(&self) -> Option<String> {
        match &self.0 {
            None => Some("\"kernel\"".to_owned()),
            Some(value) => value.encode(),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "const": "kernel" }, T::schema()] })
    }
}

impl<T: Section> Field for Vec<T> {
    fn kind() -> String {
        "array of tables".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Value::Array(items) = &tree.value else {
            let name = cx.path();
            return cx.expected(tree, "one or more tables", &format!("[[{name}]]"));
        };
        if items.is_empty() {
            return cx.bad(tree, "empty", "leave it out, or write at least one table");
        }
        let mut all = Vec::new();
        for (index, item) in items.iter().enumerate() {
            all.extend(cx.within(&index.to_string(), item.place, |cx| T::decode(item, cx)));
        }
        (all.len() == items.len()).then_some(all)
    }

    fn encode(&self) -> Option<String> {
        let items = self.iter().filter_map(Field::encode).collect::<Vec<_>>();
        Some(format!("[{}]", items.join(", ")))
    }

    fn schema() -> Json {
        json!({ "type": "array", "minItems": 1, "items": T::schema() })
    }
}

const DURATION_HELP: &str = "write a number and a unit: \"250ms\", \"20s\", \"2m 30s\" or \"1h\"";

/// Reads `250ms`, `2m 30s`, `1h`. `None` if it is no duration or longer than a year.
pub fn parse_span(text: &str) -> Option<Span> {
    let duration = text.trim().parse::<jiff::SignedDuration>().ok()?;
    let nanos = u64::try_from(duration.as_nanos()).ok()?;
    (nanos <= SPAN_MAX.0).then_some(Span(nanos))
}

/// A duration as scenarios write it: whole units of the largest unit that leaves no rest.
pub fn span_text(span: Span) -> String {
    let units = [
        (NANOS_PER_SEC, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let (unit, name) = units
        .into_iter()
        .find(|(unit, _)| span.0.is_multiple_of(*unit))
        .unwrap_or((1, "ns"));
    format!("{}{name}", span.0 / unit)
}

impl Field for Span {
    fn kind() -> String {
        "duration".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) => match parse_span(text) {
                Some(span) => Some(span),
                None => cx.bad(tree, "not a duration (of at most a year)", DURATION_HELP),
            },
            Value::Integer(_) | Value::Float(_) => {
                cx.bad(tree, "a duration needs a unit", DURATION_HELP)
            }
            _ => cx.expected(tree, "a duration", "\"20s\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&span_text(*self)))
    }

    fn schema() -> Json {
        json!({ "type": "string", "examples": ["250ms", "20s", "2m 30s"] })
    }
}

impl Field for Ipv4Addr {
    fn kind() -> String {
        "IPv4 address".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Value::Text(text) = &tree.value else {
            return cx.expected(tree, "an IPv4 address", "\"10.23.31.87\"");
        };
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) => cx.bad(
                tree,
                "not an IPv4 address",
                "write for example \"10.23.31.87\"",
            ),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(format!("\"{self}\""))
    }

    fn schema() -> Json {
        json!({ "type": "string", "format": "ipv4" })
    }
}

impl Field for Endpoint {
    fn kind() -> String {
        "address and port".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Value::Text(text) = &tree.value else {
            return cx.expected(tree, "an address with a port", "\"10.20.79.226:31199\"");
        };
        match text.parse::<Self>() {
            Ok(endpoint) if endpoint.port != 0 => Some(endpoint),
            Ok(_) => cx.bad(
                tree,
                "port 0 cannot be used",
                "write a port from 1 to 65535",
            ),
            Err(_) => cx.bad(
                tree,
                "not an IPv4 address with a port",
                "write for example \"10.20.79.226:31199\"",
            ),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(format!("\"{self}\""))
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+:\d+$" })
    }
}

impl Field for Proto {
    fn kind() -> String {
        "\"tcp\" or \"udp\"".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "tcp" => Some(Self::Tcp),
            Value::Text(text) if text == "udp" => Some(Self::Udp),
            _ => cx.not_a_choice(tree, &["tcp", "udp"], &[]),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&self.name().to_lowercase()))
    }

    fn schema() -> Json {
        json!({ "enum": ["tcp", "udp"] })
    }
}

/// A kernel whose release string is known to be good.
pub fn kernel(release: &'static str) -> Kernel {
    release.parse().expect("a default kernel parses: tested")
}

impl Field for Kernel {
    fn kind() -> String {
        "kernel release".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let text = match &tree.value {
            Value::Text(text) => text,
            Value::Float(_) | Value::Integer(_) => {
                return cx.bad(
                    tree,
                    "a kernel release is a string",
                    "put it in quotes: \"5.4.30\"",
                );
            }
            _ => return cx.expected(tree, "a kernel release", "\"5.15.0-91-generic\""),
        };
        match text.parse() {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                let error: ipvs_model::kernel::ParseReleaseError = error;
                let message = error.to_string();
                let (reason, help) = message
                    .split_once("; ")
                    .unwrap_or((&message, "write what `uname -r` prints"));
                cx.bad(tree, reason, help)
            }
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&self.release))
    }

    fn schema() -> Json {
        json!({ "type": "string", "examples": ["4.19.57", "5.15.0-91-generic", "3.10.0-1160.el7"] })
    }
}

/// A kernel's timer frequency, CONFIG_HZ: 100, 250, 300 or 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hz(pub u32);

impl Field for Hz {
    fn kind() -> String {
        "100, 250, 300 or 1000".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let hz = u32::decode(tree, cx)?;
        if [100, 250, 300, 1000].contains(&hz) {
            Some(Self(hz))
        } else {
            cx.bad(
                tree,
                "no kernel ticks like this",
                "write 100, 250, 300 or 1000: `grep CONFIG_HZ= /boot/config-$(uname -r)`",
            )
        }
    }

    fn encode(&self) -> Option<String> {
        Some(self.0.to_string())
    }

    fn schema() -> Json {
        json!({ "enum": [100, 250, 300, 1000] })
    }
}

/// `"random"`, drawn anew in every run, or a fixed duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Drawn from the run's seed.
    Random,
    /// Always this.
    Fixed(Span),
}

impl Field for Phase {
    fn kind() -> String {
        "duration or \"random\"".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "random" => Some(Self::Random),
            _ => Span::decode(tree, cx).map(Self::Fixed),
        }
    }

    fn encode(&self) -> Option<String> {
        match self {
            Self::Random => Some("\"random\"".to_owned()),
            Self::Fixed(span) => span.encode(),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "const": "random" }, Span::schema()] })
    }
}

/// A random length of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dist {
    /// Always the same.
    Constant(Span),
    /// Every length from the first to the second with equal probability.
    Uniform(Span, Span),
    /// Exponential with this mean.
    Exponential(Span),
    /// Logarithm normally distributed.
    LogNormal {
        /// Half of the draws are shorter.
        median: Span,
        /// Standard deviation of the logarithm, 0 to 5.
        sigma: f64,
    },
}

const DIST_HELP: &str = "write \"5ms\", { uniform = [\"1ms\", \"5ms\"] }, { exponential = \"10ms\" } or \
                         { log_normal = { median = \"5ms\", sigma = 0.5 } }";

impl Dist {
    fn decode_kind(key: &str, tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match key {
            "constant" => Span::decode(tree, cx).map(Self::Constant),
            "exponential" => Span::decode(tree, cx).map(Self::Exponential),
            "uniform" => {
                let Value::Array(items) = &tree.value else {
                    return cx.expected(tree, "two durations", "[\"1ms\", \"5ms\"]");
                };
                let [low, high] = items.as_slice() else {
                    return cx.bad(tree, "two durations are needed", DIST_HELP);
                };
                let (low, high) = (Span::decode(low, cx), Span::decode(high, cx));
                let (low, high) = (low?, high?);
                if low > high {
                    return cx.bad(tree, "ends before it starts", "write the shorter one first");
                }
                Some(Self::Uniform(low, high))
            }
            "log_normal" => {
                let table = cx.table(tree, &["median", "sigma"])?;
                let limits = 0.0..=5.0;
                let median = cx.field(table, "median", || Span::from_millis(5));
                let sigma = cx.field_in(table, "sigma", || 0.5, &limits);
                Some(Self::LogNormal { median, sigma })
            }
            _ => None,
        }
    }
}

impl Field for Dist {
    fn kind() -> String {
        "distribution".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let names = ["constant", "uniform", "exponential", "log_normal"];
        match &tree.value {
            Value::Table(table) => match table.as_slice() {
                [(key, value)] if names.contains(&key.name.as_str()) => {
                    cx.within(&key.name, value.place, |cx| {
                        Self::decode_kind(&key.name, value, cx)
                    })
                }
                _ => cx.not_a_choice(tree, &[], &names),
            },
            Value::Text(_) => Span::decode(tree, cx).map(Self::Constant),
            Value::Integer(_) | Value::Float(_) => {
                cx.bad(tree, "a duration needs a unit", DIST_HELP)
            }
            _ => cx.expected(
                tree,
                "a duration or a distribution",
                "{ exponential = \"10ms\" }",
            ),
        }
    }

    fn encode(&self) -> Option<String> {
        let text = |span: Span| quoted(&span_text(span));
        Some(match *self {
            Self::Constant(span) => text(span),
            Self::Uniform(low, high) => format!("{{ uniform = [{}, {}] }}", text(low), text(high)),
            Self::Exponential(mean) => format!("{{ exponential = {} }}", text(mean)),
            Self::LogNormal { median, sigma } => format!(
                "{{ log_normal = {{ median = {}, sigma = {sigma} }} }}",
                text(median)
            ),
        })
    }

    fn schema() -> Json {
        let one = |name: &str, inner: Json| {
            json!({
                "type": "object",
                "properties": { name: inner },
                "required": [name],
                "additionalProperties": false,
            })
        };
        let log_normal = json!({
            "type": "object",
            "properties": {
                "median": Span::schema(),
                "sigma": { "type": "number", "minimum": 0, "maximum": 5 },
            },
            "additionalProperties": false,
        });
        let pair = json!({
            "type": "array", "items": Span::schema(), "minItems": 2, "maxItems": 2,
        });
        json!({ "anyOf": [
            Span::schema(),
            one("constant", Span::schema()),
            one("uniform", pair),
            one("exponential", Span::schema()),
            one("log_normal", log_normal),
        ]})
    }
}

/// An ephemeral port range, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct Ports {
    /// The first port, at least 1.
    pub low: u16,
    /// The last port.
    pub high: u16,
}

/// The first port of a range that is given by its size only: the kernel's own first port.
pub const PORTS_FIRST: u16 = 32_768;

impl Ports {
    /// How many ports there are, 1 to 65535.
    pub const fn count(self) -> u32 {
        self.high as u32 - self.low as u32 + 1
    }

    /// `count` ports from 32768 on; `None` if they do not fit below 65536.
    pub fn of_count(count: i128) -> Option<Self> {
        let last = count.checked_add(i128::from(PORTS_FIRST) - 1)?;
        let high = u16::try_from(last).ok()?;
        (count > 0).then_some(Self {
            low: PORTS_FIRST,
            high,
        })
    }
}

impl Field for Ports {
    fn kind() -> String {
        "\"low-high\" or number of ports".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let help = "write both ends, such as \"32768-60999\", or how many ports from 32768 on, at most 32768";
        match &tree.value {
            Value::Integer(count) => match Self::of_count(*count) {
                Some(ports) => Some(ports),
                None if *count <= 0 => cx.bad(tree, "no ports at all", help),
                None => cx.bad(tree, "so many ports from 32768 on go past port 65535", help),
            },
            Value::Text(text) => {
                let ends = text.split_once(['-', ' ', '\t']);
                let ends = ends.map(|(low, high)| {
                    (
                        low.trim().parse::<u32>().ok(),
                        high.trim().parse::<u32>().ok(),
                    )
                });
                let Some((Some(low), Some(high))) = ends else {
                    return cx.bad(tree, "not a port range", help);
                };
                match (u16::try_from(low), u16::try_from(high)) {
                    (Ok(0), _) => cx.bad(
                        tree,
                        "port 0 cannot be used",
                        "write a range from 1 to 65535",
                    ),
                    (Ok(low), Ok(high)) if low <= high => Some(Self { low, high }),
                    (Ok(_), Ok(_)) => {
                        cx.bad(tree, "ends before it starts", "write the lower port first")
                    }
                    _ => cx.bad(tree, "a port is at most 65535", help),
                }
            }
            _ => cx.expected(tree, "a port range", "\"32768-60999\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(format!("\"{}-{}\"", self.low, self.high))
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "string", "pattern": r"^\s*\d+\s*[- \t]\s*\d+\s*$" },
            { "type": "integer", "minimum": 1, "maximum": 32768 },
        ]})
    }
}

/// How a client comes by its source port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// `connect()` chooses.
    Connect,
    /// `bind()` to port 0 chooses, then `connect()`.
    Bind,
    /// The application binds to these ports, in turn.
    Fixed(Vec<u16>),
}

impl Field for PortChoice {
    fn kind() -> String {
        "\"connect\" or \"bind\" or [ports]".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "connect" => Some(Self::Connect),
            Value::Text(text) if text == "bind" => Some(Self::Bind),
            Value::Array(items) if items.is_empty() => cx.bad(
                tree,
                "no port at all",
                "write at least one port, such as [2348]",
            ),
            Value::Array(items) => {
                let mut ports = Vec::new();
                for item in items {
                    let port = u16::decode(item, cx)?;
                    if port == 0 || ports.contains(&port) {
                        let reason = if port == 0 {
                            "port 0 is no port"
                        } else {
                            "twice"
                        };
                        return cx.bad(item, reason, "write different ports from 1 to 65535");
                    }
                    ports.push(port);
                }
                Some(Self::Fixed(ports))
            }
            Value::Text(_) => cx.not_a_choice(tree, &["connect", "bind"], &[]),
            _ => cx.expected(tree, "\"connect\", \"bind\" or a list of ports", "[2348]"),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(match self {
            Self::Connect => "\"connect\"".to_owned(),
            Self::Bind => "\"bind\"".to_owned(),
            Self::Fixed(ports) => {
                let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>();
                format!("[{}]", ports.join(", "))
            }
        })
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "enum": ["connect", "bind"] },
            {
                "type": "array", "minItems": 1, "uniqueItems": true,
                "items": { "type": "integer", "minimum": 1, "maximum": 65535 },
            },
        ]})
    }
}

/// A number of pods or a share of the replicas, as Kubernetes writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many pods.
    Count(u32),
    /// So many percent of the replicas.
    Percent(u32),
}

impl Amount {
    /// The number of pods; shares of a pod count as a whole one.
    pub const fn rounded_up(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(share) => (replicas * share).div_ceil(100),
        }
    }

    /// The number of pods; shares of a pod do not count.
    pub const fn rounded_down(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(share) => replicas * share / 100,
        }
    }
}

impl Field for Amount {
    fn kind() -> String {
        "integer or \"percent%\"".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Integer(count @ 0..=10_000) => Some(Self::Count(*count as u32)),
            Value::Text(text) => {
                let share = text
                    .strip_suffix('%')
                    .and_then(|digits| digits.parse().ok());
                match share {
                    Some(share @ 0..=1000) => Some(Self::Percent(share)),
                    _ => cx.bad(tree, "not a share", "write for example \"25%\" or 1"),
                }
            }
            Value::Integer(_) => cx.bad(tree, "out of range", "write 0 to 10000, or \"25%\""),
            _ => cx.expected(tree, "a number of pods or a share", "\"25%\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(match self {
            Self::Count(count) => count.to_string(),
            Self::Percent(share) => format!("\"{share}%\""),
        })
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 10000 },
            { "type": "string", "pattern": "^\\d+%$" },
        ]})
    }
}

/// Who keeps the real servers up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProxyVersion {
    /// The scripted controller of the kernel lab: adds, sets weight 0, deletes at the check. Sets no sysctls.
    None,
    /// kube-proxy of this release.
    Release(Version),
}

impl ProxyVersion {
    /// Reads `1.17.0`, `v1.17` or `none`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::None);
        }
        let digits = text.strip_prefix('v').unwrap_or(text);
        let digits = digits.split(['-', '+']).next()?;
        let mut parts = digits.split('.').map(|part| part.parse::<u16>().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        let patch = parts.next().unwrap_or(Some(0))?;
        let known = major == 1 && (8..=60).contains(&minor) && parts.next().is_none();
        known.then_some(Self::Release(Version(major, minor, patch)))
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Release(Version(major, minor, patch)) => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}

impl Field for ProxyVersion {
    fn kind() -> String {
        "Kubernetes version or \"none\"".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Value::Text(text) = &tree.value else {
            return cx.expected(tree, "a version in quotes", "\"1.17.0\"");
        };
        match Self::parse(text) {
            Some(version) => Some(version),
            None => cx.bad(
                tree,
                "not a version of kube-proxy with IPVS (1.8 and later)",
                "write for example \"1.17.0\", or \"none\" for the scripted controller",
            ),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }

    fn schema() -> Json {
        json!({ "type": "string", "examples": ["1.17.0", "1.28.3", "none"] })
    }
}

/// Raw sysctls as `sysctl -a` names them, in the order written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SysctlTable(pub Vec<(String, String)>);

impl SysctlTable {
    fn collect(&mut self, prefix: &str, tree: &Tree, cx: &mut Cx) {
        let text = match &tree.value {
            Value::Integer(value) => value.to_string(),
            Value::Bool(value) => u8::from(*value).to_string(),
            Value::Text(text) => text.clone(),
            // Keys without quotes nest: net.ipv4.vs.conntrack = 1.
            Value::Table(table) => {
                for (key, value) in table {
                    let full = if prefix.is_empty() {
                        key.name.clone()
                    } else {
                        format!("{prefix}.{}", key.name)
                    };
                    cx.within(&key.name, value.place, |cx| self.collect(&full, value, cx));
                }
                return;
            }
            _ => {
                cx.expected::<()>(tree, "a number or a string", "1");
                return;
            }
        };
        self.0.push((prefix.to_owned(), text));
    }
}

impl Field for SysctlTable {
    fn kind() -> String {
        "table of sysctls".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        if !matches!(tree.value, Value::Table(_)) {
            return cx.expected(tree, "a table", "{ \"net.ipv4.vs.conn_reuse_mode\" = 0 }");
        }
        let mut all = Self::default();
        all.collect("", tree, cx);
        Some(all)
    }

    fn encode(&self) -> Option<String> {
        let entry = |(key, value): &(String, String)| {
            let value = match value.parse::<i64>() {
                Ok(number) if number.to_string() == *value => value.clone(),
                _ => quoted(value),
            };
            format!("{} = {value}", quoted(key))
        };
        let entries = self.0.iter().map(entry).collect::<Vec<_>>();
        Some(match entries.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{ {} }}", entries.join(", ")),
        })
    }

    fn schema() -> Json {
        json!({ "type": "object", "additionalProperties": { "type": ["integer", "boolean", "string", "object"] } })
    }
}

/// Kernel behaviours that differ from what the release says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateTable(pub BTreeMap<Gate, bool>);

impl Field for GateTable {
    fn kind() -> String {
        "table of booleans".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Value::Table(table) = &tree.value else {
            return cx.expected(tree, "a table", "{ \"weight-zero-any-mode\" = true }");
        };
        let mut gates = BTreeMap::new();
        let names = || ipvs_model::kernel::GATES.iter().map(|row| row.name);
        for (key, value) in table {
            cx.within(&key.name, value.place, |cx| {
                match key.name.parse::<Gate>() {
                    Ok(gate) => {
                        gates.extend(bool::decode(value, cx).map(|present| (gate, present)));
                    }
                    Err(_) => {
                        let at_key = Tree {
                            place: key.place,
                            ..value.clone()
                        };
                        let help = match nearest(&key.name, names()) {
                            Some(near) => format!("did you mean \"{near}\"?"),
                            None => "`sim kernels` lists them".to_owned(),
                        };
                        cx.bad::<()>(&at_key, "no such kernel behaviour", &help);
                    }
                }
            });
        }
        Some(Self(gates))
    }

    fn encode(&self) -> Option<String> {
        let entries = self
            .0
            .iter()
            .map(|(gate, on)| format!("\"{gate}\" = {on}"))
            .collect::<Vec<_>>();
        Some(match entries.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{ {} }}", entries.join(", ")),
        })
    }

    fn schema() -> Json {
        let properties = ipvs_model::kernel::GATES
            .iter()
            .map(|row| {
                let summary = row.summary.trim();
                (
                    row.name.to_owned(),
                    json!({ "type": "boolean", "description": summary }),
                )
            })
            .collect::<serde_json::Map<_, _>>();
        json!({ "type": "object", "properties": properties, "additionalProperties": false })
    }
}
