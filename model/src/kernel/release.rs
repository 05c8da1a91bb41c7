//! What people have in hand to name a kernel: `uname -r`, `uname -a`, `/proc/version`, `/proc/version_signature`.
//!
//! Leaves out: kernels whose release somebody changed at build time (`LOCALVERSION`) into that of another.

use core::fmt;
use core::str::FromStr;

use super::levels;
use super::{Answer, Behaviours, GATES, Gate, Version};

/// Who built a kernel, as far as it decides what may have been back-ported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// kernel.org, or a distribution whose release states the stable patch level: that says everything.
    Vanilla,
    /// RHEL or CentOS 7: 3.10 by name, a mixture by content; read (3.10.0-1160).
    El7,
    /// A distribution that hides the stable patch level behind a number of its own (Debian, Ubuntu).
    HiddenPatch,
    /// A vendor that adds patches of its own to a stated base (RHEL 8 and 9, Alibaba, Tencent, SUSE, ...).
    Vendor,
}

/// How a distribution is recognised: a word of the release, or the beginning of one; its name; what it does.
type Mark = (&'static str, Fit, &'static str, Flavour);

/// Whether the mark is a whole word of the release or the beginning of one.
#[derive(Clone, Copy, Debug)]
enum Fit {
    Word,
    Start,
}

/// The first that fits wins.
#[rustfmt::skip]
const MARKS: &[Mark] = {
    use Fit::{Start, Word};
    use Flavour::{Vanilla, Vendor};
    &[
        ("elrepo",   Word,  "ELRepo",                       Vanilla),
        ("el6uek",   Start, "Oracle UEK",                   Vendor),
        ("el7uek",   Start, "Oracle UEK",                   Vendor),
        ("el8uek",   Start, "Oracle UEK",                   Vendor),
        ("el9uek",   Start, "Oracle UEK",                   Vendor),
        ("tlinux",   Start, "TencentOS",                    Vendor),
        ("tl2",      Word,  "TencentOS",                    Vendor),
        ("tl3",      Word,  "TencentOS",                    Vendor),
        ("tl4",      Word,  "TencentOS",                    Vendor),
        ("tke",      Start, "TencentOS",                    Vendor),
        ("oc8",      Word,  "OpenCloudOS",                  Vendor),
        ("oc9",      Word,  "OpenCloudOS",                  Vendor),
        ("al7",      Word,  "Alibaba Cloud Linux 2",        Vendor),
        ("alnx2",    Start, "Alibaba Cloud Linux 2",        Vendor),
        ("al8",      Word,  "Alibaba Cloud Linux 3",        Vendor),
        ("alnx",     Start, "Alibaba Cloud Linux",          Vendor),
        ("an7",      Word,  "Anolis OS",                    Vendor),
        ("an8",      Word,  "Anolis OS",                    Vendor),
        ("an23",     Word,  "Anolis OS",                    Vendor),
        ("eulerosv", Start, "EulerOS",                      Vendor),
        ("hce",      Start, "Huawei Cloud EulerOS",         Vendor),
        ("oe",       Start, "openEuler",                    Vendor),
        ("ky",       Start, "Kylin",                        Vendor),
        ("uelc",     Start, "UOS",                          Vendor),
        ("cgsl",     Start, "CGSL",                         Vendor),
        ("bclinux",  Start, "BCLinux",                      Vendor),
        ("amzn",     Start, "Amazon Linux",                 Vanilla),
        ("fc",       Start, "Fedora",                       Vanilla),
        ("flatcar",  Word,  "Flatcar",                      Vanilla),
        ("coreos",   Word,  "Container Linux",              Vanilla),
        ("talos",    Word,  "Talos",                        Vanilla),
        ("linuxkit", Word,  "LinuxKit",                     Vanilla),
        ("WSL2",     Word,  "WSL 2",                        Vanilla),
        ("cm",       Start, "Azure Linux",                  Vanilla),
        ("azl",      Start, "Azure Linux",                  Vanilla),
        ("arch",     Start, "Arch Linux",                   Vanilla),
        ("pve",      Word,  "Proxmox",                      Vanilla),
        ("deb13",    Word,  "Debian",                       Vanilla),
        ("default",  Word,  "SUSE",                         Vendor),
        ("lp1",      Start, "openSUSE",                     Vendor),
        ("el8",      Start, "RHEL 8 or a rebuild",          Vendor),
        ("el9",      Start, "RHEL 9 or a rebuild",          Vendor),
        ("el10",     Start, "RHEL 10 or a rebuild",         Vendor),
        ("el7",      Start, "a vendor's, for RHEL 7",       Vendor),
    ]
};

