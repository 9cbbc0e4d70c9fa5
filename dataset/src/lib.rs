//! coati-dataset.
