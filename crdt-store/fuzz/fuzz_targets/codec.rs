#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crdt_store::fuzzing::codec(data));
