//! A kube-proxy release and the behaviours it has: the one table of gates, as in [`crate::kernel`].
//!
//! Faithful to: kube-proxy 1.11 to 1.35 in IPVS mode (facts, kube-proxy 1 to 5), read in the source up to 1.30.3
//! and in issues and pull requests after it.
//! Leaves out: IPv6 and dual stack; the fallback to iptables mode when a kernel module is missing (1.11 and 1.12
//! on kernels from 4.19: kubernetes#70304); distributions that patch kube-proxy.

use core::fmt;
use core::str::FromStr;

use crate::kernel::{Answer, Version};

/// Declares the gates and their table in one place, so that no gate can lack its row.
macro_rules! proxy_gates {
    ($( $(#[doc = $doc:literal])+ $gate:ident $name:literal
        since $since:expr, backports [$($port:expr),*], $source:literal; )+) => {
        /// A behaviour that some kube-proxy releases have and others do not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ProxyGate { $( $(#[doc = $doc])+ $gate, )+ }

        /// Every gate with its history, in the order of the enum.
        pub const PROXY_GATES: &[ProxyGateRow] = &[ $( ProxyGateRow {
            gate: ProxyGate::$gate,
            name: $name,
            summary: concat!($($doc),+),
            since: $since,
            backports: &[$($port),*],
            source: $source,
        }, )+ ];
    };
}

/// One row of the gate table.
#[derive(Clone, Copy, Debug)]
pub struct ProxyGateRow {
    /// The gate.
    pub gate: ProxyGate,
    /// The name used in scenarios and on the command line.
    pub name: &'static str,
    /// What the behaviour is.
    pub summary: &'static str,
    /// The first minor release that has it from its `.0` on.
    pub since: Version,
    /// Earlier minor releases that took it over, each with its first patch release that has it.
    pub backports: &'static [Version],
    /// Pull request, and how the releases are known.
    pub source: &'static str,
}

const fn v(minor: u16, patch: u16) -> Version {
    Version(1, minor, patch)
}

proxy_gates! {
    /// A real server that goes away is drained at weight 0 instead of being deleted at once.
    GracefulTermination "graceful-termination"
        since v(13, 0), backports [v(11, 5), v(12, 2)],
        "#66012, #69268; cherry-picks #70006, #70007; 1.11.5 in CHANGELOG-1.11.md, 1.12.2 in #70006";
    /// A draining real server is deleted only when active and inactive connections are both 0; before, active alone counted.
    WaitsForInactive "waits-for-inactive"
        since v(14, 0), backports [v(11, 6), v(12, 4), v(13, 1)],
        "#71515; cherry-picks #71848, #71847, #71881; read in 1.14; 1.11.6 in CHANGELOG-1.11.md, all three in #71071";
    /// An entry can leave the list of draining real servers; before, none ever did.
    GracefulListForgets "graceful-list-forgets"
        since v(14, 0), backports [v(11, 6), v(12, 4), v(13, 1)],
        "#71515, symptom #71071, where its author names the three releases; the fault read at kubernetes@9448d85d";
    /// A UDP real server is deleted at once instead of draining.
    UdpImmediate "udp-immediate"
        since v(15, 0), backports [v(12, 10), v(13, 8), v(14, 4)],
        "#77802 with the fix #78999 of its upper and lower case; cherry-picks #79103, #79102, #79101; 1.12.10 and 1.13.8 in their change logs (1.13.7 has #77802 without the fix), 1.14.4 from its date";
    /// An SCTP real server is deleted at once instead of draining.
    SctpImmediate "sctp-immediate"
        since v(20, 0), backports [], "read in 1.18.6 (absent), 1.20-rc.0; 1.19 not read";
    /// The start leaves existing real servers alone; before, it deleted or drained every one of them until the first sync.
    StartKeepsServers "start-keeps-servers"
        since v(15, 0), backports [v(12, 8), v(13, 6), v(14, 1)],
        "#75283, symptom #73154; cherry-picks #75723, #75722, #75721; 1.12.8 and 1.13.6 in their change logs, 1.14.1 from its date";
    /// The first sync after a start sets the weight of wanted real servers back to 1.
    FirstSyncResetsWeight "first-sync-resets-weight"
        since v(26, 0), backports [], "#111635, symptoms #92019, #108319; read in 1.25.1 (absent), 1.26";
    /// The start sets net.ipv4.vs.conn_reuse_mode to 0.
    ReuseModeZero "reuse-mode-zero"
        since v(13, 0), backports [v(11, 7), v(12, 5)],
        "#71114; cherry-picks #72100, #72101, which take it over with #71834; 1.11.7 has that in CHANGELOG-1.11.md, 1.12.5 from its date";
    /// ... but not on kernels named below 4.1, which lack it; before, the start failed there.
    ReuseModeChecksKernel "reuse-mode-checks-kernel"
        since v(19, 0), backports [], "#88541 (first proposed as #82066); read in 1.18.6 (absent), 1.20";
    /// ... and not on kernels named 5.9 or later, where it is left as it is.
    ReuseModeSkipsFixed "reuse-mode-skips-fixed"
        since v(22, 0), backports [v(20, 15), v(21, 9)],
        "#102122; cherry-picks #107437, #107438; read in 1.22, patch releases from their dates";
    /// The start sets net.ipv4.vs.expire_nodest_conn and expire_quiescent_template to 1.
    ExpireSysctls "expire-sysctls"
        since v(14, 0), backports [v(11, 7), v(12, 5), v(13, 2)],
        "#71834; cherry-picks #72100, #72101, #72099; 1.11.7 in CHANGELOG-1.11.md, 1.12.5 and 1.13.2 from their dates";
    /// The start no longer sets net.ipv4.conf.all.route_localnet.
    NoRouteLocalnet "no-route-localnet"
        since v(21, 0), backports [], "read in 1.20 (absent), 1.21-rc.0";
    /// arp_ignore and arp_announce are set only on request (strictARP).
    StrictArpOptional "strict-arp-optional"
        since v(15, 0), backports [v(13, 6), v(14, 1)],
        "#75295; 1.13.6 read in the change log, 1.14.1 from its date; read in 1.16";
    /// MASQUERADE uses --random-fully where iptables knows it.
    RandomFully "random-fully"
        since v(16, 0), backports [], "read in 1.14 (absent), 1.16";
    /// The scheduler mh hashes the client's port too.
    MhHashesPort "mh-hashes-port"
        since v(27, 0), backports [], "read in 1.27.1; release from the facts";
    /// EndpointSlices list terminating pods and say whether they still serve; before, a deleted pod vanishes.
    SliceTerminating "slice-terminating"
        since v(22, 0), backports [], "feature gate EndpointSliceTerminatingCondition, on by default from 1.22";
    /// Without a ready endpoint anywhere, terminating endpoints that still serve are used.
    TerminatingCluster "terminating-cluster"
        since v(26, 0), backports [], "feature gate ProxyTerminatingEndpoints, on by default from 1.26; alpha in 1.24 and 1.25";
    /// The same among the node's own endpoints under a Local traffic policy.
    TerminatingLocal "terminating-local"
        since v(26, 0), backports [], "feature gate ProxyTerminatingEndpoints, on by default from 1.26; alpha from 1.22";
    /// IPVS mode is deprecated: kube-proxy says so at its start; nftables mode is to take its place.
    IpvsDeprecated "ipvs-deprecated"
        since v(35, 0), backports [], "#134539, KEP-5495; read in the issue";
    /// A Local traffic policy without an endpoint on the node falls back to the endpoints of the cluster.
    LocalFallsBack "local-falls-back"
        since v(21, 0), backports [], "#97081; the release from the facts";
    /// UDP conntrack entries are compared with the endpoints as a whole, and a service without endpoints is passed over;
    /// before, changes were followed one by one.
    UdpReconciler "udp-reconciler"
        since v(32, 0), backports [], "#127318, symptom #139628; read in the issues";
}

impl ProxyGate {
    /// The gate's row in the table.
    pub const fn row(self) -> &'static ProxyGateRow {
        &PROXY_GATES[self as usize]
    }
}

