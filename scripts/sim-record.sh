#!/bin/sh
# sim-record.sh: what `sim record` does, for a node on which no binary may be copied. POSIX sh with cat, date, sed, awk, grep, sleep, tr,
# mkdir, mv, uname; ipvsadm, conntrack and tcpdump are used if they are there. Run as root on the node.
#
#   sim-record.sh --out DIR [--every SECONDS] [--for SECONDS] [--max-size MEBIBYTES] [--service ADDR:PORT] [--packets] [--hz HZ] [--force]
#
# It writes DIR/manifest.toml, ipvs-conn.log, conntrack.log, rules.log and, with --packets, packets.pcap: docs/recording.md.
# Stop it with Ctrl-C or SIGTERM at any time; what is in DIR is readable at any moment.
set -u

die() { code=$1; shift; printf 'sim-record: %s\n' "$*" >&2; exit "$code"; }
say() { printf 'sim-record: %s\n' "$*" >&2; }
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

out='' every=1 lasts=600 max=1024 service='' packets='' hz='' force='' proc=/proc
while [ $# -gt 0 ]; do
  case $1 in
    --out | --every | --for | --max-size | --service | --hz | --proc)
      [ $# -ge 2 ] || die 2 "$1 needs a value (see --help)"
      case $1 in
        --out) out=$2 ;; --every) every=$2 ;; --for) lasts=$2 ;; --max-size) max=$2 ;;
        --service) service=$2 ;; --hz) hz=$2 ;; --proc) proc=$2 ;;
      esac
      shift 2 ;;
    --packets) packets=1; shift ;;
    --force) force=1; shift ;;
    -h | --help) usage; exit 0 ;;
    *) die 2 "unknown argument $1 (see --help)" ;;
  esac
done
[ -n "$out" ] || die 2 "where to? Give --out DIR"
for number in "$every" "$lasts" "$max" "${hz:-1}"; do
  case $number in '' | *[!0-9]*) die 2 "$number is not a whole number (seconds, mebibytes, HZ)" ;; esac
done
[ "$every" -ge 1 ] || die 2 "the shortest interval is 1 second; sim record can do more"
case $service in '' | *.*.*.*:*) ;; *) die 2 "--service is written ADDR:PORT, such as 10.20.79.226:31199" ;; esac
[ -z "$packets" ] || [ -n "$service" ] || die 2 "--packets needs --service: packets of a whole node would be too many"
[ -e "$proc/net/ip_vs_conn" ] ||
  die 8 "$proc/net/ip_vs_conn does not exist: no IPVS in this network namespace (module ip_vs, kube-proxy's mode, hostNetwork?)"
[ -r "$proc/net/ip_vs_conn" ] || die 2 "$proc/net/ip_vs_conn cannot be read: run as root"

mkdir -p "$out" 2>/dev/null && [ -d "$out" ] && [ -w "$out" ] || die 7 "$out cannot be written"
if [ -n "$(ls -A "$out")" ]; then
  [ -n "$force" ] || die 2 "$out is not empty: choose another directory, or --force to replace the recording in it"
  for file in manifest.toml ipvs-conn.log conntrack.log rules.log sysctl.log packets.pcap packets.log; do rm -f "$out/$file"; done
fi

# Seconds and microseconds. Where date has no %N (busybox), whole seconds, and times in listings are compared less strictly.
case $(date +%N 2>/dev/null) in
  '' | *[!0-9]*) tolerance=2.1; now() { printf '%s.000000' "$(date +%s)"; } ;;
  *) tolerance=1.2; now() { date +%s.%N | cut -c1-17; } ;;
esac

