//! What the record costs.
fn main() {}
