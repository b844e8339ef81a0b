//! A worker's whole life against a master in this test: the control protocol over a real pair, and real listeners.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::generate_simple_self_signed;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use super::life::{Orphan, Worker};
use crate::config::{Config, Drain};
use crate::control::secrets::{Certificate, ServerCertificates, seal_certificates};
use crate::control::{
    Deadlines, ListenerInfo, LoadSet, MasterEnd, PROTOCOL, PluginFile, Protocols, ToChild, ToMaster, WorkerEnd,
};
use crate::metrics::SLOTS;
use crate::report::{DrainReport, Failure, Generation, Stage};
use crate::sys::shared::Slots;
use crate::sys::{seqpacket, worker};

const PATIENCE: Duration = Duration::from_secs(20);
const NOW: Deadlines = Deadlines {
    keepalive_ms: Some(0),
    linger_ms: None,
    timeout_ms: Some(0),
    upgraded_ms: Some(0),
    stream_ms: Some(0),
    min_rate: 0,
    max_ms: Some(0),
};

/// The master's side of one worker, which runs on a thread of this process.
struct Master {
    runtime: tokio::runtime::Runtime,
    control: Option<MasterEnd>,
    worker: JoinHandle<i32>,
    listener: TcpListener,
}

fn master() -> Master {
    let (ours, theirs) = seqpacket::pair().unwrap();
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let term = signal(SignalKind::user_defined2()).unwrap();
            // The process is the test's: its end is not enforced.
            let orphan = Orphan { time: Arc::new(AtomicU64::new(0)), enforce: |_| Ok(()) };
            let worker = Worker::new(WorkerEnd::new(theirs).unwrap(), None, orphan);
            worker.live(term, worker::parent()).await
        })
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let control = runtime.block_on(async { MasterEnd::new(ours) }).unwrap();
    Master { runtime, control: Some(control), worker, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
}

impl Master {
    fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn send(&self, message: ToChild, fds: &[BorrowedFd]) {
        self.runtime.block_on(self.control.as_ref().unwrap().send(&message, fds)).unwrap();
    }

    #[track_caller]
    fn recv(&self) -> ToMaster {
        let recv = async { tokio::time::timeout(PATIENCE, self.control.as_ref().unwrap().recv()).await };
        self.runtime.block_on(recv).expect("the worker answers").unwrap().expect("the worker lives").0
    }

    /// Whether the worker says nothing for that long.
    fn is_silent_for(&self, time: Duration) -> bool {
        let recv = async { tokio::time::timeout(time, self.control.as_ref().unwrap().recv()).await };
        self.runtime.block_on(recv).is_err()
    }

    fn hello(&self) {
        assert!(matches!(self.recv(), ToMaster::Hello { protocols: PROTOCOL, .. }));
        let hello = ToChild::Hello { protocols: PROTOCOL, version: "1".into(), generation: Generation(3) };
        self.send(hello, &[]);
    }

    fn load(&self, plugins: Vec<PluginFile>) {
        let drain = Drain { orphan: Duration::from_millis(300), ..Drain::default() };
        self.load_only(Config { drain, workers: 2, ..Config::default() }, plugins);
        self.listener();
    }

    /// LOAD without what follows it.
    fn load_only(&self, config: Config, plugins: Vec<PluginFile>) {
        let info = ListenerInfo { id: 7, server: "web".into(), address: self.addr().to_string() };
        let set = LoadSet { config, plugins, listeners: vec![info], states: Vec::new() };
        let (memory, _slots) = Slots::<SLOTS>::create("metrics").unwrap();
        self.send(ToChild::Load(Box::new(set)), &[memory.as_fd()]);
    }

    fn listener(&self) {
        let socket = OwnedFd::from(self.listener.try_clone().unwrap());
        self.send(ToChild::Listener { id: 7 }, &[socket.as_fd()]);
    }

    /// Up to SERVING.
    fn start(&self) {
        self.hello();
        self.load(Vec::new());
        assert_eq!(self.recv(), ToMaster::Ready);
        self.send(ToChild::Go, &[]);
        assert_eq!(self.recv(), ToMaster::Serving);
    }

    #[track_caller]
    fn exit_code(mut self) -> i32 {
        self.control = None;
        self.worker.join().unwrap()
    }
}

