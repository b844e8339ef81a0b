//! Closing descriptors that another process has sent. A close may wait: for unsent data (SO_LINGER, socket(7)), for a terminal to
//! drain, for a file system that hangs. So it happens on a thread of its own.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

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

/// A socket in whose queue other descriptors may lie: closing it closes those, so that it is closed elsewhere, too.
#[derive(Debug)]
pub struct ClosedElsewhere(ManuallyDrop<OwnedFd>);

impl From<OwnedFd> for ClosedElsewhere {
    fn from(socket: OwnedFd) -> ClosedElsewhere {
        ClosedElsewhere(ManuallyDrop::new(socket))
    }
}

impl AsFd for ClosedElsewhere {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ClosedElsewhere {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for ClosedElsewhere {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and not used after the drop.
        let socket = unsafe { ManuallyDrop::take(&mut self.0) };
        // Without a thread it stays open: see `close`.
        close(vec![socket]).ok();
    }
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
