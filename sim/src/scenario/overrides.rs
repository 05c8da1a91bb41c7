//! Flags laid over a file: `--set path=value` and the short names of the fields that people vary most.
//!
//! Both edit the document before it is decoded, so that a flag is checked exactly like a file and an error about it
//! shows the flag.

use std::fmt;
use std::path::Path;

use super::suggest::nearest;
use super::tree::{Key, Table, Tree, Value};
use super::{Loaded, Scenario, decode, read_text};
use crate::diag::{Diag, Diagnostics, Place, Source};

/// No more overrides than this on one document.
const OVERRIDES_MAX: usize = 1000;
/// No field lies deeper.
const PATH_DEPTH_MAX: usize = 16;

/// What a flag calls a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldName {
    /// Its path, with `--set`.
    Path(String),
    /// One of [`SHORTCUTS`].
    Short(&'static str),
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Short(name) => f.write_str(name),
        }
    }
}

/// A scenario's text with flags laid over it, not yet decoded. Cheap to clone: a sweep clones it for every point.
#[derive(Clone, Debug)]
pub struct Document {
    tree: Tree,
    sources: Vec<Source>,
}

impl Default for Document {
    /// Nothing written: the defaults, which are the founding case.
    fn default() -> Self {
        Self {
            tree: Tree::empty_table(Place::default()),
            sources: vec![Source {
                name: "the built-in founding case".to_owned(),
                text: String::new(),
            }],
        }
    }
}

impl Document {
    /// Reads the syntax of a text that came from `name`.
    ///
    /// # Errors
    /// If it is not TOML.
    pub fn parse(text: &str, name: &str) -> Result<Self, Diagnostics> {
        let sources = vec![Source {
            name: name.to_owned(),
            text: text.to_owned(),
        }];
        match Tree::parse(text, 0) {
            Ok(tree) => Ok(Self { tree, sources }),
            Err(diags) => Err(Diagnostics { sources, diags }),
        }
    }

