//! A leg's metadata on an open file: made by create, read by start and inspect. Blocking.
//!
//! A leg being made is not a leg until all of it is there: an old footer is wiped first, log pages
//! and superblock slots are written and synced, the new footer comes last. What a leg says is taken
//! from the superblock; the footer only says where that is.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use mirrord_raid::Geometry;

use crate::footer::{Footer, FooterError};
use crate::internal::InternalLog;
use crate::layout::{Layout, PAGE, PAGE_REGIONS, log_pages};
use crate::log::DirtyLog;
use crate::lost::lost_footer;
use crate::page::PageWrite;
use crate::superblock::{PickError, SlotError, Superblock, pick};

/// What a leg lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// A file: the footer is its last 4096 bytes.
    File,
    /// A block device: the footer is its last whole 4 KiB block.
    Device,
}

impl Backing {
    /// Where the footer of something `len` bytes long is. `None` if it is too short.
    fn footer(self, len: u64) -> Option<u64> {
        match self {
            Backing::File => len.checked_sub(PAGE),
            Backing::Device => (len / PAGE * PAGE).checked_sub(PAGE),
        }
    }
}

/// What `file` is and its length in bytes. Moves the file's cursor.
///
/// # Errors
/// When it cannot be asked for its metadata or its end.
pub fn measure(file: &File) -> io::Result<(Backing, u64)> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        let mut cursor = file;
        return Ok((Backing::Device, cursor.seek(SeekFrom::End(0))?));
    }
    Ok((Backing::File, metadata.len()))
}

/// All metadata of a leg.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LegMetadata {
    /// The footer.
    pub footer: Footer,
    /// The newer superblock.
    pub superblock: Superblock,
    /// Its generation: the next write has one more.
    pub generation: u64,
    /// Where the metadata lies.
    pub layout: Layout,
    /// The internal log, unchecked: for [`DirtyLog::resume`].
    pub log_area: Vec<u8>,
}

impl LegMetadata {
    /// Size of the largest volume with such regions that the leg has room for, in bytes.
    pub fn room_for(&self, geometry: &Geometry) -> u64 {
        let regions = u64::from(self.layout.log_pages) * u64::from(PAGE_REGIONS);
        self.layout.room().min(regions.saturating_mul(geometry.region_size()))
    }
}

/// Why a leg's metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadLegError {
    /// Reading failed.
    #[error("reading the {what} failed")]
    Io {
        /// Footer, superblock or log.
        what: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Too short to be a leg.
    #[error("{len} bytes are too few for a leg")]
    TooShort {
        /// Its length in bytes.
        len: u64,
    },
    /// Not a leg, or its end was cut off or overwritten.
    #[error("no mirrord footer at its end: not a leg, or it was made longer or shorter")]
    NoFooter,
    /// The same of a device.
    #[error(
        "no mirrord footer at its end: not a leg, or the device grew since it was last served; then make it as long as \
         it was, start the volume, grow the device again and `mirrord resize` the volume while it runs"
    )]
    NoFooterOnDevice,
    /// The footer is damaged.
    #[error("the footer fails its checksum")]
    Checksum,
    /// The footer is whole and lies elsewhere than it says.
    #[error("the footer lies at byte {found} and says it lies at {recorded}: bytes were added or removed")]
    Moved {
        /// Where it was found.
        found: u64,
        /// Where it says it is.
        recorded: u64,
    },
    /// Both superblock slots are lost.
    #[error("both superblock slots are lost: slot 0: {slot0}; slot 1: {slot1}")]
    BothTorn {
        /// What is wrong with slot 0.
        slot0: SlotError,
        /// What is wrong with slot 1.
        slot1: SlotError,
    },
    /// Made by a newer mirrord.
    #[error("its {what} has version {found}, which this mirrord does not know: use a newer one")]
    NewerVersion {
        /// Footer or superblock.
        what: &'static str,
        /// The version.
        found: u32,
    },
    /// Needs features that this mirrord does not have.
    #[error("it needs unknown features {flags:#x}: use a newer mirrord")]
    UnknownFlags {
        /// The bits that are not known.
        flags: u64,
    },
    /// Checksums match but a field makes no sense.
    #[error("its {what} has an impossible {field}")]
    BadField {
        /// Footer or superblock.
        what: &'static str,
        /// Which field.
        field: &'static str,
    },
}

impl From<FooterError> for ReadLegError {
    fn from(error: FooterError) -> ReadLegError {
        match error {
            FooterError::NotMirrord => ReadLegError::NoFooter,
            FooterError::Checksum => ReadLegError::Checksum,
            FooterError::NewerVersion { found } => ReadLegError::NewerVersion { what: "footer", found },
            FooterError::BadField { field } => ReadLegError::BadField { what: "footer", field },
        }
    }
}

