//! Planted faults: for each target a mistake that such a reader could well make. With one in place the corpus must go red and
//! the fuzzer must find it; otherwise the target looks at nothing.

use std::{cell::Cell, sync::LazyLock};

/// For the fuzzer: `WINDLASS_FUZZ_PLANT=yes`.
static BY_ENVIRONMENT: LazyLock<bool> = LazyLock::new(|| std::env::var_os("WINDLASS_FUZZ_PLANT").is_some());

thread_local! {
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with the faults planted, on this thread alone.
pub fn with<T>(f: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            HERE.set(false);
        }
    }
    HERE.set(true);
    let _back = Back;
    f()
}

pub(crate) fn planted() -> bool {
    *BY_ENVIRONMENT || HERE.get()
}
