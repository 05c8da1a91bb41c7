//! Typed sysctls: the kernel's defaults, and reading the lines of `sysctl -a`.

use core::fmt;

use crate::kernel::{Behaviours, Gate};

/// `net.ipv4.vs.*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsSysctls {
    /// `conntrack`: entries keep their conntrack twin (default 0, kube-proxy 1).
    pub conntrack: bool,
    /// `conn_reuse_mode`: bit 0 reuse by state, bit 1 FIN_WAIT for direct routing (default 1).
    pub conn_reuse_mode: u8,
    /// `expire_nodest_conn` (default 0, kube-proxy 1).
    pub expire_nodest_conn: bool,
    /// `expire_quiescent_template` (default 0, kube-proxy 1).
    pub expire_quiescent_template: bool,
    /// `sloppy_tcp`: schedule segments that are not SYN (default 0).
    pub sloppy_tcp: bool,
    /// `nat_icmp_send`: answer a real server's packet without an entry by ICMP (default 0).
    pub nat_icmp_send: bool,
    /// `secure_tcp`, 0 to 3: 3 always uses the tables against floods (default 0). 1 and 2 depend on free
    /// memory, which is not modelled: they count as off.
    pub secure_tcp: u8,
}

impl Default for VsSysctls {
    fn default() -> Self {
        Self {
            conntrack: false,
            conn_reuse_mode: 1,
            expire_nodest_conn: false,
            expire_quiescent_template: false,
            sloppy_tcp: false,
            nat_icmp_send: false,
            secure_tcp: 0,
        }
    }
}

/// `net.netfilter.nf_conntrack_*`. Timeouts in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtSysctls {
    /// `nf_conntrack_max`: entries (262144 on a machine with more than 4 GiB).
    pub max: u32,
    /// `nf_conntrack_buckets`: hash chains (262144 on a machine with more than 4 GiB; 65536 before 5.15).
    pub buckets: u32,
    /// `tcp_timeout_syn_sent` (120).
    pub syn_sent: u32,
    /// `tcp_timeout_syn_recv` (60).
    pub syn_recv: u32,
    /// `tcp_timeout_established` (432000; kube-proxy 86400).
    pub established: u32,
    /// `tcp_timeout_fin_wait` (120).
    pub fin_wait: u32,
    /// `tcp_timeout_close_wait` (60; kube-proxy 3600).
    pub close_wait: u32,
    /// `tcp_timeout_last_ack` (30).
    pub last_ack: u32,
    /// `tcp_timeout_time_wait` (120).
    pub time_wait: u32,
    /// `tcp_timeout_close` (10).
    pub close: u32,
    /// `tcp_timeout_max_retrans` (300).
    pub max_retrans_timeout: u32,
    /// `tcp_timeout_unacknowledged` (300).
    pub unacknowledged: u32,
    /// `tcp_max_retrans` (3).
    pub max_retrans: u8,
    /// `tcp_loose`: pick up connections in mid-stream (1).
    pub tcp_loose: bool,
    /// `tcp_be_liberal`: no window check (0).
    pub be_liberal: bool,
    /// `tcp_ignore_invalid_rst` (0).
    pub ignore_invalid_rst: bool,
    /// `udp_timeout` (30).
    pub udp: u32,
    /// `udp_timeout_stream` (120; 180 before 4.20).
    pub udp_stream: u32,
}

impl Default for CtSysctls {
    fn default() -> Self {
        Self {
            max: 262_144,
            buckets: 262_144,
            syn_sent: 120,
            syn_recv: 60,
            established: 432_000,
            fin_wait: 120,
            close_wait: 60,
            last_ack: 30,
            time_wait: 120,
            close: 10,
            max_retrans_timeout: 300,
            unacknowledged: 300,
            max_retrans: 3,
            tcp_loose: true,
            be_liberal: false,
            ignore_invalid_rst: false,
            udp: 30,
            udp_stream: 120,
        }
    }
}

/// `net.ipv4.*` of a host that opens connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSysctls {
    /// `ip_local_port_range`, both ends included.
    pub local_ports: (u16, u16),
    /// `tcp_tw_reuse`, 0 to 2.
    pub tw_reuse: u8,
    /// `tcp_tw_reuse_delay` in milliseconds (1000).
    pub tw_reuse_delay_ms: u32,
    /// `tcp_syn_retries` (6).
    pub syn_retries: u8,
    /// `tcp_syn_linear_timeouts` (4 where it exists).
    pub syn_linear_timeouts: u8,
    /// `tcp_timestamps` (1).
    pub timestamps: bool,
    /// `tcp_fin_timeout` in seconds (60).
    pub fin_timeout: u32,
    /// `tcp_max_tw_buckets`.
    pub max_tw_buckets: u32,
    /// `tcp_abort_on_overflow` (0).
    pub abort_on_overflow: bool,
    /// `net.core.somaxconn` (4096; 128 before 5.4).
    pub somaxconn: u32,
}

