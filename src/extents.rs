//! Where a file holds data and where it is a hole.
//!
//! Asks the file system (SEEK_DATA, SEEK_HOLE); where it does not know, and on devices, everything
//! counts as data. A file that was filled with zeroes is told from one with data by reading, up to a
//! limit. Moves the cursor of the file, which nobody here uses otherwise.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use mirrord_raid::{Geometry, Region};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// How much is read to find out whether it is only zeroes: a second or so.
const ZERO_SCAN: u64 = 256 << 20;

/// The first stretch of data in `range`.
pub(crate) fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(range.start)) {
        Ok(start) if start < range.end => start.max(range.start),
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(range)),
        Err(errno) => return Err(errno.into()),
    };
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(range.end);
    Ok(Some(start..end.clamp(start + 1, range.end)))
}

/// Whether anything but holes and zeroes is in `range`. After [`ZERO_SCAN`] bytes of zeroes the rest
/// counts as data.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn has_data(file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut buf = vec![0; 1 << 20];
    let (mut at, mut left) = (range.start, ZERO_SCAN);
    while let Some(data) = next_data(file, at..range.end)? {
        at = data.start;
        while at < data.end {
            let len = (data.end - at).min(buf.len() as u64);
            if len > left {
                return Ok(true);
            }
            let read = match file.read_at(&mut buf[..len as usize], at) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buf[..read].iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            at += read as u64;
            left -= read as u64;
        }
    }
    Ok(false)
}

/// Calls `each` for every region in which the file is not all hole, in order, each once.
///
/// # Errors
/// When the file system cannot be asked.
pub(crate) fn data_regions(file: &File, geometry: Geometry, mut each: impl FnMut(Region)) -> io::Result<()> {
    let mut at = 0;
    while let Some(data) = next_data(file, at..geometry.size())? {
        for (region, _, _) in geometry.parts(data.start, data.end - data.start) {
            each(region);
        }
        let last = geometry.region_at(data.end - 1);
        at = geometry.region_start(last) + geometry.region_len(last);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_by_region() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        assert!(!has_data(&file, 0..16 << 20).unwrap());
        let geometry = Geometry::new(16 << 20, 1 << 20).unwrap();
        for at in [3 << 20, (3 << 20) + 700_000, (7 << 20) - 1, 9 << 20] {
            file.write_all_at(&[1], at).unwrap();
        }
        file.write_all_at(&[0; 5000], 12 << 20).unwrap();
        let mut regions = Vec::new();
        data_regions(&file, geometry, |region| regions.push(region.0)).unwrap();
        // A file system without holes has data everywhere.
        for region in [3, 6, 9, 12] {
            assert!(regions.contains(&region), "{regions:?}");
        }
        assert!(regions.is_sorted() && regions.len() <= 16);
        assert!(has_data(&file, 0..16 << 20).unwrap());
        assert!(has_data(&file, (7 << 20) - 1..7 << 20).unwrap());
        assert!(!has_data(&file, 4 << 20..6 << 20).unwrap());
        assert!(!has_data(&file, 10 << 20..16 << 20).unwrap(), "written zeroes are no data");
    }
}
