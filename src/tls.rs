//! TLS 1.3 with certificates on both sides, for logs that are kept on another host.
//!
//! A CA of one's own signs the server's and the clients' certificates; nobody else's are heeded. Files are PEM.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Where a side's own certificate and key are, and who signed the other's.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TlsFiles {
    /// Its certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of those who sign for the other side.
    pub ca: PathBuf,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it ought to hold.
        what: &'static str,
    },
    /// Key and certificate do not belong together, or cannot be used.
    #[error("{} and {} cannot be used together", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The CA's certificates cannot be used.
    #[error("{} cannot be used as a CA", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let none = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    certs.ok().filter(|certs| !certs.is_empty()).ok_or_else(none)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let none = |_| TlsError::Pem { path: path.to_owned(), what: "private key" };
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(none)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in certs(path)? {
        let failed = |source: rustls::Error| TlsError::Ca { path: path.to_owned(), source: source.into() };
        roots.add(cert).map_err(failed)?;
    }
    Ok(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For a server: whoever has no certificate that the CA signed is sent away.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let ca_error = |source| TlsError::Ca { path: files.ca.clone(), source };
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&files.ca)?.into(), provider()).build();
    let verifier = verifier.map_err(|error| ca_error(error.into()))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ca_error(error.into()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs(&files.cert)?, key(&files.key)?);
    let pair = |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };
    Ok(Arc::new(config.map_err(pair)?))
}

/// For a client: it speaks with nobody whose certificate the CA did not sign, and shows its own.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let ca_error = |source: rustls::Error| TlsError::Ca { path: files.ca.clone(), source: source.into() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ca_error)?
        .with_root_certificates(roots(&files.ca)?)
        .with_client_auth_cert(certs(&files.cert)?, key(&files.key)?);
    let pair = |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };
    Ok(Arc::new(config.map_err(pair)?))
}
