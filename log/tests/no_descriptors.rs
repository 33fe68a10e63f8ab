//! A process that may open no file any more still writes the metadata of those that it has: alone in its program, for the
//! limit is the whole process'.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use mirrord_log::{MetaIo, PageWrite, Target, TimeOut};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn no_descriptor_to_be_had_is_no_fault_of_a_leg() {
    let limit = Some(Duration::from_secs(60));
    let all = [MetaIo::new(), MetaIo::blocking()];
    let all = all.into_iter().flat_map(|io| {
        let timed = if io.kind() == "blocking" { MetaIo::blocking() } else { MetaIo::new() };
        [io, timed.with_time_out(TimeOut::new(limit))]
    });
    let mut all: Vec<MetaIo> = all.collect();
    let files: Vec<File> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Above the lowest number that a copy may have, and below all that are open.
    setrlimit(Resource::Nofile, Rlimit { current: Some(4), maximum }).unwrap();
    assert_eq!(files[0].try_clone().unwrap_err().raw_os_error(), Some(24));
    for (round, io) in all.iter_mut().enumerate() {
        let targets: Vec<_> = files.iter().map(|file| Target { file, base: 512, hung: None }).collect();
        let bytes = vec![round as u8 + 1; 4096];
        let results = io.write_and_sync(&targets, &[PageWrite { offset: 0, bytes: bytes.clone() }]);
        assert!(results.iter().all(Result::is_ok), "{io:?}: {results:?}");
        for file in &files {
            let mut there = vec![0; 4096];
            file.read_exact_at(&mut there, 512).unwrap();
            assert!(there == bytes);
        }
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
