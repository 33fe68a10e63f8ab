//! Anything at all: messages made again byte for byte, and bytes that are none.

use mirrord_log::wire::{
    Frame, LogName, Regions, Reply, Request, RequestType, TableArgs, encode_answer, encode_request, netlink,
};
use mirrord_raid::{Errno, Region};
use proptest::prelude::*;
use zerocopy::little_endian::U64;

use crate::model;

fn uuid() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1..=255u8, 0..=128)
}

fn reply_of<'a>(to: RequestType, numbers: (u64, u64), flag: bool, text: &'a str) -> Reply<'a> {
    match to {
        _ if numbers.0.is_multiple_of(5) => Reply::Failed(Errno(1 + (numbers.1 % 133) as i32)),
        RequestType::Ctr if flag => Reply::Device(text),
        RequestType::GetRegionSize | RequestType::GetSyncCount => Reply::Count(numbers.0),
        RequestType::IsClean | RequestType::InSync => Reply::Is(flag),
        RequestType::GetResyncWork => Reply::Work(flag.then_some(Region(numbers.0 as u32))),
        RequestType::IsRemoteRecovering => {
            Reply::RemoteRecovering { is_recovering: flag, in_sync_hint: numbers.1 }
        }
        RequestType::StatusInfo | RequestType::StatusTable => Reply::Text(text),
        _ => Reply::Done,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_is_made_again(
        uuid in uuid(),
        luid: u64,
        seq: u32,
        kind in prop::sample::select(RequestType::ALL.to_vec()),
        numbers in prop::collection::vec(any::<u64>(), 2..40),
        text in "[a-z0-9 /:]{1,60}",
        flag: bool,
    ) {
        let words: Vec<U64> = numbers.iter().copied().map(U64::new).collect();
        let request = match kind {
            RequestType::Ctr => Request::Ctr { text: text.as_bytes(), again: flag },
            RequestType::IsClean => Request::IsClean(numbers[0]),
            RequestType::InSync => Request::InSync(numbers[0]),
            RequestType::IsRemoteRecovering => Request::IsRemoteRecovering(numbers[0]),
            RequestType::SetRegionSync => Request::SetRegionSync { region: numbers[0], in_sync: flag },
            RequestType::Flush => Request::Flush(Regions::new(&words)),
            RequestType::MarkRegion => Request::MarkRegion(Regions::new(&words)),
            RequestType::ClearRegion => Request::ClearRegion(Regions::new(&words)),
            RequestType::Dtr => Request::Dtr,
            RequestType::Presuspend => Request::Presuspend,
            RequestType::Postsuspend => Request::Postsuspend,
            RequestType::Resume => Request::Resume,
            RequestType::GetRegionSize => Request::GetRegionSize,
            RequestType::GetResyncWork => Request::GetResyncWork,
            RequestType::GetSyncCount => Request::GetSyncCount,
            RequestType::StatusInfo => Request::StatusInfo,
            RequestType::StatusTable => Request::StatusTable,
        };
        let name = LogName { uuid: &uuid, luid };
        let mut bytes = Vec::new();
        netlink::wrap(seq, &mut bytes, |to| encode_request(name, seq, &request, to));
        let frame = netlink::unwrap(&bytes).unwrap().unwrap();
        prop_assert_eq!((frame.name(), frame.seq(), frame.version()), (name, seq, 3));
        prop_assert_eq!((frame.request(), frame.request_type()), (Ok(request), kind as u32));
        for len in 0..bytes.len() {
            prop_assert!(netlink::unwrap(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn an_answer_is_made_again(
        uuid in uuid(),
        to in prop::sample::select(RequestType::ALL.to_vec()),
        numbers: (u64, u64),
        text in "[a-z0-9/: -]{0,90}",
        flag: bool,
    ) {
        let name = LogName { uuid: &uuid, luid: numbers.1 };
        let reply = reply_of(to, numbers, flag, &text);
        let mut bytes = Vec::new();
        encode_answer(name, 3, 7, to as u32, &reply, &mut bytes);
        let (frame, len) = Frame::parse(&bytes).unwrap();
        prop_assert_eq!((frame.name(), frame.seq(), len), (name, 7, bytes.len()));
        prop_assert_eq!(frame.reply(to), Ok(reply));
    }

    #[test]
    fn a_text_with_a_nul_inside_is_none(before in "[a-z ]{0,9}", after in "[a-z ]{0,9}") {
        let text = format!("{before}\0{after}\0");
        for to in [RequestType::Ctr, RequestType::StatusInfo] {
            let mut bytes = Vec::new();
            encode_answer(LogName { uuid: b"u", luid: 1 }, 3, 7, to as u32, &Reply::Text(&text), &mut bytes);
            prop_assert!(Frame::parse(&bytes).unwrap().0.reply(to).is_err());
        }
        let table = format!("64 disk a{text}b 2");
        prop_assert!(TableArgs::parse(table.as_bytes()).is_err());
    }

    #[test]
    fn no_bytes_do_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..400), text in "[0-9a-z -]{0,40}") {
        let _ = netlink::unwrap(&bytes);
        let _ = TableArgs::parse(&bytes);
        if let Ok(args) = TableArgs::parse(text.as_bytes()) {
            prop_assert!(args.regions() > 0);
        }
        if bytes.len() > 160 {
            // A header that can be one.
            bytes[136] = 0;
            let size = (bytes.len() - 160) as u32;
            bytes[156..160].copy_from_slice(&size.to_le_bytes());
            let (frame, _) = Frame::parse(&bytes).unwrap();
            let _ = frame.request();
            for to in RequestType::ALL {
                let _ = frame.reply(to);
            }
        }
    }

    #[test]
    fn whatever_happens_to_a_server(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        model::run(&bytes);
    }
}