/// How the releases of Debian's kernels end.
const DEBIAN_ENDS: &[&str] = &[
    "amd64",
    "arm64",
    "686",
    "pae",
    "armmp",
    "powerpc64le",
    "ppc64el",
    "s390x",
    "riscv64",
];

/// Branches that kernel.org maintained for years: a fix that skipped one of them is known to be absent there.
const LONG_TERM: &[(u16, u16)] = &[
    (4, 4),
    (4, 9),
    (4, 14),
    (4, 19),
    (5, 4),
    (5, 10),
    (5, 15),
    (6, 1),
    (6, 6),
    (6, 12),
    (6, 18),
];

/// What somebody decided about a kernel whose release leaves things open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Taken {
    /// It is built on this stable release.
    As(Version),
    /// Of the behaviours left open it has these.
    With(Behaviours),
}

/// A kernel by its release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Output of `uname -r`, such as `5.15.0-91-generic`.
    pub release: String,
    /// The version that the release names: what kube-proxy judges by.
    pub version: Version,
    /// Who built it, as far as it matters.
    pub flavour: Flavour,
    /// Who built it, by name.
    pub distribution: &'static str,
    /// Lowest and highest stable patch level that it can be built on.
    pub levels: (u16, u16),
    /// The stable release that its own banner states.
    pub stable: Option<Version>,
    /// What was decided about it.
    pub taken: Option<Taken>,
}

/// Why a release string was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseReleaseError {
    release: String,
    reason: String,
}

impl fmt::Display for ParseReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a kernel release ({}); write what `uname -r` or `uname -a` prints, such as \
             5.15.0-91-generic or 6.1.90",
            self.release, self.reason
        )
    }
}

impl core::error::Error for ParseReleaseError {}

/// The version at the start of a word, whether it states the patch level (not `5.4` or `5.4.x`), and what follows it.
fn numbers(word: &str) -> Result<(Version, bool, &str), &'static str> {
    let end = word
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(word.len());
    let (digits, rest) = word.split_at(end);
    let mut parts = digits.trim_end_matches('.').split('.');
    let major = parts.next().unwrap_or_default();
    if major.is_empty() {
        return Err(if word.is_empty() {
            "it is empty"
        } else {
            "it must start with a number"
        });
    }
    let number = |part: &str, bad| part.parse::<u16>().map_err(|_| bad);
    let major = number(major, "it must start with a number")?;
    let minor = parts.next().ok_or("it has no minor number")?;
    let minor = number(minor, "bad minor number")?;
    let patch = parts
        .next()
        .map(|part| number(part, "bad patch level"))
        .transpose()?;
    Ok((
        Version(major, minor, patch.unwrap_or(0)),
        patch.is_some(),
        rest,
    ))
}

fn exact(word: &str) -> Option<Version> {
    let (version, patch_stated, _) = numbers(word).ok()?;
    patch_stated.then_some(version)
}

