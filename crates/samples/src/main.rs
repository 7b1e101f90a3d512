//! Sample applications for the lab, in one binary.

fn main() {}
