//! What is done to a volume: the cells of the tables, the same for every contender.

/// What a workload does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Writes at random places.
    RandomWrite,
    /// Reads at random places.
    RandomRead,
    /// Writes one after the other.
    SequentialWrite,
    /// Reads one after the other.
    SequentialRead,
}

/// One cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Workload {
    /// What.
    pub(crate) access: Access,
    /// Bytes per request.
    pub(crate) block: u32,
    /// Requests in flight.
    pub(crate) depth: u32,
}

impl Workload {
    /// The cells that every front end is measured in.
    pub(crate) const ALL: [Workload; 4] =
        [Workload::RANDOM_WRITE, Workload::SINGLE_WRITE, Workload::RANDOM_READ, Workload::SEQUENTIAL_WRITE];
    /// 4 KiB random writes, 32 in flight.
    pub(crate) const RANDOM_WRITE: Workload =
        Workload { access: Access::RandomWrite, block: 4096, depth: 32 };
    /// 4 KiB random writes, one at a time.
    pub(crate) const SINGLE_WRITE: Workload = Workload { depth: 1, ..Workload::RANDOM_WRITE };
    /// 4 KiB random reads, 32 in flight.
    pub(crate) const RANDOM_READ: Workload = Workload { access: Access::RandomRead, block: 4096, depth: 32 };
    /// 128 KiB sequential writes, 8 in flight.
    pub(crate) const SEQUENTIAL_WRITE: Workload =
        Workload { access: Access::SequentialWrite, block: 128 << 10, depth: 8 };

    /// The same with so much in flight that it reaches every region in a short time.
    pub(crate) fn warming(&self) -> Workload {
        Workload { depth: self.depth.max(32), ..*self }
    }

    /// 4 KiB random reads, one at a time.
    pub(crate) const SINGLE_READ: Workload = Workload { depth: 1, ..Workload::RANDOM_READ };
    /// 128 KiB sequential reads, 8 in flight.
    pub(crate) const SEQUENTIAL_READ: Workload =
        Workload { access: Access::SequentialRead, ..Workload::SEQUENTIAL_WRITE };

    /// Whether it writes.
    pub(crate) fn writes(&self) -> bool {
        matches!(self.access, Access::RandomWrite | Access::SequentialWrite)
    }

    /// As fio's `rw=` calls it.
    pub(crate) fn fio_rw(&self) -> &'static str {
        match self.access {
            Access::RandomWrite => "randwrite",
            Access::RandomRead => "randread",
            Access::SequentialWrite => "write",
            Access::SequentialRead => "read",
        }
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.access {
            Access::RandomWrite => "random write",
            Access::RandomRead => "random read",
            Access::SequentialWrite => "sequential write",
            Access::SequentialRead => "sequential read",
        };
        write!(f, "{} KiB {what}, qd {}", self.block >> 10, self.depth)
    }
}