/// The release among the words of `uname -a`, `/proc/version` or `/proc/version_signature`, and the words after it.
fn find_release<'a, 'b>(words: &'b [&'a str]) -> (&'a str, &'b [&'a str]) {
    let at = match words {
        // The name of the machine, or `version`, comes first; `uname -sr` has neither.
        ["Linux", _, release, ..] if numbers(release).is_ok() => 2,
        ["Linux" | "Ubuntu", ..] => 1,
        _ => 0,
    };
    let release = words.get(at).copied().unwrap_or_default();
    (release, words.get(at + 1..).unwrap_or_default())
}

/// The stable release that a banner states: Debian's `Debian 6.1.76-1`, Ubuntu's `(Ubuntu 5.4.0-91.102-generic 5.4.151)`,
/// or this module's own `(stable 6.1.76)`. Compilers print the same names with versions of their own.
fn stated(words: &[&str], signature: bool, branch: (u16, u16)) -> Option<Version> {
    let bare = |word: &&str| exact(word.trim_matches(['(', ')', ',']));
    let level = |at: usize| words.get(at).and_then(bare);
    let mut found =
        words
            .iter()
            .enumerate()
            .filter_map(|(at, word)| match word.trim_start_matches('(') {
                "Debian" | "stable" => level(at + 1),
                "Ubuntu" => level(at + 2),
                _ if signature && at == 0 => level(0),
                _ => None,
            });
    found.find(|level| (level.0, level.1) == branch)
}

/// What was decided: the words after `as` or `with`.
fn taken(words: &[&str]) -> Result<Option<Taken>, String> {
    let words = match words {
        [stable, level, rest @ ..] if *stable == "(stable" && level.ends_with(')') => rest,
        words => words,
    };
    let [how @ ("as" | "with"), rest @ ..] = words else {
        return Ok(None);
    };
    if *how == "as" {
        let level = rest.first().and_then(|word| exact(word));
        return level
            .filter(|_| rest.len() == 1)
            .map(|level| Some(Taken::As(level)))
            .ok_or_else(|| "after `as` comes one stable release, such as 5.4.163".to_owned());
    }
    let mut set = Behaviours::default();
    for word in rest.iter().filter(|word| **word != "and") {
        if *word != "none" {
            set = set.with(word.parse::<Gate>()?, true);
        }
    }
    if rest.is_empty() {
        return Err("after `with` come behaviours joined by `and`, or `none`".to_owned());
    }
    Ok(Some(Taken::With(set)))
}

impl FromStr for Kernel {
    type Err = ParseReleaseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: &str| ParseReleaseError {
            release: text.chars().take(200).collect(),
            reason: reason.to_owned(),
        };
        let words = text.split_whitespace().collect::<Vec<_>>();
        let ubuntu = words.first() == Some(&"Ubuntu");
        let (release, rest) = find_release(&words);
        if let Some(word) = rest.first()
            && !(ubuntu || word.starts_with(['#', '(']) || matches!(*word, "as" | "with"))
        {
            return Err(fail(
                "something follows it that `uname -a` does not print there",
            ));
        }
        let (version, patch_stated, suffix) = numbers(release).map_err(fail)?;
        let Version(major, minor, _) = version;
        if version < Version(3, 10, 0) {
            return Err(fail("nothing before 3.10 is modelled"));
        }
        if major > 20 {
            return Err(fail("there is no such major version"));
        }
        // `x` for a patch level that nobody wrote down.
        let open = !patch_stated && suffix.starts_with('x');
        let suffix = if open { &suffix[1..] } else { suffix };
        let stable = stated(rest, ubuntu, (major, minor));
        let taken = taken(rest).map_err(|reason| fail(&reason))?;
        let kernel = Self::of(release, version, suffix, stable, open);
        match taken {
            Some(Taken::As(level)) if (level.0, level.1) != (major, minor) => {
                Err(fail(&format!("{level} is of another branch")))
            }
            _ => Ok(Self { taken, ..kernel }),
        }
    }
}

/// The words of what follows a release's numbers.
fn parts(suffix: &str) -> impl Iterator<Item = &str> + Clone {
    suffix
        .split(['-', '.', '+', '_'])
        .filter(|part| !part.is_empty())
}

