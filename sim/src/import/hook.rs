//! How long a preStop hook takes, as far as its command tells.

use ipvs_model::time::Span;

/// What a command says of its time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// The sum of its sleeps; `None` if it has none.
    pub sleeps: Option<Span>,
    /// What else it runs, whose time nobody can tell.
    pub rest: Vec<String>,
}

/// The longest time that a sleep may have; Kubernetes kills the pod long before.
const SLEEP_MAX_S: f64 = 86_400.0;

/// Reads the command of an exec hook: `["sleep", "20"]`, `["/bin/bash", "-c", "sleep 20 && nginx -s quit"]`.
pub fn read(command: &[String]) -> Hook {
    let script = match command {
        [shell, flags @ .., script] if is_shell(shell) && flags.iter().any(|f| is_c(f)) => {
            script.clone()
        }
        words => words.join(" "),
    };
    let mut hook = Hook::default();
    for part in script.split(['\n', ';']).flat_map(|part| part.split("&&")) {
        let part = part.trim();
        let mut words = part.split_whitespace();
        let Some(program) = words.next() else {
            continue;
        };
        let slept = (base(program) == "sleep").then(|| sum(words)).flatten();
        match (slept, program) {
            (Some(slept), _) => {
                let before = hook.sleeps.unwrap_or(Span::ZERO);
                hook.sleeps = Some(Span(before.0 + slept.0));
            }
            (None, "true" | ":" | "exit" | "set" | "#") => {}
            (None, _) => hook.rest.push(part.to_owned()),
        }
    }
    hook
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

fn is_shell(program: &str) -> bool {
    matches!(
        base(program),
        "sh" | "bash" | "ash" | "dash" | "zsh" | "ksh"
    )
}

/// `-c`, `-ec`, `-lc`.
fn is_c(flag: &str) -> bool {
    flag.starts_with('-') && !flag.starts_with("--") && flag.ends_with('c')
}

/// sleep(1) adds its arguments; each may have a unit.
fn sum<'a>(words: impl Iterator<Item = &'a str>) -> Option<Span> {
    let mut total = None;
    for word in words {
        let (digits, unit) = match word.chars().last()? {
            's' => (&word[..word.len() - 1], 1.0),
            'm' => (&word[..word.len() - 1], 60.0),
            'h' => (&word[..word.len() - 1], 3_600.0),
            'd' => (&word[..word.len() - 1], 86_400.0),
            _ => (word, 1.0),
        };
        let seconds = digits.parse::<f64>().ok()? * unit;
        if !(0.0..=SLEEP_MAX_S).contains(&seconds) {
            return None;
        }
        total = Some(total.unwrap_or(0.0) + seconds);
    }
    total.map(|seconds: f64| Span::from_millis((seconds * 1_000.0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(command: &[&str]) -> Hook {
        read(
            &command
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn sleeps_are_added_and_the_rest_is_named() {
        let cases: [(&[&str], Option<u64>, &[&str]); 9] = [
            (&["/bin/bash", "-c", "sleep 20"], Some(20_000), &[]),
            (&["sleep", "20"], Some(20_000), &[]),
            (&["/bin/sleep", "1m", "0.5"], Some(60_500), &[]),
            (
                &["sh", "-ec", "sleep 5; nginx -s quit && sleep 1"],
                Some(6_000),
                &["nginx -s quit"],
            ),
            (
                &["/usr/sbin/nginx", "-s", "quit"],
                None,
                &["/usr/sbin/nginx -s quit"],
            ),
            (&["sh", "-c", "sleep $WAIT"], None, &["sleep $WAIT"]),
            (&["sh", "-c", "sleep"], None, &["sleep"]),
            (&["sleep", "99999999h"], None, &["sleep 99999999h"]),
            (&[], None, &[]),
        ];
        for (command, millis, rest) in cases {
            let found = hook(command);
            assert_eq!(found.sleeps, millis.map(Span::from_millis), "{command:?}");
            assert_eq!(found.rest, rest, "{command:?}");
        }
    }
}
