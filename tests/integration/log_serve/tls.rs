//! TLS: who has a certificate of the CA is served, nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use mirrord::tls::{TlsFiles, client_config};
use mirrord_log::wire::Request;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::{Client, Server, messages};
use crate::rig::{Rig, sh};

fn files(rig: &Rig, dir: &str, name: &str) -> TlsFiles {
    let path = |file: String| rig.path(dir).join(file);
    TlsFiles {
        cert: path(format!("{name}.pem")),
        key: path(format!("{name}-key.pem")),
        ca: path("ca.pem".to_owned()),
    }
}

fn start(rig: &Rig) -> Server {
    rig.ok(&["log", "cert", "tls", "--host", "localhost", "--host", "127.0.0.1", "--client", "one"]);
    let tls = ["--tls-cert", "tls/server.pem", "--tls-key", "tls/server-key.pem", "--tls-ca", "tls/ca.pem"];
    Server::start(rig, &[&["--tcp", "127.0.0.1:0", "--dir", "logs"][..], &tls].concat())
}

fn connect(server: &Server, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(server.address("tls")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream)
}

/// That nothing comes back, whatever is sent.
fn gets_nothing(mut stream: impl Read + Write) {
    let _ = stream.write_all(&[0; 4096]);
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.is_empty(), "{} bytes came", got.len());
}

#[test]
fn who_has_a_certificate_is_served() {
    let rig = Rig::new();
    let server = start(&rig);
    let config = client_config(&files(&rig, "tls", "one")).unwrap();
    let mut clients = [(); 2].map(|()| Client::over(connect(&server, Arc::clone(&config))));
    for (luid, client) in clients.iter_mut().enumerate() {
        let (uuid, luid) = (["a", "b"][luid], luid as u64 + 1);
        client.construct(uuid, luid, &format!("disk {uuid}.log"), false);
        client.done(uuid, luid, &Request::Resume);
        assert_eq!(client.resync(uuid, luid).len(), 16);
        // Many records at once.
        let asked: Vec<u32> = (0..5000).map(|_| client.send(uuid, luid, &Request::GetSyncCount)).collect();
        for seq in asked {
            let answer = client.receive().unwrap();
            assert_eq!((answer.seq, answer.number()), (seq, 16));
        }
    }
}

#[test]
fn who_has_none_is_not() {
    let rig = Rig::new();
    let server = start(&rig);
    rig.ok(&["log", "cert", "other", "--host", "localhost", "--client", "two"]);

    // No certificate.
    let mut roots = RootCertStore::empty();
    let ca = std::fs::read(rig.path("tls/ca.pem")).unwrap();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(&ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let bare = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let bare = bare.with_root_certificates(roots).with_no_client_auth();
    gets_nothing(connect(&server, Arc::new(bare)));
    messages(&rig, "peer sent no certificates");

    // One of another CA; and a server of another CA is not believed by the client.
    let mixed = TlsFiles { ca: rig.path("tls/ca.pem"), ..files(&rig, "other", "two") };
    gets_nothing(connect(&server, client_config(&mixed).unwrap()));
    messages(&rig, "invalid peer certificate");
    let wrong = TlsFiles { ca: rig.path("other/ca.pem"), ..files(&rig, "tls", "one") };
    let error = connect(&server, client_config(&wrong).unwrap()).write_all(b"x").unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");

    // A server's certificate is not a client's.
    gets_nothing(connect(&server, client_config(&files(&rig, "tls", "server")).unwrap()));

    // No TLS at all: an alert comes back, and that is all.
    let mut stream = TcpStream::connect(server.address("tls")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let _ = stream.write_all(&[0; 4096]);
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.is_empty() || got[0] == 21 && got.len() == 7, "{got:?}");

    // And who has one still is.
    let config = client_config(&files(&rig, "tls", "one")).unwrap();
    Client::over(connect(&server, config)).construct("u", 1, "core", false);
}

#[test]
fn files_that_do_not_fit_are_named() {
    let rig = Rig::new();
    rig.ok(&["log", "cert", "tls", "--host", "localhost"]);
    rig.refused(&["log", "cert", "tls", "--host", "localhost"], &["tls/ca.pem", "not overwritten"]);
    rig.refused(&["log", "cert", "more", "--host", "h", "--client", "ca"], &["ca would be made twice"]);
    let mode = sh("stat", &["-c", "%a", rig.path("tls/server-key.pem").to_str().unwrap()]);
    assert_eq!(mode.trim(), "600");
    let serve = |cert: &str, key: &str, ca: &str, words: &[&str]| {
        let args =
            ["log", "serve", "--tcp", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, "--tls-ca", ca];
        rig.refused(&args, words);
    };
    serve("tls/none.pem", "tls/server-key.pem", "tls/ca.pem", &["cannot read tls/none.pem"]);
    serve(
        "tls/server-key.pem",
        "tls/server-key.pem",
        "tls/ca.pem",
        &["tls/server-key.pem", "no certificate"],
    );
    serve("tls/server.pem", "tls/server.pem", "tls/ca.pem", &["tls/server.pem", "no key"]);
    serve("tls/server.pem", "tls/ca-key.pem", "tls/ca.pem", &["tls/server.pem", "tls/ca-key.pem"]);
}
