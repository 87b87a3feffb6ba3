//! What a person reads: lines on standard output, trouble on standard error. A closed pipe is no
//! error: whoever closed it has read enough.

use std::io::{IsTerminal, Write};

/// Writes to standard output.
pub fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes one line to standard output.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Writes one line to standard error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes an error to standard error.
pub fn error(text: &str) {
    note(&format!("sft: {text}"));
}

/// Whether standard output is a terminal that may show colour.
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}
