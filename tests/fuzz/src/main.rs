//! One fuzzer for all targets: `WINDLASS_FUZZ_TARGET` says which. One program instead of one a target, because the linking
//! of the services takes longer than anything else here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<windlass_hostile::Target> = LazyLock::new(|| {
    let name = std::env::var("WINDLASS_FUZZ_TARGET").unwrap_or_default();
    windlass_hostile::target(&name).unwrap_or_else(|| panic!("WINDLASS_FUZZ_TARGET: there is no target {name:?}"))
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
