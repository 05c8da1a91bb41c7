//! What a scenario may mean whose kernels leave open which fixes they have: the same scenario, each kernel decided.

use ipvs_model::kernel::Kernel;
use ipvs_model::kernel::possible::{CLIENT_DECISIVE, NODE_DECISIVE};
use ipvs_model::segment::Proto;

use super::{DataPlane, PortChoice, Scenario};

/// A kernel of a scenario that its release does not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenKernel {
    /// The field: `node.kernel`, `client.0.kernel`.
    pub path: String,
    /// What it can be, the oldest first; at least two.
    pub values: Vec<Kernel>,
}

impl Scenario {
    /// The kernels on which the result may turn and which their releases leave open. What `kernel_gates`,
    /// `assume_backports` or the kernel's own text (`... as 5.4.163`) decide is not open, nor what has no effect.
    pub fn open_kernels(&self) -> Vec<OpenKernel> {
        let mut open = Vec::new();
        let node = &self.node;
        if node.mode == DataPlane::Ipvs && !node.assume_backports {
            let mut values = node.kernel.possibilities(NODE_DECISIVE);
            let mut seen = Vec::new();
            values.retain(|kernel| {
                let mut decided = node.clone();
                decided.kernel = kernel.clone();
                let behaviours = decided.behaviours();
                let decisive = NODE_DECISIVE
                    .iter()
                    .map(|(gate, _)| behaviours.has(*gate))
                    .collect::<Vec<_>>();
                let new = !seen.contains(&decisive);
                seen.push(decisive);
                new
            });
            open.push(OpenKernel {
                path: "node.kernel".to_owned(),
                values,
            });
        }
        for (index, client) in self.client.iter().enumerate() {
            // A UDP socket takes a random port on every kernel.
            if client.port_choice == PortChoice::Connect && self.service.protocol == Proto::Tcp {
                open.push(OpenKernel {
                    path: format!("client.{index}.kernel"),
                    values: client.kernel.possibilities(CLIENT_DECISIVE),
                });
            }
        }
        open.retain(|kernel| kernel.values.len() > 1);
        open
    }

    /// The scenario with one of its open kernels decided.
    ///
    /// # Panics
    /// If the path is not one of [`Scenario::open_kernels`].
    #[must_use]
    pub fn with_kernel(&self, path: &str, kernel: &Kernel) -> Self {
        let mut decided = self.clone();
        let place = match path {
            "node.kernel" => &mut decided.node.kernel,
            _ => {
                let index = path
                    .split('.')
                    .nth(1)
                    .and_then(|index| index.parse::<usize>().ok());
                let client = index.and_then(|index| decided.client.get_mut(index));
                &mut client.expect("a path of open_kernels").kernel
            }
        };
        place.clone_from(kernel);
        decided
    }

    /// The scenario with every open kernel decided for the first, oldest possibility.
    #[must_use]
    pub fn with_first_kernels(&self) -> Self {
        let open = self.open_kernels();
        open.iter().fold(self.clone(), |scenario, kernel| {
            scenario.with_kernel(&kernel.path, &kernel.values[0])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipvs_model::kernel::Gate;

    fn open(kernel: &str, client: &str) -> (Scenario, Vec<(String, usize)>) {
        let mut scenario = Scenario::default();
        scenario.node.kernel = kernel.parse().unwrap();
        scenario.client[0].kernel = client.parse().unwrap();
        let found = scenario.open_kernels();
        let found = found.into_iter().map(|open| (open.path, open.values.len()));
        let found = found.collect();
        (scenario, found)
    }

    #[test]
    fn only_what_a_result_turns_on_is_open() {
        let node = |n| ("node.kernel".to_owned(), n);
        let client = |n| ("client.0.kernel".to_owned(), n);
        assert_eq!(open("4.19.57", "5.4.162").1, []);
        assert_eq!(open("5.4.0-91-generic", "5.4.0-91-generic").1, []);
        assert_eq!(open("5.4.0-1051-gke", "4.19.57").1, [node(3)]);
        assert_eq!(
            open("4.18.0-305.el8", "4.18.0-305.el8").1,
            [node(4), client(2)]
        );
        assert_eq!(open("4.18.0-305.el8 with none", "4.19.57").1, []);
        let (mut scenario, _) = open("5.4.0-1051-gke", "5.4.0-1051-gke");
        scenario.node.mode = DataPlane::Iptables;
        scenario.client[0].port_choice = PortChoice::Bind;
        assert_eq!(scenario.open_kernels(), []);
    }

    #[test]
    fn overrides_decide() {
        let (mut scenario, _) = open("5.4.0-1051-gke", "4.19.57");
        scenario
            .node
            .kernel_gates
            .0
            .insert(Gate::WeightZeroAnyMode, true);
        assert_eq!(scenario.open_kernels()[0].values.len(), 2);
        scenario.node.assume_backports = true;
        assert_eq!(scenario.open_kernels(), []);
    }

    #[test]
    fn the_first_possibility_is_the_oldest() {
        let (scenario, _) = open("5.4.0-1051-gke", "4.18.0-305.el8");
        let first = scenario.with_first_kernels();
        assert_eq!(first.node.kernel.to_string(), "5.4.0-1051-gke as 5.4.58");
        assert_eq!(
            first.client[0].kernel.to_string(),
            "4.18.0-305.el8 with none"
        );
        assert_eq!(first.open_kernels(), []);
    }
}
