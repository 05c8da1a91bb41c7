//! What names a node or its proxy: kernels, versions, sysctls; and Kubernetes' amounts.

use std::collections::BTreeMap;
use std::fmt;

use ipvs_model::kernel::{GATES, Gate, Kernel, ParseReleaseError, Version};
use ipvs_model::kube;
use serde_json::{Value as Json, json};

use crate::scenario::ENTRIES_MAX;
use crate::scenario::field::{Cx, Field, quoted};
use crate::scenario::suggest::nearest;
use crate::scenario::tree::{Tree, Value};

/// A kernel whose release string is known to be good.
pub fn kernel(release: &'static str) -> Kernel {
    release.parse().expect("a default kernel parses: tested")
}

impl Field for Kernel {
    fn kind() -> String {
        "kernel release".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Some(text) = tree.text() else {
            return cx.expected(tree, "a kernel release in quotes", "\"5.15.0-91-generic\"");
        };
        match text.parse() {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                let error: ParseReleaseError = error;
                let message = error.to_string();
                let (reason, help) = message
                    .split_once("; ")
                    .unwrap_or((&message, "write what `uname -r` prints"));
                cx.bad(tree, reason, help)
            }
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }

    fn schema() -> Json {
        json!({ "type": "string", "examples": ["4.19.57", "5.15.0-91-generic", "3.10.0-1160.el7", "5.4.x as 5.4.163"] })
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
    /// kube-proxy of this branch, no patch release stated: its last one.
    Branch(u16, u16),
}

impl ProxyVersion {
    /// Reads `1.17.0`, `v1.17.4-eks-1234`, `1.17` or `none`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::None);
        }
        let release = text.parse::<kube::ProxyVersion>().ok()?;
        let Version(major, minor, _) = release.version;
        Some(if release.patch_stated {
            Self::Release(release.version)
        } else {
            Self::Branch(major, minor)
        })
    }

    /// The number to compare with; of a branch, that of its last release. `None` for the script.
    pub const fn number(self) -> Option<Version> {
        match self {
            Self::None => None,
            Self::Release(version) => Some(version),
            Self::Branch(major, minor) => Some(Version(major, minor, u16::MAX)),
        }
    }

    /// The release as the model knows it; `None` for the script.
    pub fn release(self) -> Option<kube::ProxyVersion> {
        match self {
            Self::None => None,
            release => release.to_string().parse().ok(),
        }
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Release(Version(major, minor, patch)) => write!(f, "{major}.{minor}.{patch}"),
            Self::Branch(major, minor) => write!(f, "{major}.{minor}"),
        }
    }
}

impl Field for ProxyVersion {
    fn kind() -> String {
        "Kubernetes version or \"none\"".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Some(text) = tree.text() else {
            return cx.expected(tree, "a version in quotes", "\"1.17.0\"");
        };
        match Self::parse(text) {
            Some(version) => Some(version),
            None => cx.bad(
                tree,
                "not a version of kube-proxy that is modelled (1.11 and later)",
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
        if self.0.len() > ENTRIES_MAX {
            return;
        }
        // The last one wins, as with `sysctl -p`; a flag comes after the file.
        self.0.retain(|(key, _)| key != prefix);
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
        if all.0.len() > ENTRIES_MAX {
            return cx.bad(
                tree,
                "more than 1000 sysctls",
                "keep those that the model reads",
            );
        }
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
        let names = || GATES.iter().map(|row| row.name);
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
        let properties = GATES
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

/// A release of Cilium, from 1.8 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct CiliumVersion(pub Version);

impl CiliumVersion {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let mut parts = text.splitn(3, '.').map(str::parse::<u16>);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let patch = parts.next().map_or(Some(0), Result::ok)?;
        (major == 1 && (8..=99).contains(&minor)).then_some(Self(Version(major, minor, patch)))
    }
}

impl Field for CiliumVersion {
    fn kind() -> String {
        "Cilium release".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let help = "write 1.8 to 1.99, such as \"1.11.6\"";
        match tree.text() {
            Some(text) => match Self::parse(text) {
                Some(version) => Some(version),
                None => cx.bad(tree, "not a Cilium release that is modelled", help),
            },
            None => cx.expected(tree, "a release in quotes", "\"1.11.6\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&self.0.to_string()))
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^v?1\.\d+(\.\d+)?$" })
    }
}
