//! qemu-storage-daemon: the peer that serves a mirror through FUSE, and devices of a speed one can choose.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::program::Background;
use crate::remains::{Guard, Remains};

/// How long a daemon may take to serve its file.
const START: Duration = Duration::from_secs(10);

/// Its `aio=` settings.
pub(crate) const AIO: [&str; 2] = ["native", "io_uring"];

/// A qemu-storage-daemon with one FUSE export. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Export {
    program: Background,
    _mounted: Guard,
}

impl Export {
    /// Serves a quorum of `legs`, as large as they are, as the file `mount`: writes go to all of them,
    /// reads to the first.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn quorum(legs: &[PathBuf], mount: &Path, aio: &str) -> Result<Export> {
        let mut nodes = Vec::new();
        let mut quorum = "driver=quorum,node-name=mirror,vote-threshold=1,read-pattern=fifo".to_owned();
        for (index, leg) in legs.iter().enumerate() {
            nodes.push(file_node(&format!("leg{index}"), leg, aio));
            quorum.push_str(&format!(",children.{index}=leg{index}"));
        }
        nodes.push(quorum);
        Export::start(&[], &nodes, "mirror", mount)
    }

    /// Serves `file` as the file `mount`, with at most so many requests per second.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn limited(file: &Path, mount: &Path, per_second: u32) -> Result<Export> {
        let group = format!("throttle-group,id=limit,x-iops-total={per_second}");
        let throttle = "driver=throttle,node-name=slow,throttle-group=limit,file=disk".to_owned();
        Export::start(&[group], &[file_node("disk", file, AIO[0]), throttle], "slow", mount)
    }

    fn start(objects: &[String], nodes: &[String], exported: &str, mount: &Path) -> Result<Export> {
        std::fs::write(mount, "")?;
        let mut command = Command::new("qemu-storage-daemon");
        command.args(objects.iter().flat_map(|object| ["--object", object]));
        command.args(nodes.iter().flat_map(|node| ["--blockdev", node]));
        let mountpoint = mount.display();
        command
            .arg("--export")
            .arg(format!("type=fuse,id=export,node-name={exported},mountpoint={mountpoint},writable=on"));
        let mounted = Guard::new(Remains::Mount(mount.to_owned()))?;
        let mut program = Background::start(&mut command)?;
        let deadline = Instant::now() + START;
        while std::fs::metadata(mount).map_or(0, |metadata| metadata.len()) == 0 {
            ensure!(!program.has_ended(), "qemu-storage-daemon ended at once");
            ensure!(Instant::now() < deadline, "qemu-storage-daemon does not serve {mountpoint}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Export { program, _mounted: mounted })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.program.id()
    }
}

fn file_node(name: &str, path: &Path, aio: &str) -> String {
    let path = path.display();
    format!("driver=file,node-name={name},filename={path},cache.direct=on,aio={aio}")
}
