//! The one binary `coati`.
fn main() {}
