//! Any bytes as a stream of messages: what is understood is made again byte for byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mirrord_log::wire::{Frame, Request, RequestType, TableArgs, encode_answer, encode_request};

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes;
    while let Ok((frame, len)) = Frame::parse(bytes) {
        let mut again = Vec::new();
        if let Ok(request) = frame.request() {
            encode_request(frame.name(), frame.seq(), &request, &mut again);
            let (twin, _) = Frame::parse(&again).unwrap();
            assert_eq!((twin.request(), twin.name(), twin.seq()), (Ok(request), frame.name(), frame.seq()));
            if let Request::Ctr { text, .. } = request
                && let Ok(args) = TableArgs::parse(text)
            {
                assert!(u64::from(args.regions()) * args.region_sectors >= args.length);
            }
        }
        for to in RequestType::ALL {
            let Ok(reply) = frame.reply(to) else { continue };
            again.clear();
            encode_answer(frame.name(), frame.version(), frame.seq(), to as u32, &reply, &mut again);
            let (twin, _) = Frame::parse(&again).unwrap();
            assert_eq!(twin.reply(to), Ok(reply));
        }
        bytes = &bytes[len..];
    }
});