/// The number of the build in what follows `X.Y.0`: `-91-generic`, `-91.102-generic`, `-0.bpo.9-amd64`, `-0.deb11.6-amd64`.
fn build_number(suffix: &str) -> Option<u32> {
    let first = suffix.trim_start_matches('-').split('-').next()?;
    let backported = first.strip_prefix("0.bpo.").or_else(|| {
        first
            .strip_prefix("0.deb")?
            .split_once('.')
            .map(|pair| pair.1)
    });
    backported.unwrap_or(first).split('.').next()?.parse().ok()
}

/// TencentOS releases end like `-19-0009.11`.
fn is_tencent_build(part: &str) -> bool {
    part.len() == 4 && part.starts_with("00") && part.parse::<u16>().is_ok()
}

impl Kernel {
    fn of(
        release: &str,
        version: Version,
        suffix: &str,
        stable: Option<Version>,
        open: bool,
    ) -> Self {
        let fits = |mark: &&Mark| {
            parts(suffix).any(|part| match mark.1 {
                Fit::Word => part == mark.0,
                // A mark such as `fc` or `oe` is followed by a number or by nothing.
                Fit::Start => part.strip_prefix(mark.0).is_some_and(|rest| {
                    mark.0.len() > 3
                        || rest.is_empty()
                        || rest.starts_with(|c: char| c.is_ascii_digit())
                }),
            })
        };
        let el7 = version.0 == 3 && parts(suffix).any(|part| part.starts_with("el7"));
        let build = build_number(suffix).filter(|build| version.2 == 0 && *build < 100_000);
        let mark = MARKS.iter().find(fits);
        let ends = |ends: &[&str]| {
            parts(suffix)
                .last()
                .is_some_and(|part| ends.contains(&part))
        };
        let (distribution, flavour) = match mark {
            _ if el7 => ("RHEL 7 or a rebuild", Flavour::El7),
            Some(mark) => (mark.2, mark.3),
            None if version.2 == 0 && build.is_some() && ends(DEBIAN_ENDS) => {
                ("Debian", Flavour::HiddenPatch)
            }
            None if build.is_some() => ("Ubuntu", Flavour::HiddenPatch),
            None if suffix
                .trim_start_matches('-')
                .starts_with(|c: char| c.is_ascii_digit())
                && ends(&["azure"]) =>
            {
                ("SUSE", Flavour::Vendor)
            }
            None if version.2 > 0 && parts(suffix).nth(1).is_some_and(is_tencent_build) => {
                ("TencentOS", Flavour::Vendor)
            }
            None if suffix.starts_with('+') => {
                ("Container-Optimized OS, or built by hand", Flavour::Vanilla)
            }
            None => ("kernel.org", Flavour::Vanilla),
        };
        let flavour = match flavour {
            Flavour::Vanilla if open => Flavour::HiddenPatch,
            flavour => flavour,
        };
        let levels = match flavour {
            Flavour::HiddenPatch if open => (0, u16::MAX),
            Flavour::HiddenPatch => {
                let end = suffix.trim_start_matches('-');
                let end = end.split_once('-').map_or("", |pair| pair.1);
                let end = if end == "lowlatency" { "generic" } else { end };
                levels::of_build(distribution, end, version, build)
            }
            _ => (version.2, version.2),
        };
        // Ubuntu's signature writes the upload number too, `uname -r` does not.
        let release = match (flavour, release.split_once('-'), build) {
            (Flavour::HiddenPatch, Some((numbers, rest)), Some(build))
                if rest.starts_with(&format!("{build}.")) =>
            {
                let end = rest.split_once('-').map_or("", |pair| pair.1);
                format!("{numbers}-{build}-{end}")
            }
            _ => release.to_owned(),
        };
        Self {
            release,
            version,
            flavour,
            distribution,
            levels: stable.map_or(levels, |stable| (stable.2, stable.2)),
            stable,
            taken: None,
        }
    }

    /// The same kernel with what its release leaves open decided.
    #[must_use]
    pub fn taken(&self, taken: Taken) -> Self {
        Self {
            taken: Some(taken),
            ..self.clone()
        }
    }

    /// Lowest and highest stable patch level, after what was decided.
    const fn range(&self) -> (u16, u16) {
        match self.taken {
            Some(Taken::As(level)) => (level.2, level.2),
            _ => self.levels,
        }
    }

