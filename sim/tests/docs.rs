//! What the documentation says is true: its commands exist, its transcripts are what the program prints, its links lead
//! somewhere, its map shows every folder and module, and its list of what the model leaves out is that of the code.
//!
//! In README.md and docs/, a fenced block named `console` or `sh` holds commands; those of this program must parse. A
//! block named `console run` is a transcript: its one command is run, and its output must agree. A line `...` in it
//! stands for lines left out. `UPDATE_DOCS=1 cargo test -p ipvs-sim --test docs` writes transcripts and list anew; a
//! part of a transcript after `...` is found again by the words at the start of its first line.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory as _, Parser as _};
use ipvs_sim::cli::Cli;
use ipvs_sim::outcome::{Cause, Outcome};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether to write instead of compare.
fn renews() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// All files below a folder with this ending, sorted.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// README.md, ARCHITECTURE.md and docs/.
fn documents() -> Vec<PathBuf> {
    let mut all = files(&root().join("docs"), "md");
    all.push(root().join("README.md"));
    all.push(root().join("README.zh.md"));
    all.push(root().join("ARCHITECTURE.md"));
    all
}

/// A fenced block: what stands after the fence, and the lines with the number of the first.
struct Block<'a> {
    info: &'a str,
    first: usize,
    lines: Vec<&'a str>,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (at, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                open = Some(Block {
                    info,
                    first: at + 1,
                    lines: Vec::new(),
                });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some(block)) => block.lines.push(line),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    found
}

/// The words of a command as a shell splits them, if it is one of this program: the program first.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let line = line.strip_prefix("cargo ").unwrap_or(line);
    if !line.starts_with("sim ") {
        return None;
    }
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is not closed: {line}");
    words.retain(|word| !word.is_empty());
    // A comment, a pipe, a redirection or a second command is the shell's.
    let end = words
        .iter()
        .position(|word| matches!(word.as_str(), "#" | "|" | ">" | "&&"));
    words.truncate(end.unwrap_or(words.len()));
    Some(words)
}

#[test]
fn commands_are_split_like_a_shell_does() {
    let found = words("$ cargo sim sweep --rps '1..2 step 1' --set a=\"b c\" > out.txt").unwrap();
    assert_eq!(
        found,
        ["sim", "sweep", "--rps", "1..2 step 1", "--set", "a=b c"]
    );
    assert_eq!(words("scripts/test"), None);
    assert_eq!(words("simulate this"), None);
}

#[test]
fn every_command_in_the_documents_exists() {
    let mut count = 0;
    for path in documents() {
        let text = read(&path);
        for block in blocks(&text) {
            if !matches!(block.info.split(' ').next(), Some("console" | "sh")) {
                continue;
            }
            for (at, line) in block.lines.iter().enumerate() {
                // In a transcript, what has no prompt is output.
                if block.info.starts_with("console") && !line.starts_with("$ ") {
                    continue;
                }
                let Some(words) = words(line) else { continue };
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!(
                        "{}:{}: {line}\n{error}",
                        path.display(),
                        block.first + at + 1
                    );
                }
                count += 1;
            }
        }
    }
    assert!(count >= 10, "only {count} commands found");
}

/// The examples below a command's help, after "Examples:".
fn examples(help: &str) -> Vec<String> {
    let lines = help
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("sim "));
    lines.map(str::to_owned).collect()
}

#[test]
fn every_command_has_examples_and_they_exist() {
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let mut helps: Vec<String> = command
            .get_after_help()
            .map(ToString::to_string)
            .into_iter()
            .collect();
        let below = command
            .get_subcommands()
            .filter_map(clap::Command::get_after_help);
        helps.extend(below.map(ToString::to_string));
        let examples: Vec<String> = helps.iter().flat_map(|help| examples(help)).collect();
        // An example may go on with another command that reads what this one wrote.
        let own = format!("sim {name} ");
        assert!(
            examples
                .iter()
                .any(|example| format!("{example} ").starts_with(&own)),
            "sim {name} --help shows no example of its own"
        );
        for example in examples {
            let words = words(&example).expect("a command");
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{example}\n{error}");
            }
        }
    }
}

