//! Reports: results in, text or data out. Pure functions; nothing here reads a clock, a file or the environment.

pub mod advise;
pub mod capacity;
pub mod check;
pub mod html;
pub mod plot;
pub mod run;
pub mod sweep;
pub mod text;
pub mod validation;
pub mod whatif;
pub mod why;
