//! coati-proto.
