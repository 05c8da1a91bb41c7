//! `manifest.toml` and the output of `sysctl -a`: what a node says about itself.
//!
//! The format asks for sysctl values as quoted strings; integers and booleans are accepted too, because
//! recordings have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipvs_model::kernel::Kernel;
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::Span;

use super::place::{Parsed, Place, ReadError, Skipped, Stamp};

/// The seconds by which a listed timeout may differ from the model's unless the manifest says otherwise.
pub const SNAPSHOT_TOLERANCE_S: f64 = 1.1;

/// Where packets were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vantage {
    /// On the machine that runs IPVS: before and after translation.
    Node,
    /// On the client.
    Client,
    /// In a pod.
    Pod,
}

/// What is known of the recorded node.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Output of `uname -r`; `None` for a mixed log, which does not say.
    pub kernel: Option<Kernel>,
    /// Where packets were seen.
    pub vantage: Vantage,
    /// Timer frequency, if recorded.
    pub hz: Option<u32>,
    /// When the node booted, if recorded: then the grid of its timer wheel is known.
    pub boot: Option<Stamp>,
    /// How long a packet takes through the node at most, if recorded.
    pub transit: Option<Span>,
    /// Tolerance of listed timeouts, in seconds.
    pub snapshot_tolerance_s: f64,
    /// Sysctls by their keys.
    pub sysctl: BTreeMap<String, String>,
    /// The `[kube_proxy]` table.
    pub kube_proxy: BTreeMap<String, String>,
    /// Each file's last block is whole. A recorder that was cut off says that it was not finished.
    pub finished: bool,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            kernel: None,
            vantage: Vantage::Node,
            hz: None,
            boot: None,
            transit: None,
            snapshot_tolerance_s: SNAPSHOT_TOLERANCE_S,
            sysctl: BTreeMap::new(),
            kube_proxy: BTreeMap::new(),
            finished: true,
        }
    }
}

impl Manifest {
    /// Reads a manifest. Keys that have no meaning here are counted.
    ///
    /// # Errors
    /// If it is no TOML, not schema 1, lacks the kernel, or has a value of the wrong kind.
    pub fn parse(file: &Arc<str>, text: &str, skipped: &mut Skipped) -> Result<Self, ReadError> {
        let table = text.parse::<toml::Table>().map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            ReadError::new(file, Place::Line(line), error.message().to_owned())
        })?;
        let reader = Reader { file, text };
        let mut manifest = Self::default();
        let mut schema = None;
        for (key, value) in &table {
            match key.as_str() {
                "schema" => schema = Some(reader.number(key, value)?),
                "kernel" => manifest.kernel = Some(reader.kernel(key, value)?),
                "vantage" => manifest.vantage = reader.vantage(key, value)?,
                "hz" => manifest.hz = Some(reader.hz(key, value)?),
                "boot_time_s" => manifest.boot = Some(reader.stamp(key, value)?),
                "transit_us" => {
                    let micros = u64::try_from(reader.number(key, value)?);
                    let reason = "`transit_us` is a number of microseconds";
                    let micros = micros.map_err(|_| reader.error(key, reason))?;
                    manifest.transit = Some(Span::from_micros(micros.min(1_000_000)));
                }
                "snapshot_tolerance" => {
                    manifest.snapshot_tolerance_s = reader.tolerance(key, value)?;
                }
                "sysctl" => manifest.sysctl = reader.strings(key, value)?,
                "recorder" => {
                    let told = reader.strings(key, value)?;
                    manifest.finished = told.get("finished").is_none_or(|told| told != "0");
                }
                "kube_proxy" => manifest.kube_proxy = reader.strings(key, value)?,
                // Provenance, and what boot_time_s says already.
                "made-by" | "jiffies_at_boot" => {}
                _ => {
                    let place = Place::Line(reader.line(key));
                    skipped.count(file, "key without a meaning here", place);
                }
            }
        }
        match schema {
            Some(1) => {}
            Some(_) => return Err(reader.error("schema", "only schema 1 is known")),
            None => return Err(reader.error("", "`schema = 1` is missing")),
        }
        if manifest.kernel.is_none() {
            let reason = "`kernel` is missing: write what `uname -r` prints on the node";
            return Err(reader.error("", reason));
        }
        manifest.sysctls(file)?;
        Ok(manifest)
    }

    /// The sysctls as the model wants them; defaults of the kernel where the manifest is silent.
    ///
    /// # Errors
    /// If a value is one that the sysctl cannot have.
    pub fn sysctls(&self, file: &Arc<str>) -> Result<Sysctls, ReadError> {
        let kernel = self.kernel.as_ref().map(Kernel::behaviours);
        let mut sysctls = Sysctls::of(kernel.unwrap_or_default());
        for (key, value) in &self.sysctl {
            sysctls
                .set(key, value)
                .map_err(|error| ReadError::new(file, Place::File, error.to_string()))?;
        }
        Ok(sysctls)
    }
}

