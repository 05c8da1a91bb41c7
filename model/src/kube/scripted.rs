//! A rollout by the clock: what happens is written down, not worked out.
//!
//! For recordings in which something else than Kubernetes replaced the pods, such as a lab that swaps all old pods
//! for new ones at one moment and kills the old ones at another.

use std::net::Ipv4Addr;

use super::endpoints::EndpointState;
use super::pod::PodId;
use super::rollout::RolloutEvent;
use crate::time::Instant;

/// Events with their moments.
#[derive(Clone, Debug, Default)]
pub struct Script {
    events: Vec<(Instant, RolloutEvent)>,
}

impl Script {
    /// An empty script.
    pub const fn new() -> Self {
        Self { events: Vec::new() }
    }

    /// Adds an event. Events of the same moment keep the order in which they were added.
    #[must_use]
    pub fn at(mut self, at: Instant, event: RolloutEvent) -> Self {
        self.events.push((at, event));
        self
    }

    /// Old pods that serve from the start are replaced by new ones in one step at `switch`; at `death` the old
    /// processes end and their addresses go.
    pub fn swap(old: &[Ipv4Addr], new: &[Ipv4Addr], switch: Instant, death: Instant) -> Self {
        let published = |ips: &[Ipv4Addr]| RolloutEvent::EndpointsPublished {
            endpoints: ips
                .iter()
                .map(|ip| EndpointState {
                    ip: *ip,
                    node: 0,
                    ready: true,
                    serving: true,
                    terminating: false,
                })
                .collect(),
        };
        let mut script = Self::new();
        let pods = (0..).map(PodId).zip(old.iter().chain(new));
        for (index, (pod, ip)) in pods.enumerate() {
            let is_new = index >= old.len();
            let born = if is_new { switch } else { Instant::ZERO };
            script = script
                .at(
                    born,
                    RolloutEvent::PodCreated {
                        pod,
                        revision: u32::from(is_new),
                        node: 0,
                    },
                )
                .at(born, RolloutEvent::AddressAssigned { pod, ip: *ip })
                .at(born, RolloutEvent::ContainerStarted { pod })
                .at(born, RolloutEvent::Listening { pod })
                .at(born, RolloutEvent::PodReady { pod });
            if !is_new {
                script = script
                    .at(switch, RolloutEvent::PodTerminating { pod })
                    .at(death, RolloutEvent::ProcessExited { pod, killed: true })
                    .at(death, RolloutEvent::AddressGone { pod, ip: *ip })
                    .at(death, RolloutEvent::PodRemoved { pod });
            }
        }
        script
            .at(Instant::ZERO, published(old))
            .at(switch, RolloutEvent::Started { revision: 1 })
            .at(switch, published(new))
            .at(switch, RolloutEvent::Complete { revision: 1 })
    }
}

/// A script being played.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// Latest first.
    left: Vec<(Instant, RolloutEvent)>,
}

impl Scripted {
    /// Begins to play a script.
    pub fn new(script: Script) -> Self {
        let mut left = script.events;
        left.sort_by_key(|(at, _)| *at);
        left.reverse();
        Self { left }
    }

    /// When the next event happens.
    pub fn next(&self) -> Option<Instant> {
        self.left.last().map(|(at, _)| *at)
    }

    /// The next event that has happened by `now`.
    pub fn poll(&mut self, now: Instant) -> Option<(Instant, RolloutEvent)> {
        self.left.pop_if(|(at, _)| *at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded rollouts: switch at 150 s, death at 180 s.
    #[test]
    fn a_swap_happens_at_its_two_moments() {
        let old = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        let new = [Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 4)];
        let (switch, death) = (Instant::from_secs(150), Instant::from_secs(180));
        let mut play = Scripted::new(Script::swap(&old, &new, switch, death));
        let mut published = Vec::new();
        let mut gone = Vec::new();
        let mut last = Instant::ZERO;
        while let Some(next) = play.next() {
            if next > Instant::ZERO {
                assert!(
                    play.poll(Instant(next.0 - 1)).is_none(),
                    "nothing comes early"
                );
            }
            let (at, event) = play.poll(next).unwrap();
            assert!(at >= last);
            last = at;
            match event {
                RolloutEvent::EndpointsPublished { endpoints } => {
                    published.push((at, endpoints.iter().map(|ep| ep.ip).collect::<Vec<_>>()));
                }
                RolloutEvent::AddressGone { ip, .. } => gone.push((at, ip)),
                _ => {}
            }
        }
        assert_eq!(
            published,
            [(Instant::ZERO, old.to_vec()), (switch, new.to_vec())]
        );
        assert_eq!(gone, [(death, old[0]), (death, old[1])]);
        assert!(play.poll(Instant::NEVER).is_none());
    }
}
