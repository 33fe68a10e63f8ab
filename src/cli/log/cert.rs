//! `mirrord log cert`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::Serialize;

use super::super::Context;
use super::super::output::{print, print_json};

/// Make a CA, and certificates for a server and its clients
///
/// For a trial, or where no other CA is at hand: ca.pem goes to everybody, each NAME.pem and NAME-key.pem to the one
/// host that it is for, ca-key.pem to none of them. With a CA that is there already, new certificates are added.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to put them; made if it is not there.
    folder: PathBuf,
    /// A server's host name or IP address, as clients call it. Its certificate is server.pem.
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// A client's name: any, one for each host that is to connect.
    #[arg(long, value_name = "NAME")]
    client: Vec<String>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    files: Vec<PathBuf>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = || format!("cannot make certificates in {}", args.folder.display());
    let files = make(args).with_context(doing)?;
    if context.json {
        return print_json(&Made { files });
    }
    files.iter().try_for_each(|file| print(&file.display().to_string()))
}

fn make(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    let at = |name: &str| args.folder.join(name);
    let mut wanted: Vec<(&str, Vec<String>, ExtendedKeyUsagePurpose)> = Vec::new();
    if !args.host.is_empty() {
        wanted.push(("server", args.host.clone(), ExtendedKeyUsagePurpose::ServerAuth));
    }
    for client in &args.client {
        let good = client.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !good || client.is_empty() || client.starts_with('.') || client == "ca" || client == "server" {
            bail!("--client {client}: a name is of A-Z a-z 0-9 . _ - and is neither ca nor server");
        }
        wanted.push((client, vec![client.clone()], ExtendedKeyUsagePurpose::ClientAuth));
    }
    if wanted.is_empty() {
        bail!("say for whom: --host HOST for the server, --client NAME for each client");
    }
    for (name, ..) in &wanted {
        for file in [at(&format!("{name}.pem")), at(&format!("{name}-key.pem"))] {
            if file.exists() {
                bail!("{} is there already: remove it, or choose another folder", file.display());
            }
        }
    }
    std::fs::create_dir_all(&args.folder)?;
    let mut files = Vec::new();
    let issuer = ca(&at("ca.pem"), &at("ca-key.pem"), &mut files)?;
    for (name, names, purpose) in wanted {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &issuer)?;
        write(&at(&format!("{name}.pem")), 0o644, &cert.pem(), &mut files)?;
        write(&at(&format!("{name}-key.pem")), 0o600, &key.serialize_pem(), &mut files)?;
    }
    Ok(files)
}

/// The CA that is there, or a new one.
fn ca(cert: &Path, key: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<Issuer<'static, KeyPair>> {
    if cert.exists() || key.exists() {
        let pair =
            KeyPair::from_pem(&std::fs::read_to_string(key).with_context(|| format!("{}", key.display()))?);
        let pem = std::fs::read_to_string(cert).with_context(|| format!("{}", cert.display()))?;
        return Ok(Issuer::from_ca_cert_pem(&pem, pair?)?);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "mirrord log CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pair = KeyPair::generate()?;
    let signed = params.self_signed(&pair)?;
    write(cert, 0o644, &signed.pem(), files)?;
    write(key, 0o600, &pair.serialize_pem(), files)?;
    Ok(Issuer::new(params, pair))
}

fn write(path: &Path, mode: u32, text: &str, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{}", path.display()))?;
    files.push(path.to_owned());
    Ok(())
}