impl From<PickError> for ReadLegError {
    fn from(error: PickError) -> ReadLegError {
        let what = "superblock";
        match error {
            PickError::BothTorn { slot0, slot1 } => ReadLegError::BothTorn { slot0, slot1 },
            PickError::Refused(SlotError::NewerVersion { found }) => {
                ReadLegError::NewerVersion { what, found }
            }
            PickError::Refused(SlotError::UnknownFlags { flags }) => ReadLegError::UnknownFlags { flags },
            PickError::Refused(SlotError::BadField { field }) => ReadLegError::BadField { what, field },
            PickError::Refused(lost @ (SlotError::NotMirrord | SlotError::Checksum)) => {
                ReadLegError::BothTorn { slot0: lost, slot1: lost }
            }
        }
    }
}

/// Reads the metadata of a leg `len` bytes long, also of a file that was made longer and ends with zeroes. A slot that cannot be read counts as torn, and a block
/// of the log that cannot be read as damaged.
///
/// # Errors
/// See [`ReadLegError`].
pub fn read_leg(file: &File, backing: Backing, len: u64) -> Result<LegMetadata, ReadLegError> {
    let found = backing.footer(len).ok_or(ReadLegError::TooShort { len })?;
    let io_error = |what| move |source| ReadLegError::Io { what, source };
    let (footer, found) = match Footer::decode(&read(file, found, PAGE).map_err(io_error("footer"))?) {
        // A file that grew and has no footer yet.
        Err(FooterError::NotMirrord) if backing == Backing::File => {
            let footer = lost_footer(file, len).map_err(io_error("footer"))?;
            let footer = footer.ok_or(ReadLegError::NoFooter)?;
            (footer, footer.layout.footer)
        }
        Err(FooterError::NotMirrord) => return Err(ReadLegError::NoFooterOnDevice),
        footer => (footer?, found),
    };
    let layout = footer.layout;
    if layout.footer != found {
        return Err(ReadLegError::Moved { found, recorded: layout.footer });
    }
    let [slot0, slot1] = match layout.slots.map(|slot| read(file, slot, PAGE)) {
        [Err(source), Err(_)] => return Err(ReadLegError::Io { what: "superblock", source }),
        slots => slots.map(Result::unwrap_or_default),
    };
    let (superblock, generation) = pick(&slot0, &slot1)?;
    let bad = |field| ReadLegError::BadField { what: "superblock", field };
    let geometry = superblock.geometry().ok_or(bad("size"))?;
    if geometry.size() > layout.room() || log_pages(geometry.regions()) > layout.log_pages {
        return Err(bad("size"));
    }
    let log_area = read_log_area(file, &layout);
    Ok(LegMetadata { footer, superblock, generation, layout, log_area })
}

/// The log area. Blocks that cannot be read are zeroes, which are no sectors of a log: their regions are dirty.
fn read_log_area(file: &File, layout: &Layout) -> Vec<u8> {
    if let Ok(area) = read(file, layout.log, layout.log_len()) {
        return area;
    }
    let mut area = vec![0; layout.log_len() as usize];
    for (at, block) in (layout.log..).step_by(PAGE as usize).zip(area.chunks_mut(PAGE as usize)) {
        if file.read_exact_at(block, at).is_err() {
            block.fill(0);
        }
    }
    area
}

fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Why a leg could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FormatLegError {
    /// Writing failed.
    #[error("writing the {what} failed")]
    Io {
        /// Footer, superblock or log.
        what: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Volume, log and layout do not fit together.
    #[error("a volume of {size} bytes with {regions} regions does not fit the layout")]
    DoesNotFit {
        /// Size of the volume in bytes.
        size: u64,
        /// Regions of the log.
        regions: u32,
    },
    /// The footer would not be where [`read_leg`] looks for it.
    #[error("the metadata would end at byte {end} of {len}: it must be the last")]
    NotLast {
        /// Where the metadata would end.
        end: u64,
        /// Length of the file or device in bytes.
        len: u64,
    },
}

/// Makes a leg of `file`: its metadata, not its data. The slots get generations 0 and 1, so the next
/// superblock write has generation 2. A file grows to `layout.end`; one that is longer is refused.
///
/// # Errors
/// See [`FormatLegError`]. After an error the file is not a leg.
///
/// # Panics
/// If [`Superblock::check`] fails.
pub fn format_leg(
    file: &File,
    layout: &Layout,
    superblock: &Superblock,
    log: &InternalLog,
) -> Result<(), FormatLegError> {
    let (size, regions) = (superblock.size, log.regions());
    let fits = superblock.geometry().is_some_and(|geometry| geometry.regions() == regions);
    if !fits || size > layout.room() || log_pages(regions) > layout.log_pages {
        return Err(FormatLegError::DoesNotFit { size, regions });
    }
    let io_error = |what| move |source| FormatLegError::Io { what, source };
    let (backing, len) = measure(file).map_err(io_error("footer"))?;
    let len_after = if backing == Backing::File { len.max(layout.end) } else { len };
    if backing.footer(len_after) != Some(layout.footer) {
        return Err(FormatLegError::NotLast { end: layout.end, len });
    }
    let write =
        |what, write: PageWrite| file.write_all_at(&write.bytes, write.offset).map_err(io_error(what));
    let sync = |what| file.sync_all().map_err(io_error(what));

    write("footer", PageWrite { offset: layout.footer, bytes: vec![0; PAGE as usize] })?;
    sync("footer")?;
    for page in log.all_pages().writes {
        write("log", PageWrite { offset: layout.log + page.offset, ..page })?;
    }
    for generation in [0, 1] {
        write("superblock", superblock_write(layout, superblock, generation))?;
    }
    sync("superblock")?;
    let footer = Footer { volume: superblock.volume, leg: superblock.leg_uuid(), size, layout: *layout };
    write("footer", PageWrite { offset: layout.footer, bytes: footer.encode() })?;
    sync("footer")
}

/// Makes a leg one no more: nothing of its metadata stays, its data does. A file ends where its metadata began.
///
/// # Errors
/// See [`FormatLegError::Io`]. It is no leg any more, unless writing the footer failed.
pub fn wipe_leg(file: &File, layout: &Layout) -> Result<(), FormatLegError> {
    let io_error = |what| move |source| FormatLegError::Io { what, source };
    let (backing, len) = measure(file).map_err(io_error("footer"))?;
    let zero = |what, offset, pages: u64| {
        (0..pages)
            .try_for_each(|page| file.write_all_at(&[0; PAGE as usize], offset + page * PAGE))
            .and_then(|()| file.sync_all())
            .map_err(io_error(what))
    };
    zero("footer", layout.footer, 1)?;
    zero("superblock", layout.slots[0], 2)?;
    if backing == Backing::File && len == layout.end {
        return file.set_len(layout.room()).and_then(|()| file.sync_all()).map_err(io_error("length"));
    }
    zero("log", layout.log, layout.log_pages.into())
}

/// Makes a leg that nobody uses one of another volume, whose superblock is `superblock`, with this log. Its data
/// stays. At any moment it is a leg of the one volume or of the other.
///
/// # Errors
/// See [`FormatLegError`].
///
/// # Panics
/// If [`Superblock::check`] fails.
pub fn convert_leg(
    file: &File,
    metadata: &LegMetadata,
    superblock: &Superblock,
    log: &InternalLog,
) -> Result<(), FormatLegError> {
    let layout = &metadata.layout;
    let (size, regions) = (superblock.size, log.regions());
    if size > layout.room() || log_pages(regions) > layout.log_pages {
        return Err(FormatLegError::DoesNotFit { size, regions });
    }
    let io_error = |what| move |source| FormatLegError::Io { what, source };
    let write = |what, write: PageWrite| {
        file.write_all_at(&write.bytes, write.offset).and_then(|()| file.sync_all()).map_err(io_error(what))
    };
    // Of a leg that is out nobody reads the log.
    for page in log.all_pages().writes {
        write("log", PageWrite { offset: layout.log + page.offset, ..page })?;
    }
    // The first of these makes it so.
    for generation in [metadata.generation + 1, metadata.generation + 2] {
        write("superblock", superblock_write(layout, superblock, generation))?;
    }
    // One sector of it differs: it is never torn.
    let footer = Footer { volume: superblock.volume, leg: superblock.leg_uuid(), size, layout: *layout };
    write("footer", PageWrite { offset: layout.footer, bytes: footer.encode() })
}

/// The write that records `superblock` as `generation`, with its offset from the start of the leg.
/// Generations count up by one, so that a torn write leaves the one before.
///
/// # Panics
/// If [`Superblock::check`] fails.
pub fn superblock_write(layout: &Layout, superblock: &Superblock, generation: u64) -> PageWrite {
    PageWrite { offset: layout.slots[(generation % 2) as usize], bytes: superblock.encode(generation) }
}
