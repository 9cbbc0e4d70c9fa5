//! coati-common.
