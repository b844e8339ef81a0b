//! Closing descriptors that another process has sent. A close may wait: for unsent data (SO_LINGER, socket(7)), for a terminal to
//! drain, for a file system that hangs. So it happens on a thread of its own.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

use tokio::sync::oneshot;

/// Closes all of `fds` elsewhere; the receiver ends when they are closed.
pub fn close(fds: Vec<OwnedFd>) -> io::Result<oneshot::Receiver<()>> {
    let (sender, closed) = oneshot::channel();
    // As numbers: should there be no thread, they stay open rather than being closed here.
    let numbers: Vec<RawFd> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
    std::thread::Builder::new().name("close".into()).stack_size(64 * 1024).spawn(move || {
        for number in numbers {
            // SAFETY: the number was an owned descriptor's, which was given up for this.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
        // Dropped without a word: the receiver ends either way.
        drop(sender);
    })?;
    Ok(closed)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn descriptors_are_closed_and_that_is_told() {
        let (mut reader, writer) = io::pipe().unwrap();
        close(vec![writer.into()]).unwrap().await.unwrap_err();
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_close_that_waits_holds_up_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        while (&stream).write(&[0; 65_536]).is_ok() {}
        socket2::SockRef::from(&stream).set_linger(Some(Duration::from_secs(60))).unwrap();
        let begun = Instant::now();
        let mut closed = close(vec![stream.into()]).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30) && closed.try_recv().is_err());
    }
}
