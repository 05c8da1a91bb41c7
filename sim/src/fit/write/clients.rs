//! The clients: how often they connect, from which ports, and who closes first.

use ipvs_model::kernel::Kernel;
use ipvs_model::tcp::ports::PortEra;
use ipvs_model::time::Span;

use super::{Draft, many, quantiles};
use crate::fit::estimate::{Allocation, ClientFit, PortFit};
use crate::fit::workers::Loop;
use crate::scenario::annotate::Origin;
use crate::scenario::{
    Arrivals, Client, Closed, Dist, Location, OrKernel, PortChoice, Ports, Rate, Side, span_text,
};

/// The range of ports that kernels have had since 4.2.
const KERNEL_PORTS: Ports = Ports {
    low: 32_768,
    high: 60_999,
};
/// Below this, counts a second are at equal distances; above, at random moments.
const DISPERSION_EVEN: f64 = 0.5;
/// Above this they come in bursts, which no open loop of a scenario has.
const DISPERSION_BURSTS: f64 = 3.0;
/// A shorter pause between two requests of a worker is none.
const NO_PAUSE: Span = Span::from_micros(100);

impl Draft<'_> {
    pub(super) fn clients(&mut self) {
        let fits = self.found.clients.clone();
        let mut tables = Vec::new();
        let (mut left_out, mut left_rate) = (Vec::new(), 0.0);
        for fit in &fits {
            let rate = self.rate_of(fit);
            match rate {
                Some(rate) if tables.len() < self.found.clients_max => {
                    let client = self.client(tables.len(), fit, rate);
                    tables.push(client);
                }
                Some((rate, ..)) => {
                    left_rate += rate;
                    left_out.push(fit.address.to_string());
                }
                None => left_out.push(fit.address.to_string()),
            }
        }
        if tables.is_empty() {
            // Nobody's rate is known: the busiest, with the default's.
            if let Some(fit) = fits.first() {
                let rate = (Rate::default().rate, Origin::Assumed, "the recording does not tell how often it connects: too few connections, or listings that are filtered".to_owned());
                left_out.retain(|address| *address != fit.address.to_string());
                tables.push(self.client(0, fit, rate));
            }
        }
        if !left_out.is_empty() {
            let shown = left_out
                .iter()
                .take(8)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ");
            let more = if left_out.len() > 8 { ", ..." } else { "" };
            self.remarks.push(format!("{} left out ({shown}{more}): too few connections for a rate, or not among the busiest; {left_rate:.1} connections/s together", many(left_out.len() as u64, "client")));
        }
        self.scenario.client = tables;
    }

    /// A client's rate, how it is known, and from what.
    fn rate_of(&self, fit: &ClientFit) -> Option<(f64, Origin, String)> {
        if let Some(rate) = fit.rate {
            let error = 1.96 / (rate.samples as f64).sqrt() * 100.0;
            let text = format!(
                "{} began in {:.1} s{}; if they come at random, within {error:.1} %",
                many(rate.samples as u64, "connection"),
                rate.window.as_secs_f64(),
                match rate.dispersion {
                    Some(d) => format!(", counts a second have variance / mean {d:.2}"),
                    None => String::new(),
                }
            );
            return Some((rounded(rate.per_s), Origin::Measured, text));
        }
        // Ports that come round tell the rate: the whole cycle of ports in the time between two uses of one.
        let reuse = fit.reuse?;
        let all_even = fit.ports.even == fit.ports.distinct;
        let (range, _) = Self::range_of(&fit.ports);
        let cycle = if all_even {
            range.count().div_ceil(2)
        } else {
            range.count()
        };
        let rate = f64::from(cycle) / reuse.median.as_secs_f64().max(1.0);
        Some((
            rounded(rate),
            Origin::Derived,
            format!(
                "a port was used again {} after its last connection ({}), and {cycle} ports come before it again ({}): the cycle over the time. Holds if the ports are taken in turn and are free at once; with the client closing first it may be more",
                span_text(Span::from_secs(reuse.median.as_secs())),
                many(reuse.count as u64, "time"),
                if all_even {
                    "the even half of the range, all ports seen are even"
                } else {
                    "the range"
                },
            ),
        ))
    }

    fn client(&mut self, index: usize, fit: &ClientFit, rate: (f64, Origin, String)) -> Client {
        let path = |field: &str| format!("client.{index}.{field}");
        let mut client = Client {
            address: fit.address,
            ..Client::default()
        };
        let lifetime = fit.lifetime.map_or(String::new(), |l| {
            format!("; they lasted {}", quantiles(&l))
        });
        self.note(
            &path("address"),
            Origin::Measured,
            format!("{}{lifetime}", many(fit.conns as u64, "connection")),
        );
        if fit.address == self.found.service.ip {
            client.location = Location::Host;
            self.note(
                &path("location"),
                Origin::Measured,
                "it calls from the virtual address",
            );
        }
        match &fit.workers {
            Some(found) => client.arrivals = self.closed_loop(&path("arrivals"), found, rate.0),
            None => client.arrivals = self.open_loop(&path("arrivals"), fit, rate),
        }
        self.ports(index, fit, &mut client);
        self.closing(index, fit, &mut client);
        if let Some((requests, sent, got)) = fit.requests {
            client.requests_per_connection = requests;
            (client.request_bytes, client.response_bytes) = (sent, got);
            for field in ["requests_per_connection", "request_bytes", "response_bytes"] {
                self.note(
                    &path(field),
                    Origin::Measured,
                    "mean of the connections whose beginning and end were recorded",
                );
            }
        } else {
            self.note(
                &path("requests_per_connection"),
                Origin::Assumed,
                "listings do not show requests",
            );
        }
        self.note(
            &path("timeout"),
            Origin::Assumed,
            "when the application gives up is in no recording",
        );
        client
    }

    fn open_loop(&mut self, path: &str, fit: &ClientFit, rate: (f64, Origin, String)) -> Arrivals {
        let (per_s, origin, text) = rate;
        let dispersion = fit.rate.and_then(|rate| rate.dispersion);
        let kind = match dispersion {
            Some(d) if d >= DISPERSION_BURSTS => {
                "; they come in bursts, which no open loop has: Poisson is the nearest"
            }
            Some(d) if d >= DISPERSION_EVEN => "; at random: Poisson",
            Some(_) => "; at equal distances",
            None => "; too few to tell how they arrive: equal distances are assumed",
        };
        self.note(path, origin, format!("{text}{kind}"));
        let value = Rate { rate: per_s };
        match dispersion {
            Some(d) if d >= DISPERSION_EVEN => Arrivals::Poisson(value),
            _ => Arrivals::Constant(value),
        }
    }

    fn closed_loop(&mut self, path: &str, found: &Loop, per_s: f64) -> Arrivals {
        let pause = found.pause.median;
        let (words, think) = if pause < NO_PAUSE {
            ("at once".to_owned(), Span::ZERO)
        } else {
            (format!("after {}", quantiles(&found.pause)), pause)
        };
        self.note(
            path,
            Origin::Measured,
            format!(
                "{} began {words} when {} had ended, whatever those had lasted, at {per_s}/s: {}, each with one connection at a time",
                many(found.pause.count as u64, "connection"),
                if found.pause.count == 1 { "one" } else { "others" },
                many(found.workers.into(), "worker"),
            ),
        );
        Arrivals::Closed(Closed {
            concurrency: found.workers,
            think_time: Dist::Constant(think),
        })
    }

    /// The range, and how it is known.
    fn range_of(fit: &PortFit) -> (Ports, Origin) {
        let inside = KERNEL_PORTS.low <= fit.low && fit.high <= KERNEL_PORTS.high;
        let width = u32::from(fit.high - fit.low) + 1;
        // Ports came round and nearly all of one parity were seen: both ends are among them, or next to them.
        if fit.came_round && fit.distinct as u32 * 20 >= width * 9 {
            let one_parity = fit.even == fit.distinct && fit.high < u16::MAX;
            let high = fit.high + u16::from(one_parity);
            let near =
                fit.low.abs_diff(KERNEL_PORTS.low) <= 64 && high.abs_diff(KERNEL_PORTS.high) <= 64;
            let seen = Ports { low: fit.low, high };
            return (if near { KERNEL_PORTS } else { seen }, Origin::Measured);
        }
        if inside {
            return (KERNEL_PORTS, Origin::Assumed);
        }
        let wider = Ports {
            low: fit.low.min(KERNEL_PORTS.low),
            high: fit.high.max(KERNEL_PORTS.high),
        };
        (wider, Origin::Derived)
    }

    fn ports(&mut self, index: usize, fit: &ClientFit, client: &mut Client) {
        let path = |field: &str| format!("client.{index}.{field}");
        let ports = fit.ports;
        let (range, origin) = Self::range_of(&ports);
        client.ports = OrKernel(Some(range));
        let seen = format!(
            "{} different ports seen, {} to {}, {} of them even",
            ports.distinct, ports.low, ports.high, ports.even
        );
        let text = match origin {
            Origin::Measured => format!("{seen}; ports came round, so all of them were seen"),
            Origin::Assumed => format!("{seen}: all in the kernel's range, which is taken"),
            _ => format!(
                "{seen}: outside of the kernel's range, so it is wider; both ends may be wider still"
            ),
        };
        self.note(&path("ports"), origin, text);
        let (choice, want, text) = match ports.allocation {
            Allocation::EvenSteps => (
                PortChoice::Connect,
                Some(PortEra::TwoPass),
                "connect() chooses, every second port in turn: a kernel of 4.6 to 5.17",
            ),
            Allocation::EvenRandomSteps => (
                PortChoice::Connect,
                Some(PortEra::RandomStep),
                "connect() chooses, of one parity in small random steps: a kernel of 5.18 or later",
            ),
            Allocation::Steps => (
                PortChoice::Connect,
                Some(PortEra::Sequential),
                "one port after the other: connect() of a kernel up to 4.1",
            ),
            Allocation::Random => (
                PortChoice::Bind,
                None,
                "bind() to port 0, which prefers the parity that connect() does not, or an application's own choice",
            ),
            Allocation::Unknown => (
                PortChoice::Connect,
                None,
                "too few connections to tell the order: connect() is assumed",
            ),
        };
        client.port_choice = choice;
        let origin = if ports.allocation == Allocation::Unknown {
            Origin::Assumed
        } else {
            Origin::Measured
        };
        self.note(&path("port_choice"), origin, text);
        let node = &self.scenario.node.kernel;
        let fits = |kernel: &Kernel| want.is_none_or(|era| PortEra::of(kernel.behaviours()) == era);
        let representative = match want {
            Some(PortEra::RandomStep) => "6.1.0",
            Some(PortEra::Sequential) => "3.10.0",
            _ => "4.19.57",
        };
        let (kernel, why) = match fits(node) {
            true => (
                node.clone(),
                "the node's, which takes ports in the order seen",
            ),
            false => (
                representative.parse().unwrap_or_else(|_| node.clone()),
                "not the node's: a release that takes ports in the order seen",
            ),
        };
        client.kernel = kernel;
        self.note(&path("kernel"), Origin::Assumed, why);
    }

    fn closing(&mut self, index: usize, fit: &ClientFit, client: &mut Client) {
        let path = format!("client.{index}.closes_first");
        let (server, by_client) = fit.first_fins;
        let held = Span::from_secs(60);
        match fit.reuse.filter(|reuse| reuse.min < held) {
            _ if server + by_client > 0 => {
                client.closes_first = if server >= by_client { Side::Server } else { Side::Client };
                self.note(&path, Origin::Measured, format!("the server sent the first FIN {server} times, the client {by_client} times"));
            }
            Some(reuse) => self.note(&path, Origin::Derived, format!("ports were used again from {} on ({}): the client held none of them in TIME_WAIT for 60 s, so it closes last (or has tcp_tw_reuse)", span_text(Span::from_millis(reuse.min.0 / 1_000_000)), many(reuse.count as u64, "time"))),
            None => self.note(&path, Origin::Assumed, "who sends the first FIN was not seen; record with --packets"),
        }
        if let Some(reuse) = &fit.reuse {
            self.remarks.push(format!(
                "{}: a port is used again {} after its last connection",
                fit.address,
                quantiles(reuse)
            ));
        }
    }
}

/// Four digits: more would be noise.
fn rounded(rate: f64) -> f64 {
    let mut scale = 1.0;
    while rate * scale < 1_000.0 && scale < 1e6 {
        scale *= 10.0;
    }
    (rate * scale).round() / scale
}
