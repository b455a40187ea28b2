//! The corner cases of stepping in, by their names.

use super::*;
