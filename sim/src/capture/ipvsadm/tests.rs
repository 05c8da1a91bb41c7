use super::*;

fn command(line: &str) -> RuleCommand {
    match parse_rule_line(line) {
        Parsed::Item(RuleLine::Command(command)) => command,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn commands_of_the_recordings_are_read() {
    let RuleCommand::AddService(service) = command("ipvsadm -A -t 10.20.79.226:31199 -s rr") else {
        panic!("no service");
    };
    assert_eq!(
        (service.scheduler.as_str(), service.persistent_s),
        ("rr", None)
    );
    let line = "ipvsadm -e -t 10.20.79.226:31199 -r 10.27.1.13:80 -m -w 0";
    let RuleCommand::EditDest(id, dest) = command(line) else {
        panic!("no edit");
    };
    assert_eq!(id.to_string(), "TCP 10.20.79.226:31199");
    assert_eq!((dest.weight, dest.forward), (0, Forward::Masq));
    let line = "ipvsadm -d -t 10.20.79.226:31199 -r 10.27.1.10:80";
    assert!(matches!(command(line), RuleCommand::DeleteDest(_, real) if real.port == 80));
}

#[test]
fn long_joined_and_optional_forms_mean_the_same() {
    let long = "sudo /sbin/ipvsadm --add-service --tcp-service 10.0.0.1:80 --scheduler sh \
                --persistent 10800 --netmask 255.255.255.0 -b sh-fallback,sh-port";
    let RuleCommand::AddService(service) = command(long) else {
        panic!("no service");
    };
    assert_eq!(service.persistent_s, Some(10_800));
    assert_eq!(service.flags, ["sh-fallback", "sh-port"]);
    let short = "ipvsadm -At 10.0.0.1:80 -ssh -p10800 -M 255.255.255.0 -b sh-fallback,sh-port";
    assert_eq!(command(short), RuleCommand::AddService(service));
    let RuleCommand::AddService(bare) = command("ipvsadm -A -u 10.0.0.1:53 -p -s rr") else {
        panic!("no service");
    };
    assert_eq!((bare.persistent_s, bare.id.proto), (Some(360), Proto::Udp));
    let RuleCommand::AddDest(_, dest) =
        command("ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2 -w3 --weight=4")
    else {
        panic!("no destination");
    };
    assert_eq!((dest.real.port, dest.weight), (80, 4));
}

#[test]
fn defaults_are_those_of_the_tool() {
    let RuleCommand::AddService(service) = command("ipvsadm -A -t 10.0.0.1:80") else {
        panic!("no service");
    };
    assert_eq!(service.scheduler, "wlc");
    let RuleCommand::AddDest(_, dest) = command("ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2") else {
        panic!("no destination");
    };
    assert_eq!(
        (dest.real.port, dest.weight, dest.forward),
        (80, 1, Forward::Route)
    );
    assert_eq!(
        command("ipvsadm --set 900 120 300"),
        RuleCommand::SetTimeouts {
            tcp_s: 900,
            tcpfin_s: 120,
            udp_s: 300
        }
    );
    assert_eq!(command("ipvsadm -C"), RuleCommand::Flush);
}

#[test]
fn dumps_and_listings_are_told_from_commands() {
    let dump = parse_rule_line("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 1");
    assert!(matches!(
        dump,
        Parsed::Item(RuleLine::Dump(RuleCommand::AddDest(..)))
    ));
    let listing = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.20.81.251:80 rr persistent 10800 mask 255.255.255.0
  -> 10.27.1.248:80               Masq    1      2          14048
--
FWM  1 rr
  -> 10.0.0.9:80                  Route   1      0          0
TCP  [2001:db8::1]:80 rr
  -> [2001:db8::2]:80             Masq    1      0          0
UDP  10.96.0.10:53 mh (mh-port) ops
  -> 10.27.1.249:53               Masq    0      0          0";
    let lines = listing
        .lines()
        .filter_map(|line| match parse_rule_line(line) {
            Parsed::Item(RuleLine::Listed(line)) => Some(line),
            Parsed::Item(other) => panic!("{line}: {other:?}"),
            Parsed::Heading | Parsed::Foreign(_) => None,
            Parsed::Unknown(why) => panic!("{line}: {why}"),
        });
    let (services, orphans) = ListedService::collect(lines);
    assert_eq!((services.len(), orphans), (2, 0));
    let cut = parse_list_line("-> 10.27.1.249:53 Masq 0 0 0").item();
    assert_eq!(ListedService::collect(cut).1, 1);
    assert_eq!(services[0].service.persistent_s, Some(10_800));
    assert_eq!(
        (services[0].dests[0].active, services[0].dests[0].inactive),
        (2, 14_048)
    );
    assert_eq!(services[1].service.flags, ["mh-port"]);
    assert!(services[1].service.one_packet && services[1].dests[0].weight == 0);
}

#[test]
fn what_cannot_be_is_named() {
    let unknown = [
        "ipvsadm",
        "ipvsadm -A",
        "ipvsadm -a -t 10.0.0.1:80",
        "ipvsadm -A -t",
        "ipvsadm -A -D -t 10.0.0.1:80",
        "ipvsadm -a -t 10.0.0.1:80 -r pod-1:80",
        "ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:80 -w many",
        "ipvsadm --set 1 2",
        "ipvsadm -A -t 10.0.0.1:80 -p 0",
        "ipvsadm --frobnicate",
        "-",
        "- -",
        "what",
        "-> 10.0.0.1:80 12 13 14",
    ];
    for line in unknown {
        assert!(
            matches!(parse_rule_line(line), Parsed::Unknown(_)),
            "{line}"
        );
    }
    let foreign = [
        "ipvsadm -A -f 1 -s rr",
        "ipvsadm -A -t [2001:db8::1]:80 -s rr",
        "-> [2001:db8::1]:80 Masq 1 0 0",
    ];
    for line in foreign {
        assert!(
            matches!(parse_rule_line(line), Parsed::Foreign(_)),
            "{line}"
        );
    }
    assert_eq!(parse_rule_line("ipvsadm -Ln"), Parsed::Heading);
}
