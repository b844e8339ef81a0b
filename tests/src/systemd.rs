//! A service manager for the tests: what systemd does at its end of sd_notify(3). It writes down what it is told and by
//! whom, keeps descriptors as a unit with `FileDescriptorStoreMax=` does, and gives them back to the next start.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tempfile::TempDir;

use crate::wait;

/// Descriptors that one message may bring.
const FDS: usize = 16;

/// One datagram.
#[derive(Clone, Debug)]
pub struct Message {
    /// Of the process that sent it, as the kernel says.
    pub sender: i32,
    pub text: String,
    pub at: Instant,
}

impl Message {
    /// What it says of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    pub fn says(&self, line: &str) -> bool {
        self.text.lines().any(|found| found == line)
    }
}

#[derive(Debug, Default)]
struct Heard {
    messages: Vec<Message>,
    store: Vec<(String, OwnedFd)>,
}

/// It listens until it is dropped.
pub struct Manager {
    dir: TempDir,
    address: String,
    socket: Arc<UnixDatagram>,
    heard: Arc<Mutex<Heard>>,
    hangs: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Manager {
    /// At a path.
    pub fn new() -> Manager {
        let dir = tempfile::Builder::new().prefix("bn-").tempdir().expect("failed to make a temporary directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("failed to bind a notification socket");
        Manager::over(dir, path.display().to_string(), socket)
    }

    /// At an abstract name.
    pub fn in_the_abstract() -> Manager {
        let dir = tempfile::Builder::new().prefix("bn-").tempdir().expect("failed to make a temporary directory");
        let name = dir.path().display().to_string();
        let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
        let socket = UnixDatagram::bind_addr(&address).expect("failed to bind an abstract name");
        Manager::over(dir, format!("@{name}"), socket)
    }

    fn over(dir: TempDir, address: String, socket: UnixDatagram) -> Manager {
        rustix::net::sockopt::set_socket_passcred(&socket, true).expect("failed to ask for credentials");
        let (socket, heard, hangs) = (Arc::new(socket), Arc::<Mutex<Heard>>::default(), Arc::<AtomicBool>::default());
        let (theirs, into, hanging) = (socket.clone(), heard.clone(), hangs.clone());
        let reader = std::thread::spawn(move || while listen(&theirs, &into, &hanging) {});
        Manager { dir, address, socket, heard, hangs, reader: Some(reader) }
    }

    /// For `NOTIFY_SOCKET`.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the order in which they came.
    pub fn messages(&self) -> Vec<Message> {
        self.heard().messages.clone()
    }

    /// How many messages say this line.
    pub fn count(&self, line: &str) -> usize {
        self.heard().messages.iter().filter(|message| message.says(line)).count()
    }

    /// The first message from number `from` on that is as `wanted`, and its number.
    #[track_caller]
    pub fn wait_for(&self, what: &str, from: usize, wanted: impl Fn(&Message) -> bool) -> (usize, Message) {
        let found = wait::try_until(wait::LONG, || {
            let heard = self.heard();
            let mut numbered = heard.messages.iter().enumerate().skip(from);
            numbered.find(|(_, message)| wanted(message)).map(|(number, message)| (number, message.clone()))
        });
        found.unwrap_or_else(|| panic!("waited in vain for {what}; heard {:#?}", self.messages()))
    }

    /// The same of a line.
    #[track_caller]
    pub fn wait_for_line(&self, line: &str, from: usize) -> (usize, Message) {
        self.wait_for(line, from, |message| message.says(line))
    }

    /// Names of the descriptors in its keeping.
    pub fn stored(&self) -> Vec<String> {
        self.heard().store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Puts a descriptor into the store, as an earlier run of the service could have.
    pub fn store(&self, name: &str, fd: OwnedFd) {
        self.heard().store.push((name.into(), fd));
    }

    /// Where a stored socket listens.
    #[track_caller]
    pub fn address_of(&self, name: &str) -> std::net::SocketAddr {
        let heard = self.heard();
        let (_, fd) = heard.store.iter().find(|(stored, _)| stored == name).expect("it is in the store");
        let address = rustix::net::getsockname(fd).expect("failed to ask for an address");
        address.try_into().expect("an IP address")
    }

    /// Reads nothing more, and keeps what it has.
    pub fn hang(&self) {
        self.hangs.store(true, SeqCst);
    }

    /// Where the next start of the service finds what is stored now: `tether --fetch PATH` asks there, once.
    pub fn give_back(&self) -> PathBuf {
        let path = self.dir.path().join("store");
        // Of an earlier start.
        std::fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path).expect("failed to bind the store's socket");
        let heard = self.heard.clone();
        std::thread::spawn(move || {
            let (connection, _) = listener.accept().expect("failed to accept");
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let names: Vec<&str> = heard.store.iter().map(|(name, _)| name.as_str()).collect();
            let fds: Vec<_> = heard.store.iter().map(|(_, fd)| fd.as_fd()).collect();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)), "too many descriptors");
            let text = names.join(":");
            let parts = [std::io::IoSlice::new(text.as_bytes())];
            rustix::net::sendmsg(&connection, &parts, &mut rights, SendFlags::empty()).expect("failed to give back");
        });
        path
    }
}

impl Default for Manager {
    fn default() -> Manager {
        Manager::new()
    }
}

/// One datagram; whether there may be more.
fn listen(socket: &UnixDatagram, heard: &Mutex<Heard>, hangs: &AtomicBool) -> bool {
    let mut buffer = [0; 8192];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
    let len = match received {
        Ok(message) if message.bytes > 0 => message.bytes,
        Err(rustix::io::Errno::INTR) => return true,
        _ => return false,
    };
    if hangs.load(SeqCst) {
        // What it is told lies in its queue for ever, with the descriptors.
        std::mem::forget(control);
        return false;
    }
    let (mut sender, mut fds) = (0, Vec::new());
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(brought) => fds.extend(brought),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = credentials.pid.as_raw_nonzero().get(),
            _ => {}
        }
    }
    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
    let message = Message { sender, text, at: Instant::now() };
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let name = message.get("FDNAME").unwrap_or("stored").to_string();
    if message.says("FDSTORE=1") {
        for fd in fds.drain(..) {
            // It keeps one descriptor of each open file.
            if !heard.store.iter().any(|(_, kept)| inode(kept) == inode(&fd)) {
                heard.store.push((name.clone(), fd));
            }
        }
    }
    if message.says("FDSTOREREMOVE=1") {
        heard.store.retain(|(kept, _)| *kept != name);
    }
    heard.messages.push(message);
    // What came for nothing is closed, as that of a BARRIER=1, whose sender waits for this.
    drop(fds);
    true
}

/// The inode of an open file: sockets and pipes have one each.
pub fn inode(fd: &impl AsFd) -> u64 {
    rustix::fs::fstat(fd).expect("failed to look at a descriptor").st_ino
}

impl Drop for Manager {
    fn drop(&mut self) {
        // Wakes the reader.
        if self.socket.shutdown(std::net::Shutdown::Both).is_ok()
            && let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("the reader of {} panicked", Path::new(&self.address).display());
        }
    }
}
