//! The footer: the last 4 KiB of a leg, found from its length alone; it says where the rest lies.
//!
//! Written once, last, when a leg is made. What changes later is in the superblock: the UUIDs here
//! tell a reader whose leg this was even when both superblock slots are lost. Magic, version and
//! checksum keep their places in all versions, so that a newer one can be told from a damaged one.

use std::mem::{offset_of, size_of};

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::layout::{Layout, PAGE};

/// The format version written and read.
pub const FOOTER_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"mirrordF";

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawFooter {
    magic: [u8; 8],
    version: U32,
    /// Of all 4096 bytes with this field zero.
    crc: U32,
    volume: [u8; 16],
    leg: [u8; 16],
    size: U64,
    slots: [U64; 2],
    log: U64,
    log_pages: U32,
    reserved0: U32,
    footer: U64,
    end: U64,
    reserved: [u8; 3992],
}

const _: () = assert!(size_of::<RawFooter>() == PAGE as usize);
const _: () = assert!(offset_of!(RawFooter, version) == 8);
const _: () = assert!(offset_of!(RawFooter, crc) == 12);
const _: () = assert!(offset_of!(RawFooter, volume) == 16);
const _: () = assert!(offset_of!(RawFooter, leg) == 32);
const _: () = assert!(offset_of!(RawFooter, size) == 48);
const _: () = assert!(offset_of!(RawFooter, slots) == 56);
const _: () = assert!(offset_of!(RawFooter, log) == 72);
const _: () = assert!(offset_of!(RawFooter, log_pages) == 80);
const _: () = assert!(offset_of!(RawFooter, footer) == 88);
const _: () = assert!(offset_of!(RawFooter, end) == 96);
const _: () = assert!(offset_of!(RawFooter, reserved) == 104);

/// What the footer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The volume the leg was made for.
    pub volume: Uuid,
    /// The leg.
    pub leg: Uuid,
    /// Size of the volume in bytes when the leg was made.
    pub size: u64,
    /// Where the metadata lies.
    pub layout: Layout,
}

/// Why a footer cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FooterError {
    /// No magic: not a leg of mirrord, or its end was cut off or overwritten.
    #[error("no mirrord footer")]
    NotMirrord,
    /// The checksum does not match.
    #[error("the footer fails its checksum")]
    Checksum,
    /// Made by a newer mirrord.
    #[error("the footer has version {found}, newer than the known {FOOTER_VERSION}")]
    NewerVersion {
        /// Its version.
        found: u32,
    },
    /// The checksum matches but a field makes no sense.
    #[error("the footer has an impossible {field}")]
    BadField {
        /// Which.
        field: &'static str,
    },
}

impl Footer {
    /// As the 4096 bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawFooter::new_zeroed();
        raw.magic = MAGIC;
        raw.version = FOOTER_VERSION.into();
        raw.volume = *self.volume.as_bytes();
        raw.leg = *self.leg.as_bytes();
        raw.size = self.size.into();
        raw.slots = self.layout.slots.map(U64::new);
        raw.log = self.layout.log.into();
        raw.log_pages = self.layout.log_pages.into();
        raw.footer = self.layout.footer.into();
        raw.end = self.layout.end.into();
        raw.crc = crc32fast::hash(raw.as_bytes()).into();
        raw.as_bytes().to_vec()
    }

    /// From the 4096 bytes on disk.
    ///
    /// # Errors
    /// See [`FooterError`]; fewer than 4096 bytes are [`FooterError::NotMirrord`].
    pub fn decode(bytes: &[u8]) -> Result<Footer, FooterError> {
        let (mut raw, _) = RawFooter::read_from_prefix(bytes).map_err(|_| FooterError::NotMirrord)?;
        if raw.magic != MAGIC {
            return Err(FooterError::NotMirrord);
        }
        let crc = std::mem::take(&mut raw.crc);
        if crc != crc32fast::hash(raw.as_bytes()) {
            return Err(FooterError::Checksum);
        }
        match raw.version.get() {
            0 => return Err(FooterError::BadField { field: "version" }),
            FOOTER_VERSION => {}
            found => return Err(FooterError::NewerVersion { found }),
        }
        let layout = Layout {
            slots: raw.slots.map(U64::get),
            log: raw.log.get(),
            log_pages: raw.log_pages.get(),
            footer: raw.footer.get(),
            end: raw.end.get(),
        };
        if !layout.is_valid() {
            return Err(FooterError::BadField { field: "layout" });
        }
        let size = raw.size.get();
        if size == 0 || size > layout.room() {
            return Err(FooterError::BadField { field: "size" });
        }
        Ok(Footer { volume: Uuid::from_bytes(raw.volume), leg: Uuid::from_bytes(raw.leg), size, layout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        let layout = Layout::for_file(1 << 20, 256).unwrap();
        Footer { volume: Uuid::from_u128(7), leg: Uuid::from_u128(8), size: 1 << 20, layout }
    }

    fn patched(patch: impl Fn(&mut RawFooter)) -> Vec<u8> {
        let mut raw = RawFooter::read_from_bytes(&footer().encode()).unwrap();
        patch(&mut raw);
        raw.crc = 0.into();
        raw.crc = crc32fast::hash(raw.as_bytes()).into();
        raw.as_bytes().to_vec()
    }

    #[test]
    fn round_trip() {
        assert_eq!(Footer::decode(&footer().encode()), Ok(footer()));
    }

    #[test]
    fn each_fault_has_its_error() {
        let mut torn = footer().encode();
        torn[3000] ^= 1;
        let newer = patched(|raw| raw.version = 2.into());
        let moved = patched(|raw| raw.log = (raw.log.get() + 512).into());
        let large = patched(|raw| raw.size = ((1 << 20) + 1).into());
        let last = patched(|raw| raw.slots[0] = (u64::MAX - 4095).into());
        for (bytes, error) in [
            (vec![0; 4096], FooterError::NotMirrord),
            (footer().encode()[..4095].to_vec(), FooterError::NotMirrord),
            (torn, FooterError::Checksum),
            (newer, FooterError::NewerVersion { found: 2 }),
            (moved, FooterError::BadField { field: "layout" }),
            (last, FooterError::BadField { field: "layout" }),
            (large, FooterError::BadField { field: "size" }),
        ] {
            assert_eq!(Footer::decode(&bytes), Err(error));
        }
    }
}