fn request(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut bytes = [0; 4096];
    let len = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

#[test]
fn secrets_may_come_after_the_plugins_are_up() {
    let own = generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let certificate = Certificate {
        names: vec!["a.example".into()],
        chain: vec![own.cert.der().to_vec()],
        key: Zeroizing::new(own.signing_key.serialize_der()),
    };
    let certificates =
        seal_certificates(&[ServerCertificates { server: "web".into(), certificates: vec![certificate] }]);
    let text = "server=[{ name = \"web\", listen = [\"127.0.0.1:0\"], tls = [{ cert = \"/c\", key = \"/k\" }] }]";
    let master = master();
    master.hello();
    master.load_only(Config::load(None, &[text.into()]).unwrap(), Vec::new());
    // Without a plugin, loading takes no time: a worker that did not wait would refuse now.
    assert!(master.is_silent_for(Duration::from_millis(200)));
    master.send(ToChild::Certificates, &[certificates.unwrap().as_fd()]);
    master.listener();
    assert_eq!(master.recv(), ToMaster::Ready);
}

#[test]
fn secrets_that_never_come_are_a_refusal() {
    let text = "server=[{ name = \"web\", listen = [\"127.0.0.1:0\"], tls = [{ cert = \"/c\", key = \"/k\" }] }]";
    let master = master();
    master.hello();
    master.load_only(Config::load(None, &[text.into()]).unwrap(), Vec::new());
    master.listener();
    let ToMaster::Failed(failure) = master.recv() else { panic!("not FAILED") };
    assert!(failure.stage == Stage::Load && failure.error.contains("certificates"), "{failure:?}");
}

#[test]
fn a_life_from_hello_to_done() {
    let master = master();
    let mut early = TcpStream::connect(master.addr()).unwrap();
    master.start();
    assert!(request(&mut early).starts_with("HTTP/1.1 503 "), "what was queued before GO is served");

    master.send(ToChild::Pause, &[]);
    assert_eq!(master.recv(), ToMaster::Paused);
    let mut queued = TcpStream::connect(master.addr()).unwrap();
    assert!(request(&mut early).starts_with("HTTP/1.1 503 "), "a paused worker serves what it has");
    master.send(ToChild::Resume, &[]);
    assert_eq!(master.recv(), ToMaster::Serving);
    assert!(request(&mut queued).starts_with("HTTP/1.1 503 "));

    master.send(ToChild::Pause, &[]);
    assert_eq!(master.recv(), ToMaster::Paused);
    master.send(
        ToChild::Retire(Deadlines {
            keepalive_ms: Some(50),
            linger_ms: None,
            stream_ms: None,
            timeout_ms: None,
            min_rate: 0,
            upgraded_ms: None,
            max_ms: None,
        }),
        &[],
    );
    let ToMaster::Done(report) = master.recv() else { panic!("not DONE") };
    assert_eq!(DrainReport { ms: 0.0, ..report }, DrainReport { lingered: 2, ..DrainReport::default() });
    assert!(report.ms >= 50.0);
    master.send(ToChild::DoneAck, &[]);
    assert_eq!(master.exit_code(), 0);
}

#[test]
fn a_bad_plugin_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.so");
    std::fs::write(&path, "text\n").unwrap();
    let master = master();
    master.hello();
    let bad = PluginFile {
        name: "bad".into(),
        path,
        mount: "/".into(),
        config: serde_json::json!({}),
        data_dir: dir.path().into(),
        allow_control: true,
        workers: 0,
    };
    master.load(vec![bad]);
    assert_eq!(master.recv(), ToMaster::Loading { plugin: "bad".into() }, "before anything of it runs");
    let ToMaster::Failed(Failure { stage, plugin, error, hint, .. }) = master.recv() else { panic!("not FAILED") };
    assert_eq!((stage, plugin.as_deref()), (Stage::Load, Some("bad")));
    assert!(error.starts_with("open the library: ") && hint.is_some(), "{error}");
    assert_eq!(master.exit_code(), 1);
}

#[test]
fn a_listener_that_does_not_listen_is_a_failure() {
    let master = master();
    master.hello();
    let info = ListenerInfo { id: 1, server: "web".into(), address: "x".into() };
    let set = LoadSet { config: Config::default(), plugins: Vec::new(), listeners: vec![info], states: Vec::new() };
    let (memory, _slots) = Slots::<SLOTS>::create("metrics").unwrap();
    master.send(ToChild::Load(Box::new(set)), &[memory.as_fd()]);
    let stream = TcpStream::connect(master.addr()).unwrap();
    master.send(ToChild::Listener { id: 1 }, &[stream.as_fd()]);
    let ToMaster::Failed(failure) = master.recv() else { panic!("not FAILED") };
    assert!(failure.error.contains("does not listen"), "{failure:?}");
    assert_eq!(master.exit_code(), 1);
}

#[test]
fn a_master_of_another_protocol_is_told() {
    let master = master();
    assert!(matches!(master.recv(), ToMaster::Hello { .. }));
    let protocols = Protocols { oldest: 50, newest: 60 };
    master.send(ToChild::Hello { protocols, version: "9".into(), generation: Generation(1) }, &[]);
    assert!(matches!(master.recv(), ToMaster::Failed(_)));
    assert_eq!(master.exit_code(), 1);
}

#[test]
fn cut_ends_a_drain_that_waits() {
    let master = master();
    master.start();
    let mut idle = TcpStream::connect(master.addr()).unwrap();
    request(&mut idle);
    master.send(ToChild::Pause, &[]);
    assert_eq!(master.recv(), ToMaster::Paused);
    master.send(
        ToChild::Retire(Deadlines {
            keepalive_ms: None,
            linger_ms: None,
            stream_ms: None,
            timeout_ms: None,
            min_rate: 0,
            upgraded_ms: None,
            max_ms: None,
        }),
        &[],
    );
    master.send(ToChild::Cut, &[]);
    assert!(matches!(master.recv(), ToMaster::Done(report) if report.lingered == 1 && report.lost == 0));
    master.send(ToChild::DoneAck, &[]);
    assert_eq!(master.exit_code(), 0);
}

#[test]
fn without_its_master_a_worker_serves_what_it_has_and_ends() {
    let mut master = master();
    master.start();
    let mut kept = TcpStream::connect(master.addr()).unwrap();
    request(&mut kept);
    master.control = None;
    // It serves on as before until it has seen the end of the channel.
    let told = (0..10_000).any(|_| request(&mut kept).contains("connection: close"));
    assert!(told, "answered, and told of the end");
    let addr = master.addr();
    let Master { listener, worker, .. } = master;
    drop(listener);
    assert_eq!(worker.join().unwrap(), 1);
    assert!(TcpStream::connect(addr).is_err(), "nobody holds the port any more");
}

#[test]
fn retire_without_a_pause_ends_as_well() {
    let master = master();
    master.start();
    master.send(ToChild::Retire(NOW), &[]);
    assert!(matches!(master.recv(), ToMaster::Done(_)));
    master.send(ToChild::DoneAck, &[]);
    assert_eq!(master.exit_code(), 0);
}
