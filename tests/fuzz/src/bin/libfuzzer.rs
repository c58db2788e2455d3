//! One target under libFuzzer. `cargo xtask soak fuzz` builds it with coverage and says in `BREAKGLASS_FUZZ` which; libFuzzer's own
//! `main` reads the arguments. The macro makes the C function that libFuzzer calls.

#![no_main]

use std::sync::OnceLock;

use breakglass_fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("BREAKGLASS_FUZZ").unwrap_or_default();
        target(&name).unwrap_or_else(|| panic!("BREAKGLASS_FUZZ={name:?} names no target"))
    });
    (target.run)(input);
});
