//! A device of the volume's, from when it is added or found until it is served.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::control::{Control, ControlError, Info, Shape, State};
use super::features::Features;
use super::front::UblkFront;
use super::queue::{Gate, SourceConfig, Stopping, UblkSource};
use super::{
    FETCH_PATIENCE, NODE_PATIENCE, UblkError, UblkOptions, block_path, connect, find, is_waiting, mark_of,
};
use crate::buffer::BufferPool;
use crate::front::Engine;
use crate::{Spawn, Task};

/// After so long the kernel looks whether the daemon of a request still lives, in milliseconds. Its default of
/// 30 s is what users would wait after a crash with all tags in use, on kernels that do not notice at once.
/// Requests of a daemon that lives are left alone.
const IO_TIMEOUT_MS: u32 = 3000;

/// A device of the volume's that is not served yet.
pub struct UblkDevice {
    control: Option<Control>,
    info: Info,
    shape: Shape,
    taken_over: bool,
    /// The volume has grown since it was served.
    too_small: bool,
    spawn: Spawn,
}

impl UblkDevice {
    /// Adds a device for the volume, or finds the one that was left behind.
    ///
    /// # Errors
    /// See [`UblkError`].
    ///
    /// # Panics
    /// If sizes are not as [`UblkOptions`] says.
    pub fn prepare(options: UblkOptions) -> Result<UblkDevice, UblkError> {
        let UblkOptions {
            size,
            block_size,
            physical_block_size,
            region_size,
            read_only,
            max_io,
            queues,
            depth,
            ..
        } = options;
        assert!(block_size.is_power_of_two() && (512..=4096).contains(&block_size));
        assert!(size > 0 && size.is_multiple_of(u64::from(block_size)) && max_io.is_multiple_of(4096));
        // With one tag a queue has fetched for all as soon as it has for the first: see `UblkSource::fetch`.
        let depth = depth.max(2);
        let shape =
            Shape { size, block_size, physical_block_size, region_size, read_only, max_io, queues, depth };
        let control = connect(&options.spawn)?;
        let features = control.features()?;
        if let Some(earlier) = find(&control, options.volume)? {
            if is_waiting(&earlier) && earlier.flags.has(Features::RECOVERY) {
                return UblkDevice::take_over(control, earlier, shape, options.spawn);
            }
            if earlier.state == State::Live {
                let path = block_path(earlier.id);
                return Err(UblkError::Served { path, pid: earlier.pid });
            }
            // Added by a daemon that died before it served it, or one that cannot be taken over.
            control.remove(earlier.id)?;
        }
        let privileged = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
        // One that nobody writes to has nothing to lose, and who reads it sees that its daemon is gone.
        let wanted = match read_only && privileged {
            true => Features::default(),
            false => Features::wanted(features, privileged),
        };
        let info = control.add(shape, wanted, mark_of(options.volume))?;
        let shape = Shape { queues: info.queues, depth: info.depth, ..shape };
        let device = UblkDevice {
            control: Some(control),
            info,
            shape,
            taken_over: false,
            too_small: false,
            spawn: options.spawn,
        };
        if privileged && !read_only && !info.flags.has(Features(Features::RECOVERY.0 | Features::REISSUE.0)) {
            return Err(UblkError::Lacks("let a device outlive its daemon: Linux 6.1 or newer is needed"));
        }
        if !privileged && !info.flags.has(Features::UNPRIVILEGED) {
            return Err(UblkError::Lacks("give devices to users without privilege"));
        }
        Ok(device)
    }

