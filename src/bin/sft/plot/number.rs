//! Numbers as people read them.

/// Four significant digits at most, trailing zeros dropped; very small and very large ones with an
/// exponent.
pub fn short(x: f64) -> String {
    significant(x, 4)
}

/// The same with `digits` significant digits.
pub fn significant(x: f64, digits: usize) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "∞" } else { "−∞" }.to_owned();
    }
    if x == 0.0 {
        return "0".to_owned();
    }
    // Rounded first: 9.9999 has as many digits before the point as 10.
    let exponent = format!("{:.*e}", digits - 1, x);
    let power: i32 = exponent
        .split_once('e')
        .and_then(|(_, power)| power.parse().ok())
        .unwrap_or(0);
    if (4..6).contains(&power) && power >= digits as i32 - 1 {
        let sign = if x < 0.0 { "−" } else { "" };
        format!("{sign}{}", count(x.abs().round() as u64))
    } else if (-3..6).contains(&power) {
        let decimals = (digits as i32 - 1 - power).max(0) as usize;
        minus(&trimmed(&format!("{x:.decimals$}")))
    } else {
        with_exponent(&exponent)
    }
}

/// `1.500e-5` as `1.5e−5`.
pub(super) fn with_exponent(text: &str) -> String {
    match text.split_once('e') {
        Some((mantissa, power)) => minus(&format!("{}e{power}", trimmed(mantissa))),
        None => text.to_owned(),
    }
}

/// Without zeros that end a fraction.
pub(super) fn trimmed(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text.to_owned()
    }
}

fn minus(text: &str) -> String {
    text.replace('-', "−")
}

/// A whole number with its thousands apart: `1,203,120`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `n things`, or `1 thing`.
pub fn counted(n: u64, thing: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(n))
}

/// A share of one as `42.1 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", significant(100.0 * share, 3))
}

/// Seconds as `0.84 s`, `42.1 s`, `12 min 04 s`, `3 h 05 min` or `2 d 04 h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return short(seconds);
    }
    if seconds < 59.95 {
        return format!("{} s", significant(seconds, 3));
    }
    let whole = seconds.round() as u64;
    let (large, small, names) = match whole {
        0..3600 => (whole / 60, whole % 60, ("min", "s")),
        3600..86400 => (whole / 3600, whole % 3600 / 60, ("h", "min")),
        _ => (whole / 86400, whole % 86400 / 3600, ("d", "h")),
    };
    format!("{large} {} {small:02} {}", names.0, names.1)
}

/// Bytes as `134.2 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = n as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{} {}", short(size), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers_have_sensible_digits() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (1.234_56, "1.235"),
            (9.999_96, "10"),
            (123.456, "123.5"),
            (123_456.0, "123,456"),
            (-11_985.4, "−11,985"),
            (2e-5, "2e−5"),
            (-1.5e-7, "−1.5e−7"),
            (0.001_234_6, "0.001235"),
            (-0.5, "−0.5"),
            (1.234_56e9, "1.235e9"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "∞"),
            (f64::NEG_INFINITY, "−∞"),
            (f64::MIN_POSITIVE, "2.225e−308"),
        ];
        for (x, text) in cases {
            assert_eq!(short(x), text, "{x}");
        }
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_203_120, "1,203,120"),
        ] {
            assert_eq!(count(n), text);
        }
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(2, "row"), "2 rows");
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (0.0, "0 s"),
            (0.842, "0.842 s"),
            (42.1, "42.1 s"),
            (59.97, "1 min 00 s"),
            (724.0, "12 min 04 s"),
            (11_100.0, "3 h 05 min"),
            (187_200.0, "2 d 04 h"),
            (f64::NAN, "NaN"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn bytes_have_a_unit_of_their_size() {
        for (n, text) in [(0, "0 B"), (1024, "1 KiB"), (140_719_104, "134.2 MiB")] {
            assert_eq!(bytes(n), text);
        }
    }
}
