//! A test's containers, volumes and shared folders, all gone at its end.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::rig::{sh, until};

/// The user of the image.
pub(crate) const USER: u32 = 65532;

/// What FUSE needs in a container, and nothing else.
pub(crate) const LEAST: [&str; 5] =
    ["--read-only", "--device=/dev/fuse", "--cap-drop=ALL", "--cap-add=SYS_ADMIN", NO_NEW];
const NO_NEW: &str = "--security-opt=no-new-privileges";

/// What a volume is served as: with LEAST and the legs in the volume of the test.
pub(crate) const SERVE: [&str; 11] = [
    "create",
    "--or-start",
    "--legs",
    "a.img",
    "b.img",
    "--size",
    "64M",
    "--name",
    "vol",
    "--foreground",
    "--allow-other",
];

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: tests/container/run does that"))
}

pub(crate) fn image() -> String {
    variable("MIRRORD_IMAGE")
}

pub(crate) fn tools() -> String {
    variable("MIRRORD_TOOLS_IMAGE")
}

/// Whether the engine is podman; some ways are its alone.
pub(crate) fn is_podman() -> bool {
    variable("CONTAINER_ENGINE").ends_with("podman")
}

/// Runs the engine, whatever comes of it.
pub(crate) fn engine(args: &[&str]) -> Output {
    Command::new(variable("CONTAINER_ENGINE")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Both streams of a command.
pub(crate) fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// Runs the engine and expects success.
pub(crate) fn ok(args: &[&str]) -> String {
    let output = engine(args);
    assert!(output.status.success(), "{args:?}: {}: {}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a test has.
pub(crate) struct Site {
    name: String,
    folder: PathBuf,
    containers: RefCell<Vec<String>>,
    volumes: RefCell<Vec<String>>,
    mounts: RefCell<Vec<PathBuf>>,
}

impl Site {
    /// For the test of this name.
    pub(crate) fn new(name: &str) -> Site {
        let folder = Path::new(&variable("MIRRORD_CONTAINER_SCRATCH")).join(name);
        fs::create_dir_all(&folder).unwrap();
        Site {
            name: format!("mirrord-test-{}-{name}", std::process::id()),
            folder,
            containers: RefCell::default(),
            volumes: RefCell::default(),
            mounts: RefCell::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A named volume of the engine, as a flag that mounts it.
    pub(crate) fn volume(&self, name: &str, target: &str) -> String {
        let full = format!("{}-{name}", self.name);
        if !self.volumes.borrow().contains(&full) {
            self.volumes.borrow_mut().push(full.clone());
        }
        format!("--volume={full}:{target}")
    }

    /// A folder of the host that the image's user may write to and whose mounts are shared.
    pub(crate) fn shared(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let text = path.to_str().unwrap();
        fs::create_dir_all(&path).unwrap();
        sh("mount", &["--bind", text, text]);
        sh("mount", &["--make-shared", text]);
        sh("chown", &[&USER.to_string(), text]);
        self.mounts.borrow_mut().push(path.clone());
        path
    }

    /// A script may leave a container, volumes and a mount of these names.
    pub(crate) fn has(&self, container: &str, volumes: &[String], mount: &str) {
        self.containers.borrow_mut().push(container.to_owned());
        self.volumes.borrow_mut().extend_from_slice(volumes);
        self.mounts.borrow_mut().push(self.path(mount));
    }

    /// Starts a container of the image in the background and says with which privileges.
    pub(crate) fn start(&self, name: &str, flags: &[&str], command: &[&str]) -> Container {
        let full = format!("{}-{name}", self.name);
        let privileges: Vec<&str> =
            flags.iter().filter(|flag| !flag.starts_with("--volume")).copied().collect();
        println!("container of {}: {}", self.name.rsplit('-').next().unwrap(), privileges.join(" "));
        self.containers.borrow_mut().push(full.clone());
        let image = image();
        ok(&[&["run", "--detach", "--name", &full], flags, &[&image], command].concat());
        Container { name: full }
    }

    /// The usual one: LEAST, the legs in a volume of the engine.
    pub(crate) fn serve(&self, flags: &[&str], more: &[&str]) -> Container {
        let legs = self.volume("legs", "/data");
        let flags = [&LEAST[..], &[&legs], flags].concat();
        let container = self.start("vol", &flags, &[&SERVE[..], more].concat());
        container.ready();
        container
    }

    /// Runs a shell command to its end in a container without any privilege, as this user.
    pub(crate) fn shell(&self, user: u32, flags: &[&str], command: &str) -> Output {
        let (user, tools) = (format!("--user={user}"), tools());
        let own = ["run", "--rm", "--cap-drop=ALL", NO_NEW, "--read-only", &user];
        engine(&[&own, flags, &[&tools, "sh", "-euc", command]].concat())
    }

    /// The same, with success expected; gives its output.
    pub(crate) fn shell_ok(&self, user: u32, flags: &[&str], command: &str) -> String {
        let output = self.shell(user, flags, command);
        assert!(output.status.success(), "{command}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// That the legs of a volume that was stopped hold the same bytes.
    pub(crate) fn legs_are_equal(&self) {
        let legs = self.volume("legs", "/data");
        self.shell_ok(USER, &[&legs], "cmp -n 67108864 /data/a.img /data/b.img");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for name in self.containers.borrow().iter().rev() {
            if std::thread::panicking() {
                println!("{name} said: {}", said(&engine(&["logs", name])));
            }
            engine(&["rm", "--force", "--volumes", name]);
        }
        for name in self.volumes.borrow().iter() {
            engine(&["volume", "rm", "--force", name]);
        }
        for path in self.mounts.borrow().iter() {
            let _ = Command::new("umount").arg("--recursive").arg(path).output();
        }
    }
}

/// A container that was started.
pub(crate) struct Container {
    pub(crate) name: String,
}

impl Container {
    /// Runs mirrord in it.
    pub(crate) fn mirrord(&self, args: &[&str]) -> Output {
        engine(&[&["exec", &self.name, "mirrord"], args].concat())
    }

    pub(crate) fn mirrord_ok(&self, args: &[&str]) -> String {
        let output = self.mirrord(args);
        assert!(output.status.success(), "mirrord {args:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until its volume is served and in sync.
    pub(crate) fn ready(&self) {
        self.mirrord_ok(&["wait", "vol", "--startup", "60", "--timeout", "120"]);
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.mirrord_ok(&["status", "--json"])).unwrap()
    }

    /// A field of what the engine knows of it.
    pub(crate) fn inspect(&self, field: &str) -> String {
        ok(&["inspect", "--format", &format!("{{{{{field}}}}}"), &self.name])
    }

    /// Fields of its process, as the host's kernel has them.
    pub(crate) fn process(&self, field: &str) -> String {
        let path = format!("/proc/{}/status", self.inspect(".State.Pid"));
        let text = fs::read_to_string(path).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
    }

    /// Kills it without warning, and waits for its end.
    pub(crate) fn kill(&self) {
        ok(&["kill", "--signal", "KILL", &self.name]);
        until("the container has ended", || self.inspect(".State.Running") == "false");
    }

    pub(crate) fn start_again(&self) {
        ok(&["start", &self.name]);
        self.ready();
    }

    /// Stops it as its user would: KILL follows after ten seconds. Its exit code.
    pub(crate) fn stop(&self) -> String {
        ok(&["stop", "--time", "10", &self.name]);
        self.inspect(".State.ExitCode")
    }

    /// Waits for an end that it comes to by itself. Its exit code and what it said.
    pub(crate) fn ended(&self) -> (String, String) {
        let code = ok(&["wait", &self.name]);
        (code, said(&engine(&["logs", &self.name])))
    }
}