/// What the program prints, as a terminal with UTF-8 would show it.
fn output(words: &[String]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
    command.args(&words[1..]).current_dir(root());
    command
        .env("LC_ALL", "C.UTF-8")
        .env_remove("CLICOLOR_FORCE");
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

const LEFT_OUT: &str = "...";

/// A transcript anew: each part, from the line that begins like its first one, with as many lines as it had.
fn renewed(shown: &[&str], real: &[String]) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut at = 0;
    for (place, part) in shown.split(|line| *line == LEFT_OUT).enumerate() {
        if place > 0 {
            out.push(LEFT_OUT.to_owned());
        }
        let Some(first) = part.first() else { continue };
        let begin = first.split(' ').take(2).collect::<Vec<_>>().join(" ");
        // The first part is the beginning of the output, whatever its words were.
        let offset = match place {
            0 => 0,
            _ => real[at..]
                .iter()
                .position(|line| line.starts_with(&begin))
                .ok_or_else(|| format!("no line after line {at} begins with `{begin}`"))?,
        };
        at += offset;
        let end = (at + part.len()).min(real.len());
        out.extend_from_slice(&real[at..end]);
        at = end;
    }
    if shown.last() != Some(&LEFT_OUT) && at < real.len() {
        return Err(format!(
            "{} more lines are printed; end with ...",
            real.len() - at
        ));
    }
    Ok(out)
}

#[test]
fn transcripts_are_what_the_program_prints() {
    let mut count = 0;
    for path in documents() {
        let text = read(&path);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let before = count;
        // From the end, so that a block that grows moves none that is still to come.
        for block in blocks(&text)
            .iter()
            .rev()
            .filter(|block| block.info == "console run")
        {
            let place = format!("{}:{}", path.display(), block.first + 1);
            let command = words(block.lines[0]).unwrap_or_else(|| panic!("{place}: no command"));
            let shown = &block.lines[1..];
            let real = output(&command);
            let now = renewed(shown, &real).unwrap_or_else(|error| panic!("{place}: {error}"));
            if renews() {
                let first = block.first + 1;
                lines.splice(first..first + shown.len(), now);
            } else {
                assert_eq!(
                    now, shown,
                    "{place} is stale: UPDATE_DOCS=1 cargo test -p ipvs-sim --test docs"
                );
            }
            count += 1;
        }
        if renews() && count > before {
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        }
    }
    assert!(count >= 3, "only {count} transcripts found");
}

#[test]
fn a_transcript_that_lies_is_found() {
    let real = ["one 1", "two 2", "three 3", "four 4"].map(str::to_owned);
    let same = |shown: &[&str]| renewed(shown, &real).is_ok_and(|now| now == shown);
    assert!(same(&["one 1", "two 2", "three 3", "four 4"]));
    assert!(same(&["one 1", "...", "three 3", "..."]));
    assert!(!same(&["one 1", "...", "three 4", "..."]), "a wrong line");
    assert!(!same(&["one 1", "two 2"]), "lines left out in silence");
    assert!(
        !same(&["one 1", "three 3", "..."]),
        "a line left out in silence"
    );
}

#[test]
fn links_lead_somewhere() {
    let mut all = documents();
    for folder in ["captures", "lab"] {
        all.extend(files(&root().join(folder), "md"));
    }
    let (mut count, mut broken) = (0, String::new());
    for path in all {
        let text = read(&path);
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.contains(' ') {
                continue;
            }
            count += 1;
            if !path.parent().unwrap().join(file).exists() {
                let _ = writeln!(broken, "{}: {link}", path.display());
            }
        }
    }
    assert_eq!(broken, "", "links to nowhere");
    assert!(count >= 15, "only {count} links found");
}

#[test]
fn every_cause_and_outcome_is_explained() {
    let text = read(&root().join("docs/reading-results.md"));
    let keys = Cause::ALL
        .map(Cause::key)
        .into_iter()
        .chain(Outcome::ALL.map(Outcome::key));
    let missing: Vec<&str> = keys
        .filter(|key| !text.contains(&format!("| `{key}` |")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/reading-results.md does not explain {missing:?}"
    );
}

/// Folders that are in the repository: all but git's own and those of .gitignore.
fn folders(path: &Path) -> Vec<String> {
    let ignored = read(&root().join(".gitignore"));
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name != ".git" && !ignored.lines().any(|line| line.trim_matches('/') == name)
        })
        .collect();
    names.sort();
    names
}

