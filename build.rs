//! What is compiled beside the Rust code, by feature.

#[path = "build/emulate.rs"]
mod emulate;
#[path = "build/nvcc.rs"]
mod nvcc;

#[path = "build/soname.rs"]
mod soname;

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    soname::set();
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        nvcc::embed();
    }
    if env::var_os("CARGO_FEATURE_EMULATE").is_some() {
        emulate::build();
    }
}
