//! Which stable release a distribution's kernel is built on, where its release number hides that.
//!
//! Debian and Ubuntu call every kernel of a branch `X.Y.0` and count their own builds behind it. Both print the stable
//! level elsewhere (Debian in `uname -v`, Ubuntu in `/proc/version_signature`), so boot logs that people published
//! give pairs of build number and level. Builds only ever move forward, so a build between two known ones lies between
//! their levels.
//!
//! Leaves out: builds of which no published log was found; fixes that a distribution picked ahead of its level.

use super::Version;

/// A build number and the stable patch level that its banner states.
type Pair = (u32, u16);

/// The builds of one flavour of one branch.
#[derive(Debug)]
pub(super) struct Builds {
    /// `Debian` or `Ubuntu`.
    pub distribution: &'static str,
    /// How the release ends: `generic` for Ubuntu's own, `aws` and so on for its clouds; empty for all of Debian's.
    pub flavour: &'static str,
    /// Branch.
    pub branch: (u16, u16),
    /// Pairs in rising order.
    pub pairs: &'static [Pair],
}

/// Read in published boot logs and `uname -a` outputs, such as "Ubuntu 5.4.0-91.102-generic 5.4.151" and
/// "5.10.0-10-amd64 #1 SMP Debian 5.10.84-1".
#[rustfmt::skip]
pub(super) const BUILDS: &[Builds] = &[
    Builds { distribution: "Debian", flavour: "", branch: (4, 19), pairs: &[
        (9, 118), (10, 132), (14, 171), (16, 181), (17, 194), (18, 208), (20, 235), (21, 249), (22, 260),
    ] },
    Builds { distribution: "Debian", flavour: "", branch: (5, 10), pairs: &[(9, 70), (10, 84)] },
    Builds { distribution: "Debian", flavour: "", branch: (6, 1), pairs: &[
        (10, 37), (17, 69), (18, 76), (25, 106), (26, 112), (34, 135),
    ] },
    Builds { distribution: "Ubuntu", flavour: "generic", branch: (5, 4), pairs: &[
        (47, 55), (48, 60), (51, 65), (54, 65), (91, 151), (96, 157), (97, 162), (100, 166), (107, 174), (122, 192),
        (136, 218), (144, 229), (149, 233), (166, 252), (169, 257), (205, 284),
    ] },
    Builds { distribution: "Ubuntu", flavour: "generic", branch: (5, 15), pairs: &[
        (25, 30), (40, 35), (43, 39), (52, 60), (56, 64), (79, 111), (91, 131), (97, 136), (100, 143), (136, 178),
    ] },
    Builds { distribution: "Ubuntu", flavour: "aws", branch: (5, 4), pairs: &[(1061, 157)] },
    Builds { distribution: "Ubuntu", flavour: "aws", branch: (5, 15), pairs: &[
        (1017, 39), (1063, 152), (1066, 158), (1084, 179),
    ] },
    Builds { distribution: "Ubuntu", flavour: "azure", branch: (5, 4), pairs: &[(1031, 65), (1059, 140)] },
    Builds { distribution: "Ubuntu", flavour: "azure", branch: (5, 15), pairs: &[(1041, 99), (1053, 132)] },
];

/// The lowest and the highest stable patch level that a build can have; both the same if it is known.
pub(super) fn of_build(
    distribution: &str,
    flavour: &str,
    version: Version,
    build: Option<u32>,
) -> (u16, u16) {
    let branch = (version.0, version.1);
    let builds = BUILDS.iter().find(|builds| {
        builds.distribution == distribution
            && builds.branch == branch
            && (builds.flavour.is_empty() || builds.flavour == flavour)
    });
    let (Some(builds), Some(build)) = (builds, build) else {
        return (0, u16::MAX);
    };
    let low = builds.pairs.iter().rev().find(|pair| pair.0 <= build);
    let high = builds.pairs.iter().find(|pair| pair.0 >= build);
    (
        low.map_or(0, |pair| pair.1),
        high.map_or(u16::MAX, |pair| pair.1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_and_levels_rise_together() {
        for builds in BUILDS {
            let rises = builds
                .pairs
                .windows(2)
                .all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
            assert!(rises, "{builds:?}");
        }
    }

    #[test]
    fn a_build_between_two_known_ones_lies_between_their_levels() {
        let at = |build| of_build("Ubuntu", "generic", Version(5, 4, 0), Some(build));
        assert_eq!(at(91), (151, 151));
        assert_eq!(at(98), (162, 166));
        assert_eq!(at(1), (0, 55));
        assert_eq!(at(500), (284, u16::MAX));
        let debian = |build| of_build("Debian", "cloud-amd64", Version(5, 10, 0), Some(build));
        assert_eq!(debian(9), (70, 70));
        assert_eq!(debian(20), (84, u16::MAX));
        // Another flavour counts its builds by itself.
        assert_eq!(
            of_build("Ubuntu", "gke", Version(5, 4, 0), Some(1051)),
            (0, u16::MAX)
        );
    }
}
