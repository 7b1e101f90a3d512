//! End-to-end and micro benchmarks.
