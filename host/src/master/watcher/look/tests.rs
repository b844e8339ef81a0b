//! Looks and events on a real file system.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use super::*;
use crate::config::{Config, ConfigSource};
use crate::master::store::Trusted;

const LONG: Duration = Duration::from_secs(20);

struct Scene {
    _dir: tempfile::TempDir,
    root: PathBuf,
    source: Source,
    looker: Looker,
    hints: Arc<Hints>,
}

impl Scene {
    /// A configuration that names this plugin folder.
    fn new(plugins: &str) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let file = root.join("baton.toml");
        fs::write(&file, format!("plugin_dir = \"{plugins}\"\n")).unwrap();
        let (hints, path) = (Arc::new(Hints::default()), file.clone());
        let source = Source {
            config: Config::default(),
            origin: ConfigSource::NoFile,
            reread: Box::new(move || Config::load_known(Some(&path), &[])),
            prepare: None,
            config_files: Some(vec![file.clone()]),
            config_owners: Vec::new(),
            trusted: Trusted::with_groups(Vec::new()),
        };
        Scene { _dir: dir, root, source, looker: Looker::new(hints.clone(), vec![file]), hints }
    }

    fn look(&mut self) -> Sight {
        self.hints.forget();
        self.looker.look(&self.source, Targets::default(), Some(open))
    }

    /// Returns once the kernel has told of what `act` does.
    #[track_caller]
    fn told_of(&self, act: impl FnOnce()) {
        self.hints.forget();
        act();
        let deadline = Instant::now() + LONG;
        while self.hints.peek().is_none() {
            assert!(Instant::now() < deadline, "nothing was told");
            std::thread::yield_now();
        }
    }

    #[track_caller]
    fn shows(&mut self, name: &str, text: Option<&str>) {
        let sight = self.look();
        assert_eq!(sight.blind, None);
        let found = sight.view.get(&self.root.join(name)).map(|stamp| stamp.content.clone());
        assert_eq!(found, text.map(content_of), "{:#?}", sight.view);
    }
}

