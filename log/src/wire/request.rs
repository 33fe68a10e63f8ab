//! What a mirror asks of its log.

use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U64};

/// The numbers of requests (`DM_ULOG_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum RequestType {
    /// A table is loaded: construct the log.
    Ctr = 1,
    /// The table is gone.
    Dtr = 2,
    /// The mirror is about to be suspended.
    Presuspend = 3,
    /// The mirror is suspended.
    Postsuspend = 4,
    /// The mirror is (again) in use.
    Resume = 5,
    /// How large regions are.
    GetRegionSize = 6,
    /// Whether a region is clean. Not sent by the kernel's mirror.
    IsClean = 7,
    /// Whether a region is in sync.
    InSync = 8,
    /// Make marks and clears durable.
    Flush = 9,
    /// Regions are about to be written to.
    MarkRegion = 10,
    /// Regions are not written to any more.
    ClearRegion = 11,
    /// Which region to resync next.
    GetResyncWork = 12,
    /// A region was resynced, or that failed.
    SetRegionSync = 13,
    /// How many regions are in sync.
    GetSyncCount = 14,
    /// For `dmsetup status`.
    StatusInfo = 15,
    /// For `dmsetup table`. Not sent by the kernel.
    StatusTable = 16,
    /// Whether another machine resyncs a region.
    IsRemoteRecovering = 17,
}

impl RequestType {
    /// All of them, in order.
    pub const ALL: [RequestType; 17] = [
        RequestType::Ctr,
        RequestType::Dtr,
        RequestType::Presuspend,
        RequestType::Postsuspend,
        RequestType::Resume,
        RequestType::GetRegionSize,
        RequestType::IsClean,
        RequestType::InSync,
        RequestType::Flush,
        RequestType::MarkRegion,
        RequestType::ClearRegion,
        RequestType::GetResyncWork,
        RequestType::SetRegionSync,
        RequestType::GetSyncCount,
        RequestType::StatusInfo,
        RequestType::StatusTable,
        RequestType::IsRemoteRecovering,
    ];

    /// The type with this number.
    pub fn from_number(number: u32) -> Option<RequestType> {
        RequestType::ALL.get((number as usize).checked_sub(1)?).copied()
    }
}

/// Most bytes of a status: it is made from words of the text that the kernel constructed the log with, which fits into
/// the kernel's buffer of 512 bytes with both headers (20 of the connector, 160 of the message).
const STATUS_ROOM: usize = 512 - 20 - 160;

/// Bytes of data in the answer to a request that the kernel asks again after it lost its server; the others have none.
pub(super) fn answer_room(request_type: u32) -> usize {
    match RequestType::from_number(request_type) {
        Some(RequestType::IsClean | RequestType::InSync | RequestType::GetSyncCount) => 8,
        Some(RequestType::GetResyncWork | RequestType::IsRemoteRecovering) => 16,
        Some(RequestType::StatusInfo) => STATUS_ROOM,
        _ => 0,
    }
}

/// Why the data of a message is not a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such type.
    #[error("there is no request {number}")]
    Unknown {
        /// Its number.
        number: u32,
    },
    /// Its data has another length than such a request has.
    #[error("{len} bytes of data do not make a request {number}")]
    Length {
        /// Its number.
        number: u32,
        /// Bytes of data.
        len: usize,
    },
}

/// Regions of a request, as they were sent: whether the log has them all is not known yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regions<'a>(&'a [U64]);

impl<'a> Regions<'a> {
    /// None.
    pub const NONE: Regions<'static> = Regions(&[]);

