//! The simulator: scenarios, engine, experiments and reports on top of `ipvs_model`.

pub mod advise;
pub mod capture;
pub mod diff;
pub mod engine;
pub mod experiment;
pub mod explain;
pub mod outcome;

pub mod cli;
pub mod diag;
pub mod fit;
pub mod import;
pub mod output;
pub mod record;
pub mod report;
pub mod scenario;
pub mod svg;
pub mod validate;
