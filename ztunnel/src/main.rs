//! L4 node proxy.

fn main() {}