/// Reads the values of a manifest with messages that name the line.
struct Reader<'a> {
    file: &'a Arc<str>,
    text: &'a str,
}

impl Reader<'_> {
    /// The line on which a top-level key stands. The table is already parsed, so this is for messages only.
    fn line(&self, key: &str) -> u64 {
        let stands = |line: &str| {
            let line = line.trim_start().trim_start_matches('[');
            let bare = line.trim_start_matches('"');
            bare.strip_prefix(key).is_some_and(|rest| {
                rest.trim_start_matches('"')
                    .trim_start()
                    .starts_with(['=', ']'])
            })
        };
        let found = self.text.lines().position(stands);
        found.map_or(1, |index| index as u64 + 1)
    }

    fn error(&self, key: &str, reason: impl Into<String>) -> ReadError {
        let place = if key.is_empty() {
            Place::File
        } else {
            Place::Line(self.line(key))
        };
        ReadError::new(self.file, place, reason)
    }

    fn number(&self, key: &str, value: &toml::Value) -> Result<i64, ReadError> {
        let text = value.as_str().and_then(|text| text.trim().parse().ok());
        value
            .as_integer()
            .or(text)
            .ok_or_else(|| self.error(key, format!("`{key}` must be a whole number")))
    }

    fn text<'v>(&self, key: &str, value: &'v toml::Value) -> Result<&'v str, ReadError> {
        value
            .as_str()
            .ok_or_else(|| self.error(key, format!("`{key}` must be a quoted string")))
    }

    fn kernel(&self, key: &str, value: &toml::Value) -> Result<Kernel, ReadError> {
        let release = self.text(key, value)?;
        release
            .parse::<Kernel>()
            .map_err(|error| self.error(key, error.to_string()))
    }

    fn vantage(&self, key: &str, value: &toml::Value) -> Result<Vantage, ReadError> {
        match self.text(key, value)? {
            "node" => Ok(Vantage::Node),
            "client" => Ok(Vantage::Client),
            "pod" => Ok(Vantage::Pod),
            other => Err(self.error(
                key,
                format!("`vantage` is \"node\", \"client\" or \"pod\", not \"{other}\""),
            )),
        }
    }

    fn hz(&self, key: &str, value: &toml::Value) -> Result<u32, ReadError> {
        let hz = u32::try_from(self.number(key, value)?).unwrap_or(0);
        if (1..=1000).contains(&hz) {
            return Ok(hz);
        }
        Err(self.error(key, "`hz` is 1 to 1000: CONFIG_HZ of the kernel"))
    }

    fn stamp(&self, key: &str, value: &toml::Value) -> Result<Stamp, ReadError> {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(secs) => secs.to_string(),
            toml::Value::Float(secs) => format!("{secs:.6}"),
            _ => String::new(),
        };
        Stamp::parse(text.trim())
            .ok_or_else(|| self.error(key, format!("`{key}` must be Unix time in seconds")))
    }

    fn tolerance(&self, key: &str, value: &toml::Value) -> Result<f64, ReadError> {
        let seconds = match value {
            toml::Value::Float(seconds) => *seconds,
            _ => self.number(key, value)? as f64,
        };
        if (0.0..=3600.0).contains(&seconds) {
            return Ok(seconds);
        }
        Err(self.error(key, "`snapshot_tolerance` is 0 to 3600 seconds"))
    }

    fn strings(
        &self,
        key: &str,
        value: &toml::Value,
    ) -> Result<BTreeMap<String, String>, ReadError> {
        let table = value
            .as_table()
            .ok_or_else(|| self.error(key, format!("`{key}` must be a table: `[{key}]`")))?;
        let mut strings = BTreeMap::new();
        for (name, value) in table {
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(on) => u8::from(*on).to_string(),
                toml::Value::Float(number) => number.to_string(),
                // A key without quotes, `net.ipv4.vs.conntrack = 1`, makes nested tables of its parts.
                toml::Value::Table(_) if key == "sysctl" => {
                    flatten(name, value, &mut strings);
                    continue;
                }
                _ => {
                    let reason = format!("`{name}` must be a string or a number");
                    return Err(self.error(name, reason));
                }
            };
            strings.insert(name.clone(), text);
        }
        Ok(strings)
    }
}

/// Joins nested tables to dotted keys. TOML limits the depth of what it parses, so this ends.
fn flatten(prefix: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                flatten(&format!("{prefix}.{name}"), value, into);
            }
        }
        toml::Value::String(text) => {
            into.insert(prefix.to_owned(), text.clone());
        }
        toml::Value::Boolean(on) => {
            into.insert(prefix.to_owned(), u8::from(*on).to_string());
        }
        other => {
            into.insert(prefix.to_owned(), other.to_string());
        }
    }
}

