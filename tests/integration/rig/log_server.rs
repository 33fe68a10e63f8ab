//! A log server of a test, killed at its end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::Rig;

/// A log server.
pub struct LogServer {
    args: Vec<String>,
    /// Words before the program: `ip netns exec NAME`.
    before: Vec<String>,
    child: Option<Child>,
}

impl LogServer {
    /// Listens as `listen` says, with a lease of so many seconds.
    pub fn start(rig: &Rig, listen: &[&str], lease: u32) -> LogServer {
        LogServer::start_behind(rig, &[], listen, lease)
    }

    /// The same, by way of another program.
    pub fn start_behind(rig: &Rig, before: &[&str], listen: &[&str], lease: u32) -> LogServer {
        let lease = lease.to_string();
        let mut args: Vec<String> =
            ["log", "serve", "--dir", "logs", "--lease", &lease].map(str::to_owned).into();
        args.extend(listen.iter().map(|&word| word.to_owned()));
        let before = before.iter().map(|&word| word.to_owned()).collect();
        let mut server = LogServer { args, before, child: None };
        server.again(rig);
        server
    }

    /// Starts it again.
    pub fn again(&mut self, rig: &Rig) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let plain = rig.command(&args);
        let mut command = match self.before.split_first() {
            None => plain,
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(plain.get_program()).args(plain.get_args());
                command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
                command.current_dir(plain.get_current_dir().unwrap());
                command
            }
        };
        let log = std::fs::File::options().append(true).create(true).open(rig.path("server.log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = || std::fs::read_to_string(rig.path("server.log")).unwrap_or_default();
        assert!(!line.is_empty(), "the log server does not start: {}", said());
        self.child = Some(child);
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for LogServer {
    fn drop(&mut self) {
        self.kill();
    }
}