impl fmt::Display for ProxyGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// The gate of a name as scenarios write it.
impl FromStr for ProxyGate {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        PROXY_GATES
            .iter()
            .find(|row| row.name == name)
            .map(|row| row.gate)
            .ok_or_else(|| {
                let names: Vec<_> = PROXY_GATES.iter().map(|row| row.name).collect();
                format!(
                    "unknown kube-proxy behaviour `{name}`; known are {}",
                    names.join(", ")
                )
            })
    }
}

/// A set of gates: all that the rules know of a kube-proxy release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProxyBehaviours(u32);

impl ProxyBehaviours {
    /// Whether kube-proxy has this behaviour.
    #[inline]
    pub const fn has(self, gate: ProxyGate) -> bool {
        self.0 & (1 << gate as u8) != 0
    }

    /// The same set with one gate added or removed.
    #[must_use]
    pub const fn with(self, gate: ProxyGate, present: bool) -> Self {
        let bit = 1 << gate as u8;
        Self(if present { self.0 | bit } else { self.0 & !bit })
    }
}

/// A parsed kube-proxy release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyVersion {
    /// The string that was parsed, such as `v1.28.3-eks-1234`.
    pub release: String,
    /// The version; patch level 0 if the string has none.
    pub version: Version,
    /// Whether the string states the patch level.
    pub patch_stated: bool,
}

