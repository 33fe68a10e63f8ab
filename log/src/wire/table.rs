//! The text with which a log is constructed: the kernel's mirror table from the log's kind on.
//!
//! ```text
//! LENGTH [clustered-]core REGION [sync|nosync] [block_on_error] [last=LUID] [take_over]
//! LENGTH [clustered-]disk DEVICE REGION [sync|nosync] [block_on_error] [last=LUID] [take_over]
//! ```
//!
//! Lengths are in sectors of 512 bytes. `clustered-` names are LVM's, the others ours. `block_on_error` is a word of old
//! kernels and means nothing. `last` and `take_over` are ours: see [`TableArgs::last`], [`TableArgs::take_over`].

use crate::log::SyncMode;

/// Most regions that a log served to others can have: 8 MiB for each of its bitmaps. The kernel's own limit is higher.
pub const MAX_LOG_REGIONS: u64 = 1 << 26;

/// Longest text, in bytes: longer than any path makes it, and what is answered from it fits in a message.
const MAX_TEXT: usize = 8192;

/// Smallest region, in sectors: the kernel's.
const MIN_REGION_SECTORS: u64 = 2;

/// Where a log is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableKind<'a> {
    /// In memory.
    Core,
    /// On a device or in a file: a path, a name, or `MAJOR:MINOR`, as whoever opens it understands it.
    Disk {
        /// As it was given.
        device: &'a str,
    },
}

/// Why a log cannot be constructed from a text. `at` is the word.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    /// It is longer than what it says can be.
    #[error("the arguments have {len} bytes, and {MAX_TEXT} is the most")]
    TooLong {
        /// In bytes.
        len: usize,
    },
    /// It is not text.
    #[error("the arguments are not text")]
    NotText,
    /// A word is missing.
    #[error("the {what} is missing")]
    Missing {
        /// What it ought to say.
        what: &'static str,
    },
    /// It is no number.
    #[error("the {what} {word:?} is not a number")]
    Number {
        /// What it ought to say.
        what: &'static str,
        /// What is there.
        word: String,
    },
    /// There is no such kind of log.
    #[error("there is no log {word:?}: it is core, disk, clustered-core or clustered-disk")]
    Kind {
        /// What is there.
        word: String,
    },
    /// A word that means nothing here.
    #[error("{word:?} means nothing here")]
    Word {
        /// What is there.
        word: String,
    },
    /// The region size does not fit the kernel's rules.
    #[error(
        "regions of {region_sectors} sectors in {length}: it must be a power of two from {MIN_REGION_SECTORS} to the \
         length"
    )]
    RegionSize {
        /// Length of the mirror, in sectors.
        length: u64,
        /// Length of a region, in sectors.
        region_sectors: u64,
    },
    /// There would be too many regions.
    #[error("regions of {region_sectors} sectors in {length}: that is more than {MAX_LOG_REGIONS}")]
    TooManyRegions {
        /// Length of the mirror, in sectors.
        length: u64,
        /// Length of a region, in sectors.
        region_sectors: u64,
    },
}

/// What a log is constructed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableArgs<'a> {
    /// Where it is to be.
    pub kind: TableKind<'a>,
    /// The kind as it was given, if it is one that several hosts may share.
    pub clustered: Option<&'a str>,
    /// Length of the mirror, in sectors.
    pub length: u64,
    /// Length of a region, in sectors: a power of two.
    pub region_sectors: u64,
    /// What is known of the legs.
    pub mode: SyncMode,
    /// The life of the volume that had the log last, as the volume's legs know it; 16 hexadecimal digits. If that is not the
    /// owner which the log names, the log is not believed and `mode` is what is known of the legs: nothing if it says
    /// nothing.
    pub last: Option<u64>,
    /// Whoever had the log before has it no more, whether he said so or not.
    pub take_over: bool,
}

impl<'a> TableArgs<'a> {
    /// What a text says.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn parse(text: &'a [u8]) -> Result<TableArgs<'a>, TableError> {
        if text.len() > MAX_TEXT {
            return Err(TableError::TooLong { len: text.len() });
        }
        let text = std::str::from_utf8(text).map_err(|_| TableError::NotText)?;
        if text.contains('\0') {
            return Err(TableError::NotText);
        }
        let mut words = text.split_ascii_whitespace();
        let length = number(words.next(), "length")?;
        let kind = words.next().ok_or(TableError::Missing { what: "kind of log" })?;
        let (plain, clustered) =
            kind.strip_prefix("clustered-").map_or((kind, None), |plain| (plain, Some(kind)));
        let kind = match plain {
            "core" => TableKind::Core,
            "disk" => {
                let device = words.next().ok_or(TableError::Missing { what: "log device" })?;
                TableKind::Disk { device }
            }
            _ => return Err(TableError::Kind { word: kind.to_owned() }),
        };
        let region_sectors = number(words.next(), "region size")?;
        if !region_sectors.is_power_of_two() || !(MIN_REGION_SECTORS..=length).contains(&region_sectors) {
            return Err(TableError::RegionSize { length, region_sectors });
        }
        if length.div_ceil(region_sectors) > MAX_LOG_REGIONS {
            return Err(TableError::TooManyRegions { length, region_sectors });
        }
        let (mut mode, mut last, mut take_over) = (None, None, false);
        for word in words {
            match word {
                "sync" if mode.is_none() => mode = Some(SyncMode::Sync),
                "nosync" if mode.is_none() => mode = Some(SyncMode::NoSync),
                "block_on_error" => {}
                "take_over" => take_over = true,
                word if last.is_none() && word.starts_with("last=") => last = Some(luid(word)?),
                _ => return Err(TableError::Word { word: word.to_owned() }),
            }
        }
        Ok(TableArgs {
            kind,
            clustered,
            length,
            region_sectors,
            mode: mode.unwrap_or_default(),
            last,
            take_over,
        })
    }

    /// How many regions.
    pub fn regions(&self) -> u32 {
        self.length.div_ceil(self.region_sectors) as u32
    }
}

fn luid(word: &str) -> Result<u64, TableError> {
    let digits = word.strip_prefix("last=").filter(|digits| digits.len() == 16);
    let luid = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    luid.ok_or_else(|| TableError::Word { word: word.to_owned() })
}

fn number(word: Option<&str>, what: &'static str) -> Result<u64, TableError> {
    let word = word.ok_or(TableError::Missing { what })?;
    word.parse().map_err(|_| TableError::Number { what, word: word.to_owned() })
}
