//! A CA, a server and clients to try TLS with. For more than a trial use the CA that you have.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::paths::{BadName, check_name};

/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(3600);

const DAY: Duration = Duration::from_secs(86_400);

/// Whose certificates to make.
#[derive(Clone, Copy, Debug)]
pub struct TrialNames<'a> {
    /// Names and addresses of the server.
    pub hosts: &'a [String],
    /// Clients.
    pub clients: &'a [String],
    /// For how many days they are good.
    pub days: u32,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// A client's name makes a file name.
    #[error("client {name:?}: {source}")]
    Client {
        /// As it was given.
        name: String,
        /// What a name is.
        #[source]
        source: BadName,
    },
    /// A client is called like a file that is made anyway, or twice the same.
    #[error("{name} would be made twice: give each client a name of its own, not ca or server")]
    Twice {
        /// The name.
        name: String,
    },
    /// Something is there.
    #[error("{} is there already and is not overwritten: remove it, or use another directory", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// The system said no.
    #[error("cannot write {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that a certificate cannot have, or no randomness.
    #[error("a certificate cannot be made")]
    Make(#[from] rcgen::Error),
}

/// Writes certificates and keys; gives their paths.
///
/// # Errors
/// See [`MakeError`]. What was written before stays.
pub fn make_trial(dir: &Path, names: &TrialNames<'_>) -> Result<Vec<PathBuf>, MakeError> {
    let mut taken = vec!["ca", "server"];
    for name in names.clients {
        check_name(name).map_err(|source| MakeError::Client { name: name.clone(), source })?;
        if taken.contains(&name.as_str()) {
            return Err(MakeError::Twice { name: name.clone() });
        }
        taken.push(name);
    }
    for path in
        taken.iter().flat_map(|name| [dir.join(format!("{name}.pem")), dir.join(format!("{name}-key.pem"))])
    {
        if path.symlink_metadata().is_ok() {
            return Err(MakeError::Exists { path });
        }
    }
    let failed = |source| MakeError::Io { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;

    let mut written = Vec::new();
    let mut params = params(&[], "mirrord trial CA", names.days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    write(dir, "ca", &ca.pem(), &ca.key().serialize_pem(), &mut written)?;
    let server = [("server", names.hosts, ExtendedKeyUsagePurpose::ServerAuth)];
    let none: &[String] = &[];
    let clients = names.clients.iter().map(|name| (name.as_str(), none, ExtendedKeyUsagePurpose::ClientAuth));
    for (name, hosts, purpose) in server.into_iter().chain(clients) {
        let mut params = self::params(hosts, name, names.days)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &ca)?;
        write(dir, name, &cert.pem(), &key.serialize_pem(), &mut written)?;
    }
    Ok(written)
}

fn params(hosts: &[String], name: &str, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + DAY * days).into();
    Ok(params)
}

fn write(dir: &Path, name: &str, cert: &str, key: &str, written: &mut Vec<PathBuf>) -> Result<(), MakeError> {
    for (suffix, text) in [("", cert), ("-key", key)] {
        let path = dir.join(format!("{name}{suffix}.pem"));
        let mode = if suffix == "-key" { 0o600 } else { 0o644 };
        let file = File::options().write(true).create_new(true).mode(mode).open(&path);
        let result = file.and_then(|mut file| file.write_all(text.as_bytes()));
        result.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => MakeError::Exists { path: path.clone() },
            _ => MakeError::Io { path: path.clone(), source },
        })?;
        written.push(path);
    }
    Ok(())
}
