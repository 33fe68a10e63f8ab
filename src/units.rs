//! Sizes as people write and read them.
//!
//! `K M G T P` and `KiB MiB ...` are powers of 1024, `kB MB GB ...` powers of 1000, a bare number or
//! `B` is bytes; the case of the letters does not matter, but for nothing else than that there is
//! one meaning for each. What is printed can be read back.

/// Why a size cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// No number in front.
    #[error("a size is a number and a unit, such as 4096, 4KiB, 512M or 1TiB")]
    NoNumber,
    /// A unit nobody knows.
    #[error("unknown unit: use B, K, M, G, T, P (powers of 1024) or kB, MB, GB, TB, PB (powers of 1000)")]
    Unit,
    /// More than 2^64 bytes.
    #[error("the size is too large")]
    TooLarge,
}

const PREFIXES: &str = "kmgtp";
const BINARY: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// Reads a size in bytes: `4096`, `4KiB`, `512M`, `1G`, `1TiB`, `10MB`.
///
/// # Errors
/// See [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::NoNumber);
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    let factor = factor(&unit.trim_start().to_ascii_lowercase()).ok_or(SizeError::Unit)?;
    number.checked_mul(factor).ok_or(SizeError::TooLarge)
}

fn factor(unit: &str) -> Option<u64> {
    let Some(prefix) = unit.chars().next().filter(|first| *first != 'b') else {
        return (unit.is_empty() || unit == "b").then_some(1);
    };
    let power = PREFIXES.find(prefix)? as u32 + 1;
    match &unit[1..] {
        "" | "ib" => Some(1 << (10 * power)),
        "b" => Some(1000u64.pow(power)),
        _ => None,
    }
}

/// A size for people: exact where it is a whole number of a binary unit, else with two decimals.
pub fn format_size(bytes: u64) -> String {
    let power = if bytes == 0 { 0 } else { (bytes.ilog2() / 10).min(BINARY.len() as u32 - 1) };
    let (unit, name) = (1u64 << (10 * power), BINARY[power as usize]);
    if bytes.is_multiple_of(unit) {
        format!("{}{name}", bytes / unit)
    } else {
        format!("{:.2}{name}", bytes as f64 / unit as f64)
    }
}

/// Seconds for people: `42s`, `3m05s`, `2h04m`, `3d04h`.
pub fn format_seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("17B", 17),
            ("4KiB", 4096),
            ("4k", 4096),
            ("512M", 512 << 20),
            ("512MB", 512_000_000),
            ("1G", 1 << 30),
            ("1 GiB", 1 << 30),
            ("16TiB", 16 << 40),
            ("2P", 2 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, error) in [
            ("", SizeError::NoNumber),
            ("M", SizeError::NoNumber),
            ("-1", SizeError::NoNumber),
            ("1X", SizeError::Unit),
            ("1KiBs", SizeError::Unit),
            ("1.5G", SizeError::Unit),
            ("1é", SizeError::Unit),
            ("99999999999999999999", SizeError::TooLarge),
            ("99999999999P", SizeError::TooLarge),
        ] {
            assert_eq!(parse_size(text), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        for (bytes, text) in [
            (0, "0B"),
            (1000, "1000B"),
            (4096, "4KiB"),
            (1 << 30, "1GiB"),
            (3 << 29, "1.50GiB"),
            (100 << 50, "100PiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
        assert_eq!(format_seconds(59), "59s");
        assert_eq!(format_seconds(185), "3m05s");
        assert_eq!(format_seconds(3 * 86400 + 5 * 3600), "3d05h");
    }
}
