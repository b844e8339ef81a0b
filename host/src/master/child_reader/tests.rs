//! Whatever comes over a child's socket: its death is seen, reading stops when it is told to, and no close is waited for.

use std::ffi::CString;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use super::*;
use crate::control::states::PluginState;
use crate::sys::process::{Image, Spec};
use crate::sys::readiness;

/// On a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(30);

/// Within this of the pidfd's event a death is reported, on a machine that is not busy.
const DEATH_SEEN: Duration = Duration::from_millis(200);

/// A child that does nothing, and the test in its place at its socket.
struct Fixture {
    process: Arc<Process>,
    theirs: OwnedFd,
    states: SharedStateMemory,
    events: mpsc::Receiver<Event>,
    stop: Option<oneshot::Sender<()>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn start() -> Fixture {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let output = process::output_file(c"test").unwrap();
        let image = Image::open(Path::new("/bin/sleep")).unwrap();
        let argv = ["sleep", "600"].map(|text| CString::new(text).unwrap()).to_vec();
        let spec = Spec { image: &image, argv, env: vec![], output: output.as_fd(), fds: vec![], credentials: None };
        let process = Arc::new(process::spawn(spec).unwrap());
        let ended = readiness::register(process.pidfd.try_clone().unwrap(), tokio::io::Interest::READABLE).unwrap();
        let (sender, events) = mpsc::channel(256);
        let (stop, stopped) = oneshot::channel();
        let states = SharedStateMemory::default();
        let reader = ChildReader {
            channel: Arc::new(MasterEnd::new(ours).unwrap()),
            process: process.clone(),
            output: Arc::new(output),
            states: states.clone(),
            generation: Generation(1),
            events: sender,
            complaints: Seldom::default(),
        };
        let reader = tokio::spawn(reader.run(ended, stopped));
        Fixture { process, theirs, states, events, stop: Some(stop), reader }
    }

    fn send(&self, message: &str) {
        let text = format!("{{\"fds\":0,\"message\":{message}}}");
        seqpacket::send(self.theirs.as_fd(), text.as_bytes(), &[]).unwrap();
    }

    /// Sends without end from another thread, as a process does that has inherited the socket. Ends with the error.
    fn flood(&self) -> std::thread::JoinHandle<io::Error> {
        let theirs = self.theirs.try_clone().unwrap();
        std::thread::spawn(move || {
            loop {
                match seqpacket::send(theirs.as_fd(), b"{\"fds\":0,\"message\":{\"type\":\"paused\"}}", &[]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    Err(error) => return error,
                    Ok(()) => {}
                }
            }
        })
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(LONG, self.events.recv()).await.expect("no event").expect("the reader has ended")
    }

    async fn message(&mut self) -> ToMaster {
        match self.event().await {
            Event::Message { message, .. } => message,
            other => panic!("no message: {other:?}"),
        }
    }

