//! A mirrored volume as the fixture of a test: `cargo run --example fixture` shows it, `cargo test --example fixture`
//! runs it as a test. In another project, mirrord is a dependency of the tests:
//!
//! ```toml
//! [dev-dependencies]
//! mirrord = { git = "..." }
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use mirrord::testing::TestVolume;

const SIZE: u64 = 16 << 20;

/// What is tested: a program that keeps numbers on a disk, each durable when it is told so.
fn keep_numbers(disk: &Path, from: u64, to: u64) -> std::io::Result<()> {
    let disk = File::options().write(true).open(disk)?;
    for number in from..to {
        disk.write_all_at(&number.to_le_bytes(), number * 4096)?;
    }
    disk.sync_all()
}

fn numbers_kept(disk: &Path) -> std::io::Result<u64> {
    let bytes = fs::read(disk)?;
    let at = |number: u64| &bytes[number as usize * 4096..][..8];
    Ok((0..SIZE / 4096).take_while(|&number| at(number) == number.to_le_bytes()).count() as u64)
}

/// The test: a disk fails half way, and nobody notices.
fn a_disk_fails(fixture: &TestVolume) -> Result<(), Box<dyn Error>> {
    keep_numbers(fixture.path(), 0, 1000)?;
    let volume = fixture.volume();
    volume.fail_leg(volume.find_leg("1")?)?;
    keep_numbers(fixture.path(), 1000, 2000)?;
    assert_eq!(numbers_kept(fixture.path())?, 2000);

    // What is on each leg, once the volume is stopped.
    assert_eq!(volume.status().legs[1].state, "failed");
    fixture.stop()?;
    assert_eq!(numbers_kept(&fixture.legs()[0])?, 2000);
    assert_eq!(numbers_kept(&fixture.legs()[1])?, 1000);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let fixture = TestVolume::create(SIZE, 2)?;
    println!(
        "{} of {} and {}",
        fixture.path().display(),
        fixture.legs()[0].display(),
        fixture.legs()[1].display()
    );
    a_disk_fails(&fixture)?;
    println!("a disk failed, and all numbers are there");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outlive_a_disk() {
        if File::options().read(true).write(true).open("/dev/fuse").is_err() {
            println!("SKIP: a volume as a fixture: /dev/fuse cannot be opened");
            return;
        }
        let fixture = TestVolume::create(SIZE, 2).unwrap();
        a_disk_fails(&fixture).unwrap();
        let folder = fixture.path().parent().unwrap().to_owned();
        drop(fixture);
        assert!(!folder.exists());
    }

    #[test]
    fn one_leg_is_no_mirror() {
        let error = TestVolume::create(SIZE, 1).err().unwrap();
        assert!(error.to_string().contains("2 to 8 legs"), "{error}");
    }

    /// A test that fails, or forgets to close the file, leaves nothing behind.
    #[test]
    fn a_volume_in_use_goes_all_the_same() {
        if File::options().read(true).write(true).open("/dev/fuse").is_err() {
            println!("SKIP: a volume as a fixture: /dev/fuse cannot be opened");
            return;
        }
        let fixture = TestVolume::create(SIZE, 3).unwrap();
        let open = File::options().read(true).write(true).open(fixture.path()).unwrap();
        assert!(fixture.stop().is_err(), "it is in use");
        let folder = fixture.path().parent().unwrap().to_owned();
        drop(fixture);
        assert!(open.write_all_at(b"late", 0).is_err());
        assert!(!folder.exists());
    }
}
