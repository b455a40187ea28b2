//! Selectors: label expressions that pick hosts.
