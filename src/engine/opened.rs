//! What the engine needs to know of legs that were opened.

use mirrord_log::Backing;
use mirrord_raid::LegMap;

use super::ServeError;
use super::worker::LegMeta;
use crate::start::Opened;

/// The unit of leg IO: the largest that any leg needs.
pub(super) fn block_size(opened: &Opened) -> Result<u32, ServeError> {
    let mut largest = 512;
    for (_, member) in opened.members.iter() {
        let Some(member) = member else { continue };
        let align = member.leg.data.offset_align();
        let fits = opened.geometry.size().is_multiple_of(align.into())
            && opened.geometry.region_size().is_multiple_of(align.into());
        if !fits {
            return Err(ServeError::BlockSize { path: member.leg.path.clone(), block_size: align });
        }
        largest = largest.max(align);
    }
    Ok(largest)
}

/// What IO on the volume is best a multiple of: the largest that any leg says.
pub(super) fn physical_block_size(opened: &Opened) -> u32 {
    let legs = opened.members.iter().filter_map(|(_, member)| member.as_ref());
    legs.map(|member| member.leg.data.physical_block()).max().unwrap_or(4096)
}

/// What the log worker needs of each leg.
pub(super) fn legs_metadata(mut opened: Opened) -> LegMap<Option<LegMeta>> {
    let metas = LegMap::from_fn(opened.members.len(), |leg| {
        opened.members[leg].take().map(|member| LegMeta {
            grows: member.leg.backing == Backing::File,
            hung: LegMeta::hung(&member.leg.data),
            data: member.leg.data,
            file: member.leg.meta,
            layout: member.metadata.layout,
            generation: member.metadata.generation,
        })
    });
    metas.filled(|| None)
}
