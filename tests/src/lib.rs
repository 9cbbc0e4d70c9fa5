//! coati-tests.
