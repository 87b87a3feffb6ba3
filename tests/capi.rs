//! The C ABI from the outside: the header, the two libraries, and C programs against both.

#[path = "capi/cpp.rs"]
mod cpp;
#[path = "capi/header.rs"]
mod header;
#[path = "capi/layout.rs"]
mod layout;
#[path = "capi/misuse.rs"]
mod misuse;
#[path = "capi/programs.rs"]
mod programs;
#[path = "capi/toolchain.rs"]
mod toolchain;
