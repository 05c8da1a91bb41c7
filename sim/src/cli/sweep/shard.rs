//! Which shard this process is: said on the command line, or by whoever started it.

use crate::experiment::share::{Share, ShareError};

/// What `--shard` was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shard {
    /// `m/n`.
    Given(Share),
    /// `auto`.
    Auto,
}

/// Reads `--shard`.
///
/// # Errors
/// If it is neither `auto` nor `m/n`.
pub fn parse(text: &str) -> Result<Shard, ShareError> {
    if text == "auto" {
        return Ok(Shard::Auto);
    }
    text.parse().map(Shard::Given)
}

/// The shard that the environment names, and where it was found. `shards` is their number, if it was given: a scheduler
/// that runs only some indexes again gives the number of those.
///
/// Read in this order: `SIM_SHARD` (`m/n`), Kubernetes Indexed Jobs (`JOB_COMPLETION_INDEX`, from 0; the number is not in the
/// environment), AWS Batch arrays (`AWS_BATCH_JOB_ARRAY_INDEX`, from 0, and `_SIZE`), Slurm arrays (`SLURM_ARRAY_TASK_ID`, with
/// `_MIN`, `_MAX` and `_COUNT`), CI jobs in parallel (`CI_NODE_INDEX`, from 1, and `CI_NODE_TOTAL`).
///
/// # Errors
/// If none is there, or what is there makes no sense; the text says what to set.
pub fn auto(
    shards: Option<u64>,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<(Share, String), String> {
    if let Some(text) = get("SIM_SHARD") {
        let share: Share = text
            .parse()
            .map_err(|error: ShareError| format!("SIM_SHARD: {error}"))?;
        if shards.is_some_and(|shards| shards != share.of()) {
            return Err(format!(
                "SIM_SHARD={text} and --shards {} do not agree",
                shards.unwrap_or_default()
            ));
        }
        return Ok((share, format!("SIM_SHARD={text}")));
    }
    let number = |name: &str| -> Result<Option<u64>, String> {
        get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("{name}={text} is not a number"))
            })
            .transpose()
    };
    let needed = |name: &str| {
        number(name)?.ok_or_else(|| {
            format!("{name} is not set, so the number of shards is not known; add --shards N")
        })
    };
    let share = |index: u64, of: u64, found: String| match Share::new(index, of) {
        Ok(share) => Ok((share, found)),
        Err(error) => Err(format!("{found}: {error}")),
    };
    if let Some(index) = number("JOB_COMPLETION_INDEX")? {
        let of = shards.ok_or(
            "JOB_COMPLETION_INDEX is set, but an Indexed Job does not say how many there are: add --shards N, the \
             job's completions",
        )?;
        return share(index, of, format!("JOB_COMPLETION_INDEX={index} of {of}"));
    }
    if let Some(index) = number("AWS_BATCH_JOB_ARRAY_INDEX")? {
        let of = shards.map_or_else(|| needed("AWS_BATCH_JOB_ARRAY_SIZE"), Ok)?;
        return share(
            index,
            of,
            format!("AWS_BATCH_JOB_ARRAY_INDEX={index} of {of}"),
        );
    }
    if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
        if let Some(of) = shards {
            return share(id, of, format!("SLURM_ARRAY_TASK_ID={id} (from 0) of {of}"));
        }
        let (min, max) = (
            needed("SLURM_ARRAY_TASK_MIN")?,
            needed("SLURM_ARRAY_TASK_MAX")?,
        );
        let of = needed("SLURM_ARRAY_TASK_COUNT")?;
        if max.checked_sub(min).map(|span| span + 1) != Some(of) {
            return Err(format!(
                "the Slurm array has {of} tasks between {min} and {max}: a part of one. Say how many shards the whole has: \
                 --shards N, with tasks from 0 to N - 1"
            ));
        }
        let found = format!("SLURM_ARRAY_TASK_ID={id} ({min} to {max})");
        return share(id.saturating_sub(min), of, found);
    }
    if let Some(index) = number("CI_NODE_INDEX")? {
        let of = shards.map_or_else(|| needed("CI_NODE_TOTAL"), Ok)?;
        let from_zero = index
            .checked_sub(1)
            .ok_or("CI_NODE_INDEX=0, but it counts from 1")?;
        return share(
            from_zero,
            of,
            format!("CI_NODE_INDEX={index} (from 1) of {of}"),
        );
    }
    Err(
        "--shard auto found no SIM_SHARD, JOB_COMPLETION_INDEX, AWS_BATCH_JOB_ARRAY_INDEX, SLURM_ARRAY_TASK_ID or \
         CI_NODE_INDEX in the environment; write --shard m/n, or set SIM_SHARD=m/n"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `--shards`, the environment, and what is expected of them.
    type Case<'a> = (Option<u64>, &'a [(&'a str, &'a str)], &'a str);

    fn found(shards: Option<u64>, environment: &[(&str, &str)]) -> Result<String, String> {
        let get = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        auto(shards, &get).map(|(share, _)| share.to_string())
    }

    #[test]
    fn each_scheduler_is_understood() {
        let cases: &[Case<'_>] = &[
            (None, &[("SIM_SHARD", "2/7"), ("CI_NODE_INDEX", "3")], "2/7"),
            (Some(64), &[("JOB_COMPLETION_INDEX", "0")], "1/64"),
            (
                None,
                &[
                    ("AWS_BATCH_JOB_ARRAY_INDEX", "9"),
                    ("AWS_BATCH_JOB_ARRAY_SIZE", "10"),
                ],
                "10/10",
            ),
            (
                None,
                &[
                    ("SLURM_ARRAY_TASK_ID", "1"),
                    ("SLURM_ARRAY_TASK_MIN", "1"),
                    ("SLURM_ARRAY_TASK_MAX", "4"),
                    ("SLURM_ARRAY_TASK_COUNT", "4"),
                ],
                "1/4",
            ),
            // Only tasks 3 and 17 of 0-63 are run again.
            (
                Some(64),
                &[
                    ("SLURM_ARRAY_TASK_ID", "17"),
                    ("SLURM_ARRAY_TASK_MIN", "3"),
                    ("SLURM_ARRAY_TASK_MAX", "17"),
                    ("SLURM_ARRAY_TASK_COUNT", "2"),
                ],
                "18/64",
            ),
            (
                None,
                &[("CI_NODE_INDEX", "1"), ("CI_NODE_TOTAL", "5")],
                "1/5",
            ),
        ];
        for (shards, environment, expected) in cases {
            assert_eq!(found(*shards, environment).as_deref(), Ok(*expected));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_remedy() {
        let cases: &[Case<'_>] = &[
            (None, &[], "SIM_SHARD=m/n"),
            (None, &[("JOB_COMPLETION_INDEX", "0")], "--shards N"),
            (Some(4), &[("JOB_COMPLETION_INDEX", "4")], "no shard 5 of 4"),
            (None, &[("JOB_COMPLETION_INDEX", "x")], "not a number"),
            (
                None,
                &[
                    ("SLURM_ARRAY_TASK_ID", "17"),
                    ("SLURM_ARRAY_TASK_MIN", "3"),
                    ("SLURM_ARRAY_TASK_MAX", "17"),
                    ("SLURM_ARRAY_TASK_COUNT", "2"),
                ],
                "--shards N",
            ),
            (Some(2), &[("SIM_SHARD", "1/3")], "do not agree"),
            (
                None,
                &[("CI_NODE_INDEX", "0"), ("CI_NODE_TOTAL", "5")],
                "from 1",
            ),
        ];
        for (shards, environment, expected) in cases {
            let error = found(*shards, environment).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
