//! `mirrord log serve`.

use std::path::PathBuf;

use mirrord_log::server::ServerConfig;
use serde_json::json;

use super::super::Context;
use super::super::output::{Usage, fail, print, print_json, say_done};
use crate::failure::describe;
use crate::log_server::{DEFAULT_NAME, LogServeError, LogServeSpec, LogServing};
use crate::logging::{Level, LogTo};
use crate::paths::check_name;
use crate::tls::TlsFiles;

/// Keep logs for others, in the foreground
///
/// Of the kernel's mirrors (dm-mirror, LVM's --type mirror) with --netlink, of mirrord's volumes elsewhere with
/// --unix and --tcp. SIGTERM and SIGINT stop it unless logs are in use; a second signal stops it all the same, and
/// mirrors wait for the next server.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to call this server.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Answer the kernel of this machine (needs root; one server can).
    #[arg(long)]
    netlink: bool,
    /// No other host uses the mirrors of this one: keep clustered-core and clustered-disk logs for them.
    ///
    /// LVM asks for no other kind. Without this option they are refused, because two hosts that each run a server would undo each
    /// other's marks in the log of a mirror that both use.
    #[arg(long, requires = "netlink")]
    single_host: bool,
    /// Listen at this socket: for this user and root.
    #[arg(long, value_name = "PATH")]
    unix: Vec<PathBuf>,
    /// Let this group use those sockets, too.
    #[arg(long, value_name = "GROUP", requires = "unix")]
    unix_group: Option<String>,
    /// Listen at this address, with TLS.
    #[arg(long, value_name = "HOST:PORT")]
    tcp: Vec<String>,
    /// This server's certificate (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca", "tcp"])]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The CA that signs clients' certificates (PEM). A client with such a certificate can use every log.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Let everybody who can reach --tcp use every log, unencrypted.
    #[arg(long, requires = "tcp", conflicts_with = "tls_cert")]
    insecure: bool,
    /// Keep logs that volumes want on disk in this directory [default: in the state directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the log of a volume that was cut off for it, this long.
    #[arg(long, value_name = "SECONDS", default_value_t = ServerConfig::default().lease)]
    lease: u64,
    /// Most logs.
    #[arg(long, value_name = "COUNT", default_value_t = ServerConfig::default().max_logs)]
    max_logs: usize,
    /// Most regions of all logs together; a million take half a megabyte.
    #[arg(long, value_name = "COUNT", default_value_t = ServerConfig::default().max_regions)]
    max_regions: u64,
    /// Send messages to stderr, journald or file:PATH.
    #[arg(long, value_name = "PLACE", default_value = "stderr")]
    log_to: LogTo,
    /// Say this much.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: Level,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = "cannot serve logs";
    check_name(&args.name).map_err(|error| Usage(format!("--name {}: {error}", args.name)))?;
    if !args.netlink && args.unix.is_empty() && args.tcp.is_empty() {
        let text = format!("{doing}: say for whom, with --netlink, --unix PATH or --tcp HOST:PORT");
        return Err(Usage(text).into());
    }
    let absolute = |path: &PathBuf| std::path::absolute(path);
    let tls = match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
        (Some(cert), Some(key), Some(ca)) => {
            Some(TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() })
        }
        _ => None,
    };
    let config = ServerConfig {
        lease: args.lease,
        max_logs: args.max_logs,
        max_regions: args.max_regions,
        single_host: args.single_host,
    };
    let spec = LogServeSpec {
        name: args.name.clone(),
        netlink: args.netlink,
        unix: args.unix.iter().map(absolute).collect::<Result<_, _>>()?,
        unix_group: args.unix_group.clone(),
        tcp: args.tcp.clone(),
        tls,
        insecure: args.insecure,
        folder: args.dir.clone(),
        config,
        log_to: args.log_to.clone(),
        log_level: args.log_level,
    };
    let serving = LogServing::begin(&context.dirs, &spec).map_err(|error| match error {
        // An option is missing: a service manager that tried again would get no further.
        LogServeError::Refused(_) => Usage(format!("{doing}: {}", describe(&error))).into(),
        error => fail(doing, &error),
    })?;
    if context.json {
        let (name, pid) = (&spec.name, std::process::id());
        say_done(print_json(&json!({ "name": name, "pid": pid, "listens": serving.listens() })))?;
    } else {
        say_done(print(&format!("{} {}", spec.name, serving.listens().join(" "))))?;
    }
    serving.wait();
    Ok(())
}
