//! The two ends of a connection: the client host and the server pod.
//!
//! The client chooses a source port, sends SYNs, waits in TIME_WAIT; the pod listens, keeps stale sockets and
//! dies in phases. Both share one socket ([`socket`]) and one transition table ([`state`]).
//!
//! Leaves out, in every file here: congestion control, reordering, selective acknowledgements, fast open,
//! syncookies, urgent data, window probes and keep-alive probes. A test that counts segments of a long
//! transfer could tell the difference; a test that looks at connections, states and timers could not.

pub mod bitmap;
pub mod client;
pub mod deadend;
pub mod foreseen;
mod input;
pub mod ports;
pub mod rule;
pub mod secret;
pub mod server;
pub mod socket;
pub mod state;
#[cfg(test)]
mod testing;
mod timer;
pub mod timewait;

#[cfg(test)]
mod tests;