    fn take_over(
        control: Control,
        earlier: Info,
        shape: Shape,
        spawn: Spawn,
    ) -> Result<UblkDevice, UblkError> {
        let does_not_fit = |why| UblkError::DoesNotFit { path: block_path(earlier.id), why };
        let attribute = |name: &str| -> Option<u64> {
            let path = format!("/sys/block/ublkb{}/{name}", earlier.id);
            fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        // A daemon that died while the volume grew may not have come to telling the device.
        let size = attribute("size").map_or(shape.size, |sectors| sectors << 9);
        if size > shape.size || size < shape.size && !earlier.flags.has(Features::RESIZE) {
            return Err(does_not_fit("its size is not the volume's"));
        }
        if attribute("queue/logical_block_size").is_some_and(|block| block < shape.block_size.into()) {
            return Err(does_not_fit("a leg needs larger blocks than it has"));
        }
        let Info { queues, depth, max_io, .. } = earlier;
        let mut devices = Vec::new();
        made_of(&format!("ublkb{}", earlier.id), &mut devices);
        if let Err(error) = control.leave_mounts_of(devices) {
            tracing::warn!(%error, "file systems on the device may stay in use");
        }
        let shape = Shape { queues, depth, max_io, ..shape };
        let too_small = size < shape.size;
        Ok(UblkDevice { control: Some(control), info: earlier, shape, taken_over: true, too_small, spawn })
    }

    /// Queues that it has: the engine is to have as many.
    pub fn queues(&self) -> u16 {
        self.shape.queues
    }

    /// Requests in flight per queue.
    pub fn depth(&self) -> u16 {
        self.shape.depth
    }

    /// Bytes of the largest request.
    pub fn max_io(&self) -> u32 {
        self.shape.max_io
    }

    /// Whether an earlier daemon left it behind.
    pub fn is_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Whether it is root's: if not, the kernel kills a daemon that has a request for 30 s.
    pub fn is_privileged(&self) -> bool {
        !self.info.flags.has(Features::UNPRIVILEGED)
    }

    /// Major and minor numbers of the block device, if it is there yet, and of every one that is made of it.
    pub fn devices(&self) -> Vec<(u32, u32)> {
        let mut devices = Vec::new();
        made_of(&format!("ublkb{}", self.info.id), &mut devices);
        devices
    }

    /// Serves the volume behind `engine` as this device. `on_gone` is called if somebody else takes the device
    /// away.
    ///
    /// # Errors
    /// See [`UblkError`]. A device that was taken over is left for another try.
    ///
    /// # Panics
    /// If the engine has another number of queues than the device.
    pub fn serve(
        mut self,
        engine: Arc<dyn Engine>,
        pool: &Arc<BufferPool>,
        on_gone: Option<Task>,
    ) -> Result<UblkFront, UblkError> {
        assert_eq!(engine.queues(), usize::from(self.shape.queues));
        let control = self.control.as_ref().expect("a device has its control until it is served");
        // From here until all queues have fetched it must not take long: see `UblkSource::fetch`.
        if self.taken_over {
            control.take_over(self.info)?;
        }
        let device = control.open(self.shape)?;
        let (session, closed) = channel::<()>();
        let (started, starting) = channel();
        let stopping = Stopping::default();
        let gate = Gate::new(self.shape.queues);
        for queue in 0..self.shape.queues {
            let device = device.as_fd().try_clone_to_owned().map_err(UblkError::io("open the device"))?;
            let source = UblkSource::new(SourceConfig {
                device,
                queue,
                depth: self.shape.depth,
                max_io: self.shape.max_io,
                pool,
                stopping: stopping.clone(),
                gate: gate.clone(),
                started: started.clone(),
                session: session.clone(),
            });
            engine.serve(queue.into(), Box::new(source));
        }
        drop((device, session));
        let threads = self.threads(&starting)?;
        let privileged = self.is_privileged();
        let path = block_path(self.info.id);
        control.start(threads, privileged).map_err(|error| match error {
            ControlError::Silent { .. } if self.taken_over => {
                let why = "a daemon died while it took it over, which this kernel cannot mend";
                UblkError::DoesNotFit { path: path.clone(), why }
            }
            error => error.into(),
        })?;
        if self.too_small {
            control.resize(self.info.id, self.shape.size)?;
        }
        if privileged {
            look_after_daemon(self.info.id);
        }
        await_node(&path)?;

        let ours = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel::<()>();
        let expected = Arc::clone(&ours);
        let watch = move || {
            // Nobody sends: this returns when the last source is gone.
            let _ = closed.recv();
            drop(end);
            if !expected.load(Ordering::SeqCst)
                && let Some(call) = on_gone
            {
                tracing::warn!("the device was taken away by somebody else");
                call();
            }
        };
        let watcher = (self.spawn)("mirrord-ublk-end".to_owned(), Box::new(watch))
            .map_err(UblkError::io("start a thread"))?;
        let control = self.control.take().expect("it was there above");
        Ok(UblkFront {
            control,
            info: self.info,
            path,
            engine,
            stopping,
            ours,
            ended,
            watcher: Some(watcher),
        })
    }

    /// The ids of the queues' threads, once all of them fetch.
    fn threads(&self, starting: &Receiver<io::Result<i32>>) -> Result<Vec<i32>, UblkError> {
        let mut threads = Vec::new();
        for _ in 0..self.shape.queues {
            let result =
                starting.recv_timeout(FETCH_PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            threads.push(result.map_err(UblkError::io("have a queue fetch"))?);
        }
        Ok(threads)
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        let Some(control) = self.control.take() else { return };
        if self.taken_over {
            return;
        }
        let _ = control.stop();
        if let Err(error) = control.delete() {
            tracing::warn!(%error, id = self.info.id, "leaving a ublk device behind");
        }
    }
}

impl fmt::Debug for UblkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UblkDevice")
            .field("info", &self.info)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// Numbers of the block device called `name`, its partitions and whatever lies on them.
fn made_of(name: &str, devices: &mut Vec<(u32, u32)>) {
    let dir = Path::new("/sys/class/block").join(name);
    let number = fs::read_to_string(dir.join("dev")).ok().and_then(|text| {
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let Some(number) = number.filter(|number| !devices.contains(number)) else { return };
    devices.push(number);
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let partitions = names(&dir).into_iter().filter(|entry| entry.starts_with(name));
    for name in partitions.chain(names(&dir.join("holders"))) {
        made_of(&name, devices);
    }
}

/// Has the kernel notice soon when this daemon dies with all tags in hand.
fn look_after_daemon(id: u32) {
    let path = format!("/sys/block/ublkb{id}/queue/io_timeout");
    let wanted = IO_TIMEOUT_MS.to_string();
    // Setting it waits until no request is under way: not for nothing, on a device that was taken over.
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == wanted) {
        return;
    }
    if let Err(error) = fs::write(&path, wanted) {
        tracing::warn!(path, %error, "after a crash under full load users wait for up to 30 s");
    }
}

/// udev makes nodes, and gives them to users without privilege, in its own time.
fn await_node(path: &Path) -> Result<(), UblkError> {
    let deadline = Instant::now() + NODE_PATIENCE;
    loop {
        match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::ACCESS) => {
                tracing::warn!(path = %path.display(), "this user may not use the device: is the udev rule there?");
                return Ok(());
            }
            Err(errno) => return Err(UblkError::io("find the node of the device in /dev")(errno.into())),
        }
    }
}
