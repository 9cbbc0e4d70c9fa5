//! The whole way of real records, against numbers recorded from the reference.

mod bccd;
