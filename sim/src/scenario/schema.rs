//! The JSON schema of a scenario, and the reference in docs/scenario.md that is written from it.

use std::borrow::Cow;
use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value as Json};

use super::Scenario;
use super::field::Field;

impl JsonSchema for Scenario {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Scenario")
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::try_from(<Self as Field>::schema()).unwrap_or_default()
    }
}

/// The JSON schema (draft-07, which TOML editors understand). `x-type`, `x-default` and `x-range` are for people.
pub fn json_schema() -> Json {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<Scenario>().to_value()
}

const INTRO: &str = "# Scenario files

A scenario is a TOML file: a node that balances, its kube-proxy, one virtual service, clients, pods, and what happens to
the pods. Every field has a default, and the defaults together are the founding case (`scenarios/founding-case.toml`), so
an empty file is a scenario. Unknown fields are errors.

```
sim scenario check my.toml          # what is wrong with it, where, and what to write
sim scenario show my.toml           # the scenario with every default filled in
sim scenario schema                 # JSON schema (draft-07), for editors
```

Editors with a TOML language server complete scenarios when the file begins with `#:schema scenario.schema.json`, where that
file is the output of `sim scenario schema`.

How values are written:

- duration: a number and a unit in quotes: `\"250ms\"`, `\"20s\"`, `\"2m 30s\"`, `\"1h\"`.
- distribution: a duration for a constant, or `{ uniform = [\"1ms\", \"5ms\"] }`, `{ exponential = \"10ms\" }` (the mean),
  `{ log_normal = { median = \"5ms\", sigma = 0.5 } }`.
- kernel release: what `uname -r`, `uname -a`, `/proc/version` or `/proc/version_signature` prints, in quotes. `sim kernels RELEASE` tells what
  the model makes of it. Where it leaves open which fixes the kernel has, `sim run` and `sim sweep` show each possibility; to decide, write the stable
  release that it is built on (`\"5.4.0-1051-gke as 5.4.163\"`), or the behaviours that it has (`\"4.18.0-305.el8 with reuse-drops-confirmed\"`,
  `with none`).
- a choice: a word in quotes, or `{ name = ... }` where the choice has settings of its own.

Any field can be set from the command line, with `--set PATH=VALUE`: `--set node.hz=1000`, `--set client.0.ports=28232`,
`--set 'client.*.timeout=2s'`, `--set node.sysctl.net.ipv4.vs.conn_reuse_mode=0`.

A request that fails is not tried again; only the datagrams of a UDP service are sent again (`client.udp`).

This file is written by a test from the documentation in the code; `UPDATE_DOCS=1 cargo test -p ipvs-sim docs` renews it.
";

/// docs/scenario.md.
pub fn reference() -> String {
    let schema = json_schema();
    let mut out = INTRO.to_owned();
    describe(&mut out, "Top level", "", &schema);
    out.push_str("\n## Short names of flags\n\n| flag | sets | meaning |\n|---|---|---|\n");
    for short in super::overrides::SHORTCUTS {
        let (name, value, help) = (short.name, short.value.replace('|', "\\|"), short.help);
        let _ = writeln!(out, "| `--{name} {value}` | `{}` | {help} |", short.path());
    }
    out
}

/// A section: its text, its table of fields, then the sections inside it.
fn describe(out: &mut String, title: &str, path: &str, schema: &Json) {
    let _ = write!(out, "\n## {title}\n\n{}\n\n", text(schema, "description"));
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    out.push_str("| field | type | default | range | meaning |\n|---|---|---|---|---|\n");
    let mut inner = Vec::new();
    for (name, field) in properties {
        let nested = nested_sections(name, path, field);
        let default = match text(field, "x-default") {
            default if default.is_empty() || default.len() > 110 => "see below".to_owned(),
            default if field["oneOf"].is_array() => format!("`{}`", cell(default)),
            _ if !nested.is_empty() => "see below".to_owned(),
            default => format!("`{}`", cell(default)),
        };
        let _ = writeln!(
            out,
            "| `{name}` | {} | {default} | {} | {} |",
            cell(text(field, "x-type")),
            cell(text(field, "x-range")),
            cell(&meaning(field))
        );
        inner.extend(nested);
    }
    for (title, path, section) in inner {
        describe(out, &title, &path, section);
    }
}

fn text<'a>(schema: &'a Json, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace("\n\n", "<br>")
        .replace('\n', " ")
}

/// The description, then the choices.
fn meaning(field: &Json) -> String {
    let mut out = text(field, "description").to_owned();
    for form in field["oneOf"].as_array().into_iter().flatten() {
        let name = form["const"].as_str().map(str::to_owned).or_else(|| {
            let (name, inner) = form["properties"].as_object()?.iter().next()?;
            let shape = match inner["properties"].as_object() {
                Some(fields) => format!(
                    "{{ {} }}",
                    fields.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
                None => text(inner, "x-type").to_owned(),
            };
            Some(format!("{name} = {shape}"))
        });
        let name = name.unwrap_or_default();
        let _ = write!(out, "\n\n`{name}`: {}", text(form, "description"));
    }
    out
}

/// The tables inside a field, with their titles.
fn nested_sections<'a>(name: &str, path: &str, field: &'a Json) -> Vec<(String, String, &'a Json)> {
    let full = if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    };
    if field["items"]["properties"].is_object() {
        return vec![(format!("`[[{full}]]`"), full, &field["items"])];
    }
    // Gates are documented by `sim kernels`.
    if field["properties"].is_object() && name != "kernel_gates" {
        return vec![(format!("`[{full}]`"), full, field)];
    }
    let forms = field["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
    forms
        .iter()
        .filter_map(|form| form["properties"].as_object()?.iter().next())
        .filter(|(_, inner)| inner["properties"].is_object())
        .map(|(variant, inner)| {
            let full = format!("{full}.{variant}");
            (format!("`{full}`"), full, inner)
        })
        .collect()
}