    /// Whether this kernel has a behaviour.
    pub fn answer(&self, gate: Gate) -> Answer {
        match (self.by_release(gate), self.taken) {
            (Answer::Unknown, Some(Taken::With(set))) if set.has(gate) => Answer::Yes,
            (Answer::Unknown, Some(_)) => Answer::No,
            (answer, _) => answer,
        }
    }

    /// What the release alone, or a stable level that stands for it, says.
    fn by_release(&self, gate: Gate) -> Answer {
        let row = gate.row();
        if self.flavour == Flavour::El7 {
            return if row.el7 { Answer::Yes } else { Answer::No };
        }
        let branch = (self.version.0, self.version.1);
        if row.since.is_some_and(|since| self.version >= since) {
            return Answer::Yes;
        }
        let (low, high) = self.range();
        let mut ports = row.backports.iter();
        let port = ports.find(|port| (port.0, port.1) == branch);
        match port {
            Some(port) if low >= port.2 => Answer::Yes,
            _ if self.flavour == Flavour::Vendor => Answer::Unknown,
            Some(port) if high < port.2 => Answer::No,
            Some(_) => Answer::Unknown,
            // A distribution that keeps a short-lived branch alive takes its fixes from the neighbours.
            None if self.flavour == Flavour::HiddenPatch
                && self.stable.is_none()
                && !LONG_TERM.contains(&branch)
                && !row.backports.is_empty() =>
            {
                Answer::Unknown
            }
            None => Answer::No,
        }
    }

    /// The kernel's behaviours; what is unknown counts as `assume`.
    pub fn behaviours_assuming(&self, assume: bool) -> Behaviours {
        GATES.iter().fold(Behaviours::default(), |set, row| {
            let present = match self.answer(row.gate) {
                Answer::Yes => true,
                Answer::No => false,
                Answer::Unknown => assume,
            };
            set.with(row.gate, present)
        })
    }

    /// The kernel's behaviours; what is unknown counts as absent.
    pub fn behaviours(&self) -> Behaviours {
        self.behaviours_assuming(false)
    }

    /// The gates that the release does not decide.
    pub fn unknown(&self) -> impl Iterator<Item = Gate> + '_ {
        GATES
            .iter()
            .map(|row| row.gate)
            .filter(|gate| self.answer(*gate) == Answer::Unknown)
    }

    /// The stable release that it is built on, as far as that is known: in words, or `None` where there is nothing to
    /// say beyond the release.
    pub fn level_text(&self) -> Option<String> {
        let Version(major, minor, _) = self.version;
        let at = |patch| Version(major, minor, patch);
        match (self.flavour, self.levels) {
            (Flavour::HiddenPatch, (low, high)) if low == high => {
                Some(format!("built on stable {}", at(low)))
            }
            (Flavour::HiddenPatch, (0, u16::MAX)) => None,
            (Flavour::HiddenPatch, (0, high)) => {
                Some(format!("built on stable {} or before", at(high)))
            }
            (Flavour::HiddenPatch, (low, u16::MAX)) => {
                Some(format!("built on stable {} or later", at(low)))
            }
            (Flavour::HiddenPatch, (low, high)) => Some(format!(
                "built on a stable release from {} to {}",
                at(low),
                at(high)
            )),
            _ => None,
        }
    }
}

/// As scenarios write it: the release, the stable level if a banner stated it, and what was decided.
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)?;
        if let Some(stable) = self.stable {
            write!(f, " (stable {stable})")?;
        }
        match self.taken {
            None => Ok(()),
            Some(Taken::As(level)) => write!(f, " as {level}"),
            Some(Taken::With(set)) => {
                let names = GATES
                    .iter()
                    .filter(|row| set.has(row.gate))
                    .map(|row| row.name)
                    .collect::<Vec<_>>();
                match names.as_slice() {
                    [] => f.write_str(" with none"),
                    names => write!(f, " with {}", names.join(" and ")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
