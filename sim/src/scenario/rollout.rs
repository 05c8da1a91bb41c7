//! What happens to the pods during the run.

use ipvs_model::time::Span;

use super::field::{choice, section};
use super::values::{Amount, Dist};

const fn secs(secs: u64) -> Span {
    Span::from_secs(secs)
}

choice! {
    /// What happens to the pods during the run.
    #[derive(Copy)]
    pub enum Rollout {
        /// Nothing: the pods of the start stay.
        "none" => None(Steady),
        /// A Deployment's rolling update, as the Deployment controller and the kubelet do it.
        "deployment" => Deployment(Deployment),
        /// All pods replaced at fixed moments, as the kernel lab does it.
        "scripted" => Scripted(Scripted),
        /// More pods, or fewer, at one moment; those that stay are not touched.
        "scale" => Scale(Scale),
        /// Some pods fail their readiness probe for a while; they serve all the time.
        "flap" => Flap(Flap),
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self::Deployment(Deployment::default())
    }
}

section! {
    /// Pods that stay.
    #[derive(Copy)]
    pub struct Steady {
        /// How many.
        pods: u32 = 2; in 1..=10_000,
    }
}

section! {
    /// A Deployment's rolling update.
    #[derive(Copy)]
    pub struct Deployment {
        /// When the new pod template is applied.
        start: Span = secs(150),
        /// spec.replicas.
        replicas: u32 = 2; in 1..=1_000,
        /// spec.strategy.rollingUpdate.maxSurge, rounded up. Source: Deployment API default 25%.
        max_surge: Amount = Amount::Percent(25),
        /// spec.strategy.rollingUpdate.maxUnavailable, rounded down. Source: Deployment API default 25%.
        max_unavailable: Amount = Amount::Percent(25),
        /// spec.minReadySeconds.
        min_ready: Span = secs(0),
        /// From the creation of a pod to its container running: scheduling, image, start. The default is an assumption
        /// for an image that is already there.
        container_start: Dist = Dist::Uniform(secs(2), secs(4)),
        /// The readiness probe.
        readiness: Readiness = Readiness::default(),
        /// How long the preStop hook runs; the kubelet sends SIGTERM after it. Default: the founding case's sleep 20.
        pre_stop: Span = secs(20),
        /// spec.terminationGracePeriodSeconds: SIGKILL this long after the deletion, preStop included.
        termination_grace_period: Span = secs(30); in secs(1)..=secs(86_400),
        /// What the server does at SIGTERM.
        on_sigterm: OnSigterm = OnSigterm::Exits(Span::from_millis(100)),
    }
}

section! {
    /// A readiness probe that succeeds as soon as the container runs.
    #[derive(Copy)]
    pub struct Readiness {
        /// initialDelaySeconds. Default: the founding case.
        initial_delay: Span = secs(5),
        /// periodSeconds. Default: the founding case; Kubernetes' own default is 10 s.
        period: Span = secs(5); in secs(1)..=secs(3_600),
        /// timeoutSeconds.
        timeout: Span = secs(1); in secs(1)..=secs(3_600),
        /// successThreshold: so many successes in a row make the pod ready.
        success_threshold: u32 = 1; in 1..=100,
        /// failureThreshold: so many failures in a row make it unready. Default: the founding case.
        failure_threshold: u32 = 5; in 1..=100,
    }
}

choice! {
    /// What a server does at SIGTERM.
    #[derive(Copy)]
    pub enum OnSigterm {
        /// Exits after this time; connections are cut. nginx's fast exit takes about 0.1 s.
        "exits" => Exits(Span),
        /// Closes its listener, finishes its connections, then exits. nginx at SIGQUIT.
        "drains" => Drains,
        /// Goes on until SIGKILL.
        "ignores" => Ignores,
    }
}

section! {
    /// All pods replaced at fixed moments.
    #[derive(Copy)]
    pub struct Scripted {
        /// The new pods are added with weight 1, then the old ones set to weight 0, all at this moment.
        at: Span = secs(150),
        /// Pods at the start.
        old_pods: u32 = 2; in 1..=1_000,
        /// Pods after the change.
        new_pods: u32 = 2; in 0..=1_000,
        /// The old pods are killed, and their addresses gone, at this moment.
        old_die_at: Span = secs(180),
    }
}

section! {
    /// Pods added or taken away.
    #[derive(Copy)]
    pub struct Scale {
        /// When the endpoints change. New pods serve from then on.
        at: Span = secs(150),
        /// Pods at the start.
        from: u32 = 2; in 1..=1_000,
        /// Pods after the change.
        to: u32 = 4; in 0..=1_000,
        /// Of fewer pods, how long those that go still serve: they are killed this long after the change, and their
        /// addresses go `server.address_gone_after` later.
        killed_after: Span = secs(30),
    }
}

section! {
    /// Pods that are not ready for a while.
    #[derive(Copy)]
    pub struct Flap {
        /// When the endpoints lose them.
        at: Span = secs(60),
        /// How long they are gone from the endpoints.
        lasts: Span = secs(60),
        /// How many.
        flapping: u32 = 1; in 1..=10_000,
        /// How many pods there are in all.
        pods: u32 = 3; in 1..=10_000,
    }
}

impl Rollout {
    /// How many pods run at the start.
    pub const fn old_pods(&self) -> u32 {
        match self {
            Self::None(steady) => steady.pods,
            Self::Deployment(deployment) => deployment.replicas,
            Self::Scripted(script) => script.old_pods,
            Self::Scale(scale) => scale.from,
            Self::Flap(flap) => flap.pods,
        }
    }

    /// How many pods the rollout starts.
    pub const fn new_pods(&self) -> u32 {
        match self {
            Self::None(_) | Self::Flap(_) => 0,
            Self::Deployment(deployment) => deployment.replicas,
            Self::Scripted(script) => script.new_pods,
            Self::Scale(scale) => scale.to.saturating_sub(scale.from),
        }
    }

    /// When it begins; `None` if nothing happens.
    pub const fn start(&self) -> Option<Span> {
        match self {
            Self::None(_) => None,
            Self::Deployment(deployment) => Some(deployment.start),
            Self::Scripted(script) => Some(script.at),
            Self::Scale(scale) => Some(scale.at),
            Self::Flap(flap) => Some(flap.at),
        }
    }
}

impl Deployment {
    /// How many pods there may be above `replicas`.
    pub const fn surge(&self) -> u32 {
        self.max_surge.rounded_up(self.replicas)
    }

    /// How many pods of `replicas` may be missing. Where both limits round to 0, one may be missing: the Deployment
    /// controller's `ResolveFenceposts`.
    pub fn unavailable(&self) -> u32 {
        let unavailable = self.max_unavailable.rounded_down(self.replicas);
        if unavailable == 0 && self.surge() == 0 {
            1
        } else {
            unavailable
        }
    }
}
