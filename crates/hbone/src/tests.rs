//! Both halves against each other over loopback with real TLS.

mod rig;

mod faults;
mod flow;
mod hostile;
mod sharing;
