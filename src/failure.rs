//! Errors as one line of text.

use std::error::Error;

/// The error and, in parentheses, the causes that it does not mention itself.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut causes: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = plain(&cause.to_string());
        if !text.contains(&said) && causes.last().is_none_or(|last| !last.contains(&said)) {
            causes.push(said);
        }
        next = cause.source();
    }
    text = plain(&text);
    if causes.is_empty() { text } else { format!("{text} ({})", causes.join(": ")) }
}

/// Without the number that the standard library puts after what the system says.
fn plain(text: &str) -> String {
    match text.split_once(" (os error ") {
        Some((before, after)) => {
            let after = after.split_once(')').map_or("", |(_, after)| after);
            format!("{before}{after}")
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leg::LegError;

    #[test]
    fn causes_are_said_once() {
        let source = std::io::Error::from_raw_os_error(30);
        let error = LegError::ReadOnly { path: "a.img".into(), source };
        assert_eq!(describe(&error), "leg a.img: it cannot be opened for writing (Read-only file system)");
        let error = crate::create::CreateError::Leg(LegError::NotFound { path: "a.img".into() });
        assert_eq!(describe(&error), "leg a.img: there is no such file");
    }
}
