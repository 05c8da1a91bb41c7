//! Releases as machines print them, what is made of them, and what they leave open.

use super::super::possible::{CLIENT_DECISIVE, NODE_DECISIVE};
use super::*;

fn kernel(release: &str) -> Kernel {
    release
        .parse()
        .unwrap_or_else(|error| panic!("{release}: {error}"))
}

/// The reuse eras of all possibilities, in order.
fn eras(release: &str) -> Vec<&'static str> {
    let possible = kernel(release).possibilities(NODE_DECISIVE);
    possible
        .iter()
        .map(|kernel| kernel.behaviours().reuse_era())
        .collect()
}

#[test]
fn real_release_strings_parse() {
    use Flavour::{El7, HiddenPatch, Vanilla, Vendor};
    let rows = [
        ("5.4.0-91-generic", Version(5, 4, 0), HiddenPatch, "Ubuntu"),
        (
            "5.15.0-91-lowlatency",
            Version(5, 15, 0),
            HiddenPatch,
            "Ubuntu",
        ),
        ("5.15.0-1051-aws", Version(5, 15, 0), HiddenPatch, "Ubuntu"),
        (
            "5.15.0-1051-azure",
            Version(5, 15, 0),
            HiddenPatch,
            "Ubuntu",
        ),
        ("5.15.0-1051-gke", Version(5, 15, 0), HiddenPatch, "Ubuntu"),
        ("4.15.0-1023-aws", Version(4, 15, 0), HiddenPatch, "Ubuntu"),
        ("6.1.0-18-amd64", Version(6, 1, 0), HiddenPatch, "Debian"),
        (
            "5.10.0-20-cloud-arm64",
            Version(5, 10, 0),
            HiddenPatch,
            "Debian",
        ),
        (
            "5.10.0-0.bpo.9-amd64",
            Version(5, 10, 0),
            HiddenPatch,
            "Debian",
        ),
        (
            "5.10.0-0.deb10.16-amd64",
            Version(5, 10, 0),
            HiddenPatch,
            "Debian",
        ),
        ("6.12.43+deb13-amd64", Version(6, 12, 43), Vanilla, "Debian"),
        (
            "3.10.0-1160.el7.x86_64",
            Version(3, 10, 0),
            El7,
            "RHEL 7 or a rebuild",
        ),
        (
            "3.10.0-1160.el7",
            Version(3, 10, 0),
            El7,
            "RHEL 7 or a rebuild",
        ),
        (
            "4.18.0-305.el8",
            Version(4, 18, 0),
            Vendor,
            "RHEL 8 or a rebuild",
        ),
        (
            "4.18.0-305.3.1.el8_4.x86_64",
            Version(4, 18, 0),
            Vendor,
            "RHEL 8 or a rebuild",
        ),
        (
            "5.14.0-362.24.1.el9_3.x86_64",
            Version(5, 14, 0),
            Vendor,
            "RHEL 9 or a rebuild",
        ),
        (
            "4.4.222-1.el7.elrepo.x86_64",
            Version(4, 4, 222),
            Vanilla,
            "ELRepo",
        ),
        (
            "4.19.91-21.al7.x86_64",
            Version(4, 19, 91),
            Vendor,
            "Alibaba Cloud Linux 2",
        ),
        (
            "5.10.134-16.al8.x86_64",
            Version(5, 10, 134),
            Vendor,
            "Alibaba Cloud Linux 3",
        ),
        (
            "5.10.134-13.an8.x86_64",
            Version(5, 10, 134),
            Vendor,
            "Anolis OS",
        ),
        (
            "4.14.256-197.484.amzn2.x86_64",
            Version(4, 14, 256),
            Vanilla,
            "Amazon Linux",
        ),
        (
            "5.10.176-157.645.amzn2.x86_64",
            Version(5, 10, 176),
            Vanilla,
            "Amazon Linux",
        ),
        (
            "6.1.79-99.164.amzn2023.x86_64",
            Version(6, 1, 79),
            Vanilla,
            "Amazon Linux",
        ),
        (
            "5.4.17-2136.302.7.2.1.el8uek.x86_64",
            Version(5, 4, 17),
            Vendor,
            "Oracle UEK",
        ),
        (
            "4.14.35-1902.303.5.3.el7uek.x86_64",
            Version(4, 14, 35),
            Vendor,
            "Oracle UEK",
        ),
        (
            "3.10.107-1-tlinux2-0052",
            Version(3, 10, 107),
            Vendor,
            "TencentOS",
        ),
        ("4.14.105-19-0024", Version(4, 14, 105), Vendor, "TencentOS"),
        (
            "5.4.119-19-0009.11",
            Version(5, 4, 119),
            Vendor,
            "TencentOS",
        ),
        (
            "5.4.119-1-tlinux4-0010.1",
            Version(5, 4, 119),
            Vendor,
            "TencentOS",
        ),
        (
            "6.6.30-5.oc9.x86_64",
            Version(6, 6, 30),
            Vendor,
            "OpenCloudOS",
        ),
        (
            "4.19.90-2107.6.0.0192.8.oe1.bclinux.x86_64",
            Version(4, 19, 90),
            Vendor,
            "openEuler",
        ),
        (
            "4.18.0-147.5.1.6.h579.eulerosv2r9.x86_64",
            Version(4, 18, 0),
            Vendor,
            "EulerOS",
        ),
        (
            "4.19.90-23.8.v2101.ky10.x86_64",
            Version(4, 19, 90),
            Vendor,
            "Kylin",
        ),
        ("4.12.14-122.37-default", Version(4, 12, 14), Vendor, "SUSE"),
        (
            "5.14.21-150400.24.63-default",
            Version(5, 14, 21),
            Vendor,
            "SUSE",
        ),
        ("6.4.0-150600.8.5-azure", Version(6, 4, 0), Vendor, "SUSE"),
        ("5.3.18-lp152.19-default", Version(5, 3, 18), Vendor, "SUSE"),
        ("5.15.142-flatcar", Version(5, 15, 142), Vanilla, "Flatcar"),
        ("6.1.58-talos", Version(6, 1, 58), Vanilla, "Talos"),
        (
            "5.15.90.1-microsoft-standard-WSL2",
            Version(5, 15, 90),
            Vanilla,
            "WSL 2",
        ),
        (
            "5.10.104-linuxkit",
            Version(5, 10, 104),
            Vanilla,
            "LinuxKit",
        ),
        (
            "5.15.122.1-2.cm2",
            Version(5, 15, 122),
            Vanilla,
            "Azure Linux",
        ),
        ("6.6.29.1-4.azl3", Version(6, 6, 29), Vanilla, "Azure Linux"),
        ("6.5.6-300.fc39.x86_64", Version(6, 5, 6), Vanilla, "Fedora"),
        ("5.15.5-arch1-1", Version(5, 15, 5), Vanilla, "Arch Linux"),
        ("5.15.64-1-pve", Version(5, 15, 64), Vanilla, "Proxmox"),
        (
            "5.10.147+",
            Version(5, 10, 147),
            Vanilla,
            "Container-Optimized OS, or built by hand",
        ),
        ("5.10.118", Version(5, 10, 118), Vanilla, "kernel.org"),
        ("5.17.0-rc5", Version(5, 17, 0), Vanilla, "kernel.org"),
        ("4.14.257-rc1", Version(4, 14, 257), Vanilla, "kernel.org"),
        (
            "4.14.x-amzn2",
            Version(4, 14, 0),
            HiddenPatch,
            "Amazon Linux",
        ),
        ("5.10.x", Version(5, 10, 0), HiddenPatch, "kernel.org"),
        ("6.6.x.tlinux4", Version(6, 6, 0), Vendor, "TencentOS"),
    ];
    for (release, version, flavour, distribution) in rows {
        let parsed = kernel(release);
        assert_eq!(
            (parsed.version, parsed.flavour, parsed.distribution),
            (version, flavour, distribution),
            "{release}"
        );
        assert_eq!(parsed.to_string(), release);
    }
}

