//! A TCP relay on loopback that can be cut and mended.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

/// Bytes relayed in one piece; the size of a TLS record.
const PIECE: usize = 16 * 1024;

/// A relay; it ends with the process.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Relays a free port of loopback to `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port for the relay")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, cut: AtomicBool::new(false), open: Mutex::default() });
        let accepting = Arc::clone(&shared);
        thread::Builder::new().name("relay".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                // A connection that cannot be relayed is dropped, which is what its maker sees.
                let _ = accepting.relay(stream);
            }
        })?;
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection, and every new one as soon as it is made.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Already closed by its ends: cut all the same.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets new connections through again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn relay(&self, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(self.target)?;
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // Looked at under the lock, so that no connection slips in while `cut` empties the list.
            if self.cut.load(Ordering::SeqCst) {
                return Ok(());
            }
            open.extend([client.try_clone()?, server.try_clone()?]);
        }
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let back = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || copy(client, server));
        thread::spawn(move || copy(back.0, back.1));
        Ok(())
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut piece = vec![0; PIECE];
    while let Ok(length) = from.read(&mut piece) {
        if length == 0 || to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    // Either end may be gone by now.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        address
    }

    #[test]
    fn relays_until_cut_and_again_when_mended() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut answer = [0; 4];
        let mut first = TcpStream::connect(proxy.address()).unwrap();
        first.write_all(b"ping").unwrap();
        first.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");

        proxy.cut();
        assert_eq!(first.read(&mut answer).unwrap_or(0), 0, "a cut connection still gave data");
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(refused.read(&mut answer).unwrap_or(0), 0, "a connection was made through the cut");

        proxy.mend();
        let mut again = TcpStream::connect(proxy.address()).unwrap();
        again.write_all(b"pong").unwrap();
        again.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
    }
}
