//! What the benchmarks run: one case for each goal of docs/performance.md, by name.

use ipvs_sim::scenario::Scenario;

/// A run whose speed matters.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name on the command line and in reports.
    pub name: &'static str,
    /// What it stands for.
    pub about: &'static str,
    /// Client hosts.
    pub clients: u32,
    /// Source ports of each.
    pub ports: u32,
    /// Requests a second, of all clients together.
    pub rate: u32,
    /// Simulated seconds.
    pub seconds: u32,
    /// Who sends the first FIN.
    pub closes_first: &'static str,
    /// Whether pods are replaced after a third of the time.
    pub rollout: bool,
}

/// One client that opens 200 connections a second: each of its 28,232 ports comes round after 141 s, when no table remembers it.
const HEALTHY: Case = Case {
    name: "healthy",
    about: "short connections that meet nothing on their way, the client closes first",
    clients: 1,
    ports: 28_232,
    rate: 200,
    seconds: 100,
    closes_first: "client",
    rollout: false,
};

/// All cases.
pub const CASES: [Case; 7] = [
    HEALTHY,
    Case {
        name: "healthy-server",
        about: "the same, the server closes first",
        closes_first: "server",
        ..HEALTHY
    },
    Case {
        name: "exhaustion",
        about: "2,000 requests a second on ports that rest 60 s each: three of four find none",
        rate: 2_000,
        seconds: 180,
        ..HEALTHY
    },
    Case {
        name: "exhaustion-few",
        about: "the same on 282 ports, to tell how much memory a port takes",
        ports: 282,
        rate: 2_000,
        seconds: 180,
        ..HEALTHY
    },
    Case {
        name: "growth-1",
        about: "every port of one client",
        seconds: 150,
        ..HEALTHY
    },
    Case {
        name: "growth-100",
        about: "every port of 100 clients",
        clients: 100,
        rate: 20_000,
        seconds: 150,
        ..HEALTHY
    },
    Case {
        name: "rollout",
        about: "the founding case's rollout at 2,000 requests a second",
        rate: 2_000,
        seconds: 300,
        closes_first: "server",
        rollout: true,
        ..HEALTHY
    },
];

impl Case {
    /// The case of a name.
    pub fn named(name: &str) -> Option<Self> {
        CASES.into_iter().find(|case| case.name == name)
    }

    /// Its scenario.
    ///
    /// # Panics
    /// If the text below is no scenario any more.
    pub fn scenario(&self) -> Scenario {
        let Self {
            clients,
            ports,
            rate,
            seconds,
            closes_first,
            ..
        } = self;
        let rollout = match self.rollout {
            true => format!("[rollout.deployment]\nstart = \"{}s\"\n", seconds / 3),
            false => "[rollout.none]\n".to_owned(),
        };
        // A table of conntrack that holds everything: what is measured is not its being full.
        let text = format!(
            "schema = 1\nduration = \"{seconds}s\"\n[node]\nuptime = \"77.7771s\"\n\
             sysctl = {{ \"net.netfilter.nf_conntrack_max\" = 8000000 }}\n{rollout}\
             [[client]]\ncount = {clients}\nports = {ports}\ncloses_first = \"{closes_first}\"\n\
             uptime = \"33.3331s\"\narrivals = {{ constant = {{ rate = {rate} }} }}\n"
        );
        match Scenario::parse(&text, "benchmark") {
            Ok(loaded) => loaded.scenario,
            Err(mistakes) => panic!("{}", mistakes.render(false)),
        }
    }
}