/// `uname -a`, `uname -srv`, /proc/version and /proc/version_signature as machines print them.
#[test]
fn banners_tell_the_stable_level() {
    let debian = Some(Version(6, 1, 76));
    let rows = [
        (
            "6.1.0-18-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)",
            "6.1.0-18-amd64",
            debian,
        ),
        (
            "Linux node1 6.1.0-18-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01) x86_64 GNU/Linux",
            "6.1.0-18-amd64",
            debian,
        ),
        (
            "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0, GNU ld \
             (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)",
            "6.1.0-18-amd64",
            debian,
        ),
        ("Linux 6.1.0-18-amd64", "6.1.0-18-amd64", None),
        (
            "Linux 10.0.0.7 5.4.0-91-generic #102-Ubuntu SMP Fri Nov 5 16:31:28 UTC 2021 x86_64 x86_64 x86_64 GNU/Linux",
            "5.4.0-91-generic",
            None,
        ),
        (
            "Linux version 5.4.0-91-generic (buildd@lcy01) (gcc version 9.3.0 (Ubuntu 9.3.0-17ubuntu1~20.04)) \
             #102-Ubuntu SMP Fri Nov 5 16:31:28 UTC 2021 (Ubuntu 5.4.0-91.102-generic 5.4.151)",
            "5.4.0-91-generic",
            Some(Version(5, 4, 151)),
        ),
        (
            "Ubuntu 5.4.0-91.102-generic 5.4.151",
            "5.4.0-91-generic",
            Some(Version(5, 4, 151)),
        ),
        (
            "Ubuntu 5.15.0-1017.21~20.04.1-aws 5.15.39",
            "5.15.0-1017-aws",
            Some(Version(5, 15, 39)),
        ),
        ("6.1.0-18-amd64 (stable 6.1.76)", "6.1.0-18-amd64", debian),
        (
            "Linux node 3.10.0-1160.el7.x86_64 #1 SMP Mon Oct 19 16:18:59 UTC 2020 x86_64",
            "3.10.0-1160.el7.x86_64",
            None,
        ),
    ];
    for (text, release, stable) in rows {
        let parsed = kernel(text);
        assert_eq!(
            (parsed.release.as_str(), parsed.stable),
            (release, stable),
            "{text}"
        );
        assert_eq!(kernel(&parsed.to_string()), parsed, "{text}");
        assert_ne!(
            parsed.answer(Gate::WeightZeroAnyMode),
            Answer::Unknown,
            "{text}"
        );
    }
}

