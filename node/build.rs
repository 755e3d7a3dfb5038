//! What is different in the static release on x86-64: functions that are not left to musl (`native/memory.c`), and the order of
//! the code (`native/used.ld`).

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=native/memory.c");
    println!("cargo::rerun-if-changed=native/used.ld");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found == value);
    // Elsewhere the C library has functions of its own that are as fast.
    if is("CARGO_CFG_TARGET_ENV", "musl") && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        // Without these flags the compiler makes calls of memcpy out of the loops that are to be memcpy.
        cc::Build::new()
            .file("native/memory.c")
            .flag("-ffreestanding")
            .flag("-fno-tree-loop-distribute-patterns")
            .opt_level(2)
            .link_lib_modifier("+whole-archive")
            .compile("memory");
        let folder = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", Path::new(&folder).join("native/used.ld").display());
    }
}