#[test]
fn the_map_shows_every_folder_and_module() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let names: Vec<&str> = blocks(&map)
        .iter()
        .filter(|block| block.info.is_empty())
        .flat_map(|block| block.lines.clone())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut missing: Vec<String> = folders(&root())
        .into_iter()
        .map(|name| format!("{name}/"))
        .filter(|name| !names.contains(&name.as_str()))
        .collect();
    for source in ["model/src", "sim/src", "lab/src"] {
        for entry in std::fs::read_dir(root().join(source)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            // A folder and the file that opens it are one module.
            let stem = name.strip_suffix(".rs").unwrap_or(&name).to_owned();
            if !names.contains(&format!("{stem}.rs").as_str())
                && !names.contains(&format!("{stem}/").as_str())
            {
                missing.push(format!("{source}/{name}"));
            }
        }
    }
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:?}");
}

/// The parts of the model in the order of a packet's way, then time, then kube-proxy.
const ORDER: [&str; 15] = [
    "node",
    "ipvs",
    "conntrack",
    "tcp",
    "udp",
    "icmp",
    "dataplane",
    "balancer",
    "kube",
    "time",
    "timers",
    "kernel",
    "sysctl",
    "segment",
    "index",
];

/// The paragraphs of a module's documentation; lines of one paragraph are joined.
fn paragraphs(source: &str) -> Vec<String> {
    let doc = source.lines().map_while(|line| line.strip_prefix("//!"));
    let mut found = vec![String::new()];
    for line in doc.map(str::trim) {
        // "Leaves out" begins a paragraph of its own wherever it stands.
        let starts =
            line.is_empty() || line.starts_with("Leaves out:") || line.starts_with("Faithful to:");
        if starts && !found.last().unwrap().is_empty() {
            found.push(String::new());
        }
        let last = found.last_mut().unwrap();
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(line);
    }
    found
}

/// Links of the code's documentation are names of modules: they stay names.
fn plain(text: &str) -> String {
    let mut out = text.replace("[`", "`").replace("`]", "`");
    while let Some(at) = out.find("`(") {
        let Some(end) = out[at..].find(')') else {
            break;
        };
        out.replace_range(at + 1..at + end + 1, "");
    }
    out
}

/// What each part of the model is faithful to and leaves out, as its own documentation has it.
fn claims() -> String {
    let source = root().join("model/src");
    let mut modules: Vec<(usize, String, PathBuf)> = Vec::new();
    for path in files(&source, "rs") {
        let name = path.strip_prefix(&source).unwrap().with_extension("");
        let name = name.to_string_lossy().replace('/', "::");
        let name = name.strip_suffix("::mod").unwrap_or(&name).to_owned();
        let top = name.split("::").next().unwrap_or_default();
        if name == "lib" || name.contains("test") {
            continue;
        }
        let order = ORDER.iter().position(|part| *part == top);
        let order = order.unwrap_or_else(|| panic!("{name}: give it a place in ORDER"));
        modules.push((order, name, path));
    }
    modules.sort();
    let mut out = String::new();
    for (_, name, path) in modules {
        let found = paragraphs(&read(&path));
        let claims: Vec<&String> = found
            .iter()
            .filter(|text| text.starts_with("Faithful to:") || text.starts_with("Leaves out:"))
            .collect();
        if claims.is_empty() {
            continue;
        }
        let _ = writeln!(out, "### `{name}`\n\n{}\n", plain(&found[0]));
        for claim in claims {
            let (word, rest) = claim.split_once(':').unwrap();
            let _ = writeln!(out, "- *{word}:*{}", plain(rest));
        }
        out.push('\n');
    }
    out
}

const BEGIN: &str = "<!-- from the code: begin -->\n";
const END: &str = "<!-- from the code: end -->\n";

#[test]
fn the_claims_of_the_model_are_those_of_its_code() {
    let path = root().join("docs/model.md");
    let text = read(&path);
    let (head, rest) = text
        .split_once(BEGIN)
        .expect("no begin mark in docs/model.md");
    let (shown, tail) = rest.split_once(END).expect("no end mark in docs/model.md");
    let now = format!("\n{}", claims());
    if renews() {
        std::fs::write(&path, format!("{head}{BEGIN}{now}{END}{tail}")).unwrap();
        return;
    }
    assert!(
        shown == now,
        "docs/model.md is stale: UPDATE_DOCS=1 cargo test -p ipvs-sim --test docs"
    );
    assert!(now.matches("Leaves out").count() > 25, "{now}");
}