/// Builds whose level published boot logs state (kernel::levels), against the fixes of 5.4.163, 5.10.83, 4.19.219.
#[test]
fn known_builds_decide() {
    let rows = [
        ("5.4.0-47-generic", vec!["C"]),
        ("5.4.0-48-generic", vec!["D"]),
        ("5.4.0-91-generic", vec!["D"]),
        ("5.4.0-97-generic", vec!["D"]),
        ("5.4.0-98-generic", vec!["D", "D+F"]),
        ("5.4.0-100-generic", vec!["D+F"]),
        ("5.15.0-91-generic", vec!["F"]),
        ("5.15.0-1051-aws", vec!["F"]),
        ("5.10.0-9-amd64", vec!["E"]),
        ("5.10.0-10-amd64", vec!["F"]),
        ("5.10.0-20-amd64", vec!["F"]),
        ("4.19.0-10-amd64", vec!["C"]),
        ("4.19.0-18-amd64", vec!["D"]),
        ("4.19.0-20-amd64", vec!["D+F"]),
        ("6.1.0-18-amd64", vec!["F"]),
    ];
    for (release, want) in rows {
        assert_eq!(eras(release), want, "{release}");
    }
}

#[test]
fn what_is_left_open_is_every_possibility() {
    let rows = [
        // A hidden level: one possibility for each interval.
        ("5.4.0-1051-gke", vec!["C", "D", "D+F"]),
        ("4.19.x", vec!["C", "D", "D+F"]),
        ("5.10.x", vec!["E", "F"]),
        ("5.15.0-1051-gke", vec!["E", "F"]),
        // Ubuntu kept 4.15 alive with fixes from 4.14 and 4.19.
        ("4.15.0-1023-aws", vec!["C", "D", "C+F", "D+F"]),
        // A vendor picks.
        ("4.18.0-305.el8", vec!["C", "D", "C+F", "D+F"]),
        ("4.19.91-21.al7", vec!["C", "D", "C+F", "D+F"]),
        ("5.4.119-19-0009.11", vec!["D", "D+F"]),
        // ... from a base that has it all.
        ("5.10.134-16.al8", vec!["F"]),
        ("5.14.0-362.el9", vec!["E", "F"]),
        ("3.10.0-1160.el7", vec!["C"]),
        ("4.14.256-197.484.amzn2.x86_64", vec!["D"]),
        ("5.10.118", vec!["F"]),
    ];
    for (release, want) in rows {
        assert_eq!(eras(release), want, "{release}");
    }
    let possible = kernel("5.4.0-1051-gke").possibilities(NODE_DECISIVE);
    let texts = possible.iter().map(Kernel::to_string).collect::<Vec<_>>();
    assert_eq!(
        texts,
        [
            "5.4.0-1051-gke as 5.4.58",
            "5.4.0-1051-gke as 5.4.59",
            "5.4.0-1051-gke as 5.4.163"
        ]
    );
    let vendor = kernel("4.18.0-305.el8").possibilities(NODE_DECISIVE);
    assert_eq!(vendor[0].to_string(), "4.18.0-305.el8 with none");
    assert_eq!(
        vendor[3].to_string(),
        "4.18.0-305.el8 with reuse-drops-confirmed and weight-zero-any-mode"
    );
    for possibility in possible.iter().chain(&vendor) {
        assert_eq!(kernel(&possibility.to_string()), *possibility);
        assert_eq!(possibility.possibilities(NODE_DECISIVE).len(), 1);
    }
    let client = kernel("5.4.0-130-generic").possibilities(CLIENT_DECISIVE);
    assert_eq!(
        client.len(),
        2,
        "5.4.192 to 5.4.218, and 5.4.201 brought it"
    );
}

