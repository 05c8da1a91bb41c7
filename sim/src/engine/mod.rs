//! The engine: a world built from parts of the model, driven by events in a total order.
//!
//! It knows the model and no experiment. One run is one thread and a pure function of scenario and seed.

pub mod trace;
