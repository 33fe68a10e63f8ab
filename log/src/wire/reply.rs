//! What a mirror is answered.

use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U64};

use mirrord_raid::{Errno, Region};

use super::request::RequestType;

/// Why the data of a message is not the answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{len} bytes of data do not answer a request {}", *.to as u32)]
pub struct ReplyError {
    /// What it ought to answer.
    pub to: RequestType,
    /// Bytes of data.
    pub len: usize,
}

/// A region to resync, or that there is none now.
pub type Work = Option<Region>;

/// What a mirror is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// It is done, or begun; there is nothing to tell.
    Done,
    /// It could not be done.
    Failed(Errno),
    /// To [`RequestType::Ctr`] of a log on a device: what the mirror is to hold on to, as a path or `MAJOR:MINOR`.
    Device(&'a str),
    /// To [`RequestType::GetRegionSize`], in sectors, and [`RequestType::GetSyncCount`].
    Count(u64),
    /// To [`RequestType::IsClean`] and [`RequestType::InSync`].
    Is(bool),
    /// To [`RequestType::GetResyncWork`].
    Work(Work),
    /// To [`RequestType::IsRemoteRecovering`].
    RemoteRecovering {
        /// A write to the region has to wait.
        is_recovering: bool,
        /// Regions below need not be asked for; as many as the log has: all of it is in sync.
        in_sync_hint: u64,
    },
    /// To [`RequestType::StatusInfo`] and [`RequestType::StatusTable`].
    Text(&'a str),
}

impl<'a> Reply<'a> {
    pub(super) fn decode(to: RequestType, error: i32, data: &'a [u8]) -> Result<Reply<'a>, ReplyError> {
        use RequestType as Type;
        let wrong = ReplyError { to, len: data.len() };
        if error != 0 {
            return Ok(Reply::Failed(Errno(error.checked_abs().unwrap_or(i32::MAX))));
        }
        let number = || U64::read_from_bytes(data).map(|number| number.get()).map_err(|_| wrong);
        let pair = || -> Result<(i64, u64), ReplyError> {
            let (first, rest) = I64::read_from_prefix(data).map_err(|_| wrong)?;
            let second = U64::read_from_bytes(rest).map_err(|_| wrong)?;
            Ok((first.get(), second.get()))
        };
        let text = || {
            let data = data.strip_suffix(&[0]).unwrap_or(data);
            if data.contains(&0) { Err(wrong) } else { std::str::from_utf8(data).map_err(|_| wrong) }
        };
        Ok(match to {
            Type::Ctr if data.is_empty() => Reply::Done,
            Type::Ctr => Reply::Device(text()?),
            Type::GetRegionSize | Type::GetSyncCount => Reply::Count(number()?),
            // Exactly 1: the kernel takes nothing else for a yes.
            Type::IsClean | Type::InSync => Reply::Is(number()? == 1),
            Type::GetResyncWork => match pair()? {
                (0, _) => Reply::Work(None),
                (_, region) => Reply::Work(Some(Region(u32::try_from(region).map_err(|_| wrong)?))),
            },
            Type::IsRemoteRecovering => {
                let (is_recovering, in_sync_hint) = pair()?;
                Reply::RemoteRecovering { is_recovering: is_recovering != 0, in_sync_hint }
            }
            Type::StatusInfo | Type::StatusTable => Reply::Text(text()?),
            _ if data.is_empty() => Reply::Done,
            _ => return Err(wrong),
        })
    }

    /// 0, or a negative error number, as it is sent.
    pub fn error(&self) -> i32 {
        if let Reply::Failed(errno) = self { -errno.0 } else { 0 }
    }

    pub(super) fn encode_data(&self, to: &mut Vec<u8>) {
        let mut pair = |first: i64, second: u64| {
            to.extend_from_slice(&first.to_le_bytes());
            to.extend_from_slice(&second.to_le_bytes());
        };
        match *self {
            Reply::Done | Reply::Failed(_) => {}
            Reply::Device(name) => {
                to.extend_from_slice(name.as_bytes());
                to.push(0);
            }
            Reply::Count(count) => to.extend_from_slice(&count.to_le_bytes()),
            Reply::Is(is) => to.extend_from_slice(&i64::from(is).to_le_bytes()),
            Reply::Work(work) => pair(i64::from(work.is_some()), work.map_or(0, |region| region.0.into())),
            Reply::RemoteRecovering { is_recovering, in_sync_hint } => {
                pair(i64::from(is_recovering), in_sync_hint);
            }
            // Without a NUL, as the kernel is used to.
            Reply::Text(text) => to.extend_from_slice(text.as_bytes()),
        }
    }
}
