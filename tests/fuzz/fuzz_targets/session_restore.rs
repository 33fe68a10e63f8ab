//! Any bytes as the notes of a log: a server that takes them goes on with it, and its own notes can be taken again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mirrord_log::server::{JobDone, LogServer, OpenedStore, Output, Save, ServerConfig, SessionId};

fuzz_target!(|bytes: &[u8]| {
    let mut server = LogServer::new(ServerConfig::default());
    let mut out = Output::default();
    if server.restore(SessionId(7), bytes, &mut out).is_err() {
        assert_eq!(server.logs().count(), 0);
        return;
    }
    for job in std::mem::take(&mut out.jobs) {
        let opened = OpenedStore { block_size: 512, len: 1 << 24, file: (7, 1), number: None };
        server.job_done(job.store, JobDone::Opened(Ok(opened)), &mut out);
    }
    for log in server.logs() {
        assert!(log.status.sync_count <= u64::from(log.status.regions));
        assert_eq!(server.dirty(log.id).count() as u64, log.status.dirty_regions);
    }
    for save in out.saves {
        if let Save::Put { session, bytes } = save {
            let mut out = Output::default();
            LogServer::new(ServerConfig::default()).restore(session, &bytes, &mut out).unwrap();
        }
    }
});
