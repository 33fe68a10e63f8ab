//! The footer of a file that was made longer and got no new one: what is left if a crash comes while a leg's metadata
//! moves to a new end.
//!
//! Until the new footer is written the file ends with zeroes, and the footer in force is the last one before them,
//! behind which nothing lies but a part of the metadata that was to be. So the last pages that are not zero are
//! looked at, no more than such metadata has, and a footer counts only if it lies where it says that it does.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use mirrord_raid::MAX_REGIONS;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::footer::Footer;
use crate::layout::{PAGE, log_pages};

/// Pages with something in them that are looked at: slots and log of the most regions, and the footer.
const MOST_PAGES: u32 = log_pages(MAX_REGIONS as u32) + 3;

/// Bytes of zeroes that are read, where the file system does not tell where the holes are.
const MOST_ZEROES: u64 = 64 << 20;

/// The first stretch that is searched for data, in bytes; each further one is twice as long.
const FIRST_STRETCH: u64 = 1 << 20;

/// The footer in force of a leg in a file `len` bytes long that ends with a page of zeroes; `None` if it does not, or
/// there is none. Moves the file's cursor.
///
/// # Errors
/// When the file cannot be read.
pub fn lost_footer(file: &File, len: u64) -> io::Result<Option<Footer>> {
    let mut end = len / PAGE * PAGE;
    let (Some(last), mut page) = (end.checked_sub(PAGE), [0; PAGE as usize]) else { return Ok(None) };
    if !is_zero(file, last..len)? {
        return Ok(None);
    }
    let (mut pages, mut zeroes) = (0, 0);
    while let Some(data) = last_data(file, end)? {
        end = data.end;
        while end > data.start {
            let Some(at) = end.checked_sub(PAGE) else { return Ok(None) };
            file.read_exact_at(&mut page, at)?;
            if page == [0; PAGE as usize] {
                zeroes += PAGE;
            } else {
                pages += 1;
                if let Ok(footer) = Footer::decode(&page)
                    && footer.layout.footer == at
                {
                    return Ok(Some(footer));
                }
            }
            if pages > MOST_PAGES || zeroes > MOST_ZEROES {
                return Ok(None);
            }
            end = at;
        }
    }
    Ok(None)
}

/// The last stretch of data before `end`, a border of pages; rounded out to such.
fn last_data(file: &File, end: u64) -> io::Result<Option<Range<u64>>> {
    let mut stretch = FIRST_STRETCH;
    loop {
        let from = end.saturating_sub(stretch);
        let (mut at, mut last) = (from, None);
        while at < end {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < end => start,
                Ok(_) | Err(Errno::NXIO) => break,
                // It does not know: all may be data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(errno) => return Err(errno.into()),
            };
            let stop = seek(file, SeekFrom::Hole(start)).map_or(end, |stop| stop.clamp(start + 1, end));
            last = Some(start / PAGE * PAGE..stop.next_multiple_of(PAGE).min(end));
            at = stop;
        }
        if last.is_some() || from == 0 {
            return Ok(last);
        }
        stretch = stretch.saturating_mul(2);
    }
}

fn is_zero(file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}