fn content_of(text: &str) -> Content {
    use sha2::Digest;
    Content::Sha256(store::hex(&sha2::Sha256::digest(text)))
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn whatever_leads_to_a_file_is_told_of_when_it_changes() {
    let mut scene = Scene::new("live/plugins");
    let root = scene.root.clone();
    scene.shows("live/plugins/a.so", None);
    scene.told_of(|| {
        fs::create_dir_all(root.join("releases/1/plugins"))
            .map(drop)
            .and_then(|()| symlink("releases/1", root.join("live")))
            .unwrap()
    });
    scene.shows("live/plugins/a.so", None);
    scene.told_of(|| fs::write(root.join("releases/1/plugins/a.so"), "1").unwrap());
    scene.shows("live/plugins/a.so", Some("1"));
    scene.told_of(|| replace(&root.join("releases/1/plugins/a.so"), "2"));
    scene.shows("live/plugins/a.so", Some("2"));
    // The folder, deleted and made anew, then replaced by a rename.
    scene.told_of(|| fs::remove_dir_all(root.join("releases/1/plugins")).unwrap());
    scene.shows("live/plugins/a.so", None);
    scene.told_of(|| fs::create_dir(root.join("releases/1/plugins")).unwrap());
    scene.shows("live/plugins/a.so", None);
    scene.told_of(|| fs::write(root.join("releases/1/plugins/a.so"), "3").unwrap());
    scene.shows("live/plugins/a.so", Some("3"));
    scene.told_of(|| {
        fs::create_dir(root.join("new")).unwrap();
        fs::write(root.join("new/a.so"), "4").unwrap();
        fs::rename(root.join("releases/1/plugins"), root.join("old")).unwrap();
        fs::rename(root.join("new"), root.join("releases/1/plugins")).unwrap();
    });
    scene.shows("live/plugins/a.so", Some("4"));
    scene.told_of(|| replace(&root.join("releases/1/plugins/a.so"), "5"));
    scene.shows("live/plugins/a.so", Some("5"));
    // Another release.
    fs::create_dir_all(root.join("releases/2/plugins")).unwrap();
    fs::write(root.join("releases/2/plugins/a.so"), "6").unwrap();
    symlink("releases/2", root.join("next")).unwrap();
    scene.told_of(|| fs::rename(root.join("next"), root.join("live")).unwrap());
    scene.shows("live/plugins/a.so", Some("6"));
    scene.told_of(|| replace(&root.join("releases/2/plugins/a.so"), "7"));
    scene.shows("live/plugins/a.so", Some("7"));
    // The configuration, and where it leads.
    scene.told_of(|| fs::write(root.join("baton.toml"), "plugin_dir = \"other\"\n").unwrap());
    scene.shows("other/b.so", None);
    scene.told_of(|| fs::create_dir(root.join("other")).unwrap());
    scene.shows("other/b.so", None);
    scene.told_of(|| fs::write(root.join("other/b.so"), "8").unwrap());
    scene.shows("other/b.so", Some("8"));
    // One that cannot be read leaves what the one before has named.
    scene.told_of(|| fs::write(root.join("baton.toml"), "plugin_dir = 7\n").unwrap());
    scene.shows("other/b.so", Some("8"));
}

#[test]
fn looking_is_not_told_of_nor_is_what_does_not_count() {
    let mut scene = Scene::new("plugins");
    let root = scene.root.clone();
    let file = root.join("plugins/a.so");
    fs::create_dir(root.join("plugins")).unwrap();
    fs::write(&file, "1").unwrap();
    let ways = scene.look().targets.ways();
    let (sender, events) = std::sync::mpsc::channel();
    let mut other = notify::recommended_watcher(sender).unwrap();
    for dir in [&root, &root.join("plugins")] {
        other.watch(dir, RecursiveMode::NonRecursive).unwrap();
    }
    // Events come in their order.
    let count_until = |act: &mut dyn FnMut(), marker: &str| {
        act();
        fs::write(root.join(marker), "").unwrap();
        let all = std::iter::from_fn(|| events.recv_timeout(LONG).unwrap().map(Some).unwrap());
        let before = all.take_while(|event| !event.paths.contains(&root.join(marker)));
        before.filter(|event| counts(event, &ways)).count()
    };
    let mut looking = || {
        scene.looker.hashes.clear();
        scene.look();
        fs::write(root.join("plugins/README"), "x").unwrap();
        fs::write(root.join("plugins/.b.so"), "x").unwrap();
        fs::write(root.join("unrelated.so"), "x").unwrap();
        fs::read(&file).unwrap();
    };
    assert_eq!(count_until(&mut looking, "first"), 0);
    assert_ne!(count_until(&mut || fs::write(&file, "2").unwrap(), "second"), 0);
}

#[test]
fn without_events_it_sees_as_much_and_says_why() {
    let mut scene = Scene::new("plugins");
    fs::create_dir(scene.root.join("plugins")).unwrap();
    fs::write(scene.root.join("plugins/a.so"), "1").unwrap();
    let none = |_| Err(notify::Error::io(io::Error::from_raw_os_error(libc::EMFILE)));
    let sight = scene.looker.look(&scene.source, Targets::default(), Some(none));
    assert!(sight.blind.is_some_and(|why| why.contains("max_user_instances")), "it says what is missing");
    assert_eq!(sight.view[&scene.root.join("plugins/a.so")].content, content_of("1"));
    let sight = scene.looker.look(&scene.source, Targets::default(), None);
    assert!(sight.blind.is_some_and(|why| why.contains("watch.events")) && scene.looker.watcher.is_none());
    // There is room again.
    assert_eq!(scene.look().blind, None);
    assert!(explain(&notify::Error::new(notify::ErrorKind::MaxFilesWatch)).contains("max_user_watches"));
}

#[test]
fn lost_events_are_an_overflow() {
    let hints = Hints::default();
    let mut event = notify::Event::new(EventKind::Other);
    hints.hear(Ok(event.clone()));
    assert_eq!(hints.peek(), None);
    event = event.set_flag(notify::event::Flag::Rescan);
    hints.hear(Ok(event));
    assert!(hints.peek().is_some_and(|hint| hint.overflow));
    hints.forget();
    assert_eq!(hints.peek(), None);
    hints.hear(Err(notify::Error::generic("x")));
    assert!(hints.peek().is_some_and(|hint| hint.overflow));
}

#[test]
fn a_file_that_is_open_for_writing_and_one_that_is_none_are_told_apart() {
    let mut scene = Scene::new("plugins");
    let path = scene.root.join("plugins/a.so");
    fs::create_dir(scene.root.join("plugins")).unwrap();
    let mut file = File::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(scene.look().view[&path].content, Content::BeingWritten);
    file.write_all(b" and half").unwrap();
    drop(file);
    scene.shows("plugins/a.so", Some("half and half"));
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(scene.look().view[&path].content, Content::Unreadable);
}

#[test]
fn a_file_is_read_again_unless_it_is_the_same_for_sure() {
    let mut scene = Scene::new("plugins");
    let path = scene.root.join("plugins/a.so");
    fs::create_dir(scene.root.join("plugins")).unwrap();
    fs::write(&path, "1").unwrap();
    scene.shows("plugins/a.so", Some("1"));
    assert!(!scene.looker.hashes.contains_key(&path), "it could be written to within the same tick");
    let deadline = Instant::now() + LONG;
    while !scene.looker.hashes.contains_key(&path) {
        assert!(Instant::now() < deadline);
        scene.shows("plugins/a.so", Some("1"));
    }
    let lie = scene.looker.hashes.get_mut(&path).map(|(_, sha256)| std::mem::replace(sha256, "known".into()));
    assert!(lie.is_some());
    assert_eq!(scene.look().view[&path].content, Content::Sha256("known".into()), "not read again");
    fs::write(&path, "2").unwrap();
    scene.shows("plugins/a.so", Some("2"));
}
