//! coati-checkpoint.
