//! Why a request did not go well: the causal chain from the rollout's step to the client's error, as data, text and picture;
//! and the handbook inside the binary.
//!
//! Nothing is guessed: every link is a decision that the engine wrote down when it was made (`engine::story`), or something that
//! happened to pods and rules (`engine::trace`), under the name of its rule; [`sources`] says where each rule comes from.

pub mod chain;
mod fate;
pub mod graph;
pub mod handbook;
pub mod sources;
pub mod svg;
mod words;

pub use chain::{Chain, Link, Place, of};

#[cfg(test)]
mod tests;
