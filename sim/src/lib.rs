//! The simulator: scenarios, engine, experiments and reports on top of `ipvs_model`.
pub mod experiment;
pub mod outcome;
