//! Where a log is, in the words of the command line: `internal`, `core`, `disk:PATH`, `remote:ADDRESS`.

use mirrord_log::LogPlace;

use crate::remote::Address;

/// Not a log.
#[derive(Debug, thiserror::Error)]
#[error(
    "a log is internal, core, disk:PATH, remote:unix:PATH, remote:HOST:PORT or remote:insecure:HOST:PORT"
)]
pub struct BadLog;

/// The place that `text` names.
///
/// # Errors
/// [`BadLog`] if it names none.
pub fn parse_log(text: &str) -> Result<LogPlace, BadLog> {
    match text.split_once(':') {
        None if text == "internal" => Ok(LogPlace::Internal),
        None if text == "core" => Ok(LogPlace::Core),
        Some(("disk", path)) if !path.is_empty() => Ok(LogPlace::Disk(path.into())),
        Some(("remote", address)) => {
            let address: Address = address.parse().map_err(|_| BadLog)?;
            Ok(LogPlace::Remote(address.to_string()))
        }
        _ => Err(BadLog),
    }
}

/// A place as [`parse_log`] reads it. A path that is not UTF-8 is not read again as the same one.
pub fn place_text(place: &LogPlace) -> String {
    match place {
        LogPlace::Internal => "internal".to_owned(),
        LogPlace::Core => "core".to_owned(),
        LogPlace::Disk(path) => format!("disk:{}", path.display()),
        LogPlace::Remote(address) => format!("remote:{address}"),
    }
}

/// The same place with an absolute path.
///
/// # Errors
/// As [`std::path::absolute`].
pub fn absolute(place: LogPlace) -> std::io::Result<LogPlace> {
    match place {
        LogPlace::Disk(path) => Ok(LogPlace::Disk(std::path::absolute(path)?)),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read_and_said() {
        for (text, place) in [
            ("internal", LogPlace::Internal),
            ("core", LogPlace::Core),
            ("disk:/x:y", LogPlace::Disk("/x:y".into())),
            ("remote:host:1", LogPlace::Remote("host:1".to_owned())),
            ("remote:insecure:host:1", LogPlace::Remote("insecure:host:1".to_owned())),
        ] {
            assert_eq!(parse_log(text).unwrap(), place);
            assert_eq!(place_text(&place), text);
        }
        for bad in ["", "remote:", "remote:host", "disk", "disk:", "internal:x", "file:/x"] {
            assert!(parse_log(bad).is_err(), "{bad}");
        }
    }
}
