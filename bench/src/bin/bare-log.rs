//! The least that can answer the kernel's userspace log: no checks, no bookkeeping but a bitmap, one thread. What a
//! log server costs beside it is what it does for its users; nothing that talks netlink can be faster.
//!
//! `bare-log [DEVICE]`: with a device, marks are written to its first sectors with `O_DSYNC`, as a disk log's are, by
//! whichever request makes them durable.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use mirrord_log::wire::netlink::{self, MAX_DATAGRAM};
use mirrord_log::wire::{Frame, Reply, Request, TableArgs, encode_reply};
use mirrord_raid::Region;
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto, socket_with,
};

/// Buffers of devices start at a multiple of this.
const ALIGN: usize = 4096;

struct Log {
    device: Option<File>,
    regions: u64,
    region_sectors: u64,
    synced: Vec<bool>,
    sync_count: u64,
    search: usize,
    buffer: Vec<u8>,
}

impl Log {
    fn write(&self) {
        if let Some(device) = &self.device {
            let from = self.buffer.as_ptr().align_offset(ALIGN);
            device.write_all_at(&self.buffer[from..from + 4096], 0).expect("the device is written");
        }
    }

    fn answer(&mut self, frame: &Frame<'_>) -> Reply<'static> {
        match frame.request().expect("the kernel asks what makes sense") {
            Request::Ctr { text, .. } => {
                let args = TableArgs::parse(text).expect("a table that makes sense");
                self.regions = u64::from(args.regions());
                self.region_sectors = args.region_sectors;
                let in_sync = args.mode == mirrord_log::SyncMode::NoSync;
                self.synced = vec![in_sync; self.regions as usize];
                self.sync_count = if in_sync { self.regions } else { 0 };
                self.search = 0;
                Reply::Done
            }
            Request::GetRegionSize => Reply::Count(self.region_sectors),
            Request::GetSyncCount => Reply::Count(self.sync_count),
            Request::InSync(region) => Reply::Is(self.synced[region as usize]),
            Request::GetResyncWork => {
                while self.search < self.synced.len() && self.synced[self.search] {
                    self.search += 1;
                }
                Reply::Work((self.search < self.synced.len()).then_some(Region(self.search as u32)))
            }
            Request::SetRegionSync { region, in_sync } => {
                if in_sync && !std::mem::replace(&mut self.synced[region as usize], true) {
                    self.sync_count += 1;
                }
                Reply::Done
            }
            Request::Flush(_) => {
                self.write();
                Reply::Done
            }
            Request::IsRemoteRecovering(_) => {
                let in_sync = self.sync_count == self.regions;
                let in_sync_hint = if in_sync { self.regions } else { self.regions - 1 };
                Reply::RemoteRecovering { is_recovering: false, in_sync_hint }
            }
            Request::StatusInfo => Reply::Text("1 core"),
            _ => Reply::Done,
        }
    }
}

fn main() -> anyhow::Result<()> {
    let device = std::env::args().nth(1).map(|path| {
        let flags = rustix::fs::OFlags::DSYNC | rustix::fs::OFlags::DIRECT;
        OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path)
    });
    let mut log = Log {
        device: device.transpose()?,
        regions: 0,
        region_sectors: 0,
        synced: Vec::new(),
        sync_count: 0,
        search: 0,
        buffer: vec![0; 4096 + ALIGN],
    };
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(CONNECTOR))?;
    bind(&socket, &SocketAddrNetlink::new(0, 1 << (netlink::INDEX - 1)))?;
    let (mut buffer, mut datagram) = (vec![0; MAX_DATAGRAM + 64], Vec::new());
    let kernel = SocketAddrNetlink::new(0, 0);
    loop {
        let (_, len, _) = recvfrom(&socket, &mut buffer[..], RecvFlags::empty())?;
        if let Ok(Some(frame)) = netlink::unwrap(&buffer[..len]) {
            let reply = log.answer(&frame);
            datagram.clear();
            netlink::wrap(frame.seq(), &mut datagram, |to| encode_reply(&frame, &reply, to));
            sendto(&socket, &datagram, SendFlags::empty(), &kernel)?;
        }
    }
}
