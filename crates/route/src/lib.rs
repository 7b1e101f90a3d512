//! L7 routing, subsets and authorization over compiled tables; pure.
