//! The name that a program keeps of libsft.so and looks for when it starts.

use std::env;
use std::path::Path;

/// On Linux libsft.so is called libsft.so.N, N being the major version. Programs that were linked with a library
/// where cargo puts it look for that name beside it, so a link of that name is laid there.
pub fn set() {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    let soname = format!("libsft.so.{major}");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
    // OUT_DIR is <profile>/build/…/out; the library lies in <profile> and in <profile>/deps.
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    let mut folders = Path::new(&out).ancestors();
    let build = folders.find(|folder| folder.ends_with("build"));
    let Some(profile) = build.and_then(Path::parent) else {
        return;
    };
    for folder in [profile.to_path_buf(), profile.join("deps")] {
        lay(&folder.join(&soname));
    }
}

/// Lays the link. Where that fails only such programs miss it, and they say so.
#[cfg(unix)]
fn lay(link: &Path) {
    if link.symlink_metadata().is_err()
        && let Err(error) = std::os::unix::fs::symlink("libsft.so", link)
    {
        println!("cargo::warning=cannot make {}: {error}", link.display());
    }
}

#[cfg(not(unix))]
fn lay(_link: &Path) {}
