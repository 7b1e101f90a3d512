//! One pod: what is wished, what is so, and the steps between.

pub mod machine;
