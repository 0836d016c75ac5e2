use super::due::Task;
use super::*;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// How long an event may take to come.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

struct Watched {
    directory: TempDir,
    store: Arc<Store>,
    watches: Arc<Watches>,
    _listener: Listener,
}

/// A data directory with `known/inner`, watched as the first scan leaves it.
fn watched() -> Watched {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("known/inner")).unwrap();
    let store = Arc::new(Store::open(directory.path(), 0).unwrap());
    let watches = Arc::new(Watches::new().unwrap());
    let listener = Listener::start(&store, &watches).unwrap();
    Walker::watched(Arc::clone(&store), TreePath::root(), &watches).for_each(drop);
    watches.has_started();
    Watched {
        directory,
        store,
        watches,
        _listener: listener,
    }
}

impl Watched {
    fn at(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join(path)
    }

    /// Takes what is due until all of `paths` were; each with all that was told of it.
    fn heard(&self, paths: &[&str]) -> Vec<Task> {
        let deadline = Instant::now() + HEARD_WITHIN;
        let mut heard: Vec<Task> = Vec::new();
        while !paths.iter().all(|path| find_task(&heard, path).is_some()) {
            assert!(Instant::now() < deadline, "{paths:?} of {heard:?}");
            let now_ms = self.watches.now_ms();
            let taken = self.watches.due().take(now_ms, usize::MAX);
            for task in &taken {
                self.watches.due().done(&task.path, now_ms);
            }
            heard.extend(taken);
            std::thread::sleep(Duration::from_millis(5));
        }
        heard
    }
}

fn find_task<'t>(heard: &'t [Task], path: &str) -> Option<&'t Task> {
    let mut of_path = heard.iter();
    of_path.find(|task| task.path.as_bytes() == path.as_bytes())
}

#[test]
fn what_is_made_changed_moved_and_removed_is_heard() {
    let watched = watched();
    fs::write(watched.at("known/inner/file"), "x").unwrap();
    fs::write(watched.at(".ks/own"), "x").unwrap();
    let heard = watched.heard(&["known/inner/file"]);
    assert!(
        heard
            .iter()
            .all(|task| !task.path.as_bytes().starts_with(b".ks"))
    );
    fs::rename(watched.at("known/inner/file"), watched.at("moved")).unwrap();
    let heard = watched.heard(&["known/inner/file", "moved"]);
    assert!(find_task(&heard, "known/inner/file").unwrap().was_removed);
    assert!(find_task(&heard, "moved").unwrap().was_put);
    fs::remove_file(watched.at("moved")).unwrap();
    assert!(watched.heard(&["moved"])[0].was_removed);
}

#[test]
fn what_the_daemon_takes_itself_is_not_told_as_removed() {
    let watched = watched();
    let at = |text: &str| TreePath::new(text.as_bytes()).unwrap();
    let root = &watched.store.root;
    for name in ["a", "b", "c", "known/d"] {
        fs::write(watched.at(name), "x").unwrap();
    }
    watched.heard(&["a", "b", "c", "known/d"]);
    root.unlink(&at("a"), false).unwrap();
    assert!(root.unlink(&at("a"), false).is_err());
    let flags = rustix::fs::RenameFlags::empty();
    root.rename(&at("b"), &at("known/b"), flags).unwrap();
    root.rename(&at("known"), &at("other"), flags).unwrap();
    fs::write(watched.at("a"), "x").unwrap();
    fs::remove_file(watched.at("c")).unwrap();
    let heard = watched.heard(&["a", "c", "other"]);
    let removed = |path: &str| find_task(&heard, path).is_some_and(|task| task.was_removed);
    assert!(removed("c") && !removed("a") && !removed("b") && !removed("known"));
    fs::remove_file(watched.at("a")).unwrap();
    assert!(
        watched.heard(&["a"])[0].was_removed,
        "one announcement, one event"
    );
}

#[test]
fn what_is_in_a_new_directory_already_is_heard_and_all_that_comes() {
    let watched = watched();
    let outside = tempfile::tempdir_in(watched.directory.path().join(".ks")).unwrap();
    fs::create_dir_all(outside.path().join("tree/deep/deeper")).unwrap();
    fs::write(outside.path().join("tree/deep/deeper/file"), "x").unwrap();
    fs::rename(outside.path().join("tree"), watched.at("tree")).unwrap();
    watched.heard(&[
        "tree",
        "tree/deep",
        "tree/deep/deeper",
        "tree/deep/deeper/file",
    ]);
    fs::write(watched.at("tree/deep/deeper/later"), "x").unwrap();
    watched.heard(&["tree/deep/deeper/later"]);
    assert_eq!(watched.watches.directories(), 6);
}

#[test]
fn a_moved_directory_is_told_with_where_it_was_and_is_watched_on() {
    let watched = watched();
    fs::rename(watched.at("known"), watched.at("renamed")).unwrap();
    let heard = watched.heard(&["known", "renamed"]);
    let moved = find_task(&heard, "renamed").unwrap();
    assert_eq!(moved.moved_from, TreePath::new(b"known"));
    fs::write(watched.at("renamed/inner/file"), "x").unwrap();
    watched.heard(&["renamed/inner/file"]);
}

#[test]
fn a_directory_that_was_moved_away_is_out_of_sight() {
    let watched = watched();
    let outside = tempfile::tempdir_in(Path::new(watched.directory.path()).join(".ks")).unwrap();
    fs::rename(watched.at("known"), outside.path().join("away")).unwrap();
    assert!(watched.heard(&["known"])[0].was_removed);
    let deadline = Instant::now() + HEARD_WITHIN;
    while watched.watches.directories() > 1 {
        assert!(Instant::now() < deadline, "its watches stay");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::write(outside.path().join("away/inner/file"), "x").unwrap();
    fs::write(watched.at("here"), "x").unwrap();
    let heard = watched.heard(&["here"]);
    assert!(
        heard
            .iter()
            .all(|task| !task.path.as_bytes().starts_with(b"known"))
    );
}

#[test]
fn a_burst_of_files_in_directories_made_meanwhile_is_heard_whole() {
    let watched = watched();
    let mut paths = Vec::new();
    for number in 0..300 {
        let directory = format!("burst/{}/{}", number % 7, number % 31);
        fs::create_dir_all(watched.at(&directory)).unwrap();
        paths.push(format!("{directory}/{number}"));
        fs::write(watched.at(paths.last().unwrap()), "x").unwrap();
    }
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    watched.heard(&paths);
}
