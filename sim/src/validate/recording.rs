//! Reads the rollout lab's results.
//!
//! The first line is the command. Lines that start with `| ` are the scenario as it was played; a recording without them
//! names a file, relative to its own folder, in a line `# scenario PATH`. `S` lines count the requests that began in a
//! second, `E` lines are samples of real servers, `F` lines failures, `TOTAL` the sum.

use std::path::{Path, PathBuf};

use crate::scenario::Scenario;
use crate::validate::Counts;

/// What a real kernel did in a rollout.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The name of the file, without its ending.
    pub name: String,
    /// Release of the kernel.
    pub kernel: String,
    /// The command that made it; empty if it came without.
    pub made_by: String,
    /// What was played.
    pub scenario: Scenario,
    /// What came out.
    pub counts: Counts,
    /// Whether it holds samples of the real servers.
    pub sampled: bool,
}

/// Why a file is no recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}{place}: {what}", place = line.map(|line| format!(", line {line}")).unwrap_or_default())]
pub struct RecordingError {
    /// The file.
    pub path: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub what: String,
}

/// A text while it is read.
#[derive(Debug, Default)]
struct Reading {
    made_by: String,
    kernel: String,
    scenario: String,
    elsewhere: Option<PathBuf>,
    total: Option<[u64; 4]>,
    seconds: [u64; 4],
    entries: u64,
    sampled: bool,
}

impl Reading {
    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix('|') {
            self.scenario
                .push_str(rest.strip_prefix(' ').unwrap_or(rest));
            self.scenario.push('\n');
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["#", "ipvs-lab", ..] if number == 1 => {
                words[1..].join(" ").clone_into(&mut self.made_by)
            }
            ["#", "kernel", release, ..] => release.clone_into(&mut self.kernel),
            ["#", "scenario", path] => self.elsewhere = Some(path.into()),
            ["TOTAL", ..] => self.total = Some(counts(&words[1..])?),
            ["S", _, ..] => {
                for (sum, count) in self.seconds.iter_mut().zip(counts(&words[2..])?) {
                    *sum += count;
                }
            }
            [
                "E",
                _,
                _,
                "weight",
                weight,
                "active",
                active,
                "inactive",
                inactive,
            ] => {
                self.sampled = true;
                let drained = number_of(weight)? == 0;
                if drained {
                    self.entries += number_of(active)? + number_of(inactive)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn number_of(word: &str) -> Result<u64, String> {
    word.parse()
        .map_err(|_| format!("`{word}` is no count; the lab writes whole numbers"))
}

/// `ok N fail N eaddr N slow N`.
fn counts(words: &[&str]) -> Result<[u64; 4], String> {
    let &["ok", ok, "fail", fail, _, no_port, "slow", slow] = words else {
        return Err("expected `ok N fail N eaddr N slow N`".to_owned());
    };
    Ok([
        number_of(ok)?,
        number_of(fail)?,
        number_of(no_port)?,
        number_of(slow)?,
    ])
}

impl Recording {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is not whole, or its scenario cannot be used.
    pub fn load(path: &Path) -> Result<Self, RecordingError> {
        let shown = path.display().to_string();
        let fail = |line: Option<usize>, what: String| RecordingError {
            path: shown.clone(),
            line,
            what,
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| fail(None, format!("cannot be read: {error}")))?;
        let mut found = Reading::default();
        for (number, line) in (1..).zip(text.lines()) {
            found
                .line(number, line)
                .map_err(|what| fail(Some(number), what))?;
        }
        let Some(total) = found.total else {
            let what =
                "it has no TOTAL line: the rollout was not played to its end, record it anew";
            return Err(fail(None, what.to_owned()));
        };
        if total != found.seconds {
            let what = "the TOTAL line is not the sum of the S lines: lines are missing";
            return Err(fail(None, what.to_owned()));
        }
        let loaded = match &found.elsewhere {
            Some(file) if found.scenario.is_empty() => {
                Scenario::load(&path.parent().unwrap_or(Path::new("")).join(file))
            }
            _ => Scenario::parse(&found.scenario, &shown),
        };
        let scenario = loaded
            .map_err(|diags| fail(None, diags.render(false)))?
            .scenario;
        let [ok, failed, no_port, late] = total;
        Ok(Self {
            name: path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            kernel: found.kernel,
            made_by: found.made_by,
            scenario,
            counts: Counts {
                values: [failed, late, no_port, ok + failed + no_port, found.entries],
            },
            sampled: found.sampled,
        })
    }

    /// What its command set, field by field, without the fields' full paths.
    pub fn settings(&self) -> Vec<String> {
        let words = self.made_by.split("--set ").skip(1);
        words
            .filter_map(|word| {
                let (path, value) = word.trim().split_once('=')?;
                let value = value.split(" --").next().unwrap_or(value);
                let field = path.rsplit('.').next().unwrap_or(path);
                Some(format!("{field}={}", value.trim_matches('"')))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ipvs-lab rollout --kernel 6.12 base.toml --set client.*.arrivals.constant.rate=3 --set node.hz=250\n\
                        # kernel 6.12.117 HZ 250 seed 1\n\
                        | duration = \"2s\"\n| [rollout.none]\n| pods = 1\n\
                        E 30 10.27.1.10:80 weight 0 active 1 inactive 20\n\
                        E 30 10.27.1.11:80 weight 1 active 1 inactive 500\n\
                        F 0.5000 40000 refused\n\
                        S 0 ok 9 fail 1 eaddr 0 slow 2\nS 1 ok 10 fail 0 eaddr 1 slow 0\n";

    fn read(text: &str) -> Result<Recording, RecordingError> {
        let file = tempfile::NamedTempFile::new().expect("a scratch file");
        std::fs::write(file.path(), text).expect("written");
        Recording::load(file.path())
    }

    #[test]
    fn counts_entries_and_settings_are_read() {
        let found = read(&format!(
            "{TEXT}TOTAL ok 19 fail 1 eaddrnotavail 1 slow 2\n"
        ))
        .expect("whole");
        assert_eq!(found.kernel, "6.12.117");
        assert_eq!(found.counts.values, [1, 2, 1, 21, 21]);
        assert_eq!(found.settings(), ["rate=3", "hz=250"]);
        assert_eq!(
            found.scenario.duration,
            ipvs_model::time::Span::from_secs(2)
        );
    }

    #[test]
    fn a_recording_that_is_cut_off_is_refused() {
        let missing = read(TEXT).expect_err("no total");
        assert!(missing.what.contains("no TOTAL"), "{missing}");
        let short = read(&format!(
            "{TEXT}TOTAL ok 20 fail 1 eaddrnotavail 1 slow 2\n"
        ));
        assert!(short.is_err_and(|error| error.what.contains("not the sum")));
    }

    #[test]
    fn a_wrong_count_is_named_with_its_line() {
        let wrong = read("S 0 ok many fail 0 eaddr 0 slow 0\n").expect_err("no number");
        assert_eq!(wrong.line, Some(1));
        assert!(wrong.to_string().contains("`many`"), "{wrong}");
    }
}