/// 3.10 with patches of its own may be in any era before 5.9, or beyond.
#[test]
fn a_vendor_of_an_old_base_may_have_any_era_but_no_fix_without_its_ground() {
    let found = eras("3.10.107-1-tlinux2-0052");
    assert_eq!(found, ["A", "B", "C", "B", "D", "C+F", "D+F"]);
}

#[test]
fn hidden_patch_levels_are_reported_as_unknown() {
    let ubuntu = kernel("5.4.0-1051-gke");
    assert_eq!(ubuntu.answer(Gate::WeightZeroAnyMode), Answer::Unknown);
    assert_eq!(ubuntu.answer(Gate::ReuseMode), Answer::Yes);
    assert_eq!(ubuntu.answer(Gate::SynLinear), Answer::No);
    assert!(
        ubuntu
            .unknown()
            .any(|gate| gate == Gate::ReuseDropsConfirmed)
    );
    assert_eq!(kernel("5.4.162").unknown().count(), 0);
    assert_eq!(kernel("5.4.0-1051-gke as 5.4.162").unknown().count(), 0);
    assert_eq!(kernel("4.18.0-305.el8 with none").unknown().count(), 0);
    assert_eq!(
        kernel("5.4.0-91-generic").level_text().as_deref(),
        Some("built on stable 5.4.151")
    );
    assert_eq!(
        kernel("5.4.0-98-generic").level_text().as_deref(),
        Some("built on a stable release from 5.4.162 to 5.4.166")
    );
    assert_eq!(kernel("5.4.162").level_text(), None);
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    for bad in [
        "",
        "linux",
        "5",
        "2.6.32",
        "5.x.1",
        "99.1",
        "70000.1",
        "5.4.1 or so",
        "5.4.0-91-generic as",
        "5.4.0-91-generic as 5.10.1",
        "5.4.0-91-generic as new",
        "5.4.0-91-generic with",
        "5.4.0-91-generic with magic",
        "Linux",
        "Ubuntu",
    ] {
        let error = bad.parse::<Kernel>().unwrap_err().to_string();
        assert!(error.contains("uname -r"), "{error}");
    }
}
