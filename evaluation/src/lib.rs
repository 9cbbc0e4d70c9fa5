//! coati-evaluation.
