//! The store on real files: what is copied, kept, refused and removed.

use super::*;

struct Place {
    dir: tempfile::TempDir,
    store: Store,
    config: Config,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let plugin_dir = dir.path().join("plugins");
    std::fs::create_dir(&plugin_dir).unwrap();
    let store = Store::open(dir.path(), Trusted::with_groups(vec![nix::unistd::getegid().as_raw()])).unwrap();
    Place { dir, store, config: Config { plugin_dir, ..Config::default() } }
}

fn snapshot(name: &str, mount: &str) -> Arc<Snapshot> {
    Snapshot::fake(name, mount, name)
}

#[test]
fn a_folder_that_is_missing_or_empty_holds_no_plugin() {
    let mut place = place();
    assert!(place.store.take(&place.config).unwrap().is_empty());
    place.config.plugin_dir = place.dir.path().join("nowhere");
    assert!(place.store.take(&place.config).unwrap().is_empty());
}

#[test]
fn a_bad_file_is_refused_by_name_and_leaves_nothing_behind() {
    let mut place = place();
    std::fs::write(place.config.plugin_dir.join("libbad.so"), "no library").unwrap();
    let failure = place.store.take(&place.config).unwrap_err();
    assert_eq!((failure.stage, failure.plugin.as_deref()), (Stage::Snapshot, Some("bad")));
    assert!(failure.error.contains("libbad.so"), "{failure}");
    assert_eq!(std::fs::read_dir(place.dir.path().join("store")).unwrap().count(), 0);
}

#[test]
fn removed_copies_are_taken_again_of_files_that_are_the_same() {
    let mut place = place();
    let path = place.config.plugin_dir.join("liba.so");
    std::fs::write(&path, "one").unwrap();
    let sha256 = hash(&File::open(&path).unwrap()).unwrap();
    let copy = place.store.dir.join(format!("{sha256}.so"));
    let fake = Arc::try_unwrap(Snapshot::fake("a", "", &sha256)).unwrap();
    let snapshot = Arc::new(Snapshot { path: copy.clone(), ..fake });
    let known = Known { identity: Identity::fake(1), signed: Signed::now(&path, &[]), snapshot };
    place.store.known.insert(path.clone(), known);
    for _ in 0..2 {
        std::fs::remove_dir_all(&place.store.dir).unwrap();
        assert_eq!(place.store.restore().unwrap(), Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), "one");
    }
    std::fs::write(&path, "other").unwrap();
    assert_eq!(place.store.restore().unwrap(), Vec::<String>::new(), "the copy is there");
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(place.store.restore().unwrap(), ["liba.so"]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(place.store.restore().unwrap(), ["liba.so"]);
    assert_eq!(std::fs::read_dir(&place.store.dir).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_file_that_is_being_written_is_refused_and_accepted_later() {
    let place = place();
    let path = place.config.plugin_dir.join("libslow.so");
    let writer = File::create(&path).unwrap();
    // Only where leases work does an open writer count that does not write.
    if matches!(files::read_lease(&File::open(&path).unwrap()).unwrap(), Lease::Written) {
        assert!(place.store.copy_settled(&path).unwrap().is_none());
    }
    drop(writer);
    let (_, copy, _) = place.store.copy_settled(&path).unwrap().unwrap();
    assert_eq!(std::fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn the_configuration_decides_the_mount_then_the_plugin_then_the_root() {
    let config = Config::load(None, &["plugins.a.mount=/x".into()]).unwrap();
    let mounted = mount(vec![snapshot("a", "/own"), snapshot("b", "/own"), snapshot("c", "")], &config).unwrap();
    let mounts: Vec<&str> = mounted.iter().map(|plugin| plugin.mount.as_str()).collect();
    assert_eq!(mounts, ["/x", "/own", "/"]);
}

#[test]
fn routes_make_mounts_unimportant_and_lead_to_plugins_that_are_there() {
    let route = |plugin: &str| crate::config::Route { host: None, prefix: format!("/{plugin}"), plugin: plugin.into() };
    let mut config = Config::default();
    config.server[0].route = vec![route("a-b"), route("c")];
    let both = || vec![snapshot("a_b", ""), snapshot("c", "")];
    assert_eq!(mount(both(), &config).unwrap().len(), 2);
    // A server without routes has them all at their mounts again.
    config.server.push(crate::config::Server::new("other", &["127.0.0.1:1"]));
    assert!(mount(both(), &config).is_err());
    let failure = mount(vec![snapshot("a_b", "")], &config).unwrap_err();
    assert!(failure.error.contains("`c`") && failure.hint.as_ref().unwrap().contains("a_b"), "{failure}");
    assert!(mount(vec![], &config).unwrap_err().hint.unwrap().contains("no plugin at all"));
}

#[test]
fn two_plugins_at_one_mount_are_refused_with_the_line_to_add() {
    let failure = mount(vec![snapshot("a", ""), snapshot("b", "")], &Config::default()).unwrap_err();
    assert!(failure.hint.unwrap().contains("[plugins.b]"));
    assert!(mount(vec![snapshot("a", "x/")], &Config::default()).is_err());
}

#[test]
fn hint_for_a_mount_is_valid_configuration_for_any_name() {
    for name in ["b", "zapp-1.2", "a b", "ü", "q\"uo\\te", "a]b", "new\nline\x7f", "#?/"] {
        let both = vec![snapshot("a", ""), snapshot(name, "")];
        let hint = mount(both, &Config::default()).unwrap_err().hint.unwrap();
        let (head, mount_line) = hint.split_once("configuration:  ").unwrap().1.split_once("]  ").unwrap();
        let text = format!("{head}]\n{mount_line}\n");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baton.toml");
        std::fs::write(&path, &text).unwrap();
        let config = Config::load(Some(&path), &[]).unwrap_or_else(|error| panic!("{text}: {error}"));
        let both = vec![snapshot("a", ""), snapshot(name, "")];
        assert_eq!(mount(both, &config).unwrap().len(), 2, "{text}");
    }
}

#[test]
fn store_that_cannot_be_written_is_named_and_not_the_plugin() {
    let mut place = place();
    std::fs::write(place.config.plugin_dir.join("liba.so"), "x").unwrap();
    // Stands for a disk that is full: whatever is written there fails.
    std::fs::remove_dir(place.dir.path().join("store")).unwrap();
    let failure = place.store.take(&place.config).unwrap_err();
    let store = place.dir.path().join("store").display().to_string();
    assert!(failure.error.contains("state directory") && failure.error.contains(&store), "{failure}");
    assert!(!failure.error.contains("cannot be read") && failure.hint.unwrap().contains("state_dir"));
    let full = place.store.unwritable(&io::ErrorKind::StorageFull.into());
    assert!(full.hint.unwrap().contains("make room"));
}

#[test]
fn only_the_youngest_unused_copies_are_kept() {
    let mut place = place();
    let store = place.dir.path().join("store");
    let mut paths = Vec::new();
    for (age, name) in ["a", "b", "c", "d"].iter().enumerate() {
        let path = store.join(format!("{name}.so"));
        let file = File::create(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(age as u64)).unwrap();
        paths.push(path);
    }
    place.store.collect(&HashSet::from([paths[0].clone()]), 1).unwrap();
    let left: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
    assert_eq!(left, [true, false, false, true]);
}

#[test]
fn a_plugin_is_named_by_its_file() {
    assert_eq!(names(Path::new("/x/libhello-world.so")).1, "hello-world");
    assert_eq!(names(Path::new("/x/hello.so")).1, "hello");
    assert_eq!(names(Path::new("/x/lib.so")).1, "lib");
}
