//! coati-detection.
