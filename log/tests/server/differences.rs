//! Where our answers are not the recorded ones.

/// In which capture, of which log, to what, what the other daemon answered, what ours does, how often, and why.
type Difference = (&'static str, &'static str, &'static str, &'static str, &'static str, usize, &'static str);

/// Answers that are the recorded ones.
pub const SAME: usize = 0;

pub const DIFFERENCES: &[Difference] = &[];
