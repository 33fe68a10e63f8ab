//! Any bytes as what happens to a log server: see the model in the log crate's tests.

#![no_main]

#[path = "../../../log/tests/server/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::run(bytes);
});
