//! Marram benches.