impl TcpSysctls {
    /// The defaults of a kernel.
    pub const fn of(kernel: Behaviours) -> Self {
        Self {
            local_ports: (
                32768,
                if kernel.has(Gate::PortRange60999) {
                    60999
                } else {
                    61000
                },
            ),
            tw_reuse: if kernel.has(Gate::TwReuseLoopback) {
                2
            } else {
                0
            },
            tw_reuse_delay_ms: 1000,
            syn_retries: 6,
            syn_linear_timeouts: if kernel.has(Gate::SynLinear) { 4 } else { 0 },
            timestamps: true,
            fin_timeout: 60,
            max_tw_buckets: 262_144,
            abort_on_overflow: false,
            somaxconn: if kernel.has(Gate::Somaxconn4096) {
                4096
            } else {
                128
            },
        }
    }
}

/// `net.ipv4.icmp_*`: how many ICMP errors a machine sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpSysctls {
    /// `icmp_ratelimit`: milliseconds a token towards one peer (1000); 0 for no limit.
    pub ratelimit_ms: u32,
    /// `icmp_msgs_per_sec`: all errors together (1000).
    pub msgs_per_sec: u32,
    /// `icmp_msgs_burst` (50).
    pub msgs_burst: u32,
}

impl Default for IcmpSysctls {
    fn default() -> Self {
        Self {
            ratelimit_ms: 1000,
            msgs_per_sec: 1000,
            msgs_burst: 50,
        }
    }
}

/// All sysctls that the model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysctls {
    /// IPVS.
    pub vs: VsSysctls,
    /// conntrack.
    pub ct: CtSysctls,
    /// TCP.
    pub tcp: TcpSysctls,
    /// ICMP errors.
    pub icmp: IcmpSysctls,
}

/// A value that a sysctl cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlError {
    key: String,
    value: String,
    expected: &'static str,
}

impl fmt::Display for SysctlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sysctl {} cannot be `{}`: expected {}",
            self.key, self.value, self.expected
        )
    }
}

impl core::error::Error for SysctlError {}

fn number<T: core::str::FromStr>(
    key: &str,
    value: &str,
    expected: &'static str,
) -> Result<T, SysctlError> {
    value.trim().parse().map_err(|_| SysctlError {
        key: key.to_owned(),
        value: value.to_owned(),
        expected,
    })
}

fn switch(key: &str, value: &str) -> Result<bool, SysctlError> {
    number::<i32>(key, value, "a number, 0 for off").map(|n| n != 0)
}

fn seconds(key: &str, value: &str) -> Result<u32, SysctlError> {
    number(key, value, "a number of seconds")
}

impl Sysctls {
    /// The defaults of a kernel.
    pub fn of(kernel: Behaviours) -> Self {
        Self {
            vs: VsSysctls::default(),
            ct: CtSysctls::default(),
            tcp: TcpSysctls::of(kernel),
            icmp: IcmpSysctls::default(),
        }
    }

