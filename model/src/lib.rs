//! Pure state machines of the kernel tables that decide where a connection goes.
