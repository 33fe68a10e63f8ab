//! Warnings that strangers can cause: a few of them, then a count.

/// Warnings in a period.
const MOST: u32 = 10;

/// Ticks in a period.
const PERIOD: u32 = 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Few {
    said: u32,
    ticks: u32,
}

impl Few {
    /// Warns, unless that was done too often.
    pub(super) fn warn(&mut self, text: impl FnOnce() -> String) {
        self.said += 1;
        if self.said <= MOST {
            tracing::warn!("{}", text());
        }
    }

    /// A second went by.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks < PERIOD {
            return;
        }
        if self.said > MOST {
            tracing::warn!("and {} more in the last {PERIOD} seconds", self.said - MOST);
        }
        *self = Few::default();
    }
}
