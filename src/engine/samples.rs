//! Samples of legs that are said to be equal: the beginning and the end of the volume, where file systems write when
//! they are mounted, and blocks spread over the rest.
//!
//! What the log calls dirty may differ and is left out. What differs elsewhere was written by somebody else, or lost;
//! in blocks that are no samples that goes unnoticed here.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use mirrord_log::DirtyLog;
use mirrord_raid::{Geometry, Leg, LegState, Region};
use mirrord_ublk::{Buffer, BufferPool, LegFile, PoolConfig};
use rustix::fs::{Advice, fadvise};

use super::ServeError;
use crate::stamp;
use crate::start::{Member, Opened};

/// Compared at the beginning of the volume, in bytes.
const HEAD: u64 = 2 << 20;

/// And at its end.
const TAIL: u64 = 1 << 20;

/// Blocks between, and how long each is in bytes.
const BLOCKS: u64 = 64;
const BLOCK: u64 = 16 << 10;

/// How much is read at a time, in bytes.
const CHUNK: u64 = 256 << 10;

/// The first byte in which two legs were seen to differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Differ {
    pub(super) one: Leg,
    pub(super) other: Leg,
    /// In bytes of the volume.
    pub(super) offset: u64,
}

/// What is looked at of a volume of `size` bytes.
fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    let block = move |index: u64| {
        let start = (size / BLOCKS * index) / BLOCK * BLOCK;
        start..(start + BLOCK).min(size)
    };
    let ends = [0..HEAD.min(size), size.saturating_sub(TAIL) / BLOCK * BLOCK..size];
    ends.into_iter().chain((0..BLOCKS).map(block))
}

/// Where two of these legs differ although the region is clean. What cannot be read is left out.
///
/// # Errors
/// When there is no memory to read to.
pub(super) fn differ(
    legs: &[(Leg, &LegFile)],
    geometry: Geometry,
    is_clean: impl Fn(Region) -> bool,
) -> io::Result<Option<Differ>> {
    let [(one, first), others @ ..] = legs else { return Ok(None) };
    let pool =
        BufferPool::new(PoolConfig { small_len: CHUNK as usize, small_count: 2, ..PoolConfig::default() })?;
    let (mut left, mut right) = (pool.take(CHUNK as usize), pool.take(CHUNK as usize));
    for (_, file) in legs {
        // What was written to the disk below a file or device is not in the page cache.
        let _ = fadvise(file.file(), 0, None, Advice::DontNeed);
    }
    for range in ranges(geometry.size()) {
        for (region, start, len) in geometry.parts(range.start, range.end - range.start) {
            for offset in (start..start + len).step_by(CHUNK as usize) {
                let len = CHUNK.min(start + len - offset);
                if !is_clean(region) || !read(first, &mut left, offset, len) {
                    continue;
                }
                for (other, file) in others {
                    if !read(file, &mut right, offset, len) {
                        continue;
                    }
                    let is_equal =
                        |left: &Buffer, right: &Buffer| left[..len as usize] == right[..len as usize];
                    // A write since the region was found clean has marked it before.
                    if is_equal(&left, &right)
                        || !is_clean(region)
                        || !read(first, &mut left, offset, len)
                        || !read(file, &mut right, offset, len)
                        || is_equal(&left, &right)
                        || !is_clean(region)
                    {
                        continue;
                    }
                    let at = left.iter().zip(right.iter()).position(|(left, right)| left != right);
                    return Ok(at.map(|at| Differ { one: *one, other: *other, offset: offset + at as u64 }));
                }
            }
        }
    }
    Ok(None)
}

fn read(file: &LegFile, buffer: &mut Buffer, offset: u64, len: u64) -> bool {
    file.file().read_exact_at(&mut buffer[..len as usize], offset).is_ok()
}

