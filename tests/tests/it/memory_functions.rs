//! The C of the static release, held against the C library of the machine.

use std::path::Path;
use std::process::Command;

/// What decides how it is compiled, as in `node/build.rs`.
const FLAGS: [&str; 4] = ["-O2", "-fPIC", "-ffreestanding", "-fno-tree-loop-distribute-patterns"];

#[test]
fn memory_functions_of_the_static_release_do_what_those_of_the_c_library_do() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/native/memory_test.c");
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("memory_test");
    let compiled =
        Command::new("cc").args(FLAGS).args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(&source).output();
    let compiled = compiled.expect("a C compiler, which the build needs as well");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&program).output().expect("it starts");
    assert!(ran.status.success(), "{}: {}", ran.status, String::from_utf8_lossy(&ran.stdout));
}