    /// These.
    pub fn new(regions: &'a [U64]) -> Regions<'a> {
        Regions(regions)
    }

    fn decode(data: &'a [u8]) -> Option<Regions<'a>> {
        <[U64]>::ref_from_bytes(data).ok().map(Regions)
    }

    /// Their numbers, in the order in which they were sent.
    pub fn iter(self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.0.iter().map(|region| region.get())
    }

    /// How many.
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// What a mirror asks of its log. Regions are numbers that the sender chose; a log checks them against its size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Request<'a> {
    /// `"<length in sectors> <kind> <arguments>"`, as bytes without the NUL. `again`: with a NUL behind it, which tells
    /// that the mirror had the log before and lost the server.
    Ctr {
        /// See [`super::TableArgs`].
        text: &'a [u8],
        /// It lost the server and constructs anew.
        again: bool,
    },
    /// See [`RequestType::Dtr`].
    Dtr,
    /// See [`RequestType::Presuspend`].
    Presuspend,
    /// See [`RequestType::Postsuspend`].
    Postsuspend,
    /// See [`RequestType::Resume`].
    Resume,
    /// See [`RequestType::GetRegionSize`].
    GetRegionSize,
    /// See [`RequestType::IsClean`].
    IsClean(u64),
    /// See [`RequestType::InSync`].
    InSync(u64),
    /// Regions: marks that are to be made before (integrated flush).
    Flush(Regions<'a>),
    /// See [`RequestType::MarkRegion`].
    MarkRegion(Regions<'a>),
    /// See [`RequestType::ClearRegion`].
    ClearRegion(Regions<'a>),
    /// See [`RequestType::GetResyncWork`].
    GetResyncWork,
    /// See [`RequestType::SetRegionSync`].
    SetRegionSync {
        /// Which.
        region: u64,
        /// It is the same on every leg now.
        in_sync: bool,
    },
    /// See [`RequestType::GetSyncCount`].
    GetSyncCount,
    /// See [`RequestType::StatusInfo`].
    StatusInfo,
    /// See [`RequestType::StatusTable`].
    StatusTable,
    /// See [`RequestType::IsRemoteRecovering`].
    IsRemoteRecovering(u64),
}

impl<'a> Request<'a> {
    pub(super) fn decode(number: u32, data: &'a [u8]) -> Result<Request<'a>, RequestError> {
        use RequestType as Type;
        let len = data.len();
        let wrong = RequestError::Length { number, len };
        let regions = || Regions::decode(data).ok_or(wrong);
        let region = || U64::read_from_bytes(data).map(|region| region.get()).map_err(|_| wrong);
        // The kernel sends some of these with what is left in its buffer; nothing of it means anything.
        let request_type = Type::from_number(number).ok_or(RequestError::Unknown { number })?;
        Ok(match request_type {
            Type::Ctr => match data.split_last() {
                Some((0, text)) => Request::Ctr { text, again: true },
                Some(_) => Request::Ctr { text: data, again: false },
                None => return Err(wrong),
            },
            Type::Dtr => Request::Dtr,
            Type::Presuspend => Request::Presuspend,
            Type::Postsuspend => Request::Postsuspend,
            Type::Resume => Request::Resume,
            Type::GetRegionSize => Request::GetRegionSize,
            Type::IsClean => Request::IsClean(region()?),
            Type::InSync => Request::InSync(region()?),
            Type::Flush => Request::Flush(regions()?),
            Type::MarkRegion => Request::MarkRegion(regions()?),
            Type::ClearRegion => Request::ClearRegion(regions()?),
            Type::GetResyncWork => Request::GetResyncWork,
            Type::SetRegionSync => {
                let (region, rest) = U64::read_from_prefix(data).map_err(|_| wrong)?;
                let in_sync = I64::read_from_bytes(rest).map_err(|_| wrong)?;
                Request::SetRegionSync { region: region.get(), in_sync: in_sync.get() != 0 }
            }
            Type::GetSyncCount => Request::GetSyncCount,
            Type::StatusInfo => Request::StatusInfo,
            Type::StatusTable => Request::StatusTable,
            Type::IsRemoteRecovering => Request::IsRemoteRecovering(region()?),
        })
    }

    /// Its number.
    pub fn request_type(&self) -> RequestType {
        use RequestType as Type;
        match self {
            Request::Ctr { .. } => Type::Ctr,
            Request::Dtr => Type::Dtr,
            Request::Presuspend => Type::Presuspend,
            Request::Postsuspend => Type::Postsuspend,
            Request::Resume => Type::Resume,
            Request::GetRegionSize => Type::GetRegionSize,
            Request::IsClean(_) => Type::IsClean,
            Request::InSync(_) => Type::InSync,
            Request::Flush(_) => Type::Flush,
            Request::MarkRegion(_) => Type::MarkRegion,
            Request::ClearRegion(_) => Type::ClearRegion,
            Request::GetResyncWork => Type::GetResyncWork,
            Request::SetRegionSync { .. } => Type::SetRegionSync,
            Request::GetSyncCount => Type::GetSyncCount,
            Request::StatusInfo => Type::StatusInfo,
            Request::StatusTable => Type::StatusTable,
            Request::IsRemoteRecovering(_) => Type::IsRemoteRecovering,
        }
    }

    /// Only a mirror that is in use asks this.
    pub fn is_about_regions(&self) -> bool {
        use Request as R;
        matches!(
            self,
            R::IsClean(_)
                | R::InSync(_)
                | R::Flush(_)
                | R::MarkRegion(_)
                | R::ClearRegion(_)
                | R::GetResyncWork
                | R::SetRegionSync { .. }
                | R::IsRemoteRecovering(_)
        )
    }

    pub(super) fn encode_data(&self, to: &mut Vec<u8>) {
        match *self {
            Request::Ctr { text, again } => {
                to.extend_from_slice(text);
                if again {
                    to.push(0);
                }
            }
            Request::IsClean(region) | Request::InSync(region) | Request::IsRemoteRecovering(region) => {
                to.extend_from_slice(&region.to_le_bytes());
            }
            Request::Flush(regions) | Request::MarkRegion(regions) | Request::ClearRegion(regions) => {
                regions.iter().for_each(|region| to.extend_from_slice(&region.to_le_bytes()));
            }
            Request::SetRegionSync { region, in_sync } => {
                to.extend_from_slice(&region.to_le_bytes());
                to.extend_from_slice(&i64::from(in_sync).to_le_bytes());
            }
            _ => {}
        }
    }
}