    fn kill(&self) {
        self.process.signal(Signal::SIGKILL).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Messages between the event of the pidfd and the report of the death: what the channel to the loop and the kernel held, and what
/// the budget of the reader allows until the runtime looks at the pidfd. Counted, since time says little on a busy machine; at
/// the rate of the budget and with what a message costs the loop, this is far less than 200 ms.
const MOST_AFTER_DEATH: usize = 256 + 512 + READ_RATE / MESSAGE_COST;

#[tokio::test]
async fn death_is_reported_while_another_process_writes_on() {
    let mut fixture = Fixture::start();
    let flood = fixture.flood();
    assert_eq!(fixture.message().await, ToMaster::Paused);
    fixture.kill();
    // The reader has no turn meanwhile.
    let mut poll = [nix::poll::PollFd::new(fixture.process.pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, 10_000_u16).unwrap();
    let dead = Instant::now();
    let mut after = 0;
    let exit = loop {
        match fixture.event().await {
            Event::Message { .. } => after += 1,
            Event::Exited { exit, .. } => break exit,
            other => panic!("{other:?}"),
        }
        assert!(after <= MOST_AFTER_DEATH, "{after} messages, and the death is not reported");
    };
    assert_eq!(exit, ExitKind::Signal(9));
    assert!(dead.elapsed() < 20 * DEATH_SEEN, "reported after {:?}", dead.elapsed());
    assert_eq!(flood.join().unwrap().kind(), io::ErrorKind::BrokenPipe, "nothing takes what it writes");
}

#[tokio::test]
async fn death_is_reported_while_reading_waits_for_the_budget() {
    let mut fixture = Fixture::start();
    let flood = fixture.flood();
    // The burst is used up: from here on the reader mostly sleeps.
    for _ in 0..READ_RATE / MESSAGE_COST + 100 {
        fixture.message().await;
    }
    fixture.kill();
    let dead = Instant::now();
    while !matches!(fixture.event().await, Event::Exited { .. }) {
        assert!(dead.elapsed() < 20 * DEATH_SEEN, "not reported after {:?}", dead.elapsed());
    }
    flood.join().unwrap();
}

#[tokio::test]
async fn last_messages_of_a_child_come_before_its_death() {
    let mut fixture = Fixture::start();
    // All before the reader has a turn.
    for message in ["{\"type\":\"paused\"}", "nonsense", "{\"type\":\"ready\"}"] {
        fixture.send(message);
    }
    fixture.kill();
    let mut poll = [nix::poll::PollFd::new(fixture.process.pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, 10_000_u16).unwrap();
    assert_eq!((fixture.message().await, fixture.message().await), (ToMaster::Paused, ToMaster::Ready));
    assert!(matches!(fixture.event().await, Event::Exited { .. }));
}

#[tokio::test]
async fn reading_stops_during_a_flood_and_death_is_seen_by_the_next_reader() {
    let mut fixture = Fixture::start();
    let flood = fixture.flood();
    fixture.message().await;
    drop(fixture.stop.take());
    let stopped = async {
        // As the loop does: what was read is taken.
        while let Some(event) = fixture.events.recv().await {
            assert!(matches!(event, Event::Message { .. }));
        }
    };
    tokio::time::timeout(LONG, stopped).await.expect("it reads on");
    (&mut fixture.reader).await.unwrap();
    flood.join().unwrap();
}

#[tokio::test]
async fn flood_is_read_at_the_rate_of_the_budget() {
    let mut fixture = Fixture::start();
    let _flood = fixture.flood();
    let start = Instant::now();
    let mut read = 0;
    while start.elapsed() < Duration::from_secs(2) {
        fixture.message().await;
        read += 1;
    }
    let most = READ_RATE / MESSAGE_COST * (start.elapsed().as_secs() as usize + 2);
    assert!(read <= most, "{read} messages in {:?}", start.elapsed());
}

#[test]
fn a_read_budget_allows_a_burst_and_then_its_rate() {
    let start = Instant::now();
    let mut budget = ReadBudget::new(start);
    let mut read = 0;
    while budget.next().is_none() {
        budget.spend(40, start);
        read += 1;
    }
    assert!((900..1100).contains(&read), "{read} short messages at once");
    let next = budget.next().unwrap();
    assert!(next > start && next < start + Duration::from_millis(10));
    let mut long = ReadBudget::new(start);
    for _ in 0..20 {
        long.spend(128 * 1024, start);
    }
    assert!(long.next().unwrap() > start + Duration::from_secs(1));
    // After a pause there is a burst again, and no larger one.
    let later = start + Duration::from_secs(1000);
    budget.spend(0, later);
    assert!(budget.next().is_none() && budget.left < READ_RATE as i64);
}

/// A connection whose last close waits for so long, and its peer, which reads nothing.
fn stuck(linger: Duration) -> (TcpStream, TcpStream) {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    // Much less than a sender queues: what is queued then stays unsent.
    socket2::SockRef::from(&sink).set_recv_buffer_size(4096).unwrap();
    let stream = TcpStream::connect(sink.local_addr().unwrap()).unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[0; 65_536]).is_ok() {}
    socket2::SockRef::from(&stream).set_linger(Some(linger)).unwrap();
    (stream, sink.accept().unwrap().0)
}

#[tokio::test]
async fn descriptors_beside_empty_messages_hold_up_nothing() {
    const LINGER: Duration = Duration::from_secs(20);
    // Without descriptors such a message looks as the end does, so that nothing behind it is read.
    for before in [0, 2] {
        let mut fixture = Fixture::start();
        let (stream, _peer) = stuck(LINGER);
        (0..before).for_each(|_| seqpacket::send(fixture.theirs.as_fd(), b"", &[]).unwrap());
        seqpacket::send(fixture.theirs.as_fd(), b"", &[stream.as_fd()]).unwrap();
        drop(stream);
        let start = Instant::now();
        fixture.kill();
        assert!(matches!(fixture.event().await, Event::Exited { .. }));
        (&mut fixture.reader).await.unwrap();
        assert!(start.elapsed() < LINGER / 2, "a close was waited for: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn no_descriptor_from_a_child_is_closed_here() {
    let mut fixture = Fixture::start();
    let (stream, _peer) = stuck(Duration::from_secs(300));
    // Whether the message is broken, says another number, or is as it says.
    for text in
        ["nonsense", "{\"fds\":0,\"message\":{\"type\":\"paused\"}}", "{\"fds\":1,\"message\":{\"type\":\"ready\"}}"]
    {
        seqpacket::send(fixture.theirs.as_fd(), text.as_bytes(), &[stream.as_fd()]).unwrap();
    }
    // As memory of states, too.
    let saved = "{\"fds\":1,\"message\":{\"type\":\"saved\",\"states\":[],\"failed\":[]}}";
    seqpacket::send(fixture.theirs.as_fd(), saved.as_bytes(), &[stream.as_fd()]).unwrap();
    // The last copy is in the reader's hands.
    drop(stream);
    fixture.kill();
    loop {
        if let Event::Exited { .. } = fixture.event().await {
            break;
        }
    }
    tokio::time::timeout(LONG, &mut fixture.reader).await.expect("a close is waited for").unwrap();
}

#[tokio::test]
async fn nothing_is_read_until_descriptors_are_closed() {
    let mut fixture = Fixture::start();
    let (stream, peer) = stuck(Duration::from_secs(300));
    seqpacket::send(fixture.theirs.as_fd(), b"nonsense", &[stream.as_fd()]).unwrap();
    drop(stream);
    fixture.send("{\"type\":\"paused\"}");
    let early = tokio::time::timeout(Duration::from_millis(500), fixture.events.recv()).await;
    assert!(early.is_err(), "{early:?}");
    // With unread bytes: a reset, which ends the close.
    drop(peer);
    assert_eq!(fixture.message().await, ToMaster::Paused);
}

fn state() -> Vec<PluginState> {
    vec![PluginState { plugin: "a".into(), version: 1, bytes: b"warm".to_vec() }]
}

/// As a child does with memory that came with SAVE.
fn fill(memory: OwnedFd) -> String {
    let identity = states::identity(memory.as_fd()).unwrap();
    let (entries, _) = states::fill(memory, state()).unwrap();
    let message = ToMaster::Saved { states: entries, failed: Vec::new(), memory: Some(identity) };
    serde_json::to_string(&message).unwrap()
}

#[tokio::test]
async fn states_are_kept_in_the_memory_that_was_lent_last() {
    let mut fixture = Fixture::start();
    let earlier = StateMemory::lend(&fixture.states).unwrap();
    let memory = StateMemory::lend(&fixture.states).unwrap();
    // The answer to the earlier SAVE is none, and leaves the memory of the later one where it is.
    fixture.send(&fill(earlier));
    fixture.send("{\"type\":\"paused\"}");
    assert_eq!(fixture.message().await, ToMaster::Paused);
    fixture.send(&fill(memory));
    let ToMaster::Saved { states, failed, .. } = fixture.message().await else { panic!("not SAVED") };
    assert_eq!((states.len(), failed.len()), (1, 0));
    let kept = StateMemory::take(&fixture.states).unwrap();
    assert_eq!(kept.open().unwrap(), state());
}

#[tokio::test]
async fn long_errors_of_a_save_are_cut() {
    let mut fixture = Fixture::start();
    let long = NotSaved { plugin: Some("p".repeat(5000)), error: "é".repeat(5000) };
    let message = ToMaster::Saved { states: Vec::new(), failed: vec![long], memory: None };
    fixture.send(&serde_json::to_string(&message).unwrap());
    let ToMaster::Saved { failed, .. } = fixture.message().await else { panic!("not SAVED") };
    let lengths = failed.iter().map(|one| (one.plugin.as_ref().unwrap().len(), one.error.len()));
    assert_eq!(lengths.collect::<Vec<_>>(), [(QUOTED, QUOTED)]);
}

#[tokio::test]
async fn memory_that_is_not_as_was_said_is_not_kept() {
    let mut fixture = Fixture::start();
    let memory = StateMemory::lend(&fixture.states).unwrap();
    let identity = states::identity(memory.as_fd()).unwrap();
    let entry = StateEntry { plugin: "a".into(), version: 1, length: 4 };
    // Not filled; and then none at all.
    for memory in [Some(identity), None] {
        let message = ToMaster::Saved { states: vec![entry.clone()], failed: Vec::new(), memory };
        fixture.send(&serde_json::to_string(&message).unwrap());
        let ToMaster::Saved { states, failed, .. } = fixture.message().await else { panic!("not SAVED") };
        assert_eq!((states.len(), failed.len()), (0, 1), "{failed:?}");
        assert!(StateMemory::take(&fixture.states).is_none());
    }
}

#[tokio::test]
async fn a_child_of_an_earlier_version_brings_memory_of_its_own() {
    let mut fixture = Fixture::start();
    StateMemory::lend(&fixture.states).unwrap();
    let (states, memory, _) = states::seal(state()).unwrap();
    let entries = serde_json::to_string(&states).unwrap();
    let text = format!("{{\"fds\":1,\"message\":{{\"type\":\"saved\",\"states\":{entries},\"failed\":[]}}}}");
    seqpacket::send(fixture.theirs.as_fd(), text.as_bytes(), &[memory.as_fd()]).unwrap();
    let ToMaster::Saved { states, failed, .. } = fixture.message().await else { panic!("not SAVED") };
    assert_eq!((states.len(), failed.len()), (1, 0), "{failed:?}");
    assert_eq!(StateMemory::take(&fixture.states).unwrap().open().unwrap(), state());
}
