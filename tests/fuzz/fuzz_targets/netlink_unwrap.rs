//! Any bytes as a datagram of the kernel's connector: what is understood can be wrapped again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mirrord_log::wire::netlink;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(frame)) = netlink::unwrap(bytes) {
        if netlink::WRAPPING + 160 + frame.data().len() > netlink::MAX_DATAGRAM {
            return;
        }
        let mut again = Vec::new();
        netlink::wrap(frame.seq(), &mut again, |to| {
            to.extend_from_slice(frame.header_bytes());
            to.extend_from_slice(frame.data());
        });
        let twin = netlink::unwrap(&again).unwrap().unwrap();
        assert_eq!((twin.header_bytes(), twin.data()), (frame.header_bytes(), frame.data()));
    }
});