    /// Reads the syntax of a file.
    ///
    /// # Errors
    /// If it cannot be read or is not TOML.
    pub fn load(path: &Path) -> Result<Self, Diagnostics> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }

    /// Lays `--set path=value` over it. The path is the field's, dotted: `node.hz`, `client.0.ports`, `client.*.ports`
    /// for all clients, `node.sysctl.net.ipv4.vs.conn_reuse_mode`. The value is TOML or a bare string.
    ///
    /// # Errors
    /// If there is no place of that path. Whether field and value are good turns out when the document is resolved.
    pub fn set(&mut self, path: &str, value: &str) -> Result<(), Diagnostics> {
        let text = format!("--set {path}={value}");
        self.edit(&text, "--set ".len(), path, path, value, None)
    }

    /// Lays a flag with a short name over it: `set_named("rps", "2000")`.
    ///
    /// # Errors
    /// If there is no such short name, or the scenario is not of the kind it is for.
    pub fn set_named(&mut self, name: &str, value: &str) -> Result<(), Diagnostics> {
        let Some(shortcut) = SHORTCUTS.iter().find(|s| s.name == name) else {
            let diag = Diag::error("unknown-flag", format!("there is no short name `{name}`"));
            let diag = match nearest(name, SHORTCUTS.iter().map(|s| s.name)) {
                Some(near) => diag.help(format!("did you mean `{near}`?")),
                None => diag.help("use --set PATH=VALUE for fields without a short name"),
            };
            return Err(Diagnostics::bare(diag));
        };
        let text = format!("--{name} {value}");
        let start = "--".len();
        match shortcut.edit {
            Edit::Path(path) => self.edit(&text, start, name, path, value, None),
            Edit::Rate => {
                let kind = self.open_loop_kind();
                let wrap = [kind, "rate"];
                self.edit(&text, start, name, "client.*.arrivals", value, Some(&wrap))
            }
            Edit::Concurrency => {
                let wrap = ["closed", "concurrency"];
                self.edit(&text, start, name, "client.*.arrivals", value, Some(&wrap))
            }
        }
    }

    /// Lays one override over it, by whichever name it was given.
    ///
    /// # Errors
    /// As [`Document::set`] and [`Document::set_named`].
    pub fn set_field(&mut self, field: &FieldName, value: &str) -> Result<(), Diagnostics> {
        match field {
            FieldName::Path(path) => self.set(path, value),
            FieldName::Short(name) => self.set_named(name, value),
        }
    }

    /// The line of the file, from 1, at which a field stands; none if the file does not have it, or a flag does.
    pub fn line_of(&self, path: &str) -> Option<usize> {
        let mut at = &self.tree;
        let mut place = None;
        for step in segments(path) {
            match &at.value {
                Value::Table(table) => {
                    let (key, value) = table.iter().find(|(key, _)| key.name == step)?;
                    (at, place) = (value, Some(key.place));
                }
                Value::Array(items) => at = items.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            }
        }
        let place = place.filter(|place| place.source == 0)?;
        let text = &self.sources.first()?.text;
        Some(text.get(..place.start)?.matches('\n').count() + 1)
    }

    /// Decodes and checks.
    ///
    /// # Errors
    /// All mistakes in file and flags.
    pub fn resolve(&self) -> Result<Loaded, Diagnostics> {
        decode(&self.tree, self.sources.clone())
    }

    /// `poisson` if the first client's arrivals are, else `constant`.
    fn open_loop_kind(&self) -> &'static str {
        let get = |tree: &Tree, name: &str| match &tree.value {
            Value::Table(table) => table
                .iter()
                .find(|(k, _)| k.name == name)
                .map(|(_, v)| v.clone()),
            Value::Array(items) => items.first().cloned(),
            _ => None,
        };
        let arrivals = get(&self.tree, "client")
            .and_then(|clients| get(&clients, "0"))
            .and_then(|client| get(&client, "arrivals"));
        match arrivals.and_then(|a| get(&a, "poisson")) {
            Some(_) => "poisson",
            None => "constant",
        }
    }

    /// Puts `value` at `path`, inside tables of the names in `wrap`. `shown` is what stands in the flag's text from
    /// byte `start` on; the value is the text's end.
    fn edit(
        &mut self,
        text: &str,
        start: usize,
        shown: &str,
        path: &str,
        value: &str,
        wrap: Option<&[&str]>,
    ) -> Result<(), Diagnostics> {
        let source = self.sources.len();
        self.sources.push(Source {
            name: "command line".to_owned(),
            text: text.to_owned(),
        });
        let value_place = Place::new(source, text.len() - value.len()..text.len());
        let mut leaf = Tree::of_flag(value, value_place);
        for name in wrap.into_iter().flatten().rev() {
            let key = Key {
                name: (*name).to_owned(),
                place: value_place,
            };
            leaf = Tree {
                value: Value::Table(vec![(key, leaf)]),
                place: value_place,
                raw: None,
            };
        }
        let mut steps = Vec::new();
        let mut at = start;
        for name in segments(path) {
            let place = if shown == path {
                Place::new(source, at..at + name.len())
            } else {
                Place::new(source, start..start + shown.len())
            };
            at += name.len() + 1;
            steps.push(Key {
                name: name.to_owned(),
                place,
            });
        }
        let result = if self.sources.len() > OVERRIDES_MAX {
            Err(Diag::error(
                "too-many",
                "more than 1000 overrides of one scenario",
            ))
        } else if steps.len() > PATH_DEPTH_MAX || steps.iter().any(|step| step.name.is_empty()) {
            Err(
                Diag::error("bad-path", format!("`{path}` is not the path of a field"))
                    .at(
                        Place::new(source, start..start + shown.len()),
                        "an empty part, or too deep",
                    )
                    .help("write a dotted path, such as node.hz or client.0.ports"),
            )
        } else {
            put(&mut self.tree, &steps, &leaf)
        };
        result.map_err(|diag| Diagnostics {
            sources: self.sources.clone(),
            diags: vec![diag],
        })
    }
}

