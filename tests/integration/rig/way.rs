//! A way to a server of a test, on which a test can do harm.

use std::net::{TcpListener, TcpStream};

/// Listens, and has each connection passed on to `to` by `pass_on`, in a thread for each direction; both ends are closed
/// when one of the two has ended. Its port.
pub fn way(to: &str, pass_on: impl Fn(&TcpStream, &TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = to.to_owned();
    std::thread::spawn(move || {
        for one in listener.incoming().map_while(Result::ok) {
            let Ok(other) = TcpStream::connect(&to) else { continue };
            for (from, to) in [(&one, &other), (&other, &one)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let pass_on = pass_on.clone();
                std::thread::spawn(move || {
                    pass_on(&from, &to);
                    for end in [from, to] {
                        let _ = end.shutdown(std::net::Shutdown::Both);
                    }
                });
            }
        }
    });
    port
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
