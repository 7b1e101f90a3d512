//! Objects to model to xDS; certificate authority; waypoint lifecycle; statuses.

fn main() {}
