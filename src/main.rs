//! The program `mirrord`: everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    mirrord::cli::main()
}