    /// Takes one line of `sysctl -a`. `Ok(false)` if the model does not read this key.
    ///
    /// # Errors
    /// If the key is known and the value is not one it can have.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        if let Some(name) = key.strip_prefix("net.ipv4.vs.") {
            return self.set_vs(key, name, value);
        }
        if let Some(name) = key.strip_prefix("net.netfilter.nf_conntrack_") {
            return self.set_ct(key, name, value);
        }
        if let Some(name) = key.strip_prefix("net.ipv4.icmp_") {
            return self.set_icmp(key, name, value);
        }
        self.set_tcp(key, value)
    }

    fn set_icmp(&mut self, key: &str, name: &str, value: &str) -> Result<bool, SysctlError> {
        let icmp = &mut self.icmp;
        match name {
            "ratelimit" => icmp.ratelimit_ms = number(key, value, "milliseconds, 0 for no limit")?,
            "msgs_per_sec" => icmp.msgs_per_sec = number(key, value, "messages a second")?,
            "msgs_burst" => icmp.msgs_burst = number(key, value, "a number of messages")?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_vs(&mut self, key: &str, name: &str, value: &str) -> Result<bool, SysctlError> {
        let vs = &mut self.vs;
        match name {
            "conntrack" => vs.conntrack = switch(key, value)?,
            "conn_reuse_mode" => vs.conn_reuse_mode = number(key, value, "0 to 3")?,
            "expire_nodest_conn" => vs.expire_nodest_conn = switch(key, value)?,
            "expire_quiescent_template" => vs.expire_quiescent_template = switch(key, value)?,
            "sloppy_tcp" => vs.sloppy_tcp = switch(key, value)?,
            "nat_icmp_send" => vs.nat_icmp_send = switch(key, value)?,
            "secure_tcp" => vs.secure_tcp = number(key, value, "0 to 3")?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_ct(&mut self, key: &str, name: &str, value: &str) -> Result<bool, SysctlError> {
        let ct = &mut self.ct;
        match name {
            "max" => ct.max = number(key, value, "a number of entries")?,
            "buckets" => ct.buckets = number(key, value, "a number of hash buckets")?,
            "tcp_timeout_syn_sent" => ct.syn_sent = seconds(key, value)?,
            "tcp_timeout_syn_recv" => ct.syn_recv = seconds(key, value)?,
            "tcp_timeout_established" => ct.established = seconds(key, value)?,
            "tcp_timeout_fin_wait" => ct.fin_wait = seconds(key, value)?,
            "tcp_timeout_close_wait" => ct.close_wait = seconds(key, value)?,
            "tcp_timeout_last_ack" => ct.last_ack = seconds(key, value)?,
            "tcp_timeout_time_wait" => ct.time_wait = seconds(key, value)?,
            "tcp_timeout_close" => ct.close = seconds(key, value)?,
            "tcp_timeout_max_retrans" => ct.max_retrans_timeout = seconds(key, value)?,
            "tcp_timeout_unacknowledged" => ct.unacknowledged = seconds(key, value)?,
            "tcp_max_retrans" => ct.max_retrans = number(key, value, "0 to 255")?,
            "tcp_loose" => ct.tcp_loose = switch(key, value)?,
            "tcp_be_liberal" => ct.be_liberal = switch(key, value)?,
            "tcp_ignore_invalid_rst" => ct.ignore_invalid_rst = switch(key, value)?,
            "udp_timeout" => ct.udp = seconds(key, value)?,
            "udp_timeout_stream" => ct.udp_stream = seconds(key, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_tcp(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        let tcp = &mut self.tcp;
        match key {
            "net.ipv4.ip_local_port_range" => {
                let range = value.split_whitespace().collect::<Vec<_>>();
                let [low, high] = range[..] else {
                    return number::<u16>(key, "", "two ports, such as `32768 60999`")
                        .map(|_| true);
                };
                tcp.local_ports = (
                    number(key, low, "two ports, 1 to 65535")?,
                    number(key, high, "two ports, 1 to 65535")?,
                );
            }
            "net.ipv4.tcp_tw_reuse" => tcp.tw_reuse = number(key, value, "0, 1 or 2")?,
            "net.ipv4.tcp_tw_reuse_delay" => {
                tcp.tw_reuse_delay_ms = number(key, value, "milliseconds")?;
            }
            "net.ipv4.tcp_syn_retries" => tcp.syn_retries = number(key, value, "1 to 127")?,
            "net.ipv4.tcp_syn_linear_timeouts" => {
                tcp.syn_linear_timeouts = number(key, value, "0 to 127")?;
            }
            "net.ipv4.tcp_timestamps" => tcp.timestamps = switch(key, value)?,
            "net.ipv4.tcp_fin_timeout" => tcp.fin_timeout = seconds(key, value)?,
            "net.ipv4.tcp_max_tw_buckets" => {
                tcp.max_tw_buckets = number(key, value, "a number of sockets")?;
            }
            "net.ipv4.tcp_abort_on_overflow" => tcp.abort_on_overflow = switch(key, value)?,
            "net.core.somaxconn" => tcp.somaxconn = number(key, value, "a queue length")?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_sysctl_are_read() {
        let mut all = Sysctls::of(
            "6.1.90"
                .parse::<crate::kernel::Kernel>()
                .unwrap()
                .behaviours(),
        );
        assert_eq!(all.set("net.ipv4.vs.conn_reuse_mode", "0"), Ok(true));
        assert_eq!(
            all.set("net.ipv4.ip_local_port_range", "1024\t65000"),
            Ok(true)
        );
        assert_eq!(
            all.set("net.netfilter.nf_conntrack_tcp_timeout_close_wait", "3600"),
            Ok(true)
        );
        assert_eq!(all.set("net.ipv4.icmp_ratelimit", "0"), Ok(true));
        assert_eq!(all.icmp.ratelimit_ms, 0);
        assert_eq!(all.set("kernel.hostname", "node"), Ok(false));
        assert_eq!((all.vs.conn_reuse_mode, all.ct.close_wait), (0, 3600));
        assert_eq!(all.tcp.local_ports, (1024, 65000));
    }

    #[test]
    fn impossible_values_are_named() {
        let mut all = Sysctls::of(Behaviours::default());
        let error = all
            .set("net.ipv4.vs.conn_reuse_mode", "many")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("conn_reuse_mode") && error.contains("many"),
            "{error}"
        );
        assert!(all.set("net.ipv4.ip_local_port_range", "1").is_err());
    }
}
