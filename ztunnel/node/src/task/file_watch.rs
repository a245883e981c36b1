//! Tells when files may have another content, by watching the directories they are in.
//!
//! The kubelet replaces a mounted ConfigMap or Secret by renaming a symbolic link next to the files, so a watch on a
//! file itself would see nothing, or see it once.
//!
//! Invariants: inotify only makes it quick. What counts is how the files look, and that is looked at from time to time
//! in any case: a directory that is not there yet, or is replaced, or a kernel that is out of watches, costs a delay
//! and no change. Bounded: one watch per directory; however many events, one look per debounce time. Watching
//! reads no file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

/// How often to look, and how soon.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the first sign of a change until somebody looks: whoever writes several files gets done.
    pub debounce: Duration,
    /// The longest time without a look.
    pub at_least: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            debounce: Duration::from_secs(2),
            at_least: Duration::from_secs(30),
        }
    }
}

/// A set of files whose changes matter.
#[derive(Debug)]
pub struct FileWatch {
    /// How each file looked last.
    files: BTreeMap<PathBuf, Look>,
    pace: Pace,
    directories: Option<Directories>,
    next_look: Instant,
    /// Something was told since the last look, which will find out what.
    stirred: bool,
}

/// How a file looks without reading it; links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Absent,
    Present {
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    /// Like nothing that a file can look like.
    Forgotten,
}

impl FileWatch {
    /// Watches `files` from now on.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = PathBuf>, pace: Pace) -> Self {
        let mut this = Self {
            files: files
                .into_iter()
                .map(|path| (path, Look::Forgotten))
                .collect(),
            pace,
            directories: Directories::open()
                .inspect_err(|error| debug!(%error, "no inotify; files are looked at in intervals"))
                .ok(),
            next_look: Instant::now(),
            stirred: false,
        };
        this.look();
        this
    }

    /// Resolves when one of the files may have another content than when it was looked at last. Nothing is lost when
    /// the future is dropped.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = event(self.directories.as_ref()), if !self.stirred => {
                    self.stirred = true;
                    self.next_look = self.next_look.min(Instant::now() + self.pace.debounce);
                }
                () = sleep_until(self.next_look) => {
                    if self.look() {
                        return;
                    }
                }
            }
        }
    }

    /// Makes the next look, at the latest after [`Pace::at_least`], take every file for changed: what was found in
    /// one of them was no good.
    pub fn forget(&mut self) {
        self.files
            .values_mut()
            .for_each(|look| *look = Look::Forgotten);
    }

    fn look(&mut self) -> bool {
        if let Some(directories) = &mut self.directories {
            // Before the files are looked at, so that what changes in between is an event.
            directories.drain();
            directories.follow(self.files.keys());
        }
        self.stirred = false;
        self.next_look = Instant::now() + self.pace.at_least;
        let mut changed = false;
        for (path, last) in &mut self.files {
            let now = Look::at(path);
            changed |= now != *last;
            *last = now;
        }
        changed
    }
}

impl Look {
    fn at(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(metadata) => Self::Present {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            },
            Err(_) => Self::Absent,
        }
    }
}

/// tokio wants to know the number of the descriptor.
#[derive(Debug)]
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The watched directories.
#[derive(Debug)]
struct Directories {
    events: AsyncFd<Events>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
}

impl Directories {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types that may lend a number they do not own; an `Inotify` owns its own"
    )]
    fn open() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self {
            events: AsyncFd::new(Events(inotify))?,
            watched: BTreeMap::new(),
        })
    }

    /// Watches the directories that are there now under the names of the files' parents.
    fn follow<'a>(&mut self, files: impl Iterator<Item = &'a PathBuf>) {
        let events = AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        for file in files {
            let directory = match file.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => continue,
            };
            let Events(inotify) = self.events.get_ref();
            // The same directory gets the same descriptor, however often it is added.
            let now = inotify.add_watch(directory, events).ok();
            let before = match now {
                Some(watch) => self.watched.insert(directory.to_owned(), watch),
                None => self.watched.remove(directory),
            };
            if let Some(before) = before.filter(|before| Some(*before) != now)
                && !self.watched.values().any(|watch| *watch == before)
            {
                // It has another name now, or is gone already.
                let _ = inotify.rm_watch(before);
            }
        }
    }

    /// Throws away what has been told so far.
    fn drain(&self) {
        while self.events.get_ref().0.read_events().is_ok() {}
    }
}

/// Resolves when something is told of a directory. What it is does not matter.
async fn event(directories: Option<&Directories>) {
    let Some(directories) = directories else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = directories.events.readable().await else {
            return std::future::pending().await;
        };
        match ready.try_io(|events| Ok(events.get_ref().0.read_events()?)) {
            Ok(Ok(_)) => return,
            Ok(Err(err)) if err.kind() == io::ErrorKind::Interrupted => {}
            // Without inotify, the looks in intervals remain.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_would_block) => {}
        }
    }
}

