//! Keeps the revocation lists as a file says them.
//!
//! A file that is not there (yet) names nobody. One that cannot be read or understood changes nothing: what it said
//! before stays in force, and when that was never anything, certificates are not checked until it is mended. Stopping
//! the node for it would trade one revoked certificate for all traffic of the node, on every node that starts with the
//! same file; so it is said as an error, and tried again. A file that goes away leaves its lists in force, too: to
//! revoke nothing any more takes an empty one, and that cannot happen by accident.

use std::io;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::context::Context;
use super::revocation::{RevocationListError, RevocationLists};
use crate::task::{FileWatch, Pace, Shutdown, read_bounded};
use crate::telemetry::chain;

/// Some hundred thousand revoked certificates.
const MAX_FILE: u64 = 32 * 1024 * 1024;

/// A file of revocation lists.
#[derive(Debug)]
pub struct CrlFile {
    watch: FileWatch,
    loader: Loader,
}

#[derive(Debug)]
struct Loader {
    path: PathBuf,
    context: Context,
    /// Whether lists of this file are in force.
    loaded: bool,
    /// What was said about the file last, not to be said again.
    said: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("the file is gone")]
    Gone,
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it holds no revocation lists")]
    Parse(#[from] RevocationListError),
}

impl CrlFile {
    /// Reads the file for the first time.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn open(path: &Path, pace: Pace, context: Context) -> Self {
        // Before it is read: what changes in between is seen later.
        let mut watch = FileWatch::new([path.to_owned()], pace);
        let mut loader = Loader {
            path: path.to_owned(),
            context,
            loaded: false,
            said: None,
        };
        if !loader.load() {
            watch.forget();
        }
        Self { watch, loader }
    }

    /// Reads it again whenever it changes, until `shutdown`.
    pub async fn follow(self, shutdown: Shutdown) {
        let Self {
            mut watch,
            mut loader,
        } = self;
        loop {
            tokio::select! {
                () = shutdown.started() => return,
                () = watch.changed() => {}
            }
            // Megabytes to parse, and then every live session to look at.
            let loading = tokio::task::spawn_blocking(move || {
                let good = loader.load();
                (loader, good)
            });
            match loading.await {
                Ok((back, good)) => {
                    loader = back;
                    if !good {
                        watch.forget();
                    }
                }
                Err(error) => {
                    return error!(%error, "revocation lists are not followed any more");
                }
            }
        }
    }
}

impl Loader {
    /// Brings the lists in force, and says whether the file was good.
    fn load(&mut self) -> bool {
        match self.read() {
            Ok(Some(lists)) => {
                let (count, revoked) = (lists.len(), lists.revoked());
                let tunnels_cut = self.context.set_revocation_lists(lists);
                let path = self.path.display();
                info!(%path, lists = count, revoked, tunnels_cut, "revocation lists loaded");
                self.loaded = true;
                self.said = None;
                true
            }
            Ok(None) => {
                if self.is_news("none yet") {
                    let path = self.path.display();
                    info!(%path, "no revocation lists yet");
                }
                true
            }
            Err(error) => {
                self.complain(&chain(&error));
                false
            }
        }
    }

    fn read(&self) -> Result<Option<RevocationLists>, LoadError> {
        match read_bounded(&self.path, MAX_FILE) {
            Ok(content) => Ok(Some(RevocationLists::parse(&content)?)),
            Err(err) if err.kind() == io::ErrorKind::NotFound && self.loaded => {
                Err(LoadError::Gone)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(LoadError::Read(err)),
        }
    }

    fn complain(&mut self, reason: &str) {
        if !self.is_news(reason) {
            return;
        }
        let path = self.path.display();
        if self.loaded {
            warn!(%path, reason, "revocation lists not reloaded; those from before stay in force");
        } else {
            error!(%path, reason, "no revocation lists: certificates are not checked until the file is mended");
        }
    }

    /// Whether this is something else than what was said last.
    fn is_news(&mut self, what: &str) -> bool {
        let is_news = self.said.as_deref() != Some(what);
        self.said = Some(what.to_owned());
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::super::provider::Options;
    use super::super::test_ca::TestCa;
    use super::*;

    const PACE: Pace = Pace {
        debounce: Duration::from_millis(1),
        at_least: Duration::from_millis(20),
    };

    /// A path that is free again in the end.
    struct Free(PathBuf);

    impl Free {
        fn new(name: &str) -> Self {
            let name = format!("crl-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Free {
        fn drop(&mut self) {
            drop(fs::remove_file(&self.0));
        }
    }

    fn context() -> Context {
        Context::with_revocation(Options::default())
    }

    fn revoked(context: &Context) -> usize {
        context.trust().lists().revoked()
    }

    #[tokio::test]
    async fn what_is_no_good_changes_nothing() {
        let (ca, path, context) = (TestCa::new("one"), Free::new("kept"), context());
        let mut loader = CrlFile::open(&path.0, PACE, context.clone()).loader;
        let mut loads = |content: Option<&[u8]>| {
            match content {
                Some(content) => fs::write(&path.0, content).unwrap(),
                None => fs::remove_file(&path.0).unwrap(),
            }
            let good = loader.load();
            // Tried again, as at the next look.
            assert_eq!(loader.load(), good);
            assert_eq!(good, loader.said.is_none());
            (good, revoked(&context))
        };
        let list = ca.revoke(&[1.into()]);
        assert_eq!(loads(Some(&list)), (true, 1));
        assert_eq!(loads(Some(b"rubbish")), (false, 1));
        assert_eq!(loads(Some(&list[..20])), (false, 1));
        assert_eq!(loads(None), (false, 1));
        assert_eq!(loads(Some(&ca.revoke(&[1.into(), 2.into()]))), (true, 2));
        assert_eq!(loads(Some(b"")), (true, 0));
    }

    #[tokio::test]
    async fn file_that_is_no_good_at_the_start_is_used_once_it_is_mended() {
        let (ca, path, context) = (TestCa::new("one"), Free::new("mended"), context());
        fs::write(&path.0, "rubbish").unwrap();
        let file = CrlFile::open(&path.0, PACE, context.clone());
        assert_eq!(revoked(&context), 0);
        let shutdown = Shutdown::default();
        let following = tokio::spawn(file.follow(shutdown.clone()));
        fs::write(&path.0, ca.revoke(&[1.into()])).unwrap();
        let mended = async {
            while revoked(&context) != 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let bound = Duration::from_secs(10);
        tokio::time::timeout(bound, mended).await.unwrap();
        shutdown.start();
        following.await.unwrap();
    }
}
