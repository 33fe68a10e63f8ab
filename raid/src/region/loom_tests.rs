//! `RUSTFLAGS="--cfg loom" cargo test -p mirrord-raid --release loom`
use super::*;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;

/// A table of one dirty region, in which a write begins.
fn written_to_while_dirty() -> (Arc<RegionTable>, loom::thread::JoinHandle<Begin>) {
    let table = Arc::new(RegionTable::new(1));
    table.assume_dirty(Region(0));
    let writer = {
        let table = table.clone();
        loom::thread::spawn(move || table.begin_write(Region(0)))
    };
    (table, writer)
}

/// A writer against a clear: a write that was let through without a mark is never in a region
/// that ended clean.
#[test]
fn loom_write_against_clear() {
    loom::model(|| {
        let (table, writer) = written_to_while_dirty();
        let cleaned = table.start_cleaning(Region(0), true) && table.finish_cleaning(Region(0)).is_some();
        let begun = writer.join().unwrap();
        match begun {
            Begin::Write => assert_eq!(table.state(Region(0)), RegionState::Dirty),
            Begin::Mark => {
                assert!(cleaned);
                assert_eq!(table.state(Region(0)), RegionState::Marking);
            }
        }
        assert_eq!(table.unclean(), 1);
        assert_eq!(table.writes(Region(0)), 1);
    });
}

/// A writer against a look that keeps a region and one that clears it: a write that was let through is never in a region
/// of which the superblocks say that it is not written to.
#[test]
fn loom_write_against_keep() {
    loom::model(|| {
        let (table, writer) = written_to_while_dirty();
        let kept = table.start_cleaning(Region(0), true) && table.keep(Region(0)) == RegionState::Cleaning;
        let cleared = kept && table.finish_cleaning(Region(0)).is_some();
        let begun = writer.join().unwrap();
        let (want, state) = match (kept, cleared) {
            (false, _) => (Begin::Write, RegionState::Dirty),
            (true, false) => (Begin::Mark, RegionState::Renewing),
            (true, true) => (Begin::Mark, RegionState::Marking),
        };
        assert_eq!((begun, table.state(Region(0))), (want, state));
        assert_eq!((table.unclean(), table.writes(Region(0))), (1, 1));
    });
}

/// A mark for a copy, and a writer. No write starts before the superblocks record it, even after a record has failed.
#[test]
fn loom_write_where_a_region_is_kept_and_renewed() {
    loom::model(|| {
        let table = Arc::new(RegionTable::new(1));
        let told = Arc::new(AtomicBool::new(false));
        assert!(table.want_mark(Region(0)));
        let writer = {
            let (table, told) = (table.clone(), told.clone());
            loom::thread::spawn(move || {
                if table.begin_write(Region(0)) == Begin::Write {
                    assert!(told.load(SeqCst), "wrote before the superblocks said so");
                }
                table.end_write(Region(0));
            })
        };
        table.keep(Region(0));
        table.mark_failed(Region(0));
        assert!(table.state(Region(0)).is_durable(), "its bit is durable");
        told.store(true, SeqCst);
        table.marked(Region(0));
        writer.join().unwrap();
        assert_eq!(table.state(Region(0)), RegionState::Dirty);
        assert_eq!((table.unclean(), table.writes(Region(0))), (1, 0));
    });
}

/// A writer against a look for unclean regions that passes over clean blocks: the next look finds the region.
#[test]
fn loom_write_against_a_look() {
    loom::model(|| {
        let table = Arc::new(RegionTable::new(1));
        table.assume_dirty(Region(0));
        assert!(table.start_cleaning(Region(0), true) && table.finish_cleaning(Region(0)).is_some());
        let writer = {
            let table = table.clone();
            loom::thread::spawn(move || table.begin_write(Region(0)))
        };
        let mut found = Vec::new();
        assert_eq!(table.find_unclean(0, 64, &mut found), None);
        writer.join().unwrap();
        found.clear();
        let _ = table.find_unclean(0, 64, &mut found);
        assert_eq!(found, [Region(0)]);
    });
}

/// Two writers and the worker that marks: no write starts before the mark is durable. The worker's
/// thread is the second writer too: with a third thread it takes minutes.
#[test]
fn loom_two_writers_and_a_mark() {
    loom::model(|| {
        let table = Arc::new(RegionTable::new(1));
        let durable = Arc::new(AtomicBool::new(false));
        let write = |table: &RegionTable, durable: &AtomicBool| {
            if table.begin_write(Region(0)) == Begin::Write {
                assert!(durable.load(SeqCst), "wrote before the mark was durable");
            }
            table.end_write(Region(0));
        };
        let writer = {
            let (table, durable) = (table.clone(), durable.clone());
            loom::thread::spawn(move || write(&table, &durable))
        };
        write(&table, &durable);
        if table.want_mark(Region(0)) {
            durable.store(true, SeqCst);
            table.marked(Region(0));
        }
        writer.join().unwrap();
        assert_eq!(table.writes(Region(0)), 0);
        assert_eq!(table.unclean(), 1);
    });
}
