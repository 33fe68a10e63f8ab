//! What the runs exercised, counted, so that the simulator cannot silently stop exercising it.

/// Things worth having seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Saw {
    Request,
    SpanningRequest,
    WholeVolumeZero,
    Patch,
    DurableWrite,
    OkFlush,
    LegError,
    FailedRead,
    BadSectorRead,
    Repair,
    FailedRepair,
    RepairedAll,
    WornOutLeg,
    FailedFlush,
    FailedDeviceFlush,
    ErrorOnAllLegs,
    NoSpaceOnOneLeg,
    NoSpaceOnAllLegs,
    FailedCommit,
    FailedRecord,
    FailedFill,
    HungLeg,
    GivenUp,
    Refused,
    LateWrite,
    LateFailedFlush,
    Degraded,
    FailedLeg,
    Return,
    ReturnOfPulled,
    RoomAgain,
    Promote,
    Clear,
    RefusedMark,
    Copy,
    CopyOfZeroes,
    FlushBroken,
    PausedResync,
    Kill,
    KillAfterFailedFlush,
    DroppedCache,
    PowerCut,
    CrashInStart,
    TornSuperblock,
    BadLogSector,
    DegradedStart,
    ForcedStart,
    CleanStop,
    UncleanStop,
    StopUnderErrors,
    StopUnderLastingErrors,
    StartUnderLastingErrors,
    StartWithoutBadLeg,
    UnreadableLeg,
    UnreadableLog,
    DirtyStart,
    CleanStart,
    StartInSync,
    FailedByHand,
    Split,
    SplitSurvived,
    Merge,
    FullReturn,
    Added,
    SpareAdded,
    SpareUsed,
    Removed,
    Replaced,
    LeftOut,
    Stranger,
    ToldImage,
    LevelImage,
    AllImages,
    ReturnedImage,
    AnySource,
    Growth,
    GrowthCutShort,
    GrowthFoundLater,
    UncoveredLog,
    Scrub,
    CompleteScrub,
    PausedScrub,
    WaitingScrub,
    UnreadableInScrub,
    FoundDifference,
    RepairedDifference,
    CrashInScrub,
    RecordInCommit,
    CommitHungOverFailure,
    LostCommit,
    LogBack,
    MarkAhead,
    StartWithoutLog,
    CleanStopWithoutLog,
    CrashInCommit,
    CrashInOpen,
    Goodbye,
    RecentRecord,
    RecentStart,
    RecentStale,
    LeftOutForLong,
}

const KINDS: usize = Saw::LeftOutForLong as usize + 1;

#[rustfmt::skip]
const ALL: [Saw; KINDS] = {
    use Saw::*;
    [
        Request, SpanningRequest, WholeVolumeZero, Patch, DurableWrite, OkFlush, LegError, FailedRead,
        BadSectorRead, Repair, FailedRepair, RepairedAll, WornOutLeg,
        FailedFlush, FailedDeviceFlush, ErrorOnAllLegs, NoSpaceOnOneLeg, NoSpaceOnAllLegs, FailedCommit, FailedRecord,
        FailedFill, HungLeg, GivenUp, Refused, LateWrite, LateFailedFlush, Degraded, FailedLeg, Return, ReturnOfPulled, RoomAgain, Promote, Clear, RefusedMark,
        Copy, CopyOfZeroes, FlushBroken, PausedResync, Kill, KillAfterFailedFlush, DroppedCache, PowerCut, CrashInStart, TornSuperblock,
        BadLogSector, DegradedStart, ForcedStart, CleanStop, UncleanStop, StopUnderErrors, StopUnderLastingErrors,
        StartUnderLastingErrors, StartWithoutBadLeg, UnreadableLeg, UnreadableLog, DirtyStart,
        CleanStart, StartInSync, FailedByHand, Split, SplitSurvived, Merge, FullReturn,
        Added, SpareAdded, SpareUsed, Removed, Replaced, LeftOut, Stranger,
        ToldImage, LevelImage, AllImages, ReturnedImage, AnySource, Growth,
        GrowthCutShort, GrowthFoundLater, UncoveredLog,
        Scrub, CompleteScrub, PausedScrub, WaitingScrub, UnreadableInScrub, FoundDifference,
        RepairedDifference, CrashInScrub,
        RecordInCommit, CommitHungOverFailure, LostCommit, LogBack, MarkAhead, StartWithoutLog,
        CleanStopWithoutLog, CrashInCommit, CrashInOpen, Goodbye, RecentRecord, RecentStart, RecentStale, LeftOutForLong,
    ]
};

/// How often each was seen, and in how many runs.
#[derive(Clone)]
pub(crate) struct Coverage {
    times: [u64; KINDS],
    runs: [u64; KINDS],
    pub(crate) total_runs: u64,
    pub(crate) crashes: u64,
    pub(crate) steps: u64,
}

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage { times: [0; KINDS], runs: [0; KINDS], total_runs: 0, crashes: 0, steps: 0 }
    }
}

impl Coverage {
    pub(crate) fn saw(&mut self, what: Saw) {
        self.times[what as usize] += 1;
    }

    pub(crate) fn saw_if(&mut self, what: Saw, condition: bool) {
        self.times[what as usize] += u64::from(condition);
    }

    /// Adds what one run, or many, saw.
    pub(crate) fn add(&mut self, other: &Coverage) {
        let one_run = other.total_runs == 0;
        for i in 0..KINDS {
            self.times[i] += other.times[i];
            self.runs[i] += if one_run { u64::from(other.times[i] > 0) } else { other.runs[i] };
        }
        self.total_runs += if one_run { 1 } else { other.total_runs };
        self.crashes += other.crashes;
        self.steps += other.steps;
    }

    /// What was never seen.
    pub(crate) fn missed(&self) -> Vec<Saw> {
        ALL.into_iter().filter(|&what| self.times[what as usize] == 0).collect()
    }

    pub(crate) fn print(&self) {
        println!("{} runs, {} crashes and restarts, {} steps", self.total_runs, self.crashes, self.steps);
        for what in ALL {
            let (times, runs) = (self.times[what as usize], self.runs[what as usize]);
            println!("  {:<21} {times:>12} times in {runs:>10} runs", format!("{what:?}"));
        }
    }
}
