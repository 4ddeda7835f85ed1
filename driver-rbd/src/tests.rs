//! The driver on the simulated machine.