fn line_of(text: &str, offset: usize) -> u64 {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|&&b| b == b'\n').count() as u64 + 1
}

/// Reads the output of `sysctl -a`: `key = value` lines. Other lines (complaints of the tool) are counted.
pub fn parse_sysctls(
    file: &Arc<str>,
    text: &str,
    skipped: &mut Skipped,
) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let place = Place::Line(index as u64 + 1);
        if line.trim().is_empty() {
            continue;
        }
        match parse_sysctl_line(line) {
            Parsed::Item((key, value)) => {
                values.insert(key, value);
            }
            Parsed::Unknown(why) | Parsed::Foreign(why) => skipped.count(file, why, place),
            Parsed::Heading => {}
        }
    }
    values
}

/// Reads a line of `sysctl -a` or `sysctl KEY`: a key with dots between its parts, and its value.
pub fn parse_sysctl_line(line: &str) -> Parsed<(String, String)> {
    match line.split_once('=') {
        Some((key, value)) if is_key(key.trim()) => {
            Parsed::Item((key.trim().replace('/', "."), value.trim().to_owned()))
        }
        _ => Parsed::Unknown("no line of sysctl -a"),
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && !key.contains(char::is_whitespace) && key.contains(['.', '/'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest, ReadError> {
        Manifest::parse(&Arc::from("manifest.toml"), text, &mut Skipped::default())
    }

    const RECORDED: &str = "schema = 1\nkernel = \"6.12.117\"\nvantage = \"node\"\nhz = 100\n\n\
        [sysctl]\n\"net.ipv4.vs.conntrack\" = 1\n\"net.ipv4.vs.conn_reuse_mode\" = \"0\"\n\
        net.ipv4.vs.expire_nodest_conn = 1\n";

    #[test]
    fn integers_strings_and_bare_keys_are_accepted() {
        let manifest = parse(RECORDED).unwrap();
        assert_eq!((manifest.hz, manifest.vantage), (Some(100), Vantage::Node));
        let vs = manifest.sysctls(&Arc::from("m")).unwrap().vs;
        assert!(vs.conntrack && vs.expire_nodest_conn && vs.conn_reuse_mode == 0);
    }

    #[test]
    fn optional_keys() {
        let text =
            format!("boot_time_s = 1699999990.25\nsnapshot_tolerance = 2\nextra = 1\n{RECORDED}");
        let mut skipped = Skipped::default();
        let manifest = Manifest::parse(&Arc::from("m"), &text, &mut skipped).unwrap();
        assert_eq!(manifest.boot.unwrap().to_string(), "1699999990.250000");
        assert_eq!(manifest.snapshot_tolerance_s, 2.0);
        assert_eq!(skipped.rows().next().unwrap().first, Place::Line(3));
    }

    #[test]
    fn errors_name_line_and_remedy() {
        let cases = [
            ("schema = 1\nkernel = ", Place::Line(2), ""),
            ("kernel = \"6.1.0\"\n", Place::File, "schema = 1"),
            (
                "schema = 2\nkernel = \"6.1.0\"\n",
                Place::Line(1),
                "schema 1",
            ),
            ("schema = 1\n", Place::File, "uname -r"),
            ("schema = 1\nkernel = \"new\"\n", Place::Line(2), "uname -r"),
            (
                "schema = 1\nkernel = \"6.1.0\"\nhz = 0\n",
                Place::Line(3),
                "1 to 1000",
            ),
            (
                "schema = 1\nkernel = \"6.1.0\"\nvantage = \"moon\"\n",
                Place::Line(3),
                "\"pod\"",
            ),
            (
                "schema = 1\nkernel = \"6.1.0\"\nsysctl = 3\n",
                Place::Line(3),
                "[sysctl]",
            ),
            (
                "schema = 1\nkernel = \"6.1.0\"\n[sysctl]\na = [1]\n",
                Place::Line(4),
                "`a`",
            ),
        ];
        for (text, place, hint) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!(error.place, place, "{text}: {error}");
            assert!(error.reason.contains(hint), "{error}");
        }
        let bad = format!("{RECORDED}\"net.ipv4.vs.sloppy_tcp\" = \"perhaps\"\n");
        assert!(parse(&bad).unwrap_err().reason.contains("sloppy_tcp"));
    }

    #[test]
    fn sysctl_output_is_read() {
        let text = "net.ipv4.ip_local_port_range = 32768\t60999\nsysctl: permission denied on key 'x'\n\
            net.ipv4.conf.eth0/100.forwarding = 1\n\nnet.ipv4.vs.conn_reuse_mode = 0\n";
        let mut skipped = Skipped::default();
        let values = parse_sysctls(&Arc::from("sysctl.txt"), text, &mut skipped);
        assert_eq!(values["net.ipv4.ip_local_port_range"], "32768\t60999");
        assert_eq!((values.len(), skipped.of("no line of sysctl -a")), (3, 1));
    }
}