/// Why a version string was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseProxyVersionError {
    release: String,
    reason: &'static str,
}

impl fmt::Display for ParseProxyVersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a Kubernetes version ({}); write what `kube-proxy --version` prints, such as 1.23.4 or \
             v1.28.3-eks-1234",
            self.release, self.reason
        )
    }
}

impl core::error::Error for ParseProxyVersionError {}

impl FromStr for ProxyVersion {
    type Err = ParseProxyVersionError;

    fn from_str(release: &str) -> Result<Self, Self::Err> {
        let fail = |reason| ParseProxyVersionError {
            release: release.to_owned(),
            reason,
        };
        let text = release.trim();
        let bare = text.strip_prefix('v').unwrap_or(text);
        let end = bare
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(bare.len());
        let (numbers, suffix) = bare.split_at(end);
        if !(suffix.is_empty() || suffix.starts_with(['-', '+'])) {
            return Err(fail(
                "something other than -suffix or +suffix follows the numbers",
            ));
        }
        let mut parts = numbers.split('.').map(str::parse::<u16>);
        let mut next = || {
            parts
                .next()
                .transpose()
                .map_err(|_| fail("a part is not a number"))
        };
        let major = next()?.ok_or_else(|| fail("it is empty"))?;
        let minor = next()?.ok_or_else(|| fail("it has no minor version"))?;
        let patch = next()?;
        if next()?.is_some() {
            return Err(fail("it has more than three numbers"));
        }
        if major != 1 {
            return Err(fail("the major version is not 1"));
        }
        if !(11..=99).contains(&minor) {
            return Err(fail("nothing before 1.11 is modelled"));
        }
        Ok(Self {
            release: text.to_owned(),
            version: Version(major, minor, patch.unwrap_or(0)),
            patch_stated: patch.is_some(),
        })
    }
}

impl ProxyVersion {
    /// Whether this release has a behaviour; unknown if that hangs on a patch level that is not stated.
    pub fn answer(&self, gate: ProxyGate) -> Answer {
        let row = gate.row();
        if self.version >= row.since {
            return Answer::Yes;
        }
        let backport = row.backports.iter().find(|port| port.1 == self.version.1);
        match backport {
            Some(_) if !self.patch_stated => Answer::Unknown,
            Some(port) if self.version >= *port => Answer::Yes,
            _ => Answer::No,
        }
    }

    /// The release's behaviours; what is unknown counts as `assume`.
    pub fn behaviours_assuming(&self, assume: bool) -> ProxyBehaviours {
        PROXY_GATES
            .iter()
            .fold(ProxyBehaviours::default(), |set, row| {
                let present = match self.answer(row.gate) {
                    Answer::Yes => true,
                    Answer::No => false,
                    Answer::Unknown => assume,
                };
                set.with(row.gate, present)
            })
    }

    /// The release's behaviours; a version without a patch level counts as the last one of its branch.
    pub fn behaviours(&self) -> ProxyBehaviours {
        self.behaviours_assuming(true)
    }

