#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| isobar_fuzz::kept::mesh_file(data));
