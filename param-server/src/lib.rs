//! coati-param-server.
