//! What is built.