/// The parts of a path. Sysctls and gates have names of their own with dots in them.
fn segments(path: &str) -> Vec<&str> {
    for table in ["node.sysctl", "node.kernel_gates"] {
        if let Some(key) = path
            .strip_prefix(table)
            .and_then(|rest| rest.strip_prefix('.'))
        {
            let (section, name) = table.split_at("node".len());
            return vec![section, &name[1..], key];
        }
    }
    path.split('.').collect()
}

/// Puts `leaf` at the end of `steps`, making tables on the way.
fn put(tree: &mut Tree, steps: &[Key], leaf: &Tree) -> Result<(), Diag> {
    let Some((step, rest)) = steps.split_first() else {
        *tree = leaf.clone();
        return Ok(());
    };
    match &mut tree.value {
        Value::Array(items) => put_in_array(items, steps, leaf),
        Value::Table(table) => {
            let found = table.iter().position(|(key, _)| key.name == step.name);
            let index = match found {
                Some(index) => index,
                None => {
                    table.push((step.clone(), Tree::empty_table(step.place)));
                    table.len() - 1
                }
            };
            // The defaults have one client; a flag about it makes it explicit.
            let is_new_client = found.is_none() && step.name == "client" && !rest.is_empty();
            if is_new_client {
                table[index].1.value = Value::Array(vec![Tree::empty_table(step.place)]);
            }
            put(&mut table[index].1, rest, leaf)
        }
        // A word that becomes a table: dead_end = "blackhole", then --set server.dead_end.reassigned.after=30s.
        _ => {
            tree.value = Value::Table(Table::new());
            tree.place = step.place;
            tree.raw = None;
            put(tree, steps, leaf)
        }
    }
}

/// A number picks one of the array's tables, `*` or the name of a field means all of them.
fn put_in_array(items: &mut [Tree], steps: &[Key], leaf: &Tree) -> Result<(), Diag> {
    let (step, rest) = (&steps[0], &steps[1..]);
    let count = items.len();
    if let Ok(index) = step.name.parse::<usize>() {
        let Some(item) = items.get_mut(index) else {
            let title = format!("there is no number {index} among {count}");
            return Err(Diag::error("bad-path", title)
                .at(step.place, "counted from 0")
                .help("write a smaller number, or * for all"));
        };
        return put(item, rest, leaf);
    }
    let rest = if step.name == "*" { rest } else { steps };
    items.iter_mut().try_for_each(|item| put(item, rest, leaf))
}

impl Scenario {
    /// The defaults, or the text of a file with its name, with `path = value` overrides laid over it.
    ///
    /// # Errors
    /// All mistakes in text and overrides; those about an override show it as `--set path=value`.
    pub fn with_overrides(
        base: Option<(&str, &str)>,
        overrides: &[(&str, &str)],
    ) -> Result<Loaded, Diagnostics> {
        let mut document = match base {
            Some((text, name)) => Document::parse(text, name)?,
            None => Document::default(),
        };
        for (path, value) in overrides {
            document.set(path, value)?;
        }
        document.resolve()
    }
}

/// A short name for something that people vary.
#[derive(Clone, Copy, Debug)]
pub struct Shortcut {
    /// The flag, without its dashes.
    pub name: &'static str,
    /// Placeholder of the value in help texts.
    pub value: &'static str,
    /// What it changes, for help texts.
    pub help: &'static str,
    edit: Edit,
}

