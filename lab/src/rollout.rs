//! The rollout lab.
use anyhow::Result;
use serde::{Deserialize, Serialize};
/// x
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct RolloutSpec {}
impl RolloutSpec {
    /// x
    pub fn check(&self) -> Result<()> {
        Ok(())
    }
}
/// x
pub fn run(_: &crate::job::Job, _: &RolloutSpec, _: &std::path::Path) -> Result<()> {
    Ok(())
}