/// Looks at the legs of a volume before anything is written to them: those that its record says to be in sync have to
/// be equal where the log is clean. If they are not, all of it is made dirty where a source was named or only one leg
/// counts; else the start is refused. Says what the user should know.
///
/// # Errors
/// [`ServeError::WrittenTo`], [`ServeError::Differ`].
pub(super) fn examine(opened: &Opened, log: &mut dyn DirtyLog) -> Result<Option<String>, ServeError> {
    let geometry = opened.geometry;
    if log.dirty_count() == u64::from(geometry.regions()) {
        return Ok(None);
    }
    let recorded = |leg: Leg| opened.authority().legs.get(leg.index()).map(|entry| entry.state);
    let states = opened.assembly.states(&[]);
    let present: Vec<(Leg, &Member)> = opened
        .members
        .iter()
        .filter_map(|(leg, member)| Some((leg, member.as_ref()?)))
        .filter(|&(leg, _)| states[leg].is_in_use() && !opened.assembly.copy_whole.contains(leg))
        .collect();
    let (in_sync, behind): (Vec<_>, Vec<_>) =
        present.into_iter().partition(|&(leg, _)| recorded(leg) == Some(LegState::InSync));
    let path =
        |leg: Leg| opened.members[leg].as_ref().map(|member| member.leg.path.clone()).unwrap_or_default();
    let written = |legs: &[(Leg, &Member)]| {
        let is_it = |(_, member): &&(Leg, &Member)| {
            stamp::was_written_to(&member.leg.meta, member.metadata.superblock.event_count)
        };
        legs.iter().find(is_it).map(|&(leg, _)| leg)
    };
    let compare = |legs: &[(Leg, &Member)], log: &dyn DirtyLog| {
        let files: Vec<_> = legs.iter().map(|(leg, member)| (*leg, &*member.leg.data)).collect();
        differ(&files, geometry, |region| log.is_clean(region)).map_err(ServeError::Engine)
    };
    let mut why = written(&in_sync).map(|leg| (path(leg), None));
    if why.is_none() {
        why = compare(&in_sync, log)?
            .map(|differ| (path(differ.one), Some((path(differ.other), differ.offset))));
    }
    match why {
        Some((path, None)) if in_sync.len() > 1 && !opened.is_forced() => {
            return Err(ServeError::WrittenTo { path });
        }
        Some((one, Some((other, offset)))) if !opened.is_forced() => {
            return Err(ServeError::Differ { one, other, offset });
        }
        _ => {}
    }
    let source =
        opened.members[opened.assembly.source].as_ref().map(|member| (opened.assembly.source, member));
    if why.is_none() {
        let with_source: Vec<_> = source.into_iter().chain(behind.iter().copied()).collect();
        why = written(&behind).map(|leg| (path(leg), None));
        if why.is_none() {
            why = compare(&with_source, log)?.map(|differ| (path(differ.other), None));
        }
    }
    let Some((path, _)) = why else { return Ok(None) };
    log.mark_all();
    Ok(Some(format!("leg {} was written to while it was not served: everything is copied", path.display())))
}

/// From now on the legs in use are written to.
pub(super) fn take_stamps_away(opened: &Opened) {
    let states = opened.assembly.states(&[]);
    for (_, member) in opened.members.iter().filter(|&(leg, _)| states[leg].is_in_use()) {
        member.iter().for_each(|member| stamp::take_away(&member.leg.meta));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(dir: &std::path::Path, name: &str, size: u64) -> LegFile {
        let path = dir.join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        LegFile::open(path, true).unwrap()
    }

    #[test]
    fn samples_lie_in_the_volume_and_reach_both_ends() {
        for size in [4096, 12288, 1 << 20, 3 << 20, (1 << 30) + 512, 1 << 40] {
            let ranges: Vec<_> = ranges(size).collect();
            assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size), "{size}");
            assert!(
                ranges.iter().any(|range| range.start == 0) && ranges.iter().any(|range| range.end == size)
            );
            assert!(ranges.iter().map(|range| range.end - range.start).sum::<u64>() <= 5 << 20);
        }
    }

    #[test]
    fn a_difference_is_found_in_clean_regions_only() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let size = 64 << 20;
        let geometry = Geometry::new(size, 1 << 20).unwrap();
        let files = ["a", "b", "c"].map(|name| leg(dir.path(), name, size));
        let legs = || files.iter().enumerate().map(|(leg, file)| (Leg::new(leg), file)).collect::<Vec<_>>();
        assert_eq!(differ(&legs(), geometry, |_| true).unwrap(), None);
        for at in [0, 1_500_000, 33 << 20, size - 1] {
            let write = |byte: u8| {
                let file = std::fs::File::options().write(true).open(dir.path().join("c")).unwrap();
                file.write_all_at(&[byte], at).unwrap();
                file.sync_all().unwrap();
            };
            write(1);
            let found = differ(&legs(), geometry, |_| true).unwrap();
            assert_eq!(found, Some(Differ { one: Leg::new(0), other: Leg::new(2), offset: at }));
            let dirty = geometry.region_at(at);
            assert_eq!(differ(&legs(), geometry, |region| region != dirty).unwrap(), None);
            write(0);
        }
    }
}
