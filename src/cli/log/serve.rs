//! `mirrord log serve`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::super::Context;
use super::super::output::{Usage, fail, note, print, print_json};
use crate::daemon::{Manager, stop_signals};
use crate::log_server::{Listen, Options, Serving, TcpListen, UnixListen};
use crate::logging::{self, Level, LogTo};
use crate::paths::check_name;
use crate::tls::{TlsFiles, server_config};

/// Serve logs until it is stopped
///
/// It is refused to stop, by `mirrord log stop` and by SIGTERM, while logs are in use; a second signal stops it all the
/// same. Logs of the kernel go on where they were when a server is started again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Serve the kernel's mirrors (log type userspace), for root.
    #[arg(long)]
    netlink: bool,
    /// Serve volumes of this user, and of root, that connect to this socket.
    #[arg(long, value_name = "PATH")]
    unix: Vec<PathBuf>,
    /// Serve volumes that connect to HOST:PORT, with TLS and certificates on both sides.
    #[arg(long, value_name = "ADDRESS")]
    tcp: Vec<String>,
    /// The server's certificate.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca", "tcp"])]
    tls_cert: Option<PathBuf>,
    /// The key of the server's certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The CA that signs the certificates of those who may connect.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Serve everybody who can reach --tcp, without TLS. On this machine's own addresses that needs no asking.
    #[arg(long, requires = "tcp", conflicts_with = "tls_cert")]
    insecure: bool,
    /// Keep the logs of volumes in this folder [default: the state directory].
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// A name for this server, if there are several.
    #[arg(long, value_name = "NAME", default_value = "default")]
    name: String,
    /// Keep the log of a volume that is gone without a goodbye for it for so long: nobody else gets it meanwhile.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u32).range(1..=86400))]
    lease: u32,
    /// Where messages go: stderr, journald or file:PATH.
    #[arg(long, value_name = "WHERE", default_value = "stderr")]
    log_to: LogTo,
    /// How much is said there.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: Level,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let doing = "cannot serve logs";
    if !args.netlink && args.unix.is_empty() && args.tcp.is_empty() {
        let text = "say whom to serve: --netlink (the kernel), --unix PATH or --tcp ADDRESS (volumes)";
        return Err(Usage(text.to_owned()).into());
    }
    if let Err(error) = check_name(&args.name) {
        return Err(Usage(format!("--name {}: {error}", args.name)).into());
    }
    logging::begin(&args.log_to, args.log_level).with_context(|| doing.to_owned())?;
    let options = options(context, &args).map_err(|error| error.context(doing))?;
    let (netlink, insecure) = (args.netlink, args.insecure);
    let mut signals = stop_signals(true).with_context(|| doing.to_owned())?;
    let manager = Manager::from_env();
    let serving = Serving::begin(&context.dirs, options).map_err(|error| fail(doing, &error))?;
    if insecure {
        note("--insecure: whoever reaches the address can read and change every log");
    }
    if netlink {
        tracing::info!("the kernel's mirrors are served");
    }
    let places = serving.places.join(" ");
    if let Some(manager) = &manager {
        manager.ready(&places);
    }
    if context.json {
        print_json(&serde_json::json!({
            "name": args.name, "pid": std::process::id(), "listens": serving.places,
        }))?;
    } else {
        print(&format!("{} {places}", args.name))?;
    }
    let (end, live) = (serving.ender(), serving.counter());
    let mut asked = false;
    let handle = signals.handle();
    let listening = std::thread::spawn(move || {
        for _ in &mut signals {
            match live() {
                0 => return end(),
                _ if asked => return end(),
                live => {
                    asked = true;
                    tracing::warn!("{live} logs are in use: a second signal ends the server all the same");
                }
            }
        }
    });
    serving.wait();
    handle.close();
    let _ = listening.join();
    if let Some(manager) = &manager {
        manager.stopping();
    }
    Ok(())
}

fn options(context: &Context, args: &Args) -> anyhow::Result<Options> {
    let tls = match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
        (Some(cert), Some(key), Some(ca)) => {
            let files = TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() };
            Some(server_config(&files)?)
        }
        _ => None,
    };
    let unix = args.unix.iter().map(|path| Listen::Unix(UnixListen { path: path.clone() }));
    let tcp = args.tcp.iter().map(|address| {
        let (address, tls) = (address.clone(), tls.clone());
        Listen::Tcp(TcpListen { address, tls, insecure: args.insecure })
    });
    let listen: Vec<Listen> = unix.chain(tcp).collect();
    let default = || crate::log_server::server_dirs(&context.dirs).state().join(&args.name);
    // Without volumes there is nothing to keep for them.
    let folder = (!listen.is_empty()).then(|| args.dir.clone().unwrap_or_else(default));
    let folder = folder.map(|folder| std::path::absolute(&folder)).transpose()?;
    if let (None, Some(dir)) = (&folder, &args.dir) {
        note(&format!("--dir {}: only volumes have their logs there, and none can connect", dir.display()));
    }
    Ok(Options {
        name: args.name.clone(),
        netlink: args.netlink,
        listen,
        folder,
        lease: Duration::from_secs(args.lease.into()),
    })
}