/// Reads a small file whole.
///
/// # Errors
/// As reading does; `FileTooLarge` beyond `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = File::open(path)?.take(max + 1).read_to_end(&mut content)?;
    if read as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {max} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// A look in intervals that no test lives to see.
    const QUICK: Pace = Pace {
        debounce: Duration::from_millis(1),
        at_least: Duration::from_hours(1),
    };

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("watch-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// Puts a new version of `file` in place, as the kubelet does.
        fn publish(&self, version: &str, file: &str, content: &str) {
            fs::create_dir(self.at(version)).unwrap();
            fs::write(self.at(version).join(file), content).unwrap();
            symlink(version, self.at("..data_tmp")).unwrap();
            fs::rename(self.at("..data_tmp"), self.at("..data")).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    async fn changes(watch: &mut FileWatch) {
        timeout(SOON, watch.changed()).await.expect("a change");
    }

    /// Nothing changes in the time in which a change is seen for sure: that of a file in the same directory.
    async fn stays(watch: &mut FileWatch, beside: PathBuf) {
        let mut other = FileWatch::new([beside.clone()], QUICK);
        fs::write(&beside, "something").unwrap();
        tokio::select! {
            biased;
            () = watch.changed() => panic!("nothing has changed"),
            () = changes(&mut other) => {}
        }
    }

    #[tokio::test]
    async fn swapped_symlink_is_a_change() {
        let dir = Dir::new("swap");
        dir.publish("..1", "roots.pem", "old");
        symlink("..data/roots.pem", dir.at("roots.pem")).unwrap();
        let mut watch = FileWatch::new([dir.at("roots.pem")], QUICK);
        dir.publish("..2", "roots.pem", "new");
        changes(&mut watch).await;
        stays(&mut watch, dir.at("other")).await;
        dir.publish("..3", "roots.pem", "newer");
        changes(&mut watch).await;
    }

    #[tokio::test]
    async fn writing_creating_and_removing_are_changes() {
        let dir = Dir::new("kinds");
        let file = dir.at("list.crl");
        let mut watch = FileWatch::new([file.clone()], QUICK);
        fs::write(&file, "one").unwrap();
        changes(&mut watch).await;
        fs::write(&file, "another").unwrap();
        changes(&mut watch).await;
        fs::remove_file(&file).unwrap();
        changes(&mut watch).await;
        stays(&mut watch, dir.at("other")).await;
    }

    #[tokio::test]
    async fn directory_that_comes_later_or_is_replaced_is_looked_at_in_intervals() {
        let dir = Dir::new("late");
        let (inner, file) = (dir.at("inner"), dir.at("inner/list.crl"));
        let pace = Pace {
            debounce: Duration::from_millis(1),
            at_least: Duration::from_millis(20),
        };
        let mut watch = FileWatch::new([file.clone()], pace);
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "one").unwrap();
        changes(&mut watch).await;

        fs::rename(&inner, dir.at("gone")).unwrap();
        fs::create_dir(&inner).unwrap();
        changes(&mut watch).await;
        fs::write(&file, "two").unwrap();
        changes(&mut watch).await;
        // One directory, one watch, whatever it was replaced by.
        assert_eq!(watch.directories.as_ref().unwrap().watched.len(), 1);
    }

    #[tokio::test]
    async fn without_inotify_changes_are_seen_in_intervals() {
        let dir = Dir::new("none");
        let file = dir.at("list.crl");
        let pace = Pace {
            at_least: Duration::from_millis(20),
            ..QUICK
        };
        let mut watch = FileWatch::new([file.clone()], pace);
        watch.directories = None;
        fs::write(&file, "one").unwrap();
        changes(&mut watch).await;
    }

    #[tokio::test]
    async fn what_was_no_good_is_a_change_again_at_the_next_look() {
        let dir = Dir::new("again");
        let file = dir.at("list.crl");
        fs::write(&file, "half of").unwrap();
        let pace = Pace {
            at_least: Duration::from_millis(20),
            ..QUICK
        };
        let mut watch = FileWatch::new([file], pace);
        for _ in 0..2 {
            watch.forget();
            changes(&mut watch).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_events_cost_one_look_per_debounce() {
        let dir = Dir::new("many");
        let file = dir.at("list.crl");
        let mut watch = FileWatch::new([file.clone()], Pace::default());
        let before = Instant::now();
        for n in 0..1000 {
            fs::write(&file, n.to_string()).unwrap();
        }
        watch.changed().await;
        assert!(before.elapsed() >= Pace::default().debounce);
        // All of them are dealt with: the next look is the one that comes in any case.
        let before = Instant::now();
        let next = timeout(Pace::default().at_least / 2, watch.changed()).await;
        assert!(next.is_err());
        assert!(before.elapsed() >= Pace::default().at_least / 2);
    }
}