# HZ: ticks against time in timer_list, or the kernel's configuration.
if [ -z "$hz" ]; then
  hz=$(awk '/^now at /{ now = $3 / 1e9 } /^jiffies: /{ j = $2 }
    END { split("100 250 300 1000", f, " "); for (i = 1; i <= 4; i++) { d = j - (4294967296 - 300 * f[i] + now * f[i]);
      if (j > 0 && d < f[i] && d > -f[i]) { print f[i]; exit } } }' "$proc/timer_list" 2>/dev/null)
fi
if [ -z "$hz" ]; then
  for file in "/boot/config-$(uname -r)" "/lib/modules/$(uname -r)/config"; do
    [ -n "$hz" ] || hz=$(sed -n 's/^CONFIG_HZ=//p' "$file" 2>/dev/null)
  done
fi
[ -n "$hz" ] || say "the timer frequency is not known: say it with --hz (grep CONFIG_HZ= /boot/config-\$(uname -r))"

# The manifest: not finished until the end, so that whoever reads a capture that was cut off knows.
manifest() { # finished
  {
    printf 'schema = 1\nkernel = "%s"\nvantage = "node"\n' "$(cat "$proc/sys/kernel/osrelease" 2>/dev/null || uname -r)"
    [ -z "$hz" ] || printf 'hz = %s\n' "$hz"
    printf 'snapshot_tolerance = %s\n\n[recorder]\nfinished = %s\nmade_by = "sim-record.sh"\nservices = "%s"\nconntrack = "%s"\nrules = "%s"\n\n[sysctl]\n' \
      "$tolerance" "$1" "$service" "$ct_from" "$rules_from"
    cat "$out/.sysctls"
  } >"$out/.manifest" && mv "$out/.manifest" "$out/manifest.toml"
}
sysctls() {
  for path in "$proc"/sys/net/ipv4/vs/* "$proc"/sys/net/netfilter/* "$proc"/sys/net/nf_conntrack_* "$proc"/sys/net/ipv4/tcp_* \
    "$proc"/sys/net/ipv4/ip_local_* "$proc"/sys/net/ipv4/ip_forward "$proc"/sys/net/ipv4/icmp_* "$proc"/sys/net/core/somaxconn; do
    [ -f "$path" ] || continue
    value=$(cat "$path" 2>/dev/null | tr '\n"\\' '   ' | sed 's/ *$//') || continue
    key=$(printf '%s' "${path#"$proc/sys/"}" | tr '/' '.')
    [ -z "$value" ] || printf '"%s" = "%s"\n' "$key" "$(printf '%s' "$value" | tr '\t' ' ')"
  done
}

# The service as the two tables write it. The real servers follow from the rules at each round.
hex='' address='' port=''
if [ -n "$service" ]; then
  address=${service%:*} port=${service##*:}
  hex=$(printf '%s %s\n' "$address" "$port" | awk '{ split($1, o, "."); printf "%02X%02X%02X%02X %04X", o[1], o[2], o[3], o[4], $2 }')
fi
servers=''

# /proc/net/ip_vs as `ipvsadm -Ln --nosort` prints it. The file shows persistence in ticks and hides flags of the schedulers sh and mh: where one of
# them is in use and ipvsadm is there, that is asked.
rules_from=/proc/net/ip_vs
if grep -Eq '^(TCP|UDP) .* (sh|mh) ' "$proc/net/ip_vs" 2>/dev/null; then
  if command -v ipvsadm >/dev/null 2>&1; then rules_from=ipvsadm
  else say "the schedulers sh and mh have flags that only ipvsadm shows, and there is none: recorded as if they had none"; fi
fi
list_rules() {
  if [ "$rules_from" = ipvsadm ]; then
    ipvsadm -Ln --nosort
  else
    awk -v hz="${hz:-250}" '
      function dec(s, i, v) { v = 0; for (i = 1; i <= length(s); i++) v = v * 16 + index("0123456789ABCDEF", substr(s, i, 1)) - 1; return v }
      function ip(s) { return dec(substr(s, 1, 2)) "." dec(substr(s, 3, 2)) "." dec(substr(s, 5, 2)) "." dec(substr(s, 7, 2)) }
      function end(s) { return s ~ /^[0-9A-F]+:[0-9A-F]+$/ ? ip(substr(s, 1, 8)) ":" dec(substr(s, 10)) : s }
      $1 == "->" && $2 ~ /^RemoteAddress/ { print; next }
      $1 == "->" { printf "  -> %-28s %-7s %-6s %-10s %s\n", end($2), $3, $4, $5, $6; next }
      $1 == "TCP" || $1 == "UDP" {
        printf "%s  %s %s", $1, end($2), $3
        for (i = 4; i <= NF; i++)
          if ($i == "persistent") { printf " persistent %d", $(i + 1) / hz; i++
            if ($(i + 1) ~ /^[0-9A-F]+$/ && length($(i + 1)) == 8) { i++; if ($i != "FFFFFFFF") printf " mask %s", ip($i) } }
          else printf " %s", $i
        print ""; next }
      { print }' "$proc/net/ip_vs"
  fi |
    if [ -z "$service" ]; then cat
    else awk -v at="$service" '$1 == "TCP" || $1 == "UDP" || $1 == "FWM" || $1 == "SCTP" { mine = $2 == at } /^(IP Virtual|Prot )/ || $2 ~ /^RemoteAddress/ || mine'
    fi
}

# Conntrack: the tool's dump misses nothing and is quick; the file of /proc is often compiled out.
ct_from=none
if [ "$proc" = /proc ] && command -v conntrack >/dev/null 2>&1 && conntrack -C >/dev/null 2>&1; then ct_from='conntrack -L'
elif [ -r "$proc/net/nf_conntrack" ]; then ct_from=/proc/net/nf_conntrack
else say "no conntrack table: $proc/net/nf_conntrack cannot be read (compiled out?) and there is no conntrack tool"; fi
list_conntrack() {
  if [ "$ct_from" = 'conntrack -L' ]; then conntrack -L -f ipv4 -o extended 2>/dev/null; else cat "$proc/net/nf_conntrack"; fi |
    if [ -z "$service" ]; then cat
    else awk -v ends="$address $port $servers" '
      BEGIN { n = split(ends, e, " "); for (i = 1; i < n; i += 2) mine[e[i] ":" e[i + 1]] = 1 }
      { s = d = p = ""; hit = 0
        for (i = 1; i <= NF; i++) {
          if ($i ~ /^src=/) s = substr($i, 5); else if ($i ~ /^dst=/) d = substr($i, 5)
          else if ($i ~ /^sport=/) p = substr($i, 7)
          else if ($i ~ /^dport=/) { if ((s ":" p) in mine || (d ":" substr($i, 7)) in mine) { hit = 1; break } } }
        if (hit) print }'
    fi
}
# A persistence template that was invalidated keeps its service's address only: its ports are 65535.
list_ipvs() {
  if [ -z "$service" ]; then cat "$proc/net/ip_vs_conn"
  else awk -v at="$hex" '$1 == "Pro" || ($4 " " $5) == at || $5 == "FFFF" && $4 == substr(at, 1, 8)' "$proc/net/ip_vs_conn"; fi
}

# Size of all files, in KiB.
size() { du -sk "$out" 2>/dev/null | cut -f1; }

stop=''
trap 'stop=signal' INT TERM HUP
: >"$out/ipvs-conn.log" && : >"$out/rules.log" || die 7 "$out cannot be written"
[ "$ct_from" = none ] || : >"$out/conntrack.log"
sysctls >"$out/.sysctls"
manifest false

capture=''
if [ -n "$packets" ]; then
  if command -v tcpdump >/dev/null 2>&1; then
    # Every port of the service and its pods: real servers may come with the rollout. Headers only.
    ports="port $port"
    for other in $(list_rules | awk '$1 == "->" && $2 !~ /^Remote/ { sub(/.*:/, "", $2); print $2 }' | sort -u); do ports="$ports or port $other"; done
    tcpdump -i any -n -p -U -s 192 -B 32768 --time-stamp-precision=nano -w "$out/packets.pcap" \
      "($ports) or (icmp and icmp[0] == 3)" >/dev/null 2>"$out/packets.log" &
    capture=$!
    # It listens when it has written the header of its file.
    tries=0
    while [ ! -s "$out/packets.pcap" ] && [ "$tries" -lt 50 ]; do sleep 0.1 2>/dev/null || sleep 1; tries=$((tries + 1)); done
    kill -0 "$capture" 2>/dev/null || die 6 "tcpdump does not run: $(cat "$out/packets.log")"
  else
    say "no tcpdump here: packets are not recorded (sim record reads them itself)"
  fi
fi

block() { # file, lister: a block is whole on disk, or not there
  { printf '@ %s\n' "$(now)"; "$2"; } >"$out/.block" && cat "$out/.block" >>"$out/$1"
}

begin=$(date +%s)
rounds=0 why='its time was over'
while :; do
  started=$(date +%s)
  if ! { block ipvs-conn.log list_ipvs && block rules.log list_rules; }; then why='of an error'; break; fi
  servers=$(sed -n '/^TCP\|^UDP/,$p' "$out/.block" | awk -v all="$servers" '$1 == "->" { sub(/:/, " ", $2); seen[$2] = 1 }
    END { n = split(all, a, " "); for (i = 1; i < n; i += 2) seen[a[i] " " a[i + 1]] = 1; for (s in seen) printf "%s ", s }')
  if [ "$ct_from" != none ]; then block conntrack.log list_conntrack || { why='of an error'; break; }; fi
  rounds=$((rounds + 1))
  [ -z "$stop" ] || { why='it was interrupted'; break; }
  finished=$(date +%s)
  [ $((finished - begin + every)) -lt "$lasts" ] || break
  [ "$(size)" -lt $((max * 1024)) ] || { why='it reached its size'; break; }
  # At most a tenth of the time for listings.
  pause=$((every - (finished - started)))
  rest=$(((finished - started) * 9))
  [ "$pause" -ge "$rest" ] || pause=$rest
  [ "$pause" -ge 1 ] || pause=1
  sleep "$pause" &
  wait $! || :
  [ -z "$stop" ] || { why='it was interrupted'; break; }
done

if [ -n "$capture" ]; then
  kill -INT "$capture" 2>/dev/null
  wait "$capture" 2>/dev/null
fi
manifest true
rm -f "$out/.block" "$out/.sysctls"
say "$rounds rounds into $out, until $why. Next: sim diff $out"
case $why in 'of an error') exit 6 ;; 'it was interrupted') exit 130 ;; esac
exit 0