impl Shortcut {
    /// The path of the field that it sets.
    pub const fn path(&self) -> &'static str {
        match self.edit {
            Edit::Path(path) => path,
            Edit::Rate => "client.*.arrivals.constant.rate (poisson if the first client's are)",
            Edit::Concurrency => "client.*.arrivals.closed.concurrency",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Edit {
    Path(&'static str),
    Rate,
    Concurrency,
}

const fn short(
    name: &'static str,
    value: &'static str,
    edit: Edit,
    help: &'static str,
) -> Shortcut {
    Shortcut {
        name,
        value,
        help,
        edit,
    }
}

/// Every short name: the one place that help, `sim run` and `sim sweep` take them from.
pub const SHORTCUTS: &[Shortcut] = &[
    short(
        "ports",
        "PORTS",
        Edit::Path("client.*.ports"),
        "Ephemeral ports of the clients: how many from 32768 on, or LOW-HIGH",
    ),
    short(
        "rps",
        "RATE",
        Edit::Rate,
        "Requests a second of each client table, at constant distances unless they were Poisson",
    ),
    short(
        "concurrency",
        "N",
        Edit::Concurrency,
        "A closed loop of so many workers in each client table",
    ),
    short(
        "conn-reuse-mode",
        "0..3",
        Edit::Path("node.sysctl.net.ipv4.vs.conn_reuse_mode"),
        "Sysctl net.ipv4.vs.conn_reuse_mode of the node",
    ),
    short(
        "expire-nodest-conn",
        "0|1",
        Edit::Path("node.sysctl.net.ipv4.vs.expire_nodest_conn"),
        "Sysctl net.ipv4.vs.expire_nodest_conn of the node",
    ),
    short(
        "conntrack-max",
        "N",
        Edit::Path("node.sysctl.net.netfilter.nf_conntrack_max"),
        "Conntrack entries that the node has room for",
    ),
    short(
        "kernel",
        "RELEASE",
        Edit::Path("node.kernel"),
        "Kernel of the node that balances",
    ),
    short(
        "client-kernel",
        "RELEASE",
        Edit::Path("client.*.kernel"),
        "Kernel of the clients, which decides how ports are chosen",
    ),
    short(
        "hz",
        "HZ",
        Edit::Path("node.hz"),
        "Timer frequency of the node: 100, 250, 300 or 1000",
    ),
    short(
        "mode",
        "MODE",
        Edit::Path("node.mode"),
        "What balances: ipvs, iptables, nftables, cilium-packet, cilium-socket or headless",
    ),
    short(
        "proxy-version",
        "VERSION",
        Edit::Path("kube_proxy.version"),
        "Release of kube-proxy, or none",
    ),
    short(
        "scheduler",
        "NAME",
        Edit::Path("kube_proxy.scheduler"),
        "IPVS scheduler: rr wrr lc wlc sed nq sh mh",
    ),
    short(
        "masquerade",
        "HOW",
        Edit::Path("kube_proxy.masquerade"),
        "Source NAT: none, masquerade, random-fully or kube-proxy",
    ),
    short(
        "session-affinity",
        "TIME",
        Edit::Path("service.session_affinity"),
        "How long a client stays with its pod, or none",
    ),
    short(
        "clients",
        "N",
        Edit::Path("client.*.count"),
        "Hosts in each client table; they share its rate",
    ),
    short(
        "closes-first",
        "server|client",
        Edit::Path("client.*.closes_first"),
        "Who sends the first FIN",
    ),
    short(
        "requests-per-connection",
        "N",
        Edit::Path("client.*.requests_per_connection"),
        "Keep-alive: requests on one connection",
    ),
    short(
        "tw-reuse",
        "0|1|2",
        Edit::Path("client.*.tcp_tw_reuse"),
        "Sysctl net.ipv4.tcp_tw_reuse of the clients",
    ),
    short(
        "port-choice",
        "HOW",
        Edit::Path("client.*.port_choice"),
        "Source port: connect, bind, or a list of ports such as [2348]",
    ),
    short(
        "timeout",
        "TIME",
        Edit::Path("client.*.timeout"),
        "When the application gives up a request, or none",
    ),
    short(
        "replicas",
        "N",
        Edit::Path("rollout.deployment.replicas"),
        "Pods of the Deployment",
    ),
    short(
        "pre-stop",
        "TIME",
        Edit::Path("rollout.deployment.pre_stop"),
        "How long the preStop hook runs",
    ),
    short(
        "grace-period",
        "TIME",
        Edit::Path("rollout.deployment.termination_grace_period"),
        "Pod terminationGracePeriodSeconds",
    ),
    short(
        "dead-end",
        "WHAT",
        Edit::Path("server.dead_end"),
        "What answers for a pod that is gone: blackhole, unreachable, arp-failure or reset",
    ),
    short("duration", "TIME", Edit::Path("duration"), "Simulated time"),
];
