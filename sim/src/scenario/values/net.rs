//! Addresses, protocols and ports.

use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto};
use serde_json::{Value as Json, json};

use crate::scenario::field::{Cx, Field, quoted};
use crate::scenario::tree::{Tree, Value};

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
                    (Ok(1..), Ok(high)) if low > u32::from(high) => {
                        cx.bad(tree, "ends before it starts", "write the lower port first")
                    }
                    (Ok(low @ 1..), Ok(high)) => Some(Self { low, high }),
                    _ => cx.bad(tree, "ports are 1 to 65535", help),
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
    /// The application holds so many sockets open, each on a port that the kernel chose, and uses them in turn. UDP.
    Pool(u16),
}

/// `{ pool = N }` has at most this many sockets.
const POOL_MAX: u16 = 10_000;

impl Field for PortChoice {
    fn kind() -> String {
        "\"connect\" or \"bind\" or [ports] or { pool = ... }".to_owned()
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
            Value::Table(table) => match table.as_slice() {
                [(key, size)] if key.name == "pool" => {
                    match cx.within("pool", size.place, |cx| u16::decode(size, cx))? {
                        size @ 1..=POOL_MAX => Some(Self::Pool(size)),
                        _ => cx.bad(size, "no such pool", "write 1 to 10000 sockets"),
                    }
                }
                _ => cx.not_a_choice(tree, &["connect", "bind"], &["pool"]),
            },
            Value::Text(_) => cx.not_a_choice(tree, &["connect", "bind"], &["pool"]),
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
            Self::Pool(size) => format!("{{ pool = {size} }}"),
        })
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "enum": ["connect", "bind"] },
            {
                "type": "array", "minItems": 1, "uniqueItems": true,
                "items": { "type": "integer", "minimum": 1, "maximum": 65535 },
            },
            {
                "type": "object", "required": ["pool"], "additionalProperties": false,
                "properties": { "pool": { "type": "integer", "minimum": 1, "maximum": POOL_MAX } },
            },
        ]})
    }
}
