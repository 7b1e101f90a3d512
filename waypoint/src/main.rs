//! L7 proxy, per namespace or per service account.

fn main() {}