    /// The gates that the version string does not decide.
    pub fn unknown(&self) -> impl Iterator<Item = ProxyGate> + '_ {
        PROXY_GATES
            .iter()
            .map(|row| row.gate)
            .filter(|gate| self.answer(*gate) == Answer::Unknown)
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ProxyVersion {
        text.parse().unwrap()
    }

    #[test]
    fn real_version_strings_parse() {
        let rows = [
            ("1.14", Version(1, 14, 0), false),
            ("v1.23.4", Version(1, 23, 4), true),
            ("1.28.3-eks-1234", Version(1, 28, 3), true),
            ("v1.30.3+rke2r1", Version(1, 30, 3), true),
            ("v1.20.0-rc.0", Version(1, 20, 0), true),
            ("v1.12.4-tke.9", Version(1, 12, 4), true),
            (" 1.35.0 ", Version(1, 35, 0), true),
        ];
        for (text, want, stated) in rows {
            let parsed = version(text);
            assert_eq!(
                (parsed.version, parsed.patch_stated),
                (want, stated),
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_versions_are_refused_with_advice() {
        for text in [
            "",
            "v",
            "1",
            "1.",
            "1.x",
            "2.0",
            "1.10.3",
            "1.14.1.2",
            "1.14.99999",
            "5.15.0",
            "1.14k",
            "1..2",
        ] {
            let error = text.parse::<ProxyVersion>().unwrap_err().to_string();
            assert!(
                error.contains("kube-proxy --version") && error.contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_its_names_read_back() {
        for (index, row) in PROXY_GATES.iter().enumerate() {
            assert_eq!(row.gate as usize, index);
            assert_eq!(row.name.parse(), Ok(row.gate));
            for port in row.backports {
                assert!(
                    *port < row.since,
                    "{}: {port} is not before {}",
                    row.name,
                    row.since
                );
            }
        }
        assert!(
            "no-such"
                .parse::<ProxyGate>()
                .unwrap_err()
                .contains("udp-immediate")
        );
    }

    /// Every row of the release table of graceful termination: facts, kube-proxy 3.
    #[test]
    fn graceful_termination_by_release() {
        use ProxyGate::*;
        let gates = [
            GracefulTermination,
            WaitsForInactive,
            GracefulListForgets,
            StartKeepsServers,
            UdpImmediate,
            SctpImmediate,
            FirstSyncResetsWeight,
        ];
        let rows = [
            ("1.11.4", "......."),
            ("1.12.1", "......."),
            ("1.11.5", "g......"),
            ("1.12.2", "g......"),
            ("1.13.0", "g......"),
            ("1.11.6", "gil...."),
            ("1.12.4", "gil...."),
            ("1.13.1", "gil...."),
            ("1.13.6", "gils..."),
            ("1.14.0", "gil...."),
            ("1.14.3", "gils..."),
            ("1.14.5", "gilsu.."),
            ("1.14.8", "gilsu.."),
            ("1.15.0", "gilsu.."),
            ("1.18.6", "gilsu.."),
            ("1.20.0", "gilsuc."),
            ("1.25.1", "gilsuc."),
            ("1.26.0", "gilsucw"),
            ("1.30.3", "gilsucw"),
            ("1.35.0", "gilsucw"),
        ];
        for (text, want) in rows {
            let behaviours = version(text).behaviours();
            let got: String = gates
                .iter()
                .zip("gilsucw".chars())
                .map(|(gate, letter)| if behaviours.has(*gate) { letter } else { '.' })
                .collect();
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn a_branch_without_patch_level_leaves_its_backports_open() {
        let branch = version("1.13");
        assert_eq!(branch.answer(ProxyGate::WaitsForInactive), Answer::Unknown);
        assert_eq!(branch.answer(ProxyGate::GracefulTermination), Answer::Yes);
        assert_eq!(branch.answer(ProxyGate::SctpImmediate), Answer::No);
        assert!(branch.behaviours().has(ProxyGate::WaitsForInactive));
        assert!(
            !branch
                .behaviours_assuming(false)
                .has(ProxyGate::WaitsForInactive)
        );
        assert!(branch.unknown().any(|gate| gate == ProxyGate::UdpImmediate));
        assert_eq!(version("1.13.0").unknown().count(), 0);
        assert_eq!(version("1.16").unknown().count(), 0);
    }
}
